//! Writes multifd channels, good ones and bad ones.
//!
//! Like `synth`, this repeats the constants of the format and takes nothing
//! from the library.

use std::io::Write;

/// The page size of all channels here.
pub const PAGE: usize = 4096;
/// Pages that a packet has room for.
pub const ROOM: usize = 128;
pub const INITIAL_LEN: usize = 64;
pub const HEADER_LEN: usize = 320 + 8 * ROOM;

pub const SYNC: u32 = 1;
pub const ZLIB: u32 = 1 << 1;
pub const ZSTD: u32 = 2 << 1;
pub const QPL: u32 = 4 << 1;
pub const UADK: u32 = 8 << 1;
pub const QATZIP: u32 = 16 << 1;
pub const DEVICE_STATE: u32 = 32 << 1;

/// One packet with RAM.
#[derive(Clone, Default)]
pub struct Packet {
    pub flags: u32,
    pub number: u64,
    pub block: Vec<u8>,
    pub normal: Vec<u64>,
    pub zero: Vec<u64>,
    pub payload: Vec<u8>,
    /// In place of the payload's length.
    pub size: Option<u32>,
    /// In place of the room there is.
    pub pages_alloc: Option<u32>,
}

impl Packet {
    /// Pages of data, one at each offset, as they are.
    pub fn data(block: &str, offsets: &[u64], pages: &[u8]) -> Self {
        assert_eq!(pages.len(), offsets.len() * PAGE);
        Self { block: block.into(), normal: offsets.into(), payload: pages.into(), ..Self::default() }
    }

    /// What the channels meet at.
    pub fn sync() -> Self {
        Self { flags: SYNC, ..Self::default() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let size = self.size.unwrap_or(self.payload.len() as u32);
        let mut bytes = Vec::new();
        for word in [0x1122_3344, 1, self.flags, self.pages_alloc.unwrap_or(ROOM as u32)] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend((self.normal.len() as u32).to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend((self.zero.len() as u32).to_be_bytes());
        bytes.resize(64, 0);
        bytes.extend(&self.block);
        bytes.resize(320, 0);
        for offset in self.normal.iter().chain(&self.zero) {
            bytes.extend(offset.to_be_bytes());
        }
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(&self.payload);
        bytes
    }
}

/// A channel with these packets.
pub fn channel(id: u8, packets: &[Packet]) -> Vec<u8> {
    let mut bytes = initial_packet(id);
    packets.iter().for_each(|packet| bytes.extend(packet.bytes()));
    bytes
}

pub fn initial_packet(id: u8) -> Vec<u8> {
    let mut bytes = vec![0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];
    bytes.extend([0xaa; 16]);
    bytes.push(id);
    bytes.resize(INITIAL_LEN, 0);
    bytes
}

/// A part of a device's state.
pub fn device_state(device: &str, instance: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [0x1122_3344, 1, DEVICE_STATE] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(device.as_bytes());
    bytes.resize(12 + 256, 0);
    bytes.extend(instance.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The payloads of one channel, packed as zlib packs them: one stream, flushed
/// after each.
pub fn deflated(payloads: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(1));
    let packed = payloads.iter().map(|payload| {
        encoder.write_all(payload).unwrap();
        encoder.flush().unwrap();
        std::mem::take(encoder.get_mut())
    });
    packed.collect()
}

/// The same as zstd does it: one frame.
pub fn zstd_packed(payloads: &[&[u8]], level: i32) -> Vec<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).unwrap();
    let packed = payloads.iter().map(|payload| {
        encoder.write_all(payload).unwrap();
        encoder.flush().unwrap();
        std::mem::take(encoder.get_mut())
    });
    packed.collect()
}
