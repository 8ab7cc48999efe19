//! The page index: for each page of a block, which record holds it.
//!
//! Records that follow each other in block and stream are one [`Extent`], so
//! an ascending pass of any length costs a few of them. [`Layers`] has them as
//! they come, and the worst order costs 10 bytes a page. Nothing is sized by
//! what the stream claims: an index grows with the records met.
//!
//! XBZRLE records say what changed since the page's record before. They are
//! kept beside the extents, 16 bytes each; those behind a page's extent make
//! the page, together with it, those before it are superseded.
//!
//! mapped-ram needs no index: its bitmap is one.
//!
//! Where a stream goes by and cannot be gone back to, it is indexed stretch by
//! stretch. Each has an index of its own; once its pages are in their images,
//! it is laid over what came before, as a run like any other.

use std::ops::Range;

use super::extent::{Content, Extent};
use super::layers::{Extents, ExtentsIn, Layers};
use super::mapped::MappedPages;
use super::record::{PageRecord, RecordContent};
use super::sources::is_in_stream;
use crate::units::{BlockOffset, StreamOffset, TargetPageSize};

/// Collects the records of one block, in the order of the stream.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    layers: Layers,
    /// In the order of the stream.
    deltas: Vec<Delta>,
    records: u64,
}

/// An XBZRLE record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Delta {
    page: u64,
    payload: StreamOffset,
}

impl IndexBuilder {
    /// Whether no record has been noted.
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

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
        let content = match content {
            RecordContent::Fill(byte) => Content::Fill(byte),
            RecordContent::Data => Content::Data,
            RecordContent::Compressed => Content::Compressed,
            RecordContent::Xbzrle => return self.deltas.push(Delta { page, payload }),
        };
        self.layers.push(Extent::page(page, payload.0, content), page_size);
    }

    /// Notes `count` records that go on where `record` ends. Gives the last.
    #[inline]
    pub(crate) fn push_neighbours(
        &mut self,
        record: &PageRecord,
        count: u64,
        page_size: TargetPageSize,
    ) -> PageRecord {
        let content = match record.content {
            RecordContent::Fill(byte) => Content::Fill(byte),
            // Of others no two are neighbours.
            _ => Content::Data,
        };
        let one = Extent::page(page_size.page_of(record.offset), record.payload.0, content);
        let (first, last) = (one.page + 1, one.page + count);
        self.records += count;
        self.layers.push(one.slice(first, last + 1, page_size), page_size);
        PageRecord {
            offset: BlockOffset(last << page_size.bits()),
            payload: StreamOffset(one.payload_of(last, page_size)),
            ..*record
        }
    }

    /// Notes a page that stands at `place`, its neighbours right beside it.
    pub(crate) fn push_packed(&mut self, page: u64, place: StreamOffset, page_size: TargetPageSize) {
        self.records += 1;
        self.layers.push(Extent::page(page, place.0, Content::Packed), page_size);
    }

    pub(crate) fn finish<'a>(self, page_size: TargetPageSize) -> BlockPages<'a> {
        finished(self.layers.finish(page_size), self.deltas, self.records, page_size)
    }
}

/// The pages of these extents and deltas, which may be in any order.
fn finished<'a>(
    extents: Extents,
    deltas: Vec<Delta>,
    records: u64,
    page_size: TargetPageSize,
) -> BlockPages<'a> {
    let (deltas, orphans) = sort_deltas(deltas, &extents, page_size);
    let count = |is_one: fn(Content) -> bool| -> u64 {
        let counted = extents.iter().filter(|extent| is_one(extent.content));
        counted.map(|extent| u64::from(extent.count)).sum()
    };
    let all = count(|_| true);
    let mut fill_pages = count(|content| matches!(content, Content::Fill(_)));
    // What is in an image and no longer in the stream came there so.
    let mut xbzrle_pages = count(|content| content == Content::Image);
    for chain in deltas.chunk_by(|one, next| one.page == next.page) {
        let base = chain.first().and_then(|delta| extents.find(delta.page));
        fill_pages -= u64::from(base.is_some_and(|base| matches!(base.content, Content::Fill(_))));
        xbzrle_pages += u64::from(base.is_some_and(|base| base.content != Content::Image));
    }
    BlockPages {
        records: records - orphans.records,
        data_pages: all - fill_pages,
        fill_pages,
        xbzrle_pages,
        orphan_pages: orphans.pages,
        first_orphan: orphans.first,
        pages: Pages::Records { extents, deltas },
        page_size,
    }
}

