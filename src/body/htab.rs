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

use crate::body::unknown_flags;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::SectionType;

pub(super) const VERSION: u32 = 1;

const NO_HPT: u32 = u32::MAX;
const HASH_PTE_SIZE_64: u64 = 16;

pub(super) fn read_body(kind: SectionType, cursor: &mut Cursor<'_>) -> Result<()> {
    let at = cursor.offset();
    let head = cursor.be32()?;
    if kind == SectionType::Start || head == NO_HPT {
        return Ok(());
    }
    if head != 0 {
        return Err(unknown_flags(at, "begin of a hash page table's part", head.into(), "0 or 0xffffffff"));
    }
    loop {
        let index = cursor.be32()?;
        let n_valid = cursor.be16()?;
        let n_invalid = cursor.be16()?;
        if (index, n_valid, n_invalid) == (0, 0, 0) {
            return Ok(());
        }
        cursor.bytes(u64::from(n_valid) * HASH_PTE_SIZE_64)?;
    }
}
