//! multifd: the packets of channels, any bytes, joined to a main channel that
//! fits them, against a merge as plain as can be.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use ramlift::{
    BlockId, BlockOffset, Channel, ChannelPages, MultifdCompression, Packet, PacketContent, Page, Stream,
    TargetPageSize,
};

use super::channel::initial_packet;
use super::look::{check_error, look_through};
use super::synth::{Block, MULTIFD_FLUSH, RAM_ID, Records, Synth, block_list};

const PAGE: usize = 4096;
const BLOCKS: [(&str, u64); 2] = [("main.ram", 64), ("vga.vram", 3)];

/// What is unpacked at most: a few bytes can be a thousand times as many.
const SPOOL: usize = 64 << 20;

/// Pages by block and number.
type Pages = BTreeMap<(usize, u64), Vec<u8>>;

/// The first byte says how many channels there are, one or two. Then the length
/// of the first one's packets, `be16`, and the packets.
pub fn run(bytes: &[u8]) {
    let Some(([count, len @ ..], packets)) = bytes.split_first_chunk::<3>() else { return };
    let split = if count & 1 == 0 { packets.len() } else { usize::from(u16::from_be_bytes(*len)) };
    let (first, second) = packets.split_at(split.min(packets.len()));
    let count = usize::from(count & 1) + 1;
    let inputs: Vec<Vec<u8>> = (0..)
        .zip([first, second])
        .take(count)
        .map(|(id, rest)| [&initial_packet(id), rest].concat())
        .collect();
    let mut channels = Vec::new();
    for input in &inputs {
        match Channel::parse(input, TargetPageSize::KIB_4) {
            Ok(channel) => channels.push((input.as_slice(), channel)),
            Err(error) => return check_error(&error, input),
        }
    }
    let spools: Vec<Vec<u8>> = match channels.iter().map(|(input, channel)| spool(input, channel)).collect() {
        Some(spools) => spools,
        None => return,
    };
    join(&channels, &spools);
}

/// The pages of a channel, unpacked if they are packed.
fn spool(input: &[u8], channel: &Channel<'_>) -> Option<Vec<u8>> {
    if channel.compression() == MultifdCompression::None {
        return Some(input.to_vec());
    }
    let mut spool = Spool(Vec::new());
    match channel.unpack(&mut spool, Path::new("spool")) {
        Ok(()) => {
            assert_eq!(spool.0.len() as u64, channel.unpacked_len());
            Some(spool.0)
        }
        Err(error) => {
            assert!(spool.0.len() as u64 <= channel.unpacked_len(), "more than was said");
            check_error(&error, input);
            None
        }
    }
}

struct Spool(Vec<u8>);

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > SPOOL {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn join(channels: &[(&[u8], Channel<'_>)], spools: &[Vec<u8>]) {
    let syncs = channels[0].1.sync_count();
    let main = main_channel(syncs);
    let mut stream = Stream::parse(&main).expect("the main channel is a stream");
    let pages: Vec<ChannelPages<'_>> = channels
        .iter()
        .zip(spools)
        .map(|((_, channel), pages)| ChannelPages { channel: *channel, pages })
        .collect();
    let expected = merge(channels, spools, syncs);
    match (stream.join(&pages), expected) {
        (Ok(()), Some(expected)) => {
            look_through(&stream, &main);
            check_pages(&stream, &expected);
        }
        (Err(error), None) => assert!(!error.to_string().is_empty()),
        (Ok(()), None) => panic!("channels are joined that do not fit"),
        (Err(error), Some(_)) => panic!("channels that fit are refused: {error}"),
    }
}

/// A main channel with as many sync points, and pages of zeros before each.
fn main_channel(syncs: u64) -> Vec<u8> {
    let blocks = BLOCKS.map(|(name, pages)| Block::new(name, pages * PAGE as u64));
    let total = blocks.iter().map(|block| block.used_length).sum();
    let first = if syncs > 0 { Records::new().word(MULTIFD_FLUSH, &[]) } else { Records::new() };
    let mut records = Records::new();
    for point in 1..syncs {
        records = records.fill("main.ram", zeroed(point) * PAGE as u64, 0).word(MULTIFD_FLUSH, &[]);
    }
    let list = [block_list(total, &blocks), first.end()].concat();
    Synth::machine()
        .target_page_bits(12)
        .start(RAM_ID, "ram", 4, &list)
        .ram_part(records)
        .finish_undescribed()
}

/// Which page of the first block is zero in an epoch.
fn zeroed(epoch: u64) -> u64 {
    epoch * 7 % 64
}

/// Guest memory, epoch by epoch; `None` if the channels do not fit.
fn merge(channels: &[(&[u8], Channel<'_>)], spools: &[Vec<u8>], syncs: u64) -> Option<Pages> {
    // Without a flush in START each end of a section is a sync point.
    let points = if syncs == 0 { 2 } else { syncs };
    if channels.iter().any(|(_, channel)| channel.sync_count() != points) {
        return None;
    }
    let mut pages = Pages::new();
    for epoch in 0..=points {
        if (1..syncs).contains(&epoch) {
            pages.insert((0, zeroed(epoch)), vec![0; PAGE]);
        }
        for ((input, channel), spool) in channels.iter().zip(spools) {
            for packet in channel.packets() {
                let Packet::Ram(packet) = packet else { continue };
                if packet.epoch != epoch || packet.data_pages() + packet.zero_pages() == 0 {
                    continue;
                }
                let block = BLOCKS.iter().position(|(name, _)| name.as_bytes() == packet.idstr)?;
                for page in packet.pages() {
                    let number = page.offset.0 / PAGE as u64;
                    if number >= BLOCKS[block].1 || page.offset.0 % PAGE as u64 != 0 {
                        return None;
                    }
                    let content = match page.content {
                        PacketContent::Zero => vec![0; PAGE],
                        PacketContent::InChannel(at) => input[at.0 as usize..][..PAGE].to_vec(),
                        PacketContent::Unpacked(at) => spool[at as usize..][..PAGE].to_vec(),
                    };
                    pages.insert((block, number), content);
                }
            }
        }
    }
    Some(pages)
}

fn check_pages(stream: &Stream<'_>, expected: &Pages) {
    let ram = stream.ram().unwrap();
    for (block, (name, pages)) in BLOCKS.iter().enumerate() {
        for number in 0..*pages {
            let page = ram.page(BlockId(block), BlockOffset(number * PAGE as u64)).unwrap();
            let is_it = match (&page, expected.get(&(block, number))) {
                (Page::Absent, None) => true,
                (Page::Fill(byte), Some(content)) => content.iter().all(|other| other == byte),
                (Page::Data(bytes), Some(content)) => bytes == content,
                _ => false,
            };
            assert!(is_it, "page {number} of {name}");
        }
    }
}
