//! Joining the channels of a multifd migration to its main channel.
//!
//! The main channel has the block list and pages of zeros; the channels have
//! the pages. All of them are cut into epochs by sync points, and a page of a
//! later epoch is the newer one (see [`multifd`](crate::multifd)). So the index
//! is made anew, epoch by epoch: what the main channel has, then what the
//! others have.

use std::iter::Peekable;

use crate::error::{Error, ErrorKind, Result};
use crate::multifd::{Channel, Packet, PacketContent, RamPacket};
use crate::ram::Ram;
use crate::ram::index::IndexBuilder;
use crate::ram::record::{Certainty, PageRecord, PageRecords, RecordContent, RecordState};
use crate::ram::sources;
use crate::section::{Section, SectionType};
use crate::units::{BlockId, StreamOffset};

/// A channel, and its pages unpacked if they are compressed.
#[derive(Clone, Copy, Debug)]
pub struct ChannelPages<'a> {
    /// The channel.
    pub channel: Channel<'a>,
    /// What [`Channel::unpack`] wrote; the channel's own bytes if it is not
    /// compressed.
    pub pages: &'a [u8],
}

type RamPackets<'a> = Peekable<Box<dyn Iterator<Item = RamPacket<'a>> + 'a>>;

/// A channel on the way to being joined.
struct Joining<'a> {
    id: u8,
    packets: RamPackets<'a>,
    /// Where its pages are.
    place: StreamOffset,
}

struct Joiner<'r, 'a> {
    ram: &'r Ram<'a>,
    builders: Vec<IndexBuilder>,
    channels: Vec<Joining<'a>>,
    epoch: u64,
}

impl<'a> Ram<'a> {
    /// Takes the pages of `channels` in. `sections` are those of this RAM.
    pub(crate) fn join<'s>(
        &mut self,
        sections: impl Iterator<Item = &'s Section>,
        channels: &[ChannelPages<'a>],
    ) -> Result<()> {
        if let Some(channel) = channels.first().filter(|_| !self.list.mapped.is_empty()) {
            let what = "not part of this migration: with mapped-ram all pages are in the stream itself";
            return Err(strange(&channel.channel, what));
        }
        let mut joining = Vec::new();
        for ChannelPages { channel, pages } in channels {
            let place = self
                .sources
                .add((*pages).into())
                .ok_or_else(|| strange(channel, "one more than can be read"))?;
            let packets = channel.packets().filter_map(|packet| match packet {
                Packet::Ram(packet) => Some(packet),
                Packet::DeviceState(_) => None,
            });
            let packets: Box<dyn Iterator<Item = RamPacket<'a>> + 'a> = Box::new(packets);
            joining.push(Joining { id: channel.id(), packets: packets.peekable(), place });
        }
        let builders = self.blocks().map(|_| IndexBuilder::default()).collect();
        let mut joiner = Joiner { ram: self, builders, channels: joining, epoch: 0 };
        joiner.run(sections)?;
        let (epochs, builders) = (joiner.epoch, joiner.builders);
        check_channels(channels, epochs)?;
        // What was supplied from a file beside the stream stays.
        for (pages, builder) in self.pages.iter_mut().zip(builders).filter(|(pages, _)| !pages.is_mapped()) {
            *pages = builder.finish(self.page_size);
        }
        Ok(())
    }
}

