//! Packets that nobody wrote in good faith, and channels that are cut.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use super::{
    SPOOL, Whole, is_limit, is_malformed, packed, parse, refuse, small_packets, unpacked, zlib_packets,
    zstd_packets,
};
use crate::support::channel::{self as made, INITIAL_LEN, PAGE, ROOM, channel};
use crate::support::fixtures::unpack;
use crate::support::synth::noise;
use proptest::prelude::*;
use ramlift::{Channel, Error, ErrorKind, Packet, TargetPageSize};

/// The small channel with one byte changed.
fn with_byte(at: u64, byte: u8) -> Vec<u8> {
    let mut bytes = channel(0, &small_packets());
    bytes[at as usize] = byte;
    bytes
}

#[test]
fn what_is_no_channel_is_refused() {
    refuse(&unpack("pc-7.2-multifd-live"), Some(0), is_malformed);
    refuse(&with_byte(7, 2), Some(0), |kind| matches!(kind, ErrorKind::Version { met: 2, .. }));
}

#[test]
fn packets_out_of_shape_are_refused() {
    let at = INITIAL_LEN as u64;
    refuse(&with_byte(at, 0), Some(at), is_malformed); // magic
    refuse(&with_byte(at + 7, 2), Some(at), |kind| matches!(kind, ErrorKind::Version { .. }));
    refuse(&with_byte(at + 10, 1), Some(at + 8), is_malformed); // an unknown flag
    refuse(&with_byte(at + 11, 3 << 1), Some(at + 8), is_malformed); // zlib and zstd
    refuse(&with_byte(at + 11, 0x41), Some(at + 8), is_malformed); // DEVICE_STATE and SYNC
    refuse(&with_byte(at + 15, 64), Some(at + 12), is_malformed); // pages_alloc
    refuse(&with_byte(at + 19, 128), Some(at + 12), is_limit); // 128 and 1
    refuse(&with_byte(at + 16, 0xff), Some(at + 12), is_limit);
    refuse(&with_byte(at + 32, 0xff), Some(at + 12), is_limit);
    refuse(&with_byte(at + 23, 1), Some(at), is_malformed); // next_packet_size
    refuse(&with_byte(at + 327, 1), Some(at + 320), is_malformed); // offset of a page
    refuse(&with_byte(at + 320 + 23, 1), Some(at + 320 + 16), is_malformed); // of one of zeros
    let mut packets = small_packets();
    packets[0].pages_alloc = Some(0);
    refuse(&channel(0, &packets), Some(at + 12), is_limit);
    packets = small_packets();
    packets[0].block = vec![b'x'; 256];
    refuse(&channel(0, &packets), Some(at + 64), is_malformed);
    packets = small_packets();
    packets[2].flags = made::ZLIB;
    refuse(&channel(0, &packets), None, is_malformed); // packed, after one that is not
    packets[0].flags = made::QATZIP;
    refuse(&channel(0, &packets), None, |kind| matches!(kind, ErrorKind::Unsupported { .. }));
    packets = zlib_packets();
    packets[0].size = Some((1 << 20) + 1);
    refuse(&channel(0, &packets), Some(at), is_limit);
}

#[test]
fn payloads_of_another_length_than_the_pages_are_refused() {
    let first = Some(INITIAL_LEN as u64);
    for packets in [zlib_packets(), zstd_packets()] {
        let mut fewer = packets.clone();
        fewer[0].normal.pop();
        refuse(&channel(0, &fewer), first, is_malformed);
        let mut more = packets.clone();
        more[0].normal.push(0x9000);
        refuse(&channel(0, &more), first, is_malformed);
        let mut empty = packets.clone();
        empty[0].payload.clear();
        refuse(&channel(0, &empty), first, is_malformed);
        let mut again = packets.clone();
        again[2].payload = packets[0].payload.clone();
        refuse(&channel(0, &again), None, is_malformed);
        let mut damaged = packets.clone();
        damaged[0].payload[..2].fill(0xff);
        refuse(&channel(0, &damaged), first, is_malformed);
    }
}

#[test]
fn a_packed_stream_that_ends_is_refused_if_more_follows() {
    let mut packets = small_packets();
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&packets[0].payload).unwrap();
    packets[0].payload = [encoder.finish().unwrap(), vec![0; 3]].concat();
    packets[0].flags = made::ZLIB;
    refuse(&channel(0, &packets[..1]), Some(INITIAL_LEN as u64), is_malformed);
}

