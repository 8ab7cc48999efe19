//! `pbs-state`: the dirty bitmaps of a Proxmox backup.
//!
//! ```text
//! START   be64 size   size bytes
//! ```
//!
//! Written by the QEMU of Proxmox VE alone, and there is no other section of
//! it. What the bytes mean only its backup library knows.
//!
//! Source followed: the patch "PBS: add dirty-bitmap migration" of Proxmox VE
//! (`migration/pbs-state.c`).

use crate::body::{Content, Step, never_written};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::SectionType;

pub(super) const VERSION: u32 = 1;

pub(super) fn step<'a>(kind: SectionType, cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    if kind != SectionType::Start {
        return Err(never_written(cursor.offset(), kind));
    }
    let size = cursor.be64()?;
    Ok(Step::Last(Content::Opaque(cursor.bytes(size)?)))
}
