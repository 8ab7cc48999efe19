//! Writing RAM images: pages go from the map to where they belong, in
//! parallel, each once.
//!
//! The unit of work is a *window*: 2 MiB of one block's image. A worker takes
//! the next window, gathers its pages from all over the stream into a buffer
//! without their record headers, and hands the buffer on in pieces: as few as
//! the holes allow, and as long as the sink likes them. No two workers write
//! the same bytes, so nothing is locked; the index knows each page's last
//! record, so nothing is written twice; and what holds only zeros is never
//! written, so it stays a hole.
//!
//! Windows are taken in ascending order, which keeps the reads and writes of
//! all workers close together.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::bytes::is_zero;
use crate::error::Result;
use crate::progress::Progress;
use crate::ram::filled::filled_parts;
use crate::ram::page::{PageReader, gone_by};
use crate::ram::{PageRun, PageSource, Ram, RunContent, Stretch};
use crate::units::{BlockId, BlockOffset, StreamOffset, index};

/// Bytes of an image that one worker takes at a time, and the longest piece
/// that a sink is given.
pub const WINDOW_LEN: u64 = 2 << 20;

/// Bytes of a piece unless the sink wants others: what stays in a core's own
/// cache between the gathering and the kernel's copy.
pub const PIECE_LEN: u64 = 512 << 10;

/// Where pieces are in memory: at a multiple of this, if their place in the
/// image is at one. What devices and file systems ask of a write that goes
/// past the page cache.
pub const PIECE_ALIGN: usize = 4096;

/// A gap of zeros up to this many bytes between two pieces of data is written
/// along with them: one long write is cheaper than two and a hole.
pub(crate) const SMALL_GAP: u64 = 64 << 10;

/// Bytes in a row that are worth a claim: to claim 64 KiB and write them takes
/// 0.86 of what the write alone does, 32 KiB 1.10.
const CLAIM_LEN: u64 = 64 << 10;

/// Bytes in a row that are worth to be shared rather than copied: extents of
/// files are not for single pages.
const SHARED_LEN: u64 = 64 << 10;

/// Where the bytes of RAM images go.
///
/// The one interface between the scatter and any output format.
pub trait ImageSink: Sync {
    /// Takes `data`, which belongs at `offset` of the image of `block`.
    ///
    /// Called by several threads at once, never twice for the same bytes in one
    /// scatter, and never for bytes outside the block's `used_length`. What is
    /// never given is zero.
    ///
    /// # Errors
    /// Whatever keeps the data from getting where it belongs: it ends the
    /// scatter.
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()>;

    /// Copies `len` bytes of the stream, from `place` on, to `offset` of the image
    /// of `block`, if that can be done without bringing them into memory. Asked
    /// for pages that stand in a row in the stream, as mapped-ram has them.
    /// False: it was not done, and [`write`](Self::write) shall do it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn share(&self, block: BlockId, offset: BlockOffset, place: StreamOffset, len: u64) -> Result<bool> {
        let _ = (block, offset, place, len);
        Ok(false)
    }

    /// How long the pieces of the next window shall be at most, in bytes: a
    /// divisor of [`WINDOW_LEN`].
    fn piece_len(&self) -> u64 {
        PIECE_LEN
    }

    /// Hears that all of `len` bytes from `offset` on will be written, before
    /// most of them are. For sinks that can make room at once.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn claim(&self, block: BlockId, offset: BlockOffset, len: u64) -> Result<()> {
        let _ = (block, offset, len);
        Ok(())
    }
}

/// A sink of images that can be read and changed again: what a stream needs
/// that [goes by](crate::Stream::read_once).
pub trait ImageStore: ImageSink {
    /// Reads `data.len()` bytes at `offset` of the image of `block`. Zero where
    /// nothing was given yet, and behind the block's end.
    ///
    /// # Errors
    /// Whatever keeps it from that.
    fn read(&self, block: BlockId, offset: BlockOffset, data: &mut [u8]) -> Result<()>;
}

