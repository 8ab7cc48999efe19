//! The page index: for each page of a block, which record holds it.
//!
//! Records that follow each other in block and stream are one [`Extent`], so
//! an ascending pass of any length costs a few of them, and the worst order
//! one of 24 bytes a record. Nothing is sized by what the stream claims: an
//! index grows with the records met.
//!
//! A pass over a block ascends, the next pass starts over. So extents are
//! kept in *runs*, each sorted and without overlaps, newest last. A record
//! that does not ascend starts a run. A run is laid over the one before it as
//! soon as it has reached half its length, so every order of records costs
//! n log n in all, as a merge sort does, and a page is found in the one run
//! that is left at the end.

use crate::ram::record::RecordContent;
use crate::units::{BlockOffset, StreamOffset, TargetPageSize};

/// Bytes from one fill record's byte to the next's, if they are neighbours.
const FILL_STRIDE: u64 = 9;
/// Bytes between two neighbouring pages of data: the second one's word.
const WORD_LEN: u64 = 8;

/// Pages in a row whose records are in a row too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Extent {
    /// Number of the first page in the block.
    page: u64,
    /// Where the first page's payload is.
    payload: u64,
    /// How many pages; at least 1.
    count: u32,
    content: RecordContent,
}

impl Extent {
    /// Number of the page behind the last. Cannot overflow: pages number at
    /// most 2⁵⁶, as page sizes are 256 and up.
    fn end(&self) -> u64 {
        self.page + u64::from(self.count)
    }

    fn stride(&self, page_size: TargetPageSize) -> u64 {
        match self.content {
            RecordContent::Fill(_) => FILL_STRIDE,
            RecordContent::Data => page_size.bytes() + WORD_LEN,
        }
    }

    fn payload_of(&self, page: u64, page_size: TargetPageSize) -> u64 {
        self.payload + (page - self.page) * self.stride(page_size)
    }

    /// The part of it from page `from` to before page `to`, both inside.
    fn slice(&self, from: u64, to: u64, page_size: TargetPageSize) -> Self {
        let count = u32::try_from(to - from).unwrap_or(u32::MAX);
        Self { page: from, payload: self.payload_of(from, page_size), count, ..*self }
    }

    /// Takes in `next` if it goes on where this ends, in block and stream.
    fn absorb(&mut self, next: &Self, page_size: TargetPageSize) -> bool {
        let goes_on = next.page == self.end()
            && next.content == self.content
            && next.payload == self.payload_of(next.page, page_size);
        let Some(count) = self.count.checked_add(next.count).filter(|_| goes_on) else {
            return false;
        };
        self.count = count;
        true
    }
}

/// Extents in ascending order, without overlaps.
type Run = Vec<Extent>;

fn append(run: &mut Run, extent: Extent, page_size: TargetPageSize) {
    if !run.last_mut().is_some_and(|last| last.absorb(&extent, page_size)) {
        run.push(extent);
    }
}

/// Lays `newer` over `older`: where both have a page, the newer one stays.
fn overlay(older: Run, newer: Run, page_size: TargetPageSize) -> Run {
    let mut merged = Run::with_capacity(older.len() + newer.len());
    let mut older = older.into_iter();
    let mut old = older.next();
    for new in newer {
        // What lies before the newer extent stays, the head of one that
        // reaches into it too.
        while let Some(extent) = old.filter(|extent| extent.page < new.page) {
            if extent.end() <= new.page {
                append(&mut merged, extent, page_size);
                old = older.next();
            } else {
                append(&mut merged, extent.slice(extent.page, new.page, page_size), page_size);
                old = Some(extent.slice(new.page, extent.end(), page_size));
            }
        }
        // What the newer extent covers goes, the tail that looks out stays.
        while let Some(extent) = old.filter(|extent| extent.page < new.end()) {
            old = if extent.end() <= new.end() {
                older.next()
            } else {
                Some(extent.slice(new.end(), extent.end(), page_size))
            };
        }
        append(&mut merged, new, page_size);
    }
    for extent in old.into_iter().chain(older) {
        append(&mut merged, extent, page_size);
    }
    merged
}

/// Collects the records of one block, in the order of the stream.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    /// Each at least twice as long as the next, but for the last two.
    runs: Vec<Run>,
    records: u64,
}

impl IndexBuilder {
    /// Notes a record. `page` is the number of its page in the block.
    #[inline]
    pub(crate) fn push(
        &mut self,
        page: u64,
        content: RecordContent,
        payload: StreamOffset,
        page_size: TargetPageSize,
    ) {
        self.records += 1;
        let extent = Extent { page, payload: payload.0, count: 1, content };
        match self.runs.last_mut() {
            Some(run) if run.last().is_none_or(|last| last.end() <= page) => append(run, extent, page_size),
            _ => self.start_run(extent, page_size),
        }
    }

    #[cold]
    fn start_run(&mut self, first: Extent, page_size: TargetPageSize) {
        while let [.., older, newer] = self.runs.as_slice() {
            if older.len() / 2 > newer.len() {
                break;
            }
            self.merge_last_two(page_size);
        }
        self.runs.push(vec![first]);
    }

