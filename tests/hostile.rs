//! Streams that nobody wrote in good faith: each ends in time, with an error
//! that says where, or with all that is whole; never with a panic, and never
//! with a file where none belongs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a helper of tests fails by panicking, as they do"
)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ramlift::{
    BlockId, BlockOffset, DeviceJson, Error, ErrorKind, ImageSink, IteratedJson, Progress, Stream, scatter,
};
use serde_json::Value;
use support::cli::{Output, Workplace, entries_of, files_in, ramlift_in, ramlift_within};
use support::synth::{self, Block, Records, Synth, block_list, noise, small_stream, str8};

/// What any of these may take. Most take milliseconds; the rest are there to
/// catch what grows with the square of the input.
const TIME: Duration = Duration::from_secs(10);

/// Address space, in KiB, for runs whose memory must not follow a claim.
const MEMORY_KIB: u64 = 1 << 20;

#[track_caller]
fn in_time<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    assert!(start.elapsed() < TIME, "took {:?}", start.elapsed());
    done
}

/// Checks that a stream fails with this kind of error at this place, in a
/// section of this name, and that the command leaves nothing behind.
#[track_caller]
fn check(stream: &[u8], at: u64, section: &str, is_expected: fn(&ErrorKind) -> bool) {
    let error = in_time(|| Stream::parse(stream).err()).expect("the stream is refused");
    assert!(is_expected(error.kind()), "{error:?}");
    assert_eq!(error.offset().map(|at| at.0), Some(at), "{error:?}");
    let place = Workplace::with(stream);
    for args in [&["extract", "stream"][..], &["info", "stream"], &["state", "stream"]] {
        let output = in_time(|| place.ramlift(args)).expect_code(1);
        assert_eq!(output.text(), "");
        assert!(output.stderr.contains(section), "{}", output.stderr);
        assert!(output.stderr.contains(&format!("{at:#x}")), "{}", output.stderr);
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
}

/// Checks that a stream's RAM can be had although its description is of no
/// use, and that the command says so.
#[track_caller]
fn check_description(text: impl AsRef<[u8]>) {
    let stream = one_page().undescribed(3, "timer", 0, &[1, 2, 3]).describe(text);
    let place = Workplace::with(&stream);
    let output = in_time(|| place.ramlift(&["extract", "stream", "-o", "out"])).expect_code(3);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
    assert!(!output.stderr.is_empty());
    let state = place.json("out/state.json");
    assert_eq!(state["devices"][0]["bytes"], "010203");
    in_time(|| place.ramlift(&["info", "stream"])).expect_code(3);
    in_time(|| place.ramlift(&["state", "stream"])).expect_code(3);
}

/// Checks that a device is not decoded by these fields, in time and memory,
/// and that the one behind it is.
#[track_caller]
fn check_undecoded(fields: &str, body: &[u8]) {
    let output = state_within(fields, body).expect_code(3);
    let devices = &output.json()["devices"];
    assert_eq!(devices[0]["status"], "undecoded");
    assert_eq!(devices[1]["state"]["on"], true);
}

#[track_caller]
fn state_within(fields: &str, body: &[u8]) -> Output {
    let behind = r#"{"name": "on", "type": "bool", "size": 1}"#;
    let stream = one_page().device(3, "dut", body, fields).device(4, "behind", &[1], behind).finish();
    let place = Workplace::with(&stream);
    in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["state", "stream"]))
}

fn one_page() -> Synth {
    Synth::machine().ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0x55))
}

fn two_pages() -> Synth {
    Synth::machine().ram_start(&[Block::new("main.ram", 0x2000), Block::new("vga.vram", 0x1000)])
}

/// Reads all that can be read of a stream.
fn exercise(stream: &[u8]) -> Result<(), Error> {
    let stream = Stream::parse(stream)?;
    for device in stream.devices() {
        serde_json::to_writer(std::io::sink(), &DeviceJson::of(device)).unwrap();
    }
    for iterated in stream.iterated() {
        serde_json::to_writer(std::io::sink(), &IteratedJson::of(iterated)).unwrap();
    }
    let Some(ram) = stream.ram() else { return Ok(()) };
    let ids: Vec<BlockId> = ram.blocks().map(|(id, ..)| id).collect();
    for id in &ids {
        let len = ram.block(*id).unwrap().used_length;
        for offset in [0, 0x1000, len / 2, len.wrapping_sub(1), u64::MAX] {
            drop(ram.page(*id, BlockOffset(offset)));
        }
        ram.absent_pages(*id);
    }
    stream.page_records().count();
    let sink = Bounded {
        lens: ram.blocks().map(|(_, block, _)| block.used_length).collect(),
        written: AtomicU64::new(0),
    };
    scatter(ram, &ids, &sink, &Progress::new())?;
    let held = stream.page_records().count() as u64;
    // A page, and a gap of zeros between two pieces, for each record.
    assert!(sink.written.into_inner() <= held * (128 << 10));
    Ok(())
}

/// A sink that minds the ends of the blocks.
struct Bounded {
    lens: Vec<u64>,
    written: AtomicU64,
}

impl ImageSink for Bounded {
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(data.len() as u64).unwrap();
        assert!(end.0 <= self.lens[block.0], "{block:?} written up to {end}");
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn a_stream_cut_anywhere_is_refused() {
    let records = small_stream();
    let eof = records.offset();
    let stream = records.finish();
    exercise(&stream).unwrap();
    for cut in 0..stream.len() {
        let result = exercise(&stream[..cut]);
        // A cut behind the EOF byte leaves a stream without a description.
        if cut as u64 == eof + 1 {
            assert!(result.is_ok(), "cut at {cut}: {result:?}");
            continue;
        }
        let error = result.err().unwrap_or_else(|| panic!("a cut at {cut} went unseen"));
        assert!(error.offset().is_some_and(|at| at.0 <= cut as u64), "cut at {cut}: {error:?}");
        if cut > 0 {
            assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "cut at {cut}: {error:?}");
        }
    }
}

