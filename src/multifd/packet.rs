//! One packet of a multifd channel.
//!
//! ```text
//!   0  be32 magic 11223344      24  be64 packet_num
//!   4  be32 version 1           32  be32 zero_pages (0 before QEMU 9.0)
//!   8  be32 flags               36  28 bytes, not used
//!  12  be32 pages_alloc         64  RAM block's idstr, padded to 256 bytes
//!  16  be32 normal_pages       320  be64 offset in the block, for each page:
//!  20  be32 next_packet_size        first the normal ones, then the zero ones;
//!                                   there is room for N = 512 KiB / page size
//! 320 + 8 N  payload, next_packet_size bytes if there are normal pages
//! ```
//!
//! Without normal pages there is no payload, whatever next_packet_size says:
//! QEMU 7.2 to 8.2 leave the number of the packet before in it, as they leave
//! idstr and offsets. `pages_alloc` is N, or 0 in a packet without pages.
//!
//! What carries the state of a device (QEMU 10.0 and later) looks different:
//!
//! ```text
//!   0  magic, version, flags with DEVICE_STATE
//!  12  idstr, padded to 256 bytes
//! 268  be32 instance_id
//! 272  be32 next_packet_size
//! 276  payload
//! ```
//!
//! Sources followed: QEMU `migration/multifd.c` (`multifd_send_fill_packet`,
//! `multifd_recv_unfill_packet`), `migration/multifd-nocomp.c`
//! (`multifd_ram_unfill_packet`), `migration/multifd-device-state.c`,
//! `migration/multifd-qpl.c`, `migration/multifd-uadk.c`.

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockOffset, StreamOffset, TargetPageSize};
use crate::wire::multifd::{
    MULTIFD_FLAG_COMPRESSION_MASK, MULTIFD_FLAG_DEVICE_STATE, MULTIFD_FLAG_SYNC, MULTIFD_MAGIC,
    MULTIFD_PACKET_SIZE, MULTIFD_VERSION, PAYLOAD_LEN, RAMBLOCK_LEN,
};

/// What a channel consists of.
#[derive(Clone, Copy, Debug)]
pub enum Packet<'a> {
    /// Pages of one RAM block, or none: then it only says SYNC.
    Ram(RamPacket<'a>),
    /// A part of a device's state.
    DeviceState(DeviceStatePacket<'a>),
}

/// Pages of one RAM block.
#[derive(Clone, Copy, Debug)]
pub struct RamPacket<'a> {
    /// Where in the channel the packet begins.
    pub at: StreamOffset,
    /// QEMU's count of packets over all channels. It orders nothing: before
    /// QEMU 9.0 a number may be missing and another be there twice, and later
    /// it is counted when the packet is sent, not when its pages are chosen.
    pub packet_num: u64,
    /// SYNC packets that the channel has before this one.
    pub epoch: u64,
    /// Whether this is a SYNC packet. Its own pages stand before the point.
    pub sync: bool,
    /// The RAM block's name; of no meaning if there are no pages.
    pub idstr: &'a [u8],
    payload: &'a [u8],
    normal: &'a [u8],
    zero: &'a [u8],
    page_size: TargetPageSize,
    /// Where the first normal page is.
    first: PacketContent,
}

/// A part of a device's state, which is the device's own affair.
#[derive(Clone, Copy, Debug)]
pub struct DeviceStatePacket<'a> {
    /// Where in the channel the packet begins.
    pub at: StreamOffset,
    /// The name of the device's section.
    pub idstr: &'a [u8],
    /// The instance of the device's section.
    pub instance_id: u32,
    /// Where the payload begins.
    pub payload_at: StreamOffset,
    /// The payload.
    pub payload: &'a [u8],
}

/// One page as one packet gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketPage {
    /// Which page: a multiple of the target page size. Nothing says that the
    /// block is so long.
    pub offset: BlockOffset,
    /// What it holds.
    pub content: PacketContent,
}

/// Where the bytes of a page are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketContent {
    /// Every byte is 0.
    Zero,
    /// In the channel, from here on.
    InChannel(StreamOffset),
    /// In what [`Channel::unpack`](super::Channel::unpack) writes, as many
    /// bytes from its beginning.
    Unpacked(u64),
}

