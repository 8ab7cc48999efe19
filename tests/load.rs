//! Much at once: many sections, blocks, passes and runs, and guests that are
//! large and nearly empty. All of it ends, right, in the memory that
//! docs/reliability.md states.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use support::cli::{Workplace, entries_of, ramlift_within};
use support::synth::{Block, Records, Synth, noise};

const PAGE: u64 = 0x1000;

/// Address space in KiB for all but what the stream itself takes.
const BASE_KIB: u64 = 256 << 10;

/// Lets `ramlift` have [`BASE_KIB`] and `times` the stream's length.
fn extract_within(place: &Workplace, times: u64) -> serde_json::Value {
    let stream = place.join("stream").metadata().unwrap().len();
    let args = ["extract", "-q", "--threads", "2", "-o", "out", "stream"];
    ramlift_within(BASE_KIB + times * (stream >> 10), place.path(), &args).expect_code(0);
    place.json("out/manifest.json")
}

fn page(seed: u64) -> Vec<u8> {
    let mut page = noise(seed, PAGE as usize);
    page[..8].copy_from_slice(&(seed + 1).to_be_bytes());
    page
}

#[test]
fn ten_thousand_blocks() {
    let name = |nth: u64| format!("block-{nth}");
    let blocks: Vec<Block> = (0..10_000).map(|nth| Block::new(name(nth), 2 * PAGE)).collect();
    let records = (0..10_000)
        .fold(Records::new(), |records, nth| records.data(name(nth), PAGE * (nth % 2), &page(nth)));
    let place = Workplace::with(&Synth::machine().ram(&blocks, records).finish());
    let manifest = extract_within(&place, 1);
    assert_eq!(manifest["blocks"].as_array().unwrap().len(), 10_000);
    for nth in 0..10_000 {
        let image = place.read(&format!("out/{}", name(nth)));
        let (page, zeros) = (page(nth), vec![0; PAGE as usize]);
        let expected = if nth % 2 == 0 { [page, zeros] } else { [zeros, page] };
        assert!(image == expected.concat(), "{nth}");
    }
}

/// Each pass sends another page of 16 again, and every tenth makes it zero.
#[test]
fn a_thousand_passes() {
    const PAGES: u64 = 16;
    let all = (0..PAGES).fold(Records::new(), |records, nth| records.data("pc.ram", nth * PAGE, &page(nth)));
    let mut stream = Synth::machine().ram_start(&[Block::new("pc.ram", PAGES * PAGE)]).ram_part(all);
    let mut image: Vec<Vec<u8>> = (0..PAGES).map(page).collect();
    for pass in 1..=1000 {
        let at = pass * 7 % PAGES;
        let data = if pass % 10 == 0 { vec![0; PAGE as usize] } else { page(pass << 8) };
        let records = match pass % 10 {
            0 => Records::new().fill("pc.ram", at * PAGE, 0),
            _ => Records::new().data("pc.ram", at * PAGE, &data),
        };
        stream = stream.ram_part(records);
        image[at as usize] = data;
    }
    let place = Workplace::with(&stream.ram_end(Records::new()).finish());
    extract_within(&place, 1);
    assert!(place.read("out/pc.ram") == image.concat());
}

/// 64 GiB of guest, a page of data in each.
#[test]
fn a_large_guest_that_is_nearly_empty() {
    const GIB: u64 = 1 << 30;
    let offset = |nth: u64| nth * GIB + nth * PAGE;
    let records =
        (0..64).fold(Records::new(), |records, nth| records.data("pc.ram", offset(nth), &page(nth)));
    let stream = Synth::machine().ram(&[Block::new("pc.ram", 64 * GIB)], records).finish();
    let place = Workplace::with(&stream);
    extract_within(&place, 1);
    let image = fs::File::open(place.join("out/pc.ram")).unwrap();
    let metadata = image.metadata().unwrap();
    assert_eq!(metadata.len(), 64 * GIB);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    for nth in 0..64 {
        let mut met = vec![0; PAGE as usize];
        image.read_exact_at(&mut met, offset(nth)).unwrap();
        assert!(met == page(nth), "{nth}");
    }
}

#[test]
fn sixty_four_extractions_at_once() {
    const PAGES: u64 = 512;
    let records =
        (0..PAGES).fold(Records::new(), |records, nth| records.data("pc.ram", nth * PAGE, &page(nth)));
    let stream = Synth::machine().ram(&[Block::new("pc.ram", PAGES * PAGE)], records).finish();
    let place = Workplace::with(&stream);
    std::thread::scope(|scope| {
        for nth in 0..64 {
            let place = &place;
            scope.spawn(move || {
                place.ramlift(&["extract", "-q", "-o", &format!("out-{nth}"), "stream"]).expect_code(0)
            });
        }
    });
    let image: Vec<u8> = (0..PAGES).flat_map(page).collect();
    for nth in 0..64 {
        assert!(place.read(&format!("out-{nth}/pc.ram")) == image, "{nth}");
    }
    assert_eq!(entries_of(place.path()).len(), 65);
}