#[test]
fn the_command_refuses_a_cut_stream_and_leaves_nothing() {
    let stream = small_stream().finish();
    let len = stream.len();
    for cut in [0, 3, 8, 13, 40, 90, 150, 200, 4000, len - 700, len - 400, len - 300, len - 1] {
        let place = Workplace::with(&stream[..cut]);
        let output = place.ramlift(&["extract", "stream", "-o", "deep/er/out"]).expect_code(1);
        assert!(output.stderr.contains("0x") || cut == 0, "cut at {cut}: {}", output.stderr);
        assert_eq!(files_in(place.path()), ["stream"], "cut at {cut}");
        assert_eq!(entries_of(place.path()), ["stream"], "cut at {cut}");
    }
}

#[test]
fn a_cut_stream_without_footers_gives_all_of_ram_or_nothing() {
    let page = noise(1, 4096);
    let records = Synth::new()
        .without_footers()
        .ram_start(&[Block::new("main.ram", 0x2000)])
        .ram_part(Records::new().data("main.ram", 0, &page))
        .ram_end(Records::new().next_data(0x1000, &page));
    let ram_end = records.offset();
    let stream = records
        .device(3, "timer", &[0, 0, 0, 5], r#"{"name": "ticks", "type": "uint32", "size": 4}"#)
        .device(4, "cpu", &[0; 64], r#"{"name": "regs", "array_len": 8, "type": "uint64", "size": 8}"#)
        .finish();
    for cut in 0..stream.len() {
        let cut_stream = &stream[..cut];
        exercise(cut_stream).ok();
        if let Ok(parsed) = Stream::parse(cut_stream) {
            assert!(cut as u64 > ram_end, "a cut at {cut} went unseen");
            assert!(!parsed.warnings().is_empty(), "cut at {cut}");
            assert_eq!(parsed.ram().unwrap().absent_pages(BlockId(0)), 0);
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_another_stream() {
    let stream = small_stream().finish();
    let len = stream.len();
    in_time(|| {
        for at in (0..1024).chain(len - 1024..len) {
            for bit in 0..8 {
                let mut damaged = stream.clone();
                damaged[at] ^= 1 << bit;
                if let Err(error) = exercise(&damaged) {
                    assert!(error.offset().is_some_and(|at| at.0 <= len as u64), "{error:?}");
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn damage_anywhere_is_an_error_or_another_stream(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        doubled in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
    ) {
        let mut stream = small_stream().finish();
        for (place, byte) in places {
            let at = place.index(stream.len());
            stream[at] = byte;
        }
        if let Some((from, to)) = doubled {
            let (from, to) = (from.index(stream.len()), to.index(stream.len()));
            let piece = stream[from.min(to)..from.max(to)].to_vec();
            stream.splice(from..from, piece);
        }
        if let Some(cut) = cut {
            stream.truncate(cut.index(stream.len()));
        }
        exercise(&stream).ok();
    }

    #[test]
    fn any_bytes_behind_the_header_are_an_error_or_a_stream(bytes in prop::collection::vec(0u8..16, 0..200)) {
        exercise(&Synth::new().raw(bytes).bytes()).ok();
    }
}

#[test]
fn what_is_no_stream_is_refused_at_its_first_byte() {
    for head in [&b""[..], b"\0", b"QEVN", b"QFI\xfb", b"LibvirtQemudSave", &[0xff; 4096]] {
        let error = Stream::parse(head).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::NotAStream { .. }), "{error:?}");
        assert_eq!(error.offset().map(|at| at.0), Some(0));
    }
    let error = Stream::parse(b"QEVM\0\0\0\x02").err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Version { met: 2, expected: 3, .. }), "{error:?}");
    assert_eq!(error.offset().map(|at| at.0), Some(4));
}

#[test]
fn a_machine_type_of_4_gib_is_refused() {
    let stream = Synth::new().raw([synth::CONFIGURATION]).raw([0xff; 4]).raw([b'a'; 100]);
    check(&stream.bytes(), 9, "configuration", |kind| matches!(kind, ErrorKind::Limit { .. }));
}

#[test]
fn capabilities_without_end_are_refused() {
    let stream = Synth::machine();
    let at = stream.offset() + 1 + 1 + 26 + 4;
    let stream = stream.subsection("configuration/capabilities", &[0xff; 4]).raw([0; 5000]);
    check(&stream.bytes(), at, "configuration", |kind| matches!(kind, ErrorKind::Limit { .. }));
}

#[test]
fn capabilities_that_are_not_there_are_missed() {
    let stream =
        Synth::machine().subsection("configuration/capabilities", &200u32.to_be_bytes()).raw([0; 50]);
    let at = stream.offset();
    check(&stream.bytes(), at, "configuration", |kind| matches!(kind, ErrorKind::Truncated { .. }));
}

#[test]
fn a_page_size_that_no_target_has_is_refused() {
    for bits in [0, 7, 17, 31, 32, 63, 64, u32::MAX] {
        let stream = Synth::machine();
        let at = stream.offset() + 1 + 1 + 30 + 4;
        let stream = stream.target_page_bits(bits).finish_undescribed();
        check(&stream, at, "configuration", |kind| matches!(kind, ErrorKind::Malformed { .. }));
    }
}

#[test]
fn a_configuration_that_nobody_knows_is_refused() {
    let stream = Synth::machine();
    let at = stream.offset();
    let stream = stream.subsection("configuration/later", &[1, 2, 3]).finish_undescribed();
    check(&stream, at, "configuration", |kind| matches!(kind, ErrorKind::Unsupported { .. }));
}

#[test]
fn bytes_that_begin_no_record_are_refused() {
    for byte in [0x05, 0x06, 0x07, 0x09, 0x7e, 0x7f, 0x80, 0xff] {
        let stream = one_page();
        let at = stream.offset();
        let stream = stream.raw([byte]).finish();
        check(&stream, at, "ram", |kind| matches!(kind, ErrorKind::RecordType { .. }));
    }
}

#[test]
fn a_command_beyond_the_input_is_refused() {
    let stream = one_page();
    let at = stream.offset() + 5;
    let stream = stream.raw([synth::COMMAND, 0, 1, 0xff, 0xff]).finish_undescribed();
    check(&stream, at, "command", |kind| matches!(kind, ErrorKind::Truncated { .. }));
}

/// Checks a block list that is refused at its `nth` byte.
#[track_caller]
fn check_list(total: u64, blocks: &[Block], nth: u64, is_expected: fn(&ErrorKind) -> bool) {
    let stream = Synth::machine().head(synth::START, 2, "ram", 0, 4);
    let at = stream.offset() + nth;
    let body = [block_list(total, blocks), Records::new().end()].concat();
    check(&stream.raw(body).footer(2).finish(), at, "\"ram\"", is_expected);
}

#[test]
fn block_lists_that_are_off_their_total_are_refused() {
    let malformed: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Malformed { .. });
    // One byte too many, and a sum past 2^64.
    check_list(0x1000, &[Block::new("a", 0x1001)], 10, malformed);
    let half = 1u64 << 63;
    check_list(half, &[Block::new("a", half - 1), Block::new("b", half)], 20, malformed);
    check_list(0x2000, &[Block::new("a", 0x1000), Block::new("b", u64::MAX)], 20, malformed);
    // A total never reached: what comes next is no entry.
    check_list(0x3000, &[Block::new("a", 0x1000)], 18, malformed);
}

#[test]
fn blocks_of_one_name_or_none_are_refused() {
    let malformed: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Malformed { .. });
    check_list(0x2000, &[Block::new("a", 0x1000), Block::new("a", 0x1000)], 18, malformed);
    check_list(0x1000, &[Block::new("", 0x1000)], 8, malformed);
}

#[test]
fn more_blocks_than_any_guest_has_are_refused() {
    let blocks: Vec<Block> = (0..70_000).map(|nth| Block::new(format!("{nth:07}"), 0)).collect();
    check_list(0x1000, &blocks, 8 + 65_536 * 16, |kind| matches!(kind, ErrorKind::Limit { .. }));
}

/// Checks page records that are refused at their `nth` byte.
#[track_caller]
fn check_records(records: Records, nth: u64, is_expected: fn(&ErrorKind) -> bool) {
    for kind in [synth::PART, synth::END] {
        let stream = two_pages();
        let at = stream.offset() + 5 + nth;
        let stream = stream.raw([kind]).raw(2u32.to_be_bytes()).raw(records.clone().end()).footer(2).finish();
        check(&stream, at, "\"ram\"", is_expected);
    }
}

#[test]
fn pages_outside_their_block_are_refused() {
    let outside: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::PageOutside { .. });
    for offset in [0x2000, 0x3000, 1 << 40, 1 << 63, !0xfff] {
        check_records(Records::new().fill("main.ram", offset, 0), 0, outside);
        check_records(Records::new().data("main.ram", offset, &noise(1, 4096)), 0, outside);
    }
    // Inside the block before, but not inside this one.
    check_records(Records::new().fill("main.ram", 0x1000, 0).fill("vga.vram", 0x1000, 0), 18, outside);
}

#[test]
fn pages_between_pages_are_refused() {
    let malformed: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Malformed { .. });
    let records = Records::new().data("main.ram", 0, &noise(1, 4096));
    check_records(records.next_fill(0x400, 0), 8 + 9 + 4096, malformed);
}

#[test]
fn continue_before_any_block_is_refused() {
    check_records(Records::new().next_fill(0, 0), 0, |kind| matches!(kind, ErrorKind::RamFlags { .. }));
}

#[test]
fn pages_of_a_block_that_is_not_listed_are_refused() {
    let malformed: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Malformed { .. });
    for name in ["other.ram", "", "MAIN.RAM", "main.ram\0", "main"] {
        check_records(Records::new().fill(name, 0, 0), 8, malformed);
    }
}

#[test]
fn encodings_that_are_not_read_are_refused_by_name() {
    let unsupported: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Unsupported { .. });
    for flag in [synth::HOOK, 0x001] {
        check_records(Records::new().word(flag, &str8("main.ram")), 0, unsupported);
    }
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let flags: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::RamFlags { .. });
    for word in [0, synth::MEM_SIZE, synth::CONTINUE, 0x00a, 0x01a, 0x030, 0x3ff] {
        check_records(Records::new().word(word, &str8("main.ram")), 0, flags);
    }
}

