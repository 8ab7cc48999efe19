//! Guest RAM: the `ram` section, version 4.
//!
//! ```text
//! START   block list, EOS
//! PART    page records, EOS            any number
//! END     page records, EOS
//! ```
//!
//! Each body is read by its own rules, without the stream's description, and
//! indexed as it goes by. A page is sent again when the guest has written to
//! it meanwhile; what its last record says is what the guest's memory held.
//! With mapped-ram the block list has the pages, and the bodies nothing.

pub(crate) mod block;
mod extent;
pub(crate) mod index;
pub(crate) mod join;
mod layers;
pub(crate) mod mapped;
pub(crate) mod page;
pub(crate) mod record;
pub(crate) mod resync;
pub(crate) mod sources;
pub(crate) mod stretch;
pub(crate) mod xbzrle;

use std::borrow::Cow;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::DoubtfulPage;
use crate::progress::Progress;
use crate::section::{Section, SectionType};
use crate::units::{BlockId, BlockOffset, StreamOffset, TargetPageSize, index as to_index};
use crate::wire::{self, limit, ram_flag};

pub use block::RamBlock;
pub use index::{BlockPages, Chain, PageRun, PageSource, RunContent};
pub use record::{PageRecord, RecordContent};
pub use stretch::{PageTaker, Stretch};

use block::{BlockList, RamLayout};
use index::IndexBuilder;
use mapped::MappedPages;
use page::PageReader;
use record::{Certainty, PageRecords, RecordState};
use sources::Sources;

/// How often the index pass says how far it is, in records.
const RECORDS_PER_REPORT: u64 = 256;

/// One page of guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Page<'a> {
    /// The stream does not hold it.
    Absent,
    /// Every byte is this one.
    Fill(u8),
    /// Its bytes, one target page: as they stand in the stream, or put
    /// together if they are not there as such.
    Data(Cow<'a, [u8]>),
}

/// The RAM blocks of a stream and where each of their pages is.
#[derive(Debug)]
pub struct Ram<'a> {
    input: &'a [u8],
    sources: Sources<'a>,
    page_size: TargetPageSize,
    list: Arc<BlockList>,
    pages: Vec<BlockPages<'a>>,
    pages_per_pass: Vec<u64>,
    pass_count: u64,
    /// Whether pages went through multifd channels, by words that say so.
    has_flushes: bool,
    has_mr_addr: bool,
    is_tolerant: bool,
    /// Whether END was read.
    has_ended: bool,
    /// Where the block list ends.
    first_record: StreamOffset,
    resumed: Vec<(StreamOffset, Option<BlockId>)>,
}

impl<'a> Ram<'a> {
    /// RAM of which nothing is known but an index.
    fn with_index(list: Arc<BlockList>, page_size: TargetPageSize, pages: Vec<BlockPages<'a>>) -> Self {
        Self {
            input: &[],
            sources: Sources::new(&[]),
            page_size,
            list,
            pages,
            pages_per_pass: Vec::new(),
            pass_count: 0,
            has_flushes: false,
            has_mr_addr: false,
            is_tolerant: false,
            has_ended: false,
            first_record: StreamOffset::default(),
            resumed: Vec::new(),
        }
    }

    /// The size of a target page.
    pub fn page_size(&self) -> TargetPageSize {
        self.page_size
    }