/// How the pages of a channel are compressed: the parameter
/// `multifd-compression`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MultifdCompression {
    /// They are not.
    None,
    /// All in one zlib stream.
    Zlib,
    /// All in one zstd frame.
    Zstd,
    /// Each by itself, by Intel's QPL. Since QEMU 9.1.
    Qpl,
    /// Each by itself, by Huawei's UADK. Since QEMU 9.1.
    Uadk,
    /// Those of a packet together, by Intel's QATzip. Since QEMU 9.2.
    Qatzip,
}

impl MultifdCompression {
    fn of_flags(flags: u32) -> Option<Self> {
        Some(match (flags & MULTIFD_FLAG_COMPRESSION_MASK) >> 1 {
            0 => Self::None,
            1 => Self::Zlib,
            2 => Self::Zstd,
            4 => Self::Qpl,
            8 => Self::Uadk,
            16 => Self::Qatzip,
            _ => return None,
        })
    }

    /// QEMU's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
            Self::Qatzip => "qatzip",
        }
    }
}

impl<'a> RamPacket<'a> {
    /// Pages of data.
    pub fn data_pages(&self) -> u64 {
        offset_count(self.normal)
    }

    /// Pages of zeros.
    pub fn zero_pages(&self) -> u64 {
        offset_count(self.zero)
    }

    /// The payload as it was sent.
    pub(super) fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The pages, those of data first.
    pub fn pages(&self) -> impl Iterator<Item = PacketPage> + use<'a> {
        let (page_len, first) = (self.page_size.bytes(), self.first);
        let data = offsets(self.normal).zip(0..).map(move |(offset, ordinal)| {
            // A packet's pages lie within 1 MiB.
            let content = match first {
                PacketContent::Zero => PacketContent::Zero,
                PacketContent::InChannel(at) => {
                    PacketContent::InChannel(StreamOffset(at.0.saturating_add(page_len * ordinal)))
                }
                PacketContent::Unpacked(at) => PacketContent::Unpacked(at.saturating_add(page_len * ordinal)),
            };
            PacketPage { offset, content }
        });
        data.chain(offsets(self.zero).map(|offset| PacketPage { offset, content: PacketContent::Zero }))
    }
}

fn offset_count(offsets: &[u8]) -> u64 {
    offsets.len() as u64 / 8
}

fn offsets(bytes: &[u8]) -> impl Iterator<Item = BlockOffset> + use<'_> {
    let (offsets, _) = bytes.as_chunks::<8>();
    offsets.iter().map(|offset| BlockOffset(u64::from_be_bytes(*offset)))
}

/// Reads packets, one after another, and keeps what one leaves to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct PacketReader<'a> {
    pub(super) cursor: Cursor<'a>,
    page_size: TargetPageSize,
    /// SYNC packets so far.
    pub(super) epoch: u64,
    /// Bytes that the pages so far take when they are unpacked.
    pub(super) unpacked_len: u64,
    /// Settled by the first packet that has pages of data.
    pub(super) compression: Option<MultifdCompression>,
}

/// The fields of a RAM packet in front of its name.
struct Fields {
    flags: u32,
    normal_pages: u32,
    zero_pages: u32,
    next_packet_size: u32,
    packet_num: u64,
}

impl<'a> PacketReader<'a> {
    pub(super) fn new(cursor: Cursor<'a>, page_size: TargetPageSize) -> Self {
        Self { cursor, page_size, epoch: 0, unpacked_len: 0, compression: None }
    }

    pub(super) fn page_size(&self) -> TargetPageSize {
        self.page_size
    }

