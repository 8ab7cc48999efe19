//! The VM state of a snapshot: from its L1 table to its end.
//!
//! ```text
//! L1 entry   bits 9–55: where its L2 table is; 0: none
//! L2 table   one cluster, of entries of 8 bytes, or of 16 with a bitmap of subclusters
//! ```
//!
//! An L1 entry stands for as many bytes as its L2 table maps. The VM state
//! begins with the first that is wholly behind the disk. L2 tables and
//! clusters are shared by snapshots, but not within one: a table met twice is
//! an error, and so are more clusters than the file has, or one that is in a
//! table. So a walk reads no more than the file's length, whatever it says.

use std::ops::Range;

use super::runs::{Entry, Runs};
use super::{DAMAGED, Layout, Qcow2, ReadAt, Reader, Snapshot, read};
use crate::error::{Error, ErrorKind, Result};
use crate::units::StreamOffset;
use crate::wrapper::failure;

/// QEMU's `QCOW_MAX_L1_SIZE`: bytes of an L1 table.
const QCOW_MAX_L1_SIZE: u64 = 32 << 20;
/// QEMU's `L1E_OFFSET_MASK`.
const L1E_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// QEMU's `L1E_RESERVED_MASK`.
const L1E_RESERVED_MASK: u64 = 0x7f00_0000_0000_01ff;

/// The VM state of a snapshot: the stream, as QEMU wrote it.
#[derive(Debug)]
pub struct VmState<F> {
    pub(super) file: F,
    pub(super) layout: Layout,
    /// Where the L2 tables are, 0 for none; each inside the file, none twice.
    pub(super) l2_tables: Vec<u64>,
    /// The same, sorted, without the 0.
    pub(super) sorted_tables: Vec<u64>,
    /// Where the L1 table and the table of snapshots are.
    pub(super) reserved: [Range<u64>; 2],
    vm_state_size: u64,
    len: u64,
}

impl<'a, F: ReadAt> VmState<&'a F> {
    pub(super) fn open(image: &'a Qcow2<F>, snapshot: &Snapshot) -> Result<Self> {
        let (layout, vm_state_size) = (image.layout, snapshot.vm_state_size);
        if vm_state_size == 0 {
            let hint = "the state is in another disk of the guest, or was not saved";
            let met = "a snapshot of the disk alone";
            return Err(failure(snapshot.offset + 32, "vm_state_size", met, "a VM state", hint));
        }
        let l1_end = snapshot.l1_table_offset.saturating_add(u64::from(snapshot.l1_size) * 8);
        let reserved = [snapshot.l1_table_offset..l1_end, image.snapshot_table.clone()];
        let l2_tables = read_l1(&image.file, layout, snapshot, &reserved)?;
        let span = layout.l1_span();
        // At most 2⁶¹: 2²² entries of 2³⁹ bytes.
        let mapped = l2_tables.len() as u64 * span;
        if vm_state_size > mapped {
            let expected = format!("at most {mapped:#x}, which the L1 table maps");
            return Err(failure(
                snapshot.offset + 40,
                "vm_state_size",
                format!("{vm_state_size:#x}"),
                expected,
                DAMAGED,
            ));
        }
        let sorted_tables = sorted(&l2_tables, snapshot)?;
        let mut state =
            Self { file: &image.file, layout, l2_tables, sorted_tables, reserved, vm_state_size, len: 0 };
        state.len = vm_state_size.max(state.allocated_end()?);
        Ok(state)
    }
}

impl<F: ReadAt> VmState<F> {
    /// Bytes up to the end of the last cluster, or to
    /// [`vm_state_size`](Self::vm_state_size) if that is more.
    ///
    /// Behind an ordinary stream there are zeros, or what an interrupted
    /// `savevm` left, up to here. A mapped-ram one needs them all.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The bytes that QEMU says it wrote.
    pub fn vm_state_size(&self) -> u64 {
        self.vm_state_size
    }

