//! Files of guest-physical memory, written by the same scatter as images of
//! blocks.
//!
//! ```text
//! block 0   ├── region ──┤├──────── region ────────┤
//!                  │                  │                a place: bytes of a block → bytes of the file
//! file   │head│────┴─────│head│───────┴─────────────│
//! ```
//!
//! A format is a [`Plan`]: what stands where, and where the memory goes
//! between. Memory that is zero, or that no region has, stays a hole.

use std::ops::Range;
use std::path::Path;

use crate::block_files::BlockFiles;
use crate::error::Result;
use crate::extract::{ImageSink, image_len, scatter};
use crate::input::Input;
use crate::physical::Layout;
use crate::progress::Progress;
use crate::ram::Ram;
use crate::units::{BlockId, BlockOffset, StreamOffset, index};

/// What a file of guest-physical memory is made of.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// Bytes that are not memory, and where they stand in the file.
    heads: Vec<(u64, Vec<u8>)>,
    /// Where in the file each region of the layout begins, in its order.
    regions: Vec<u64>,
    len: u64,
}

impl Plan {
    /// Bytes of the file, holes included.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Bytes of it that are not memory.
    pub fn heads_len(&self) -> u64 {
        self.heads.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Where in the file each region of the layout begins, in its order.
    pub fn region_offsets(&self) -> &[u64] {
        &self.regions
    }

    /// A file of which the first `len` bytes are not memory.
    pub(super) fn starting_at(len: u64) -> Self {
        Self { len, ..Self::default() }
    }

    /// Adds bytes that are not memory.
    pub(super) fn put_head(&mut self, at: u64, bytes: Vec<u8>) {
        self.heads.push((at, bytes));
    }

    /// Adds bytes behind all that there is.
    pub(super) fn push_head(&mut self, bytes: Vec<u8>) {
        let at = self.len;
        self.len = self.len.saturating_add(bytes.len() as u64);
        self.heads.push((at, bytes));
    }

    /// Adds a region of `len` bytes behind all that there is, `phase` bytes behind
    /// a multiple of `align`.
    pub(super) fn push_region(&mut self, len: u64, align: u64, phase: u64) {
        let least = self.len.saturating_sub(phase);
        let multiple = least.checked_next_multiple_of(align.max(1)).unwrap_or(u64::MAX);
        let at = multiple.saturating_add(phase);
        self.regions.push(at);
        self.len = at.saturating_add(len);
    }

    /// Adds a region of `len` bytes at `at`, which is behind all that there is.
    pub(super) fn put_region(&mut self, at: u64, len: u64) {
        self.regions.push(at);
        self.len = self.len.max(at.saturating_add(len));
    }
}

/// The bytes that [`write()`] counts for `layout`.
pub fn progress_len(ram: &Ram<'_>, layout: &Layout) -> u64 {
    image_len(ram, &blocks(layout))
}

/// Writes the file that `plan` is of, new, at `path`. With the stream's own
/// file as `input`, blocks of mapped-ram are shared where the file system can.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) if the file exists, or cannot be
/// made or written; others for pages that cannot be decoded.
pub fn write(
    ram: &Ram<'_>,
    layout: &Layout,
    plan: &Plan,
    path: &Path,
    input: Option<&Input>,
    progress: &Progress,
) -> Result<()> {
    let files = BlockFiles::create_one(path, plan.len)?;
    let files = match input {
        Some(input) => files.sharing(input)?,
        None => files,
    };
    scatter_file(ram, layout, plan, &files, progress)
}

/// Hands the file that `plan` is of to `sink`, as the image of one block.
/// `progress` counts up to [`progress_len`].
///
/// # Errors
/// The first one of the sink; others for pages that cannot be decoded.
pub fn scatter_file(
    ram: &Ram<'_>,
    layout: &Layout,
    plan: &Plan,
    sink: &impl ImageSink,
    progress: &Progress,
) -> Result<()> {
    plan.heads.iter().try_for_each(|(at, bytes)| sink.write(FILE, BlockOffset(*at), bytes))?;
    let placed = Placed { file: sink, places: places(layout, plan) };
    scatter(ram, &blocks(layout), &placed, progress)
}

/// The blocks that have a place, once each.
fn blocks(layout: &Layout) -> Vec<BlockId> {
    let mut blocks: Vec<BlockId> = layout.regions().iter().map(|region| region.block).collect();
    blocks.sort_unstable_by_key(|block| block.0);
    blocks.dedup();
    blocks
}

/// Bytes of a block, and where in the file they go.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    block: Range<u64>,
    file: u64,
}

/// The places of each block.
fn places(layout: &Layout, plan: &Plan) -> Vec<Vec<Place>> {
    let count = blocks(layout).last().map_or(0, |block| block.0 + 1);
    let mut places = vec![Vec::new(); count];
    for (region, file) in layout.regions().iter().zip(&plan.regions) {
        if let Some(places) = places.get_mut(region.block.0) {
            let end = region.offset.0.saturating_add(region.bytes());
            places.push(Place { block: region.offset.0..end, file: *file });
        }
    }
    places
}

/// A sink of one file, in which blocks are in pieces.
struct Placed<'s, S> {
    file: &'s S,
    places: Vec<Vec<Place>>,
}

/// The one file, as sinks know it.
const FILE: BlockId = BlockId(0);

impl<S> Placed<'_, S> {
    /// The parts of a range that have a place: which bytes of the range, and
    /// where in the file.
    fn parts(
        &self,
        block: BlockId,
        offset: BlockOffset,
        len: u64,
    ) -> impl Iterator<Item = (Range<u64>, u64)> {
        let end = offset.0.saturating_add(len);
        // All of them are looked at: a block can be at two addresses.
        let places = self.places.get(block.0).map(Vec::as_slice).unwrap_or_default();
        places.iter().filter_map(move |place| {
            let start = place.block.start.max(offset.0);
            let end = place.block.end.min(end);
            let part = (start < end).then(|| start - offset.0..end - offset.0)?;
            Some((part, place.file.saturating_add(start - place.block.start)))
        })
    }
}

impl<S: ImageSink> ImageSink for Placed<'_, S> {
    fn piece_len(&self) -> u64 {
        self.file.piece_len()
    }

    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()> {
        for (part, at) in self.parts(block, offset, data.len() as u64) {
            let part = index(part.start).zip(index(part.end)).and_then(|(start, end)| data.get(start..end));
            self.file.write(FILE, BlockOffset(at), part.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Only what goes to one place as a whole.
    fn share(&self, block: BlockId, offset: BlockOffset, place: StreamOffset, len: u64) -> Result<bool> {
        let mut parts = self.parts(block, offset, len);
        match (parts.next(), parts.next()) {
            (Some((part, at)), None) if part == (0..len) => {
                self.file.share(FILE, BlockOffset(at), place, len)
            }
            _ => Ok(false),
        }
    }

    fn claim(&self, block: BlockId, offset: BlockOffset, len: u64) -> Result<()> {
        for (part, at) in self.parts(block, offset, len) {
            self.file.claim(FILE, BlockOffset(at), part.end - part.start)?;
        }
        Ok(())
    }
}
