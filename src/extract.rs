//! Writing RAM images: pages go from the map to where they belong, in
//! parallel, each once.
//!
//! The unit of work is a *window*: 512 KiB of one block's image. A worker takes
//! the next window, gathers its pages from all over the stream into a buffer
//! without their record headers, and hands the buffer on in as few pieces as
//! the holes allow. No two workers write the same bytes, so nothing is locked;
//! the index knows each page's last record, so nothing is written twice; and
//! what holds only zeros is never written, so it stays a hole.
//!
//! Windows are taken in ascending order, which keeps the reads and writes of
//! all workers close together.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::ram::{PageRun, Ram, RunContent};
use crate::units::{BlockId, BlockOffset, index};

/// Bytes of an image that one worker writes at a time: what stays in a core's
/// own cache between the gathering and the kernel's copy.
pub const WINDOW_LEN: u64 = 512 << 10;

/// Windows whose place is claimed at once, if they will be written.
const WINDOWS_PER_CLAIM: u64 = 64;

/// A gap of zeros up to this many bytes between two pieces of data is written
/// along with them: one long write is cheaper than two and a hole.
const SMALL_GAP: u64 = 64 << 10;

/// Where the bytes of RAM images go.
///
/// The one interface between the scatter and any output format.
pub trait ImageSink: Sync {
    /// Takes `data`, which belongs at `offset` of the image of `block`.
    ///
    /// Called by several threads at once, never twice for the same bytes, and
    /// never for bytes outside the block's `used_length`. What is never given
    /// is zero.
    ///
    /// # Errors
    /// Whatever keeps the data from getting where it belongs: it ends the
    /// scatter.
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()>;

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

/// Hands the content of `blocks` to `sink`, on all threads of the current
/// rayon pool. `progress` counts bytes of images, up to [`image_len`].
///
/// Takes one buffer of [`WINDOW_LEN`] a thread, and 16 bytes a window that
/// holds anything.
///
/// # Errors
/// The first one of the sink.
pub fn scatter(ram: &Ram<'_>, blocks: &[BlockId], sink: &impl ImageSink, progress: &Progress) -> Result<()> {
    let windows: Vec<Window> = blocks.iter().flat_map(|block| windows_of(ram, *block)).collect();
    let next = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let outcomes = rayon::broadcast(|_| {
        let mut gather = Gather::new(ram, sink);
        while !is_over.load(Ordering::Relaxed) {
            let Some(window) = windows.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            gather.window(*window).inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
            progress.add(WINDOW_LEN);
        }
        Ok(())
    });
    outcomes.into_iter().collect()
}

/// The bytes that [`scatter`] counts for `blocks`: those of all windows that
/// hold anything.
pub fn image_len(ram: &Ram<'_>, blocks: &[BlockId]) -> u64 {
    let windows: usize = blocks.iter().map(|block| windows_of(ram, *block).count()).sum();
    windows as u64 * WINDOW_LEN
}

/// A window of one block, by its number.
#[derive(Clone, Copy)]
struct Window {
    block: BlockId,
    number: u64,
}

/// The windows of a block that hold anything but zeros, in ascending order.
fn windows_of<'r>(ram: &'r Ram<'_>, block: BlockId) -> impl Iterator<Item = Window> + 'r {
    let page_len = ram.page_size().bytes();
    let mut first_free = 0;
    visible_runs(ram, block, BlockOffset(0), BlockOffset(u64::MAX)).flat_map(move |run| {
        let first = (run.offset.0 / WINDOW_LEN).max(first_free);
        let end = run.offset.0.saturating_add(run.pages * page_len).div_ceil(WINDOW_LEN);
        first_free = end.max(first_free);
        (first..end).map(move |number| Window { block, number })
    })
}

/// The runs of pages that are not all zeros.
fn visible_runs<'r>(
    ram: &'r Ram<'_>,
    block: BlockId,
    from: BlockOffset,
    to: BlockOffset,
) -> impl Iterator<Item = PageRun> + 'r {
    let runs = ram.pages(block).into_iter().flat_map(move |pages| pages.runs(from, to));
    runs.filter(|run| run.content != RunContent::Fill(0))
}

