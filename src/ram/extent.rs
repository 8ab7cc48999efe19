//! Extents: pages in a row whose records are in a row too.

use super::record::WORD_LEN;
use crate::units::TargetPageSize;

/// Bytes from one fill record's byte to the next's, if they are neighbours.
const FILL_STRIDE: u64 = WORD_LEN + 1;

/// Pages in a row whose records are in a row too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// Number of the first page in the block.
    pub(super) page: u64,
    /// Where the first page's payload is.
    pub(super) payload: u64,
    /// How many pages; at least 1.
    pub(super) count: u32,
    pub(super) content: Content,
}

/// How the pages of an extent are in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// Fill records of one byte.
    Fill(u8),
    /// Records of data.
    Data,
    /// Pages with nothing between them.
    Packed,
    /// One compressed page.
    Compressed,
    /// Pages that are no longer in the stream, but in their image.
    Image,
}

impl Extent {
    /// One page.
    #[inline]
    pub(super) fn page(page: u64, payload: u64, content: Content) -> Self {
        Self { page, payload, count: 1, content }
    }

    /// Number of the page behind the last. Cannot overflow: pages number at
    /// most 2⁵⁶, as page sizes are 256 and up.
    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.page + u64::from(self.count)
    }

    #[inline]
    pub(super) fn stride(&self, page_size: TargetPageSize) -> u64 {
        match self.content {
            Content::Fill(_) => FILL_STRIDE,
            Content::Data => page_size.bytes() + WORD_LEN,
            Content::Packed => page_size.bytes(),
            // Of no two pages is one extent made.
            Content::Compressed | Content::Image => 0,
        }
    }

    #[inline]
    pub(super) fn payload_of(&self, page: u64, page_size: TargetPageSize) -> u64 {
        self.payload + (page - self.page) * self.stride(page_size)
    }

    /// The part of it from page `from` to before page `to`, both inside.
    pub(super) fn slice(&self, from: u64, to: u64, page_size: TargetPageSize) -> Self {
        let count = u32::try_from(to - from).unwrap_or(u32::MAX);
        Self { page: from, payload: self.payload_of(from, page_size), count, ..*self }
    }

    /// Takes in `next` if it goes on where this ends, in block and stream.
    #[inline]
    pub(super) fn absorb(&mut self, next: &Self, page_size: TargetPageSize) -> bool {
        let goes_on = next.page == self.end()
            && next.content == self.content
            && !matches!(self.content, Content::Compressed | Content::Image)
            && next.payload == self.payload_of(next.page, page_size);
        let Some(count) = self.count.checked_add(next.count).filter(|_| goes_on) else {
            return false;
        };
        self.count = count;
        true
    }
}

/// Extents in ascending order, without overlaps.
pub(super) type Run = Vec<Extent>;

/// The extent of a run that has a page.
pub(super) fn find(run: &[Extent], page: u64) -> Option<Extent> {
    let before = run.partition_point(|extent| extent.page <= page);
    run.get(before.checked_sub(1)?).filter(|extent| page < extent.end()).copied()
}

fn append(run: &mut Run, extent: Extent, page_size: TargetPageSize) {
    if !run.last_mut().is_some_and(|last| last.absorb(&extent, page_size)) {
        run.push(extent);
    }
}

/// Lays `newer` over `older`: where both have a page, the newer one stays.
pub(super) fn overlay(older: Run, newer: Run, page_size: TargetPageSize) -> Run {
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
