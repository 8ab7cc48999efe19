//! mapped-ram, whole, cut and without bitmaps; blocks that are not in the stream.

mod support;

use std::os::unix::fs::MetadataExt;

use ramlift::{BlockId, BlockOffset, ErrorKind, Page, Progress, Stream};
use support::cli::{Workplace, files_in, ramlift_within};
use support::fixtures::{read_json, unpack};
use support::hex::sha256;
use support::synth::noise;

const MAPPED: &str = "pc-11.1-mapped-ram";

/// Where the header of each block stands, and how long its bitmap is.
fn headers(stream: &[u8]) -> Vec<(usize, usize)> {
    let parsed = Stream::parse(stream).unwrap();
    let blocks = parsed.ram().unwrap().blocks();
    let header = |(_, block, _): (BlockId, &ramlift::RamBlock, _)| {
        let at = block.offset.0 as usize + 1 + block.idstr.as_bytes().len() + 8;
        (at, (block.used_length / 4096).div_ceil(64) as usize * 8)
    };
    blocks.map(header).collect()
}

/// The images that the command makes of a stream, by name.
fn images(stream: &[u8]) -> Vec<(String, Vec<u8>)> {
    let place = Workplace::with(stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let names = files_in(place.join("out")).into_iter().filter(|name| !name.ends_with(".json"));
    names.map(|name| (name.clone(), place.read(&format!("out/{name}")))).collect()
}

#[test]
fn the_order_of_words_is_found_by_the_pages() {
    let stream = unpack(MAPPED);
    let expected = images(&stream);
    for word_len in [4, 8] {
        let mut other = stream.clone();
        for (at, len) in headers(&stream) {
            // As a big-endian host writes it.
            other[at + 28..at + 28 + len].chunks_mut(word_len).for_each(<[u8]>::reverse);
        }
        assert_ne!(stream, other);
        assert!(images(&other) == expected, "words of {word_len} bytes");
    }
}

#[test]
fn stale_pages_everywhere_do_not_turn_the_order_of_words() {
    let mut stream = unpack(MAPPED);
    let found = headers(&stream);
    let pages_of =
        |stream: &[u8], at: usize| u64::from_be_bytes(stream[at + 20..at + 28].try_into().unwrap()) as usize;
    // Of each 64 pages of the first block one is not zero, and all have been
    // written to. Nothing else tells the order of words.
    for (at, len) in &found {
        stream[at + 28..at + 28 + len].fill(0);
    }
    let (at, len) = found[0];
    let pages = pages_of(&stream, at);
    stream[pages..pages + len * 8 * 4096].fill(0x55);
    stream[at + 28..at + 28 + len].chunks_mut(8).for_each(|word| word[7] = 1);
    let parsed = Stream::parse(&stream).unwrap();
    let ram = parsed.ram().unwrap();
    for page in 0..len * 8 {
        let content = ram.page(BlockId(0), BlockOffset(page as u64 * 4096)).unwrap();
        assert_eq!(matches!(content, Page::Data(_)), page % 64 == 56, "page {page}");
    }
}

#[test]
fn offsets_of_a_stream_that_stood_further_on_are_understood() {
    // `file:…,offset=`: offsets count from the begin of the file.
    let stream = unpack(MAPPED);
    let mut moved = stream.clone();
    for (at, _) in headers(&stream) {
        for at in [at + 12, at + 20] {
            let offset = u64::from_be_bytes(stream[at..at + 8].try_into().unwrap());
            moved[at..at + 8].copy_from_slice(&(offset + 0x10_0200).to_be_bytes());
        }
    }
    assert!(images(&moved) == images(&stream));
}

#[test]
fn stale_bytes_of_a_page_whose_bit_is_clear_are_no_content() {
    let mut stream = unpack(MAPPED);
    let (at, _) = headers(&stream)[0];
    let pages = u64::from_be_bytes(stream[at + 20..at + 28].try_into().unwrap()) as usize;
    let bitmap = stream[at + 28..at + 28 + 512].to_vec();
    let clear = (0..4096).find(|page| bitmap[page / 8] >> (page % 8) & 1 == 0).unwrap();
    stream[pages + clear * 4096..][..4096].copy_from_slice(&noise(1, 4096));
    let parsed = Stream::parse(&stream).unwrap();
    let page = parsed.ram().unwrap().page(BlockId(0), BlockOffset(clear as u64 * 4096)).unwrap();
    assert_eq!(page, Page::Fill(0));
}

#[test]
fn headers_that_point_elsewhere_are_refused() {
    let stream = unpack(MAPPED);
    let (at, _) = headers(&stream)[1];
    // Version, page size, bitmap, pages.
    for (field, value) in [(0, 2u64 << 32), (4, 4097), (12, 0), (12, u64::MAX), (20, 16), (20, u64::MAX)] {
        let mut bad = stream.clone();
        bad[at + field..at + field + 8].copy_from_slice(&value.to_be_bytes());
        let error = Stream::parse(&bad).err().unwrap_or_else(|| panic!("{field} = {value:#x} is read"));
        assert!(error.offset().is_some(), "{error}");
        assert!(!matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
    }
}

#[test]
fn a_mapped_stream_cut_among_its_pages_is_refused() {
    let stream = unpack(MAPPED);
    for cut in [headers(&stream)[0].0 + 20, stream.len() / 2, stream.len() * 3 / 4] {
        let error = Stream::parse(&stream[..cut]).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "{error}");
    }
}

const PAGE: usize = 4096;

/// A block of a mapped-ram stream, read as plainly as can be: where its entry
/// begins, its header and its bitmap, and its pages.
struct Area {
    idstr: String,
    used_length: usize,
    entry: usize,
    header: usize,
    pages: usize,
}

impl Area {
    fn bitmap(&self) -> usize {
        self.header + 28
    }

    fn bitmap_end(&self) -> usize {
        self.bitmap() + (self.used_length / PAGE).div_ceil(64) * 8
    }

    fn is_blank(&self, stream: &[u8]) -> bool {
        stream[self.bitmap()..self.bitmap_end()].iter().all(|byte| *byte == 0)
    }

    fn is_set(&self, stream: &[u8], page: usize) -> bool {
        stream[self.bitmap() + page / 8] >> (page % 8) & 1 == 1
    }

    fn page<'s>(&self, stream: &'s [u8], page: usize) -> &'s [u8] {
        &stream[self.pages + page * PAGE..][..PAGE]
    }
}

