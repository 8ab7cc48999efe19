//! Pages whose block is evidence and no proof: how long a gap is.

use std::ops::Range;

use crate::loss::DoubtfulPage;
use crate::ram::{BlockPages, Ram};
use crate::units::{BlockId, BlockOffset, StreamOffset};

/// Where records stand that were given to a block by how long the gap before
/// them is. In order.
#[derive(Default)]
pub(super) struct Likely(Vec<Range<StreamOffset>>);

impl Likely {
    pub(super) fn add(&mut self, records: Range<StreamOffset>) {
        self.0.push(records);
    }

    /// Ends the last of them where the walk failed, if it did among them.
    pub(super) fn end_at(&mut self, failure: StreamOffset) {
        if let Some(last) = self.0.last_mut() {
            last.end = last.end.min(failure).max(last.start);
        }
    }

    fn holds(&self, place: StreamOffset) -> bool {
        let behind = self.0.partition_point(|records| records.start <= place);
        behind.checked_sub(1).and_then(|nth| self.0.get(nth)).is_some_and(|records| place < records.end)
    }

    /// The pages that have their last record there.
    pub(super) fn pages(&self, ram: &Ram<'_>) -> Vec<DoubtfulPage> {
        let mut found = Vec::new();
        if self.0.iter().any(|records| !records.is_empty()) {
            let page_len = ram.page_size().bytes();
            ram.blocks().for_each(|(id, _, pages)| self.pages_of(id, pages, page_len, &mut found));
        }
        found
    }

    fn pages_of(&self, block: BlockId, pages: &BlockPages<'_>, page_len: u64, found: &mut Vec<DoubtfulPage>) {
        let mut end = None;
        for run in pages.runs(BlockOffset(0), BlockOffset(u64::MAX)) {
            for offset in (0..run.pages).map(|nth| BlockOffset(run.offset.0 + nth * page_len)) {
                let Some(payload) = pages.last_record(offset).filter(|place| self.holds(*place)) else {
                    continue;
                };
                match found.last_mut().filter(|_| end == Some(offset)) {
                    Some(row) => row.pages += 1,
                    None => found.push(DoubtfulPage { block, offset, pages: 1, payload }),
                }
                end = Some(BlockOffset(offset.0 + page_len));
            }
        }
    }
}