    /// The blocks, in the order of the block list.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (BlockId, &RamBlock, &BlockPages<'a>)> {
        self.list
            .blocks
            .iter()
            .zip(&self.pages)
            .enumerate()
            .map(|(id, (block, pages))| (BlockId(id), block, pages))
    }

    /// The block named `idstr`.
    pub fn find(&self, idstr: &[u8]) -> Option<BlockId> {
        self.list.find(idstr)
    }

    /// One block; `None` if there is no such number.
    pub fn block(&self, id: BlockId) -> Option<&RamBlock> {
        self.list.get(id)
    }

    /// The page index of one block; `None` if there is no such number.
    pub fn pages(&self, id: BlockId) -> Option<&BlockPages<'a>> {
        self.pages.get(id.0)
    }

    /// Pages of a block that no record holds.
    pub fn absent_pages(&self, id: BlockId) -> u64 {
        let (Some(block), Some(pages)) = (self.block(id), self.pages(id)) else { return 0 };
        let all = self.page_size.pages_in(block.used_length);
        all - pages.data_pages() - pages.fill_pages()
    }

    /// Pages that XBZRLE records change but no record holds whole: they count
    /// as absent. How many, and the offset of the first such record.
    pub(crate) fn orphans(&self) -> Option<(u64, StreamOffset)> {
        let all = self.pages.iter().filter_map(BlockPages::orphans);
        all.reduce(|(count, first), (more, at)| (count + more, first.min(at)))
    }

    /// Whether this is the main channel of a multifd migration, and the other
    /// channels are not here. It looks like any stream but for its pages:
    /// those of zeros may be there, those of data are not, and no guest is
    /// without data. MULTIFD_FLUSH alone shows nothing: QEMU 8.1.0 wrote it
    /// into every stream.
    pub(crate) fn is_lone_channel(&self) -> bool {
        let any = |count: fn(&BlockPages<'a>) -> u64| self.pages.iter().any(|pages| count(pages) > 0);
        let is_sent = self.has_flushes || any(BlockPages::fill_pages);
        // What is left of a damaged stream may well be its first zeros.
        !self.is_tolerant && is_sent && !any(BlockPages::data_pages) && !self.is_whole()
    }

    /// Whether this may be the main channel of a multifd migration that went
    /// on by postcopy (QEMU 10.1 and later), the other channels not being
    /// here: it has the pages that were sent then.
    pub(crate) fn may_lack_channels(&self) -> bool {
        !self.is_tolerant && self.has_flushes && !self.is_lone_channel() && !self.is_whole()
    }

    /// Whether all pages are there that can be: with `x-ignore-shared` blocks
    /// may be missing.
    fn is_whole(&self) -> bool {
        self.has_mr_addr || self.blocks().all(|(id, ..)| self.absent_pages(id) == 0)
    }

    /// Where the block list ends.
    pub(crate) fn first_record(&self) -> StreamOffset {
        self.first_record
    }

    /// The blocks of mapped-ram whose bitmap was not written, the last one
    /// first, unless they were taken by content.
    pub(crate) fn unwritten(&self) -> impl Iterator<Item = BlockId> + '_ {
        let ids = (0..self.pages.len()).rev().map(BlockId).filter(|_| !self.has_ended);
        let mapped = ids.filter_map(|id| Some((id, self.pages(id)?.as_mapped()?)));
        mapped.take_while(|(_, pages)| pages.is_blank()).map(|(id, _)| id)
    }

    /// Whether pages have fixed places: mapped-ram.
    pub(crate) fn is_mapped(&self) -> bool {
        !self.list.mapped.is_empty()
    }

    /// Bytes of RAM in blocks that the block list was not read to.
    pub(crate) fn unlisted(&self) -> u64 {
        self.list.unlisted
    }

    /// Whether END was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The stream itself.
    pub(crate) fn input(&self) -> &'a [u8] {
        self.input
    }

    /// How many times QEMU went over the blocks: 1 for a guest that was
    /// stopped, more for a live one. 0 if there is no page record; 1 whatever
    /// happened if pages are compressed, as their order does not tell.
    pub fn pass_count(&self) -> u64 {
        self.pass_count
    }

    /// How many page records each pass has: the first 1024, and in the last
    /// place all further ones together.
    pub fn pages_per_pass(&self) -> &[u64] {
        &self.pages_per_pass
    }

    /// The page that holds `offset` of a block, in any order, at the price of
    /// a binary search. Absent outside the block.
    ///
    /// # Errors
    /// If the page is compressed or of XBZRLE records, and what the stream has
    /// for it cannot be decoded; [`ErrorKind::GoneBy`] if the stream went by.
    pub fn page(&self, id: BlockId, offset: BlockOffset) -> Result<Page<'a>> {
        let source = self.pages(id).map_or(PageSource::Absent, |pages| pages.source(offset));
        Ok(match source {
            PageSource::Absent => Page::Absent,
            PageSource::Fill(byte) => Page::Fill(byte),
            PageSource::Data(at) => self.data(at).map_or(Page::Absent, |data| Page::Data(data.into())),
            PageSource::Image => return Err(page::gone_by()),
            PageSource::Compressed(_) | PageSource::Xbzrle(_) => {
                Page::Data(PageReader::new(self).read(&source)?.to_vec().into())
            }
        })
    }

    /// Takes pages as far as they can be decoded from here on. Gives those
    /// that cannot, and those that are made by records on both sides of one of
    /// the `gaps`, which ascend, so that a change may be laid over the wrong
    /// page; each with its last record's place.
    pub(crate) fn tolerate(&mut self, gaps: &[StreamOffset]) -> Vec<DoubtfulPage> {
        let mut doubtful = Vec::new();
        let mut reader = PageReader::new(self);
        for (block, _, pages) in self.blocks() {
            let across = pages.made_across(gaps);
            let broken = pages.encoded().filter(|(_, source)| reader.read(source).is_err());
            let mut offsets: Vec<BlockOffset> = across.chain(broken.map(|(offset, _)| offset)).collect();
            offsets.sort_unstable();
            offsets.dedup();
            let place = |offset| pages.last_record(offset).unwrap_or_default();
            doubtful.extend(offsets.into_iter().map(|offset| DoubtfulPage {
                block,
                offset,
                pages: 1,
                payload: place(offset),
            }));
        }
        self.is_tolerant = true;
        doubtful
    }

    /// Whether pages that cannot be decoded are taken as far as they can be.
    pub(crate) fn is_tolerant(&self) -> bool {
        self.is_tolerant
    }

    /// Supplies the content of a block that the stream does not have
    /// (`x-ignore-shared`): all of its bytes, from the file that was shared.
    /// What the stream has of it is left out.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] if `content` is not as long as the block.
    pub fn supply(&mut self, id: BlockId, content: &'a [u8]) -> Result<()> {
        let (Some(block), Some(pages)) = (self.list.get(id), self.pages.get_mut(id.0)) else { return Ok(()) };
        let place = self.sources.add(content).filter(|_| content.len() as u64 == block.used_length);
        let Some(place) = place else {
            let met = format!("{:#x} bytes", content.len());
            let expected = format!("{:#x}, the length of RAM block \"{}\"", block.used_length, block.idstr);
            let kind = ErrorKind::Malformed { what: "shared file", met, expected };
            return Err(Error::at(block.offset, kind));
        };
        let whole = MappedPages::whole(place, block.used_length, self.page_size);
        *pages = BlockPages::mapped(whole, self.page_size);
        Ok(())
    }

    /// The page of data at `at`. The index holds only pages that were there;
    /// the last one of a block may be shorter.
    pub(crate) fn data(&self, at: StreamOffset) -> Option<&'a [u8]> {
        let bytes = self.sources.from(at)?;
        Some(bytes.get(..to_index(self.page_size.bytes())?).unwrap_or(bytes))
    }

    /// Whether a place is in the stream itself, not in a file beside it.
    pub(crate) fn is_in_stream(&self, place: StreamOffset) -> bool {
        self.sources.is_stream(place)
    }

    /// The bytes that pages are in.
    pub(crate) fn sources(&self) -> &Sources<'a> {
        &self.sources
    }

    /// All page records again, in the order of the stream, superseded ones
    /// included. `sections` are those of the `ram` handler.
    pub(crate) fn records<'s>(
        &'s self,
        sections: impl Iterator<Item = &'s Section>,
    ) -> impl Iterator<Item = PageRecord> {
        let mut state = RecordState::new(self.page_size, Certainty::Settled);
        // With mapped-ram there are none.
        let sections = sections.filter(|_| self.list.mapped.is_empty());
        let mut bodies = sections.map(|section| self.records_in(section));
        let mut records: Option<PageRecords<'_, '_>> = None;
        std::iter::from_fn(move || {
            loop {
                // The walk has been here: these records have no errors.
                if let Some(Ok(record)) = records.as_mut().and_then(Iterator::next) {
                    return Some(record);
                }
                state = records.as_ref().map_or(state, PageRecords::state);
                let body = bodies.next()?;
                state.current = self.current_at(body.offset(), state.current);
                records = Some(PageRecords::new(body, &self.list, state));
            }
        })
    }

    /// Where the page records of a section stand: not a byte behind its end,
    /// where a salvage has found something else, or nothing.
    fn records_in(&self, section: &Section) -> Cursor<'a> {
        let at = if section.kind == SectionType::Start { self.first_record } else { section.body };
        let range = to_index(at.0).zip(to_index(section.body_end.0));
        let bytes = range.and_then(|(start, end)| self.input.get(start..end));
        Cursor::new(bytes.unwrap_or_default(), at)
    }

    /// The block of CONTINUE at the begin of a body, `before` being that of
    /// the body before: behind a gap it is what the salvage found out.
    fn current_at(&self, body: StreamOffset, before: Option<BlockId>) -> Option<BlockId> {
        match self.resumed.binary_search_by_key(&body, |(at, _)| *at) {
            Ok(nth) => self.resumed.get(nth).and_then(|(_, current)| *current),
            Err(_) => before,
        }
    }
}

/// Reads the bodies of the `ram` section as the walk meets them.
pub(crate) struct RamReader<'a, 'p> {
    input: &'a [u8],
    list: Option<Arc<BlockList>>,
    first_record: StreamOffset,
    state: RecordState,
    /// The page size that records have been indexed with.
    indexed_size: TargetPageSize,
    builders: Vec<IndexBuilder>,
    passes: PassCounter,
    has_flushes: bool,
    has_mr_addr: bool,
    progress: &'p Progress,
    /// The last record that was read.
    last: Option<PageRecord>,
    /// Where a salvage went on behind a gap, and with which block.
    resumed: Vec<(StreamOffset, Option<BlockId>)>,
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
struct PassCounter {
    count: u64,
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
    pub(crate) fn new(input: &'a [u8], page_size: PageSizeHint, progress: &'p Progress) -> Self {
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
    input: &'a [u8],
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
