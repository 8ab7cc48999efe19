//! Finding page records again behind bytes that are none.
//!
//! A record has no mark of its own: any word with few bits may begin one. So
//! a place counts only if records follow each other from there, several of
//! them and farther than one page of guest memory reaches, or up to the end of
//! a body with its footer. A row of them that fails is remembered by all of
//! its places, so each place of the input is tried once.
//!
//! A record with CONTINUE belongs to the block of the one before, which may be
//! lost. [`RamReader::attribute`] says whose it is if that can be known.

use std::collections::HashSet;

use crate::cursor::Cursor;
use crate::error::ErrorKind;
use crate::ram::RamReader;
use crate::ram::block::{BlockList, RamBlock};
use crate::ram::record::{Certainty, PageRecord, PageRecords, RecordContent, RecordState, flag_mask};
use crate::units::{BlockId, StreamOffset, TargetPageSize};
use crate::wire::ram_flag;

/// Records in a row that are no accident: the odds that guest data passes for
/// even two are below one in 2⁵⁰.
const RECORDS: usize = 4;

/// MULTIFD_FLUSH words that may follow each other behind a gap. QEMU writes
/// two at most; each place that leads into a longer row would read all of it.
const FLUSHES: u64 = 8;

/// Bytes of word and name before a page, at most.
const RECORD_HEAD_LEN: u64 = 8 + 1 + 255;

/// Places remembered before those that have been passed are forgotten.
const REMEMBERED: usize = 1 << 18;

/// Looks for page records in bytes that may be anything.
pub(crate) struct RecordSearch<'s> {
    list: &'s BlockList,
    state: RecordState,
    mask: u64,
    longest: u64,
    /// Places from which records lead nowhere.
    vain: HashSet<u64>,
    row: Vec<u64>,
}

impl<'s> RecordSearch<'s> {
    fn new(list: &'s BlockList, page_size: TargetPageSize) -> Self {
        let blocks = list.blocks.iter().enumerate();
        let largest = blocks.max_by_key(|(_, block)| block.used_length);
        let longest = largest.map_or(0, |(_, block)| block.used_length);
        let current = largest.map(|(id, _)| BlockId(id));
        let state = RecordState { current, ..RecordState::new(page_size, Certainty::Settled) };
        Self { list, state, mask: flag_mask(page_size), longest, vain: HashSet::new(), row: Vec::new() }
    }

    /// Whether page records can begin at `at`. `is_end` tells whether a body
    /// can end at a place behind its end word.
    pub(crate) fn is_believable<'a>(&mut self, at: Cursor<'a>, is_end: impl Fn(Cursor<'a>) -> bool) -> bool {
        let start = at.offset().0;
        if !self.is_word(at) || self.vain.contains(&start) {
            return false;
        }
        if self.vain.len() > REMEMBERED {
            self.vain.retain(|place| *place > start);
        }
        if self.leads_on(at, is_end) {
            return true;
        }
        self.vain.extend(self.row.iter().copied());
        false
    }

    /// Whether the word here has one flag, and an offset that some block has.
    /// MULTIFD_FLUSH does not count: any number of them may follow each other.
    #[inline]
    fn is_word(&self, mut at: Cursor<'_>) -> bool {
        let Ok(word) = at.be64() else { return false };
        let offset = word & !self.mask;
        (word & self.mask & !ram_flag::CONTINUE).is_power_of_two()
            && offset & (self.state.page_size.bytes() - 1) == 0
            && (offset < self.longest || word == ram_flag::EOS)
            && word & self.mask != ram_flag::MULTIFD_FLUSH
    }

    fn leads_on<'a>(&mut self, at: Cursor<'a>, is_end: impl Fn(Cursor<'a>) -> bool) -> bool {
        let enough = at.offset().0.saturating_add(self.state.page_size.bytes() + RECORD_HEAD_LEN);
        let mut records = PageRecords::new(at, self.list, self.state).with_flushes_in_a_row(FLUSHES);
        self.row.clear();
        loop {
            let place = records.cursor().offset().0;
            if self.row.len() >= RECORDS && place > enough {
                return true;
            }
            if self.vain.contains(&place) {
                return false;
            }
            self.row.push(place);
            match records.next() {
                Some(Ok(_)) => {}
                None => return is_end(records.cursor()),
                // Where the input ends, so do they.
                Some(Err(error)) => {
                    let is_cut = matches!(error.kind(), ErrorKind::Truncated { .. });
                    return is_cut && self.row.len() > RECORDS;
                }
            }
        }
    }
}

