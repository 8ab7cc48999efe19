//! The banner of a Linux kernel: the line that it begins its log with.
//!
//! ```text
//! Linux version 6.1.0-56-cloud-amd64 (builder@host) (gcc …) #1 SMP … (date)\n NUL
//! ```
//!
//! It is in the kernel's image, and in its log without the line's end.

use super::linux::Uts;

/// How it begins.
const HEAD: &[u8] = b"Linux version ";

/// The longest that is taken for one.
pub(super) const LONGEST: usize = 1024;

/// The banner at the begin of `bytes`, if it is one: a line of text.
fn parse(bytes: &[u8]) -> Option<String> {
    let line = bytes.get(..LONGEST.min(bytes.len()))?;
    let end = line.iter().position(|byte| *byte != b' ' && !byte.is_ascii_graphic())?;
    let (line, behind) = line.split_at_checked(end)?;
    let release = line.strip_prefix(HEAD)?;
    let is_release = release.first().is_some_and(u8::is_ascii_digit);
    let has_builder = release.windows(2).any(|pair| pair == b" (") && release.contains(&b'@');
    let is_ended = behind.first() == Some(&b'\n');
    (is_release && has_builder && is_ended).then(|| String::from_utf8_lossy(line).into_owned())
}

/// The first banner in `bytes` that is of the kernel that `uts` is of. Its
/// image has others that lack something: what text is made of at build time.
pub(super) fn find(bytes: &[u8], uts: &Uts) -> Option<String> {
    let places = memchr::memmem::find_iter(bytes, HEAD);
    let mut banners = places.filter_map(|at| parse(bytes.get(at..)?));
    let is_of =
        |banner: &String| banner.split(' ').nth(2) == Some(&uts.release) && banner.ends_with(&uts.version);
    banners.find(is_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "Linux version 6.1.0 (build@host) (gcc 12) #1 SMP";

    #[test]
    fn the_banner_of_the_kernel_is_found() {
        let uts = |release: &str| Uts {
            nodename: "host".to_owned(),
            release: release.to_owned(),
            version: "#1 SMP".to_owned(),
            machine: "x86_64".to_owned(),
        };
        let other = LINE.replace("6.1.0", "6.1.0-rc1");
        let partial = LINE.replace("#1", "#");
        let bytes = format!("\0\0%s version %s\0{other}\n\0{LINE}\0{partial}\n\0{LINE}\n\0");
        assert_eq!(find(bytes.as_bytes(), &uts("6.1.0")).as_deref(), Some(LINE));
        assert_eq!(find(bytes.as_bytes(), &uts("6.1")), None);
    }

    #[test]
    fn what_is_no_line_of_a_kernel_is_no_banner() {
        for text in
            ["Linux version %s (%s)\n", "Linux version 6.1 \n", "Linux version 6.1 (a@b)", "Linux version "]
        {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(&[b"Linux version 6 (a@b) ".as_slice(), &[b'x'; 2048], b"\n"].concat()), None);
    }
}