/// The blocks of a whole stream, and where the end word of END stands behind
/// them, if there is an END.
fn areas(stream: &[u8]) -> (Vec<Area>, Option<usize>) {
    let number = |at: usize| u64::from_be_bytes(stream[at..at + 8].try_into().unwrap()) as usize;
    let start = b"\x03ram\0\0\0\0\0\0\0\x04";
    let mut at = stream.windows(start.len()).position(|bytes| bytes == start).unwrap() + start.len();
    let mut unlisted = number(at) - 4;
    at += 8;
    let mut areas = Vec::new();
    while unlisted > 0 {
        let name_end = at + 1 + usize::from(stream[at]);
        let idstr = String::from_utf8(stream[at + 1..name_end].to_vec()).unwrap();
        let used_length = number(name_end);
        let pages = number(name_end + 28);
        areas.push(Area { idstr, used_length, entry: at, header: name_end + 8, pages });
        at = pages + used_length;
        unlisted -= used_length;
    }
    // The end word of START, and its footer; then PARTs of 18 bytes.
    at += 13;
    while stream.get(at) == Some(&2) {
        at += 18;
    }
    (areas, (stream.get(at) == Some(&3)).then_some(at + 5))
}

/// Checks what is left of `stream` if it is cut at `cut`.
fn check_cut(stream: &[u8], cut: usize) {
    let (areas, end) = areas(stream);
    let cut_stream = &stream[..cut];
    let salvaged = Stream::salvage(cut_stream, &Progress::new()).unwrap();
    let ram = salvaged.ram().unwrap();
    let is_settled = end.is_some_and(|end| end + 8 <= cut);
    // Bitmaps are written in order: behind the last one that has a bit, nothing
    // shows that they were.
    let has_bitmap = |area: &&Area| area.bitmap_end() <= cut;
    let written = areas.iter().rposition(|area| has_bitmap(&area) && !area.is_blank(stream));
    let listed = areas.iter().filter(|area| area.header <= cut).count();
    assert_eq!(ram.blocks().len(), listed, "cut at {cut:#x}");
    for (nth, (id, block, pages)) in ram.blocks().enumerate() {
        let area = &areas[nth];
        assert_eq!(
            (block.idstr.to_string(), block.used_length),
            (area.idstr.clone(), area.used_length as u64)
        );
        let is_believed = is_settled || written.is_some_and(|written| nth <= written);
        let mut doubtful = 0;
        for page in 0..area.used_length / PAGE {
            let is_there = area.pages + (page + 1) * PAGE <= cut;
            let content = area.page(stream, page);
            let expected = match (has_bitmap(&area), is_believed) {
                (false, _) => Page::Absent,
                (_, true) if !area.is_set(stream, page) => Page::Fill(0),
                (_, true) if is_there => Page::Data(content.into()),
                (_, false) if is_there && content.iter().any(|byte| *byte != 0) => {
                    doubtful += 1;
                    Page::Data(content.into())
                }
                _ => Page::Absent,
            };
            let met = ram.page(id, BlockOffset((page * PAGE) as u64)).unwrap();
            assert!(met == expected, "cut at {cut:#x}: {} page {page}", area.idstr);
        }
        let listed = salvaged.doubtful_pages().iter().filter(|page| page.block == id);
        assert_eq!(listed.map(|page| page.pages).sum::<u64>(), doubtful, "cut at {cut:#x}");
        assert_eq!(salvaged.possibly_stale_pages(id), doubtful, "cut at {cut:#x}");
        let held = pages.data_pages() + pages.fill_pages() + ram.absent_pages(id);
        assert_eq!(held, block.used_length / PAGE as u64);
    }
    assert!(Stream::parse(cut_stream).is_err(), "cut at {cut:#x}");
    let loss = salvaged.losses().last().unwrap();
    assert_eq!(loss.offset.0 + loss.len, cut as u64, "{loss:?}");
    // No more than what is not whole: an entry, a bitmap, a page.
    if let Some(area) = areas.iter().find(|area| (area.entry..area.pages + area.used_length).contains(&cut)) {
        let from = match cut {
            _ if cut < area.bitmap() => area.entry,
            _ if cut < area.bitmap_end() => area.bitmap(),
            _ if cut < area.pages => cut,
            _ => cut - (cut - area.pages) % PAGE,
        };
        assert_eq!(loss.offset.0, from as u64, "cut at {cut:#x}: {loss:?}");
    }
}

