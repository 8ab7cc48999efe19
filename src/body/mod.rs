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

/// The failure of a word whose flags have no meaning.
fn unknown_flags(at: StreamOffset, what: &'static str, word: u64, expected: &str) -> Error {
    Error::at(at, ErrorKind::Malformed { what, met: format!("{word:#x}"), expected: expected.to_owned() })
}