/// One worker: gathers windows and hands them on.
struct Gather<'r, 'a, S> {
    ram: &'r Ram<'a>,
    sink: &'r S,
    /// Where in the image the buffer belongs.
    piece: u64,
    buffer: Vec<u8>,
}

impl<'r, 'a, S: ImageSink> Gather<'r, 'a, S> {
    fn new(ram: &'r Ram<'a>, sink: &'r S) -> Self {
        Self { ram, sink, piece: 0, buffer: Vec::with_capacity(index(WINDOW_LEN).unwrap_or(0)) }
    }

    fn window(&mut self, window: Window) -> Result<()> {
        let used_length = self.ram.block(window.block).map_or(0, |block| block.used_length);
        let start = window.number * WINDOW_LEN;
        if window.number.is_multiple_of(WINDOWS_PER_CLAIM) {
            self.claim(window.block, start, used_length)?;
        }
        let end = start.saturating_add(WINDOW_LEN).min(used_length);
        let ram = self.ram;
        self.piece = start;
        for run in visible_runs(ram, window.block, BlockOffset(start), BlockOffset(end)) {
            self.gather_run(window.block, &run)?;
        }
        // The last page of a block may reach beyond its length.
        self.buffer.truncate(index(end - self.piece).unwrap_or(usize::MAX));
        self.hand_on(window.block)
    }