/// Cuts a stream at places of all kinds.
fn check_cuts(name: &str, count: u64, seed: u64) {
    let stream = unpack(name);
    let (areas, _) = areas(&stream);
    let below = |nth: u64, bound: usize| {
        let bytes = noise(seed + nth, 16);
        (u64::from_be_bytes(bytes[8..].try_into().unwrap()) % bound as u64) as usize
    };
    for nth in 0..count {
        let area = &areas[below(nth + 1000, areas.len())];
        let cut = match nth % 6 {
            // In the entry, in the bitmap, at and near the begin of a page.
            0 => area.entry + below(nth, 40 + area.idstr.len()),
            1 => area.bitmap() + below(nth, area.bitmap_end() - area.bitmap() + 1),
            2 => area.pages + below(nth, area.used_length / PAGE) * PAGE,
            3 => area.pages + below(nth, area.used_length / PAGE) * PAGE + below(nth, 5),
            // Behind the pages, or anywhere.
            4 => stream.len() - 1 - below(nth, 110_000.min(stream.len() / 100)),
            _ => below(nth, stream.len()),
        };
        // With less than the first block's name there is nothing.
        let cut = cut.max(areas[0].header);
        check_cut(&stream, cut);
    }
}

#[test]
fn a_cut_stream_gives_all_pages_before_the_cut() {
    check_cuts(MAPPED, 30, 1);
}

