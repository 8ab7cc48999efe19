//! Memory packed window by window, on all threads, written in its order.
//!
//! ```text
//! windows   0   1   2   3   4   5      taken in order, one a worker
//!           │   ╲   │   ╱   │          packed as they come
//!           ▼    ▼  ▼  ▼    ▼
//! file    │ 0 │ 1 │ 2 │ 3 │            behind each other, by number
//! ```
//!
//! How long a window comes out is known when it is packed. Who packs the next
//! one in the row writes it, and those behind it that wait. No worker goes on
//! further than a few windows ahead of it, so that what waits is bounded; and
//! what is written does not depend on who was faster.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::bytes::is_zero;
use crate::error::{Error, Result};
use crate::extract::{ImageSink, RangeGather, WINDOW_LEN};
use crate::physical::Layout;
use crate::progress::Progress;
use crate::ram::filled::filled_parts;
use crate::ram::{PageRun, Ram, RunContent};
use crate::units::{BlockId, BlockOffset, PhysicalAddress, index};

/// What became of a window.
pub(super) struct Packed<I> {
    /// What stands behind what the window before has.
    pub(super) data: Vec<u8>,
    /// What tells of it elsewhere.
    pub(super) index: I,
}

/// A format that packs.
pub(super) trait Packer: Sync {
    /// What each worker has of its own.
    type Worker;
    /// What there is to tell of a window beside its data.
    type Index: Send;

    fn worker(&self) -> Result<Self::Worker>;

    /// Packs a window.
    fn pack(
        &self,
        worker: &mut Self::Worker,
        window: u64,
        memory: &WindowMemory,
    ) -> Result<Packed<Self::Index>>;

    /// Writes a window whose data stands at `at`.
    fn put(&self, file: &File, window: u64, at: u64, packed: Packed<Self::Index>) -> io::Result<()>;
}

/// The addresses of a window, which are those of its number in the row of all.
pub(super) fn addresses(window: u64) -> Range<u64> {
    let start = window.saturating_mul(WINDOW_LEN);
    start..start.saturating_add(WINDOW_LEN)
}

/// The addresses of pages that the stream has, ascending.
pub(super) fn present(ram: &Ram<'_>, layout: &Layout) -> Vec<Range<u64>> {
    addresses_of(ram, layout, |run| Some(run).into_iter())
}

/// The addresses of those of them that may be other than zeros.
pub(super) fn filled(ram: &Ram<'_>, layout: &Layout) -> Vec<Range<u64>> {
    let is_other = |run: &PageRun<'_>| run.content != RunContent::Fill(0);
    addresses_of(ram, layout, |run| {
        Some(run).filter(is_other).into_iter().flat_map(|run| filled_parts(ram, run))
    })
}

/// The addresses of what `parts` takes of each run of pages.
fn addresses_of<'r, I: Iterator<Item = PageRun<'r>>>(
    ram: &'r Ram<'_>,
    layout: &Layout,
    parts: impl Fn(PageRun<'r>) -> I,
) -> Vec<Range<u64>> {
    let page_len = ram.page_size().bytes();
    let mut present: Vec<Range<u64>> = Vec::new();
    for region in layout.regions() {
        let (from, to) = (region.offset.0, region.offset.0.saturating_add(region.bytes()));
        let Some(pages) = ram.pages(region.block) else { continue };
        for run in pages.runs(BlockOffset(from), BlockOffset(to)).flat_map(&parts) {
            let end = run.offset.0.saturating_add(run.pages.saturating_mul(page_len)).min(to);
            let at = |offset: u64| region.range.start.0 + (offset.max(from) - from);
            push_range(&mut present, at(run.offset.0)..at(end));
        }
    }
    present
}

/// Adds a range that does not begin before the last one does.
pub(super) fn push_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}

/// The windows in which any of these addresses is, ascending.
pub(super) fn windows(present: &[Range<u64>]) -> Vec<u64> {
    let mut windows: Vec<u64> = Vec::new();
    for range in present {
        let first = (range.start / WINDOW_LEN).max(windows.last().map_or(0, |last| last + 1));
        windows.extend(first..range.end.div_ceil(WINDOW_LEN));
    }
    windows
}