/// A stretch of a stream that goes by, and what came before it.
impl IndexBuilder {
    /// Finishes the index of a stretch. What XBZRLE records in it build on is
    /// in the image, if it is not in the stretch but in `earlier`.
    pub(crate) fn finish_stretch<'a>(
        mut self,
        earlier: &mut Self,
        page_size: TargetPageSize,
    ) -> BlockPages<'a> {
        let extents = self.layers.finish(page_size);
        let mut deltas = std::mem::take(&mut self.deltas);
        deltas.sort_unstable();
        let mut in_image: Vec<Extent> = Vec::new();
        deltas.retain(|delta| {
            let is_there = in_image.last().is_some_and(|last| last.page == delta.page)
                || extents.find(delta.page).is_some();
            if !is_there && earlier.layers.find(delta.page).is_some() {
                in_image.push(Extent::page(delta.page, 0, Content::Image));
            } else if !is_there {
                // No record may ever come that it builds on: its place is kept.
                earlier.deltas.push(*delta);
                earlier.records += 1;
                self.records -= 1;
                return false;
            }
            true
        });
        finished(extents.add(in_image), deltas, self.records, page_size)
    }

    /// Takes in a finished stretch, whose pages are in the image now.
    pub(crate) fn append(&mut self, stretch: &BlockPages<'_>) {
        let Pages::Records { extents, deltas } = &stretch.pages else { return };
        self.records += stretch.records;
        let chains = deltas.chunk_by(|one, next| one.page == next.page);
        let made = chains.filter_map(|chain| chain.last());
        let made = made.map(|last| Extent::page(last.page, last.payload.0, Content::Image));
        extents.iter().chain(made).for_each(|extent| self.layers.push(extent, stretch.page_size));
    }

    /// Whether a page may be other than zero by now.
    pub(crate) fn is_data(&self, page: u64) -> bool {
        self.layers.find(page).is_some_and(|extent| extent.content != Content::Fill(0))
    }

    /// Whether any record so far is of one of `pages`.
    pub(crate) fn has_any(&self, pages: &Range<u64>) -> bool {
        self.layers.has_any(pages)
    }
}

/// XBZRLE records that nothing stands before.
#[derive(Default)]
struct Orphans {
    records: u64,
    pages: u64,
    first: Option<StreamOffset>,
}

/// Sorts deltas by page, leaves out what a later record replaced, and counts
/// those of pages that have nothing to build on.
fn sort_deltas(
    mut deltas: Vec<Delta>,
    extents: &Extents,
    page_size: TargetPageSize,
) -> (Vec<Delta>, Orphans) {
    let mut orphans = Orphans::default();
    deltas.sort_unstable();
    let mut extents = extents.iter().peekable();
    let mut last_orphan = None;
    deltas.retain(|delta| {
        while extents.next_if(|extent| extent.end() <= delta.page).is_some() {}
        match extents.peek() {
            Some(extent) if extent.page <= delta.page => {
                delta.payload.0 > extent.payload_of(delta.page, page_size)
            }
            _ => {
                orphans.records += 1;
                orphans.pages += u64::from(last_orphan.replace(delta.page) != Some(delta.page));
                orphans.first = Some(orphans.first.map_or(delta.payload, |first| first.min(delta.payload)));
                false
            }
        }
    });
    deltas.shrink_to_fit();
    (deltas, orphans)
}

/// The pages of one block: which record holds each, the last one met.
#[derive(Debug)]
pub struct BlockPages<'a> {
    pages: Pages<'a>,
    page_size: TargetPageSize,
    data_pages: u64,
    fill_pages: u64,
    xbzrle_pages: u64,
    orphan_pages: u64,
    first_orphan: Option<StreamOffset>,
    records: u64,
}

