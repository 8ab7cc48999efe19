//! File names for RAM blocks.
//!
//! A block's name becomes a relative path: `0000:00:02.0/vga.vram` a file in a
//! directory. Names are the stream's, so they are not trusted: whatever would
//! leave the output directory, be taken for something else, or be no portable
//! text is encoded, and names that differ by case alone count as one, as they do
//! on some file systems. QEMU's own names are ASCII, so all else is encoded:
//! there are many ways to be the same name beyond it.

use std::collections::{HashMap, HashSet};

use ramlift::Idstr;

use crate::staging;

/// The longest name of one path component, in bytes, that is left as it is.
/// File systems allow 255.
const COMPONENT_LEN_MAX: usize = 200;

/// How many directories a name may make. QEMU's have up to three.
const DEPTH_MAX: usize = 8;

/// Gives out paths, each once.
#[derive(Default)]
pub(crate) struct BlockPaths {
    // In lower case.
    files: HashSet<String>,
    directories: HashSet<String>,
    /// The last number that each numbered name has got.
    numbers: HashMap<String, u64>,
}

impl BlockPaths {
    /// With the names that other outputs of the directory have.
    pub(crate) fn with_reserved(names: &[&str]) -> Self {
        let files = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self { files, ..Self::default() }
    }

    /// The relative path for a block. Its components are never empty, `.` or
    /// `..`, and no path given out is another one's, or its directory.
    pub(crate) fn assign(&mut self, idstr: &Idstr) -> String {
        let path = self.find_free(&encode(idstr.as_bytes()));
        let folded = path.to_ascii_lowercase();
        self.directories.extend(parents(&folded).map(str::to_owned));
        self.files.insert(folded);
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
        let folded = flat.to_ascii_lowercase();
        let mut number = self.numbers.get(&folded).copied().unwrap_or(1);
        loop {
            number += 1;
            let numbered = format!("{flat}~{number}");
            if self.is_free(&numbered) {
                self.numbers.insert(folded, number);
                return numbered;
            }
        }
    }

    fn is_free(&self, path: &str) -> bool {
        let path = path.to_ascii_lowercase();
        !self.files.contains(&path)
            && !self.directories.contains(&path)
            && !parents(&path).any(|parent| self.files.contains(parent))
    }
}

/// The directories that a relative path goes through, without the path.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(at, _)| path.get(..at))
}

/// A block's name as a relative path.
///
/// One slash at the begin goes. Each component keeps plain text; `%`, control
/// characters, backslashes and bytes that are not ASCII become `%XX`, and so do
/// components that mean another directory, a dot or space at the end, which some
/// file systems drop, and the begin of what looks like a staging directory.
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
    let last = component.len() - 1;
    let mut encoded = String::new();
    for (at, byte) in component.iter().copied().enumerate() {
        let is_plain = matches!(byte, b' '..=b'~') && !matches!(byte, b'%' | b'\\');
        let is_dropped = at == last && matches!(byte, b'.' | b' ');
        let is_staging = at == 0 && component.to_ascii_lowercase().starts_with(staging::PREFIX.as_bytes());
        if is_plain && !is_dropped && !is_staging {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    shorten(&encoded)
}

/// A component, cut so that it fits a file system with a number behind it.
fn shorten(component: &str) -> String {
    match component.get(..COMPONENT_LEN_MAX) {
        Some(cut) if component.len() > COMPONENT_LEN_MAX => format!("{cut}~"),
        _ => component.to_owned(),
    }
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
    fn names_that_some_file_system_takes_for_the_same_are_kept_apart() {
        assert_eq!(assign(&[b"pc.ram", b"PC.RAM", b"Pc.Ram"]), ["pc.ram", "PC.RAM~2", "Pc.Ram~3"]);
        assert_eq!(assign(&[b"Manifest.JSON", b"A", b"a/b"]), ["Manifest.JSON~2", "A", "a%2Fb"]);
        // The same letter, put together and in two parts.
        assert_eq!(assign(&["\u{e9}".as_bytes(), "e\u{301}".as_bytes()]), ["%C3%A9", "e%CC%81"]);
        assert_eq!(assign(&[b"a", b"a.", b"a "]), ["a", "a%2E", "a%20"]);
    }

    #[test]
    fn no_name_looks_like_a_staging_directory() {
        let names = assign(&[b".ramlift-incomplete-abcdef/x", b".Ramlift-Incomplete-other1"]);
        assert_eq!(names, ["%2Eramlift-incomplete-abcdef/x", "%2ERamlift-Incomplete-other1"]);
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
