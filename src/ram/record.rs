//! Page records: the bodies of the `ram` section.
//!
//! ```text
//! be64 offset | ZERO     [str8 idstr]  u8 fill byte
//! be64 offset | PAGE     [str8 idstr]  one target page of bytes
//! be64 offset | XBZRLE   [str8 idstr]  what changed since the page's record before
//! be64 offset | COMPRESS_PAGE [str8 idstr]  be32 length, zlib stream of one page
//! be64          MULTIFD_FLUSH                          pages so far are in the channels
//! be64          EOS                                    ends the body
//! ```
//!
//! The name is left out when CONTINUE is set: the block is that of the page
//! record before, which may stand in an earlier section. The offset is the
//! page's place in its block. A page sent again replaces what was sent before.
//!
//! Not read: HOOK, which is RDMA's and never in a file. What XBZRLE and
//! COMPRESS_PAGE hold is for [`xbzrle`] and
//! [`page`](super::page).
//!
//! Source followed: QEMU `migration/ram.c` (`ram_save_target_page`,
//! `save_page_header`, `ram_load_precopy`).

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::idstr::Idstr;
use crate::ram::block::{BlockList, RamBlock};
use crate::ram::page::{Inflater, compress_bound};
use crate::ram::xbzrle;
use crate::units::{BlockId, BlockOffset, StreamOffset, TargetPageSize, index};
use crate::wire::ram_flag;

/// Bytes of the word that a record begins with.
pub(super) const WORD_LEN: u64 = 8;

/// One page as one record gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRecord {
    /// Whose page.
    pub block: BlockId,
    /// Which page: a multiple of the target page size.
    pub offset: BlockOffset,
    /// What the record says of it.
    pub content: RecordContent,
    /// Where the fill byte, the page's data, or what stands for it begins.
    pub payload: StreamOffset,
}

/// What a page record carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordContent {
    /// Every byte of the page is this one. Since QEMU 2.0 always 0.
    Fill(u8),
    /// One target page of bytes, at the record's payload.
    Data,
    /// A page that is compressed: its length and a zlib stream.
    Compressed,
    /// What changed in the page since its record before.
    Xbzrle,
}

/// What one `ram` section leaves to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordState {
    /// The size of a target page, as far as it is known.
    pub(crate) page_size: TargetPageSize,
    pub(crate) certainty: Certainty,
    /// The block of the last record that named one: CONTINUE's.
    pub(crate) current: Option<BlockId>,
    /// Whether the bytes end before the stream does: more can be had.
    pub(crate) has_more: bool,
}

/// Bytes behind a record that show the page size: a few of the longest records.
const LOOK_AHEAD: u64 = 512 << 10;

/// How well the target page size is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Certainty {
    /// The configuration gives it, or a page of data fits it.
    Settled,
    /// Something else says so: the description, or an earlier walk.
    Likely,
    /// Nothing says it. Fill pages come in any size; the first page of data
    /// will show it. `offsets` are those of the pages so far, all ORed: the
    /// size divides them.
    Unknown { offsets: u64 },
}

impl RecordState {
    pub(crate) fn new(page_size: TargetPageSize, certainty: Certainty) -> Self {
        Self { page_size, certainty, current: None, has_more: false }
    }

    /// The largest size up to the present one that divides all `offsets`.
    fn fitting(&self, offsets: u64) -> TargetPageSize {
        let bits = offsets.trailing_zeros().clamp(8, self.page_size.bits());
        TargetPageSize::from_bits(bits).unwrap_or(self.page_size)
    }
}

pub(crate) fn flag_mask(page_size: TargetPageSize) -> u64 {
    if page_size.bytes() < 1024 { ram_flag::MASK_256 } else { ram_flag::MASK }
}

/// The page records of one body, up to and with its end word.
///
/// Fuses after an error, [`cursor`](Self::cursor) being where the bad record
/// begins. After the end, [`cursor`](Self::cursor) stands behind
/// the end word.
pub(crate) struct PageRecords<'a, 's> {
    cursor: Cursor<'a>,
    list: &'s BlockList,
    state: RecordState,
    /// Length of the current block, 0 if there is none: spares a look-up.
    used_length: u64,
    mask: u64,
    /// How many MULTIFD_FLUSH words there have been.
    flush_count: u64,
    /// How many of them may follow each other.
    flushes_in_a_row: u64,
    done: bool,
}

impl<'a, 's> PageRecords<'a, 's> {
    pub(crate) fn new(cursor: Cursor<'a>, list: &'s BlockList, state: RecordState) -> Self {
        let used_length = state.current.and_then(|id| list.get(id)).map_or(0, |block| block.used_length);
        let mask = flag_mask(state.page_size);
        Self {
            cursor,
            list,
            state,
            used_length,
            mask,
            flush_count: 0,
            flushes_in_a_row: u64::MAX,
            done: false,
        }
    }

