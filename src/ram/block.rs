//! The block list: which RAM blocks the stream holds.
//!
//! ```text
//! be64 total | MEM_SIZE
//! { str8 idstr  be64 used_length  [be64 page_size]  [be64 mr_addr]
//!   [mapped-ram header, bitmap, pages] }           until the lengths add up to total
//! ```
//!
//! No count is given: the list ends when the lengths add up. `page_size` is
//! there for blocks of huge pages when postcopy was allowed; `mr_addr` with
//! capability `x-ignore-shared`; for mapped-ram see [`mapped`].
//!
//! Source followed: QEMU `migration/ram.c` (`ram_save_setup`, `parse_ramblocks`).

use std::collections::HashMap;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::idstr::Idstr;
use crate::ram::mapped::{self, Common, MappedRamHeader};
use crate::units::{BlockId, StreamOffset};
use crate::wire::{limit, ram_flag};

/// One RAM block, as the block list gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RamBlock {
    /// Its name, such as `pc.ram` or `0000:00:02.0/vga.vram`.
    pub idstr: Idstr,
    /// Its length in bytes. A claim of the stream: nothing is allocated for it.
    pub used_length: u64,
    /// The size of its host pages in bytes, where the stream gives it.
    pub host_page_size: Option<u64>,
    /// Its offset in the memory region that holds it, where the stream gives
    /// it. Not in general a guest-physical address.
    pub mr_addr: Option<u64>,
    /// Where its entry stands.
    pub offset: StreamOffset,
}

/// The blocks of a stream, found by number or name.
#[derive(Debug, Default)]
pub(crate) struct BlockList {
    pub(crate) blocks: Vec<RamBlock>,
    by_idstr: HashMap<Box<[u8]>, BlockId>,
    /// With mapped-ram: where the pages of each are, if they are in the file.
    pub(crate) mapped: Vec<Option<MappedRamHeader>>,
    /// Bytes of the total that no entry has: the list was not read to its end.
    pub(crate) unlisted: u64,
    /// With mapped-ram: where what is lost begins, if the input ends before
    /// the pages of a block do.
    pub(crate) cut_at: Option<StreamOffset>,
}

/// What the configuration says of the entries' layout.
#[derive(Clone, Copy, Default)]
pub(crate) struct RamLayout {
    pub(crate) mapped_ram: bool,
    pub(crate) mr_addr: bool,
}

impl BlockList {
    /// Reads the list behind the MEM_SIZE word that promised `total` bytes. On
    /// an error the list has what stands before; the cursor is where that
    /// ends, which is the input's end if it is among the pages of mapped-ram.
    pub(crate) fn read(&mut self, cursor: &mut Cursor<'_>, total: u64, layout: RamLayout) -> Result<()> {
        self.unlisted = total;
        let mut common = Common::default();
        while self.unlisted > 0 {
            let mut ahead = *cursor;
            let block = parse_entry(&mut ahead, self.unlisted, layout)?;
            let used_length = block.used_length;
            self.insert(block)?;
            self.unlisted -= used_length;
            if layout.mapped_ram {
                let header = mapped::read_header(&mut ahead, used_length, &mut common);
                self.mapped.push(header.as_ref().ok().copied().flatten());
                if let Some(header) = header?
                    && let Err(error) = header.pass(&mut ahead, used_length)
                {
                    cursor.bytes(cursor.remaining())?;
                    self.cut_at = Some(header.cut_at(cursor.offset(), used_length));
                    return Err(error);
                }
            }
            *cursor = ahead;
        }
        Ok(())
    }

    fn insert(&mut self, block: RamBlock) -> Result<()> {
        let id = BlockId(self.blocks.len());
        if id.0 >= limit::RAM_BLOCKS {
            let bound = limit::RAM_BLOCKS as u64;
            return Err(Error::at(
                block.offset,
                ErrorKind::Limit { what: "number of RAM blocks", met: bound + 1, bound },
            ));
        }
        if self.find(block.idstr.as_bytes()).is_some() {
            let met = format!("\"{}\" a second time", block.idstr);
            return Err(malformed(block.offset, "block list", met, "each name once"));
        }
        self.by_idstr.insert(block.idstr.as_bytes().into(), id);
        self.blocks.push(block);
        Ok(())
    }

    pub(crate) fn find(&self, idstr: &[u8]) -> Option<BlockId> {
        self.by_idstr.get(idstr).copied()
    }

    pub(crate) fn get(&self, id: BlockId) -> Option<&RamBlock> {
        self.blocks.get(id.0)
    }
}

fn parse_entry(cursor: &mut Cursor<'_>, unlisted: u64, layout: RamLayout) -> Result<RamBlock> {
    let offset = cursor.offset();
    let idstr = Idstr::from(cursor.str8()?);
    if idstr.as_bytes().is_empty() {
        return Err(malformed(offset, "block list", "an empty name".into(), "a name, or the list's end"));
    }
    let at = cursor.offset();
    let used_length = cursor.be64()?;
    if used_length > unlisted {
        let met = format!("{used_length:#x} for \"{idstr}\"");
        return Err(malformed(
            at,
            "block length",
            met,
            &format!("at most {unlisted:#x}, what is left of the total"),
        ));
    }
    let is_last = used_length == unlisted;
    // QEMU refuses postcopy together with mapped-ram.
    let has_page_size = !layout.mapped_ram && has_page_size(cursor, is_last, layout.mr_addr);
    let host_page_size = if has_page_size { Some(cursor.be64()?) } else { None };
    let mr_addr = if layout.mr_addr { Some(cursor.be64()?) } else { None };
    Ok(RamBlock { idstr, used_length, host_page_size, mr_addr, offset })
}

/// Whether a page size stands here. Nothing in the stream announces it.
///
/// Since QEMU 2.5 (postcopy) it is written only for blocks whose pages are
/// not the host's or target's. Between entries the next thing is a name, which
/// is never empty, so a zero byte can only be the top of a page size. Behind
/// the last entry comes a RAM record's word, which always has a flag in its
/// low bits, as no page size has. Where an `mr_addr` follows, which can look
/// like a page size itself, the same is asked of what stands behind the first
/// of the two: it is an `mr_addr`, not a name, and not a word.
fn has_page_size(cursor: &Cursor<'_>, is_last: bool, has_mr_addr: bool) -> bool {
    let is_page_size = |word: u64| word.is_power_of_two() && word >= 4096 && word >> 56 == 0;
    let mut ahead = *cursor;
    let Ok(first) = ahead.be64() else { return false };
    if !is_page_size(first) {
        return false;
    }
    if !has_mr_addr {
        return true;
    }
    match ahead.be64() {
        Ok(second) if is_last => second & ram_flag::MASK == 0,
        Ok(second) => second >> 56 == 0,
        Err(_) => false,
    }
}

fn malformed(at: StreamOffset, what: &'static str, met: String, expected: &str) -> Error {
    Error::at(at, ErrorKind::Malformed { what, met, expected: expected.to_owned() })
}
