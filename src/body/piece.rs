//! What a body with a layout of its own says, piece by piece.

use crate::units::StreamOffset;

/// A piece of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece<'a> {
    /// Where it begins, its flags or header included.
    pub offset: StreamOffset,
    /// What it says.
    pub content: Content<'a>,
}

/// What a piece says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Content<'a> {
    /// `spapr/htab`: the size of the hash page table.
    HashTable {
        /// log2 of its bytes; `None` if the guest has no such table.
        shift: Option<u32>,
    },
    /// `spapr/htab`: entries in a row.
    HashEntries {
        /// The first entry's number.
        index: u32,
        /// The valid entries, which come first: 16 bytes each.
        valid: &'a [u8],
        /// How many invalid entries follow them.
        n_invalid: u16,
    },
    /// `s390-skeys`, `s390-storage_attributes`: a byte for each page of 4 KiB.
    PageBytes {
        /// The guest address of the first page.
        address: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// `s390-storage_attributes`: there are no more attributes to come.
    AllSent,
    /// `s390-skeys`, `s390-storage_attributes`: QEMU could not read them.
    SaveFailed,
    /// `todclock`: the clock; `None` if QEMU could not read it.
    TodClock(Option<Tod>),
    /// `dirty-bitmap`: something about a bitmap.
    Bitmap {
        /// The node; `None` if it is the one before.
        node: Option<&'a [u8]>,
        /// The bitmap; `None` if it is the one before.
        name: Option<&'a [u8]>,
        /// What about it.
        piece: BitmapPiece<'a>,
    },
    /// `block`: [`BLOCK_LEN`](super::BLOCK_LEN) bytes of a device.
    Block {
        /// The device.
        device: &'a [u8],
        /// Where in the device, in bytes.
        position: u64,
        /// The bytes; `None` if they are all zero.
        data: Option<&'a [u8]>,
    },
    /// `block`: how much has been sent.
    Progress {
        /// In percent.
        percent: u64,
    },
    /// vfio: a tag of the protocol, and the device's own bytes behind it.
    Vfio {
        /// QEMU's name of the tag, without its prefix.
        tag: &'static str,
        /// The bytes, of a tag that has some.
        data: Option<&'a [u8]>,
    },
    /// Bytes whose meaning is not known.
    Opaque(&'a [u8]),
}

/// The TOD clock of s390: 72 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tod {
    /// The epoch index.
    pub high: u8,
    /// The clock's base.
    pub low: u64,
}

/// What `dirty-bitmap` says about a bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitmapPiece<'a> {
    /// It begins.
    Start {
        /// Bytes of the node that one bit stands for.
        granularity: u32,
        /// Bit 0: enabled. Bit 1: persistent. Bit 2: autoload (old versions).
        flags: u8,
    },
    /// All of its bits have been sent.
    Complete,
    /// A range of its bits.
    Bits {
        /// The first sector of 512 bytes that they stand for.
        first_sector: u64,
        /// How many sectors.
        sector_count: u32,
        /// The bits, the lowest of the first byte first, padded with zeros;
        /// `None` if they are all zero.
        bits: Option<&'a [u8]>,
    },
}
