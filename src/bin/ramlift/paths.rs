//! File names for RAM blocks.
//!
//! A block's name becomes a relative path: `0000:00:02.0/vga.vram` a file in a
//! directory. Names are the stream's, so they are not trusted: whatever would
//! leave the output directory, collide, or be no portable text is encoded.

use std::collections::HashSet;

use ramlift::Idstr;

/// The longest name of one path component, in bytes, that is left as it is.
/// File systems allow 255.
const COMPONENT_LEN_MAX: usize = 200;

/// Gives out paths, each once.
#[derive(Default)]
pub(crate) struct BlockPaths {
    files: HashSet<String>,
    directories: HashSet<String>,
}

impl BlockPaths {
    /// With the names that other outputs of the directory have.
    pub(crate) fn with_reserved(names: &[&str]) -> Self {
        let files = names.iter().map(|name| (*name).to_owned()).collect();
        Self { files, directories: HashSet::new() }
    }

    /// The relative path for a block. Its components are never empty, `.` or
    /// `..`, and no path given out is another one's, or its directory.
    pub(crate) fn assign(&mut self, idstr: &Idstr) -> String {
        let plain = encode(idstr.as_bytes());
        let flat = plain.replace('/', "%2F");
        let numbered = (2u64..).map(|nth| shorten(&flat, &format!("~{nth}")));
        let candidates = [plain, shorten(&flat, "")].into_iter().chain(numbered);
        for path in candidates {
            if self.is_free(&path) {
                self.directories.extend(parents(&path).map(str::to_owned));
                self.files.insert(path.clone());
                return path;
            }
        }
        // The numbers do not end before the blocks do.
        flat
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
/// One slash at the begin goes. Each component keeps letters, digits and
/// printable text; `%`, control characters, backslashes and bytes that are no
/// UTF-8 become `%XX`, and so do components that mean another directory.
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
            if c.is_control() || c == '%' || c == '\\' {
                let mut utf8 = [0; 4];
                encoded.extend(c.encode_utf8(&mut utf8).bytes().map(|byte| format!("%{byte:02X}")));
            } else {
                encoded.push(c);
            }
        }
        encoded.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    shorten(&encoded, "")
}

/// A component with `suffix`, cut so that it fits a file system.
fn shorten(component: &str, suffix: &str) -> String {
    if component.len() <= COMPONENT_LEN_MAX {
        return format!("{component}{suffix}");
    }
    let cut = (0..=COMPONENT_LEN_MAX).rev().find(|at| component.is_char_boundary(*at)).unwrap_or(0);
    format!("{}~{suffix}", component.get(..cut).unwrap_or_default())
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
