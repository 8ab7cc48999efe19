//! Names that come from the stream: bytes, never trusted.

use std::fmt;

use serde::{Serialize, Serializer};

/// A name as the stream gives it: a RAM block's or a section's `idstr`, a
/// machine type, a capability. At most 255 bytes in practice, of any value.
///
/// [`Display`](fmt::Display) and JSON show it escaped: what is printable stays
/// (spaces, non-ASCII letters), control characters, backslashes and bytes that
/// are no UTF-8 become `\xNN`, so it is safe on a terminal and no two names
/// look alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Idstr(Box<[u8]>);

impl Idstr {
    /// Whether a character can be shown as it is, on a terminal or in a list
    /// of files: it cannot control the terminal, nor reorder or hide its
    /// neighbours.
    pub fn is_plain(c: char) -> bool {
        !is_unsafe(c)
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Idstr {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for Idstr {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl PartialEq<str> for Idstr {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for Idstr {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl fmt::Display for Idstr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '\\' || is_unsafe(c) {
                    let mut utf8 = [0; 4];
                    for byte in c.encode_utf8(&mut utf8).bytes() {
                        write!(f, "\\x{byte:02x}")?;
                    }
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Whether a character can change how a terminal shows its neighbours.
fn is_unsafe(c: char) -> bool {
    // Controls, line and paragraph separators, and the characters that
    // reorder text (bidirectional overrides and isolates) or hide in it.
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

impl fmt::Debug for Idstr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Idstr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_is_printable_and_escapes_the_rest() {
        let shown = |bytes: &[u8]| Idstr::from(bytes).to_string();
        assert_eq!(shown(b"0000:00:02.0/vga.vram"), "0000:00:02.0/vga.vram");
        assert_eq!(shown(b"a\x1b[31m\n\0\\"), "a\\x1b[31m\\x0a\\x00\\x5c");
        assert_eq!(shown(b"\xff\xc3\xa4"), "\\xffä");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a\\xe2\\x80\\xaeb");
    }
}
