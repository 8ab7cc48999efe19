//! multifd channels: those of real migrations, merged with their main channel,
//! give what the guest held; made ones are read as they are or refused.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use proptest::prelude::*;
use ramlift::{
    BlockOffset, Channel, ChannelPages, Error, ErrorKind, MultifdCompression, Packet, PacketContent,
    PacketPage, Page, Progress, RamPacket, Result, Stream, StreamOffset, TargetPageSize,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::channel::{self as made, HEADER_LEN, INITIAL_LEN, PAGE, ROOM, channel};
use support::cli::{Output, Workplace};
use support::fixtures::{read_json, unpack, unpack_channels};
use support::naive::{Content, Naive};
use support::synth::{Block, MULTIFD_FLUSH, RAM_ID, Records, Synth, block_list, noise};

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

/// A migration as its channels have it, main channel first.
struct Migration {
    truth: Value,
    main: Naive,
    channels: Vec<Vec<u8>>,
}

impl Migration {
    fn load((name, channel_count): (&str, usize)) -> Self {
        let truth = read_json("manifest.json")[name].clone();
        let channels = unpack_channels(name);
        assert_eq!(channels.len(), channel_count, "{name}");
        for (channel, truth) in channels.iter().zip(truth["channels"].as_array().unwrap()) {
            assert_eq!(sha256(channel), truth["stream_sha256"], "{name}");
        }
        Self { truth, main: Naive::read(&unpack(name), PAGE), channels }
    }

    fn channels(&self) -> Vec<Whole<'_>> {
        self.channels.iter().map(|input| Whole::read(input)).collect()
    }

    /// For each sync point, how many records of the main channel are before.
    fn sync_points(&self) -> &[usize] {
        if self.main.flushes.is_empty() { &self.main.bodies } else { &self.main.flushes }
    }

    /// Guest memory: epoch by epoch, in each first the main channel and then
    /// the others in the order given.
    fn merge(&self, channels: &[&Whole<'_>]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let blocks = self.main.blocks.iter();
        let mut images: BTreeMap<_, _> =
            blocks.map(|(name, len)| (name.clone(), vec![0xa5; *len as usize])).collect();
        let mut put = |block: &[u8], offset: u64, page: &[u8]| {
            images.get_mut(block).unwrap()[offset as usize..offset as usize + PAGE].copy_from_slice(page);
        };
        let mut records = self.main.records.iter().enumerate().peekable();
        for epoch in 0..=self.sync_points().len() {
            let end = self.sync_points().get(epoch).copied().unwrap_or(usize::MAX);
            while let Some((_, (block, offset, content))) = records.next_if(|(number, _)| *number < end) {
                assert_eq!(*content, Content::Fill(0));
                put(block, *offset, &[0; PAGE]);
            }
            for whole in channels {
                for packet in ram_packets(&whole.channel).filter(|packet| packet.epoch == epoch as u64) {
                    packet.pages().for_each(|page| put(packet.idstr, page.offset.0, whole.page(page)));
                }
            }
        }
        images
    }

    fn compare(&self, images: &BTreeMap<Vec<u8>, Vec<u8>>) {
        let truth = self.truth["blocks"].as_object().unwrap();
        assert!(truth.contains_key("pc.ram"));
        for (name, block) in truth {
            let image = &images[name.as_bytes()];
            assert_eq!(image.len() as u64, block["bytes"], "{name}");
            assert_eq!(sha256(image), block["sha256"], "{name}");
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
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

#[test]
fn merged_channels_are_what_the_guest_held() {
    for name in LIVE {
        let migration = Migration::load(name);
        let channels = migration.channels();
        for whole in &channels {
            assert_eq!(whole.channel.sync_count(), migration.sync_points().len() as u64, "{name:?}");
        }
        migration.compare(&migration.merge(&channels.iter().collect::<Vec<_>>()));
    }
}

/// The migration as files, and the arguments that name all channels, the last
/// one first.
fn captured(name: (&str, usize)) -> (Workplace, Vec<String>) {
    let place = Workplace::with(&unpack(name.0));
    let mut args: Vec<String> = ["extract", "stream", "-o", "out"].map(str::to_owned).to_vec();
    for (nth, channel) in unpack_channels(name.0).iter().enumerate().rev() {
        std::fs::write(place.join(&format!("channel-{nth}")), channel).unwrap();
        args.extend(["--channel".to_owned(), format!("channel-{nth}")]);
    }
    (place, args)
}

fn run(place: &Workplace, args: &[String]) -> Output {
    place.ramlift(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn the_command_joins_channels() {
    for name in LIVE {
        let (place, args) = captured(name);
        let output = run(&place, &args).expect_code(0);
        assert_eq!(output.stderr, "");
        for entry in place.json("out/manifest.json")["blocks"].as_array().unwrap() {
            let image = place.read(&format!("out/{}", entry["file"].as_str().unwrap()));
            let truth = &read_json("manifest.json")[name.0]["blocks"][entry["idstr"].as_str().unwrap()];
            // Of some blocks QEMU does not show the content.
            assert!(truth.is_null() || sha256(&image) == truth["sha256"], "{name:?}: {entry}");
            assert_eq!((&entry["absent_pages"], &entry["status"]), (&0.into(), &"complete".into()));
        }
    }
}

#[test]
fn info_and_state_take_channels_too() {
    for name in LIVE {
        let (place, args) = captured(name);
        let with_channels = |command: &[&str]| {
            let command = command.iter().map(|arg| (*arg).to_owned()).chain(args[4..].iter().cloned());
            run(&place, &command.collect::<Vec<_>>())
        };
        let output = with_channels(&["info", "stream", "--json"]).expect_code(0);
        let info = output.json();
        assert!(info["warnings"].as_array().unwrap().is_empty(), "{name:?}: {}", info["warnings"]);
        run(&place, &args).expect_code(0);
        let manifest = place.json("out/manifest.json");
        let counts = |report: &Value| -> Vec<Vec<Value>> {
            let keys = ["idstr", "data_pages", "fill_pages", "resent_pages", "absent_pages"];
            let blocks = report["blocks"].as_array().unwrap().iter();
            blocks.map(|block| keys.map(|key| block[key].clone()).to_vec()).collect()
        };
        assert_eq!(counts(&info), counts(&manifest), "{name:?}");
        assert!(info["blocks"][0]["data_pages"].as_u64().unwrap() > 0, "{name:?}");
        assert_eq!(with_channels(&["info", "stream"]).expect_code(0).stderr, "");
        let state = with_channels(&["state", "stream"]).expect_code(0);
        assert_eq!(state.stderr, "");
        assert_eq!(state.stdout, place.read("out/state.json"), "{name:?}");
        place.ramlift(&["state", "stream"]).expect_code(3);
        // One twice, and one missing.
        let output = with_channels(&["info", "stream", "--channel", "channel-0"]).expect_code(1);
        assert!(output.stderr.contains("given twice") && output.stdout.is_empty(), "{}", output.stderr);
        let output = place.ramlift(&["state", "stream", "--channel", "channel-1"]).expect_code(1);
        assert!(output.stderr.contains("channel 0 is missing"), "{}", output.stderr);
    }
}

#[test]
fn a_main_channel_alone_is_refused_by_what_it_is() {
    for name in LIVE {
        let (place, args) = captured(name);
        let output = run(&place, &args[..4]).expect_code(1);
        assert!(output.stderr.contains("main channel of a multifd migration"), "{}", output.stderr);
        assert!(output.stderr.contains("--channel"), "{}", output.stderr);
        assert!(!place.join("out").exists());
        // Its devices are all there.
        let info = place.ramlift(&["info", "stream"]).expect_code(3);
        assert!(info.text().contains("main channel of a multifd migration"), "{}", info.text());
        assert!(!place.ramlift(&["state", "stream"]).json()["devices"].as_array().unwrap().is_empty());
    }
}

#[test]
fn channels_that_do_not_belong_together_are_refused() {
    let (place, args) = captured(LIVE[0]);
    let refused = |args: &[String], text: &str| {
        let output = run(&place, args).expect_code(1);
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
        assert!(!place.join("out").exists());
    };
    refused(&args[..args.len() - 2], "multifd channel 0 is missing");
    refused(&[&args[..], &args[4..6]].concat(), "given twice");
    let mut cut = place.read("channel-0");
    let last = ram_packets(&parse(&cut).unwrap()).filter(|packet| packet.sync).last().unwrap().at;
    cut.truncate(last.0 as usize);
    std::fs::write(place.join("channel-0"), cut).unwrap();
    refused(&args, "cut off");
    let syncs = parse(&unpack_channels(LIVE[0].0)[0]).unwrap().sync_count();
    let others = LIVE.iter().map(|(name, _)| unpack_channels(name).swap_remove(0));
    let other = others.into_iter().find(|other| parse(other).unwrap().sync_count() != syncs).unwrap();
    std::fs::write(place.join("channel-0"), other).unwrap();
    refused(&args, "multifd channel 0 is cut off, or of another migration");
}

#[test]
fn pages_that_are_not_all_there_are_no_holes() {
    for name in [LIVE[0], LIVE[1]] {
        let main = unpack(name.0);
        let inputs = unpack_channels(name.0);
        let wholes: Vec<Whole<'_>> = inputs.iter().map(|input| Whole::read(input)).collect();
        let join = |missing: usize| {
            let pages = wholes.iter().map(|whole| {
                let pages = if whole.spool.is_empty() { whole.input } else { &whole.spool };
                ChannelPages { channel: whole.channel, pages: &pages[..pages.len() - missing] }
            });
            Stream::parse(&main).unwrap().join(&pages.collect::<Vec<_>>())
        };
        join(0).unwrap();
        let error = join(PAGE * 8).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "{name:?}: {error}");
    }
}

#[test]
fn the_order_of_channels_within_an_epoch_is_of_no_importance() {
    for name in LIVE {
        let migration = Migration::load(name);
        let channels = migration.channels();
        migration.compare(&migration.merge(&channels.iter().rev().collect::<Vec<_>>()));
    }
}

#[test]
fn epochs_matter() {
    // The same pages without regard to epochs are not what the guest held:
    // else the tests above would show nothing.
    let migration = Migration::load(LIVE[0]);
    let channels = migration.channels();
    let merged = migration.merge(&channels.iter().collect::<Vec<_>>());
    let mut image = merged[b"pc.ram".as_slice()].clone();
    for whole in &channels {
        for packet in ram_packets(&whole.channel).filter(|packet| packet.idstr == b"pc.ram") {
            for page in packet.pages() {
                let at = page.offset.0 as usize;
                image[at..at + PAGE].copy_from_slice(whole.page(page));
            }
        }
    }
    assert_ne!(sha256(&image), migration.truth["blocks"]["pc.ram"]["sha256"]);
}

#[test]
fn channels_meet_at_each_section_or_at_each_flush() {
    for name in LIVE {
        let migration = Migration::load(name);
        let per_section = name.0.contains("7.2");
        assert_eq!(migration.main.flushes.is_empty(), per_section, "{name:?}");
        // The first of them stands in the START section, before all pages.
        assert_eq!(migration.sync_points()[0], 0, "{name:?}");
        assert!(migration.sync_points().len() > 5, "{name:?}");
    }
}

#[test]
fn a_page_comes_once_in_an_epoch_but_for_those_queued_twice_by_7_2() {
    for name in LIVE {
        let migration = Migration::load(name);
        let mut seen = BTreeSet::new();
        let (mut firsts, mut lasts, mut twice) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for whole in migration.channels() {
            for packet in ram_packets(&whole.channel) {
                let place = |page: PacketPage| (packet.epoch, packet.idstr.to_vec(), page.offset);
                firsts.extend(packet.pages().next().map(place));
                lasts.extend(packet.pages().last().map(place));
                twice.extend(packet.pages().map(place).filter(|page| !seen.insert(page.clone())));
            }
        }
        for (number, (block, offset, _)) in migration.main.records.iter().enumerate() {
            let epoch = migration.sync_points().iter().filter(|point| **point <= number).count();
            let place = (epoch as u64, block.clone(), BlockOffset(*offset));
            assert!(seen.insert(place), "{name:?}: {offset:#x} of the main channel comes twice");
        }
        let by_7_2 = migration.truth["qemu"].as_str().unwrap().starts_with("7.2.");
        assert_eq!(!twice.is_empty(), by_7_2, "{name:?}");
        assert!(twice.iter().all(|page| firsts.contains(page) && lasts.contains(page)), "{name:?}");
    }
}

#[test]
fn packets_of_7_2_say_sync_with_pages_and_sizes_of_nothing() {
    let migration = Migration::load(LIVE[0]);
    let (mut sync_with_pages, mut stale) = (0, 0);
    for whole in migration.channels() {
        for packet in ram_packets(&whole.channel) {
            let size_at = packet.at.0 as usize + 20;
            let size = &whole.input[size_at..size_at + 4];
            sync_with_pages += usize::from(packet.sync && packet.data_pages() > 0);
            stale += usize::from(packet.data_pages() == 0 && size != [0; 4]);
        }
    }
    assert!(sync_with_pages > 0 && stale > 0);
}

#[test]
fn zero_pages_come_in_packets_or_in_the_main_channel() {
    for (name, in_packets) in [(LIVE[3], true), (LIVE[2], true), (LIVE[4], false), (LIVE[0], false)] {
        let migration = Migration::load(name);
        let zero_pages: u64 = migration
            .channels()
            .iter()
            .flat_map(|whole| ram_packets(&whole.channel))
            .map(|packet| packet.zero_pages())
            .sum();
        assert_eq!(zero_pages > 0, in_packets, "{name:?}");
        assert_eq!(migration.main.records.is_empty(), in_packets, "{name:?}");
    }
}

#[test]
fn a_channel_says_whose_and_which_it_is_and_how_it_is_packed() {
    let of = |name: (&str, usize)| -> Vec<_> {
        let inputs = unpack_channels(name.0);
        inputs.iter().map(|input| parse(input).unwrap()).map(|c| (c.id(), c.compression())).collect()
    };
    assert_eq!(of(LIVE[3]), [(0, MultifdCompression::None), (1, MultifdCompression::None)]);
    assert_eq!(of(LIVE[1]), [(0, MultifdCompression::Zlib), (1, MultifdCompression::Zlib)]);
    assert_eq!(of(LIVE[2]), [(0, MultifdCompression::Zstd), (1, MultifdCompression::Zstd)]);
    assert_eq!(parse(&channel(7, &[])).unwrap().uuid(), [0xaa; 16]);
}

// Made channels.

/// Two pages of data and one of zeros, a sync point, and one page more.
#[test]
fn what_is_beside_channels_is_kept() {
    // A shared block that was supplied before the channels were given.
    let blocks = [Block::new("main.ram", 2 << 12).mr_addr(0), Block::new("vga.vram", 1 << 12).mr_addr(0)];
    let records = Records::new().fill("vga.vram", 0, 0);
    let synth = Synth::machine().capabilities(&["x-ignore-shared"]).ram_start(&blocks);
    let stream = synth.ram_end(records).finish();
    let content = noise(1, 2 << 12);
    let mut parsed = Stream::parse(&stream).unwrap();
    let id = parsed.ram().unwrap().find(b"main.ram").unwrap();
    parsed.supply(id, &content).unwrap();
    // A sync point at the end of START and of END.
    let bytes = channel(0, &[made::Packet::sync(), made::Packet::sync()]);
    parsed.join(&[ChannelPages { channel: parse(&bytes).unwrap(), pages: &bytes }]).unwrap();
    let page = parsed.ram().unwrap().page(id, BlockOffset(1 << 12)).unwrap();
    assert_eq!(page, Page::Data(content[1 << 12..].into()));
    // mapped-ram has its pages, whatever else is given.
    let stream = unpack("pc-11.1-mapped-ram");
    let mut parsed = Stream::parse(&stream).unwrap();
    let data = |stream: &Stream<'_>| {
        stream.ram().unwrap().blocks().map(|(.., pages)| pages.data_pages()).sum::<u64>()
    };
    let before = data(&parsed);
    let sections = parsed.sections().iter().filter(|section| section.handler.idstr == *"ram").count();
    let bytes = channel(0, &vec![made::Packet::sync(); sections]);
    let pages = ChannelPages { channel: parse(&bytes).unwrap(), pages: &bytes };
    let refusal = parsed.join(&[pages]).unwrap_err().to_string();
    assert!(refusal.contains("mapped-ram"), "{refusal}");
    assert_eq!(data(&parsed), before);
}

#[test]
fn a_main_channel_with_the_pages_of_postcopy_is_no_whole_guest() {
    // QEMU 10.1 and later: multifd until postcopy begins, then the main channel.
    let blocks = [Block::new("main.ram", 4 << 12)];
    let flushed = || Records::new().word(MULTIFD_FLUSH, &[]);
    let start = [block_list(4 << 12, &blocks), flushed().end()].concat();
    let stream = Synth::machine().start(RAM_ID, "ram", 4, &start).ram_part(flushed());
    let stream = stream.ram_end(Records::new().data("main.ram", 0x1000, &noise(1, PAGE))).finish();
    let place = Workplace::with(&stream);
    let output = place.ramlift(&["extract", "stream", "-o", "alone"]).expect_code(3);
    assert!(output.stderr.contains("other channels"), "{}", output.stderr);
    let pages: Vec<u8> = (2..6).flat_map(|seed| noise(seed, PAGE)).collect();
    let packet = made::Packet::data("main.ram", &[0, 0x1000, 0x2000, 0x3000], &pages);
    let bytes = channel(0, &[made::Packet::sync(), packet, made::Packet::sync()]);
    std::fs::write(place.join("channel"), bytes).unwrap();
    let output = place.ramlift(&["extract", "stream", "-o", "out", "--channel", "channel"]).expect_code(0);
    assert_eq!(output.stderr, "");
    let expected = [&pages[..PAGE], &noise(1, PAGE), &pages[2 * PAGE..]].concat();
    assert!(place.read("out/main.ram") == expected);
}

/// Two blocks of 64 pages, whose main channel is damaged where it goes from the
/// first to the second: in the midst of a section, or from one to the next.
fn damaged_main_channels() -> [Vec<u8>; 2] {
    let blocks = [Block::new("main.ram", 64 << 12), Block::new("vga.vram", 64 << 12)];
    let start = [block_list(128 << 12, &blocks), Records::new().word(MULTIFD_FLUSH, &[]).end()].concat();
    let start = Synth::machine().start(RAM_ID, "ram", 4, &start);
    let first = Records::new().fill("main.ram", 0, 0x11).next_fill(0x1000, 0x11);
    // Only vga.vram can have these: QEMU names main.ram behind them.
    let behind = |damaged| (20..60).fold(damaged, |records: Records, nth| records.next_fill(nth << 12, 0x22));
    let last = |records: Records| records.fill("main.ram", 0x3000, 0x11).word(MULTIFD_FLUSH, &[]);
    let bad_record = first.clone().word(u64::MAX, &[0xee; 20]);
    let one = start.clone().ram_part(last(behind(bad_record)));
    let bad_head = start.ram_part(first).raw([0xff; 30]).raw(last(behind(Records::new())).end());
    [one, bad_head.footer(RAM_ID)].map(|stream| stream.ram_end(Records::new()).finish())
}

#[test]
fn channels_are_joined_to_a_salvaged_main_channel() {
    let packet = made::Packet::data("main.ram", &[0x1e000], &noise(1, PAGE));
    let bytes = channel(0, &[made::Packet::sync(), packet, made::Packet::sync()]);
    for stream in damaged_main_channels() {
        let mut parsed = Stream::salvage(&stream, &Progress::new()).unwrap();
        assert_eq!(parsed.losses().len(), 1, "{:?}", parsed.losses());
        parsed.join(&[ChannelPages { channel: parse(&bytes).unwrap(), pages: &bytes }]).unwrap();
        let ram = parsed.ram().unwrap();
        let id = |block: &str| ram.find(block.as_bytes()).unwrap();
        let page = |block: &str, nth: u64| ram.page(id(block), BlockOffset(nth << 12)).unwrap();
        assert_eq!(page("main.ram", 0), Page::Fill(0x11));
        assert_eq!(page("main.ram", 3), Page::Fill(0x11));
        assert_eq!(page("main.ram", 30), Page::Data(noise(1, PAGE).into()));
        assert_eq!(page("main.ram", 40), Page::Absent);
        assert_eq!(page("vga.vram", 40), Page::Fill(0x22));
        // What a channel holds may have been replaced by what is lost.
        assert_eq!(parsed.possibly_stale_pages(id("main.ram")), 3);
    }
}

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

// What is refused.

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
