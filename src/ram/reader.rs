//! What goes over the `ram` section as the walk meets it, body by body, and
//! makes the index.

use std::sync::Arc;

use super::block::{BlockList, RamLayout};
use super::index::{BlockPages, IndexBuilder};
use super::mapped::{self, MappedPages};
use super::record::{Certainty, PageRecord, PageRecords, RecordContent, RecordState};
use super::sources::Sources;
use super::{PageTaker, Ram, Stretch};
use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::units::{BlockId, StreamOffset, TargetPageSize};
use crate::wire::{self, limit, ram_flag};

/// How often the index pass says how far it is, in records.
const RECORDS_PER_REPORT: u64 = 256;

/// Reads the bodies of the `ram` section as the walk meets them.
pub(crate) struct RamReader<'a, 'p> {
    pub(super) input: Bytes<'a>,
    pub(super) list: Option<Arc<BlockList>>,
    pub(super) first_record: StreamOffset,
    pub(super) state: RecordState,
    /// The page size that records have been indexed with.
    indexed_size: TargetPageSize,
    builders: Vec<IndexBuilder>,
    pub(super) passes: PassCounter,
    has_flushes: bool,
    has_mr_addr: bool,
    progress: &'p Progress,
    /// The last record that was read.
    pub(super) last: Option<PageRecord>,
    /// Where a salvage went on behind a gap, and with which block.
    pub(super) resumed: Vec<(StreamOffset, Option<BlockId>)>,
    has_ended: bool,
    takes_content: bool,
    gone_by: Option<GoneBy>,
}

/// What came before the present stretch, if the stream goes by.
#[derive(Default)]
struct GoneBy {
    /// The index of each block.
    earlier: Vec<IndexBuilder>,
    /// Records before the first that tells the page size.
    waiting: Vec<PageRecord>,
    has_page_size: bool,
}

/// Counts passes: each begins where the order of pages starts over.
#[derive(Default)]
pub(super) struct PassCounter {
    pub(super) count: u64,
    last: Option<(BlockId, u64)>,
    /// Whether threads compressed pages: their order says nothing then.
    is_disordered: bool,
    /// Records of each pass; the last of [`PASSES`](limit::PASSES) has those
    /// of all further ones too.
    pages: Vec<u64>,
}

impl PassCounter {
    /// Notes `count` pages that come behind the last one noted.
    #[inline]
    fn note_neighbours(&mut self, count: u64) {
        if let (Some((_, page)), Some(pages)) = (&mut self.last, self.pages.last_mut()) {
            *page += count;
            *pages += count;
        }
    }

    #[inline]
    fn note(&mut self, record: &PageRecord, page: u64) {
        let place = (record.block, page);
        if self.is_disordered || record.content == RecordContent::Compressed {
            self.is_disordered = true;
            self.count = 1;
            self.pages = vec![self.pages.iter().sum()];
        } else if self.last.is_none_or(|last| place <= last) {
            self.count += 1;
            if self.pages.len() < limit::PASSES {
                self.pages.push(0);
            }
        }
        self.last = Some(place);
        if let Some(pages) = self.pages.last_mut() {
            *pages += 1;
        }
    }
}

impl<'a, 'p> RamReader<'a, 'p> {
    /// `page_size` is what the configuration or the description say; with
    /// neither, 4 KiB until a page of data shows what it is.
    pub(crate) fn new(input: Bytes<'a>, page_size: PageSizeHint, progress: &'p Progress) -> Self {
        let (size, certainty) = match page_size {
            PageSizeHint::Given(size) => (size, Certainty::Settled),
            PageSizeHint::Likely(size) => (size, Certainty::Likely),
            PageSizeHint::Unknown => (TargetPageSize::KIB_4, Certainty::Unknown { offsets: 0 }),
        };
        Self {
            input,
            list: None,
            first_record: StreamOffset::default(),
            state: RecordState::new(size, certainty),
            indexed_size: size,
            builders: Vec::new(),
            passes: PassCounter::default(),
            has_flushes: false,
            has_mr_addr: false,
            progress,
            last: None,
            resumed: Vec::new(),
            has_ended: false,
            takes_content: false,
            gone_by: None,
        }
    }

