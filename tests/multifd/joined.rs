//! Channels joined to their main channel, by the command and by `Stream::join`.

use super::{LIVE, Whole, parse, ram_packets};
use crate::support::channel::{self as made, PAGE, channel};
use crate::support::cli::{Output, Workplace};
use crate::support::fixtures::{read_json, unpack, unpack_channels};
use crate::support::hex::sha256;
use crate::support::synth::{Block, MULTIFD_FLUSH, RAM_ID, Records, Synth, block_list, noise};
use ramlift::{BlockOffset, ChannelPages, ErrorKind, Page, Progress, Stream};
use serde_json::Value;

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
