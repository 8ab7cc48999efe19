//! Streams that are cut or damaged, and what `--salvage` gets out of them:
//! all that lies before a cut, what can be found again behind damage, and no
//! page that is wrong without being said to be.

mod support;

use std::collections::{BTreeMap, BTreeSet};
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

/// Checks that a stream cut at any of 200 places gives the pages before.
fn check_cuts(bytes: &[u8], page_size: usize, seed: u64) {
    let whole = Naive::read(bytes, page_size);
    let first = whole.starts[0];
    let mut random = Random(seed);
    for nth in 0..200 {
        let cut = match nth % 4 {
            // At the ends of records, and near.
            0 => whole.ends[random.below(whole.ends.len())],
            1 => whole.ends[random.below(whole.ends.len())] + random.below(16),
            _ => random.below(bytes.len()),
        };
        let cut = cut.clamp(first, bytes.len() - 1);
        let expected = Naive::read_until(bytes, page_size, cut);
        let stream = salvage(&bytes[..cut]);
        let ram = stream.ram().unwrap();
        let records: u64 = ram.pages_per_pass().iter().sum();
        assert_eq!(records, expected.records.len() as u64, "cut at {cut:#x}");
        assert_eq!(stream.page_records().count(), expected.records.len(), "cut at {cut:#x}");
        for (id, block, _) in ram.blocks() {
            let pages = expected.pages(block.idstr.as_bytes());
            for offset in (0..block.used_length).step_by(page_size) {
                let page = ram.page(id, BlockOffset(offset)).unwrap();
                assert!(
                    same(page, pages.get(&offset).copied()),
                    "cut at {cut:#x}: {} {offset:#x}",
                    block.idstr
                );
            }
        }
        assert!(!stream.losses().is_empty() || Stream::parse(&bytes[..cut]).is_ok(), "cut at {cut:#x}");
        assert!(stream.doubtful_pages().is_empty(), "cut at {cut:#x}: {:?}", stream.doubtful_pages());
    }
}

#[test]
fn a_cut_live_stream_gives_all_pages_before_the_cut() {
    check_cuts(&live_stream(), 4096, 1);
}

#[test]
fn a_cut_stream_of_a_real_live_guest_gives_all_pages_before_the_cut() {
    check_cuts(&unpack("pc-7.2-live"), 4096, 2);
}

