//! Where in the file a VM state is.
//!
//! ```text
//! L2 entry, bit 62 clear   bit 0: zeros; bits 9–55: the cluster, 0 for none; bit 63: ignored
//!   with subclusters       bit 0 must be clear; 64 more bits: of each of 32 subclusters,
//!                          first whether it is in the cluster, then whether it is zeros
//! L2 entry, bit 62 set     compressed: where it is, by bytes, in the bits below x = 70 − cluster_bits;
//!                          from x to 61 how many sectors of 512 bytes it goes on into
//! ```
//!
//! Unallocated clusters are zeros: the VM state is behind the end of any
//! backing file. QEMU's savevm never writes compressed ones.

use super::vm_state::{VmState, overlaps};
use super::{DAMAGED, Layout, ReadAt};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{StreamOffset, index};
use crate::wrapper::failure;

/// QEMU's `L2E_OFFSET_MASK`.
const L2E_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// QEMU's `L2E_STD_RESERVED_MASK`.
const L2E_STD_RESERVED_MASK: u64 = 0x3f00_0000_0000_01fe;
/// QEMU's `QCOW_OFLAG_COMPRESSED`.
const QCOW_OFLAG_COMPRESSED: u64 = 1 << 62;
/// QEMU's `QCOW_OFLAG_ZERO`.
const QCOW_OFLAG_ZERO: u64 = 1;
/// QEMU's `QCOW2_COMPRESSED_SECTOR_SIZE`.
const SECTOR_LEN: u64 = 512;

/// Bytes of a VM state that are in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where they begin in the VM state.
    pub at: u64,
    /// How many they are, more than 0.
    pub len: u64,
    /// Where they are in the file.
    pub source: RunSource,
}

/// Where the bytes of a [`Run`] are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunSource {
    /// Nowhere: they are zeros.
    Zeros,
    /// In the file, as they are, from this offset on.
    File(u64),
    /// In the file, compressed: one cluster, or the part of it that is wanted.
    Compressed {
        /// Where the compressed bytes begin.
        offset: u64,
        /// How many they are, rounded up to a sector.
        len: u64,
    },
}

impl Run {
    /// Where in the file the bytes are, if they are there as they are.
    pub fn host(&self) -> Option<u64> {
        match self.source {
            RunSource::File(offset) => Some(offset),
            RunSource::Zeros | RunSource::Compressed { .. } => None,
        }
    }

    /// This run and the next as one, if they are one.
    fn join(self, next: Self) -> Option<Self> {
        let is_one = match (self.source, next.source) {
            (RunSource::Zeros, RunSource::Zeros) => true,
            (RunSource::File(here), RunSource::File(there)) => here.checked_add(self.len) == Some(there),
            _ => false,
        };
        is_one.then_some(Self { len: self.len + next.len, ..self })
    }
}

/// An L2 entry and its bitmap, 0 without subclusters.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    word: u64,
    bitmap: u64,
}