/// Hands the content of `blocks` to `sink`, on all threads of the current
/// rayon pool. `progress` counts bytes of images, up to [`image_len`].
///
/// Takes one buffer of [`WINDOW_LEN`] a thread, and 16 bytes a window that
/// holds anything.
///
/// # Errors
/// The first one of the sink.
pub fn scatter(ram: &Ram<'_>, blocks: &[BlockId], sink: &impl ImageSink, progress: &Progress) -> Result<()> {
    scatter_over(ram, blocks, sink, Fresh, progress)
}

/// Hands the pages of a stretch of a stream that goes by to `store`, those of
/// `blocks`, on all threads of the current rayon pool. What it has is newer
/// than what came before: pages that are zero now are zeroed, pages of XBZRLE
/// are made from what their image has.
///
/// # Errors
/// The first one of the store; others for pages that cannot be decoded.
pub fn scatter_stretch(stretch: &Stretch<'_, '_>, blocks: &[BlockId], store: &impl ImageStore) -> Result<()> {
    scatter_over(stretch.ram(), blocks, store, Passed { stretch, store }, &Progress::new())
}

fn scatter_over(
    ram: &Ram<'_>,
    blocks: &[BlockId],
    sink: &impl ImageSink,
    before: impl Before,
    progress: &Progress,
) -> Result<()> {
    let windows: Vec<Window> = blocks.iter().flat_map(|block| windows_of(ram, *block, before)).collect();
    let next = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let work = |_| {
        let mut gather = Gather::new(ram, sink, before);
        while !is_over.load(Ordering::Relaxed) {
            let Some(window) = windows.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            gather.window(*window).inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
            progress.add(WINDOW_LEN);
        }
        Ok(())
    };
    // Who comes too late for any window is not waited for: of a stream that goes
    // by, its decoder may have the other cores.
    let workers = rayon::current_num_threads().min(windows.len());
    (0..workers).into_par_iter().with_max_len(1).map(work).collect()
}

/// Gathers ranges of blocks in whatever order they are asked for: for formats
/// that have one of their own. Takes a buffer of [`WINDOW_LEN`].
pub(crate) struct RangeGather<'r, 'a, S>(Gather<'r, 'a, S, Fresh>);

impl<'r, 'a, S: ImageSink> RangeGather<'r, 'a, S> {
    pub(crate) fn new(ram: &'r Ram<'a>, sink: &'r S) -> Self {
        Self(Gather::new(ram, sink, Fresh))
    }

    /// Hands what `range` of `block` holds to the sink, whole pages, zeros left
    /// out. It is no longer than a window.
    pub(crate) fn range(&mut self, block: BlockId, range: Range<u64>) -> Result<()> {
        let used_length = self.0.ram.block(block).map_or(0, |block| block.used_length);
        let page_len = self.0.ram.page_size().bytes();
        let start = range.start / page_len * page_len;
        let end = range.end.checked_next_multiple_of(page_len).unwrap_or(range.end).min(used_length);
        if start < end { self.0.piece(block, start, end) } else { Ok(()) }
    }
}

/// What images hold before pages are written to them.
trait Before: Copy + Sync {
    /// Windows whose place is claimed at once, if they will be written.
    const WINDOWS_PER_CLAIM: u64;

    /// Whether a page may be other than zero.
    fn is_data(&self, block: BlockId, offset: u64) -> bool;

    /// Whether any of the pages in a range may be.
    fn has_data(&self, block: BlockId, range: Range<u64>) -> bool;

    /// Reads a page.
    fn read(&self, block: BlockId, offset: u64, page: &mut [u8]) -> Result<()>;
}

/// Images that hold nothing yet.
#[derive(Clone, Copy)]
struct Fresh;

impl Before for Fresh {
    const WINDOWS_PER_CLAIM: u64 = 16;

    fn is_data(&self, _: BlockId, _: u64) -> bool {
        false
    }

    fn has_data(&self, _: BlockId, _: Range<u64>) -> bool {
        false
    }

