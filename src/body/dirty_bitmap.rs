//! `dirty-bitmap`: which parts of block devices were written to, for backups.
//!
//! ```text
//! u8 flags  [str8 node if DEVICE_NAME]  [str8 bitmap if BITMAP_NAME]  and one of
//!   START      be32 granularity   u8 flags
//!   COMPLETE
//!   BITS       be64 first sector   be32 sectors   [be64 size   size bytes unless ZEROES]
//!   EOS                                                                ends the body
//! ```
//!
//! START, PART and END alike. A name that is not there is the one before, in
//! an earlier section perhaps. QEMU's own drawing of it has a granularity of 8
//! bytes; its code writes 4.
//!
//! Source followed: QEMU `migration/block-dirty-bitmap.c`
//! (`send_bitmap_header`, `send_bitmap_start`, `send_bitmap_bits`).

use indexmap::IndexMap;

use crate::body::{BitmapPiece, Content, Piece, Step, check_count, unknown_flags};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::units::StreamOffset;

pub(super) const VERSION: u32 = 1;

const EOS: u8 = 0x01;
const ZEROES: u8 = 0x02;
const BITMAP_NAME: u8 = 0x04;
const DEVICE_NAME: u8 = 0x08;
const START: u8 = 0x10;
const COMPLETE: u8 = 0x20;
const BITS: u8 = 0x40;

pub(super) fn step<'a>(cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    let at = cursor.offset();
    let flags = cursor.u8()?;
    if flags == EOS {
        return Ok(Step::End);
    }
    let mut name = |flag| if flags & flag == 0 { Ok(None) } else { cursor.str8().map(Some) };
    let node = name(DEVICE_NAME)?;
    let name = name(BITMAP_NAME)?;
    let piece = match flags & !(DEVICE_NAME | BITMAP_NAME) {
        START => BitmapPiece::Start { granularity: cursor.be32()?, flags: cursor.u8()? },
        COMPLETE => BitmapPiece::Complete,
        what if what & !ZEROES == BITS => read_bits(what & ZEROES != 0, cursor)?,
        _ => {
            let expected = "one of START, COMPLETE, BITS and EOS";
            return Err(unknown_flags(at, "flags of a dirty bitmap", flags.into(), expected));
        }
    };
    Ok(Step::Piece(Content::Bitmap { node, name, piece }))
}

fn read_bits<'a>(are_zero: bool, cursor: &mut Cursor<'a>) -> Result<BitmapPiece<'a>> {
    let (first_sector, sector_count) = (cursor.be64()?, cursor.be32()?);
    let bits = if are_zero {
        None
    } else {
        let size = cursor.be64()?;
        Some(cursor.bytes(size)?)
    };
    Ok(BitmapPiece::Bits { first_sector, sector_count, bits })
}

/// The bitmaps of `dirty-bitmap`, gathered from all of its sections.
#[derive(Clone, Debug, Default)]
pub struct DirtyBitmaps<'a>(Vec<DirtyBitmap<'a>>);

/// A dirty bitmap.
#[derive(Clone, Debug)]
pub struct DirtyBitmap<'a> {
    /// The block node or device, or its alias. Empty if the stream never says.
    pub node: &'a [u8],
    /// The bitmap's name, or its alias. Empty if the stream never says.
    pub name: &'a [u8],
    /// Bytes of the node that one bit stands for; `None` if it never began.
    pub granularity: Option<u32>,
    /// Bit 0: enabled. Bit 1: persistent. Bit 2: autoload (old versions).
    pub flags: Option<u8>,
    /// Whether the stream says that all of its bits have been sent.
    pub is_complete: bool,
    /// Its bits, in the order of the stream.
    pub ranges: Vec<DirtyRange<'a>>,
}

/// A range of a bitmap.
#[derive(Clone, Copy, Debug)]
pub struct DirtyRange<'a> {
    /// Where it is in the stream.
    pub offset: StreamOffset,
    /// The first sector of 512 bytes that its bits stand for.
    pub first_sector: u64,
    /// How many sectors.
    pub sector_count: u32,
    /// The bits, the lowest of the first byte first, padded with zeros; `None`
    /// if they are all zero.
    pub bits: Option<&'a [u8]>,
}

impl<'a> DirtyBitmaps<'a> {
    /// Gathers them from the pieces of all sections, in order.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if there are more than
    /// anybody can have.
    pub fn gather(pieces: impl Iterator<Item = Piece<'a>>) -> Result<Self> {
        let mut bitmaps = IndexMap::<(&[u8], &[u8]), DirtyBitmap<'a>>::new();
        let (mut last_node, mut last_name): (&[u8], &[u8]) = (b"", b"");
        for Piece { offset, content } in pieces {
            let Content::Bitmap { node, name, piece } = content else { continue };
            last_node = node.unwrap_or(last_node);
            last_name = name.unwrap_or(last_name);
            let bitmap = bitmaps.entry((last_node, last_name));
            bitmap.or_insert_with(|| DirtyBitmap::new(last_node, last_name)).take(offset, piece);
            check_count("number of dirty bitmaps", bitmaps.len(), offset)?;
        }
        Ok(Self(bitmaps.into_values().collect()))
    }

    /// The bitmaps, in the order in which they are first named.
    pub fn iter(&self) -> impl Iterator<Item = &DirtyBitmap<'a>> {
        self.0.iter()
    }
}

impl<'a> DirtyBitmap<'a> {
    fn new(node: &'a [u8], name: &'a [u8]) -> Self {
        Self { node, name, granularity: None, flags: None, is_complete: false, ranges: Vec::new() }
    }

    fn take(&mut self, offset: StreamOffset, piece: BitmapPiece<'a>) {
        match piece {
            BitmapPiece::Start { granularity, flags } => {
                (self.granularity, self.flags) = (Some(granularity), Some(flags));
            }
            BitmapPiece::Complete => self.is_complete = true,
            BitmapPiece::Bits { first_sector, sector_count, bits } => {
                self.ranges.push(DirtyRange { offset, first_sector, sector_count, bits });
            }
        }
    }
}