    /// The next packet; `None` at the channel's end.
    pub(super) fn next(&mut self) -> Result<Option<Packet<'a>>> {
        if self.cursor.remaining() == 0 {
            return Ok(None);
        }
        let at = self.cursor.offset();
        check_magic(&mut self.cursor, "start of a packet")?;
        let flags_at = self.cursor.offset();
        let flags = self.cursor.be32()?;
        let known = MULTIFD_FLAG_SYNC | MULTIFD_FLAG_COMPRESSION_MASK | MULTIFD_FLAG_DEVICE_STATE;
        let is_device_state = flags & MULTIFD_FLAG_DEVICE_STATE != 0;
        let odd = is_device_state && flags != MULTIFD_FLAG_DEVICE_STATE;
        let compression = MultifdCompression::of_flags(flags).filter(|_| flags & !known == 0 && !odd);
        let Some(compression) = compression else {
            let expected = "SYNC, one of six kinds of compression, or DEVICE_STATE alone";
            return Err(malformed(flags_at, "flags of a packet", format!("{flags:#x}"), expected));
        };
        let packet = if is_device_state {
            self.device_state(at).map(Packet::DeviceState)
        } else {
            self.ram(at, flags, compression).map(Packet::Ram)
        };
        packet.map(Some)
    }

    fn ram(
        &mut self,
        at: StreamOffset,
        flags: u32,
        compression: MultifdCompression,
    ) -> Result<RamPacket<'a>> {
        let fields = self.fields(flags)?;
        let name_at = self.cursor.offset();
        let name = self.cursor.bytes(RAMBLOCK_LEN)?;
        let offsets_at = self.cursor.offset();
        let mut table = Cursor::new(self.cursor.bytes(8 * self.pages_per_packet())?, offsets_at);
        let normal = table.bytes(8 * u64::from(fields.normal_pages))?;
        let zero = table.bytes(8 * u64::from(fields.zero_pages))?;
        self.check_offsets(normal, offsets_at)?;
        self.check_offsets(zero, StreamOffset(offsets_at.0 + normal.len() as u64))?;
        let idstr = match fields.normal_pages + fields.zero_pages {
            0 => &[],
            _ => terminated(name, name_at)?,
        };
        let (payload, first) = self.payload(at, &fields, compression)?;
        let sync = fields.flags & MULTIFD_FLAG_SYNC != 0;
        let packet = RamPacket {
            at,
            packet_num: fields.packet_num,
            epoch: self.epoch,
            sync,
            idstr,
            payload,
            normal,
            zero,
            page_size: self.page_size,
            first,
        };
        self.epoch += u64::from(sync);
        Ok(packet)
    }

    /// Reads the numbers of a packet, and checks how many pages they say.
    fn fields(&mut self, flags: u32) -> Result<Fields> {
        let at = self.cursor.offset();
        let pages_alloc = self.cursor.be32()?;
        let normal_pages = self.cursor.be32()?;
        let next_packet_size = self.cursor.be32()?;
        let packet_num = self.cursor.be64()?;
        let zero_pages = self.cursor.be32()?;
        self.cursor.array::<28>()?;
        let bound = self.pages_per_packet();
        if pages_alloc != 0 && u64::from(pages_alloc) != bound {
            let expected = format!("{bound}: 512 KiB of target pages of {} bytes", self.page_size);
            return Err(malformed(at, "pages_alloc of a packet", pages_alloc.to_string(), expected));
        }
        let met = u64::from(normal_pages) + u64::from(zero_pages);
        if met > u64::from(pages_alloc) {
            let bound = u64::from(pages_alloc);
            return Err(Error::at(at, ErrorKind::Limit { what: "pages in a packet", met, bound }));
        }
        Ok(Fields { flags, normal_pages, zero_pages, next_packet_size, packet_num })
    }

    fn pages_per_packet(&self) -> u64 {
        MULTIFD_PACKET_SIZE / self.page_size.bytes()
    }

    fn check_offsets(&self, table: &[u8], at: StreamOffset) -> Result<()> {
        let odd = offsets(table).zip(0_u64..).find(|(offset, _)| offset.0 % self.page_size.bytes() != 0);
        let Some((offset, ordinal)) = odd else { return Ok(()) };
        let at = StreamOffset(at.0.saturating_add(8 * ordinal));
        let expected = format!("a multiple of the page size {}", self.page_size);
        Err(malformed(at, "page offset", offset.to_string(), expected))
    }

    /// Reads the payload. Gives it, and where its first page is.
    fn payload(
        &mut self,
        packet_at: StreamOffset,
        fields: &Fields,
        compression: MultifdCompression,
    ) -> Result<(&'a [u8], PacketContent)> {
        if fields.normal_pages == 0 {
            return Ok((&[], PacketContent::Zero));
        }
        self.settle(packet_at, compression)?;
        let (at, len) = (self.cursor.offset(), u64::from(fields.next_packet_size));
        if len > PAYLOAD_LEN {
            let kind = ErrorKind::Limit { what: "bytes in a packet's payload", met: len, bound: PAYLOAD_LEN };
            return Err(Error::at(packet_at, kind));
        }
        let bare_len = u64::from(fields.normal_pages) * self.page_size.bytes();
        if compression == MultifdCompression::None && len != bare_len {
            let what = "next_packet_size of a packet that is not compressed";
            return Err(malformed(packet_at, what, len.to_string(), bare_len.to_string()));
        }
        let payload = self.cursor.bytes(len)?;
        let first = match compression {
            MultifdCompression::None => PacketContent::InChannel(at),
            MultifdCompression::Zlib | MultifdCompression::Zstd => PacketContent::Unpacked(self.unpacked_len),
            MultifdCompression::Qpl | MultifdCompression::Uadk => {
                PacketContent::InChannel(self.stored_pages(at, payload, fields.normal_pages, compression)?)
            }
            MultifdCompression::Qatzip => return Err(unsupported(at, compression)),
        };
        if let PacketContent::Unpacked(_) = first {
            self.unpacked_len = self.unpacked_len.saturating_add(bare_len);
        }
        Ok((payload, first))
    }

    /// Checks that the channel is compressed in one way throughout, as QEMU
    /// demands.
    fn settle(&mut self, at: StreamOffset, compression: MultifdCompression) -> Result<()> {
        let settled = *self.compression.get_or_insert(compression);
        if settled == compression {
            return Ok(());
        }
        let expected = format!("{}, as the packets before", settled.name());
        Err(malformed(at, "compression of a packet", compression.name().to_owned(), expected))
    }

    /// Where the pages of a packet of qpl or uadk are, if all are stored as
    /// they are: then their lengths, which come first, are the page size.
    /// Without the hardware that is what uadk does.
    fn stored_pages(
        &self,
        at: StreamOffset,
        payload: &[u8],
        page_count: u32,
        compression: MultifdCompression,
    ) -> Result<StreamOffset> {
        let mut cursor = Cursor::new(payload, at);
        for _ in 0..page_count {
            let length_at = cursor.offset();
            let length = u64::from(cursor.be32()?);
            if length > self.page_size.bytes() {
                let bound = self.page_size.bytes();
                let kind = ErrorKind::Limit { what: "length of a compressed page", met: length, bound };
                return Err(Error::at(length_at, kind));
            }
            if length < self.page_size.bytes() {
                return Err(unsupported(length_at, compression));
            }
        }
        let (met, expected) = (cursor.remaining(), u64::from(page_count) * self.page_size.bytes());
        if met != expected {
            let what = "bytes of pages in a packet";
            return Err(malformed(cursor.offset(), what, met.to_string(), expected.to_string()));
        }
        Ok(cursor.offset())
    }

    fn device_state(&mut self, at: StreamOffset) -> Result<DeviceStatePacket<'a>> {
        let name_at = self.cursor.offset();
        let idstr = terminated(self.cursor.bytes(RAMBLOCK_LEN)?, name_at)?;
        let instance_id = self.cursor.be32()?;
        let len = self.cursor.be32()?;
        let payload_at = self.cursor.offset();
        let payload = self.cursor.bytes(len.into())?;
        Ok(DeviceStatePacket { at, idstr, instance_id, payload_at, payload })
    }
}