    fn merge_last_two(&mut self, page_size: TargetPageSize) {
        if let (Some(newer), Some(older)) = (self.runs.pop(), self.runs.pop()) {
            self.runs.push(overlay(older, newer, page_size));
        }
    }

    pub(crate) fn finish(mut self, page_size: TargetPageSize) -> BlockPages {
        while self.runs.len() > 1 {
            self.merge_last_two(page_size);
        }
        let mut extents = self.runs.pop().unwrap_or_default();
        extents.shrink_to_fit();
        let pages_of = |wanted: fn(&RecordContent) -> bool| {
            extents
                .iter()
                .filter(|extent| wanted(&extent.content))
                .map(|extent| u64::from(extent.count))
                .sum()
        };
        BlockPages {
            data_pages: pages_of(|content| *content == RecordContent::Data),
            fill_pages: pages_of(|content| *content != RecordContent::Data),
            records: self.records,
            extents,
            page_size,
        }
    }
}

/// The pages of one block: which record holds each, the last one met.
#[derive(Debug)]
pub struct BlockPages {
    extents: Run,
    page_size: TargetPageSize,
    data_pages: u64,
    fill_pages: u64,
    records: u64,
}

/// Where the content of one page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSource {
    /// No record holds the page.
    Absent,
    /// Every byte of the page is this one.
    Fill(u8),
    /// The page's bytes begin here.
    Data(StreamOffset),
}

/// Pages in a row with one kind of content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun {
    /// Where in the block the first page is.
    pub offset: BlockOffset,
    /// How many pages; at least 1.
    pub pages: u64,
    /// What they hold.
    pub content: RunContent,
}

/// What the pages of a [`PageRun`] hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunContent {
    /// Every byte of every page is this one.
    Fill(u8),
    /// Data: the first page begins at `first`, each further one `stride`
    /// bytes on.
    Data {
        /// Where the first page's bytes begin.
        first: StreamOffset,
        /// Bytes from the begin of one page to that of the next.
        stride: u64,
    },
}

impl BlockPages {
    /// Pages whose last record holds data.
    pub fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// Pages whose last record is a fill byte.
    pub fn fill_pages(&self) -> u64 {
        self.fill_pages
    }

    /// Records beyond the first of each page.
    pub fn resent_pages(&self) -> u64 {
        self.records - self.data_pages - self.fill_pages
    }

    /// Where the content of the page that holds `offset` is.
    pub fn source(&self, offset: BlockOffset) -> PageSource {
        let page = self.page_size.page_of(offset);
        let before = self.extents.partition_point(|extent| extent.page <= page);
        let Some(extent) = before.checked_sub(1).and_then(|at| self.extents.get(at)) else {
            return PageSource::Absent;
        };
        match extent.content {
            _ if page >= extent.end() => PageSource::Absent,
            RecordContent::Fill(byte) => PageSource::Fill(byte),
            RecordContent::Data => PageSource::Data(StreamOffset(extent.payload_of(page, self.page_size))),
        }
    }

    /// The runs of pages that touch the bytes from `from` to before `to`, in
    /// ascending order, cut to whole pages of that range. Absent pages are
    /// the gaps between them.
    pub fn runs(&self, from: BlockOffset, to: BlockOffset) -> impl Iterator<Item = PageRun> + '_ {
        let size = self.page_size;
        // An empty range holds no page, not the one that it lies in.
        let end = if from < to { size.pages_in(to.0) } else { 0 };
        let first = size.page_of(from);
        let start = self.extents.partition_point(|extent| extent.end() <= first);
        let extents = self.extents.get(start..).unwrap_or_default();
        extents.iter().take_while(move |extent| extent.page < end).map(move |extent| {
            let cut = extent.slice(extent.page.max(first), extent.end().min(end), size);
            let content = match cut.content {
                RecordContent::Fill(byte) => RunContent::Fill(byte),
                RecordContent::Data => {
                    RunContent::Data { first: StreamOffset(cut.payload), stride: cut.stride(size) }
                }
            };
            PageRun { offset: BlockOffset(cut.page << size.bits()), pages: cut.count.into(), content }
        })
    }
}

impl BlockPages {
    /// Where the payload of the page's last record begins; `None` if there is
    /// no record.
    pub fn last_record(&self, offset: BlockOffset) -> Option<StreamOffset> {
        let page = self.page_size.page_of(offset);
        let before = self.extents.partition_point(|extent| extent.page <= page);
        let extent = self.extents.get(before.checked_sub(1)?).filter(|extent| page < extent.end())?;
        Some(StreamOffset(extent.payload_of(page, self.page_size)))
    }

    /// How many pages have their last record before `place`.
    pub(crate) fn last_sent_before(&self, place: StreamOffset) -> u64 {
        let sent_before = |extent: &Extent| match place.0.checked_sub(extent.payload) {
            Some(len) => len.div_ceil(extent.stride(self.page_size)).min(extent.count.into()),
            None => 0,
        };
        self.extents.iter().map(sent_before).sum()
    }
}