#[derive(Debug)]
enum Pages<'a> {
    Records { extents: Extents, deltas: Vec<Delta> },
    Mapped(MappedPages<'a>),
}

/// Where the content of one page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSource<'r> {
    /// No record holds the page.
    Absent,
    /// Every byte of the page is this one.
    Fill(u8),
    /// The page's bytes begin here.
    Data(StreamOffset),
    /// A compressed page begins here, with its length.
    Compressed(StreamOffset),
    /// An earlier content of the page and what changed since.
    Xbzrle(Chain<'r>),
    /// The stream went by: what it held is in the page's image.
    Image,
}

/// A page that was sent, and then what changed in it, once or more often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain<'r> {
    base: Base,
    deltas: &'r [Delta],
}

/// What a chain of deltas builds on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Base {
    Fill(u8),
    Data(StreamOffset),
    Compressed(StreamOffset),
    Image,
}

impl Chain<'_> {
    /// The page before its first delta.
    pub fn base(&self) -> PageSource<'static> {
        match self.base {
            Base::Fill(byte) => PageSource::Fill(byte),
            Base::Data(at) => PageSource::Data(at),
            Base::Compressed(at) => PageSource::Compressed(at),
            Base::Image => PageSource::Image,
        }
    }

    /// Where the payload of each XBZRLE record is, in the order in which they
    /// apply.
    pub fn deltas(&self) -> impl ExactSizeIterator<Item = StreamOffset> + '_ {
        self.deltas.iter().map(|delta| delta.payload)
    }
}

/// Pages in a row with one kind of content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun<'r> {
    /// Where in the block the first page is.
    pub offset: BlockOffset,
    /// How many pages; at least 1.
    pub pages: u64,
    /// What they hold.
    pub content: RunContent<'r>,
}

/// What the pages of a [`PageRun`] hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunContent<'r> {
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
    /// One compressed page, which begins here, with its length.
    Compressed(StreamOffset),
    /// One page: an earlier content and what changed since.
    Xbzrle(Chain<'r>),
    /// Pages of a stream that went by: they are in their image.
    Image,
}

impl<'a> BlockPages<'a> {
    /// Pages that a bitmap finds.
    pub(crate) fn mapped(pages: MappedPages<'a>, page_size: TargetPageSize) -> Self {
        let (data_pages, fill_pages) = pages.counts();
        Self {
            data_pages,
            fill_pages,
            xbzrle_pages: 0,
            orphan_pages: 0,
            first_orphan: None,
            records: data_pages + fill_pages,
            pages: Pages::Mapped(pages),
            page_size,
        }
    }

    /// The same pages, whose stream went by: what is data is in the images.
    pub(crate) fn gone_by(mut self) -> Self {
        if let Pages::Records { extents, deltas } = &mut self.pages {
            extents.replace(|content| match content {
                Content::Fill(_) => content,
                _ => Content::Image,
            });
            *deltas = Vec::new();
        }
        self
    }