#[test]
fn a_cut_stream_without_footers_gives_all_pages_before_the_cut() {
    check_cuts(&unpack("pc-7.2-machine-2.3-live"), 4096, 3);
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

/// Checks what a stream gives of which one range is damaged. Gives how many
/// pages were the truth, wrong as said, and absent.
fn check_damage(bytes: &[u8], naive: &Naive, damage: Damage, place: Range<usize>, seed: u64) {
    const PAGE: usize = 4096;
    let said = format!("{damage:?} {place:#x?}");
    let bad = damaged(bytes, damage, place.clone(), seed);
    let stream = salvage(&bad);
    // A change that leaves a stream, if another one, cannot be seen: there are
    // no checksums.
    if Stream::parse(&bad).is_ok() && stream.losses().is_empty() {
        return;
    }
    assert!(!stream.losses().is_empty(), "{said}");
    let ram = stream.ram().unwrap();
    let stale_before = stream.losses().iter().rev().find(|loss| loss.is_in_ram).map(|loss| loss.offset);
    // Records that the damage touches, by page.
    let touched: BTreeSet<(&[u8], u64)> = (0..naive.records.len())
        .filter(|nth| naive.starts[*nth] < place.end && naive.ends[*nth] > place.start)
        .map(|nth| (naive.records[nth].0.as_slice(), naive.records[nth].1))
        .collect();
    let mut by_page: BTreeMap<(&[u8], u64), Vec<&Content>> = BTreeMap::new();
    for (block, offset, content) in &naive.records {
        by_page.entry((block, *offset)).or_default().push(content);
    }
    let copies = |block, offset| by_page.get(&(block, offset)).into_iter().flatten().copied();
    for (id, block, pages) in ram.blocks() {
        let truth = naive.pages(block.idstr.as_bytes());
        for offset in (0..block.used_length).step_by(PAGE) {
            let page = ram.page(id, BlockOffset(offset)).unwrap();
            if same(page.clone(), truth.get(&offset).copied()) {
                continue;
            }
            let is_touched = touched.contains(&(block.idstr.as_bytes(), offset));
            let is_doubtful =
                stream.doubtful_pages().iter().any(|page| page.block == id && page.offset.0 == offset);
            let is_stale = match (pages.last_record(BlockOffset(offset)), stale_before) {
                // Then it is what the guest had there before.
                (Some(at), Some(lost)) => {
                    at < lost
                        && copies(block.idstr.as_bytes(), offset).any(|copy| same(page.clone(), Some(copy)))
                }
                (None, lost) => lost.is_some(),
                _ => false,
            };
            assert!(
                is_touched || is_doubtful || is_stale,
                "{said}: {} {offset:#x} is wrong and nothing says it: {page:?}; {:?}",
                block.idstr,
                stream.losses()
            );
        }
    }
    // What is whole in the damaged stream is had, but for the record on each
    // side and those whose block is not known.
    let lost: u64 = stream.losses().iter().map(|loss| loss.len).sum();
    let is_attributed = !stream.losses().iter().any(|loss| loss.why.contains("RAM block"));
    if is_attributed {
        let bound = place.len() + 2 * (PAGE + 300) + 4 * PAGE + 600;
        assert!(
            lost <= bound as u64,
            "{said}: {lost} bytes lost, of {} damaged: {:?}",
            place.len(),
            stream.losses()
        );
    }
}

fn check_damages(bytes: &[u8], seed: u64, rounds: usize) {
    let naive = Naive::read(bytes, 4096);
    let (first, last) = (naive.starts[0], *naive.ends.last().unwrap());
    let mut random = Random(seed);
    for nth in 0..rounds {
        let damage = [Damage::Overwritten, Damage::Zeros, Damage::Removed][nth % 3];
        let len = 1 + random.below([16, 300, 5000, 40_000][nth / 3 % 4]);
        let start = match nth % 2 {
            0 => naive.starts[random.below(naive.starts.len())] + random.below(12),
            _ => first + random.below(last - first),
        };
        let start = start.clamp(first, last - 1);
        check_damage(bytes, &naive, damage, start..(start + len).min(last), seed + nth as u64);
    }
}

#[test]
fn damage_in_a_live_stream_leaves_no_page_wrong_in_silence() {
    check_damages(&live_stream(), 100_000, 400);
}

#[test]
fn damage_in_a_stream_of_a_real_live_guest_leaves_no_page_wrong_in_silence() {
    check_damages(&unpack("pc-7.2-live"), 200_000, 60);
}

#[test]
fn damage_in_a_stream_without_footers_leaves_no_page_wrong_in_silence() {
    check_damages(&unpack("pc-7.2-machine-2.3-live"), 300_000, 60);
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
fn damage_to_one_device_costs_no_other() {
    for name in ["q35-10.0-paused", "pc-7.2-live", "riscv64-virt-10.0"] {
        let bytes = unpack(name);
        let whole = Stream::parse(&bytes).unwrap();
        let all = decoded(&whole);
        let places: Vec<(u64, u64, u64)> = whole
            .devices()
            .map(|device| (device.section.offset.0, device.section.body.0, device.section.body_end.0))
            .collect();
        for (nth, (head, body, end)) in places.iter().enumerate() {
            // The header, the footer, all of it; some bytes of the body gone.
            let body_len = (end - body) as usize;
            let cases = [
                (Damage::Overwritten, *head as usize..*body as usize),
                (Damage::Zeros, *end as usize..*end as usize + 5),
                (Damage::Overwritten, *head as usize..*end as usize + 5),
                (Damage::Removed, *body as usize..*body as usize + body_len.min(7)),
            ];
            for (damage, place) in cases {
                let said = format!("{name} {} {damage:?} {place:x?}", all[nth]);
                let bad = damaged(&bytes, damage, place, nth as u64);
                let stream = salvage(&bad);
                let left = decoded(&stream);
                let expected: Vec<&String> =
                    all.iter().enumerate().filter(|(other, _)| *other != nth).map(|(_, name)| name).collect();
                let met: Vec<&String> = left.iter().filter(|name| **name != all[nth]).collect();
                assert_eq!(met, expected, "{said}: {:?}", stream.losses());
                assert!(
                    stream.warnings().iter().any(|warning| warning.is_loss) || left.len() < all.len(),
                    "{said}"
                );
                check_ram(&stream, &bytes);
            }
        }
    }
}

#[test]
fn zeros_over_the_header_of_a_section_are_no_end_of_the_stream() {
    let bytes = live_stream();
    let whole = Stream::parse(&bytes).unwrap();
    for section in &whole.sections()[2..8] {
        let head = section.offset.0 as usize;
        let bad = damaged(&bytes, Damage::Zeros, head..head + 3, 0);
        let stream = salvage(&bad);
        assert_eq!(decoded(&stream), decoded(&whole));
        let (read, all) = (stream.page_records().count(), whole.page_records().count());
        assert!(read + 40 >= all, "{read} of {all}: {:?}", stream.losses());
        assert!(!stream.losses().is_empty());
    }
}

#[test]
fn a_hole_over_many_devices_costs_those_alone() {
    let bytes = unpack("q35-10.0-paused");
    let whole = Stream::parse(&bytes).unwrap();
    let all = decoded(&whole);
    let devices: Vec<_> = whole.devices().map(|device| device.section.clone()).collect();
    for (first, last) in [(0, devices.len() - 2), (1, 20), (2, devices.len() - 3)] {
        let place = devices[first].offset.0 as usize + 3..devices[last].body.0 as usize;
        for damage in [Damage::Zeros, Damage::Overwritten, Damage::Removed] {
            let bad = damaged(&bytes, damage, place.clone(), 3);
            let stream = salvage(&bad);
            let expected: Vec<_> = [&all[..first], &all[last + 1..]].concat();
            assert_eq!(decoded(&stream), expected, "{damage:?}: {:?}", stream.losses());
        }
    }
    let synthetic = live_stream();
    let whole = Stream::parse(&synthetic).unwrap();
    let sections: Vec<_> = whole.devices().map(|device| device.section.clone()).collect();
    let place = sections[0].offset.0 as usize..sections[36].body.0 as usize;
    let bad = damaged(&synthetic, Damage::Zeros, place, 0);
    assert_eq!(decoded(&salvage(&bad)), decoded(&whole)[37..]);
}

#[test]
fn a_stream_cut_among_its_devices_gives_ram_and_the_devices_before() {
    let bytes = unpack("q35-10.0-paused");
    let whole = Stream::parse(&bytes).unwrap();
    let ends: Vec<u64> = whole.devices().map(|device| device.section.body_end.0 + 5).collect();
    let first = whole.devices().next().unwrap().section.offset.0;
    for cut in (first..bytes.len() as u64).step_by(997) {
        let stream = salvage(&bytes[..cut as usize]);
        check_ram(&stream, &bytes);
        let expected = ends.iter().filter(|end| **end <= cut).count();
        // The last one may be there too: its footer is followed by nothing.
        let met = stream.devices().count();
        assert!(met == expected || met + 1 == expected, "cut at {cut:#x}: {met} of {expected}");
        assert!(stream.losses().iter().any(|loss| loss.offset.0 + loss.len == cut), "cut at {cut:#x}");
    }
}

#[test]
fn a_description_cut_or_damaged_or_no_eof_costs_neither_ram_nor_devices() {
    let bytes = unpack("q35-10.0-paused");
    let whole = Stream::parse(&bytes).unwrap();
    let count = whole.devices().count();
    let text = whole.description().unwrap().offset.0 as usize;
    let eof = text - 6;
    let cases = [
        bytes[..eof].to_vec(),
        bytes[..text].to_vec(),
        bytes[..text + 1000].to_vec(),
        damaged(&bytes, Damage::Overwritten, text + 500..text + 600, 1),
        damaged(&bytes, Damage::Zeros, text + 500..text + 600, 1),
        damaged(&bytes, Damage::Overwritten, eof..text + 2, 1),
    ];
    for (nth, bad) in cases.iter().enumerate() {
        let stream = salvage(bad);
        check_ram(&stream, &bytes);
        assert_eq!(stream.devices().count(), count, "case {nth}: {:?}", stream.losses());
        assert!(stream.warnings().iter().any(|warning| warning.is_loss), "case {nth}");
    }
}

#[test]
fn a_damaged_head_is_survived_if_ram_follows() {
    for name in ["q35-10.0-paused", "pc-7.2-validate-uuid", "pc-7.2-live"] {
        let bytes = unpack(name);
        let whole = Stream::parse(&bytes).unwrap();
        let ram = whole.sections()[0].offset.0 as usize;
        for place in [0..8, 8..12, 10..20, 14..ram, 8..ram - 1, 0..ram] {
            let bad = damaged(&bytes, Damage::Overwritten, place.clone(), 5);
            if Stream::parse(&bad).is_ok() {
                continue;
            }
            let stream = salvage(&bad);
            check_ram(&stream, &bytes);
            assert_eq!(decoded(&stream), decoded(&whole), "{name} {place:x?}: {:?}", stream.losses());
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
fn damage_that_ends_inside_a_word_gives_no_page_to_another_place() {
    let content = |page: u64| noise(page + 1, 4096);
    let records = (1..300).fold(Records::new().data("main.ram", 0, &content(0)), |records, page| {
        records.next_data(page * 4096, &content(page))
    });
    let bytes = Synth::machine().ram(&[Block::new("main.ram", 300 * 4096)], records).finish();
    let naive = Naive::read(&bytes, 4096);
    // Of the word of page 0x110 the last two bytes are left, which make it one
    // of page 0. The page before is gone too, and shows that.
    let bad = damaged(&bytes, Damage::Zeros, naive.starts[0x10f]..naive.starts[0x110] + 6, 0);
    let stream = salvage(&bad);
    let ram = stream.ram().unwrap();
    let id = ram.find(b"main.ram").unwrap();
    for page in 0..300 {
        let expected = (!(0x10f..=0x110).contains(&page)).then(|| Content::Data(content(page)));
        assert!(same(ram.page(id, BlockOffset(page * 4096)).unwrap(), expected.as_ref()), "page {page:#x}");
    }
    let doubtful: Vec<u64> = stream.doubtful_pages().iter().map(|page| page.offset.0 >> 12).collect();
    assert_eq!(doubtful, [0x10e]);
    assert_eq!(stream.losses().len(), 1, "{:?}", stream.losses());
}

#[test]
fn a_page_size_that_damage_makes_up_puts_no_page_elsewhere() {
    // A bit of the second page's offset is set: it looks like one of 1 KiB.
    let fills = Records::new().fill("main.ram", 0, 0x11).next_fill(0x1400, 0x11);
    let fills = fills.next_fill(0x2000, 0x22).next_fill(0x3000, 0x33);
    let all = (4..16u64).fold(fills, |records, nth| records.next_data(nth << 12, &noise(nth, 4096)));
    let blocks = [Block::new("main.ram", 16 << 12)];
    let bytes = Synth::machine().ram_start(&blocks).ram_end(all).finish_undescribed();
    let stream = salvage(&bytes);
    let ram = stream.ram().unwrap();
    assert_eq!(ram.page_size().bytes(), 4096);
    let page = |nth: u64| ram.page(ramlift::BlockId(0), BlockOffset(nth << 12)).unwrap();
    assert_eq!((page(0), page(1)), (Page::Fill(0x11), Page::Absent));
    for (nth, byte) in [(2, 0x22), (3, 0x33)] {
        assert!([Page::Absent, Page::Fill(byte)].contains(&page(nth)), "page {nth}: {:?}", page(nth));
    }
    for nth in 4..16 {
        assert_eq!(page(nth), Page::Data(noise(nth, 4096).into()), "page {nth}");
    }
    assert!(!stream.losses().is_empty());
}

#[test]
fn a_page_made_across_a_gap_is_doubtful_and_one_that_cannot_be_decoded_too() {
    let named = Records::new().data("main.ram", 0, &noise(1, 4096));
    let all = (1..41u64).fold(named, |records, nth| records.next_data(nth << 12, &noise(nth + 1, 4096)));
    let no_zlib = all.next_xbzrle(0x3000, &[(5, b"new")]).word(0x7000 | 0x120, &[0, 0, 0, 4, 1, 2, 3, 4]);
    let blocks = [Block::new("main.ram", 64 << 12)];
    let mut bytes = Synth::machine().ram_start(&blocks).ram_end(no_zlib).finish_undescribed();
    // The word of page 20's record is no word any more.
    let head = (20u64 << 12 | 0x28).to_be_bytes();
    let at = bytes.windows(8).position(|word| word == head).unwrap();
    bytes[at..at + 8].fill(0xff);
    let stream = salvage(&bytes);
    let doubtful: Vec<u64> = stream.doubtful_pages().iter().map(|page| page.offset.0).collect();
    assert!(doubtful.contains(&0x3000) && doubtful.contains(&0x7000), "{doubtful:x?}");
    assert!(!doubtful.contains(&0x4000), "{doubtful:x?}");
    let page = |offset| stream.ram().unwrap().page(ramlift::BlockId(0), BlockOffset(offset)).unwrap();
    let Page::Data(changed) = page(0x3000) else { panic!("page 3 is no data") };
    assert_eq!(&changed[5..8], b"new");
    assert_eq!(page(0x7000), Page::Data(vec![0; 4096].into()));
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