#[test]
fn a_bomb_costs_one_packet() {
    // 64 MiB of zeros in a payload for one page.
    let zeros = vec![0; 64 << 20];
    for (flags, mut payloads) in
        [(made::ZLIB, made::deflated(&[&zeros])), (made::ZSTD, made::zstd_packed(&[&zeros], 1))]
    {
        let mut packet = made::Packet::data("ram", &[0], &[0; PAGE]);
        packet.flags = flags;
        packet.payload = payloads.remove(0);
        assert!(packet.payload.len() < 1 << 20);
        refuse(&channel(0, &[packet]), Some(INITIAL_LEN as u64), is_malformed);
    }
}

#[test]
fn a_window_larger_than_qemu_can_ask_for_is_refused() {
    // Level 20 is the highest that QEMU takes.
    Whole::read(&channel(0, &packed(made::ZSTD, |payloads| made::zstd_packed(payloads, 20))));
    let packed_with = |window_log: u32| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(window_log).unwrap();
        let mut packet = made::Packet::data("ram", &[0], &noise(2, PAGE));
        encoder.write_all(&packet.payload).unwrap();
        encoder.flush().unwrap();
        packet.payload = encoder.get_ref().clone();
        packet.flags = made::ZSTD;
        channel(0, &[packet])
    };
    Whole::read(&packed_with(25));
    refuse(&packed_with(26), Some(INITIAL_LEN as u64), is_malformed);
}

#[test]
fn a_spool_that_is_full_is_named() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let bytes = channel(0, &zlib_packets());
    let error: Error = parse(&bytes).unwrap().unpack(&mut Full, Path::new(SPOOL)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io { path, .. } if path == Path::new(SPOOL)), "{error:?}");
}

#[test]
fn a_channel_cut_anywhere_but_between_packets_is_refused() {
    let packets = small_packets();
    let bytes = channel(0, &packets);
    let ends = packets.iter().scan(INITIAL_LEN, |at, packet| {
        *at += packet.bytes().len();
        Some(*at)
    });
    let whole: BTreeSet<usize> = [INITIAL_LEN].into_iter().chain(ends).collect();
    for len in 0..bytes.len() {
        let cut = parse(&bytes[..len]);
        if whole.contains(&len) {
            cut.unwrap();
            continue;
        }
        let error = cut.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "{len}: {error}");
        assert!(error.offset().unwrap().0 <= len as u64, "{len}: {error}");
    }
}

/// Whatever the bytes are: what can be unpacked is what was announced.
fn never_panics(bytes: &[u8]) {
    for bits in [8, 12, 16] {
        let Ok(channel) = Channel::parse(bytes, TargetPageSize::from_bits(bits).unwrap()) else { continue };
        for packet in channel.packets() {
            if let Packet::Ram(packet) = packet {
                assert_eq!(packet.pages().count() as u64, packet.data_pages() + packet.zero_pages());
                assert!(packet.pages().count() <= 2048);
            }
        }
        if let Ok(spool) = unpacked(&channel) {
            assert_eq!(spool.len() as u64, channel.unpacked_len());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        never_panics(&bytes);
        never_panics(&[made::initial_packet(0), bytes].concat());
    }

    #[test]
    fn any_damage_is_read_or_refused(
        kind in 0..3_usize,
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let packets = [small_packets, zlib_packets, zstd_packets];
        let mut bytes = channel(0, &packets[kind]());
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        never_panics(&bytes);
    }

    #[test]
    fn any_header_is_read_or_refused(
        fields in proptest::collection::vec(any::<u32>(), 6),
        flags in 0..0x80_u32,
        counts in (0..200_u32, 0..200_u32),
    ) {
        let mut packet = made::Packet::default().bytes();
        let words = [flags, ROOM as u32, counts.0, fields[0], fields[1], fields[2], counts.1];
        for (number, word) in words.into_iter().enumerate() {
            packet[8 + 4 * number..12 + 4 * number].copy_from_slice(&word.to_be_bytes());
        }
        let bytes = [made::initial_packet(0), packet.clone(), packet].concat();
        never_panics(&bytes);
    }
}