    fn read(&self, _: BlockId, _: u64, _: &mut [u8]) -> Result<()> {
        Err(gone_by())
    }
}

/// Images that hold what came before a stretch.
struct Passed<'s, S> {
    stretch: &'s Stretch<'s, 's>,
    store: &'s S,
}

impl<S> Clone for Passed<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Passed<'_, S> {}

impl<S: ImageStore> Before for Passed<'_, S> {
    /// A stretch is a few windows long.
    const WINDOWS_PER_CLAIM: u64 = 1;

    fn is_data(&self, block: BlockId, offset: u64) -> bool {
        self.stretch.was_data(block, BlockOffset(offset))
    }

    fn has_data(&self, block: BlockId, range: Range<u64>) -> bool {
        self.stretch.had_any(block, BlockOffset(range.start)..BlockOffset(range.end))
    }

    fn read(&self, block: BlockId, offset: u64, page: &mut [u8]) -> Result<()> {
        self.store.read(block, BlockOffset(offset), page)
    }
}

/// The bytes that [`scatter`] counts for `blocks`: those of all windows that
/// hold anything.
pub fn image_len(ram: &Ram<'_>, blocks: &[BlockId]) -> u64 {
    let windows: usize = blocks.iter().map(|block| windows_of(ram, *block, Fresh).count()).sum();
    windows as u64 * WINDOW_LEN
}

/// A window of one block, by its number.
#[derive(Clone, Copy)]
struct Window {
    block: BlockId,
    number: u64,
}

/// The windows of a block that there is anything to write to, in ascending
/// order.
fn windows_of<'r>(
    ram: &'r Ram<'_>,
    block: BlockId,
    before: impl Before + 'r,
) -> impl Iterator<Item = Window> + 'r {
    let page_len = ram.page_size().bytes();
    let mut first_free = 0;
    let runs = visible_runs(ram, block, 0..u64::MAX, before);
    runs.flat_map(move |run| filled_parts(ram, run)).flat_map(move |run| {
        let first = (run.offset.0 / WINDOW_LEN).max(first_free);
        let end = run.offset.0.saturating_add(run.pages * page_len).div_ceil(WINDOW_LEN);
        first_free = end.max(first_free);
        (first..end).map(move |number| Window { block, number })
    })
}

/// The runs of pages in a range but for those of zeros where the image has
/// zeros anyway.
fn visible_runs<'r>(
    ram: &'r Ram<'_>,
    block: BlockId,
    range: Range<u64>,
    before: impl Before + 'r,
) -> impl Iterator<Item = PageRun<'r>> {
    let page_len = ram.page_size().bytes();
    let (from, to) = (BlockOffset(range.start), BlockOffset(range.end));
    let runs = ram.pages(block).into_iter().flat_map(move |pages| pages.runs(from, to));
    runs.filter(move |run| {
        run.content != RunContent::Fill(0)
            || before.has_data(block, run.offset.0..run.offset.0.saturating_add(run.pages * page_len))
    })
}

/// One worker: gathers windows and hands them on.
struct Gather<'r, 'a, S, B> {
    ram: &'r Ram<'a>,
    sink: &'r S,
    before: B,
    /// Where in the image the buffer belongs.
    piece: u64,
    buffer: PieceBuffer,
    reader: PageReader<'r, 'a>,
}

impl<'r, 'a, S: ImageSink, B: Before> Gather<'r, 'a, S, B> {
    fn new(ram: &'r Ram<'a>, sink: &'r S, before: B) -> Self {
        Self { ram, sink, before, piece: 0, buffer: PieceBuffer::new(), reader: PageReader::new(ram) }
    }

