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
//!
//! Not read: mapped-ram (the pages of such a stream have fixed places in the
//! file) and the encodings that [`record`] names.

pub(crate) mod block;
pub(crate) mod index;
pub(crate) mod record;
pub(crate) mod resync;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::section::{Section, SectionType};
use crate::units::{BlockId, BlockOffset, StreamOffset, TargetPageSize, index as to_index};
use crate::wire::{self, limit, ram_flag};

pub use block::RamBlock;
pub use index::{BlockPages, PageRun, PageSource, RunContent};
pub use record::{PageRecord, RecordContent};

use block::BlockList;
use index::IndexBuilder;
use record::{Certainty, PageRecords, RecordState};

/// How often the index pass says how far it is, in records.
const RECORDS_PER_REPORT: u64 = 8192;

/// One page of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page<'a> {
    /// The stream does not hold it.
    Absent,
    /// Every byte is this one.
    Fill(u8),
    /// Its bytes, as they stand in the stream: one target page.
    Data(&'a [u8]),
}

/// The RAM blocks of a stream and where each of their pages is.
#[derive(Debug)]
pub struct Ram<'a> {
    input: &'a [u8],
    page_size: TargetPageSize,
    list: BlockList,
    pages: Vec<BlockPages>,
    pages_per_pass: Vec<u64>,
    pass_count: u64,
    /// Where the block list ends.
    first_record: StreamOffset,
    resumed: Vec<(StreamOffset, Option<BlockId>)>,
}

impl<'a> Ram<'a> {
    /// The size of a target page.
    pub fn page_size(&self) -> TargetPageSize {
        self.page_size
    }

    /// The blocks, in the order of the block list.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = (BlockId, &RamBlock, &BlockPages)> {
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
    pub fn pages(&self, id: BlockId) -> Option<&BlockPages> {
        self.pages.get(id.0)
    }

    /// Pages of a block that no record holds.
    pub fn absent_pages(&self, id: BlockId) -> u64 {
        let (Some(block), Some(pages)) = (self.block(id), self.pages(id)) else { return 0 };
        let all = self.page_size.pages_in(block.used_length);
        all - pages.data_pages() - pages.fill_pages()
    }

    /// How many times QEMU went over the blocks: 1 for a guest that was
    /// stopped, more for a live one. 0 if there is no page record.
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
    pub fn page(&self, id: BlockId, offset: BlockOffset) -> Page<'a> {
        match self.pages(id).map_or(PageSource::Absent, |pages| pages.source(offset)) {
            PageSource::Absent => Page::Absent,
            PageSource::Fill(byte) => Page::Fill(byte),
            PageSource::Data(at) => self.data(at).map_or(Page::Absent, Page::Data),
        }
    }

    /// The page of data at `at`. The index holds only pages that were there.
    pub(crate) fn data(&self, at: StreamOffset) -> Option<&'a [u8]> {
        let start = to_index(at.0)?;
        let end = start.checked_add(to_index(self.page_size.bytes())?)?;
        self.input.get(start..end)
    }

    /// All of the input, for copies of many pages.
    pub(crate) fn input(&self) -> &'a [u8] {
        self.input
    }

    /// All page records again, in the order of the stream, superseded ones
    /// included. `sections` are those of the `ram` handler.
    pub(crate) fn records<'s>(
        &'s self,
        sections: impl Iterator<Item = &'s Section>,
    ) -> impl Iterator<Item = PageRecord> {
        let mut state = RecordState::new(self.page_size, Certainty::Settled);
        let bodies = sections.map(|section| match section.kind {
            SectionType::Start => self.first_record,
            _ => section.body,
        });
        let mut bodies = bodies.filter_map(|at| Some(Cursor::new(self.input.get(to_index(at.0)?..)?, at)));
        let mut records: Option<PageRecords<'_, '_>> = None;
        std::iter::from_fn(move || {
            loop {
                // The walk has been here: these records have no errors.
                if let Some(Ok(record)) = records.as_mut().and_then(Iterator::next) {
                    return Some(record);
                }
                state = records.as_ref().map_or(state, PageRecords::state);
                let body = bodies.next()?;
                // Behind a gap CONTINUE means what the salvage found out.
                if let Ok(nth) = self.resumed.binary_search_by_key(&body.offset(), |(at, _)| *at) {
                    state.current = self.resumed.get(nth).and_then(|(_, current)| *current);
                }
                records = Some(PageRecords::new(body, &self.list, state));
            }
        })
    }
}

