//! mapped-ram: every page has a fixed place in the file (QEMU 9.0 and later).
//!
//! Behind each entry's `used_length` (and `mr_addr`) in the block list:
//!
//! ```text
//! be32 version 1  be64 page_size  be64 bitmap_offset  be64 pages_offset
//! bitmap: a bit a page        at bitmap_offset, right behind
//! used_length bytes of pages  at pages_offset; the next entry stands behind
//! ```
//!
//! Offsets count from the file's begin (see [`Shift`]). A set bit: the page is in the file.
//! A clear one: the page is zero, whatever is there. Both offsets 0: a block
//! that `x-ignore-shared` left out (11.1). The bitmap is an array of the
//! host's `unsigned long`, and nothing says which host that was: see
//! [`WordOrder`].
//!
//! Source followed: QEMU `migration/ram.c` (`mapped_ram_setup_ramblock`,
//! `parse_ramblock_mapped_ram`).

use std::ops::Range;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::index::{PageRun, PageSource, RunContent};
use crate::units::{BlockOffset, StreamOffset, TargetPageSize, index};

/// `MAPPED_RAM_HDR_VERSION`.
const VERSION: u32 = 1;

/// What an entry of the block list says of its block's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MappedRamHeader {
    pub(crate) page_size: TargetPageSize,
    bitmap: StreamOffset,
    pages: StreamOffset,
}

/// How far offsets are from the stream's begin: they count from the begin of
/// the file that was written to, where a stream may stand further on
/// (`file:…,offset=`). Nothing says how far; the first bitmap's place does.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Shift(Option<u64>);

impl Shift {
    /// Holds `offset`, which the header gives, against the place `here`.
    fn fits(&mut self, offset: u64, here: StreamOffset) -> bool {
        let shift = offset.checked_sub(here.0);
        shift.is_some_and(|shift| *self.0.get_or_insert(shift) == shift)
    }

    fn undone(self, offset: u64) -> Option<StreamOffset> {
        offset.checked_sub(self.0.unwrap_or(0)).map(StreamOffset)
    }
}

/// Reads the header of a block of `used_length` bytes and moves to behind its
/// pages. `None` for a block that is not in the file.
pub(crate) fn read_header(
    cursor: &mut Cursor<'_>,
    used_length: u64,
    shift: &mut Shift,
) -> Result<Option<MappedRamHeader>> {
    let at = cursor.offset();
    let version = cursor.be32()?;
    if version != VERSION {
        let kind = ErrorKind::Version { what: "mapped-ram header", met: version, expected: VERSION };
        return Err(Error::at(at, kind));
    }
    let page_size = cursor.be64()?;
    let (bitmap, pages) = (cursor.be64()?, cursor.be64()?);
    let Some(page_size) = TargetPageSize::from_bytes(page_size) else {
        let expected = "a power of two from 256 to 65536";
        return Err(malformed(at, "page size of a mapped-ram block", format!("{page_size:#x}"), expected));
    };
    if (bitmap, pages) == (0, 0) {
        return Ok(None);
    }
    let here = cursor.offset();
    if !shift.fits(bitmap, here) {
        return Err(malformed(at, "bitmap_offset", format!("{bitmap:#x}"), &format!("{here}, right behind")));
    }
    cursor.bytes(bitmap_len(page_size.pages_in(used_length), 4))?;
    let behind = cursor.offset();
    let pages_at = shift.undone(pages).filter(|pages_at| *pages_at >= behind);
    let Some(pages_at) = pages_at else {
        let expected = format!("{behind} or more, behind the bitmap");
        return Err(malformed(at, "pages_offset", format!("{pages:#x}"), &expected));
    };
    cursor.bytes(pages_at.0 - behind.0)?;
    cursor.bytes(used_length)?;
    Ok(Some(MappedRamHeader { page_size, bitmap: here, pages: pages_at }))
}

/// Bytes of a bitmap for `pages` pages in words of `word_len` bytes.
fn bitmap_len(pages: u64, word_len: u64) -> u64 {
    pages.div_ceil(8 * word_len).saturating_mul(word_len)
}