    fn window(&mut self, window: Window) -> Result<()> {
        let used_length = self.ram.block(window.block).map_or(0, |block| block.used_length);
        let start = window.number * WINDOW_LEN;
        if window.number.is_multiple_of(B::WINDOWS_PER_CLAIM) {
            self.claim(window.block, start, used_length)?;
        }
        let end = start.saturating_add(WINDOW_LEN).min(used_length);
        let piece_len = self.sink.piece_len().clamp(self.ram.page_size().bytes(), WINDOW_LEN);
        let mut piece = start;
        while piece < end {
            let piece_end = piece.saturating_add(piece_len).min(end);
            self.piece(window.block, piece, piece_end)?;
            piece = piece_end;
        }
        Ok(())
    }

    fn piece(&mut self, block: BlockId, start: u64, end: u64) -> Result<()> {
        let ram = self.ram;
        self.piece = start;
        for run in visible_runs(ram, block, start..end, self.before) {
            self.gather_run(block, &run)?;
        }
        // The last page of a block may reach beyond its length.
        self.buffer.truncate(index(end - self.piece).unwrap_or(usize::MAX));
        self.hand_on(block)
    }

    /// Claims what the windows from `start` on will write. Where a group's
    /// first window holds nothing, the others do without.
    fn claim(&self, block: BlockId, start: u64, used_length: u64) -> Result<()> {
        let end = start.saturating_add(B::WINDOWS_PER_CLAIM * WINDOW_LEN).min(used_length);
        let page_len = self.ram.page_size().bytes();
        let mut piece = start..start;
        let runs = visible_runs(self.ram, block, start..end, self.before);
        for run in runs.filter(|run| !self.looks_zero(run)) {
            let run_end = run.offset.0.saturating_add(run.pages * page_len).min(end);
            if run.offset.0 - piece.end > SMALL_GAP {
                self.claim_piece(block, &piece)?;
                piece.start = run.offset.0;
            }
            piece.end = run_end;
        }
        self.claim_piece(block, &piece)
    }

    /// Whether a run of data has zero pages, by a few of them: QEMU sends such
    /// with `zero-page-detection` off, and they shall be holes.
    fn looks_zero(&self, run: &PageRun<'_>) -> bool {
        const SAMPLES: u64 = 8;
        let RunContent::Data { first, stride } = run.content else { return false };
        let step = run.pages.div_ceil(SAMPLES).max(1);
        let sampled = (0..SAMPLES).map(|nth| nth * step).take_while(|page| *page < run.pages);
        let mut pages = sampled.filter_map(|page| self.ram.data(first.checked_add(page * stride)?));
        pages.any(is_zero)
    }

    /// Claims what is long enough for it to pay.
    fn claim_piece(&self, block: BlockId, piece: &Range<u64>) -> Result<()> {
        let len = piece.end - piece.start;
        if len < CLAIM_LEN {
            return Ok(());
        }
        self.sink.claim(block, BlockOffset(piece.start), len)
    }

    fn gather_run(&mut self, block: BlockId, run: &PageRun<'_>) -> Result<()> {
        let page_len = self.ram.page_size().bytes();
        match run.content {
            RunContent::Fill(byte) => {
                for offset in (0..run.pages).map(|nth| run.offset.0 + nth * page_len) {
                    if byte != 0 || self.before.is_data(block, offset) {
                        let end = self.make_room(block, offset)? + page_len;
                        self.buffer.resize(index(end).unwrap_or(0), byte);
                    }
                }
            }
            RunContent::Data { first, stride } => self.gather_data(block, run, first, stride)?,
            RunContent::Compressed(at) => {
                self.gather_page(block, run.offset.0, &PageSource::Compressed(at))?
            }
            RunContent::Xbzrle(chain) => self.gather_page(block, run.offset.0, &PageSource::Xbzrle(chain))?,
            RunContent::Image => return Err(gone_by()),
        }
        Ok(())
    }