/// Reads the bodies of the `ram` section as the walk meets them.
pub(crate) struct RamReader<'a, 'p> {
    input: &'a [u8],
    list: Option<BlockList>,
    first_record: StreamOffset,
    state: RecordState,
    /// The page size that records have been indexed with.
    indexed_size: TargetPageSize,
    builders: Vec<IndexBuilder>,
    passes: PassCounter,
    progress: &'p Progress,
    /// The last record that was read.
    last: Option<PageRecord>,
    /// Where a salvage went on behind a gap, and with which block.
    resumed: Vec<(StreamOffset, Option<BlockId>)>,
}

/// Counts passes: each begins where the order of pages starts over.
#[derive(Default)]
struct PassCounter {
    count: u64,
    last: Option<(BlockId, u64)>,
    /// Records of each pass; the last of [`PASSES`](limit::PASSES) has those
    /// of all further ones too.
    pages: Vec<u64>,
}

impl PassCounter {
    #[inline]
    fn note(&mut self, block: BlockId, page: u64) {
        if self.last.is_none_or(|last| (block, page) <= last) {
            self.count += 1;
            if self.pages.len() < limit::PASSES {
                self.pages.push(0);
            }
        }
        self.last = Some((block, page));
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
            progress,
            last: None,
            resumed: Vec::new(),
        }
    }

    pub(crate) fn has_started(&self) -> bool {
        self.list.is_some()
    }

    /// Reads the START body: block list, then records like any other body.
    pub(crate) fn read_start(
        &mut self,
        cursor: &mut Cursor<'a>,
        version_id: u32,
        layout: RamLayout,
    ) -> Result<()> {
        self.read_list(cursor, version_id, layout)?;
        self.read_records(cursor)
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
        if layout.mapped_ram {
            let feature = "mapped-ram (capability mapped-ram)".to_owned();
            return Err(Error::at(at, ErrorKind::Unsupported { feature }));
        }
        let list = BlockList::parse(cursor, word & !ram_flag::MASK_256, layout.mr_addr)?;
        self.builders = list.blocks.iter().map(|_| IndexBuilder::default()).collect();
        self.list = Some(list);
        self.first_record = cursor.offset();
        Ok(())
    }

    /// Reads page records up to the end of a body, and indexes them. On an
    /// error the cursor stands where the bad record begins, and all before it
    /// are indexed.
    pub(crate) fn read_records(&mut self, cursor: &mut Cursor<'a>) -> Result<()> {
        let Some(list) = &self.list else { return Ok(()) };
        let mut records = PageRecords::new(*cursor, list, self.state);
        let mut until_report = RECORDS_PER_REPORT;
        while let Some(record) = records.next() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    self.state = records.state();
                    *cursor = records.cursor();
                    return Err(error);
                }
            };
            self.last = Some(record);
            let page_size = records.page_size();
            let page = page_size.page_of(record.offset);
            self.passes.note(record.block, page);
            if let Some(builder) = self.builders.get_mut(record.block.0) {
                builder.push(page, record.content, record.payload, page_size);
            }
            until_report -= 1;
            if until_report == 0 {
                self.progress.set(record.payload.0);
                until_report = RECORDS_PER_REPORT;
            }
        }
        self.state = records.state();
        *cursor = records.cursor();
        self.progress.set(cursor.offset().0);
        Ok(())
    }

    /// The page size that the walk has found out too late: records were
    /// indexed with another one before, and the walk must be done again.
    pub(crate) fn late_page_size(&self) -> Option<TargetPageSize> {
        (self.state.page_size != self.indexed_size).then_some(self.state.page_size)
    }

    /// The finished index; `None` if no `ram` section was met.
    pub(crate) fn finish(self) -> Option<Ram<'a>> {
        let page_size = self.state.page_size;
        Some(Ram {
            input: self.input,
            page_size,
            list: self.list?,
            pages: self.builders.into_iter().map(|builder| builder.finish(page_size)).collect(),
            pages_per_pass: self.passes.pages,
            pass_count: self.passes.count,
            first_record: self.first_record,
            resumed: self.resumed,
        })
    }
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

/// What the configuration says of the section's layout.
#[derive(Clone, Copy, Default)]
pub(crate) struct RamLayout {
    pub(crate) mapped_ram: bool,
    pub(crate) mr_addr: bool,
}
