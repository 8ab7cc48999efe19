//! The table of snapshots.
//!
//! ```text
//!  0  be64 l1_table_offset  be32 l1_size              entries
//! 12  be16 id length  be16 name length
//! 16  be32 date_sec  be32 date_nsec  be64 vm_clock_nsec
//! 32  be32 vm_state_size                              superseded by the one below
//! 36  be32 extra_data_size
//! 40  be64 vm_state_size  be64 disk_size  be64 icount, as far as that reaches
//!     id, name, zeros up to a multiple of 8
//! ```

use std::fmt;
use std::ops::Range;

use super::{DAMAGED, Header, ReadAt, read};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::idstr::Idstr;
use crate::units::StreamOffset;
use crate::wrapper::failure;

/// QEMU's `QCOW_MAX_SNAPSHOTS`.
const QCOW_MAX_SNAPSHOTS: u32 = 65_536;
/// QEMU's `QCOW_MAX_SNAPSHOTS_SIZE`: bytes of the table.
const QCOW_MAX_SNAPSHOTS_SIZE: u64 = 1024 * QCOW_MAX_SNAPSHOTS as u64;
/// QEMU's `QCOW_MAX_SNAPSHOT_EXTRA_DATA`: bytes of an entry's extra data.
const QCOW_MAX_SNAPSHOT_EXTRA_DATA: u32 = 1024;
/// Bytes of an entry before its extra data.
const ENTRY_LEN: u64 = 40;

/// An internal snapshot, as the image's table lists it.
///
/// [`Display`](fmt::Display) gives name and id, escaped: `"first" (1)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The id: a number, as text, by QEMU.
    pub id: Idstr,
    /// The name: `savevm`'s tag.
    pub name: Idstr,
    /// When it was taken: seconds since 1970.
    pub date_sec: u32,
    /// The nanoseconds of that.
    pub date_nsec: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of VM state that QEMU wrote; 0: none, a snapshot of the disk
    /// alone. With mapped-ram (QEMU 10.2 and newer) fewer than it spans.
    pub vm_state_size: u64,
    /// The length of the virtual disk then.
    pub disk_size: u64,
    /// The count of instructions, with `-icount`. Since QEMU 5.2.
    pub icount: Option<u64>,
    pub(super) l1_table_offset: u64,
    pub(super) l1_size: u32,
    /// Where the entry is.
    pub(super) offset: u64,
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({})", shown(&self.name), shown(&self.id))
    }
}

/// A name as messages have it: QEMU's have 255 bytes at most, a table's can have
/// 65535.
fn shown(name: &Idstr) -> String {
    const SHOWN: usize = 255;
    match name.as_bytes().split_at_checked(SHOWN) {
        Some((head, [_, ..])) => format!("{}…", Idstr::from(head)),
        _ => name.to_string(),
    }
}

/// Reads all snapshots, and says where the table is.
pub(super) fn read_table(file: &impl ReadAt, header: &Header) -> Result<(Vec<Snapshot>, Range<u64>)> {
    let start = header.snapshots_offset;
    if header.nb_snapshots == 0 {
        return Ok((Vec::new(), 0..0));
    }
    if header.nb_snapshots > QCOW_MAX_SNAPSHOTS {
        let (met, bound) = (header.nb_snapshots.into(), QCOW_MAX_SNAPSHOTS.into());
        return Err(Error::at(
            StreamOffset(60),
            ErrorKind::Limit { what: "qcow2 header, nb_snapshots", met, bound },
        ));
    }
    if start == 0 || start & ((1 << header.cluster_bits) - 1) != 0 {
        let expected = "the start of a cluster, not the first";
        return Err(failure(64, "qcow2 header, snapshots_offset", format!("{start:#x}"), expected, DAMAGED));
    }
    let mut at = start;
    let mut snapshots = Vec::new();
    for _ in 0..header.nb_snapshots {
        let (snapshot, end) = read_entry(file, header, at).map_err(|error| {
            error.inside(format!("qcow2 snapshot {} of {}", snapshots.len() + 1, header.nb_snapshots))
        })?;
        snapshots.push(snapshot);
        at = end;
        if at - start > QCOW_MAX_SNAPSHOTS_SIZE {
            let kind = ErrorKind::Limit {
                what: "qcow2 snapshot table, bytes",
                met: at - start,
                bound: QCOW_MAX_SNAPSHOTS_SIZE,
            };
            return Err(Error::at(StreamOffset(start), kind));
        }
    }
    Ok((snapshots, start..at))
}

/// Reads the entry at `at`; says where it ends.
fn read_entry(file: &impl ReadAt, header: &Header, at: u64) -> Result<(Snapshot, u64)> {
    let fixed = read(file, at, ENTRY_LEN, "fixed fields")?;
    let cursor = &mut Cursor::new(&fixed, StreamOffset(at));
    let (l1_table_offset, l1_size) = (cursor.be64()?, cursor.be32()?);
    let (id_len, name_len) = (cursor.be16()?, cursor.be16()?);
    let (date_sec, date_nsec, vm_clock_nsec) = (cursor.be32()?, cursor.be32()?, cursor.be64()?);
    let (short_size, extra_len) = (cursor.be32()?, cursor.be32()?);
    if extra_len > QCOW_MAX_SNAPSHOT_EXTRA_DATA {
        let (met, bound) = (extra_len.into(), QCOW_MAX_SNAPSHOT_EXTRA_DATA.into());
        let kind = ErrorKind::Limit { what: "extra data, bytes", met, bound };
        return Err(Error::at(StreamOffset(at + 36), kind));
    }

    let (id_len, name_len, extra_len) = (u64::from(id_len), u64::from(name_len), u64::from(extra_len));
    let rest = read(file, at + ENTRY_LEN, extra_len + id_len + name_len, "id and name")?;
    let rest = &mut Cursor::new(&rest, StreamOffset(at + ENTRY_LEN));
    let extra = &mut Cursor::new(rest.bytes(extra_len)?, StreamOffset(at + ENTRY_LEN));
    let mut next = || extra.be64().ok();
    let (long_size, disk_size, icount) = (next(), next(), next());
    let snapshot = Snapshot {
        id: rest.bytes(id_len)?.into(),
        name: rest.bytes(name_len)?.into(),
        date_sec,
        date_nsec,
        vm_clock_nsec,
        vm_state_size: long_size.unwrap_or(short_size.into()),
        // Version 2 images of old: the disk has not been resized since, as
        // that was refused while there were snapshots.
        disk_size: disk_size.unwrap_or(header.size),
        icount: icount.filter(|icount| *icount != u64::MAX),
        l1_table_offset,
        l1_size,
        offset: at,
    };
    Ok((snapshot, (rest.offset().0).next_multiple_of(8)))
}
