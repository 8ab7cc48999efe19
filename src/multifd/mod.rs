//! multifd: pages that went through connections of their own.
//!
//! With the capability `multifd`, QEMU opens `multifd-channels` connections
//! beside the one of the stream, and hands out pages to them in packets of one
//! RAM block each. What went through such a connection is a *channel*:
//!
//! ```text
//! be32 11223344  be32 1  uuid of 16 bytes  u8 id  39 bytes, not used
//! packet  packet  …
//! ```
//!
//! The stream itself, the main channel, keeps everything else: block list,
//! devices, description. It has pages of zeros too, as ZERO records, up to
//! QEMU 8.2 and later with `zero-page-detection` set to `legacy`; else those
//! come in packets like the others. It never has a PAGE record, but for what
//! postcopy sends: so read alone it looks like a guest full of zeros.
//!
//! # Which of two copies of a page is the newer
//!
//! The channels meet at *sync points*. Each channel has a packet with SYNC for
//! each of them; the main channel has
//!
//! * a MULTIFD_FLUSH record, one for each point (QEMU 8.1 and later); or
//! * only the EOS at the end of each `ram` section, START and END included:
//!   before QEMU 8.1, and later with a machine type of 8.0 or older (migration
//!   property `multifd-flush-after-each-section`).
//!
//! Which of the two it is, the START section shows: with the first kind it has
//! a MULTIFD_FLUSH in front of its EOS, always. What stands between two points
//! is an *epoch*. It is the number of sync points before it: in a channel
//! SYNC packets, in the main channel MULTIFD_FLUSH or EOS. A page of a later
//! epoch is newer than the same page of an earlier one, wherever they are.
//! All channels and the main one have the same number of sync points; where
//! one has less, it is cut off, or belongs to another migration.
//!
//! MULTIFD_FLUSH alone does not show that there are channels. The first
//! releases of QEMU 8.1 write it into every stream, multifd or not, until
//! commit d4f34485ca8a ("migration: Non multifd migration don't care about
//! multifd flushes"), in v8.2.0 and v8.1's later ones: such a stream has its
//! pages in PAGE records, like any other.
//!
//! A packet with SYNC may have pages: before QEMU 9.0, when a channel has not
//! yet taken up the pages that it was given. They belong to the epoch that the
//! packet ends, and a packet without pages and without SYNC follows it.
//!
//! Within an epoch a page is sent once over all channels and the main one.
//! For QEMU goes over the blocks in ascending order, and lets the channels
//! meet before it starts over (MULTIFD_FLUSH), or before it looks for newly
//! written pages (EOS). There is one exception: `multifd_queue_page` of QEMU
//! 7.2 queues a page a second time if a channel has sent off the packet that
//! the page completed in the very moment. Then it is the last page of one
//! packet and the first one of the next. The copies may differ in a guest that
//! runs, but then the page was written to after QEMU took it for clean, and
//! comes again in a later epoch. So the order of packets within an epoch is of
//! no importance. It could not be known either: `packet_num` is counted when a
//! packet is handed to a channel before QEMU 9.0, and overwritten if SYNC is
//! added to it; later it is counted by the channel when it is about to send.
//!
//! Counted in streams of QEMU 7.2, 10.0 and 11.1, with 2 to 4 channels: as
//! many SYNC packets in each channel as there are sync points in the main
//! channel. A stopped guest has 3 of them, a live one 9 to 17. In all of 7.2's,
//! between 1 and 40 pages came twice in an epoch, each the last and the first
//! of consecutive packets; in those of 10.0 and 11.1 none did.
//!
//! Sources followed: QEMU `migration/multifd.c` (`multifd_send_sync_main`,
//! `multifd_send_thread`, `multifd_queue_page`), `migration/multifd-nocomp.c`
//! (`multifd_ram_flush_and_sync`), `migration/ram.c` (`find_dirty_block`,
//! `ram_save_setup`, `ram_save_iterate`, `ram_save_complete`), of QEMU 7.2.0
//! and 10.0.13.

mod packet;
mod unpack;

use std::io::Write;
use std::path::Path;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{StreamOffset, TargetPageSize, index};
use crate::wire::multifd::MULTIFD_PACKET_SIZE;

pub use packet::{DeviceStatePacket, MultifdCompression, Packet, PacketContent, PacketPage, RamPacket};

use packet::{PacketReader, check_magic};
use unpack::Unpacker;

/// What went through one connection of a multifd migration.
///
/// A page may be there several times, and in several channels. The copy of the
/// highest [epoch](RamPacket::epoch) is what the guest held; the epochs of the
/// main channel are counted by its MULTIFD_FLUSH records or, if its START
/// section has none, by the ends of its `ram` sections.
///
/// All of it has been looked at once, but for compressed payloads: those are
/// looked at by [`unpack`](Self::unpack).
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    uuid: [u8; 16],
    id: u8,
    compression: MultifdCompression,
    sync_count: u64,
    unpacked_len: u64,
    /// Stands at the first packet.
    packets: PacketReader<'a>,
}

