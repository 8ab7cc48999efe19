//! `s390-skeys`: the storage keys of an s390 guest.
//!
//! ```text
//! be64 address | SKEYS   be64 count   count bytes    one key a page of 4 KiB
//! be64 EOS or ERROR                                  ends the body
//! ```
//!
//! Source followed: QEMU `hw/s390x/s390-skeys.c` (`s390_storage_keys_save`).

use crate::body::unknown_flags;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::SectionType;

pub(super) const VERSION: u32 = 1;

const EOS: u64 = 1;
const SKEYS: u64 = 2;
const ERROR: u64 = 4;
const FLAGS: u64 = 0xfff;

pub(super) fn read_body(_kind: SectionType, cursor: &mut Cursor<'_>) -> Result<()> {
    loop {
        let at = cursor.offset();
        let word = cursor.be64()?;
        match word & FLAGS {
            SKEYS => {
                let count = cursor.be64()?;
                cursor.bytes(count)?;
            }
            // QEMU ends here too when it could not read the keys.
            EOS | ERROR => return Ok(()),
            _ => return Err(unknown_flags(at, "word of storage keys", word, "flag SKEYS, EOS or ERROR")),
        }
    }
}
