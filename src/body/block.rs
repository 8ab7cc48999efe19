//! `block`: the content of block devices, QEMU up to 9.0.
//!
//! ```text
//! be64 sector << 9 | DEVICE_BLOCK                str8 device   1 MiB
//! be64 sector << 9 | DEVICE_BLOCK | ZERO_BLOCK   str8 device
//! be64 percent << 9 | PROGRESS
//! be64 EOS                                                            ends the body
//! ```
//!
//! START, PART and END alike. A chunk is always a whole MiB, where the device
//! ends inside of it too: its end is padded. A chunk that the guest wrote to
//! comes again, and the last one counts. The device's length is nowhere.
//!
//! Source followed: QEMU 7.2 `migration/block.c` (`blk_send`,
//! `mig_save_device_bulk`, `block_load`). Gone since QEMU 9.1.

use indexmap::IndexMap;

use crate::body::{Content, Piece, Step, check_count, unknown_flags};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::units::StreamOffset;

pub(super) const VERSION: u32 = 1;

const DEVICE_BLOCK: u64 = 0x01;
const EOS: u64 = 0x02;
const PROGRESS: u64 = 0x04;
const ZERO_BLOCK: u64 = 0x08;
const FLAGS: u64 = 0x1ff;
/// The exponent of a sector's size: QEMU's `BDRV_SECTOR_BITS`.
const BDRV_SECTOR_BITS: u32 = 9;

/// Bytes of a chunk: QEMU's `BLK_MIG_BLOCK_SIZE`.
pub const BLOCK_LEN: u64 = 1 << 20;

pub(super) fn step<'a>(cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
    let at = cursor.offset();
    let word = cursor.be64()?;
    match word & FLAGS {
        EOS => Ok(Step::End),
        PROGRESS => Ok(Step::Piece(Content::Progress { percent: word >> BDRV_SECTOR_BITS })),
        flags if flags & !ZERO_BLOCK == DEVICE_BLOCK => {
            let position = word & !FLAGS;
            check_position(at, position)?;
            let device = cursor.str8()?;
            let data = if flags & ZERO_BLOCK == 0 { Some(cursor.bytes(BLOCK_LEN)?) } else { None };
            Ok(Step::Piece(Content::Block { device, position, data }))
        }
        _ => {
            let expected = "flag DEVICE_BLOCK, PROGRESS or EOS";
            Err(unknown_flags(at, "word of block migration", word, expected))
        }
    }
}

/// Chunks lie side by side, and a device has less than 2⁶³ bytes.
fn check_position(at: StreamOffset, position: u64) -> Result<()> {
    let is_sound = position.is_multiple_of(BLOCK_LEN) && position.cast_signed() >= 0;
    let kind = || ErrorKind::Malformed {
        what: "position of a chunk of a block device",
        met: format!("{position:#x}"),
        expected: "a multiple of 1 MiB below 2^63".to_owned(),
    };
    if is_sound { Ok(()) } else { Err(Error::at(at, kind())) }
}

/// The devices of `block`, gathered from all of its sections.
#[derive(Clone, Debug, Default)]
pub struct BlockDevices<'a>(Vec<BlockDevice<'a>>);

/// A block device.
#[derive(Clone, Debug)]
pub struct BlockDevice<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its chunks, in the order of the stream.
    pub chunks: Vec<BlockChunk<'a>>,
}

/// A chunk of a device: [`BLOCK_LEN`] bytes.
#[derive(Clone, Copy, Debug)]
pub struct BlockChunk<'a> {
    /// Where its record is in the stream.
    pub offset: StreamOffset,
    /// Where in the device it belongs, in bytes.
    pub position: u64,
    /// Its bytes; `None` if they are all zero.
    pub data: Option<&'a [u8]>,
}

impl<'a> BlockDevices<'a> {
    /// Gathers them from the pieces of all sections, in order.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] if there are more than anybody can have.
    pub fn gather(pieces: impl Iterator<Item = Piece<'a>>) -> Result<Self> {
        let mut devices = IndexMap::<&[u8], BlockDevice<'a>>::new();
        for Piece { offset, content } in pieces {
            let Content::Block { device: name, position, data } = content else { continue };
            let device = devices.entry(name).or_insert_with(|| BlockDevice { name, chunks: Vec::new() });
            device.chunks.push(BlockChunk { offset, position, data });
            check_count("number of block devices", devices.len(), offset)?;
        }
        Ok(Self(devices.into_values().collect()))
    }

    /// The devices, in the order in which they are first named.
    pub fn iter(&self) -> impl Iterator<Item = &BlockDevice<'a>> {
        self.0.iter()
    }
}

impl<'a> BlockDevice<'a> {
    /// The length that its chunks prove, in bytes: up to 1 MiB less one more
    /// than the device has.
    pub fn proven_len(&self) -> u64 {
        let ends = self.chunks.iter().map(|chunk| chunk.position + BLOCK_LEN);
        ends.max().unwrap_or(0)
    }

    /// The last chunk of each position, in ascending order.
    pub fn last_chunks(&self) -> Vec<&BlockChunk<'a>> {
        let mut chunks: Vec<&BlockChunk<'a>> = self.chunks.iter().collect();
        chunks.sort_by_key(|chunk| (chunk.position, std::cmp::Reverse(chunk.offset)));
        chunks.dedup_by_key(|chunk| chunk.position);
        chunks
    }
}
