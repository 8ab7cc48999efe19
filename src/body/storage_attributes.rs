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

use crate::body::{PageBytes, Step};
use crate::cursor::Cursor;
use crate::error::Result;

pub(super) const VERSION: u32 = 0;

const WORDS: PageBytes = PageBytes {
    what: "word of storage attributes",
    expected: "flag MORE, DONE, EOS or ERROR",
    eos: 1,
    counted: 2,
    error: 4,
    done: Some(8),
};

pub(super) fn step<'a>(cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    WORDS.step(cursor)
}