    /// Where in the file the bytes are, in order, from 0 to
    /// [`len`](Self::len) without a gap.
    pub fn runs(&self) -> Runs<'_, F> {
        Runs::new(self)
    }

    /// The bytes, in order.
    pub fn reader(&self) -> Reader<'_, F> {
        Reader::new(self)
    }

    /// The L2 table at `at`.
    pub(super) fn l2_table(&self, at: u64) -> Result<Vec<u8>> {
        read(&self.file, at, self.layout.cluster_len(), "L2 table")
    }

    /// Where the last cluster that is not unallocated ends.
    fn allocated_end(&self) -> Result<u64> {
        let entry_len = self.layout.entry_len();
        for (table, at) in self.l2_tables.iter().enumerate().rev() {
            if *at == 0 {
                continue;
            }
            let bytes = self.l2_table(*at)?;
            let count = bytes.len() as u64 / entry_len;
            let last =
                (0..count).rev().find(|entry| !Entry::read(&bytes, self.layout, *entry).is_unallocated());
            if let Some(last) = last {
                return Ok(table as u64 * self.layout.l1_span() + (last + 1) * self.layout.cluster_len());
            }
        }
        Ok(0)
    }
}

/// Reads the L1 entries that map the VM state.
fn read_l1(
    file: &impl ReadAt,
    layout: Layout,
    snapshot: &Snapshot,
    reserved: &[Range<u64>],
) -> Result<Vec<u64>> {
    let Snapshot { l1_table_offset, l1_size, .. } = *snapshot;
    if u64::from(l1_size) * 8 > QCOW_MAX_L1_SIZE {
        let (met, bound) = (l1_size.into(), QCOW_MAX_L1_SIZE / 8);
        let kind = ErrorKind::Limit { what: "L1 table, entries", met, bound };
        return Err(Error::at(StreamOffset(snapshot.offset + 8), kind));
    }
    if l1_table_offset == 0 || !l1_table_offset.is_multiple_of(layout.cluster_len()) {
        let expected = "the start of a cluster, not the first";
        return Err(failure(
            snapshot.offset,
            "L1 table, offset",
            format!("{l1_table_offset:#x}"),
            expected,
            DAMAGED,
        ));
    }
    let first = snapshot.disk_size.div_ceil(layout.l1_span());
    let Some(count) = u64::from(l1_size).checked_sub(first).filter(|count| *count > 0) else {
        let expected = format!("more than the {first} that map the disk");
        return Err(failure(
            snapshot.offset + 8,
            "L1 table, entries",
            l1_size.to_string(),
            expected,
            DAMAGED,
        ));
    };
    let start = l1_table_offset.saturating_add(first * 8);
    let bytes = read(file, start, count * 8, "L1 table")?;
    let entries = bytes.as_chunks::<8>().0.iter().zip((start..).step_by(8));
    entries
        .map(|(entry, at)| {
            let table = check_l1(file, layout, u64::from_be_bytes(*entry), at)?;
            if table != 0 && overlaps(reserved, table, layout) {
                let met = format!("an L2 table at {table:#x}");
                return Err(failure(at, "L1 entry", met, "one that is no part of another table", DAMAGED));
            }
            Ok(table)
        })
        .collect()
}

/// Where the L2 table of an L1 entry is, which is itself at `at`.
fn check_l1(file: &impl ReadAt, layout: Layout, entry: u64, at: u64) -> Result<u64> {
    let table = entry & L1E_OFFSET_MASK;
    let bad = |expected| Err(failure(at, "L1 entry", format!("{entry:#018x}"), expected, DAMAGED));
    if entry & L1E_RESERVED_MASK != 0 {
        bad("no bit but 9 to 55 and 63")
    } else if !table.is_multiple_of(layout.cluster_len()) {
        bad("an L2 table at the start of a cluster")
    } else if table != 0 && file.len().checked_sub(table).is_none_or(|left| left < layout.cluster_len()) {
        bad("an L2 table inside the file")
    } else {
        Ok(table)
    }
}

/// Whether a cluster at `at` has bytes of these tables.
pub(super) fn overlaps(tables: &[Range<u64>], at: u64, layout: Layout) -> bool {
    let end = at.saturating_add(layout.cluster_len());
    tables.iter().any(|table| table.start < end && at < table.end)
}

/// The tables in order of place; none may be there twice.
fn sorted(tables: &[u64], snapshot: &Snapshot) -> Result<Vec<u64>> {
    let mut sorted: Vec<_> = tables.iter().copied().filter(|table| *table != 0).collect();
    sorted.sort_unstable();
    match sorted.iter().zip(sorted.iter().skip(1)).find(|(a, b)| a == b) {
        None => Ok(sorted),
        Some((table, _)) => {
            let met = format!("the L2 table at {table:#x} twice");
            let at = snapshot.l1_table_offset;
            Err(failure(at, "L1 table", met, "each L2 table once", DAMAGED))
        }
    }
}
