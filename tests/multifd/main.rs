//! multifd channels: those of real migrations, merged with their main channel,
//! give what the guest held; made ones are read as they are or refused.

#[path = "../support/mod.rs"]
mod support;

mod joined;
mod migrations;
mod packets;
mod refused;

use std::path::Path;

use ramlift::{
    Channel, ErrorKind, Packet, PacketContent, PacketPage, RamPacket, Result, StreamOffset, TargetPageSize,
};
use support::channel::{self as made, PAGE};
use support::synth::noise;

const SPOOL: &str = "spool";

fn parse(input: &[u8]) -> Result<Channel<'_>> {
    Channel::parse(input, TargetPageSize::KIB_4)
}

fn unpacked(channel: &Channel<'_>) -> Result<Vec<u8>> {
    let mut spool = Vec::new();
    channel.unpack(&mut spool, Path::new(SPOOL))?;
    Ok(spool)
}

fn ram_packets<'a>(channel: &Channel<'a>) -> impl Iterator<Item = RamPacket<'a>> + use<'a> {
    channel.packets().map(|packet| match packet {
        Packet::Ram(packet) => packet,
        Packet::DeviceState(_) => panic!("no device here has such a state"),
    })
}

/// A channel with all there is to know to find its pages.
struct Whole<'a> {
    input: &'a [u8],
    channel: Channel<'a>,
    spool: Vec<u8>,
}

impl<'a> Whole<'a> {
    fn read(input: &'a [u8]) -> Self {
        let channel = parse(input).unwrap();
        let spool = unpacked(&channel).unwrap();
        assert_eq!(spool.len() as u64, channel.unpacked_len());
        Self { input, channel, spool }
    }

    fn page(&self, page: PacketPage) -> &[u8] {
        match page.content {
            PacketContent::Zero => &[0; PAGE],
            PacketContent::InChannel(at) => &self.input[at.0 as usize..at.0 as usize + PAGE],
            PacketContent::Unpacked(at) => &self.spool[at as usize..at as usize + PAGE],
        }
    }
}

/// Real migrations, all of guests that ran, and how many channels each has.
const LIVE: [(&str, usize); 6] = [
    ("pc-7.2-multifd-live", 4),
    ("pc-7.2-multifd-zlib-live", 2),
    ("pc-10.0-multifd-zstd-live", 2),
    ("pc-10.0-multifd-zero-live", 2),
    ("pc-10.0-multifd-legacy-live", 3),
    ("pc-11.1-multifd-machine-7.2-live", 3),
];

/// Two pages of data and one of zeros, a sync point, and one page more.
fn small_packets() -> [made::Packet; 3] {
    let pages = noise(1, 3 * PAGE);
    let mut first = made::Packet::data("ram", &[0x3000, 0x1000], &pages[..2 * PAGE]);
    first.zero = vec![0x5000];
    [first, made::Packet::sync(), made::Packet::data("ram", &[0x1000], &pages[2 * PAGE..])]
}

/// The same, its payloads packed.
fn packed(flags: u32, pack: impl Fn(&[&[u8]]) -> Vec<Vec<u8>>) -> [made::Packet; 3] {
    let mut packets = small_packets();
    let payloads = pack(&[&packets[0].payload, &packets[2].payload]);
    for (number, payload) in [0, 2].into_iter().zip(payloads) {
        packets[number].payload = payload;
        packets[number].flags = flags;
    }
    packets
}

fn zlib_packets() -> [made::Packet; 3] {
    packed(made::ZLIB, made::deflated)
}

fn zstd_packets() -> [made::Packet; 3] {
    packed(made::ZSTD, |payloads| made::zstd_packed(payloads, 1))
}

/// Checks that a channel is refused, at the offset given if one is.
fn refuse(bytes: &[u8], at: Option<u64>, expected: impl Fn(&ErrorKind) -> bool) {
    let error = parse(bytes).and_then(|channel| unpacked(&channel)).unwrap_err();
    assert!(expected(error.kind()), "{error:?}");
    assert!(error.to_string().starts_with("multifd channel"), "{error}");
    if let Some(at) = at {
        assert_eq!(error.offset(), Some(StreamOffset(at)), "{error}");
    }
}

fn is_malformed(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::Malformed { .. })
}

fn is_limit(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::Limit { .. })
}