/// Whose the records behind a gap are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attribution {
    /// The first one names its block.
    Named,
    /// Only this block is long enough.
    Known(BlockId),
    /// More than one block could have those before `until`; `skipped` is the
    /// end word of this body, or `until` if that comes first.
    Unknown { likely: Option<LikelyBlock>, skipped: StreamOffset, until: StreamOffset },
}

/// A block of which just as many bytes of pages are missing as before records,
/// which may be by accident.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LikelyBlock {
    pub(crate) block: BlockId,
    /// Where a record names a block again; the greatest number if none is seen:
    /// other sections can stand between bodies.
    pub(crate) until: StreamOffset,
}

/// Records with CONTINUE that stand behind a gap, and have one block.
struct Group {
    /// The highest offset of their pages.
    highest: u64,
    /// Offset of the first one's page.
    first: u64,
    /// Where the first body ends that they stand in, or they themselves.
    skipped: StreamOffset,
    /// Where the first record is that is none of them.
    until: StreamOffset,
    /// The block that this one names: QEMU names one only if it is another.
    followed_by: Option<BlockId>,
}

impl<'a> RamReader<'a, '_> {
    /// A search for records of this section. With mapped-ram there are none.
    pub(crate) fn search(&self) -> Option<RecordSearch<'_>> {
        let list = self.list.as_ref().filter(|list| list.mapped.is_empty())?;
        Some(RecordSearch::new(list, self.state.page_size))
    }

    /// Whether it is known whose a record with CONTINUE would be.
    pub(crate) fn has_current(&self) -> bool {
        self.state.current.is_some()
    }

    /// Where the block list ends and records begin.
    pub(crate) fn first_record(&self) -> StreamOffset {
        self.first_record
    }

    /// Where what is lost begins, if the input ends in the block list among
    /// pages.
    pub(crate) fn cut_at(&self) -> Option<StreamOffset> {
        self.list.as_ref()?.cut_at
    }

    /// The last record that was read, and where it ends.
    pub(crate) fn last_record(&self) -> Option<(PageRecord, StreamOffset)> {
        let last = self.last?;
        let len = match last.content {
            RecordContent::Fill(_) => 1,
            RecordContent::Data => self.state.page_size.bytes(),
            RecordContent::Compressed => 4 + u64::from(self.cursor_at(last.payload)?.be32().ok()?),
            RecordContent::Xbzrle => {
                3 + u64::from(self.cursor_at(last.payload.checked_add(1)?)?.be16().ok()?)
            }
        };
        Some((last, last.payload.checked_add(len)?))
    }

    fn cursor_at(&self, at: StreamOffset) -> Option<Cursor<'a>> {
        self.input.cursor(at)
    }

    /// Goes on with CONTINUE being the records of this block, or of none.
    pub(crate) fn resume(&mut self, at: StreamOffset, current: Option<BlockId>) {
        self.state.current = current;
        // The last word on a place counts.
        self.resumed.pop_if(|(last, _)| *last == at);
        self.resumed.push((at, current));
    }

    /// What the record at `cursor` is worth, which stands behind a gap.
    pub(crate) fn first_behind_gap(&self, cursor: Cursor<'a>) -> FirstRecord {
        let Some((list, search)) = self.list.as_ref().zip(self.search()) else { return FirstRecord::None };
        let state = search.state;
        let mut records = PageRecords::new(cursor, list, state);
        let Some(Ok(first)) = records.next() else { return FirstRecord::None };
        let end = records.cursor().offset();
        let following = first.offset.checked_add(state.page_size.bytes());
        let is_borne_out = |next: PageRecord| next.block == first.block && Some(next.offset) == following;
        if matches!(records.next(), Some(Ok(next)) if is_borne_out(next)) {
            return FirstRecord::Confirmed;
        }
        let block = names_block(cursor, state.page_size).then_some(first.block);
        FirstRecord::Doubtful { end, block }
    }

    /// Says whose the records at `cursor` are, which stand behind a gap. `step`
    /// moves a cursor from the end of a body to the next one of this section.
    pub(crate) fn attribute(
        &self,
        cursor: Cursor<'a>,
        step: impl Fn(Cursor<'a>) -> Option<Cursor<'a>>,
    ) -> Attribution {
        let Some((list, search)) = self.list.as_ref().zip(self.search()) else {
            return Attribution::Named;
        };
        let Some(group) = Group::read(list, search.state, cursor, step) else {
            return Attribution::Named;
        };
        let Group { highest, skipped, until, first, followed_by } = group;
        let fits = |id: BlockId, block: &RamBlock| block.used_length > highest && followed_by != Some(id);
        let blocks = list.blocks.iter().enumerate().map(|(id, block)| (BlockId(id), block));
        let mut fitting = blocks.filter(|(id, block)| fits(*id, block));
        if let (Some((only, _)), None) = (fitting.next(), fitting.next()) {
            return Attribution::Known(only);
        }
        let before = self.last_record().filter(|(last, end)| {
            let gap = cursor.offset().0.checked_sub(end.0);
            list.get(last.block).is_some_and(|block| fits(last.block, block))
                && gap.is_some_and(|gap| {
                    self.is_bridged(last.offset.0, first, gap)
                        || leads_to(list, last.block, followed_by) && self.is_near(last.offset.0, first, gap)
                })
        });
        let named = if followed_by.is_some() { until } else { StreamOffset(u64::MAX) };
        let likely = before.map(|(last, _)| LikelyBlock { block: last.block, until: named });
        Attribution::Unknown { likely, skipped, until }
    }

    /// Whether in the first pass, which sends all pages, the one behind the gap
    /// is one of the next few: bytes have been removed, and few of them. Another
    /// block's page may be that too; so the block has to be the one that the list
    /// has before the block that is named next.
    fn is_near(&self, before: u64, behind: u64, gap: u64) -> bool {
        const PAGES: u64 = 16;
        let page_len = self.state.page_size.bytes();
        let Some(missing) = (behind / page_len).checked_sub(before / page_len + 1) else { return false };
        self.passes.count == 1 && missing <= PAGES && gap / (page_len + 8) <= missing + 1
    }

    /// Whether `gap` bytes are what QEMU writes for the pages between two of
    /// one block: all of them, as data or as fill pages, or some, all as data.
    /// A name would make it longer, and removed bytes shorter.
    fn is_bridged(&self, before: u64, behind: u64, gap: u64) -> bool {
        /// Nothing; end word, footer or none, and header.
        const FRAMING: [u64; 3] = [0, 13, 18];
        const FILL_LEN: u64 = 9;
        let page_len = self.state.page_size.bytes();
        let data_len = page_len + 8;
        let Some(missing) = (behind / page_len).checked_sub(before / page_len + 1) else { return false };
        FRAMING.iter().filter_map(|framing| gap.checked_sub(*framing)).any(|len| {
            let all_fill = missing.checked_mul(FILL_LEN);
            let beyond = all_fill.and_then(|fill| len.checked_sub(fill));
            let is_all = beyond.is_some_and(|beyond| {
                beyond % (data_len - FILL_LEN) == 0 && beyond / (data_len - FILL_LEN) <= missing
            });
            is_all || (len > 0 && len % data_len == 0 && len / data_len <= missing)
        })
    }
}

