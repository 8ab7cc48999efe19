//! Page records, in any order: the last one of a page counts.

use super::{KIB_4, check, four_pages, image_of, page};
use crate::support::cli::Workplace;
use crate::support::naive::Naive;
use crate::support::synth::{Block, Records, Synth, noise};
use ramlift::{BlockId, BlockOffset, ErrorKind, Page, Stream};

#[test]
fn keeps_last_copy_of_a_page_sent_twice() {
    let records = Records::new().data("main.ram", 0x1000, &page(1)).next_data(0x1000, &page(2));
    let image = image_of(four_pages().ram_part(records).ram_end(Records::new()));
    assert_eq!(image[0x1000..0x2000], page(2));
}

#[test]
fn keeps_last_copy_of_a_page_sent_twice_in_two_sections() {
    let first = Records::new().data("main.ram", 0x1000, &page(1)).next_data(0x2000, &page(3));
    let image =
        image_of(four_pages().ram_part(first).ram_end(Records::new().data("main.ram", 0x1000, &page(2))));
    assert_eq!(image[0x1000..0x2000], page(2));
    assert_eq!(image[0x2000..0x3000], page(3));
}

#[test]
fn a_page_of_data_that_became_zero_is_zero() {
    let records =
        Records::new().data("main.ram", 0x1000, &page(1)).next_data(0, &page(2)).next_fill(0x1000, 0);
    assert_eq!(image_of(four_pages().ram_end(records))[KIB_4..], [0; 3 * KIB_4]);
}

#[test]
fn a_zero_page_that_became_data_is_data() {
    let records = Records::new().fill("main.ram", 0x1000, 0).next_data(0x1000, &page(1));
    assert_eq!(image_of(four_pages().ram_end(records))[0x1000..0x2000], page(1));
}

#[test]
fn data_then_fill_then_data_is_the_last_data() {
    let records =
        Records::new().data("main.ram", 0, &page(1)).next_fill(0, 0xa5).next_data(0, &page(2)).end();
    assert_eq!(image_of(four_pages().end(2, &records))[..KIB_4], page(2));
}

#[test]
fn fill_bytes_other_than_zero_are_repeated() {
    let records =
        Records::new().fill("main.ram", 0, 0xff).next_data(0x1000, &page(1)).next_fill(0x3000, 0x01);
    let image = image_of(four_pages().ram_end(records));
    assert_eq!(image[..KIB_4], [0xff; KIB_4]);
    assert_eq!(image[3 * KIB_4..], [0x01; KIB_4]);
}

#[test]
fn records_in_a_row_end_where_content_or_block_do() {
    let blocks = [Block::new("main.ram", 7 * 4096 + 1024), Block::new("other.ram", 3072)];
    // The first page of data shows the page size.
    let mut records = Records::new().data("main.ram", 0, &page(1)).next_fill(0x1000, 0);
    records = records.next_fill(0x2000, 7).next_fill(0x3000, 7).next_fill(0x4000, 0);
    for nth in 5..8 {
        records = records.next_data(nth << 12, &page(nth));
    }
    // Where the next page of the block before would be.
    let stream = |last: Records| Synth::machine().ram(&blocks, last).finish();
    check(&stream(records.clone().data("other.ram", 0, &page(8))), KIB_4);
    let error = Stream::parse(&stream(records.next_data(8 << 12, &page(8)))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PageOutside { offset: 0x8000, .. }), "{error}");
}

#[test]
fn continue_goes_on_with_the_block_of_the_section_before() {
    let blocks = [Block::new("a", 0x2000), Block::new("b", 0x2000)];
    let stream = Synth::machine()
        .ram_start(&blocks)
        .ram_part(Records::new().data("a", 0, &page(1)).data("b", 0, &page(2)))
        .ram_part(Records::new())
        .ram_part(Records::new().next_data(0x1000, &page(3)))
        .ram_end(Records::new().next_fill(0, 0x77))
        .finish_undescribed();
    check(&stream, KIB_4);
    assert_eq!(Naive::read(&stream, KIB_4).image(b"b", KIB_4), [vec![0x77; KIB_4], page(3)].concat());
}

#[test]
fn a_stream_without_ram_end_is_complete() {
    // Capability background-snapshot: the devices follow the last PART.
    let stream = four_pages()
        .ram_part(Records::new().data("main.ram", 0, &page(1)))
        .device(3, "timer", &[1], r#"{"name": "on", "type": "bool", "size": 1}"#)
        .finish();
    check(&stream, KIB_4);
    assert!(Stream::parse(&stream).unwrap().devices().next().unwrap().decode().is_ok());
}

#[test]
fn pages_sent_after_postcopy_began_replace_those_before() {
    // Postcopy was started while the stream went to a file: the devices stand
    // in a package between the pages, and nothing describes them.
    let package = Synth::new()
        .command(4, &[])
        .undescribed(3, "timer", 0, &[1, 2, 3])
        .undescribed(4, "cpu", 0, &noise(9, 200))
        .command(2, &[0, 0, 0, 3])
        .command(5, &[])
        .bytes()[8..]
        .to_vec();
    let stream = Synth::machine()
        .command(1, &[])
        .command(2, &[0, 0, 0, 1])
        .command(3, &[[0, 0, 0, 0, 0, 0, 0x10, 0], [0, 0, 0, 0, 0, 0, 0x10, 0]].concat())
        .ram_start(&[Block::new("main.ram", 4 * KIB_4 as u64)])
        .ram_part(Records::new().data("main.ram", 0, &page(1)).next_data(0x1000, &page(2)))
        .command(6, b"\0\x08main.ram\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x10\0")
        .command(7, &(package.len() as u32).to_be_bytes())
        .raw(&package)
        .command(2, &[0, 0, 0, 4])
        .ram_part(Records::new().next_data(0x1000, &page(3)))
        .ram_end(Records::new().next_fill(0x2000, 0))
        .finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let ram = parsed.ram().unwrap();
    assert_eq!(ram.page(BlockId(0), BlockOffset(0x1000)).unwrap(), Page::Data(page(3).into()));
    assert_eq!(ram.page(BlockId(0), BlockOffset(0x2000)).unwrap(), Page::Fill(0));
    assert_eq!(parsed.devices().count(), 2);
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert!(place.read("out/main.ram") == [page(1), page(3), vec![0; 2 * KIB_4]].concat());
}

#[test]
fn any_order_of_pages_gives_the_same_image() {
    let len = 600u64;
    let orders: [fn(u64, u64) -> u64; 4] =
        [|nth, _| nth, |nth, len| len - 1 - nth, |nth, len| nth * 7 % len, |nth, len| nth * 301 % len];
    for order in orders {
        let mut records = Records::new();
        for nth in 0..len {
            let at = order(nth, len);
            records = if at % 5 == 0 {
                records.fill("ram", at * 256, at as u8)
            } else {
                records.data("ram", at * 256, &noise(nth, 256))
            };
        }
        let stream = Synth::machine().target_page_bits(8).ram(&[Block::new("ram", len * 256)], records);
        check(&stream.finish_undescribed(), 256);
    }
}

#[test]
fn an_empty_range_has_no_runs() {
    let records = Records::new().data("main.ram", 0, &page(1)).next_data(0x1000, &page(2));
    let stream = four_pages().ram_end(records).finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let pages = parsed.ram().unwrap().pages(BlockId(0)).unwrap();
    for (from, to) in [(0, 0), (0x1000, 0x1000), (0x2000, 0x1000), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
        assert_eq!(pages.runs(BlockOffset(from), BlockOffset(to)).next(), None, "{from:#x} to {to:#x}");
    }
}