    /// The pages, if they are those of mapped-ram.
    pub(crate) fn as_mapped(&self) -> Option<&MappedPages<'a>> {
        match &self.pages {
            Pages::Mapped(pages) => Some(pages),
            Pages::Records { .. } => None,
        }
    }

    /// Whether all pages lie in a row, with or without a bitmap that finds
    /// them, and not in records.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.pages, Pages::Mapped(_))
    }

    /// Pages that hold data, in whatever encoding.
    pub fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// Pages whose last record is a fill byte; with mapped-ram, whose bit is
    /// clear.
    pub fn fill_pages(&self) -> u64 {
        self.fill_pages
    }

    /// Pages of data that XBZRLE records had a part in.
    pub fn xbzrle_pages(&self) -> u64 {
        self.xbzrle_pages
    }

    /// Pages that have XBZRLE records and nothing that these build on: they
    /// count as absent. With the offset of the first such record.
    pub(crate) fn orphans(&self) -> Option<(u64, StreamOffset)> {
        Some((self.orphan_pages, self.first_orphan?))
    }

    /// Records beyond the first of each page.
    pub fn resent_pages(&self) -> u64 {
        self.records - self.data_pages - self.fill_pages
    }

    /// Where the content of the page that holds `offset` is.
    pub fn source(&self, offset: BlockOffset) -> PageSource<'_> {
        let page = self.page_size.page_of(offset);
        let (extents, deltas) = match &self.pages {
            Pages::Mapped(pages) => return pages.source(page),
            Pages::Records { extents, deltas } => (extents, deltas),
        };
        let Some(extent) = extents.find(page) else { return PageSource::Absent };
        let base = extent.base(page, self.page_size);
        let first = deltas.partition_point(|delta| delta.page < page);
        let behind = deltas.get(first..).unwrap_or_default();
        match chain_of(behind, page) {
            [] => Chain { base, deltas: &[] }.base(),
            deltas => PageSource::Xbzrle(Chain { base, deltas }),
        }
    }

    /// The runs of pages that touch the bytes from `from` to before `to`, in
    /// ascending order, cut to whole pages of that range. Absent pages are
    /// the gaps between them.
    pub fn runs(&self, from: BlockOffset, to: BlockOffset) -> impl Iterator<Item = PageRun<'_>> + '_ {
        let size = self.page_size;
        // An empty range holds no page, not the one that it lies in.
        let end = if from < to { size.pages_in(to.0) } else { 0 };
        let pages = size.page_of(from)..end;
        match &self.pages {
            Pages::Mapped(mapped) => Runs::Mapped { mapped, pages, size },
            Pages::Records { extents, deltas } => {
                let first_delta = deltas.partition_point(|delta| delta.page < pages.start);
                let deltas = deltas.get(first_delta..).unwrap_or_default();
                Runs::Records { extents: extents.within(pages), rest: None, deltas, size }
            }
        }
    }
}

/// The deltas at the begin of `deltas` that are of `page`.
fn chain_of(deltas: &[Delta], page: u64) -> &[Delta] {
    let len = deltas.iter().take_while(|delta| delta.page == page).count();
    deltas.get(..len).unwrap_or_default()
}

impl Extent {
    fn base(&self, page: u64, page_size: TargetPageSize) -> Base {
        let at = StreamOffset(self.payload_of(page, page_size));
        match self.content {
            Content::Fill(byte) => Base::Fill(byte),
            Content::Data | Content::Packed => Base::Data(at),
            Content::Compressed => Base::Compressed(at),
            Content::Image => Base::Image,
        }
    }

    fn run(&self, page_size: TargetPageSize) -> PageRun<'static> {
        let first = StreamOffset(self.payload);
        let content = match self.content {
            Content::Fill(byte) => RunContent::Fill(byte),
            Content::Data | Content::Packed => RunContent::Data { first, stride: self.stride(page_size) },
            Content::Compressed => RunContent::Compressed(first),
            Content::Image => RunContent::Image,
        };
        PageRun { offset: BlockOffset(self.page << page_size.bits()), pages: self.count.into(), content }
    }
}

/// The runs of `pages`, from its start on.
enum Runs<'r, 'a> {
    Mapped { mapped: &'r MappedPages<'a>, pages: Range<u64>, size: TargetPageSize },
    Records { extents: ExtentsIn<'r>, rest: Option<Extent>, deltas: &'r [Delta], size: TargetPageSize },
}

impl<'r> Iterator for Runs<'r, '_> {
    type Item = PageRun<'r>;

    fn next(&mut self) -> Option<PageRun<'r>> {
        match self {
            Self::Mapped { mapped, pages, size } => {
                let run = mapped.run_at(pages.clone())?;
                pages.start = size.page_of(run.offset) + run.pages;
                Some(run)
            }
            Self::Records { extents, rest, deltas, size } => {
                let extent = rest.take().or_else(|| extents.next())?;
                let next_delta = deltas.first().map_or(u64::MAX, |delta| delta.page);
                let (end, run) = if next_delta == extent.page {
                    let chain = chain_of(deltas, extent.page);
                    *deltas = deltas.get(chain.len()..).unwrap_or_default();
                    let chain = Chain { base: extent.base(extent.page, *size), deltas: chain };
                    let offset = BlockOffset(extent.page << size.bits());
                    (extent.page + 1, PageRun { offset, pages: 1, content: RunContent::Xbzrle(chain) })
                } else {
                    let end = extent.end().min(next_delta);
                    (end, extent.slice(extent.page, end, *size).run(*size))
                };
                *rest = (end < extent.end()).then(|| extent.slice(end, extent.end(), *size));
                Some(run)
            }
        }
    }
}

