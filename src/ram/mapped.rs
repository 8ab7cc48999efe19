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
//! Offsets count from the file's begin (see [`Common`]). A set bit: the page is in the file.
//! A clear one: the page is zero, whatever is there. Both offsets 0: a block
//! that `x-ignore-shared` left out (11.1). The bitmap is an array of the
//! host's `unsigned long`, and nothing says which host that was: see
//! [`WordOrder`].
//!
//! Headers are written first, pages as they go, and all bitmaps at the very
//! end, in the END section, one behind the other. A migration that was ended
//! before leaves a file of pages whose bitmaps are holes; so does a background
//! snapshot, which has no END. See [`MappedPages::by_content`].
//!
//! Source followed: QEMU `migration/ram.c` (`mapped_ram_setup_ramblock`,
//! `ram_save_file_bmap`, `parse_ramblock_mapped_ram`).

use std::ops::Range;
use std::sync::Arc;

use crate::bytes::{Bytes, is_zero};
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

/// What the headers of a stream have in common: the page size, and how far
/// offsets are from the stream's begin. They count from the begin of the file
/// that was written to, where a stream may stand further on (`file:…,offset=`).
/// Nothing says how far; the first bitmap's place does.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Common {
    shift: Option<u64>,
    page_size: Option<TargetPageSize>,
}

impl Common {
    /// Holds `offset`, which the header gives, against the place `here`.
    fn fits(&mut self, offset: u64, here: StreamOffset) -> bool {
        let shift = offset.checked_sub(here.0);
        shift.is_some_and(|shift| *self.shift.get_or_insert(shift) == shift)
    }

    fn undone(self, offset: u64) -> Option<StreamOffset> {
        offset.checked_sub(self.shift.unwrap_or(0)).map(StreamOffset)
    }

    fn page_size(&mut self, at: StreamOffset, bytes: u64) -> Result<TargetPageSize> {
        let bad = |met, expected: &str| malformed(at, "page size of a mapped-ram block", met, expected);
        let size = TargetPageSize::from_bytes(bytes)
            .ok_or_else(|| bad(format!("{bytes:#x}"), "a power of two from 256 to 65536"))?;
        let first = *self.page_size.get_or_insert(size);
        if size == first {
            return Ok(size);
        }
        Err(bad(size.to_string(), &format!("{first}, as the other blocks have")))
    }
}

/// Reads the header of a block of `used_length` bytes. `None` for a block that
/// is not in the file.
pub(crate) fn read_header(
    cursor: &mut Cursor<'_>,
    used_length: u64,
    common: &mut Common,
) -> Result<Option<MappedRamHeader>> {
    let at = cursor.offset();
    let version = cursor.be32()?;
    if version != VERSION {
        let kind = ErrorKind::Version { what: "mapped-ram header", met: version, expected: VERSION };
        return Err(Error::at(at, kind));
    }
    let page_size = cursor.be64()?;
    let (bitmap, pages) = (cursor.be64()?, cursor.be64()?);
    let page_size = common.page_size(at, page_size)?;
    if (bitmap, pages) == (0, 0) {
        return Ok(None);
    }
    let here = cursor.offset();
    if !common.fits(bitmap, here) {
        return Err(malformed(at, "bitmap_offset", format!("{bitmap:#x}"), &format!("{here}, right behind")));
    }
    let behind = here.checked_add(bitmap_len(page_size.pages_in(used_length), 4));
    let pages_at = common.undone(pages).filter(|pages_at| Some(*pages_at) >= behind && behind.is_some());
    let Some(pages_at) = pages_at else {
        let expected = format!("{} or more, behind the bitmap", behind.unwrap_or_default());
        return Err(malformed(at, "pages_offset", format!("{pages:#x}"), &expected));
    };
    Ok(Some(MappedRamHeader { page_size, bitmap: here, pages: pages_at }))
}

impl MappedRamHeader {
    /// Moves from behind the header to behind the pages.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`] if the input ends before.
    pub(crate) fn pass(&self, cursor: &mut Cursor<'_>, used_length: u64) -> Result<()> {
        cursor.bytes(self.pages.0.saturating_sub(cursor.offset().0))?;
        cursor.bytes(used_length)?;
        Ok(())
    }

    /// Bytes of the bitmap: up to a whole word of 64 bits, unless the writer
    /// had words of 32.
    fn bitmap_len(&self, used_length: u64) -> u64 {
        let pages = self.page_size.pages_in(used_length);
        let len = bitmap_len(pages, 8);
        if len <= self.pages.0.saturating_sub(self.bitmap.0) { len } else { bitmap_len(pages, 4) }
    }