#[test]
fn a_body_without_an_end_runs_into_its_footer_and_is_refused() {
    let stream = two_pages().raw([synth::PART]).raw(2u32.to_be_bytes());
    let at = stream.offset() + 18;
    let body = Records::new().fill("main.ram", 0, 0).end();
    let stream = stream.raw(&body[..body.len() - 8]).footer(2).ram_end(Records::new()).finish();
    check(&stream, at, "\"ram\"", |_| true);
}

#[test]
fn sections_in_an_order_that_qemu_never_writes_are_refused() {
    let order: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::SectionOrder { .. });
    let list = [Block::new("main.ram", 0x1000)];
    let eos = Records::new().end();
    let body = [block_list(0x1000, &list), eos.clone()].concat();
    let next = |stream: &Synth| stream.offset() + 1;
    // PART and END of nothing.
    check(&Synth::machine().part(2, &eos).finish(), next(&Synth::machine()), "section 2", order);
    check(&Synth::machine().end(9, &eos).finish(), next(&Synth::machine()), "section 9", order);
    // START twice; START of one name under two ids.
    let started = Synth::machine().ram_start(&list);
    check(&started.clone().start(2, "ram", 4, &body).finish(), next(&started), "\"ram\"", order);
    let second = started.clone().start(5, "ram", 4, &body);
    check(&second.finish(), next(&started) + 4 + 4 + 8, "\"ram\"", order);
    // One id under two names.
    check(&started.clone().undescribed(2, "timer", 0, &[1]).finish(), next(&started), "\"timer\"", order);
    // PART and END after END.
    let ended = started.ram_end(Records::new());
    check(&ended.clone().ram_part(Records::new()).finish(), next(&ended), "section 2", order);
    check(&ended.clone().ram_end(Records::new()).finish(), next(&ended), "section 2", order);
}