    /// The same, but more than `count` MULTIFD_FLUSH words behind each other
    /// are an error: for bytes that may be anything.
    pub(crate) fn with_flushes_in_a_row(self, count: u64) -> Self {
        Self { flushes_in_a_row: count, ..self }
    }

    pub(crate) fn cursor(&self) -> Cursor<'a> {
        self.cursor
    }

    /// What the next body's records start with.
    pub(crate) fn state(&self) -> RecordState {
        self.state
    }

    /// How many MULTIFD_FLUSH words have been met: all pages that went through
    /// multifd channels so far stand before them.
    #[inline]
    pub(crate) fn flush_count(&self) -> u64 {
        self.flush_count
    }

    /// The size of a target page, as far as it is known by now.
    #[inline]
    pub(crate) fn page_size(&self) -> TargetPageSize {
        self.state.page_size
    }

    /// Reads the next word that is not a mere mark. Gives its place and flags.
    #[inline]
    fn read_word(&mut self) -> Result<(StreamOffset, u64, u64)> {
        let most = self.flush_count.saturating_add(self.flushes_in_a_row);
        loop {
            let at = self.cursor.offset();
            let word = self.cursor.be64()?;
            let mut flags = word & self.mask;
            if self.state.certainty != Certainty::Settled {
                flags = self.flags_of_any_size(word);
            }
            if word != ram_flag::MULTIFD_FLUSH || self.flush_count >= most {
                return Ok((at, word, flags));
            }
            self.flush_count += 1;
        }
    }

    // Always: a record returned through memory is read back in other pieces
    // than it was written in, and waits for them, as long as for all the rest.
    #[inline(always)]
    fn parse(&mut self) -> Result<Option<PageRecord>> {
        let (at, word, flags) = self.read_word()?;
        let content = match flags & !ram_flag::CONTINUE {
            ram_flag::PAGE => RecordContent::Data,
            ram_flag::ZERO => RecordContent::Fill(0),
            ram_flag::XBZRLE => RecordContent::Xbzrle,
            ram_flag::COMPRESS_PAGE => RecordContent::Compressed,
            ram_flag::EOS if word == ram_flag::EOS => return Ok(None),
            _ => return Err(Error::at(at, refused_flags(flags))),
        };
        let block = self.block(flags, at)?;
        if self.state.certainty != Certainty::Settled {
            self.learn(at, block, word, content)?;
        }
        let offset = word & !self.mask;
        if offset & (self.state.page_size.bytes() - 1) != 0 || offset >= self.used_length {
            return Err(self.outside(at, block, offset));
        }
        let payload = self.cursor.offset();
        let content = self.read_payload(content)?;
        Ok(Some(PageRecord { block, offset: BlockOffset(offset), content, payload }))
    }

    /// Moves behind the records that go on where `record`, the last one read,
    /// ends: of the pages next to it, with the same content, under CONTINUE.
    /// Gives how many; at most `most`.
    ///
    /// Nearly all records of a pass do. That each is the one expected takes one
    /// comparison, and no record has to wait for the one before.
    #[inline]
    pub(crate) fn skip_neighbours(&mut self, record: &PageRecord, most: u64) -> u64 {
        let is_fill = matches!(record.content, RecordContent::Fill(_));
        match self.state.certainty {
            Certainty::Settled => {}
            // A fill page that a likely size divides says nothing new of it.
            Certainty::Likely if is_fill => {}
            _ => return 0,
        }
        let page_len = self.state.page_size.bytes();
        let (flag, payload_len) = match record.content {
            RecordContent::Data => (ram_flag::PAGE, page_len),
            RecordContent::Fill(_) => (ram_flag::ZERO, 1),
            RecordContent::Compressed | RecordContent::Xbzrle => return 0,
        };
        let Some(record_len) = index(WORD_LEN + payload_len) else { return 0 };
        // The last page of a block may reach beyond its length.
        let left = self.used_length.saturating_sub(record.offset.0).div_ceil(page_len).saturating_sub(1);
        let most = index(most.min(left)).unwrap_or(0);
        let records = self.cursor.rest().chunks_exact(record_len).take(most);
        let mut word = record.offset.0 | flag | ram_flag::CONTINUE;
        let is_neighbour = |bytes: &&[u8]| {
            word = word.wrapping_add(page_len);
            let Some((head, payload)) = bytes.split_first_chunk() else { return false };
            let is_alike = match record.content {
                RecordContent::Fill(byte) => payload.first() == Some(&byte),
                _ => true,
            };
            u64::from_be_bytes(*head) == word && is_alike
        };
        let count = records.take_while(is_neighbour).count() as u64;
        // They are there: they have been looked at.
        let _ = self.cursor.bytes(count * (WORD_LEN + payload_len));
        count
    }

    /// Moves behind the payload of a record. Gives its content, the fill byte
    /// read.
    #[inline]
    fn read_payload(&mut self, content: RecordContent) -> Result<RecordContent> {
        let page_size = self.state.page_size;
        match content {
            RecordContent::Data => self.cursor.bytes(page_size.bytes()).map(drop)?,
            RecordContent::Fill(_) => return self.cursor.u8().map(RecordContent::Fill),
            RecordContent::Xbzrle => xbzrle::read_payload(&mut self.cursor, page_size).map(drop)?,
            RecordContent::Compressed => {
                let at = self.cursor.offset();
                let len = u64::from(self.cursor.be32()?);
                let bound = compress_bound(page_size);
                if len > bound {
                    let what = "length of a compressed page";
                    return Err(Error::at(at, ErrorKind::Limit { what, met: len, bound }));
                }
                self.cursor.bytes(len)?;
            }
        }
        Ok(content)
    }

    /// The flags of a word while the page size is open. Where pages are of
    /// 256 or 512 bytes, the two highest flags are address bits: no page
    /// record has them set together with its own flag.
    #[cold]
    fn flags_of_any_size(&mut self, word: u64) -> u64 {
        let is_page = word & (ram_flag::PAGE | ram_flag::ZERO | ram_flag::XBZRLE) != 0;
        let has_high_flags = word & ram_flag::MASK & !ram_flag::MASK_256 != 0;
        if is_page && has_high_flags && matches!(self.state.certainty, Certainty::Unknown { .. }) {
            self.mask = ram_flag::MASK_256;
        }
        word & self.mask
    }

    /// A page's offset and the likely page size ORed, if the size does not
    /// divide it; else 0.
    fn at_odds(&self, offset: u64) -> u64 {
        let bytes = self.state.page_size.bytes();
        if offset.is_multiple_of(bytes) { 0 } else { offset | bytes }
    }

    /// Learns the page size from a record whose name has been read.
    #[cold]
    fn learn(&mut self, at: StreamOffset, block: BlockId, word: u64, content: RecordContent) -> Result<()> {
        let seen = match self.state.certainty {
            Certainty::Unknown { offsets } => offsets | word & !self.mask,
            // What was likely is wrong: the description is another stream's.
            _ => self.at_odds(word & !self.mask),
        };
        if self.state.has_more && self.cursor.remaining() < LOOK_AHEAD {
            let available = self.cursor.remaining();
            return Err(Error::at(at, ErrorKind::Truncated { needed: LOOK_AHEAD, available }));
        }
        let hint = self.state.fitting(seen);
        let found = match content {
            RecordContent::Data => infer_page_size(self.cursor, block, self.list, hint),
            RecordContent::Compressed => Inflater::new().page_size(self.cursor),
            RecordContent::Fill(_) | RecordContent::Xbzrle => None,
        };
        if matches!(content, RecordContent::Data | RecordContent::Compressed) {
            let found = found.unwrap_or(hint);
            if seen & (found.bytes() - 1) != 0 {
                let met = format!("one that is a multiple of {hint} only, up to this page of {found} bytes");
                let expected = format!("multiples of {found}");
                return Err(Error::at(at, ErrorKind::Malformed { what: "page offset", met, expected }));
            }
            self.state.page_size = found;
            self.state.certainty = Certainty::Settled;
        } else if seen != 0 {
            self.state.page_size = hint;
            self.state.certainty = Certainty::Unknown { offsets: seen };
        }
        self.mask = flag_mask(self.state.page_size).min(self.mask);
        Ok(())
    }

    /// The block that a record with `flags` belongs to, its name read.
    fn block(&mut self, flags: u64, at: StreamOffset) -> Result<BlockId> {
        if flags & ram_flag::CONTINUE != 0 {
            return self.state.current.ok_or_else(|| {
                let why = "CONTINUE, but no record before names a block".to_owned();
                Error::at(at, ErrorKind::RamFlags { flags, why })
            });
        }
        let name_at = self.cursor.offset();
        let idstr = self.cursor.str8()?;
        let id = self.list.find(idstr).ok_or_else(|| unknown_block(name_at, idstr))?;
        self.used_length = self.list.get(id).map_or(0, |block| block.used_length);
        self.state.current = Some(id);
        Ok(id)
    }

    #[cold]
    fn outside(&self, at: StreamOffset, block: BlockId, offset: u64) -> Error {
        let (idstr, used_length) = describe(self.list.get(block));
        if offset < used_length {
            let what = "page offset";
            let expected = format!("a multiple of the page size {}", self.state.page_size);
            return Error::at(at, ErrorKind::Malformed { what, met: format!("{offset:#x}"), expected });
        }
        Error::at(at, ErrorKind::PageOutside { offset, idstr, used_length })
    }
}