    fn gather_data(
        &mut self,
        block: BlockId,
        run: &PageRun<'_>,
        first: StreamOffset,
        stride: u64,
    ) -> Result<()> {
        let page_len = self.ram.page_size().bytes();
        if stride == page_len && self.share(block, run, first)? {
            return Ok(());
        }
        let (Some(stride), Some(page_bytes)) = (index(stride), index(page_len)) else { return Ok(()) };
        let offsets = (0..run.pages).map(|nth| run.offset.0 + nth * page_len);
        let records = self.ram.sources().from(first).unwrap_or_default().chunks(stride);
        for (offset, record) in offsets.zip(records) {
            let page = record.get(..page_bytes).unwrap_or(record);
            // QEMU sends zeros as data with `zero-page-detection` off.
            if !is_zero(page) || self.before.is_data(block, offset) {
                self.make_room(block, offset)?;
                self.buffer.extend_from_slice(page);
            }
        }
        Ok(())
    }

    /// Has the sink take pages that stand in a row, if they are worth a call and
    /// it can.
    fn share(&mut self, block: BlockId, run: &PageRun<'_>, first: StreamOffset) -> Result<bool> {
        let used_length = self.ram.block(block).map_or(0, |block| block.used_length);
        let end = run.offset.0.saturating_add(run.pages * self.ram.page_size().bytes()).min(used_length);
        let len = end.saturating_sub(run.offset.0);
        if len < SHARED_LEN || !self.ram.is_in_stream(first) {
            return Ok(false);
        }
        self.hand_on(block)?;
        let is_shared = self.sink.share(block, run.offset, first, len)?;
        if is_shared {
            self.piece = end;
        }
        Ok(is_shared)
    }

    /// Gathers a page that has to be put together.
    fn gather_page(&mut self, block: BlockId, offset: u64, source: &PageSource<'_>) -> Result<()> {
        let before = self.before;
        let read = match source {
            PageSource::Xbzrle(chain) if chain.base() == PageSource::Image => {
                self.reader.read_onto_image(chain, |page| before.read(block, offset, page))
            }
            source => self.reader.read(source),
        };
        let page = read.map_err(|error| {
            let idstr = self.ram.block(block).map(|block| block.idstr.to_string()).unwrap_or_default();
            error.inside(format!("page {offset:#x} of RAM block \"{idstr}\""))
        })?;
        if !is_zero(page) || before.is_data(block, offset) {
            self.make_room(block, offset)?;
            self.buffer.extend_from_slice(self.reader.page());
        }
        Ok(())
    }

    /// Makes the buffer end at `offset` of the image: by zeros if it is near,
    /// else by handing on what there is. Gives the buffer's length.
    fn make_room(&mut self, block: BlockId, offset: u64) -> Result<u64> {
        let end = self.piece + self.buffer.len() as u64;
        let gap = offset - end;
        if gap > SMALL_GAP || self.buffer.is_empty() || gap > 0 && self.before.has_data(block, end..offset) {
            self.hand_on(block)?;
            self.piece = offset;
        }
        let len = offset - self.piece;
        self.buffer.resize(index(len).unwrap_or(0), 0);
        Ok(len)
    }

    fn hand_on(&mut self, block: BlockId) -> Result<()> {
        if !self.buffer.is_empty() {
            self.sink.write(block, BlockOffset(self.piece), self.buffer.bytes())?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// A buffer for one piece, at a multiple of [`PIECE_ALIGN`] in memory.
struct PieceBuffer {
    storage: Vec<u8>,
    start: usize,
}

impl PieceBuffer {
    fn new() -> Self {
        let mut storage: Vec<u8> = Vec::with_capacity(index(WINDOW_LEN).unwrap_or(0) + PIECE_ALIGN);
        let start = storage.as_ptr().align_offset(PIECE_ALIGN).min(PIECE_ALIGN);
        storage.resize(start, 0);
        Self { storage, start }
    }

    fn bytes(&self) -> &[u8] {
        self.storage.get(self.start..).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.storage.len() - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.storage.extend_from_slice(bytes);
    }

    fn resize(&mut self, len: usize, byte: u8) {
        self.storage.resize(self.start + len, byte);
    }

    fn truncate(&mut self, len: usize) {
        self.storage.truncate(self.start.saturating_add(len));
    }

    fn clear(&mut self) {
        self.truncate(0);
    }
}