#[test]
fn other_versions_of_ram_are_refused() {
    for version in [0, 3, 5, u32::MAX] {
        let stream = Synth::machine().head(synth::START, 2, "ram", 0, version);
        let at = stream.offset();
        let stream = stream.raw(block_list(0, &[])).raw(Records::new().end()).footer(2).finish();
        check(&stream, at, "\"ram\"", |kind| matches!(kind, ErrorKind::Version { .. }));
    }
}

#[test]
fn handlers_without_a_known_layout_are_refused_by_name() {
    for name in ["dirty-bitmaps", "blocks", "0000:00:01.0/vfio2", "slirp", ""] {
        let stream = Synth::machine().head(synth::START, 5, name, 0, 1);
        let at = stream.offset();
        let stream = stream.raw([0; 64]).footer(5).finish();
        check(&stream, at, &format!("\"{name}\""), |kind| matches!(kind, ErrorKind::Unsupported { .. }));
    }
}

#[test]
fn the_footer_of_another_section_is_refused() {
    let footer: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Footer { .. });
    let started = || two_pages().raw([synth::PART]).raw(2u32.to_be_bytes()).raw(Records::new().end());
    check(&started().footer(3).ram_end(Records::new()).finish(), started().offset(), "\"ram\"", footer);
    // Once there are footers, each section has one.
    check(&started().raw([synth::END]).finish(), started().offset(), "\"ram\"", footer);
}

#[test]
fn devices_whose_end_is_nowhere_are_refused() {
    let stream = one_page().head(synth::FULL, 3, "timer", 0, 1);
    let at = stream.offset();
    check(&stream.raw([1; 300]).bytes(), at, "\"timer\"", |_| true);
}

#[test]
fn counts_of_other_bodies_that_the_input_does_not_hold_are_refused() {
    let truncated: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Truncated { .. });
    let stream = Synth::machine().start(6, "s390-storage_attributes", 0, &1u64.to_be_bytes());
    let at = stream.offset() + 5 + 16;
    let more = [2u64.to_be_bytes(), u64::MAX.to_be_bytes()].concat();
    check(&stream.part(6, &more).finish(), at, "s390-storage_attributes", truncated);
    let stream = Synth::machine().start(6, "spapr/htab", 1, &[0, 0, 0, 24]);
    let at = stream.offset() + 5 + 12;
    let chunk = [0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0, 0];
    check(&stream.part(6, &chunk).finish(), at, "spapr/htab", truncated);
    let stream = Synth::machine().head(synth::FULL, 6, "s390-skeys", 0, 1).raw(more);
    let error = Stream::parse(&stream.bytes()).err().unwrap();
    assert!(error.offset().is_some());
}

/// Names that would do harm as paths or on a terminal.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "../x",
        "../../x",
        "/etc/passwd",
        "//x",
        "a/../../b",
        ".",
        "..",
        "...",
        "/",
        "//",
        "a/",
        "a",
        "A",
        "./a",
        "a\0b",
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "line\nbreak\r",
        "%2e%2e/x",
        "%",
        "manifest.json",
        "state.json",
        "desc.json",
        "manifest.json/x",
        "\u{202e}gnp.exe",
        "\u{9b}31m",
        "\u{200b}",
        " ",
        "-rf",
        "~",
        "\\..\\x",
        ".ramlift-incomplete-x",
        ".ramlift-incomplete-x/y",
        "desc.json~2",
        "a~2",
        "CON",
        "*",
        "a/b/c/../../../../d",
    ]
    .map(|name| name.as_bytes().to_vec())
    .into();
    names.extend([vec![b'a'; 255], [vec![b'a'; 254], vec![b'b']].concat(), vec![0xff; 255], vec![0x1b; 255]]);
    names.extend([b"/".repeat(255), b"a/".repeat(127), b"../".repeat(85), b"\xff\xfe/..".to_vec()]);
    names
}