impl Iterator for PageRecords<'_, '_> {
    type Item = Result<PageRecord>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let start = self.cursor;
        let item = self.parse().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        if matches!(item, Some(Err(_))) {
            self.cursor = start;
        }
        item
    }
}

fn describe(block: Option<&RamBlock>) -> (String, u64) {
    block.map_or_else(Default::default, |block| (block.idstr.to_string(), block.used_length))
}

fn unknown_block(at: StreamOffset, idstr: &[u8]) -> Error {
    let met = format!("\"{}\"", Idstr::from(idstr));
    Error::at(
        at,
        ErrorKind::Malformed {
            what: "RAM block of a page",
            met,
            expected: "a name of the block list".into(),
        },
    )
}

/// Why a record's flags are refused: an encoding by its name, or nonsense.
#[cold]
fn refused_flags(flags: u64) -> ErrorKind {
    let unsupported = |feature: &str| ErrorKind::Unsupported { feature: feature.to_owned() };
    match flags & !ram_flag::CONTINUE {
        ram_flag::HOOK => unsupported("a HOOK record (RDMA)"),
        ram_flag::FULL => unsupported("a FULL record (streams before version 4)"),
        ram_flag::MEM_SIZE => ErrorKind::RamFlags {
            flags,
            why: "a block list, which stands only at the start of the START section".into(),
        },
        ram_flag::EOS => {
            ErrorKind::RamFlags { flags, why: "the end of a body, which has neither offset nor block".into() }
        }
        0 => ErrorKind::RamFlags { flags, why: "none of which says what the record is".into() },
        _ => {
            let unknown = flags & !ram_flag::MASK;
            let why = if unknown != 0 {
                format!("no known meaning for {unknown:#x}")
            } else {
                "a combination that QEMU never writes".into()
            };
            ErrorKind::RamFlags { flags, why }
        }
    }
}

