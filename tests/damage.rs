//! Damage that fuzzing came upon, in a few lines each: no page is wrong without
//! being said to be.

mod support;

use ramlift::{BlockId, BlockOffset, ErrorKind, Page, Progress, Stream};
use support::synth::{Block, EOS, Records, Synth, noise};

const PAGE: u64 = 4096;
const PAGES: u64 = 60;

/// The first pages of `block` are data, the others have a byte in all places.
fn pass(mut records: Records, block: &str, byte: u8) -> Records {
    for page in 0..PAGES {
        let (offset, content) = (page * PAGE, noise(u64::from(byte) << 8 | page, PAGE as usize));
        records = match page {
            0 => records.data(block, offset, &content),
            1..20 => records.next_data(offset, &content),
            _ => records.next_fill(offset, byte),
        };
    }
    records
}

/// Two blocks of one length, and nothing behind that names the first again.
fn two_alike() -> Vec<u8> {
    let blocks = [Block::new("first", PAGES * PAGE), Block::new("second", PAGES * PAGE)];
    let records = pass(pass(Records::new(), "first", 0x11), "second", 0x22);
    Synth::machine().target_page_bits(12).ram(&blocks, records).finish()
}

/// Where a record begins that stands in `bytes` once.
fn place_of(bytes: &[u8], record: &[u8]) -> usize {
    let places: Vec<usize> =
        (0..bytes.len() - record.len()).filter(|at| bytes[*at..].starts_with(record)).collect();
    assert_eq!(places.len(), 1, "it stands there once");
    places[0]
}

/// Bytes were removed from a page of the first block up to one of the second that
/// stands little farther in it: all records behind are the second's, whose name is
/// gone. They used to be taken for the first's, as of a page near the last one read.
#[test]
fn records_of_a_block_whose_name_is_gone_are_nobody_elses() {
    let mut bytes = two_alike();
    let first = place_of(&bytes, &noise(0x1103, PAGE as usize));
    let second = place_of(&bytes, &noise(0x2208, PAGE as usize));
    bytes.drain(first + 3000..second + 1000);
    let stream = Stream::salvage(&bytes, &Progress::new()).unwrap();
    assert!(stream.losses().iter().any(|loss| loss.is_in_ram), "{:?}", stream.losses());
    let ram = stream.ram().unwrap();
    for page in 0..PAGES {
        let page = ram.page(BlockId(0), BlockOffset(page * PAGE)).unwrap();
        assert!(!matches!(page, Page::Fill(0x22)), "a page of the second block is the first's");
    }
}

/// The same, but only the first block's own records are gone: it goes on, as the
/// second is named where it ends.
#[test]
fn records_of_a_block_go_on_behind_a_few_that_are_gone() {
    let mut bytes = two_alike();
    let first = place_of(&bytes, &noise(0x1102, PAGE as usize));
    let next = place_of(&bytes, &noise(0x1103, PAGE as usize));
    bytes.drain(first + 3000..next + 1000);
    let stream = Stream::salvage(&bytes, &Progress::new()).unwrap();
    let ram = stream.ram().unwrap();
    for (block, byte) in [(0, 0x11), (1, 0x22)] {
        let last = ram.page(BlockId(block), BlockOffset((PAGES - 1) * PAGE)).unwrap();
        assert_eq!(last, Page::Fill(byte));
    }
}

/// The word that ends a body has no offset. With one it is a piece of something
/// else; taken for the end of the last body, it had all behind it be no RAM.
#[test]
fn a_word_with_an_offset_ends_no_body() {
    let blocks = [Block::new("only", PAGE)];
    let begin = Synth::machine().target_page_bits(12).ram_start(&blocks);
    let at = begin.offset() + 5 + 8 + 1 + 4 + 1;
    let bytes = begin.ram_end(Records::new().fill("only", 0, 7).word(0x5000 | EOS, &[])).finish_undescribed();
    let error = Stream::parse(&bytes).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::RamFlags { flags: EOS, .. }), "{error}");
    assert_eq!(error.offset().unwrap().0, at);
}