impl<'a> Channel<'a> {
    /// Reads a channel, whose bytes `input` is, to its end.
    ///
    /// `page_size` is the size of a target page, which the main channel says.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed), [`Limit`](ErrorKind::Limit) or
    /// [`Version`](ErrorKind::Version) for what is no channel, or one with
    /// pages of another size, or damaged; [`Truncated`](ErrorKind::Truncated)
    /// if it ends inside a packet; [`Unsupported`](ErrorKind::Unsupported) for
    /// pages compressed by qpl, uadk or qatzip. Offsets are those in `input`.
    pub fn parse(input: &'a [u8], page_size: TargetPageSize) -> Result<Self> {
        let mut cursor = Cursor::new(input, StreamOffset(0));
        let place = "multifd channel";
        check_magic(&mut cursor, "start of a multifd channel").map_err(|error| error.inside(place))?;
        let (uuid, id) = initial_packet(&mut cursor).map_err(|error| error.inside(place))?;
        let packets = PacketReader::new(cursor, page_size);
        let mut reader = packets;
        while reader.next().map_err(|error| error.inside(format_args!("{place} {id}")))?.is_some() {}
        let compression = reader.compression.unwrap_or(MultifdCompression::None);
        let (sync_count, unpacked_len) = (reader.epoch, reader.unpacked_len);
        Ok(Self { uuid, id, compression, sync_count, unpacked_len, packets })
    }

    /// The UUID of the guest; zeros if it has none.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// The channel's number, from 0.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// How its pages are compressed.
    pub fn compression(&self) -> MultifdCompression {
        self.compression
    }

    /// Packets with SYNC: how many sync points there were.
    pub fn sync_count(&self) -> u64 {
        self.sync_count
    }

    /// How many bytes [`unpack`](Self::unpack) writes.
    pub fn unpacked_len(&self) -> u64 {
        self.unpacked_len
    }

    /// The packets, in the order in which they were sent.
    pub fn packets(&self) -> impl Iterator<Item = Packet<'a>> + use<'a> {
        let mut reader = self.packets;
        // `parse` has been here: there are no errors.
        std::iter::from_fn(move || reader.next().ok().flatten())
    }

    /// Unpacks all pages of data, one after another, into `spool`, which is
    /// the file `path`. A page is where its [`PacketContent::Unpacked`] says.
    ///
    /// Writes nothing if the channel is not compressed.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) if a packet does not unpack to just
    /// the pages that it is said to have; [`Io`](ErrorKind::Io) if `spool`
    /// cannot be written to.
    pub fn unpack(&self, spool: &mut impl Write, path: &Path) -> Result<()> {
        let Some(mut unpacker) = Unpacker::new(self.compression).map_err(|why| Error::io(path, why))? else {
            return Ok(());
        };
        // One byte more than the pages take: see `Unpacker::unpack`.
        let mut buffer = vec![0; index(MULTIFD_PACKET_SIZE + 1).unwrap_or_default()];
        for packet in self.packets() {
            if let Packet::Ram(packet) = packet
                && packet.data_pages() > 0
            {
                let pages = self.unpack_packet(&packet, &mut unpacker, &mut buffer)?;
                spool.write_all(pages).map_err(|why| Error::io(path, why))?;
            }
        }
        Ok(())
    }

    fn unpack_packet<'b>(
        &self,
        packet: &RamPacket<'_>,
        unpacker: &mut Unpacker,
        buffer: &'b mut [u8],
    ) -> Result<&'b [u8]> {
        let expected = packet.data_pages() * self.packets.page_size().bytes();
        let room = index(expected + 1).and_then(|len| buffer.get_mut(..len)).unwrap_or_default();
        let unpacked = unpacker.unpack(packet.payload(), room);
        let met = match unpacked {
            Ok(len) if len as u64 == expected => return Ok(buffer.get(..len).unwrap_or_default()),
            Ok(len) if len as u64 > expected => "more".to_owned(),
            Ok(len) => format!("{len}"),
            Err(why) => why,
        };
        let (what, expected) = ("bytes unpacked from a packet", expected.to_string());
        let error = Error::at(packet.at, ErrorKind::Malformed { what, met, expected });
        Err(error.inside(format_args!("multifd channel {}", self.id)))
    }
}

/// Reads what follows magic and version: UUID and number.
fn initial_packet(cursor: &mut Cursor<'_>) -> Result<([u8; 16], u8)> {
    let uuid = cursor.array()?;
    let id = cursor.u8()?;
    cursor.array::<39>()?;
    Ok((uuid, id))
}