/// Whether in the first pass, which goes through the blocks as they are listed,
/// this one can stand behind the last of `block`.
fn leads_to(list: &BlockList, block: BlockId, named: Option<BlockId>) -> bool {
    let next = BlockId(block.0 + 1);
    list.get(next).is_none() || named == Some(next)
}

/// What the first record behind a gap is worth: the damage may reach into its
/// word, or the bytes may be the end of a page that look like one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FirstRecord {
    /// There is none: the body ends here.
    None,
    /// The one behind it bears it out.
    Confirmed,
    /// Nothing bears it out. It ends here, and names this block.
    Doubtful { end: StreamOffset, block: Option<BlockId> },
}

impl Group {
    /// The group at `cursor`; `None` if the first record names its block, or
    /// there is none.
    fn read<'a>(
        list: &BlockList,
        state: RecordState,
        cursor: Cursor<'a>,
        step: impl Fn(Cursor<'a>) -> Option<Cursor<'a>>,
    ) -> Option<Self> {
        let (mut first, mut highest, mut skipped, mut followed_by) = (None, 0, None, None);
        let mut records = PageRecords::new(cursor, list, state);
        let mut until;
        loop {
            let at = records.cursor();
            let place = at.offset();
            until = place;
            if names_block(at, state.page_size) {
                followed_by = records.next().and_then(Result::ok).map(|record| record.block);
                break;
            }
            match records.next() {
                Some(Ok(record)) => {
                    first.get_or_insert(record.offset.0);
                    highest = highest.max(record.offset.0);
                }
                Some(Err(_)) => break,
                None => {
                    skipped.get_or_insert(place);
                    until = records.cursor().offset();
                    let Some(next) = step(records.cursor()) else { break };
                    records = PageRecords::new(next, list, state);
                }
            }
        }
        Some(Self { first: first?, highest, skipped: skipped.unwrap_or(until), until, followed_by })
    }
}

/// Whether the record at `at` names its block.
pub(crate) fn names_block(mut at: Cursor<'_>, page_size: TargetPageSize) -> bool {
    at.be64().is_ok_and(|word| {
        let flags = word & flag_mask(page_size);
        flags & ram_flag::CONTINUE == 0 && flags != ram_flag::EOS
    })
}
