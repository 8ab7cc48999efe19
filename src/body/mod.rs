//! Bodies with layouts of their own, which no description covers.
//!
//! Iterative handlers other than `ram`, and devices of the old style whose
//! bytes say where they end. Each is a file here, and a line in
//! [`layout_of`].

mod htab;
mod skeys;
mod storage_attributes;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::section::SectionType;
use crate::units::StreamOffset;

/// Reads one body: moves the cursor from its begin to its end.
pub(crate) type Layout = fn(SectionType, &mut Cursor<'_>) -> Result<()>;

/// The layout of a handler's bodies, if it has one of its own, and the
/// version of it that is read.
pub(crate) fn layout_of(idstr: &[u8]) -> Option<(Layout, u32)> {
    Some(match idstr {
        b"spapr/htab" => (htab::read_body, htab::VERSION),
        b"s390-storage_attributes" => (storage_attributes::read_body, storage_attributes::VERSION),
        b"s390-skeys" => (skeys::read_body, skeys::VERSION),
        _ => return None,
    })
}

/// The words of a body that lists bytes, one for each page of 4 KiB:
///
/// ```text
/// be64 address | counted   be64 count   count bytes
/// be64 passing
/// be64 ending                                         ends the body
/// ```
struct PageBytes {
    /// What the words are called in messages, and what they can be.
    what: &'static str,
    expected: &'static str,
    counted: u64,
    passing: &'static [u64],
    ending: &'static [u64],
}

impl PageBytes {
    fn read(&self, cursor: &mut Cursor<'_>) -> Result<()> {
        const FLAGS: u64 = 0xfff;
        loop {
            let at = cursor.offset();
            let word = cursor.be64()?;
            let flag = word & FLAGS;
            if flag == self.counted {
                let count = cursor.be64()?;
                cursor.bytes(count)?;
            } else if self.ending.contains(&flag) {
                return Ok(());
            } else if !self.passing.contains(&flag) {
                return Err(unknown_flags(at, self.what, word, self.expected));
            }
        }
    }
}

/// The failure of a word whose flags have no meaning.
fn unknown_flags(at: StreamOffset, what: &'static str, word: u64, expected: &str) -> Error {
    Error::at(at, ErrorKind::Malformed { what, met: format!("{word:#x}"), expected: expected.to_owned() })
}
