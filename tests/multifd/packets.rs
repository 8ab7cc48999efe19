//! Packets of made channels: what their fields mean.

use super::{
    Whole, is_limit, is_malformed, parse, ram_packets, refuse, small_packets, unpacked, zlib_packets,
    zstd_packets,
};
use crate::support::channel::{self as made, HEADER_LEN, INITIAL_LEN, PAGE, channel};
use ramlift::{
    BlockOffset, Channel, ErrorKind, Packet, PacketContent, PacketPage, StreamOffset, TargetPageSize,
};

#[test]
fn pages_of_data_come_first_then_those_of_zeros() {
    let bytes = channel(0, &small_packets());
    let parsed = parse(&bytes).unwrap();
    let packets: Vec<_> = ram_packets(&parsed).collect();
    let payload = (INITIAL_LEN + HEADER_LEN) as u64;
    let data = |at: u64| PacketContent::InChannel(StreamOffset(at));
    let page = |offset, content| PacketPage { offset: BlockOffset(offset), content };
    assert_eq!(
        packets[0].pages().collect::<Vec<_>>(),
        [
            page(0x3000, data(payload)),
            page(0x1000, data(payload + PAGE as u64)),
            page(0x5000, PacketContent::Zero)
        ]
    );
    assert_eq!(packets.iter().map(|packet| packet.epoch).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(packets.iter().map(|packet| packet.sync).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!((packets[0].idstr, packets[1].idstr), (b"ram".as_slice(), b"".as_slice()));
    assert!(unpacked(&parsed).unwrap().is_empty());
}

#[test]
fn a_sync_packet_ends_the_epoch_that_its_pages_are_in() {
    let mut packets = small_packets();
    packets[0].flags = made::SYNC;
    packets[1].flags = 0;
    let bytes = channel(0, &packets);
    let epochs: Vec<_> = ram_packets(&parse(&bytes).unwrap()).map(|packet| packet.epoch).collect();
    assert_eq!(epochs, [0, 1, 1]);
}

#[test]
fn packed_pages_are_where_they_are_said_to_be() {
    let plain = small_packets();
    for packets in [zlib_packets(), zstd_packets()] {
        let bytes = channel(0, &packets);
        let whole = Whole::read(&bytes);
        assert_eq!(whole.spool, [plain[0].payload.as_slice(), &plain[2].payload].concat());
        let last = ram_packets(&whole.channel).last().unwrap();
        assert_eq!(last.pages().next().unwrap().content, PacketContent::Unpacked(2 * PAGE as u64));
    }
}

#[test]
fn a_packet_without_data_has_no_payload_whatever_it_says() {
    let mut packets = small_packets();
    packets[1].size = Some(0x8000);
    let bytes = channel(0, &packets);
    assert_eq!(parse(&bytes).unwrap().packets().count(), 3);
}

#[test]
fn pages_of_other_sizes_change_the_room_in_packets() {
    let bytes = channel(0, &small_packets());
    let error = Channel::parse(&bytes, TargetPageSize::from_bits(13).unwrap()).unwrap_err();
    assert!(error.to_string().contains("pages_alloc"), "{error}");
    // 1 KiB: room for 512.
    let mut bytes = made::initial_packet(0);
    let mut packet = made::Packet { pages_alloc: Some(512), ..made::Packet::default() }.bytes();
    packet.resize(320 + 8 * 512, 0);
    bytes.extend(packet);
    let small = Channel::parse(&bytes, TargetPageSize::from_bits(10).unwrap()).unwrap();
    assert_eq!(small.packets().count(), 1);
}

#[test]
fn the_state_of_a_device_is_listed() {
    let mut bytes = made::initial_packet(0);
    bytes.extend(made::device_state("0000:00:02.0/vfio", 3, b"opaque"));
    bytes.extend(made::Packet::sync().bytes());
    let packets: Vec<_> = parse(&bytes).unwrap().packets().collect();
    let [Packet::DeviceState(state), Packet::Ram(_)] = packets[..] else { panic!("{packets:?}") };
    assert_eq!((state.idstr, state.instance_id), (b"0000:00:02.0/vfio".as_slice(), 3));
    assert_eq!((state.payload, state.payload_at), (b"opaque".as_slice(), StreamOffset(64 + 276)));
}

#[test]
fn pages_that_qpl_and_uadk_left_as_they_are_are_read() {
    let lengths = |lens: [u32; 2]| lens.map(u32::to_be_bytes).concat();
    for flags in [made::QPL, made::UADK] {
        let [mut packet, ..] = small_packets();
        packet.flags = flags;
        let pages = std::mem::take(&mut packet.payload);
        packet.payload = [lengths([4096, 4096]), pages.clone()].concat();
        let bytes = channel(0, &[packet.clone()]);
        let whole = Whole::read(&bytes);
        let first = ram_packets(&whole.channel).next().unwrap().pages().next().unwrap();
        assert_eq!(whole.page(first), &pages[..PAGE]);

        packet.payload = [lengths([4096, 100]), pages[..PAGE + 100].to_vec()].concat();
        refuse(&channel(0, &[packet.clone()]), Some((INITIAL_LEN + HEADER_LEN + 4) as u64), |kind| {
            matches!(kind, ErrorKind::Unsupported { .. })
        });
        packet.payload = [lengths([4096, 4096]), pages[..PAGE].to_vec()].concat();
        refuse(&channel(0, &[packet.clone()]), Some((INITIAL_LEN + HEADER_LEN + 8) as u64), is_malformed);
        packet.payload = lengths([4096, 4097]).to_vec();
        refuse(&channel(0, &[packet]), Some((INITIAL_LEN + HEADER_LEN + 4) as u64), is_limit);
    }
}