    /// Hears that the stream goes by.
    pub(crate) fn let_go_by(&mut self) {
        self.gone_by = Some(GoneBy::default());
        self.state.has_more = true;
    }

    /// Hears that what is there now is all there is.
    pub(crate) fn end_input(&mut self) {
        self.state.has_more = false;
    }

    pub(crate) fn has_started(&self) -> bool {
        self.list.is_some()
    }

    /// Reads the block list.
    pub(crate) fn read_list(
        &mut self,
        cursor: &mut Cursor<'a>,
        version_id: u32,
        layout: RamLayout,
    ) -> Result<()> {
        let at = cursor.offset();
        if version_id != wire::RAM_VERSION {
            let kind =
                ErrorKind::Version { what: "ram section", met: version_id, expected: wire::RAM_VERSION };
            return Err(Error::at(at, kind));
        }
        let word = cursor.be64()?;
        if word & ram_flag::MASK_256 != ram_flag::MEM_SIZE {
            let met = format!("{word:#x}");
            let expected = "the block list's word, total | 0x4".to_owned();
            return Err(Error::at(
                at,
                ErrorKind::Malformed { what: "start of the ram section", met, expected },
            ));
        }
        if layout.mapped_ram && self.gone_by.is_some() {
            let what = "with mapped-ram pages have fixed places in the file";
            return Err(Error::at(at, ErrorKind::GoneBy { what }));
        }
        let mut list = BlockList::default();
        let read = list.read(cursor, word & !ram_flag::MASK_256, layout);
        // With mapped-ram what stands before an error has pages already.
        if read.is_ok() || !list.mapped.is_empty() {
            self.settle_mapped(&list);
            self.has_mr_addr = layout.mr_addr;
            let builders = || list.blocks.iter().map(|_| IndexBuilder::default()).collect();
            self.builders = builders();
            if let Some(gone_by) = &mut self.gone_by {
                gone_by.earlier = builders();
            }
            self.list = Some(Arc::new(list));
            self.first_record = cursor.offset();
        }
        read
    }

    /// With mapped-ram, takes the page size that the headers give.
    fn settle_mapped(&mut self, list: &BlockList) {
        if let Some(header) = list.mapped.iter().flatten().next() {
            self.indexed_size = header.page_size;
            self.state = RecordState::new(header.page_size, Certainty::Settled);
        }
    }

    /// Notes that END was read: bitmaps of mapped-ram are written by then.
    pub(crate) fn end(&mut self) {
        self.has_ended = true;
    }

    /// Takes the pages of mapped-ram by their content where the bitmap was
    /// not written.
    pub(crate) fn take_content(&mut self) {
        self.takes_content = true;
    }

