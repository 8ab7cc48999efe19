//! `s390-storage_attributes`: the CMMA state of an s390 guest.
//!
//! ```text
//! be64 address | MORE    be64 count   count bytes    one attribute a page of 4 KiB
//! be64 DONE                                          all attributes are there
//! be64 EOS or ERROR                                  ends the body
//! ```
//!
//! START, PART and END alike.
//!
//! Source followed: QEMU `hw/s390x/s390-stattrib.c` (`cmma_save`, `cmma_load`).

use crate::body::PageBytes;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::SectionType;

pub(super) const VERSION: u32 = 0;

const EOS: u64 = 1;
const MORE: u64 = 2;
const ERROR: u64 = 4;
const DONE: u64 = 8;

const WORDS: PageBytes = PageBytes {
    what: "word of storage attributes",
    expected: "flag MORE, DONE, EOS or ERROR",
    counted: MORE,
    passing: &[DONE],
    ending: &[EOS, ERROR],
};

pub(super) fn read_body(_kind: SectionType, cursor: &mut Cursor<'_>) -> Result<()> {
    WORDS.read(cursor)
}
