//! `--salvage` of streams made to take long: each place of the input is looked
//! at once.

use std::time::{Duration, Instant};

use crate::support::synth::{self, Block, Records, Synth};
use ramlift::{Progress, Stream};

/// Checks that a stream takes no time that grows with the square of its size.
fn check_time(bytes: &[u8]) {
    let start = Instant::now();
    let _ = Stream::salvage(bytes, &Progress::new());
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
}

fn opened() -> Synth {
    Synth::machine().ram_start(&[Block::new("main.ram", 1 << 30), Block::new("vga.vram", 1 << 30)])
}

#[test]
fn candidates_everywhere_are_looked_at_once() {
    const COUNT: usize = 300_000;
    let repeat = |piece: &[u8]| opened().raw([0xff]).raw(piece.repeat(COUNT)).bytes();
    // Page words, rows of three, named pages, end words, footers, headers of
    // sections, heads of descriptions, block lists.
    check_time(&repeat(&0x1022u64.to_be_bytes()));
    check_time(&repeat(&0x200u64.to_be_bytes()));
    check_time(&repeat(&Records::new().word(0x200, &[]).next_fill(0, 0).end()[..17]));
    check_time(&repeat(&Records::new().next_xbzrle(0, &[]).end()[..11]));
    check_time(&repeat(&Records::new().next_compressed(0, &[]).end()[..20]));
    check_time(&repeat(
        &[&Records::new().next_fill(0, 0).next_fill(0x1000, 0).next_fill(0x2000, 0).end()[..27], &[0xff]]
            .concat(),
    ));
    check_time(&repeat(&Records::new().fill("main.ram", 0, 0).end()));
    check_time(&repeat(&Records::new().next_fill(0x1000, 0).end()[..9]));
    check_time(&repeat(&Records::new().end()));
    check_time(&repeat(&Synth::new().footer(2).bytes()[8..]));
    check_time(&repeat(&Synth::new().footer(2).part(2, &[]).bytes()[8..]));
    check_time(&repeat(&Synth::new().footer(2).head(4, 9, "dev", 0, 1).bytes()[8..]));
    check_time(&repeat(&[0, 6, 0, 0, 0, 20, b'{']));
    let list =
        Synth::new().head(1, 2, "ram", 0, 4).raw(synth::block_list(1 << 40, &[Block::new("a", 1)])).bytes();
    check_time(&Synth::machine().raw([0xff]).raw(list[8..].repeat(COUNT)).bytes());
    check_time(
        &Synth::machine()
            .raw([0xff])
            .raw(Synth::new().head(1, 2, "ram", 0, 4).ram_start(&[]).bytes()[8..].repeat(100_000))
            .bytes(),
    );
}

#[test]
fn records_that_lead_into_one_long_row_of_flushes_are_looked_at_once() {
    const PAGE: usize = 1 << 16;
    const COUNT: usize = PAGE / 11 - 8;
    let end = (COUNT * 11).next_multiple_of(8);
    // Each ends at another of the words behind.
    let record = |nth: usize| {
        let len = u16::try_from((end + 8 * nth - 11 * (nth + 1)).min(PAGE - 1)).unwrap();
        let delta = [&[1], len.to_be_bytes().as_slice()].concat();
        [((nth as u64) << 16 | 0x60).to_be_bytes().as_slice(), &delta].concat()
    };
    let mut records: Vec<u8> = (0..COUNT).flat_map(record).collect();
    records.resize(records.len().next_multiple_of(8), 0);
    let stream = Synth::machine().target_page_bits(16).ram_start(&[Block::new("main.ram", 1 << 40)]);
    check_time(&stream.raw([0xff; 9]).raw(records).raw(0x200u64.to_be_bytes().repeat(1 << 20)).bytes());
}

#[test]
fn many_pages_made_across_many_gaps_are_looked_at_once() {
    const COUNT: u64 = 20_000;
    let whole = (1..COUNT)
        .fold(Records::new().fill("main.ram", 0, 0), |records, nth| records.next_fill(nth << 12, 0));
    let body = Records::new().fill("main.ram", 0, 0);
    let between = Synth::new().raw([0xff; 9]).ram_part(body.clone()).ram_part(body).bytes();
    let changed =
        (0..COUNT).fold(Records::new(), |records, nth| records.next_xbzrle(nth << 12, &[(0, &[1])]));
    let stream = Synth::machine()
        .ram_start(&[Block::new("main.ram", COUNT << 12)])
        .ram_part(whole)
        .raw(between[8..].repeat(COUNT as usize))
        .ram_part(changed);
    check_time(&stream.ram_end(Records::new()).finish());
}

#[test]
fn headers_of_described_devices_everywhere_are_looked_at_in_time() {
    let stream = opened().ram_end(Records::new()).raw([0xff]);
    let headers: Vec<u8> = (0..300_000u32)
        .flat_map(|id| Synth::new().head(4, id + 10, "dev", 0, 1).bytes()[8..].to_vec())
        .collect();
    let text =
        r#"{"devices": [{"name": "dev", "instance_id": 0, "vmsd_name": "dev", "version": 1, "fields": []}]}"#;
    check_time(&stream.clone().raw(&headers).describe(text));
    check_time(&stream.raw(&headers).bytes());
}