/// One page for each name, filled with its number.
fn named_blocks() -> Vec<u8> {
    let names = names();
    let blocks: Vec<Block> = names.iter().map(|name| Block::new(name, 0x1000)).collect();
    let records = (1..).zip(&names).fold(Records::new(), |records, (nth, name)| records.fill(name, 0, nth));
    Synth::new()
        .configuration(b"\x1b[31mpc\x07")
        .ram(&blocks, records)
        .device(3, "timer", &[1], r#"{"name": "on", "type": "bool", "size": 1}"#)
        .finish()
}

#[track_caller]
fn assert_harmless_on_a_terminal(output: &Output) {
    let is_harmful = |c: &char| {
        c.is_control() && *c != '\n' || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
    };
    for text in [output.text(), &output.stderr] {
        assert_eq!(text.chars().find(is_harmful), None, "{text:?}");
    }
}

#[test]
fn names_do_not_leave_the_output_directory() {
    let place = Workplace::with(&named_blocks());
    fs::create_dir_all(place.join("a/b")).unwrap();
    fs::rename(place.join("stream"), place.join("a/b/stream")).unwrap();
    let output = ramlift_in(place.join("a/b"), &["extract", "stream", "-o", "out"]).expect_code(0);
    assert_harmless_on_a_terminal(&output);
    assert_eq!(entries_of(place.path()), ["a"]);
    assert_eq!(entries_of(place.join("a")), ["b"]);
    assert_eq!(entries_of(place.join("a/b")), ["out", "stream"]);
    let manifest = place.json("a/b/out/manifest.json");
    let mut files: Vec<&str> =
        manifest["blocks"].as_array().unwrap().iter().map(|block| block["file"].as_str().unwrap()).collect();
    for (nth, file) in (1..).zip(&files) {
        let metadata = fs::symlink_metadata(place.join("a/b/out").join(file)).unwrap();
        assert!(metadata.is_file(), "{file:?}");
        assert_eq!(place.read(&format!("a/b/out/{file}")), [nth; 4096], "{file:?}");
    }
    files.extend(["desc.json", "manifest.json", "state.json"]);
    files.sort_unstable();
    assert_eq!(files_in(place.join("a/b/out")), files, "one file for each block, and the three");
}

#[test]
fn names_do_no_harm_on_a_terminal() {
    let place = Workplace::with(&named_blocks());
    assert_harmless_on_a_terminal(&place.ramlift(&["info", "stream"]).expect_code(0));
    assert_harmless_on_a_terminal(&place.ramlift(&["extract", "stream", "--block", "none"]).expect_code(1));
    let unlisted = two_pages().ram_part(Records::new().fill("\x1b[31m", 0, 0)).finish();
    assert_harmless_on_a_terminal(&Workplace::with(&unlisted).ramlift(&["info", "stream"]).expect_code(1));
}

#[test]
fn names_in_a_description_do_no_harm_on_a_terminal() {
    let evil = r"\u001b[31m\u009b\u202e\n";
    let wrong = format!(r#"{{"name": "{evil}", "type": "nullptr", "size": 1}}"#);
    let subsection = format!(
        r#""vmsd_name": "dut", "version": 1, "fields": [], "subsections": [{{"vmsd_name": "{evil}", "version": 1, "fields": []}}]"#
    );
    let stream = one_page()
        .device(3, "dut", &[7], &wrong)
        .device_as(4, "dut", 1, &[5, 1, b'x', 0, 0, 0, 1], &subsection)
        .finish();
    let place = Workplace::with(&stream);
    let extract = place.ramlift(&["extract", "stream"]).expect_code(0);
    assert!(extract.stderr.contains("dut"), "{}", extract.stderr);
    assert_harmless_on_a_terminal(&extract);
    let state = place.ramlift(&["state", "stream"]).expect_code(3);
    assert_harmless_on_a_terminal(&Output { stdout: Vec::new(), ..state });
    let unusable = one_page().describe(format!(r#"{{"devices": "{evil}"}}"#));
    assert_harmless_on_a_terminal(&Workplace::with(&unusable).ramlift(&["info", "stream"]).expect_code(3));
}

#[test]
fn the_scripts_double_stays_in_its_directory_too() {
    let place = Workplace::with(&named_blocks());
    fs::create_dir_all(place.join("a/b")).unwrap();
    ramlift_in(place.join("a/b"), &["analyze-migration", "-f", "../../stream", "-x"]);
    assert_eq!(entries_of(place.path()), ["a", "stream"]);
    assert_eq!(entries_of(place.join("a")), ["b"]);
}

#[test]
fn a_block_of_2_to_the_63_bytes_takes_nothing_while_it_has_no_page() {
    let blocks = [Block::new("huge", 1 << 63), Block::new("main.ram", 0x1000)];
    let records = Records::new().data("main.ram", 0, &noise(1, 4096));
    let stream = Synth::machine().ram(&blocks, records).finish();
    exercise(&stream).unwrap();
    let place = Workplace::with(&stream);
    let output = in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]));
    output.expect_code(3);
    assert_eq!(files_in(place.join("out")), ["desc.json", "main.ram", "manifest.json", "state.json"]);
    let manifest = place.json("out/manifest.json");
    assert_eq!(manifest["blocks"][0]["status"], "absent");
    assert_eq!(manifest["blocks"][0]["file"], Value::Null);
    assert_eq!(manifest["blocks"][0]["absent_pages"], 1u64 << 51);
}

#[test]
fn a_block_of_2_to_the_63_bytes_with_a_page_at_its_end_fails_cleanly() {
    let len = 1u64 << 63;
    let records = Records::new().data("huge", len - 0x1000, &noise(1, 4096));
    let stream = Synth::machine().ram(&[Block::new("huge", len)], records).finish();
    exercise(&stream).unwrap();
    let place = Workplace::with(&stream);
    // No file can be as long.
    for target in ["out", "deep/er/out"] {
        let args = ["extract", "stream", "-o", target];
        in_time(|| ramlift_within(MEMORY_KIB, place.path(), &args)).expect_code(1);
        assert_eq!(entries_of(place.path()), ["stream"], "-o {target}");
    }
}

#[test]
fn a_huge_block_takes_disk_for_its_records_alone() {
    let len = 1u64 << 42;
    let records = (0..1000u64)
        .fold(Records::new(), |records, nth| records.fill("huge", (nth * (len / 1000)) & !0xfff, 1));
    let records = records.next_data(0, &noise(1, 4096));
    let stream = Synth::machine().ram(&[Block::new("huge", len)], records).finish();
    exercise(&stream).unwrap();
    let place = Workplace::with(&stream);
    let output = in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]));
    output.expect_code(0);
    let metadata = fs::metadata(place.join("out/huge")).unwrap();
    assert_eq!(metadata.len(), len);
    assert!(metadata.blocks() * 512 <= 1000 * (64 << 10), "{} bytes", metadata.blocks() * 512);
}

#[test]
fn long_names_that_begin_alike_cost_no_more_than_others() {
    // File names are cut, so all of these want the same one.
    let name = |nth: usize| [vec![b'a'; 247], format!("{nth:08}").into_bytes()].concat();
    let mut blocks: Vec<Block> = (0..20_000).map(|nth| Block::new(name(nth), 0)).collect();
    blocks.push(Block::new("main.ram", 0x1000));
    let stream = Synth::machine().ram(&blocks, Records::new().fill("main.ram", 0, 1)).finish();
    let place = Workplace::with(&stream);
    let output = in_time(|| {
        ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out", "--block", "main.ram"])
    });
    output.expect_code(0);
    assert_eq!(place.read("out/main.ram"), [1; 4096]);
}