#[test]
fn a_cut_stream_of_a_live_guest_gives_all_pages_before_the_cut() {
    // Pages that turned zero have stale bytes at their place.
    let stream = unpack("pc-10.0-mapped-ram-live");
    let ram = &areas(&stream).0[0];
    let is_stale = |page: &usize| !ram.is_set(&stream, *page) && ram.page(&stream, *page) != [0; PAGE];
    assert!((0..ram.used_length / PAGE).filter(is_stale).count() > 10);
    check_cuts("pc-10.0-mapped-ram-live", 60, 2);
}

#[test]
fn what_is_left_of_a_killed_migration_can_be_cut_too() {
    check_cuts("pc-11.1-mapped-ram-killed", 60, 3);
}

#[test]
fn a_cut_stream_is_an_error_but_with_salvage() {
    let stream = unpack(MAPPED);
    let (areas, _) = areas(&stream);
    let cut = areas[0].pages + 0x345 * PAGE + 17;
    let place = Workplace::with(&stream[..cut]);
    for command in [&["info", "stream"][..], &["extract", "stream", "-o", "out"], &["state", "stream"]] {
        let output = place.ramlift(command).expect_code(1);
        assert!(output.stderr.contains("--salvage"), "{}", output.stderr);
    }
    let info = place.ramlift(&["info", "stream", "--salvage", "--json"]).expect_code(3).json();
    place.ramlift(&["state", "stream", "--salvage"]).expect_code(3);
    let output = place.ramlift(&["extract", "stream", "-o", "out", "--salvage"]).expect_code(3);
    let manifest = place.json("out/manifest.json");
    let set = |pages: std::ops::Range<usize>| pages.filter(|page| areas[0].is_set(&stream, *page)).count();
    for report in [&info, &manifest] {
        let [block] = &report["blocks"].as_array().unwrap()[..] else { panic!("{report}") };
        assert_eq!((&block["idstr"], &block["data_pages"]), (&"pc.ram".into(), &set(0..0x345).into()));
        assert_eq!(block["absent_pages"], set(0x345..0x1000));
        assert_eq!(
            (&report["lost"][0]["offset"], &report["lost"][0]["len"]),
            (&(cut - 17).into(), &17.into())
        );
        let why = report["lost"][0]["why"].as_str().unwrap();
        assert!(why.contains(&format!("{} pages of RAM block \"pc.ram\"", set(0x345..0x1000))), "{why}");
        assert_eq!(report["salvaged"], true);
    }
    assert!(output.stderr.contains("not listed before"), "{}", output.stderr);
    let image = place.read("out/pc.ram");
    assert_eq!(image.len(), areas[0].used_length);
    let whole = images(&stream).into_iter().find(|(name, _)| name == "pc.ram").unwrap().1;
    assert!(image[..0x345 * PAGE] == whole[..0x345 * PAGE]);
    assert!(image[0x345 * PAGE..].iter().all(|byte| *byte == 0));
}

#[test]
fn pages_of_a_killed_migration_are_taken_by_content_if_asked_for() {
    let stream = unpack("pc-11.1-mapped-ram-killed");
    let (areas, end) = areas(&stream);
    assert!(end.is_none() && areas.iter().all(|area| area.is_blank(&stream)));
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
    assert!(!place.join("out").exists());
    let output = place.ramlift(&["extract", "stream", "-o", "out", "--salvage"]).expect_code(3);
    assert!(output.stderr.contains("taken by their content"), "{}", output.stderr);
    let image = place.read("out/pc.ram");
    // The guest fills pages with their own address, and has a counter in some.
    let mut found = 0;
    for (page, content) in image.chunks(PAGE).enumerate().filter(|(_, content)| **content != [0; PAGE]) {
        let address = ((page * PAGE) as u32).to_le_bytes();
        let is_filled = |with: [u8; 4]| content.chunks(4).skip(1).all(|word| word == with);
        assert!(page >= 0x100 && (is_filled(address) || is_filled([0; 4])), "page {page:#x}");
        found += 1;
    }
    assert!(found > 200);
    let manifest = place.json("out/manifest.json");
    let block = &manifest["blocks"][0];
    assert_eq!((&block["data_pages"], &block["fill_pages"]), (&found.into(), &0.into()));
    assert_eq!((&block["possibly_stale_pages"], &block["status"]), (&found.into(), &"partial".into()));
    let doubtful = manifest["doubtful_pages"].as_array().unwrap();
    assert_eq!(doubtful.iter().map(|run| run["pages"].as_u64().unwrap()).sum::<u64>(), found);
    let first = doubtful[0]["offset"].as_u64().unwrap() as usize;
    assert!(image[first..first + 4] != [0; 4] && image[..first].iter().all(|byte| *byte == 0));
    // No page of the others was written.
    assert!(manifest["blocks"].as_array().unwrap()[1..].iter().all(|block| block["status"] == "absent"));
}