fn malformed(at: StreamOffset, what: &'static str, met: String, expected: &str) -> Error {
    Error::at(at, ErrorKind::Malformed { what, met, expected: expected.to_owned() })
}

/// The order of a bitmap's bytes, by the `unsigned long` of its writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WordOrder {
    /// Bit i is bit i mod 8 of byte i / 8: any little-endian host.
    Little,
    /// A big-endian host of 64 bits: the bytes of each 8 are reversed.
    Big64,
    /// A big-endian host of 32 bits: the bytes of each 4 are.
    Big32,
}

impl WordOrder {
    const ALL: [Self; 3] = [Self::Little, Self::Big64, Self::Big32];

    /// Where in the bitmap the byte for eight pages stands.
    fn place(self, byte: usize) -> usize {
        match self {
            Self::Little => byte,
            Self::Big64 => byte ^ 7,
            Self::Big32 => byte ^ 3,
        }
    }
}

/// The pages of one block, found by its bitmap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MappedPages<'a> {
    /// `None`: every page is there.
    bitmap: Option<&'a [u8]>,
    order: WordOrder,
    page_count: u64,
    pages: StreamOffset,
    page_size: TargetPageSize,
}

impl<'a> MappedPages<'a> {
    /// The pages of a block of `used_length` bytes that lie one behind the
    /// other from `at` on, all of them.
    pub(crate) fn whole(at: StreamOffset, used_length: u64, page_size: TargetPageSize) -> Self {
        let page_count = page_size.pages_in(used_length);
        Self { bitmap: None, order: WordOrder::Little, page_count, pages: at, page_size }
    }

    /// The pages of a block of `used_length` bytes, whose header was read
    /// from `input`. The order of the bitmap's words is [`set_order`]'s to say.
    ///
    /// [`set_order`]: Self::set_order
    pub(crate) fn new(input: &'a [u8], header: &MappedRamHeader, used_length: u64) -> Self {
        let page_count = header.page_size.pages_in(used_length);
        // Up to a whole word of 64 bits; the stream has room for it, or the
        // writer had words of 32.
        let from = |len: u64| {
            let start = index(header.bitmap.0)?;
            input.get(start..start.checked_add(index(len)?)?)
        };
        let bitmap = [8, 4].into_iter().find_map(|word_len| from(bitmap_len(page_count, word_len)));
        Self {
            bitmap: Some(bitmap.unwrap_or_default()),
            order: WordOrder::Little,
            page_count,
            pages: header.pages,
            page_size: header.page_size,
        }
    }

    pub(crate) fn set_order(&mut self, order: WordOrder) {
        self.order = order;
    }

    pub(crate) fn page_count(&self) -> u64 {
        self.page_count
    }

    /// The bits of eight pages, those behind the last page among them.
    fn byte(&self, order: WordOrder, nth: usize) -> u8 {
        self.bitmap.map_or(0xff, |bitmap| bitmap.get(order.place(nth)).copied().unwrap_or(0))
    }

    /// The bits of eight pages: none behind the last page.
    fn bits(&self, nth: u64) -> u8 {
        let left = self.page_count.saturating_sub(nth * 8).min(8);
        let mask = ((1u16 << left) - 1).to_le_bytes()[0];
        index(nth).map_or(0, |nth| self.byte(self.order, nth)) & mask
    }

    fn is_set(&self, page: u64) -> bool {
        self.bits(page / 8) >> (page % 8) & 1 == 1
    }

    /// How many pages are in the file.
    pub(crate) fn set_count(&self) -> u64 {
        if self.bitmap.is_none() {
            return self.page_count;
        }
        (0..self.page_count.div_ceil(8)).map(|nth| u64::from(self.bits(nth).count_ones())).sum()
    }

    fn place_of(&self, page: u64) -> StreamOffset {
        StreamOffset(self.pages.0 + page * self.page_size.bytes())
    }