impl Entry {
    /// Entry number `number` of a table; one beyond it is unallocated.
    pub(super) fn read(table: &[u8], layout: Layout, number: u64) -> Self {
        let at = index(number * layout.entry_len()).unwrap_or(usize::MAX);
        let word =
            |at| table.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_be_bytes(*word));
        let bitmap = if layout.has_subclusters { word(at.saturating_add(8)) } else { 0 };
        Self { word: word(at), bitmap }
    }

    /// Whether it says nothing: bit 63 alone says nothing.
    pub(super) fn is_unallocated(self) -> bool {
        self.word & !(1 << 63) == 0 && self.bitmap == 0
    }

    /// Whether it has meaningless bits.
    fn is_malformed(self, layout: Layout) -> bool {
        if self.word & QCOW_OFLAG_COMPRESSED != 0 {
            return self.bitmap != 0;
        }
        let (present, zeros) = (self.bitmap & 0xffff_ffff, self.bitmap >> 32);
        self.word & L2E_STD_RESERVED_MASK != 0
            || (layout.has_subclusters && self.word & QCOW_OFLAG_ZERO != 0)
            || present & zeros != 0
            || (present != 0 && self.word & L2E_OFFSET_MASK == 0)
    }

    /// Where subcluster `number` is, the entry being well-formed. Without
    /// subclusters, the whole cluster is number 0.
    fn source(self, layout: Layout, number: u64) -> RunSource {
        let cluster = self.word & L2E_OFFSET_MASK;
        if self.word & QCOW_OFLAG_COMPRESSED != 0 {
            return self.compressed(layout);
        }
        let is_present = if layout.has_subclusters {
            self.bitmap >> number & 1 != 0
        } else {
            cluster != 0 && self.word & QCOW_OFLAG_ZERO == 0
        };
        // At most 2⁵⁶ and a cluster.
        if is_present { RunSource::File(cluster + number * layout.piece_len()) } else { RunSource::Zeros }
    }

    fn compressed(self, layout: Layout) -> RunSource {
        let split = 70 - layout.cluster_bits;
        let descriptor = self.word & (QCOW_OFLAG_COMPRESSED - 1);
        let offset = descriptor & ((1 << split) - 1);
        let sectors = (descriptor >> split) + 1;
        RunSource::Compressed { offset, len: sectors * SECTOR_LEN - offset % SECTOR_LEN }
    }
}

impl Layout {
    /// Bytes that have one place: a subcluster or, without them, a cluster.
    fn piece_len(self) -> u64 {
        self.cluster_len() / self.pieces()
    }

    /// How many of them a cluster has.
    fn pieces(self) -> u64 {
        if self.has_subclusters { 32 } else { 1 }
    }
}

/// The runs of a VM state, in order. Ends after an error.
///
/// [`Iterator`] over `Result<Run>`: [`ErrorKind::Wrapper`] for entries that
/// cannot be, [`ErrorKind::Truncated`] for clusters behind the file's end,
/// and what reading the file fails with.
#[derive(Debug)]
pub struct Runs<'a, F> {
    state: &'a VmState<F>,
    /// Where in the VM state the next piece begins.
    at: u64,
    /// The L2 table that maps it.
    table: Vec<u8>,
    /// Which one that is.
    table_number: Option<u64>,
    /// Bytes of clusters so far: no more than the file has.
    mapped: u64,
    /// A run that the next piece may yet be part of.
    pending: Option<Run>,
    /// Why there is nothing behind that.
    failure: Option<Error>,
    is_over: bool,
}

impl<'a, F: ReadAt> Runs<'a, F> {
    pub(super) fn new(state: &'a VmState<F>) -> Self {
        Self {
            state,
            at: 0,
            table: Vec::new(),
            table_number: None,
            mapped: 0,
            pending: None,
            failure: None,
            is_over: false,
        }
    }