/// Packs `windows` of memory and writes them behind each other, the first at
/// `at` of `file`. Gives where the last ends. `progress` counts [`WINDOW_LEN`]
/// for each.
pub(super) fn write<P: Packer>(
    ram: &Ram<'_>,
    layout: &Layout,
    windows: &[u64],
    packer: &P,
    (file, path): (&File, &Path),
    at: u64,
    progress: &Progress,
) -> Result<u64> {
    let order = Order::new(windows.len(), at);
    let outcomes = rayon::broadcast(|_| {
        let outcome = work(ram, layout, windows, packer, (file, path), &order, progress);
        outcome.inspect_err(|_| order.end())
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    Ok(order.lock().at)
}

fn work<P: Packer>(
    ram: &Ram<'_>,
    layout: &Layout,
    windows: &[u64],
    packer: &P,
    (file, path): (&File, &Path),
    order: &Order<P::Index>,
    progress: &Progress,
) -> Result<()> {
    let buffer = WindowBuffer::new();
    let mut gather = RangeGather::new(ram, &buffer);
    let mut worker = packer.worker()?;
    while let Some(nth) = order.take() {
        let Some(window) = windows.get(nth) else { break };
        buffer.fill(&mut gather, layout, *window)?;
        let packed = packer.pack(&mut worker, *window, &buffer.lock())?;
        for (nth, at, packed) in order.give(nth, packed) {
            let Some(window) = windows.get(nth) else { continue };
            packer.put(file, *window, at, packed).map_err(|source| Error::io(path, source))?;
            progress.add(WINDOW_LEN);
        }
    }
    Ok(())
}

/// The order in which windows are taken and written.
struct Order<I> {
    count: usize,
    /// How far ahead of the next one to be written windows are taken.
    ahead: usize,
    state: Mutex<OrderState<I>>,
    changed: Condvar,
}

struct OrderState<I> {
    taken: usize,
    /// The next one to be written, and where.
    next: usize,
    at: u64,
    /// Those behind it that are packed.
    waiting: BTreeMap<usize, Packed<I>>,
    is_over: bool,
}

impl<I> Order<I> {
    /// Windows that are packed and wait, for each thread.
    const AHEAD: usize = 4;

    fn new(count: usize, at: u64) -> Self {
        let state = OrderState { taken: 0, next: 0, at, waiting: BTreeMap::new(), is_over: false };
        let ahead = rayon::current_num_threads().saturating_mul(Self::AHEAD);
        Self { count, ahead, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, OrderState<I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next window for a worker. Who has the next one to be written never
    /// waits here, so that somebody always goes on.
    fn take(&self) -> Option<usize> {
        let is_far = |state: &mut OrderState<I>| {
            !state.is_over && state.taken < self.count && state.taken - state.next >= self.ahead
        };
        let mut state = self.changed.wait_while(self.lock(), is_far).unwrap_or_else(PoisonError::into_inner);
        if state.is_over || state.taken == self.count {
            return None;
        }
        state.taken += 1;
        Some(state.taken - 1)
    }

    /// Takes what a window became. Gives what is to be written now, each with
    /// its place.
    fn give(&self, nth: usize, packed: Packed<I>) -> Vec<(usize, u64, Packed<I>)> {
        let mut state = self.lock();
        state.waiting.insert(nth, packed);
        let mut ready = Vec::new();
        loop {
            let next = state.next;
            let Some(packed) = state.waiting.remove(&next) else { break };
            let at = state.at;
            state.at = at.saturating_add(packed.data.len() as u64);
            state.next += 1;
            ready.push((next, at, packed));
        }
        if !ready.is_empty() {
            self.changed.notify_all();
        }
        ready
    }

    /// Lets nobody go on.
    fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }
}

/// What a window of memory holds.
pub(super) struct WindowMemory {
    /// The window, zero where nothing is.
    bytes: Vec<u8>,
    /// Where anything was put, ascending.
    filled: Vec<Range<usize>>,
    /// The region that is gathered: where it begins in the block, and in the
    /// window.
    from: u64,
    to: usize,
    /// How many bytes of it.
    len: usize,
}

impl WindowMemory {
    /// The bytes of a range, by their place in the window; `None` if all of
    /// them are zero.
    pub(super) fn data(&self, range: Range<usize>) -> Option<&[u8]> {
        let behind = self.filled.partition_point(|filled| filled.end <= range.start);
        self.filled.get(behind).filter(|filled| filled.start < range.end)?;
        self.bytes.get(range).filter(|bytes| !is_zero(bytes))
    }

    fn put(&mut self, offset: u64, data: &[u8]) -> Option<()> {
        // What is gathered is whole pages: the region may begin or end in one.
        let skipped = index(self.from.saturating_sub(offset))?;
        let at = index(offset.saturating_sub(self.from))?;
        let data = data.get(skipped..)?;
        let data = data.get(..data.len().min(self.len.checked_sub(at)?))?;
        let range = self.to + at..self.to + at + data.len();
        self.bytes.get_mut(range.clone())?.copy_from_slice(data);
        self.filled.push(range);
        Some(())
    }

    fn clear(&mut self) {
        for range in self.filled.drain(..) {
            if let Some(bytes) = self.bytes.get_mut(range) {
                bytes.fill(0);
            }
        }
    }
}

/// The sink of one worker. Nobody else locks it.
struct WindowBuffer(Mutex<WindowMemory>);

impl WindowBuffer {
    fn new() -> Self {
        let bytes = vec![0; index(WINDOW_LEN).unwrap_or(0)];
        Self(Mutex::new(WindowMemory { bytes, filled: Vec::new(), from: 0, to: 0, len: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, WindowMemory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a window.
    fn fill(&self, gather: &mut RangeGather<'_, '_, Self>, layout: &Layout, window: u64) -> Result<()> {
        self.lock().clear();
        let Range { start, end } = addresses(window);
        let mut at = start;
        while at < end {
            let (block, offset, left) = match layout.find(PhysicalAddress(at)) {
                Some(found) => found,
                None => {
                    let next = layout.regions().partition_point(|region| region.range.start.0 <= at);
                    at = layout.regions().get(next).map_or(end, |region| region.range.start.0);
                    continue;
                }
            };
            let len = left.min(end - at);
            {
                let mut memory = self.lock();
                memory.from = offset.0;
                memory.to = index(at - start).unwrap_or(0);
                memory.len = index(len).unwrap_or(0);
            }
            gather.range(block, offset.0..offset.0.saturating_add(len))?;
            at = at.saturating_add(len);
        }
        Ok(())
    }
}

impl ImageSink for WindowBuffer {
    fn write(&self, _: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()> {
        // What is outside of the region is nobody's.
        let _ = self.lock().put(offset.0, data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(len: usize) -> Packed<()> {
        Packed { data: vec![0; len], index: () }
    }

    #[test]
    fn windows_are_written_in_their_order_whoever_is_first() {
        let order = Order::new(3, 100);
        assert_eq!(
            [order.take(), order.take(), order.take(), order.take()],
            [Some(0), Some(1), Some(2), None]
        );
        assert!(order.give(2, packed(1)).is_empty());
        assert!(order.give(1, packed(20)).is_empty());
        let ready: Vec<_> = order.give(0, packed(3)).iter().map(|(nth, at, _)| (*nth, *at)).collect();
        assert_eq!(ready, [(0, 100), (1, 103), (2, 123)]);
        assert_eq!(order.lock().at, 124);
    }

    #[test]
    fn an_end_lets_nobody_wait() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let order: Order<()> = pool.install(|| Order::new(9, 0));
        (0..4).for_each(|nth| assert_eq!(order.take(), Some(nth)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| order.take());
            order.end();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }

    #[test]
    fn a_window_is_that_of_any_address_in_it() {
        let len = WINDOW_LEN;
        assert_eq!(windows(&[0..1, 2..len, len * 5 - 1..len * 7]), [0, 4, 5, 6]);
        assert_eq!(windows(&[]), [0_u64; 0]);
    }
}
