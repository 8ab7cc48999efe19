//! Pages: all those before a cut, and none that is wrong without being said to be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Damage, Random, damaged, live_stream, salvage, same};
use crate::support::fixtures::unpack;
use crate::support::naive::{Content, Naive};
use crate::support::synth::{Block, Records, Synth, noise};
use ramlift::{BlockOffset, Page, Stream};

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

/// Checks what a stream gives of which one range is damaged. Gives whether the
/// damage can be seen.
fn check_damage(bytes: &[u8], naive: &Naive, damage: Damage, place: Range<usize>, seed: u64) -> bool {
    const PAGE: usize = 4096;
    let said = format!("{damage:?} {place:#x?}");
    let bad = damaged(bytes, damage, place.clone(), seed);
    let stream = salvage(&bad);
    // A change that leaves a stream, if another one, cannot be seen: there are
    // no checksums.
    if Stream::parse(&bad).is_ok() && stream.losses().is_empty() {
        return false;
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
            let is_doubtful = stream.doubtful_pages().iter().any(|row| {
                let pages = row.offset.0..row.offset.0 + row.pages * PAGE as u64;
                row.block == id && pages.contains(&offset)
            });
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
    true
}

fn check_damages(bytes: &[u8], seed: u64, rounds: usize) {
    let naive = Naive::read(bytes, 4096);
    let (first, last) = (naive.starts[0], *naive.ends.last().unwrap());
    let mut random = Random(seed);
    let mut seen = 0;
    for nth in 0..rounds {
        let damage = [Damage::Overwritten, Damage::Zeros, Damage::Removed][nth % 3];
        let len = 1 + random.below([16, 300, 5000, 40_000][nth / 3 % 4]);
        let start = match nth % 2 {
            0 => naive.starts[random.below(naive.starts.len())] + random.below(12),
            _ => first + random.below(last - first),
        };
        let start = start.clamp(first, last - 1);
        let place = start..(start + len).min(last);
        seen += usize::from(check_damage(bytes, &naive, damage, place, seed + nth as u64));
    }
    assert!(seen > rounds / 2, "{seen} of {rounds} damages were seen");
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
fn pages_given_to_a_block_by_the_length_of_a_gap_are_doubtful() {
    let content = |block: u64, page: u64| noise(block << 8 | page, 4096);
    let pages = |records: Records, block: u64, pages: Range<u64>| {
        pages.fold(records, |records, page| records.next_data(page << 12, &content(block, page)))
    };
    let blocks = [Block::new("a", 16 << 12), Block::new("b", 16 << 12)];
    let records = pages(Records::new().data("a", 0, &content(1, 0)), 1, 1..16);
    let records = pages(records.data("b", 0, &content(2, 0)), 2, 1..13);
    // What is no RAM stands between bodies, and the block goes on behind it.
    let synth = Synth::machine().ram_start(&blocks).ram_part(records).command(11, &[]);
    let bytes = synth.ram_end(pages(Records::new(), 2, 13..16)).finish();
    let naive = Naive::read(&bytes, 4096);
    // From page 4 of `a` up to page 9 of `b`: three pages of noise, as if those
    // were the ones that are missing of `a`.
    let (start, end) = (naive.starts[4], naive.starts[16 + 9]);
    let bad = [&bytes[..start], &noise(9, 3 * 4104), &bytes[end..]].concat();
    let stream = salvage(&bad);
    let ram = stream.ram().unwrap();
    let a = ram.find(b"a").unwrap();
    let at = |page: u64| ram.page(a, BlockOffset(page << 12)).unwrap();
    assert_eq!(at(12), Page::Data(content(2, 12).into()), "nothing tells it from one of `a`");
    // But it is said, of all but the record that is behind damage anyway.
    let doubtful: Vec<_> =
        stream.doubtful_pages().iter().map(|row| (row.offset.0 >> 12, row.pages)).collect();
    assert_eq!(doubtful, [(3, 1), (9, 7)]);
    assert!(stream.warnings().iter().any(|warning| warning.to_string().contains("tells the RAM block: 7")));
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
