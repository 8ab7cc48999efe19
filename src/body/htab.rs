//! `spapr/htab`: the hash page table of a pseries guest.
//!
//! ```text
//! START      be32 shift         log2 of the table's bytes; ffffffff: no table
//! PART, END  be32 0             or ffffffff: no table, and the body ends
//!            { be32 index  be16 n_valid  be16 n_invalid  n_valid × 16 bytes }
//!            until all three are 0
//! ```
//!
//! Source followed: QEMU `hw/ppc/spapr.c` (`htab_save_setup`,
//! `htab_save_iterate`, `htab_load`).

use crate::body::{Content, Step, unknown_flags};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::SectionType;

pub(super) const VERSION: u32 = 1;

const NO_HPT: u32 = u32::MAX;
const HASH_PTE_SIZE_64: u64 = 16;

pub(super) fn step<'a>(kind: SectionType, is_first: bool, cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    if is_first {
        let at = cursor.offset();
        let head = cursor.be32()?;
        if kind == SectionType::Start {
            let shift = (head != NO_HPT).then_some(head);
            return Ok(Step::Last(Content::HashTable { shift }));
        }
        if head == NO_HPT {
            return Ok(Step::Last(Content::HashTable { shift: None }));
        }
        if head != 0 {
            let what = "begin of a hash page table's part";
            return Err(unknown_flags(at, what, head.into(), "0 or 0xffffffff"));
        }
    }
    let index = cursor.be32()?;
    let n_valid = cursor.be16()?;
    let n_invalid = cursor.be16()?;
    if (index, n_valid, n_invalid) == (0, 0, 0) {
        return Ok(Step::End);
    }
    let valid = cursor.bytes(u64::from(n_valid) * HASH_PTE_SIZE_64)?;
    Ok(Step::Piece(Content::HashEntries { index, valid, n_invalid }))
}
