//! `s390-skeys`: the storage keys of an s390 guest.
//!
//! ```text
//! be64 address | SKEYS   be64 count   count bytes    one key a page of 4 KiB
//! be64 EOS or ERROR                                  ends the body
//! ```
//!
//! Source followed: QEMU `hw/s390x/s390-skeys.c` (`s390_storage_keys_save`).

use crate::body::{PageBytes, Step};
use crate::cursor::Cursor;
use crate::error::Result;

pub(super) const VERSION: u32 = 1;

/// QEMU ends with the flag of an error when it could not read the keys.
const WORDS: PageBytes = PageBytes {
    what: "word of storage keys",
    expected: "flag SKEYS, EOS or ERROR",
    eos: 1,
    counted: 2,
    error: 4,
    done: None,
};

pub(super) fn step<'a>(cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    WORDS.step(cursor)
}