    /// Where what is lost begins if the input ends at `end`, before the pages
    /// do: the bitmap, or the page, that is not whole.
    pub(crate) fn cut_at(&self, end: StreamOffset, used_length: u64) -> StreamOffset {
        match end.0.checked_sub(self.pages.0) {
            Some(len) => StreamOffset(end.0 - len % self.page_size.bytes()),
            None if end.0.saturating_sub(self.bitmap.0) < self.bitmap_len(used_length) => self.bitmap,
            None => end,
        }
    }
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

/// What tells which pages are in the file.
#[derive(Clone, Debug)]
enum Bits<'a> {
    /// Every page is.
    All,
    /// The block's bitmap: what it leaves out is zero.
    Bitmap(Bytes<'a>),
    /// Where there are bytes, ascending: of other pages nothing is known.
    Content(Arc<[Range<u64>]>),
}

/// The pages of one block, found by its bitmap.
#[derive(Clone, Debug)]
pub(crate) struct MappedPages<'a> {
    bits: Bits<'a>,
    order: WordOrder,
    page_count: u64,
    /// How many pages lie before the end of the input.
    whole_count: u64,
    pages: StreamOffset,
    page_size: TargetPageSize,
}

/// Pages of a bitmap's word of 64 bits, and its bytes.
const WORD_PAGES: u64 = 64;
const WORD_LEN: usize = 8;

impl<'a> MappedPages<'a> {
    /// The pages of a block of `used_length` bytes that lie one behind the
    /// other from `at` on, all of them.
    pub(crate) fn whole(at: StreamOffset, used_length: u64, page_size: TargetPageSize) -> Self {
        let page_count = page_size.pages_in(used_length);
        let (bits, order) = (Bits::All, WordOrder::Little);
        Self { bits, order, page_count, whole_count: page_count, pages: at, page_size }
    }

    /// The pages of a block of `used_length` bytes, whose header was read
    /// from `input`; `None` if the input ends in its bitmap or before. The
    /// order of the bitmap's words is [`set_order`]'s to say.
    ///
    /// [`set_order`]: Self::set_order
    pub(crate) fn new(input: Bytes<'a>, header: &MappedRamHeader, used_length: u64) -> Option<Self> {
        let page_count = header.page_size.pages_in(used_length);
        let start = index(header.bitmap.0)?;
        let len = index(header.bitmap_len(used_length))?;
        let bitmap = input.part(start..start.checked_add(len)?)?;
        let available = (input.len() as u64).saturating_sub(header.pages.0);
        let whole_count =
            if available >= used_length { page_count } else { available / header.page_size.bytes() };
        Some(Self {
            bits: Bits::Bitmap(bitmap),
            order: WordOrder::Little,
            page_count,
            whole_count,
            pages: header.pages,
            page_size: header.page_size,
        })
    }

    pub(crate) fn set_order(&mut self, order: WordOrder) {
        self.order = order;
    }

    /// Whether the bitmap has no bit that is set: as long as it is not
    /// written, it has none.
    pub(crate) fn is_blank(&self) -> bool {
        matches!(self.bits, Bits::Bitmap(bitmap) if bitmap.is_zero())
    }