    /// Claims what the windows from `start` on will write. Where a group's
    /// first window holds nothing, the others do without.
    fn claim(&self, block: BlockId, start: u64, used_length: u64) -> Result<()> {
        let end = start.saturating_add(WINDOWS_PER_CLAIM * WINDOW_LEN).min(used_length);
        let page_len = self.ram.page_size().bytes();
        let mut piece = start..start;
        let runs = visible_runs(self.ram, block, BlockOffset(start), BlockOffset(end));
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
    fn looks_zero(&self, run: &PageRun) -> bool {
        const SAMPLES: u64 = 8;
        let RunContent::Data { first, stride } = run.content else { return false };
        let step = run.pages.div_ceil(SAMPLES).max(1);
        let sampled = (0..SAMPLES).map(|nth| nth * step).take_while(|page| *page < run.pages);
        let mut pages = sampled.filter_map(|page| self.ram.data(first.checked_add(page * stride)?));
        pages.any(is_zero)
    }

    /// Claims a piece of more than one window: for less it does not pay.
    fn claim_piece(&self, block: BlockId, piece: &Range<u64>) -> Result<()> {
        let len = piece.end - piece.start;
        if len <= WINDOW_LEN {
            return Ok(());
        }
        self.sink.claim(block, BlockOffset(piece.start), len)
    }

    fn gather_run(&mut self, block: BlockId, run: &PageRun) -> Result<()> {
        let page_len = self.ram.page_size().bytes();
        let offsets = (0..run.pages).map(|nth| run.offset.0 + nth * page_len);
        match run.content {
            RunContent::Fill(byte) => {
                for offset in offsets {
                    let end = self.make_room(block, offset)? + page_len;
                    self.buffer.resize(index(end).unwrap_or(0), byte);
                }
            }
            RunContent::Data { first, stride } => {
                let (Some(first), Some(stride), Some(page_len)) =
                    (index(first.0), index(stride), index(page_len))
                else {
                    return Ok(());
                };
                let records = self.ram.input().get(first..).unwrap_or_default().chunks(stride);
                for (offset, record) in offsets.zip(records) {
                    let page = record.get(..page_len).unwrap_or(record);
                    // QEMU sends zeros as data with `zero-page-detection` off.
                    if !is_zero(page) {
                        self.make_room(block, offset)?;
                        self.buffer.extend_from_slice(page);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the buffer end at `offset` of the image: by zeros if it is near,
    /// else by handing on what there is. Gives the buffer's length.
    fn make_room(&mut self, block: BlockId, offset: u64) -> Result<u64> {
        let gap = offset - (self.piece + self.buffer.len() as u64);
        if gap > SMALL_GAP || self.buffer.is_empty() {
            self.hand_on(block)?;
            self.piece = offset;
        }
        let len = offset - self.piece;
        self.buffer.resize(index(len).unwrap_or(0), 0);
        Ok(len)
    }

    fn hand_on(&mut self, block: BlockId) -> Result<()> {
        if !self.buffer.is_empty() {
            self.sink.write(block, BlockOffset(self.piece), &self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// Whether all bytes are zero. Pages that are not show it in their first few
/// bytes, nearly always.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(64).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

/// A sink of sparse files, one for each block.
///
/// Each is created new, readable by its owner alone (guest RAM holds secrets)
/// and as long as its block from the start; what is never written stays a
/// hole. Only a few files are open at a time, however many blocks there are.
#[derive(Debug)]
pub struct BlockFiles {
    paths: Vec<Option<PathBuf>>,
    open: Mutex<VecDeque<(BlockId, Arc<File>)>>,
}

/// How many image files are kept open.
const OPEN_FILES: usize = 64;

impl BlockFiles {
    /// Creates the file at `path` for each block given.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file exists already, or
    /// cannot be made, or not as long as its block.
    pub fn create(ram: &Ram<'_>, files: impl IntoIterator<Item = (BlockId, PathBuf)>) -> Result<Self> {
        let mut paths: Vec<Option<PathBuf>> = ram.blocks().map(|_| None).collect();
        for (id, path) in files {
            let (Some(block), Some(slot)) = (ram.block(id), paths.get_mut(id.0)) else { continue };
            create_new(&path).and_then(|file| file.set_len(block.used_length)).map_err(|source| {
                let what = format!("RAM block \"{}\" of {:#x} bytes", block.idstr, block.used_length);
                Error::at(block.offset, ErrorKind::Io { path: path.clone(), source }).inside(what)
            })?;
            *slot = Some(path);
        }
        Ok(Self { paths, open: Mutex::default() })
    }

    fn path(&self, id: BlockId) -> PathBuf {
        self.paths.get(id.0).cloned().flatten().unwrap_or_default()
    }

    /// The open file of a block. The one used longest ago is closed for it.
    fn file(&self, id: BlockId) -> Result<Option<Arc<File>>> {
        let Some(path) = self.paths.get(id.0).and_then(Option::as_ref) else { return Ok(None) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(known, _)| *known == id) {
            return Ok(open.get(at).map(|(_, file)| Arc::clone(file)));
        }
        let file = OpenOptions::new().write(true).open(path).map_err(|source| Error::io(path, source))?;
        let file = Arc::new(file);
        open.truncate(OPEN_FILES - 1);
        open.push_front((id, Arc::clone(&file)));
        Ok(Some(file))
    }
}

/// Creates a file that did not exist, for its owner alone.
///
/// # Errors
/// What the system says, [`AlreadyExists`](std::io::ErrorKind::AlreadyExists)
/// for a symlink too.
pub fn create_new(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

impl ImageSink for BlockFiles {
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()> {
        let Some(file) = self.file(block)? else { return Ok(()) };
        file.write_all_at(data, offset.0).map_err(|source| Error::io(self.path(block), source))
    }

    /// Claims blocks of the file system: a write into its own blocks is a
    /// third cheaper than one that has to find some. Not all file systems can.
    fn claim(&self, block: BlockId, offset: BlockOffset, len: u64) -> Result<()> {
        let Some(file) = self.file(block)? else { return Ok(()) };
        match fallocate(&*file, FallocateFlags::empty(), offset.0, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(source) => Err(Error::io(self.path(block), source.into())),
        }
    }
}