/// Finds the target page size by trial at the first data page.
///
/// `at` stands at the page's first byte. A size is plausible if RAM records
/// follow each other where it says. `hint` is tried first, then all sizes, the
/// smallest first: one that is too small ends inside the page, where no record
/// is, but one that is too large may end between two later ones. `None` if no
/// size fits, as when the stream is cut or damaged right here.
fn infer_page_size(
    at: Cursor<'_>,
    block: BlockId,
    list: &BlockList,
    hint: TargetPageSize,
) -> Option<TargetPageSize> {
    std::iter::once(hint)
        .chain((8..=16).filter_map(TargetPageSize::from_bits))
        .find(|size| is_plausible(at, block, list, *size))
}

/// Whether records follow if the page at `at` has `size`. Looks at a few: the
/// odds that guest data passes for even two are below one in 2⁵⁰.
fn is_plausible(mut at: Cursor<'_>, block: BlockId, list: &BlockList, size: TargetPageSize) -> bool {
    const RECORDS: usize = 4;
    let mask = flag_mask(size);
    let mut used_length = list.get(block).map_or(0, |block| block.used_length);
    let mut skip = size.bytes();
    for _ in 0..RECORDS {
        if at.bytes(skip).is_err() {
            return false;
        }
        let Ok(word) = at.be64() else { return false };
        let flags = word & mask;
        let kind = flags & !ram_flag::CONTINUE;
        match kind {
            ram_flag::PAGE | ram_flag::ZERO | ram_flag::COMPRESS_PAGE | ram_flag::XBZRLE => {}
            // Then comes a footer, or without footers the next record.
            ram_flag::EOS => {
                let next = at.peek();
                return word == ram_flag::EOS && next.is_none_or(|byte| matches!(byte, 0..=4 | 8 | 0x7e));
            }
            _ => return false,
        }
        if flags & ram_flag::CONTINUE == 0 {
            let Some(id) = at.str8().ok().and_then(|idstr| list.find(idstr)) else { return false };
            used_length = list.get(id).map_or(0, |block| block.used_length);
        }
        skip = match kind {
            ram_flag::PAGE => size.bytes(),
            ram_flag::ZERO => 1,
            ram_flag::XBZRLE => match xbzrle::read_payload(&mut at, size) {
                Ok(_) => 0,
                Err(_) => return false,
            },
            _ => at.be32().map_or(u64::MAX, u64::from),
        };
        let offset = word & !mask;
        if offset & (size.bytes() - 1) != 0 || offset >= used_length {
            return false;
        }
    }
    true
}