    /// The pages that are more than zeros, whatever the bitmap says. The
    /// others are absent: they were zero, or not written yet.
    pub(crate) fn by_content(&self, input: Bytes<'_>) -> Self {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for page in self.filled(input) {
            match runs.last_mut().filter(|run| run.end == page) {
                Some(run) => run.end += 1,
                None => runs.push(page..page + 1),
            }
        }
        Self { bits: Bits::Content(runs.into()), order: WordOrder::Little, ..self.clone() }
    }

    pub(crate) fn is_by_content(&self) -> bool {
        matches!(self.bits, Bits::Content(_))
    }

    /// How many pages that the bitmap leaves out have bytes at their place.
    pub(crate) fn left_out(&self, input: Bytes<'_>) -> u64 {
        self.filled(input).filter(|page| !self.is_set(*page)).count() as u64
    }

    /// The pages before the end of the input that are more than zeros, in order.
    fn filled(&self, input: Bytes<'_>) -> impl Iterator<Item = u64> {
        let area = self.area(input);
        let page_len = index(self.page_size.bytes()).unwrap_or(usize::MAX);
        let mut behind = 0;
        std::iter::from_fn(move || {
            let other = area.zeros_end(behind);
            let page = other / page_len;
            behind = (page + 1).saturating_mul(page_len);
            (other < area.len()).then_some(page as u64)
        })
    }

    /// The bytes of the pages that lie before the end of the input.
    fn area<'i>(&self, input: Bytes<'i>) -> Bytes<'i> {
        let len = index(self.whole_count.saturating_mul(self.page_size.bytes())).unwrap_or(usize::MAX);
        let area = index(self.pages.0).and_then(|start| {
            let end = start.saturating_add(len).min(input.len());
            input.part(start..end)
        });
        area.unwrap_or_default()
    }

    /// The bits of eight pages, those behind the last page among them.
    fn byte(&self, order: WordOrder, nth: usize) -> u8 {
        match &self.bits {
            Bits::Bitmap(bitmap) => bitmap.slice().get(order.place(nth)).copied().unwrap_or(0),
            Bits::All | Bits::Content(_) => 0,
        }
    }

    /// Whether a page is data, in the input or behind its end.
    fn is_set(&self, page: u64) -> bool {
        match &self.bits {
            Bits::All => true,
            Bits::Bitmap(_) => {
                let byte = index(page / 8).map_or(0, |nth| self.byte(self.order, nth));
                byte >> (page % 8) & 1 == 1
            }
            Bits::Content(runs) => run_behind(runs, page).is_some_and(|run| run.contains(&page)),
        }
    }

    /// The first page of data at or behind `page`, or `end`.
    fn next_set(&self, mut page: u64, end: u64) -> u64 {
        let bitmap = match &self.bits {
            Bits::All => return page,
            Bits::Content(runs) => {
                return run_behind(runs, page).map_or(end, |run| run.start.clamp(page, end));
            }
            Bits::Bitmap(bitmap) => bitmap,
        };
        // No further than is asked: who asks goes on from there.
        let words =
            index(end.div_ceil(WORD_PAGES)).map_or(usize::MAX, |words| words.saturating_mul(WORD_LEN));
        let bitmap = bitmap.part(0..words.min(bitmap.len())).unwrap_or_default();
        while page < end {
            if page.is_multiple_of(WORD_PAGES) {
                let word = index(page / WORD_PAGES).unwrap_or(usize::MAX);
                let zeros_end = bitmap.zeros_end(word.saturating_mul(WORD_LEN));
                if zeros_end == bitmap.len() {
                    return end;
                }
                page = page.max((zeros_end / WORD_LEN) as u64 * WORD_PAGES);
            }
            if self.is_set(page) {
                return page.min(end);
            }
            page += if self.starts_byte(page, 0) { 8 } else { 1 };
        }
        end
    }

    /// Whether a page is the first of eight whose bits are `bits`.
    fn starts_byte(&self, page: u64, bits: u8) -> bool {
        page.is_multiple_of(8) && index(page / 8).is_some_and(|nth| self.byte(self.order, nth) == bits)
    }

    /// The first page behind `page`, which is data, that is not, or `end`.
    fn next_clear(&self, page: u64, end: u64) -> u64 {
        match &self.bits {
            Bits::All => end,
            Bits::Content(runs) => run_behind(runs, page).map_or(page, |run| run.end).min(end),
            Bits::Bitmap(_) => {
                let mut page = page;
                while page < end && self.is_set(page) {
                    page += if self.starts_byte(page, 0xff) { 8 } else { 1 };
                }
                page.min(end)
            }
        }
    }

    /// How many of the first pages are data, in the input or behind its end.
    fn set_count(&self, pages: u64) -> u64 {
        match &self.bits {
            Bits::All => pages,
            Bits::Content(runs) => runs.iter().map(|run| run.end.min(pages).saturating_sub(run.start)).sum(),
            Bits::Bitmap(bitmap) => {
                // An order of words moves bits within one of 64.
                let words = pages / WORD_PAGES;
                let whole = index(words).and_then(|words| bitmap.part(0..words.checked_mul(WORD_LEN)?));
                let rest = (words * WORD_PAGES..pages).filter(|page| self.is_set(*page)).count();
                whole.map_or(0, ones) + rest as u64
            }
        }
    }

    /// How many pages are data in the file, and how many are zero.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let zero = if self.is_by_content() { 0 } else { self.page_count - self.set_count(self.page_count) };
        (self.set_count(self.whole_count), zero)
    }

    /// How many pages the input ends before: of data, as far as the bitmap
    /// tells.
    pub(crate) fn cut_count(&self) -> u64 {
        match self.bits {
            Bits::All | Bits::Bitmap(_) => self.set_count(self.page_count) - self.set_count(self.whole_count),
            Bits::Content(_) => self.page_count - self.whole_count,
        }
    }

    fn place_of(&self, page: u64) -> StreamOffset {
        StreamOffset(self.pages.0.saturating_add(page.saturating_mul(self.page_size.bytes())))
    }

    pub(crate) fn source(&self, page: u64) -> PageSource<'static> {
        match self.is_set(page) {
            true if page < self.whole_count => PageSource::Data(self.place_of(page)),
            false if page < self.page_count && !self.is_by_content() => PageSource::Fill(0),
            _ => PageSource::Absent,
        }
    }

    /// The first run of pages with one kind of content among `pages`; `None`
    /// if there is none.
    pub(crate) fn run_at(&self, pages: Range<u64>) -> Option<PageRun<'static>> {
        let end = pages.end.min(self.page_count);
        let mut first = pages.start;
        while first < end {
            let is_data = self.is_set(first);
            let next = if is_data { self.next_clear(first, end) } else { self.next_set(first, end) };
            let (run_end, content) = match is_data {
                true => {
                    let run =
                        RunContent::Data { first: self.place_of(first), stride: self.page_size.bytes() };
                    (next.min(self.whole_count), Some(run))
                }
                false => (next, Some(RunContent::Fill(0)).filter(|_| !self.is_by_content())),
            };
            if let Some(content) = content.filter(|_| first < run_end) {
                let offset = BlockOffset(first << self.page_size.bits());
                return Some(PageRun { offset, pages: run_end - first, content });
            }
            first = next;
        }
        None
    }

    /// What speaks against an order of words: bits behind the last page, set
    /// bits of pages that are zero, clear ones of pages that are not. Of the
    /// latter two only where the orders differ, and only a few.
    fn against(&self, order: WordOrder, bytes: &[usize], input: Bytes<'_>) -> usize {
        let tail = match (index(self.page_count / 8), self.page_count % 8) {
            (Some(last), over @ 1..) => usize::from(self.byte(order, last) >> over != 0),
            _ => 0,
        };
        let behind = index(self.page_count.div_ceil(8)).unwrap_or(0);
        let len = match &self.bits {
            Bits::Bitmap(bitmap) => bitmap.len(),
            Bits::All | Bits::Content(_) => 0,
        };
        let junk = (behind..len).filter(|nth| self.byte(order, *nth) != 0).count();
        let is_wrong = |nth: usize, bit: u64| {
            let page = nth as u64 * 8 + bit;
            let start = index(self.place_of(page).0)?;
            let end = start.checked_add(index(self.page_size.bytes())?)?;
            let content = input.slice().get(start..end)?;
            Some(page < self.page_count && (self.byte(order, nth) >> bit & 1 == 1) == is_zero(content))
        };
        let wrong = bytes.iter().flat_map(|nth| (0..8).map(move |bit| (*nth, bit)));
        // A set bit behind the end outweighs pages: nothing makes one.
        (tail + junk) * 1000 + wrong.filter(|(nth, bit)| is_wrong(*nth, *bit) == Some(true)).count()
    }

    /// Bytes of the bitmap, a few, that say different things in different
    /// orders. Whole words of 64 bits: an order only moves bits within one, so
    /// pages whose stale bytes speak against the right order then speak as
    /// much against the others.
    fn telling_bytes(&self) -> Vec<usize> {
        const SAMPLES: usize = 8;
        let Bits::Bitmap(bitmap) = self.bits else { return Vec::new() };
        let count = index(self.page_count.div_ceil(8)).unwrap_or(0);
        let word = |first: &usize| *first..*first + WORD_LEN;
        let differs = |nth: usize| {
            WordOrder::ALL.iter().any(|order| self.byte(*order, nth) != self.byte(WordOrder::Little, nth))
        };
        // Words of zeros say the same in any order.
        let mut behind = 0;
        let words = std::iter::from_fn(|| {
            let first = bitmap.zeros_end(behind) / WORD_LEN * WORD_LEN;
            // A bitmap can end amid a word.
            let is_there = (behind..count).contains(&first);
            behind = first + WORD_LEN;
            is_there.then_some(first)
        });
        let telling = words.filter(|first| word(first).any(differs));
        telling.take(SAMPLES).flat_map(|first| word(&first)).collect()
    }
}

/// The first run that ends behind a page.
fn run_behind(runs: &[Range<u64>], page: u64) -> Option<&Range<u64>> {
    runs.get(runs.partition_point(|run| run.end <= page))
}

/// How many bits are set.
fn ones(bitmap: Bytes<'_>) -> u64 {
    const PIECE_LEN: usize = 4096;
    let (mut count, mut at) = (0, 0);
    loop {
        let start = bitmap.zeros_end(at);
        at = start.saturating_add(PIECE_LEN).min(bitmap.len());
        let piece = bitmap.slice().get(start..at).unwrap_or_default();
        if piece.is_empty() {
            return count;
        }
        count += piece.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
    }
}

/// The order of words that the evidence in the stream speaks for: all blocks
/// were written by one host.
pub(crate) fn word_order<'r, 'a: 'r>(
    blocks: impl Iterator<Item = &'r MappedPages<'a>>,
    input: Bytes<'_>,
) -> WordOrder {
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
