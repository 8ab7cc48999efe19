//! Streams that are cut or damaged, and what `--salvage` gets out of them:
//! all that lies before a cut, what can be found again behind damage, and no
//! page that is wrong without being said to be.

#[path = "../support/mod.rs"]
mod support;

mod devices;
mod pages;
mod time;

use std::ops::Range;

use ramlift::{BlockOffset, Page, Progress, Stream};
use support::cli::{Workplace, files_in};
use support::fixtures::unpack;
use support::naive::{Content, Naive};
use support::synth::{Block, Records, Synth, noise, small_stream};

/// Numbers without an order, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        let bytes = noise(self.0, 16);
        (u64::from_be_bytes(bytes[8..].try_into().unwrap()) % bound as u64) as usize
    }
}

fn salvage(bytes: &[u8]) -> Stream<'_> {
    Stream::salvage(bytes, &Progress::new()).expect("something can be salvaged")
}

/// A live guest: three passes over two blocks and a bit, devices behind.
fn live_stream() -> Vec<u8> {
    let mut stream = Synth::machine().ram_start(&[
        Block::new("main.ram", 600 * 4096),
        Block::new("0000:00:02.0/vga.vram", 64 * 4096),
        Block::new("pc.rom", 8 * 4096),
    ]);
    let mut random = Random(1000);
    for pass in 0..4_u64 {
        let mut records = Records::new();
        let mut count = 0;
        for (block, pages) in [("main.ram", 600), ("0000:00:02.0/vga.vram", 64), ("pc.rom", 8)] {
            let mut is_named = false;
            for page in 0..pages {
                if pass > 0 && random.below(3) > 0 {
                    continue;
                }
                let offset = page * 4096;
                let is_fill = random.below(2) == 0;
                let content = noise(pass * 10_000 + page, 4096);
                records = match (is_named, is_fill) {
                    (false, true) => records.fill(block, offset, 0),
                    (false, false) => records.data(block, offset, &content),
                    (true, true) => records.next_fill(offset, 0),
                    (true, false) => records.next_data(offset, &content),
                };
                is_named = true;
                count += 1;
                if count % 50 == 0 {
                    stream = stream.ram_part(std::mem::take(&mut records));
                }
            }
        }
        stream = if pass == 3 { stream.ram_end(records) } else { stream.ram_part(records) };
    }
    let fields = r#"{"name": "ticks", "type": "uint32", "size": 4}"#;
    (10..50)
        .fold(stream, |stream, id| stream.device(id, &format!("device{id}"), &[0, 0, 0, id as u8], fields))
        .finish()
}

fn same(page: Page<'_>, content: Option<&Content>) -> bool {
    match (page, content) {
        (Page::Absent, None) => true,
        (Page::Fill(byte), Some(Content::Fill(expected))) => byte == *expected,
        (Page::Data(bytes), Some(Content::Data(expected))) => bytes == *expected,
        _ => false,
    }
}

/// What is done to a stream, and where.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Overwritten,
    Zeros,
    Removed,
}

fn damaged(bytes: &[u8], damage: Damage, place: Range<usize>, seed: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match damage {
        Damage::Overwritten => bytes[place.clone()].copy_from_slice(&noise(seed, place.len())),
        Damage::Zeros => bytes[place].fill(0),
        Damage::Removed => drop(bytes.drain(place)),
    }
    bytes
}

/// Names of the devices that are decoded.
fn decoded(stream: &Stream<'_>) -> Vec<String> {
    let devices = stream.devices().filter(|device| device.decode().is_ok());
    devices
        .map(|device| format!("{} {}", device.section.handler.idstr, device.section.handler.instance_id))
        .collect()
}

/// Checks that all of RAM is there, in one pass or many.
#[track_caller]
fn check_ram(stream: &Stream<'_>, bytes: &[u8]) {
    let naive = Naive::read(bytes, 4096);
    assert_eq!(stream.page_records().count(), naive.records.len());
    let ram = stream.ram().unwrap();
    for (id, block, _) in ram.blocks() {
        assert_eq!(stream.possibly_stale_pages(id), 0);
        for (offset, content) in naive.pages(block.idstr.as_bytes()) {
            assert!(same(ram.page(id, BlockOffset(offset)).unwrap(), Some(content)));
        }
    }
}

#[test]
fn a_stream_that_is_whole_is_the_same_with_and_without_salvage() {
    for bytes in [live_stream(), small_stream().finish(), unpack("pc-11.1-live")] {
        let place = Workplace::with(&bytes);
        for command in [&["info", "stream", "--json"][..], &["state", "stream"], &["info", "stream"]] {
            let plain = place.ramlift(command).expect_code(0);
            let salvaged = place.ramlift(&[command, &["--salvage"]].concat()).expect_code(0);
            assert_eq!((plain.stdout, plain.stderr), (salvaged.stdout, salvaged.stderr));
        }
        place.ramlift(&["extract", "stream", "-o", "plain"]).expect_code(0);
        place.ramlift(&["extract", "stream", "-o", "salvaged", "--salvage"]).expect_code(0);
        assert_eq!(files_in(place.join("plain")), files_in(place.join("salvaged")));
        for file in files_in(place.join("plain")) {
            let [plain, salvaged] = ["plain", "salvaged"].map(|out| place.read_of_any_run(out, &file));
            assert!(plain == salvaged, "{file}");
        }
    }
}