impl BlockPages<'_> {
    /// Where the payload of the page's last record begins; `None` if there is
    /// no record, as for all pages of mapped-ram.
    pub fn last_record(&self, offset: BlockOffset) -> Option<StreamOffset> {
        let Pages::Records { extents, .. } = &self.pages else { return None };
        let page = self.page_size.page_of(offset);
        let extent = extents.find(page)?;
        let whole = StreamOffset(extent.payload_of(page, self.page_size));
        match self.source(offset) {
            PageSource::Xbzrle(chain) => chain.deltas().last(),
            _ => Some(whole),
        }
    }

    /// How many pages have their last record before `place`. Those of multifd
    /// channels are among them: nothing says what they stand before.
    pub(crate) fn last_sent_before(&self, place: StreamOffset) -> u64 {
        let (extents, deltas) = match &self.pages {
            Pages::Records { extents, deltas } => (extents, deltas),
            // Without a bitmap the migration was not over.
            Pages::Mapped(pages) => return if pages.is_by_content() { self.data_pages } else { 0 },
        };
        let sent_before = |extent: Extent| match place.0.checked_sub(extent.payload) {
            None if !is_in_stream(StreamOffset(extent.payload)) => extent.count.into(),
            Some(len) => len.div_ceil(extent.stride(self.page_size).max(1)).min(extent.count.into()),
            None => 0,
        };
        let whole: u64 = extents.iter().map(sent_before).sum();
        let changed_since = self.chains(deltas).filter(|(base, deltas)| {
            base.0 < place.0 && deltas.last().is_some_and(|delta| delta.payload >= place)
        });
        whole - changed_since.count() as u64
    }

    /// Pages that are made by records on both sides of one of `gaps`, which
    /// ascend: if records are missing there, what changed behind them is laid
    /// over the wrong page.
    pub(crate) fn made_across<'p>(
        &'p self,
        gaps: &'p [StreamOffset],
    ) -> impl Iterator<Item = BlockOffset> + 'p {
        let deltas = match &self.pages {
            Pages::Records { deltas, .. } => deltas.as_slice(),
            Pages::Mapped(_) => &[],
        };
        self.chains(deltas).filter_map(|(base, deltas)| {
            let last = deltas.last()?;
            let first_behind = gaps.partition_point(|gap| *gap <= base);
            gaps.get(first_behind).filter(|gap| **gap <= last.payload)?;
            Some(BlockOffset(last.page << self.page_size.bits()))
        })
    }

    /// The pages that are not simply bytes of the stream.
    pub(crate) fn encoded(&self) -> impl Iterator<Item = (BlockOffset, PageSource<'_>)> {
        self.runs(BlockOffset(0), BlockOffset(u64::MAX)).filter_map(|run| match run.content {
            RunContent::Compressed(at) => Some((run.offset, PageSource::Compressed(at))),
            RunContent::Xbzrle(chain) => Some((run.offset, PageSource::Xbzrle(chain))),
            RunContent::Fill(_) | RunContent::Data { .. } | RunContent::Image => None,
        })
    }

    /// Where the whole copy is that each chain builds on, and the chain.
    fn chains<'d>(&'d self, deltas: &'d [Delta]) -> impl Iterator<Item = (StreamOffset, &'d [Delta])> {
        deltas.chunk_by(|one, next| one.page == next.page).filter_map(move |chain| {
            let Pages::Records { extents, .. } = &self.pages else { return None };
            let page = chain.first()?.page;
            let base = extents.find(page)?.payload_of(page, self.page_size);
            Some((StreamOffset(base), chain))
        })
    }
}