    /// Reads page records up to the end of a body, and indexes them. On an
    /// error the cursor stands where the bad record begins, and all before it
    /// are indexed.
    pub(crate) fn read_records(&mut self, cursor: &mut Cursor<'_>) -> Result<()> {
        let Some(list) = self.list.clone() else { return Ok(()) };
        let mut records = PageRecords::new(*cursor, &list, self.state);
        let mut until_report = RECORDS_PER_REPORT;
        while let Some(record) = records.next() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    self.has_flushes |= records.flush_count() > 0;
                    self.state = records.state();
                    *cursor = records.cursor();
                    return Err(error);
                }
            };
            if !list.mapped.is_empty() {
                let why = "a page record, where mapped-ram has none".to_owned();
                return Err(Error::at(record.payload, ErrorKind::RamFlags { flags: 0, why }));
            }
            self.last = Some(record);
            if self.gone_by.is_none() || self.has_page_size(&record, records.state()) {
                self.note(&record, records.page_size());
            }
            let neighbours = records.skip_neighbours(&record, RECORDS_PER_REPORT);
            if neighbours > 0 {
                self.note_neighbours(&record, neighbours, records.page_size());
            }
            until_report = until_report.saturating_sub(1 + neighbours);
            if until_report == 0 {
                self.progress.set(record.payload.0);
                until_report = RECORDS_PER_REPORT;
            }
        }
        self.has_flushes |= records.flush_count() > 0;
        self.state = records.state();
        *cursor = records.cursor();
        self.progress.set(cursor.offset().0);
        Ok(())
    }

    /// Indexes a record.
    #[inline]
    fn note(&mut self, record: &PageRecord, page_size: TargetPageSize) {
        let page = page_size.page_of(record.offset);
        self.passes.note(record, page);
        if let Some(builder) = self.builders.get_mut(record.block.0) {
            builder.push(page, record.content, record.payload, page_size);
        }
    }

    /// Indexes `count` records that go on where `record` ends.
    #[inline]
    fn note_neighbours(&mut self, record: &PageRecord, count: u64, page_size: TargetPageSize) {
        self.passes.note_neighbours(count);
        if let Some(builder) = self.builders.get_mut(record.block.0) {
            self.last = Some(builder.push_neighbours(record, count, page_size));
        }
    }

    /// Whether a record of a stream that goes by can be indexed. If not it
    /// waits, and is indexed before the first that can: there is no walking
    /// again with a page size that shows late. What changes a page is never
    /// put off: its bytes would have gone by.
    fn has_page_size(&mut self, record: &PageRecord, state: RecordState) -> bool {
        let Some(gone_by) = &mut self.gone_by else { return true };
        let is_unknown = matches!(state.certainty, Certainty::Unknown { .. });
        // Once one was indexed none waits, or it would never be.
        let can_wait = matches!(record.content, RecordContent::Fill(_)) && !gone_by.has_page_size;
        if is_unknown && can_wait && gone_by.waiting.len() < limit::WAITING_RECORDS {
            gone_by.waiting.push(*record);
            return false;
        }
        if !std::mem::replace(&mut gone_by.has_page_size, true) {
            self.index_waiting(state.page_size);
        }
        true
    }

    fn index_waiting(&mut self, page_size: TargetPageSize) {
        let Some(gone_by) = &mut self.gone_by else { return };
        let waiting = std::mem::take(&mut gone_by.waiting);
        self.indexed_size = page_size;
        waiting.iter().for_each(|record| self.note(record, page_size));
    }

    /// Hands the pages of a stretch on, whose bytes begin at `start` of a
    /// stream that goes by.
    pub(crate) fn hand_on(
        &mut self,
        stretch: &[u8],
        start: StreamOffset,
        taker: &mut dyn PageTaker,
    ) -> Result<()> {
        let (Some(list), Some(gone_by)) = (&self.list, &mut self.gone_by) else { return Ok(()) };
        if self.builders.iter().all(IndexBuilder::is_empty) {
            return Ok(());
        }
        let page_size = self.state.page_size;
        let stretches = self.builders.iter_mut().zip(&mut gone_by.earlier);
        let pages =
            stretches.map(|(builder, earlier)| std::mem::take(builder).finish_stretch(earlier, page_size));
        let ram = Ram {
            sources: Sources::from_stretch(stretch, start),
            ..Ram::with_index(Arc::clone(list), page_size, pages.collect())
        };
        taker.take(&Stretch { ram: &ram, earlier: &gone_by.earlier })?;
        for (earlier, pages) in gone_by.earlier.iter_mut().zip(&ram.pages) {
            earlier.append(pages);
        }
        Ok(())
    }

    /// Hears that no more records will come.
    pub(crate) fn end_records(&mut self) {
        if self.gone_by.as_ref().is_some_and(|gone_by| !gone_by.has_page_size) {
            self.index_waiting(self.state.page_size);
        }
    }

    /// Tells the taker which blocks there are.
    pub(crate) fn announce(&self, taker: &mut dyn PageTaker) -> Result<()> {
        let Some(list) = &self.list else { return Ok(()) };
        let page_size = self.state.page_size;
        let pages = list.blocks.iter().map(|_| IndexBuilder::default().finish(page_size));
        taker.begin(&Ram::with_index(Arc::clone(list), page_size, pages.collect()))
    }

    /// The page size that the walk has found out too late: records were
    /// indexed with another one before, and the walk must be done again.
    pub(crate) fn late_page_size(&self) -> Option<TargetPageSize> {
        (self.state.page_size != self.indexed_size).then_some(self.state.page_size)
    }

    /// The finished index; `None` if no `ram` section was met.
    pub(crate) fn finish(self) -> Option<Ram<'a>> {
        let page_size = self.state.page_size;
        let list = self.list?;
        let pages = match self.gone_by {
            Some(gone_by) => {
                gone_by.earlier.into_iter().map(|index| index.finish(page_size).gone_by()).collect()
            }
            None if list.mapped.is_empty() => {
                self.builders.into_iter().map(|builder| builder.finish(page_size)).collect()
            }
            None => {
                let by_content = self.takes_content && !self.has_ended;
                mapped_pages(self.input, &list, page_size, by_content)
            }
        };
        Some(Ram {
            input: self.input,
            sources: Sources::new(self.input),
            pages_per_pass: self.passes.pages,
            pass_count: self.passes.count,
            has_flushes: self.has_flushes,
            has_mr_addr: self.has_mr_addr,
            has_ended: self.has_ended,
            first_record: self.first_record,
            resumed: self.resumed,
            ..Ram::with_index(list, page_size, pages)
        })
    }
}