/// Reads the magic and the version that channels and packets begin with.
pub(super) fn check_magic(cursor: &mut Cursor<'_>, what: &'static str) -> Result<()> {
    let at = cursor.offset();
    let magic = cursor.be32()?;
    if magic != MULTIFD_MAGIC {
        return Err(malformed(at, what, format!("{magic:08x}"), format!("{MULTIFD_MAGIC:08x}")));
    }
    match cursor.be32()? {
        MULTIFD_VERSION => Ok(()),
        met => Err(Error::at(at, ErrorKind::Version { what: "multifd", met, expected: MULTIFD_VERSION })),
    }
}

/// A name that ends with the first NUL.
fn terminated(bytes: &[u8], at: StreamOffset) -> Result<&[u8]> {
    let end = memchr::memchr(0, bytes);
    end.and_then(|end| bytes.get(..end)).ok_or_else(|| {
        malformed(at, "name in a packet", "256 bytes without a NUL".to_owned(), "one that ends")
    })
}

fn malformed(at: StreamOffset, what: &'static str, met: String, expected: impl Into<String>) -> Error {
    Error::at(at, ErrorKind::Malformed { what, met, expected: expected.into() })
}

fn unsupported(at: StreamOffset, compression: MultifdCompression) -> Error {
    let feature = format!("a page compressed by {0} (multifd-compression {0})", compression.name());
    Error::at(at, ErrorKind::Unsupported { feature })
}
