//! `<path>/vfio`: a device of the host's that the guest has.
//!
//! ```text
//! be64 DEV_SETUP_STATE                                  START
//! be64 DEV_DATA_STATE   be64 size   size bytes          PART, END
//! be64 DEV_INIT_DATA_SENT                               ends a PART
//! be64 DEV_CONFIG_LOAD_READY                            ends a body, since 10.2
//! be64 END_OF_STATE                                     ends any body
//! ```
//!
//! The device's bytes are its driver's own. Its FULL section, which follows
//! its END, holds the configuration with no length in front of it: the stream's
//! description and the footer tell where that ends.
//!
//! Source followed: QEMU `hw/vfio/migration.c` (`vfio_save_setup`,
//! `vfio_save_iterate`, `vfio_load_state`).

use crate::body::{Content, Step, never_written, unknown_flags};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::SectionType;

pub(super) const VERSION: u32 = 1;

const VFIO_MIG_FLAG_END_OF_STATE: u64 = 0xffff_ffff_ef10_0001;
const VFIO_MIG_FLAG_DEV_SETUP_STATE: u64 = 0xffff_ffff_ef10_0003;
const VFIO_MIG_FLAG_DEV_DATA_STATE: u64 = 0xffff_ffff_ef10_0004;
/// Since QEMU 8.1.
const VFIO_MIG_FLAG_DEV_INIT_DATA_SENT: u64 = 0xffff_ffff_ef10_0005;
/// Since QEMU 10.2.
const VFIO_MIG_FLAG_DEV_CONFIG_LOAD_READY: u64 = 0xffff_ffff_ef10_0006;

pub(super) fn step<'a>(kind: SectionType, cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    let at = cursor.offset();
    if kind == SectionType::Full {
        return Err(never_written(at, kind));
    }
    let bare = |tag| Content::Vfio { tag, data: None };
    Ok(match cursor.be64()? {
        VFIO_MIG_FLAG_END_OF_STATE => Step::End,
        VFIO_MIG_FLAG_DEV_SETUP_STATE => Step::Piece(bare("DEV_SETUP_STATE")),
        VFIO_MIG_FLAG_DEV_DATA_STATE => {
            let size = cursor.be64()?;
            let data = Some(cursor.bytes(size)?);
            Step::Piece(Content::Vfio { tag: "DEV_DATA_STATE", data })
        }
        VFIO_MIG_FLAG_DEV_INIT_DATA_SENT => Step::Last(bare("DEV_INIT_DATA_SENT")),
        VFIO_MIG_FLAG_DEV_CONFIG_LOAD_READY => Step::Last(bare("DEV_CONFIG_LOAD_READY")),
        met => {
            let expected = "DEV_SETUP_STATE, DEV_DATA_STATE, DEV_INIT_DATA_SENT or END_OF_STATE";
            return Err(unknown_flags(at, "tag of vfio", met, expected));
        }
    })
}