/// The pages of each block of a mapped-ram stream; with `by_content`, of those
/// whose bitmap was not written, what is there. QEMU writes bitmaps in the
/// order of the list: one with a bit proves those before it.
fn mapped_pages<'a>(
    input: Bytes<'a>,
    list: &BlockList,
    page_size: TargetPageSize,
    by_content: bool,
) -> Vec<BlockPages<'a>> {
    let blocks = list.blocks.iter().zip(&list.mapped);
    let mut mapped: Vec<Option<MappedPages<'a>>> =
        blocks.map(|(block, header)| MappedPages::new(input, header.as_ref()?, block.used_length)).collect();
    let order = mapped::word_order(mapped.iter().flatten(), input);
    mapped.iter_mut().flatten().for_each(|block| block.set_order(order));
    let unwritten = mapped.iter_mut().rev().flatten().take_while(|block| by_content && block.is_blank());
    unwritten.for_each(|block| *block = block.by_content(input));
    let absent = || IndexBuilder::default().finish(page_size);
    mapped
        .into_iter()
        .map(|block| block.map_or_else(absent, |block| BlockPages::mapped(block, page_size)))
        .collect()
}

/// What is known of the target page size before the first page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PageSizeHint {
    /// The configuration gives it.
    Given(TargetPageSize),
    /// Something else says so: the description, or an earlier walk.
    Likely(TargetPageSize),
    /// Nothing.
    Unknown,
}

impl PageSizeHint {
    /// What to begin the next walk with, as the one that began with `late` has
    /// met pages of `size` too late. `None` if there is no use in another.
    ///
    /// In a damaged stream the first walk may have met a wrong one, and the
    /// second yet another: that is given then, so that no page is numbered by
    /// another size than the last.
    pub(crate) fn late(late: Option<Self>, size: TargetPageSize) -> Option<Self> {
        match late {
            None | Some(Self::Unknown) => Some(Self::Likely(size)),
            Some(Self::Likely(_)) => Some(Self::Given(size)),
            Some(Self::Given(_)) => None,
        }
    }
}
