//! Streams that nobody wrote in good faith: each ends in time, with an error
//! that says where, or with all that is whole; never with a panic. Here: what
//! is cut or flipped, framing, and RAM.

mod support;

use proptest::prelude::*;
use ramlift::{BlockId, ErrorKind, Stream};
use support::cli::{Workplace, entries_of, files_in};
use support::hostile::{check, exercise, in_time, one_page, two_pages};
use support::synth::{self, Block, Records, Synth, block_list, noise, small_stream, str8};

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
fn a_footer_that_is_there_is_not_missed_when_what_follows_it_makes_no_sense() {
    // The error used to expect the footer that it had met.
    let stream = one_page().device(3, "timer", &[1], r#"{"name": "on", "type": "bool", "size": 1}"#);
    let at = stream.offset();
    let is_expected = |kind: &ErrorKind| matches!(kind, ErrorKind::Malformed { .. });
    check(&stream.undescribed(4, [0xc3], 0, &[2]).finish(), at, "\"timer\"", is_expected);
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