    pub(crate) fn source(&self, page: u64) -> PageSource<'static> {
        match () {
            () if page >= self.page_count => PageSource::Absent,
            () if self.is_set(page) => PageSource::Data(self.place_of(page)),
            () => PageSource::Fill(0),
        }
    }

    /// The run of pages with one kind of content that begins at the first of
    /// `pages`; `None` if that is empty.
    pub(crate) fn run_at(&self, pages: Range<u64>) -> Option<PageRun<'static>> {
        let end = pages.end.min(self.page_count);
        let first = Some(pages.start).filter(|first| *first < end)?;
        let is_set = self.is_set(first);
        let mut page = first + 1;
        while page < end {
            // Eight at a time where all are alike.
            let alike = if is_set { 0xff } else { 0 };
            if page.is_multiple_of(8) && (self.bitmap.is_none() || self.bits(page / 8) == alike) {
                page += if self.bitmap.is_none() { end - page } else { 8 };
            } else if self.is_set(page) == is_set {
                page += 1;
            } else {
                break;
            }
        }
        let content = if is_set {
            RunContent::Data { first: self.place_of(first), stride: self.page_size.bytes() }
        } else {
            RunContent::Fill(0)
        };
        let offset = BlockOffset(first << self.page_size.bits());
        Some(PageRun { offset, pages: page.min(end) - first, content })
    }

    /// What speaks against an order of words: bits behind the last page, set
    /// bits of pages that are zero, clear ones of pages that are not. Of the
    /// latter two only where the orders differ, and only a few.
    fn against(&self, order: WordOrder, bytes: &[usize], input: &[u8]) -> usize {
        let tail = match (index(self.page_count / 8), self.page_count % 8) {
            (Some(last), over @ 1..) => usize::from(self.byte(order, last) >> over != 0),
            _ => 0,
        };
        let behind = index(self.page_count.div_ceil(8)).unwrap_or(0);
        let len = self.bitmap.map_or(0, <[u8]>::len);
        let junk = (behind..len).filter(|nth| self.byte(order, *nth) != 0).count();
        let is_wrong = |nth: usize, bit: u64| {
            let page = nth as u64 * 8 + bit;
            let start = index(self.place_of(page).0)?;
            let content = input.get(start..start.checked_add(index(self.page_size.bytes())?)?)?;
            let is_zero = content.iter().all(|byte| *byte == 0);
            Some(page < self.page_count && (self.byte(order, nth) >> bit & 1 == 1) == is_zero)
        };
        let wrong = bytes.iter().flat_map(|nth| (0..8).map(move |bit| (*nth, bit)));
        // A set bit behind the end outweighs pages: nothing makes one.
        (tail + junk) * 1000 + wrong.filter(|(nth, bit)| is_wrong(*nth, *bit) == Some(true)).count()
    }

    /// Bytes of the bitmap, a few, that say different things in different
    /// orders.
    fn telling_bytes(&self) -> Vec<usize> {
        const SAMPLES: usize = 32;
        let count = index(self.page_count.div_ceil(8)).unwrap_or(0);
        let differs = |nth: &usize| {
            WordOrder::ALL.iter().any(|order| self.byte(*order, *nth) != self.byte(WordOrder::Little, *nth))
        };
        (0..count).filter(differs).take(SAMPLES).collect()
    }
}

/// The order of words that the evidence in the stream speaks for: all blocks
/// were written by one host.
pub(crate) fn word_order<'a>(blocks: impl Iterator<Item = MappedPages<'a>>, input: &[u8]) -> WordOrder {
    let mut against = [0; WordOrder::ALL.len()];
    for block in blocks {
        let bytes = block.telling_bytes();
        for (sum, order) in against.iter_mut().zip(WordOrder::ALL) {
            *sum += block.against(order, &bytes, input);
        }
    }
    let orders = against.into_iter().zip(WordOrder::ALL);
    orders.min_by_key(|(against, _)| *against).map_or(WordOrder::Little, |(_, order)| order)
}
