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
pub(crate) mod filled;
pub(crate) mod index;
pub(crate) mod join;
mod layers;
pub(crate) mod mapped;
pub(crate) mod page;
mod reader;
pub(crate) mod record;
pub(crate) mod resync;
pub(crate) mod sources;
pub(crate) mod stretch;
pub(crate) mod xbzrle;

use std::borrow::Cow;
use std::sync::Arc;

use crate::bytes::Bytes;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::DoubtfulPage;
use crate::section::{Section, SectionType};
use crate::units::{BlockId, BlockOffset, StreamOffset, TargetPageSize, index as to_index};

pub use block::RamBlock;
pub use index::{BlockPages, Chain, PageRun, PageSource, RunContent};
pub(crate) use reader::{PageSizeHint, RamReader};
pub use record::{PageRecord, RecordContent};
pub use stretch::{PageTaker, Stretch};

use block::BlockList;
use mapped::MappedPages;
use page::PageReader;
use record::{Certainty, PageRecords, RecordState};
use sources::Sources;

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
    input: Bytes<'a>,
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
            input: Bytes::default(),
            sources: Sources::new(Bytes::default()),
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
    pub(crate) fn input(&self) -> Bytes<'a> {
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
    pub fn supply(&mut self, id: BlockId, content: impl Into<Bytes<'a>>) -> Result<()> {
        let content = content.into();
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
        let bytes = range.and_then(|(start, end)| self.input.slice().get(start..end));
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