/// Whether channels are of one migration, all there, and whole.
fn check_channels(channels: &[ChannelPages<'_>], epochs: u64) -> Result<()> {
    let mut ids = std::collections::HashSet::new();
    for ChannelPages { channel, .. } in channels {
        let first = channels.first().map_or(channel.uuid(), |first| first.channel.uuid());
        if !ids.insert(channel.id()) {
            return Err(strange(channel, "given twice"));
        }
        if channel.uuid() != first {
            return Err(strange(channel, "of another guest than the first one: their UUIDs differ"));
        }
        if channel.sync_count() != epochs {
            let syncs = channel.sync_count();
            let why =
                format!("cut off, or of another migration: {syncs} sync points, {epochs} in the stream");
            return Err(strange(channel, &why));
        }
    }
    match (0..=u8::MAX).zip(0..channels.len()).find(|(id, _)| !ids.contains(id)) {
        Some((id, _)) => {
            let why = format!("multifd channel {id} is missing: channels are numbered from 0");
            Err(Error::new(ErrorKind::Part { why }))
        }
        None => Ok(()),
    }
}

/// A place for a page of zeros, which has none in the stream: one of its own
/// that neighbours have beside it.
fn place_of_zeros(page: u64) -> StreamOffset {
    StreamOffset(sources::NOWHERE.0 + page * 9)
}

fn strange(channel: &Channel<'_>, what: &str) -> Error {
    Error::new(ErrorKind::Part { why: format!("multifd channel {} is {what}", channel.id()) })
}

impl<'a> Joiner<'_, 'a> {
    fn run<'s>(&mut self, sections: impl Iterator<Item = &'s Section>) -> Result<()> {
        let ram = self.ram;
        let mut state = RecordState::new(ram.page_size(), Certainty::Settled);
        let mut by_flush = false;
        for section in sections {
            let is_start = section.kind == SectionType::Start;
            let body = ram.records_in(section);
            state.current = ram.current_at(body.offset(), state.current);
            let mut records = PageRecords::new(body, &ram.list, state);
            let (mut flushes, mut is_whole) = (0, true);
            while let Some(record) = records.next() {
                self.pass_to(records.flush_count() - flushes)?;
                flushes = records.flush_count();
                match record {
                    Ok(record) => self.push(&record)?,
                    // A salvage has listed what is lost, and gone on behind.
                    Err(_) if ram.is_tolerant() => is_whole = false,
                    Err(error) => return Err(error),
                }
            }
            self.pass_to(records.flush_count() - flushes)?;
            by_flush |= is_start && records.flush_count() > 0;
            self.pass_to(u64::from(is_whole && !by_flush))?;
            state = records.state();
        }
        self.take_epoch()
    }

    /// Goes `count` sync points on.
    fn pass_to(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            self.take_epoch()?;
            self.epoch += 1;
        }
        Ok(())
    }

    fn push(&mut self, record: &PageRecord) -> Result<()> {
        if record.content == RecordContent::Xbzrle {
            let feature = "XBZRLE together with multifd".to_owned();
            return Err(Error::at(record.payload, ErrorKind::Unsupported { feature }));
        }
        let size = self.ram.page_size();
        if let Some(builder) = self.builders.get_mut(record.block.0) {
            builder.push(size.page_of(record.offset), record.content, record.payload, size);
        }
        Ok(())
    }

    /// Takes what the channels have of the present epoch.
    fn take_epoch(&mut self) -> Result<()> {
        let epoch = self.epoch;
        let mut channels = std::mem::take(&mut self.channels);
        for channel in &mut channels {
            while let Some(packet) = channel.packets.next_if(|packet| packet.epoch <= epoch) {
                self.take_packet(&packet, channel.place)
                    .map_err(|error| error.inside(format_args!("multifd channel {}", channel.id)))?;
            }
        }
        self.channels = channels;
        Ok(())
    }

    fn take_packet(&mut self, packet: &RamPacket<'a>, place: StreamOffset) -> Result<()> {
        if packet.data_pages() + packet.zero_pages() == 0 {
            return Ok(());
        }
        let (id, used_length) = self.block_of(packet)?;
        let size = self.ram.page_size();
        let Some(builder) = self.builders.get_mut(id.0) else { return Ok(()) };
        for page in packet.pages() {
            if page.offset.0 >= used_length || !page.offset.0.is_multiple_of(size.bytes()) {
                let idstr = crate::Idstr::from(packet.idstr).to_string();
                let kind = ErrorKind::PageOutside { offset: page.offset.0, idstr, used_length };
                return Err(Error::at(packet.at, kind));
            }
            let number = size.page_of(page.offset);
            let at = match page.content {
                PacketContent::Zero => {
                    builder.push(number, RecordContent::Fill(0), place_of_zeros(number), size);
                    continue;
                }
                PacketContent::InChannel(at) => at.0,
                PacketContent::Unpacked(at) => at,
            };
            let place = StreamOffset(place.0.saturating_add(at));
            // Only what the caller gave as the channel's pages can be short.
            let available = self.ram.sources.from(place).map_or(0, |bytes| bytes.len() as u64);
            if available < size.bytes() {
                let kind = ErrorKind::Truncated { needed: size.bytes(), available };
                return Err(Error::at(packet.at, kind));
            }
            builder.push_packed(number, place, size);
        }
        Ok(())
    }

    fn block_of(&self, packet: &RamPacket<'_>) -> Result<(BlockId, u64)> {
        let found = self.ram.find(packet.idstr);
        let found = found.and_then(|id| Some((id, self.ram.block(id)?.used_length)));
        found.ok_or_else(|| {
            let met = format!("\"{}\"", crate::Idstr::from(packet.idstr));
            let expected = "a name of the stream's block list".to_owned();
            Error::at(packet.at, ErrorKind::Malformed { what: "RAM block of a packet", met, expected })
        })
    }
}