    /// The next run, whole.
    fn run(&mut self) -> Result<Option<Run>> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        while self.at < self.state.len() {
            let piece = match self.piece() {
                Ok(piece) => piece,
                // What stands before it is to be had.
                Err(error) => match self.pending.take() {
                    Some(pending) => {
                        self.failure = Some(error);
                        return Ok(Some(pending));
                    }
                    None => return Err(error),
                },
            };
            let len = piece.len.min(self.state.len() - self.at);
            self.at += len;
            let piece = Run { len, ..piece };
            match self.pending.replace(piece) {
                None => {}
                Some(pending) => match pending.join(piece) {
                    Some(joined) => self.pending = Some(joined),
                    None => return Ok(Some(pending)),
                },
            }
        }
        Ok(self.pending.take())
    }

    /// What is at `self.at`: zeros for a whole L1 entry, or a (sub)cluster.
    fn piece(&mut self) -> Result<Run> {
        let layout = self.state.layout;
        let at = self.at;
        let (number, inside) = (at / layout.l1_span(), at % layout.l1_span());
        let table_at =
            index(number).and_then(|number| self.state.l2_tables.get(number)).copied().unwrap_or(0);
        if table_at == 0 {
            return Ok(Run { at, len: layout.l1_span() - inside, source: RunSource::Zeros });
        }
        if self.table_number != Some(number) {
            self.table = self.state.l2_table(table_at)?;
            self.table_number = Some(number);
        }
        let cluster = inside / layout.cluster_len();
        let entry = Entry::read(&self.table, layout, cluster);
        let entry_at = table_at + cluster * layout.entry_len();
        let in_cluster = inside % layout.cluster_len();
        if in_cluster == 0 {
            self.check(entry, entry_at)?;
        }
        let source = entry.source(layout, in_cluster / layout.piece_len());
        let in_piece = in_cluster % layout.piece_len();
        let len = layout.piece_len() - in_piece;
        let run = match source {
            RunSource::Zeros => Run { at, len, source },
            RunSource::File(offset) => Run { at, len, source: RunSource::File(offset + in_piece) },
            RunSource::Compressed { .. } => Run { at, len: layout.cluster_len(), source },
        };
        self.clip(run)
    }

    /// Checks the entry at `at`, once for each cluster.
    fn check(&mut self, entry: Entry, at: u64) -> Result<()> {
        let (state, layout) = (self.state, self.state.layout);
        let word = entry.word;
        let bad = |met: String, expected| Err(failure(at, "L2 entry", met, expected, DAMAGED));
        if entry.is_malformed(layout) {
            return bad(
                format!("{word:#018x} {:#018x}", entry.bitmap),
                "no reserved bit, and no contradiction",
            );
        }
        if let RunSource::Compressed { offset, .. } = entry.source(layout, 0) {
            let is_inside = offset >= layout.cluster_len() && offset < state.file.len();
            return if is_inside {
                Ok(())
            } else {
                bad(format!("{word:#018x}"), "compressed bytes inside the file")
            };
        }
        let cluster = word & L2E_OFFSET_MASK;
        if !cluster.is_multiple_of(layout.cluster_len()) {
            return bad(format!("{word:#018x}"), "a cluster's start");
        }
        let is_table = state.sorted_tables.binary_search(&cluster).is_ok();
        if cluster != 0 && (is_table || overlaps(&state.reserved, cluster, layout)) {
            return bad(format!("{word:#018x}, which is in a table"), "a cluster of its own");
        }
        if cluster != 0 {
            self.mapped += layout.cluster_len();
        }
        if self.mapped > state.file.len().next_multiple_of(layout.cluster_len()) {
            return bad(
                format!("{:#x} bytes of clusters up to here", self.mapped),
                "no more than the file has",
            );
        }
        Ok(())
    }

    /// Cuts a run at the file's end. Behind it a cluster that was not
    /// written to its end is zeros; a byte that QEMU says it wrote is missing.
    fn clip(&self, run: Run) -> Result<Run> {
        let RunSource::File(offset) = run.source else { return Ok(run) };
        let available = self.state.file.len().saturating_sub(offset);
        if available >= run.len {
            return Ok(run);
        }
        let needed = run.len.min(self.state.vm_state_size().saturating_sub(run.at));
        let is_last = offset < self.state.file.len() + self.state.layout.cluster_len();
        if available < needed || !is_last {
            let kind = ErrorKind::Truncated { needed: run.len, available };
            return Err(Error::at(StreamOffset(offset), kind)
                .inside(format!("cluster for {:#x} of the VM state", run.at)));
        }
        Ok(match available {
            0 => Run { source: RunSource::Zeros, ..run },
            len => Run { len, ..run },
        })
    }
}

impl<F: ReadAt> Iterator for Runs<'_, F> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let run = self.run().transpose();
        self.is_over = !matches!(run, Some(Ok(_)));
        run
    }
}