#[test]
fn names_of_many_slashes_take_little_memory_and_few_directories() {
    let name = |nth: usize| [format!("{nth:06}").into_bytes(), b"/a".repeat(124)].concat();
    let mut blocks: Vec<Block> = (0..20_000).map(|nth| Block::new(name(nth), 0)).collect();
    blocks.push(Block::new("main.ram", 0x1000));
    let stream = Synth::machine().ram(&blocks, Records::new().fill("main.ram", 0, 1)).finish();
    let place = Workplace::with(&stream);
    let args = ["extract", "stream", "-o", "out", "--block", "main.ram"];
    let kib = (stream.len() as u64 >> 10) * 8 + (256 << 10);
    in_time(|| ramlift_within(kib, place.path(), &args)).expect_code(0);
    assert_eq!(place.read("out/main.ram"), [1; 4096]);
}

#[test]
fn a_million_sections_are_read_in_time() {
    let eos = Records::new().end();
    let part = Synth::new().part(2, &eos).bytes()[8..].to_vec();
    let stream = Synth::machine()
        .ram_start(&[Block::new("main.ram", 0x1000)])
        .ram_part(Records::new().fill("main.ram", 0, 1))
        .raw(part.repeat(1_000_000))
        .ram_end(Records::new());
    check_busy(&stream.finish(), 0);
}

#[test]
fn a_million_commands_are_read_in_time() {
    let command = Synth::new().command(11, &[]).bytes()[8..].to_vec();
    check_busy(&one_page().raw(command.repeat(1_000_000)).finish(), 0);
}

#[test]
fn many_devices_without_description_are_read_in_time() {
    let mut stream = one_page();
    for id in 10..100_010 {
        stream = stream.undescribed(id, "dev", id, &[1, 2, 3]);
    }
    check_busy(&stream.finish_undescribed(), 0);
}

#[test]
fn many_devices_with_bad_descriptions_are_read_in_time() {
    check_busy(&badly_described(one_page()), 0);
}

#[test]
fn many_devices_with_bad_descriptions_and_no_footers_are_read_in_time() {
    let stream = Synth::machine().without_footers();
    let stream = stream.ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0x55));
    check_busy(&badly_described(stream), 0);
}

/// Devices described as too short, too long, and longer than the input.
fn badly_described(mut stream: Synth) -> Vec<u8> {
    let sizes = [400, 1, u64::MAX, 1 << 40];
    for id in 10..10_010u32 {
        let size = sizes[id as usize % 4];
        let field = format!(r#"{{"name": "x", "type": "buffer", "size": {size}}}"#);
        let keys = format!(r#""vmsd_name": "dev", "version": 1, "fields": [{field}]"#);
        stream = stream.device_as(id, "device-of-some-name", id, &noise(id.into(), 40), &keys);
    }
    stream.finish()
}

/// Checks that a stream that makes much work of little is read in time and
/// memory.
#[track_caller]
fn check_busy(stream: &[u8], code: i32) {
    let place = Workplace::with(stream);
    let output =
        in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-q", "-o", "out"]));
    output.expect_code(code);
    in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["info", "stream"])).expect_code(0);
}

#[test]
fn footers_everywhere_are_looked_at_once() {
    // A device whose described size is wrong and whose body is made of what
    // looks like its end, but is followed by nothing that can follow.
    let footer = [0x7e, 0, 0, 0, 3, 0x04];
    let fields = r#"{"name": "x", "type": "buffer", "size": 5}"#;
    check_undecoded(fields, &footer.repeat(1_000_000));
}

