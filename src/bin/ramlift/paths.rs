//! File names for RAM blocks.
//!
//! A block's name becomes a relative path: `0000:00:02.0/vga.vram` a file in a
//! directory. Names are the stream's, so they are not trusted: whatever would
//! leave the output directory, collide, or be no portable text is encoded.

use std::collections::{HashMap, HashSet};

use ramlift::Idstr;

/// The longest name of one path component, in bytes, that is left as it is.
/// File systems allow 255.
const COMPONENT_LEN_MAX: usize = 200;

/// How many directories a name may make. QEMU's have up to three.
const DEPTH_MAX: usize = 8;

/// Gives out paths, each once.
#[derive(Default)]
pub(crate) struct BlockPaths {
    files: HashSet<String>,
    directories: HashSet<String>,
    /// The last number that each numbered name has got.
    numbers: HashMap<String, u64>,
}

impl BlockPaths {
    /// With the names that other outputs of the directory have.
    pub(crate) fn with_reserved(names: &[&str]) -> Self {
        let files = names.iter().map(|name| (*name).to_owned()).collect();
        Self { files, ..Self::default() }
    }

    /// The relative path for a block. Its components are never empty, `.` or
    /// `..`, and no path given out is another one's, or its directory.
    pub(crate) fn assign(&mut self, idstr: &Idstr) -> String {
        let path = self.find_free(&encode(idstr.as_bytes()));
        self.directories.extend(parents(&path).map(str::to_owned));
        self.files.insert(path.clone());
        path
    }

    /// `plain` itself, or the same in one component, or that with a number.
    fn find_free(&mut self, plain: &str) -> String {
        if parents(plain).count() <= DEPTH_MAX && self.is_free(plain) {
            return plain.to_owned();
        }
        let flat = shorten(&plain.replace('/', "%2F"));
        if self.is_free(&flat) {
            return flat;
        }
        let mut number = self.numbers.get(&flat).copied().unwrap_or(1);
        loop {
            number += 1;
            let numbered = format!("{flat}~{number}");
            if self.is_free(&numbered) {
                self.numbers.insert(flat, number);
                return numbered;
            }
        }
    }

    fn is_free(&self, path: &str) -> bool {
        !self.files.contains(path)
            && !self.directories.contains(path)
            && !parents(path).any(|parent| self.files.contains(parent))
    }
}

/// The directories that a relative path goes through, without the path.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(at, _)| path.get(..at))
}

/// A block's name as a relative path.
///
/// One slash at the begin goes. Each component keeps plain text; `%`, control
/// characters, those that reorder or hide text, backslashes and bytes that are
/// no UTF-8 become `%XX`, and so do components that mean another directory.
fn encode(idstr: &[u8]) -> String {
    let relative = idstr.strip_prefix(b"/").unwrap_or(idstr);
    let components: Vec<String> = relative.split(|byte| *byte == b'/').map(encode_component).collect();
    components.join("/")
}

fn encode_component(component: &[u8]) -> String {
    match component {
        // `%` alone cannot come from anything else.
        b"" => return "%".to_owned(),
        b"." => return "%2E".to_owned(),
        b".." => return "%2E%2E".to_owned(),
        _ => {}
    }
    let mut encoded = String::new();
    for chunk in component.utf8_chunks() {
        for c in chunk.valid().chars() {
            if !Idstr::is_plain(c) || c == '%' || c == '\\' {
                let mut utf8 = [0; 4];
                encoded.extend(c.encode_utf8(&mut utf8).bytes().map(|byte| format!("%{byte:02X}")));
            } else {
                encoded.push(c);
            }
        }
        encoded.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    shorten(&encoded)
}

/// A component, cut so that it fits a file system with a number behind it.
fn shorten(component: &str) -> String {
    if component.len() <= COMPONENT_LEN_MAX {
        return component.to_owned();
    }
    let cut = (0..=COMPONENT_LEN_MAX).rev().find(|at| component.is_char_boundary(*at)).unwrap_or(0);
    format!("{}~", component.get(..cut).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(names: &[&[u8]]) -> Vec<String> {
        let mut paths = BlockPaths::with_reserved(&["manifest.json"]);
        names.iter().map(|name| paths.assign(&Idstr::from(*name))).collect()
    }

    #[test]
    fn qemus_own_names_stay_as_they_are() {
        let names = assign(&[b"pc.ram", b"0000:00:02.0/vga.vram", b"/rom@etc/acpi/tables"]);
        assert_eq!(names, ["pc.ram", "0000:00:02.0/vga.vram", "rom@etc/acpi/tables"]);
    }

    #[test]
    fn names_that_leave_the_directory_are_encoded() {
        assert_eq!(assign(&[b"../x"]), ["%2E%2E/x"]);
        assert_eq!(assign(&[b"//etc/passwd"]), ["%/etc/passwd"]);
        assert_eq!(assign(&[b"a/./b/.."]), ["a/%2E/b/%2E%2E"]);
        assert_eq!(assign(&[b"", b"/"]), ["%", "%~2"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_encoded() {
        assert_eq!(assign(&[b"a\0b\n", b"\xff%"]), ["a%00b%0A", "%FF%25"]);
    }

    #[test]
    fn names_that_collide_get_names_of_their_own() {
        assert_eq!(assign(&[b"pc.ram", b"/pc.ram"]), ["pc.ram", "pc.ram~2"]);
        assert_eq!(assign(&[b"a", b"a/b"]), ["a", "a%2Fb"]);
        assert_eq!(assign(&[b"a/b", b"a"]), ["a/b", "a~2"]);
        assert_eq!(assign(&[b"manifest.json", b"manifest.json/x"]), ["manifest.json~2", "manifest.json%2Fx"]);
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let (one, other) = ([b'a'; 255], [[b'a'; 254].as_slice(), b"b"].concat());
        let paths = assign(&[&one, &other]);
        assert!(paths.iter().all(|path| path.len() <= 255), "{paths:?}");
        assert_ne!(paths[0], paths[1]);
    }
}
