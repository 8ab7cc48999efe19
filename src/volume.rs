//! How much disk images will take, before a byte of them is written.

use std::ops::Range;

use crate::bytes::is_zero;
use crate::extract::SMALL_GAP;
use crate::ram::filled::filled_parts;
use crate::ram::{PageRun, Ram, RunContent};
use crate::units::{BlockId, BlockOffset};

/// Bytes that [`scatter`](crate::scatter) writes for a range of `block`, at
/// most: its pages that are not known to be zero, by the index alone, and the
/// small gaps between them that are written along.
pub fn data_len(ram: &Ram<'_>, block: BlockId, range: Range<BlockOffset>) -> u64 {
    let mut len: u64 = 0;
    let mut end = None;
    for run in data_runs(ram, block, range) {
        let gap = end.map_or(0, |end| run.start.saturating_sub(end));
        len = len.saturating_add(run.end - run.start).saturating_add(if gap > SMALL_GAP { 0 } else { gap });
        end = Some(run.end);
    }
    len
}

/// Bytes of pages in a range of `block` that are not zero: what
/// [`scatter`](crate::scatter) writes at the least. Looks at pages of data, and
/// at no more of them when it has come to more than `enough`.
pub fn nonzero_len(ram: &Ram<'_>, block: BlockId, range: Range<BlockOffset>, enough: u64) -> u64 {
    let mut len: u64 = 0;
    for run in runs(ram, block, range).flat_map(|run| filled_parts(ram, run)) {
        let page_len = ram.page_size().bytes();
        match run.content {
            RunContent::Data { first, stride } => {
                let places = (0..run.pages).filter_map(|nth| first.checked_add(nth.checked_mul(stride)?));
                for page in places.filter_map(|place| ram.data(place)) {
                    len = len.saturating_add(if is_zero(page) { 0 } else { page_len });
                    if len > enough {
                        return len;
                    }
                }
            }
            // What these are made into is not looked at; hardly one is zero.
            _ => len = len.saturating_add(run.pages * page_len),
        }
    }
    len
}

/// The runs of pages in a range that are not known to be zero.
fn runs<'r>(
    ram: &'r Ram<'_>,
    block: BlockId,
    range: Range<BlockOffset>,
) -> impl Iterator<Item = PageRun<'r>> {
    let runs = ram.pages(block).into_iter().flat_map(move |pages| pages.runs(range.start, range.end));
    runs.filter(|run| run.content != RunContent::Fill(0))
}

/// The bytes of the block that each of them takes.
fn data_runs(ram: &Ram<'_>, block: BlockId, range: Range<BlockOffset>) -> impl Iterator<Item = Range<u64>> {
    let page_len = ram.page_size().bytes();
    let used_length = ram.block(block).map_or(0, |block| block.used_length);
    runs(ram, block, range).map(move |run| {
        let end = run.offset.0.saturating_add(run.pages.saturating_mul(page_len)).min(used_length);
        run.offset.0..end.max(run.offset.0)
    })
}