#[test]
fn a_background_snapshot_is_no_guest_of_zeros() {
    // QEMU completes it, and never writes a bitmap.
    let name = "pc-10.0-mapped-ram-snapshot";
    let place = Workplace::with(&unpack(name));
    let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
    assert!(output.stderr.contains("bitmap") && output.stderr.contains("--salvage"), "{}", output.stderr);
    let info = place.ramlift(&["info", "stream"]).expect_code(3);
    assert!(info.text().contains("bitmap of RAM block \"pc.ram\" was never written"), "{}", info.text());
    place.ramlift(&["extract", "stream", "-o", "out", "--salvage"]).expect_code(3);
    let manifest = place.json("out/manifest.json");
    for block in manifest["blocks"].as_array().unwrap() {
        let Some(file) = block["file"].as_str() else { continue };
        let hash = sha256(place.read(&format!("out/{file}")));
        let truth = &read_json("manifest.json")[name]["blocks"][block["idstr"].as_str().unwrap()];
        assert_eq!(truth["sha256"], hash, "{block}");
        assert_eq!(block["possibly_stale_pages"], 0);
    }
    assert_eq!(manifest["blocks"][0]["status"], "partial");
    assert!(manifest["lost"].as_array().unwrap().is_empty());
    assert_eq!(manifest["salvaged"], true);
    let state = place.json("out/state.json");
    assert!(state["devices"].as_array().unwrap().iter().all(|device| device["status"] == "decoded"));
}

#[test]
fn a_block_behind_one_that_is_damaged_costs_no_device() {
    let stream = unpack(MAPPED);
    let (areas, _) = areas(&stream);
    let whole = Stream::parse(&stream).unwrap();
    let devices = |stream: &Stream<'_>| stream.devices().count();
    for field in [0, 4, 12] {
        let mut bad = stream.clone();
        let at = areas[2].header + field;
        bad[at..at + 4].copy_from_slice(&noise(1, 4));
        let salvaged = Stream::salvage(&bad, &Progress::new()).unwrap();
        assert_eq!(devices(&salvaged), devices(&whole));
        let ram = salvaged.ram().unwrap();
        for (nth, id) in (0..3).map(|nth| (nth, BlockId(nth))) {
            let expected = if nth < 2 { 0 } else { (areas[2].used_length / PAGE) as u64 };
            assert_eq!(ram.absent_pages(id), expected, "block {nth}");
        }
        assert_eq!(salvaged.losses()[0].offset.0, areas[2].entry as u64);
        let image = |stream: &Stream<'_>, page: u64| {
            stream.ram().unwrap().page(BlockId(0), BlockOffset(page * PAGE as u64)).unwrap() == Page::Fill(0)
        };
        assert!((0..0x1000).all(|page| image(&salvaged, page) == image(&whole, page)));
    }
}

