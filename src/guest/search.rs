//! Looking for something in guest-physical memory.
//!
//! Only pages of data are looked at, found by the page index: what is zero, or
//! not in the stream, costs nothing however long it is. Several threads share
//! the pages; still the first place that has what is looked for is the one that
//! counts, in an order that does not depend on them.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::physical::{PhysicalMemory, Region};
use crate::ram::filled::filled_parts;
use crate::ram::page::PageReader;
use crate::ram::{PageRun, PageSource, RunContent};
use crate::units::{BlockOffset, PhysicalAddress, index};

/// Pages of data that one thread looks at in a row.
const PAGES_PER_PART: u64 = 4096;

/// Parts for each thread before it is asked whether one had it.
const PARTS_PER_THREAD: usize = 4;

/// What in a page there is to find, by the page's address and bytes.
pub(super) trait Look<T>: Fn(PhysicalAddress, &[u8]) -> Result<Option<T>> + Sync {}

impl<T, F: Fn(PhysicalAddress, &[u8]) -> Result<Option<T>> + Sync> Look<T> for F {}

/// Shows each page of data to `look`, until that finds something; with
/// `decode`, those too that are not in the stream as they are.
///
/// The highest region is first, and in it the lowest address: what a kernel
/// allocates early is at the begin of its highest zone.
///
/// # Errors
/// As [`Ram::page`](crate::Ram::page).
pub(super) fn in_pages<T: Send>(
    memory: PhysicalMemory<'_, '_>,
    decode: bool,
    look: impl Look<T>,
) -> Result<Option<T>> {
    let regions = memory.layout().regions().iter().rev();
    let mut parts = regions.flat_map(|region| Parts::of(memory, region, decode));
    let group_len = PARTS_PER_THREAD * rayon::current_num_threads();
    loop {
        let group: Vec<Part<'_>> = parts.by_ref().take(group_len).collect();
        if group.is_empty() {
            return Ok(None);
        }
        let found = group.par_iter().find_map_first(|part| part.look(memory, decode, &look).transpose());
        if found.is_some() {
            return found.transpose();
        }
    }
}

/// Shows bytes in a row in pieces that lap by `lap` bytes, until `look` finds
/// something: by the address of a piece, and its bytes. `read` gives how many
/// are there from an address on; pages that are not there are passed over.
///
/// # Errors
/// As `read` and `look`.
pub(super) fn in_pieces<T>(
    range: Range<u64>,
    lap: usize,
    read: impl Fn(u64, &mut [u8]) -> Result<usize>,
    mut look: impl FnMut(u64, &[u8]) -> Result<Option<T>>,
) -> Result<Option<T>> {
    /// Where pages of any guest begin, and pages of RAM that is not there.
    const PAGE: u64 = 4096;
    let mut piece = vec![0; 1 << 20];
    let mut at = range.start;
    while let Some(left) = range.end.checked_sub(at).filter(|left| *left > 0) {
        let wanted = index(left).map_or(piece.len(), |left| left.min(piece.len()));
        let len = read(at, piece.get_mut(..wanted).unwrap_or_default())?;
        if let Some(found) = look(at, piece.get(..len).unwrap_or_default())? {
            return Ok(Some(found));
        }
        let end = at.saturating_add(len as u64);
        at = match len < wanted {
            true => (end / PAGE).saturating_add(1).saturating_mul(PAGE),
            false if end == range.end => break,
            // What stands across two pieces is whole in the next.
            false => end - lap as u64,
        };
    }
    Ok(None)
}

/// A part of a region with few enough pages of data.
struct Part<'r> {
    region: &'r Region,
    /// The bytes of the region's block.
    range: Range<BlockOffset>,
}

impl Part<'_> {
    fn look<T>(
        &self,
        memory: PhysicalMemory<'_, '_>,
        decode: bool,
        look: &impl Look<T>,
    ) -> Result<Option<T>> {
        let ram = memory.ram();
        let Some(pages) = ram.pages(self.region.block) else { return Ok(None) };
        let mut reader = PageReader::new(ram);
        let page_len = ram.page_size().bytes();
        let runs = pages.runs(self.range.start, self.range.end).filter(|run| has_data(run, decode));
        for run in runs.flat_map(|run| filled_parts(ram, run)) {
            for nth in 0..run.pages {
                let skipped = (run.offset.0 + nth * page_len).checked_sub(self.region.offset.0);
                let Some(at) = skipped.and_then(|skipped| self.region.range.start.checked_add(skipped))
                else {
                    continue;
                };
                let page = match run.content {
                    RunContent::Fill(_) => break,
                    RunContent::Data { first, stride } => {
                        first.checked_add(nth * stride).and_then(|at| ram.data(at)).unwrap_or_default()
                    }
                    RunContent::Compressed(at) => reader.read(&PageSource::Compressed(at))?,
                    RunContent::Xbzrle(chain) => reader.read(&PageSource::Xbzrle(chain))?,
                    RunContent::Image => reader.read(&PageSource::Image)?,
                };
                if let Some(found) = look(at, page)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }
}

/// Whether the pages of a run are looked at.
fn has_data(run: &PageRun<'_>, decode: bool) -> bool {
    match run.content {
        RunContent::Fill(_) => false,
        RunContent::Data { .. } | RunContent::Image => true,
        RunContent::Compressed(_) | RunContent::Xbzrle(_) => decode,
    }
}

/// The parts of a region that have data, by ascending address.
struct Parts<'r, R: Iterator<Item = PageRun<'r>>> {
    region: &'r Region,
    page_len: u64,
    runs: std::iter::Peekable<R>,
    /// Pages at the begin of the next run that were in the part before.
    taken: u64,
}

impl<'r> Parts<'r, Box<dyn Iterator<Item = PageRun<'r>> + 'r>> {
    fn of(memory: PhysicalMemory<'r, '_>, region: &'r Region, decode: bool) -> Self {
        let end = BlockOffset(region.offset.0.saturating_add(region.bytes()));
        let pages = memory.ram().pages(region.block).into_iter();
        let runs = pages.flat_map(move |pages| pages.runs(region.offset, end));
        let runs = runs.filter(move |run| has_data(run, decode));
        let runs = runs.flat_map(move |run| filled_parts(memory.ram(), run));
        let runs: Box<dyn Iterator<Item = PageRun<'r>> + 'r> = Box::new(runs);
        Self { region, page_len: memory.ram().page_size().bytes(), runs: runs.peekable(), taken: 0 }
    }
}

impl<'r, R: Iterator<Item = PageRun<'r>>> Iterator for Parts<'r, R> {
    type Item = Part<'r>;

    fn next(&mut self) -> Option<Part<'r>> {
        let start = BlockOffset(self.runs.peek()?.offset.0 + self.taken * self.page_len);
        let (mut left, mut end) = (PAGES_PER_PART, start);
        while let Some(run) = self.runs.peek().filter(|_| left > 0) {
            let count = (run.pages - self.taken).min(left);
            self.taken += count;
            left -= count;
            end = BlockOffset(run.offset.0.saturating_add(self.taken * self.page_len));
            if self.taken == run.pages {
                self.taken = 0;
                self.runs.next();
            }
        }
        Some(Part { region: self.region, range: start..end })
    }
}
