//! `s390-skeys`: the storage keys of an s390 guest.
//!
//! ```text
//! be64 address | SKEYS   be64 count   count bytes    one key a page of 4 KiB
//! be64 EOS or ERROR                                  ends the body
//! ```
//!
//! Source followed: QEMU `hw/s390x/s390-skeys.c` (`s390_storage_keys_save`).

use crate::body::PageBytes;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::SectionType;

pub(super) const VERSION: u32 = 1;

const EOS: u64 = 1;
const SKEYS: u64 = 2;
const ERROR: u64 = 4;

/// QEMU ends with ERROR when it could not read the keys.
const WORDS: PageBytes = PageBytes {
    what: "word of storage keys",
    expected: "flag SKEYS, EOS or ERROR",
    counted: SKEYS,
    passing: &[],
    ending: &[EOS, ERROR],
};

pub(super) fn read_body(_kind: SectionType, cursor: &mut Cursor<'_>) -> Result<()> {
    WORDS.read(cursor)
}