#[test]
fn lengths_that_the_stream_does_not_bear_out_cost_nothing() {
    let stream = unpack("pc-11.1-mapped-ram-killed");
    let (areas, _) = areas(&stream);
    for (used_length, has_bitmap) in [(1u64 << 62, false), (1 << 50, false), (1 << 34, true), (1 << 38, true)]
    {
        let mut huge = stream.clone();
        let total = areas[0].entry - 8;
        huge[total..total + 8].copy_from_slice(&(used_length | 4).to_be_bytes());
        huge[areas[0].header - 8..areas[0].header].copy_from_slice(&used_length.to_be_bytes());
        let behind = (areas[0].bitmap() as u64 + (used_length >> 15)).next_multiple_of(1 << 20);
        huge[areas[0].header + 20..areas[0].header + 28].copy_from_slice(&behind.to_be_bytes());
        let place = Workplace::with(&huge);
        let args = ["extract", "stream", "-o", "out", "--salvage", "--quiet", "--threads", "2"];
        ramlift_within(200 << 10, place.path(), &args).expect_code(3);
        let manifest = place.json("out/manifest.json");
        let block = &manifest["blocks"][0];
        let seen = block["seen_pages"].as_u64().unwrap();
        // A bit for each.
        assert!(seen <= stream.len() as u64 * 8, "{block}");
        assert_eq!(block["absent_pages"].as_u64().unwrap() + seen, used_length >> 12, "{block}");
        if !has_bitmap {
            assert_eq!(block["status"], "absent");
        }
        let on_disk = |name: &String| place.join("out").join(name).metadata().unwrap().blocks() * 512;
        let all: u64 = files_in(place.join("out")).iter().map(on_disk).sum();
        assert!(all <= stream.len() as u64 + (1 << 20), "{all} bytes");
    }
}

#[test]
fn flipped_bits_of_entries_and_headers_do_no_harm() {
    for name in ["pc-10.0-mapped-ram-live", "pc-11.1-mapped-ram-killed"] {
        let mut stream = unpack(name);
        let (areas, _) = areas(&stream);
        for (nth, area) in areas.iter().enumerate().filter(|(nth, _)| nth % 2 == 0) {
            for at in (area.entry..area.bitmap() + 2).step_by(3) {
                let bit = 1 << ((at + nth) % 8);
                stream[at] ^= bit;
                // What stands in the blocks before is there all the same.
                let salvaged = Stream::salvage(&stream, &Progress::new()).ok();
                let ram = salvaged.as_ref().and_then(Stream::ram);
                for (id, block, pages) in ram.iter().flat_map(|ram| ram.blocks()) {
                    let held = pages.data_pages() + pages.fill_pages() + ram.unwrap().absent_pages(id);
                    assert_eq!(held, block.used_length.div_ceil(PAGE as u64), "{name} at {at:#x}");
                }
                assert!(nth == 0 || ram.is_some_and(|ram| ram.blocks().len() >= nth), "{name} at {at:#x}");
                stream[at] ^= bit;
            }
        }
    }
}

const SHARED: &str = "pc-10.0-ignore-shared";

#[test]
fn a_shared_block_is_taken_from_its_file() {
    let place = Workplace::with(&unpack(SHARED));
    let content = [vec![0; 8 << 20], noise(1, 4 << 20), vec![0; 4 << 20]].concat();
    std::fs::write(place.join("shared"), &content).unwrap();
    let args = ["extract", "stream", "-o", "out", "--shared-file", "pc.ram=shared"];
    let output = place.ramlift(&args).expect_code(0);
    assert_eq!(output.stderr, "");
    assert!(place.read("out/pc.ram") == content);
    let block = &place.json("out/manifest.json")["blocks"][0];
    assert_eq!((&block["idstr"], &block["status"]), (&"pc.ram".into(), &"complete".into()));
    assert_eq!(block["absent_pages"], 0);
}

#[test]
fn a_shared_file_that_does_not_fit_is_refused() {
    let place = Workplace::with(&unpack(SHARED));
    std::fs::write(place.join("short"), [0; 4096]).unwrap();
    let refused = |file: &str, texts: &[&str]| {
        let args = ["extract", "stream", "-o", "out", "--shared-file", file];
        let output = place.ramlift(&args).expect_code(1);
        for text in texts {
            assert!(output.stderr.contains(text), "{}", output.stderr);
        }
        assert!(!place.join("out").exists());
    };
    refused("pc.ram=short", &["short", "0x1000", "0x1000000"]);
    refused("pc.ram=nowhere", &["nowhere"]);
    refused("other=short", &["\"other\""]);
    refused("pc.bios=short", &["\"pc.bios\" is in the stream itself"]);
    place.ramlift(&["extract", "stream", "--shared-file", "pc.ram"]).expect_code(2);
}