#[test]
fn heads_of_descriptions_everywhere_are_looked_at_once() {
    // Each looks like the head of a long description.
    let head = [0x00, 0x06, 0x00, 0x10, 0x00, 0x00, b'{'];
    let body = [head.repeat(300_000), b"}".repeat(100_000)].concat();
    let fields = format!(r#"{{"name": "x", "type": "buffer", "size": {}}}"#, body.len());
    state_within(&fields, &body).expect_code(0);
}

#[test]
fn descriptions_that_are_not_json_are_of_no_use() {
    for text in [
        "{}",
        "{\"devices\": 5}",
        "{\"devices\": [5]}",
        "{\"devices\": [{}]}",
        "{",
        "{}}",
        "{\"devices\": []",
    ] {
        check_description(text);
    }
    for text in ["", "null", "[]", "{\"devices\": [], }", "\u{1b}[31m"] {
        check_description(text);
    }
    check_description(b"{\"devices\": [], \"\xff\": 1}");
    check_description(vec![0; 5000]);
}

#[test]
fn descriptions_of_wrong_types_are_of_no_use() {
    let device = |keys: &str| format!(r#"{{"devices": [{{{keys}}}]}}"#);
    for keys in [
        r#""name": 5, "instance_id": 0, "fields": []"#,
        r#""name": "timer", "instance_id": "0", "fields": []"#,
        r#""name": "timer", "instance_id": 99999999999999999999, "fields": []"#,
        r#""name": "timer", "instance_id": 1e400, "fields": []"#,
        r#""name": "timer", "instance_id": 0.5, "fields": []"#,
        r#""name": "timer", "instance_id": 0, "fields": {}"#,
        r#""name": "timer", "instance_id": 0"#,
        r#""name": "timer", "fields": []"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8"}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": -1}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": 1.5}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": 18446744073709551616}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": 1, "array_len": -1}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": null, "size": 1}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "struct", "struct": [], "size": 1}]"#,
    ] {
        check_description(device(keys));
    }
}

#[test]
fn a_description_cut_or_longer_than_the_input_is_refused() {
    let stream = one_page();
    let text = stream.description_text();
    let at = stream.offset() + 6;
    let whole = stream.describe(&text);
    let truncated: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Truncated { .. });
    check(&whole[..whole.len() - 1], at, "description", truncated);
    let mut longer = whole.clone();
    longer[at as usize - 1] += 1;
    check(&longer, at, "description", truncated);
    let mut huge = whole;
    huge[at as usize - 4..at as usize].fill(0xff);
    check(&huge, at - 4, "description", |kind| matches!(kind, ErrorKind::Limit { .. }));
}

#[test]
fn a_description_shorter_than_it_is_is_of_no_use() {
    let stream = one_page();
    let at = stream.offset() as usize + 6;
    let mut bytes = stream.finish();
    bytes[at - 1] -= 1;
    let place = Workplace::with(&bytes);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(3);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
}

#[test]
fn nesting_without_end_takes_no_stack() {
    let nested = |open: &str, close: &str, depth: usize| {
        let fields = format!("{}{}", open.repeat(depth), close.repeat(depth));
        format!(r#"{{"devices": [{{"name": "timer", "instance_id": 0, "fields": [{fields}]}}]}}"#)
    };
    let open = r#"{"name": "x", "type": "struct", "size": 3, "struct": {"fields": ["#;
    check_description(nested(open, "]}}", 100_000));
    check_description(nested("[", "]", 1_000_000));
    check_description("{\"a\":".repeat(100_000));
    // Not deep enough to be no JSON, but deeper than any device.
    let deep = format!("{}{}", open.repeat(40), "]}}".repeat(40));
    check_undecoded(&deep, &[1, 2, 3]);
}

#[test]
fn a_description_that_names_no_device_of_the_stream_leaves_them_undecoded() {
    let text = r#"{"devices": [{"name": "cpu", "instance_id": 0, "fields": []}, {"name": "timer", "instance_id": 1, "fields": []}]}"#;
    let place = Workplace::with(&one_page().undescribed(3, "timer", 0, &[1, 2, 3]).describe(text));
    place.ramlift(&["state", "stream"]).expect_code(3);
    place.ramlift(&["extract", "stream", "-o", "out"]);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
    assert_eq!(place.json("out/state.json")["devices"][0]["bytes"], "010203");
}

#[test]
fn devices_described_twice_and_sent_twice_are_taken_in_order() {
    let fields = |name: &str| {
        format!(
            r#""vmsd_name": "dup", "version": 1, "fields": [{{"name": "{name}", "type": "uint8", "size": 1}}]"#
        )
    };
    let stream = one_page()
        .device_as(3, "dup", 0, &[1], &fields("a"))
        .device_as(4, "dup", 0, &[2], &fields("b"))
        .device_as(3, "dup", 0, &[3], &fields("c"))
        .finish();
    let output = Workplace::with(&stream).ramlift(&["state", "stream"]).expect_code(0).json();
    let states: Vec<String> =
        output["devices"].as_array().unwrap().iter().map(|device| device["state"].to_string()).collect();
    assert_eq!(states, [r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#]);
}

#[test]
fn arrays_longer_than_the_device_stay_undecoded() {
    let array = |len: u64, kind: &str, size: u64| {
        format!(r#"{{"name": "x", "array_len": {len}, "type": "{kind}", "size": {size}}}"#)
    };
    for len in [5, 1 << 20, 1 << 40, 1 << 62, u64::MAX] {
        check_undecoded(&array(len, "uint8", 1), &[1; 4]);
        check_undecoded(&array(len, "uint64", 8), &[1; 4]);
        check_undecoded(&array(len, "buffer", u64::MAX), &[1; 4]);
        check_undecoded(&array(len, "no type", 1 << 40), &[1; 4]);
        check_undecoded(&array(len, "nullptr", 1), b"0000");
    }
    for len in [1 << 40, u64::MAX] {
        check_undecoded(&array(len, "buffer", 0), &[]);
        check_undecoded(&array(len, "bitmap", 0), &[1]);
        check_undecoded(&array(len, "struct", 0), &[]);
    }
}

#[test]
fn arrays_of_nothing_in_arrays_of_nothing_stay_undecoded() {
    let mut fields = String::from(r#"{"name": "x", "array_len": 1000000, "type": "buffer", "size": 0}"#);
    for _ in 0..10 {
        fields = format!(
            r#"{{"name": "s", "array_len": 1000000, "type": "struct", "struct": {{"vmsd_name": "s", "version": 1, "fields": [{fields}]}}, "size": 0}}"#
        );
    }
    check_undecoded(&fields, &[]);
    // No element at all, again and again.
    let none = fields.replacen("1000000", "0", 1);
    state_within(&none, &[]).expect_code(0);
}

#[test]
fn a_structure_of_many_empty_arrays_repeated_for_each_byte_ends_in_time() {
    // Neither the description nor the body is large; their product is.
    let empty: Vec<String> = (0..20_000)
        .map(|nth| format!(r#"{{"name": "e{nth}", "array_len": 0, "type": "uint8", "size": 1}}"#))
        .collect();
    let element = format!(r#"{{"name": "v", "type": "uint8", "size": 1}}, {}"#, empty.join(", "));
    let fields = format!(
        r#"{{"name": "s", "array_len": 200000, "type": "struct", "struct": {{"vmsd_name": "s", "version": 1, "fields": [{element}]}}, "size": 1}}"#
    );
    let output = state_within(&fields, &[7; 200_000]);
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
}

#[test]
fn a_device_of_a_million_readings_ends_in_time() {
    // Everything that asks for another reading, and none that fits.
    let parts: Vec<String> = (0..500)
        .map(|nth| {
            format!(
                r#"{{"name": "p{nth}", "array_len": 2, "type": "uint8", "size": 1}}, {{"name": "p{nth}", "type": "nullptr", "size": 1}}, {{"name": "l{nth}", "type": "qtailq", "size": 1}}"#
            )
        })
        .collect();
    let tail = r#"{"name": "x", "array_len": 2000000, "type": "uint8", "size": 1}"#;
    let body = [b"110\0".repeat(500), vec![1; 1_999_000]].concat();
    check_undecoded(&format!("{}, {tail}", parts.join(", ")), &body);
}

#[test]
fn lists_of_nothing_take_no_more_memory_than_others() {
    // Each element is one byte of the stream.
    let list = r#"{"name": "l", "type": "qtailq", "vmsd_name": "e", "version": 1, "fields": [], "size": 1}"#;
    let output = state_within(list, &[vec![1; 16 << 20], vec![0]].concat());
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
}

#[test]
fn trees_of_a_count_that_nobody_described_stay_undecoded() {
    let tree = r#"{"name": "t", "type": "gtree", "vmsd_name": "e", "version": 1, "fields": [], "size": 3}"#;
    check_undecoded(tree, &[0xff, 0xff, 0xff, 0xff, 0]);
    check_undecoded(tree, &[0, 0, 0, 1, 1, 0, 0]);
    check_undecoded(tree, &[[0, 0, 0, 1].as_slice(), &[1; 900_000], &[0]].concat());
}

#[test]
fn many_large_arrays_fit_in_memory() {
    // 32 devices of a million elements each.
    let fields = r#"{"name": "x", "array_len": 1000000, "type": "bool", "size": 1}"#;
    let mut stream = one_page();
    for id in 10..42 {
        stream = stream.device(id, &format!("dev{id}"), &[1; 1_000_000], fields);
    }
    let place = Workplace::with(&stream.finish());
    let output = ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]);
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
}

#[test]
fn json_of_many_small_values_fits_in_memory() {
    // 16 MiB of description. Each of these is a whole structure.
    let device = |keys: &str| format!(r#"{{"devices": [{{"name": "timer", "instance_id": 0, {keys}}}]}}"#);
    for unit in ["{},", "{\"fields\":[]},"] {
        let many = unit.repeat((16 << 20) / unit.len());
        let text = device(&format!(r#""fields": [], "subsections": [{}]"#, many.trim_end_matches(',')));
        check_memory(&text);
    }
    let unit = r#"{"name":"","type":"","size":0},"#;
    let many = unit.repeat((16 << 20) / unit.len());
    check_memory(&device(&format!(r#""fields": [{}]"#, many.trim_end_matches(','))));
    let lists = r#""fields":[],"vmsd_name":"","#.repeat((16 << 20) / 25);
    check_memory(&device(&format!(r#""fields": [{{"name": "l", "type": "qtailq", {lists} "size": 1}}]"#)));
    check_memory(&device(&format!(r#""fields": [], "unknown": [{}1]"#, "1,".repeat(8 << 20))));
}

#[track_caller]
fn check_memory(text: &str) {
    let stream = one_page().undescribed(3, "timer", 0, &[1, 2, 3]).describe(text);
    let place = Workplace::with(&stream);
    let output = in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]));
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
}

#[test]
fn a_long_name_that_each_element_repeats_does_not_fill_the_disk() {
    let field = format!(r#"{{"name": "{}", "type": "uint8", "size": 1}}"#, "n".repeat(64 << 10));
    let fields = format!(
        r#"{{"name": "s", "array_len": 5000, "type": "struct", "struct": {{"vmsd_name": "s", "version": 1, "fields": [{field}]}}, "size": 1}}"#
    );
    let place = Workplace::with(&one_page().device(3, "dut", &[1; 5000], &fields).finish());
    let output = in_time(|| place.ramlift(&["extract", "stream", "-o", "out"]));
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
    let len = fs::metadata(place.join("out/state.json")).unwrap().len();
    assert!(len < 64 << 20, "{len} bytes for a stream of {}", place.read("stream").len());
}

#[test]
fn page_sizes_that_cannot_be_are_not_believed() {
    for size in [0, 1, 255, 4095, 131_072, 1 << 63, u64::MAX] {
        let stream = Synth::machine()
            .described_page_size(Some(size))
            .ram(&[Block::new("main.ram", 0x1000)], Records::new().data("main.ram", 0, &noise(1, 4096)))
            .finish();
        exercise(&stream).unwrap();
        Workplace::with(&stream).ramlift(&["info", "stream"]).expect_code(3);
    }
}

#[test]
fn bodies_that_look_like_storage_keys_one_behind_the_other_are_read_in_time() {
    // Each count leads just behind the next header, so that every body's own
    // layout runs through all that follow, in vain.
    let mut stream = Synth::machine();
    for id in 0..60_000 {
        let body = [2u64.to_be_bytes(), 29u64.to_be_bytes()].concat();
        stream = stream.undescribed(id, "s390-skeys", 0, &body);
    }
    let stream = stream.finish_undescribed();
    in_time(|| Stream::parse(&stream).map(|stream| stream.sections().len())).unwrap();
}

#[test]
fn names_that_nested_structures_repeat_take_no_more_than_a_multiple_of_the_body() {
    let name = "n".repeat(250);
    let mut fields = format!(r#"{{"name": "{name}", "type": "uint8", "size": 1}}"#);
    for _ in 0..20 {
        let vmsd = format!(r#"{{"vmsd_name": "v", "version": 1, "fields": [{fields}]}}"#);
        fields = format!(r#"{{"name": "{name}", "type": "struct", "struct": {vmsd}, "size": 1}}"#);
    }
    let vmsd = format!(r#"{{"vmsd_name": "v", "version": 1, "fields": [{fields}]}}"#);
    let body = vec![0; 20_000];
    let array = format!(
        r#"{{"name": "a", "array_len": {}, "type": "struct", "struct": {vmsd}, "size": 1}}"#,
        body.len()
    );
    let output = state_within(&array, &body);
    assert!(output.stdout.len() < 100 * body.len(), "{} bytes", output.stdout.len());
    assert_eq!(output.json()["devices"][1]["state"]["on"], true);
}

#[test]
fn a_block_that_no_file_can_hold_is_refused_by_name_and_place() {
    let blocks = [Block::new("huge", 1 << 62)];
    let stream = Synth::machine().ram(&blocks, Records::new().data("huge", 0, &noise(1, 4096))).finish();
    let place = Workplace::with(&stream);
    let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
    assert!(output.stderr.contains("\"huge\""), "{}", output.stderr);
    assert!(output.stderr.contains("0x"), "{}", output.stderr);
    assert!(!output.stderr.contains(".ramlift-incomplete"), "{}", output.stderr);
    assert_eq!(entries_of(place.path()), ["stream"]);
}