#[test]
fn the_command_says_what_is_lost() {
    let bytes = live_stream();
    let naive = Naive::read(&bytes, 4096);
    let (from, to) = (naive.starts[310], naive.ends[312]);
    let place = Workplace::with(&damaged(&bytes, Damage::Zeros, from..to, 0));
    let refused = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
    assert!(refused.stderr.contains("--salvage"), "{}", refused.stderr);
    let output = place.ramlift(&["extract", "stream", "-o", "out", "--salvage"]).expect_code(3);
    assert!(output.text().contains("never sent"), "{}", output.text());
    let manifest = place.json("out/manifest.json");
    let info = place.ramlift(&["info", "stream", "--json", "--salvage"]).expect_code(3).json();
    place.ramlift(&["info", "stream", "--salvage"]).expect_code(3);
    place.ramlift(&["state", "stream", "--salvage"]).expect_code(3);
    for report in [&manifest, &info] {
        assert_eq!(report["salvaged"], true);
        let lost = &report["lost"][0];
        assert_eq!(lost["offset"], from);
        assert!(lost["len"].as_u64().unwrap() >= (to - from) as u64);
        assert!(lost["section"].as_str().unwrap().contains("ram"));
        assert_eq!(report["lost"].as_array().unwrap().len(), 1);
        assert_eq!(report["doubtful_pages"].as_array().unwrap().len(), 1);
        let passes: u64 =
            report["pages_per_pass"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        let sent = |key: &str| -> u64 {
            report["blocks"].as_array().unwrap().iter().map(|block| block[key].as_u64().unwrap()).sum()
        };
        assert_eq!(passes, sent("seen_pages") + sent("resent_pages"));
    }
}

/// Streams with the remains of older, longer ones behind them.
fn tailed() -> Vec<(Vec<u8>, Vec<u8>)> {
    let names = ["pc-7.2-live", "q35-10.0-paused", "pc-7.2-paused", "pc-10.0-no-vmdesc"];
    let whole: Vec<Vec<u8>> = names.iter().map(|name| unpack(name)).collect();
    // Of other machines: one has the device that a stream without description
    // begins with too, the other has pages of another size.
    let others = ["aarch64-virt-10.0", "or1k-10.0"].map(unpack);
    let mut pairs = Vec::new();
    for stream in &whole[2..] {
        pairs.extend(others.iter().map(|other| (stream.clone(), other.clone())));
    }
    for (nth, stream) in whole.iter().enumerate() {
        let other = (nth + 1) % 4;
        for other in [&whole[nth], &whole[other]] {
            let parsed = Stream::parse(other).unwrap();
            let sections = parsed.sections();
            let devices = parsed.devices().next().unwrap().section.offset.0 as usize;
            // From inside RAM, from the last section of RAM, from the devices
            // and from inside the description on.
            let places = [
                other.len() / 2,
                sections[2].offset.0 as usize + 5,
                devices - 5,
                devices + 700,
                other.len() - 3000,
            ];
            pairs.extend(places.map(|from| (stream.clone(), other[from..].to_vec())));
        }
    }
    pairs
}

#[test]
fn remains_of_older_streams_behind_a_stream_are_not_part_of_it() {
    for (nth, (stream, tail)) in tailed().into_iter().enumerate() {
        let whole = Stream::parse(&stream).unwrap();
        for padding in [0, 1, 4096] {
            let padded = [stream.as_slice(), &vec![0; padding], &tail].concat();
            for parsed in [Stream::parse(&padded).unwrap(), salvage(&padded)] {
                assert_eq!(
                    parsed.end(),
                    whole.end(),
                    "pair {nth}, padding {padding}: {:?}",
                    parsed.warnings()
                );
                assert!(parsed.losses().is_empty());
                assert_eq!(parsed.sections().len(), whole.sections().len());
                assert_eq!(decoded(&parsed), decoded(&whole));
                check_ram(&parsed, &stream);
            }
        }
    }
}

#[test]
fn any_damage_to_a_small_stream_ends_without_a_panic() {
    let bytes = small_stream().finish();
    let mut random = Random(7);
    for nth in 0..3000 {
        let mut bad = bytes.clone();
        for _ in 0..=nth % 5 {
            let at = random.below(bad.len());
            bad[at] = random.below(256) as u8;
        }
        if nth % 3 == 0 {
            let (a, b) = (random.below(bad.len()), random.below(bad.len()));
            let piece = bad[a.min(b)..a.max(b)].to_vec();
            let at = random.below(bad.len());
            bad.splice(at..at, piece);
        }
        if nth % 4 == 0 {
            bad.truncate(random.below(bad.len()));
        }
        let Ok(stream) = Stream::salvage(&bad, &Progress::new()) else { continue };
        stream.page_records().count();
        decoded(&stream);
        for loss in stream.losses() {
            assert!(loss.offset.0 + loss.len <= bad.len() as u64, "{loss:?}");
        }
    }
}

#[test]
fn a_stream_cut_among_its_first_zeros_is_not_taken_for_a_main_channel() {
    let zeros = (1..40u64)
        .fold(Records::new().fill("main.ram", 0, 0), |records, nth| records.next_fill(nth << 12, 0));
    let records = zeros.next_data(40 << 12, &noise(1, 4096));
    let bytes = Synth::machine().ram(&[Block::new("main.ram", 64 << 12)], records).finish();
    let place = Workplace::with(&bytes[..bytes.len() / 20]);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
    let output = place.ramlift(&["extract", "stream", "--salvage", "-o", "out"]).expect_code(3);
    assert!(!output.stderr.contains("multifd"), "{}", output.stderr);
    assert_eq!(place.json("out/manifest.json")["blocks"][0]["data_pages"], 0);
    assert!(place.json("out/manifest.json")["blocks"][0]["fill_pages"].as_u64().unwrap() > 0);
}
