//! Guest RAM: what comes out is what a naive reader finds.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use ramlift::{
    BlockFiles, BlockId, BlockOffset, ErrorKind, Page, PageSource, Progress, Ram, RecordContent, RunContent,
    Stream, WINDOW_LEN, image_len, scatter,
};
use support::cli::Workplace;
use support::going_by::check_going_by;
use support::naive::{Content, Naive};
use support::synth::{Block, Records, Synth, noise};

const KIB_4: usize = 4096;

/// Checks everything that can be read of a stream's RAM against the oracle.
#[track_caller]
fn check(bytes: &[u8], page_size: usize) {
    let naive = Naive::read(bytes, page_size);
    let stream = Stream::parse(bytes).unwrap();
    let ram = stream.ram().unwrap();
    assert_eq!(ram.page_size().bytes(), page_size as u64);
    assert_eq!(ram.pass_count(), naive.pass_count(), "passes");
    let listed: Vec<_> = ram.blocks().map(|(_, block, _)| block.clone()).collect();
    let listed: Vec<_> =
        listed.iter().map(|block| (block.idstr.as_bytes().to_vec(), block.used_length)).collect();
    assert_eq!(listed, naive.blocks);
    for (id, block, _) in ram.blocks() {
        let idstr = block.idstr.as_bytes();
        assert_eq!(ram.find(idstr), Some(id));
        check_pages(bytes, ram, id, &naive.pages(idstr));
        check_counts(ram, id, &naive);
    }
    check_records(bytes, &stream, &naive, page_size);
    check_images(ram, &naive, page_size);
    for chunk_len in [page_size / 3, 20_000] {
        check_going_by(bytes, chunk_len);
    }
}

/// Random access, page by page and by runs.
#[track_caller]
fn check_pages(bytes: &[u8], ram: &Ram<'_>, id: BlockId, expected: &BTreeMap<u64, &Content>) {
    let size = ram.page_size().bytes();
    let pages = ram.pages(id).unwrap();
    let count = ram.page_size().pages_in(ram.block(id).unwrap().used_length);
    for page in 0..count + 2 {
        let offset = BlockOffset(page * size + page % size);
        let (found, source) = (ram.page(id, offset).unwrap(), pages.source(offset));
        match expected.get(&(page * size)) {
            None => assert_eq!((found, source), (Page::Absent, PageSource::Absent), "page {page}"),
            Some(Content::Fill(byte)) => {
                assert_eq!((found, source), (Page::Fill(*byte), PageSource::Fill(*byte)), "page {page}");
            }
            Some(Content::Data(data)) => {
                assert!(found == Page::Data(data.into()), "page {page} holds something else");
                if let PageSource::Data(at) = source {
                    assert_eq!(bytes[at.0 as usize..][..data.len()], data[..]);
                } else {
                    let is_encoded = matches!(source, PageSource::Compressed(_) | PageSource::Xbzrle(_));
                    assert!(is_encoded, "page {page} is {source:?}");
                }
            }
        }
    }
    for (from, to) in [(0, count), (0, count / 2), (count / 3, count - count / 3), (count / 2, count)] {
        check_runs(bytes, ram, id, expected, from * size..to * size);
    }
}

/// The runs of a range are its pages that are there, in order.
#[track_caller]
fn check_runs(
    bytes: &[u8],
    ram: &Ram<'_>,
    id: BlockId,
    expected: &BTreeMap<u64, &Content>,
    range: std::ops::Range<u64>,
) {
    let size = ram.page_size().bytes();
    let mut met = Vec::new();
    for run in ram.pages(id).unwrap().runs(BlockOffset(range.start), BlockOffset(range.end)) {
        assert!(run.pages > 0, "an empty run");
        met.extend((0..run.pages).map(|nth| {
            let content = match run.content {
                RunContent::Fill(byte) => Content::Fill(byte),
                RunContent::Data { first, stride } => {
                    Content::Data(bytes[(first.0 + nth * stride) as usize..][..size as usize].to_vec())
                }
                RunContent::Compressed(_) | RunContent::Xbzrle(_) => {
                    assert_eq!(run.pages, 1);
                    let Page::Data(data) = ram.page(id, run.offset).unwrap() else { panic!("{run:?}") };
                    Content::Data(data.into_owned())
                }
                RunContent::Image => panic!("{run:?} of a stream that is here"),
            };
            (run.offset.0 + nth * size, content)
        }));
    }
    let expected: Vec<_> =
        expected.range(range).map(|(offset, content)| (*offset, (*content).clone())).collect();
    assert!(met == expected, "the runs hold other pages");
}

#[track_caller]
fn check_counts(ram: &Ram<'_>, id: BlockId, naive: &Naive) {
    let (block, pages) = (ram.block(id).unwrap(), ram.pages(id).unwrap());
    let idstr = block.idstr.as_bytes();
    let expected = naive.pages(idstr);
    let data = expected.values().filter(|content| matches!(content, Content::Data(_))).count() as u64;
    let fill = expected.len() as u64 - data;
    let records = naive.records.iter().filter(|(name, ..)| name == idstr).count() as u64;
    let all = block.used_length.div_ceil(ram.page_size().bytes());
    assert_eq!(pages.data_pages(), data, "data pages of {idstr:?}");
    assert_eq!(pages.fill_pages(), fill, "fill pages of {idstr:?}");
    assert_eq!(pages.resent_pages(), records - data - fill, "pages of {idstr:?} sent again");
    assert_eq!(ram.absent_pages(id), all - data - fill, "absent pages of {idstr:?}");
}

/// All records once more, in the order of the stream.
#[track_caller]
fn check_records(bytes: &[u8], stream: &Stream<'_>, naive: &Naive, page_size: usize) {
    let ram = stream.ram().unwrap();
    let records = stream.page_records().map(|record| {
        let at = record.payload.0 as usize;
        let content = match record.content {
            RecordContent::Fill(byte) => {
                assert_eq!(bytes[at], byte);
                Content::Fill(byte)
            }
            RecordContent::Data => Content::Data(bytes[at..][..page_size].to_vec()),
            // What it comes to is checked by the pages.
            RecordContent::Compressed | RecordContent::Xbzrle => Content::Data(Vec::new()),
        };
        (ram.block(record.block).unwrap().idstr.as_bytes().to_vec(), record.offset.0, content)
    });
    let is_same = |met: &(Vec<u8>, u64, Content), expected: &(Vec<u8>, u64, Content)| {
        let is_encoded = met.2 == Content::Data(Vec::new()) && matches!(expected.2, Content::Data(_));
        (&met.0, met.1) == (&expected.0, expected.1) && (is_encoded || met.2 == expected.2)
    };
    let records: Vec<_> = records.collect();
    assert_eq!(records.len(), naive.records.len());
    let all_same = records.iter().zip(&naive.records).all(|(met, expected)| is_same(met, expected));
    assert!(all_same, "other records, or in another order");
}

/// The images that the threads write.
#[track_caller]
fn check_images(ram: &Ram<'_>, naive: &Naive, page_size: usize) {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<BlockId> = ram.blocks().map(|(id, ..)| id).collect();
    let path = |id: &BlockId| dir.path().join(id.0.to_string());
    let files = BlockFiles::create(ram, ids.iter().map(|id| (*id, path(id)))).unwrap();
    let progress = Progress::new();
    scatter(ram, &ids, &files, &progress).unwrap();
    assert_eq!(progress.done(), image_len(ram, &ids), "progress ends at its total");
    for id in &ids {
        let idstr = ram.block(*id).unwrap().idstr.as_bytes();
        assert!(fs::read(path(id)).unwrap() == naive.image(idstr, page_size), "the image of {idstr:?}");
    }
}

/// Checks a stream of one block of four pages, and gives the image.
#[track_caller]
fn image_of(stream: Synth) -> Vec<u8> {
    let bytes = stream.finish_undescribed();
    check(&bytes, KIB_4);
    Naive::read(&bytes, KIB_4).image(b"main.ram", KIB_4)
}

fn four_pages() -> Synth {
    Synth::machine().ram_start(&[Block::new("main.ram", 4 * KIB_4 as u64)])
}

fn page(seed: u64) -> Vec<u8> {
    noise(seed, KIB_4)
}

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
fn a_block_that_ends_inside_a_page_has_all_of_its_bytes() {
    let blocks = [Block::new("odd", 0x1000 + 0x700), Block::new("tail", 0x900)];
    let records = Records::new().data("odd", 0x1000, &page(1)).fill("tail", 0, 0xee);
    check(&Synth::machine().ram(&blocks, records).finish_undescribed(), KIB_4);
}

#[test]
fn blocks_of_no_bytes_are_listed() {
    let blocks = [Block::new("empty", 0), Block::new("main.ram", 0x1000)];
    let records = Records::new().data("main.ram", 0, &page(1));
    check(&Synth::machine().ram(&blocks, records).finish_undescribed(), KIB_4);
}

#[test]
fn a_stream_of_no_blocks_has_ram_that_is_empty() {
    check(&Synth::machine().ram(&[], Records::new()).finish_undescribed(), KIB_4);
}

#[test]
fn page_sizes_of_blocks_are_told_from_what_follows() {
    // Postcopy was allowed: blocks of huge pages give their size.
    let blocks = [
        Block::new("huge", 0x4000).page_size(2 << 20),
        Block::new("plain", 0x2000),
        Block::new("last", 0x1000).page_size(1 << 30),
    ];
    let records = Records::new().data("huge", 0, &page(1)).data("last", 0, &page(2));
    let stream = Synth::machine().ram(&blocks, records).finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let ram = parsed.ram().unwrap();
    let sizes: Vec<_> = ram.blocks().map(|(_, block, _)| block.host_page_size).collect();
    assert_eq!(sizes, [Some(2 << 20), None, Some(1 << 30)]);
    assert_eq!(ram.page(ram.find(b"last").unwrap(), BlockOffset(0)).unwrap(), Page::Data(page(2).into()));
}

#[test]
fn region_offsets_are_read_where_shared_blocks_are_ignored() {
    // 0x100000 and 0x2000 could be page sizes too.
    let blocks = [
        Block::new("shared", 0x4000).mr_addr(0),
        Block::new("bios", 0x2000).mr_addr(0xfffc_0000),
        Block::new("huge", 0x1000).page_size(2 << 20).mr_addr(0x10_0000),
        Block::new("last", 0x1000).mr_addr(0x2000),
    ];
    let records = Records::new().data("bios", 0, &page(1)).data("last", 0, &page(2));
    let stream =
        Synth::machine().capabilities(&["x-ignore-shared"]).ram(&blocks, records).finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let listed: Vec<_> =
        parsed.ram().unwrap().blocks().map(|(_, block, _)| (block.host_page_size, block.mr_addr)).collect();
    let expected =
        [(None, Some(0)), (None, Some(0xfffc_0000)), (Some(2 << 20), Some(0x10_0000)), (None, Some(0x2000))];
    assert_eq!(listed, expected);
}

#[test]
fn a_region_offset_that_could_be_a_page_size_is_none() {
    // The second node of a NUMA guest begins at 1 GiB of its region.
    let blocks = [
        Block::new("node0", 0x2000).mr_addr(0),
        Block::new("node1", 0x2000).mr_addr(1 << 30),
        Block::new("0000:00:02.0/vga.vram", 0x1000).mr_addr(0x1000),
        Block::new("a", 0x1000).mr_addr(0x2000),
        Block::new("pc.bios", 0x1000).mr_addr(0x4000),
        Block::new("pc.rom", 0x1000).mr_addr(1 << 50),
    ];
    let records = Records::new().data("node1", 0, &page(1)).fill("pc.rom", 0, 7);
    for stream in [Synth::machine(), Synth::machine().without_footers()] {
        let stream = stream.capabilities(&["x-ignore-shared"]).ram(&blocks, records.clone());
        let stream = stream.finish_undescribed();
        let parsed = Stream::parse(&stream).unwrap();
        for (expected, (_, block, _)) in blocks.iter().zip(parsed.ram().unwrap().blocks()) {
            assert_eq!((block.host_page_size, block.mr_addr), (None, expected.mr_addr), "{block:?}");
        }
    }
}

#[test]
fn pages_of_256_bytes_use_the_bits_of_newer_flags() {
    // avr before QEMU 10.2: offsets 0x100 and 0x200 are no flags there.
    let mut records = Records::new();
    for nth in 0..16 {
        records = match nth % 3 {
            0 => records.fill("ram", nth * 256, nth as u8),
            1 => records.data("ram", nth * 256, &noise(nth, 256)),
            _ => records.next_data(nth * 256, &noise(nth, 256)),
        };
    }
    let stream = Synth::machine().described_page_size(Some(256)).ram(&[Block::new("ram", 0x1000)], records);
    check(&stream.finish(), 256);
}

#[test]
fn a_page_size_that_nothing_gives_is_found_out() {
    for bits in 10..=16 {
        let size = 1usize << bits;
        let records = Records::new()
            .data("ram", 0, &noise(1, size))
            .next_fill(size as u64, 0)
            .next_data(2 * size as u64, &noise(2, size))
            .next_data(3 * size as u64, &noise(3, size));
        let stream = Synth::machine().ram(&[Block::new("ram", 4 * size as u64)], records);
        check(&stream.finish_undescribed(), size);
    }
}

#[test]
fn a_page_size_that_nothing_gives_is_found_out_behind_fill_pages() {
    for bits in 8..=16 {
        let size = 1u64 << bits;
        let fills = (0..8).fold(Records::new(), |records, nth| records.fill("ram", nth * size, 0));
        let stream = Synth::machine()
            .ram_start(&[Block::new("ram", 16 * size)])
            .ram_part(fills)
            .ram_end(Records::new().data("ram", 9 * size, &noise(1, size as usize)).next_fill(10 * size, 0));
        check(&stream.finish_undescribed(), size as usize);
    }
}

#[test]
fn the_configuration_goes_before_the_description_on_the_page_size() {
    let records = Records::new().data("ram", 0x2000, &noise(1, 8192)).next_fill(0, 0);
    let stream = Synth::machine()
        .target_page_bits(13)
        .described_page_size(Some(4096))
        .ram(&[Block::new("ram", 0x8000)], records)
        .finish();
    check(&stream, 8192);
    let parsed = Stream::parse(&stream).unwrap();
    assert!(parsed.warnings().iter().any(|warning| warning.is_loss), "the two do not agree");
}

#[test]
fn a_described_page_size_that_does_not_fit_is_not_believed() {
    let records = Records::new().fill("ram", 0, 0).next_data(0x1000, &page(1)).next_data(0x2000, &page(2));
    let stream = Synth::machine().described_page_size(Some(8192)).ram(&[Block::new("ram", 0x4000)], records);
    check(&stream.finish(), KIB_4);
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
fn a_window_without_data_takes_no_disk_blocks() {
    let window = WINDOW_LEN;
    let mut records = Records::new().data("ram", 0, &page(1));
    for at in (window..2 * window).step_by(KIB_4) {
        records = records.next_fill(at, 0);
    }
    // Sent as data and zero since, and never sent: both are holes as well.
    for at in (2 * window..3 * window).step_by(KIB_4) {
        records = records.next_data(at, &page(2)).next_fill(at, 0);
    }
    let blocks = Block::new("ram", 64 * window);
    let stream = Synth::machine().ram(&[blocks], records).finish_undescribed();
    assert!(allocated(&stream) <= 64 << 10);
}

#[test]
fn pages_of_data_that_are_zero_take_no_disk_blocks() {
    // With zero-page-detection=none, QEMU sends zero pages as data.
    let mut records = Records::new().data("ram", 0, &page(1));
    for at in (WINDOW_LEN..2 * WINDOW_LEN).step_by(KIB_4) {
        records = records.next_data(at, &[0; KIB_4]);
    }
    let stream = Synth::machine().ram(&[Block::new("ram", 2 * WINDOW_LEN)], records).finish_undescribed();
    assert!(allocated(&stream) <= 64 << 10);
}

/// The bytes that the image of the block `ram` takes on disk: how much a
/// page's worth is, the file system says.
fn allocated(stream: &[u8]) -> u64 {
    let place = Workplace::with(stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    fs::metadata(place.join("out/ram")).unwrap().blocks() * 512
}

#[test]
fn an_image_is_as_long_as_its_block() {
    // 1 TiB, one page of it at the very end.
    let len = 1u64 << 40;
    let records = Records::new().data("ram", len - 0x1000, &page(1));
    let stream = Synth::machine().ram(&[Block::new("ram", len)], records).finish_undescribed();
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let image = File::open(place.join("out/ram")).unwrap();
    assert_eq!(image.metadata().unwrap().len(), len);
    let mut last = vec![0; KIB_4];
    image.read_exact_at(&mut last, len - 0x1000).unwrap();
    assert_eq!(last, page(1));
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

#[test]
fn files_of_images_are_created_new() {
    let stream = four_pages().ram_end(Records::new().data("main.ram", 0, &page(1))).finish_undescribed();
    let parsed = Stream::parse(&stream).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, "mine").unwrap();
    let error = BlockFiles::create(parsed.ram().unwrap(), [(BlockId(0), path.clone())]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io { path: named, .. } if *named == path), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

/// Where a stream says what its page size is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Configuration,
    Description,
    Nowhere,
}

/// A generated stream, and what it was made from.
#[derive(Clone, Debug)]
struct Plan {
    bits: u32,
    told: Told,
    /// Whether a page of data comes before all others, if the size is not
    /// told.
    has_early_data: bool,
    has_footers: bool,
    /// Name, pages, and bytes that the last page is short of.
    blocks: Vec<(Vec<u8>, u64, u64)>,
    passes: Vec<Pass>,
    seed: u64,
}

/// Pages sent in a row: which, and in which order.
#[derive(Clone, Debug)]
struct Pass {
    block: prop::sample::Index,
    first: prop::sample::Index,
    len: u64,
    /// Distance to the next page: 1 ascends, others jump about, none descends.
    step: Option<u64>,
    content: Kind,
    /// One in so many pages is the last of its section.
    splits: u64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Data,
    Fill(u8),
    /// Data and zeros.
    Mixed,
}

fn plans() -> impl Strategy<Value = Plan> {
    let told = prop_oneof![Just(Told::Configuration), Just(Told::Description), Just(Told::Nowhere)];
    let name = prop_oneof![
        3 => "[a-z0-9:./@]{1,20}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..=255),
    ];
    let names = prop::collection::hash_set(name, 1..7);
    let blocks = names.prop_flat_map(|names| {
        let names: Vec<_> = names.into_iter().collect();
        names.into_iter().map(|name| (Just(name), 0u64..300, 0u64..4096)).collect::<Vec<_>>()
    });
    let passes = prop::collection::vec(passes(), 0..12);
    (8u32..=16, told, any::<[bool; 2]>(), blocks, passes, any::<u64>()).prop_map(
        |(bits, told, [has_early_data, has_footers], mut blocks, passes, seed)| {
            // The list ends with the last block that has any bytes.
            if let Some(last) = blocks.last_mut() {
                last.1 = last.1.max(1);
            }
            // Pages of few bytes in a row may look like one of many; the
            // sizes that are tried first are certain.
            let bits = if told == Told::Nowhere { [12, 13, 14, 16][bits as usize % 4] } else { bits };
            Plan { bits, told, has_early_data, has_footers, blocks, passes, seed }
        },
    )
}

fn passes() -> impl Strategy<Value = Pass> {
    let kind = prop_oneof![
        Just(Kind::Data),
        Just(Kind::Fill(0)),
        (1u8..).prop_map(Kind::Fill),
        Just(Kind::Mixed),
        Just(Kind::Mixed),
    ];
    let step = prop_oneof![3 => Just(Some(1u64)), 1 => (2u64..50).prop_map(Some), 1 => Just(None)];
    (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u64..60, step, kind, 1u64..40).prop_map(
        |(block, first, len, step, content, splits)| Pass { block, first, len, step, content, splits },
    )
}

impl Plan {
    fn page_size(&self) -> usize {
        1 << self.bits
    }

    fn blocks(&self) -> Vec<Block> {
        let len = |pages: u64, short: u64| (pages << self.bits).saturating_sub(short % (1 << self.bits));
        let mut blocks: Vec<Block> =
            self.blocks.iter().map(|(name, pages, short)| Block::new(name, len(*pages, *short))).collect();
        // The total shares its word with flags, so lengths may be odd, but
        // not their sum.
        let total: u64 = blocks.iter().map(|block| block.used_length).sum();
        if let Some(last) = blocks.last_mut() {
            last.used_length += total.next_multiple_of(256) - total;
        }
        blocks
    }

    /// Writes the stream.
    fn write(&self) -> Vec<u8> {
        let mut stream = Synth::machine();
        match self.told {
            Told::Configuration => {
                stream = stream.target_page_bits(self.bits).described_page_size(None);
            }
            Told::Description => stream = stream.described_page_size(Some(1 << self.bits)),
            Told::Nowhere => stream = stream.described_page_size(None),
        }
        if !self.has_footers {
            stream = stream.without_footers();
        }
        let blocks = self.blocks();
        stream = stream.ram_start(&blocks);
        let mut bodies = self.bodies(&blocks);
        let last = bodies.pop().unwrap_or_default();
        stream = bodies.into_iter().fold(stream, Synth::ram_part).ram_end(last);
        match self.told {
            Told::Nowhere => stream.finish_undescribed(),
            _ => stream.finish(),
        }
    }

    fn bodies(&self, blocks: &[Block]) -> Vec<Records> {
        let size = self.page_size();
        let mut bodies = vec![Records::new()];
        let mut records = Records::new();
        let mut current = None;
        let mut seed = self.seed;
        let mut sent = std::collections::HashSet::new();
        let mut has_data = false;
        let mut push = |block: usize, offset: u64, kind: Kind, ends: bool| {
            seed = seed.wrapping_add(0x1_0001);
            // Now and then the name is written although it need not be.
            let is_named = current != Some(block) || seed.is_multiple_of(11);
            current = Some(block);
            let name = &blocks[block].idstr;
            let is_data = match kind {
                Kind::Data => true,
                Kind::Mixed => seed.is_multiple_of(3),
                Kind::Fill(_) => false,
            };
            let byte = if let Kind::Fill(byte) = kind { byte } else { 0 };
            let before = std::mem::take(&mut records);
            // No QEMU sends what changed before it has sent a page of data.
            let is_delta = !sent.insert((block, offset)) && has_data && seed % 5 < 2;
            let is_compressed = is_data && size >= 1024 && seed.is_multiple_of(7);
            has_data |= is_data;
            let new = noise(seed, 1 + seed as usize % 200);
            let far = (size - 2).saturating_sub(128 + new.len());
            let pairs = [(seed as usize % 3, &new[..1]), (far % 0x3fff, &new[..new.len() / 2 + 1])];
            let pairs = &pairs[..if size >= 1024 { seed as usize % 3 } else { seed as usize % 2 }];
            records = match (is_data, is_named) {
                _ if is_delta && is_named => before.xbzrle(name, offset, pairs),
                _ if is_delta => before.next_xbzrle(offset, pairs),
                (true, true) if is_compressed => before.compressed(name, offset, &noise(seed, size)),
                (true, false) if is_compressed => before.next_compressed(offset, &noise(seed, size)),
                (true, true) => before.data(name, offset, &noise(seed, size)),
                (true, false) => before.next_data(offset, &noise(seed, size)),
                (false, true) => before.fill(name, offset, byte),
                (false, false) => before.next_fill(offset, byte),
            };
            if ends {
                bodies.push(std::mem::take(&mut records));
            }
        };
        let filled: Vec<usize> = (0..blocks.len()).filter(|nth| blocks[*nth].used_length > 0).collect();
        // Without a page of data there is nothing to infer a size from.
        let needs_data = self.told == Told::Nowhere;
        if needs_data && self.has_early_data {
            push(filled[0], 0, Kind::Data, false);
        }
        for pass in &self.passes {
            let block = *pass.block.get(&filled);
            let pages = blocks[block].used_length.div_ceil(size as u64);
            let mut page = pass.first.index(pages as usize) as u64;
            for nth in 0..pass.len {
                push(block, page << self.bits, pass.content, nth % pass.splits == pass.splits - 1);
                page = (page + pages + pass.step.map_or(pages - 1, |step| step % pages)) % pages;
            }
        }
        // A guest without any data is half of a multifd migration.
        if !needs_data || !self.has_early_data {
            push(filled[0], 0, Kind::Data, false);
        }
        bodies.push(records);
        bodies
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn parallel_extraction_equals_the_naive_reader(plan in plans()) {
        check(&plan.write(), plan.page_size());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn the_command_extracts_what_the_naive_reader_does(plan in plans(), threads in 1u8..5) {
        let stream = plan.write();
        let naive = Naive::read(&stream, plan.page_size());
        let place = Workplace::with(&stream);
        let output = place.ramlift(&["extract", "stream", "-o", "out", "--threads", &threads.to_string()]);
        let manifest = place.json("out/manifest.json");
        let entries = manifest["blocks"].as_array().unwrap();
        prop_assert_eq!(entries.len(), naive.blocks.len());
        for (entry, (idstr, _)) in entries.iter().zip(&naive.blocks) {
            match entry["file"].as_str() {
                Some(file) => {
                    let image = place.read(&format!("out/{file}"));
                    prop_assert!(image == naive.image(idstr, plan.page_size()), "{}", file);
                }
                None => prop_assert!(naive.pages(idstr).is_empty()),
            }
        }
        let any_absent = entries.iter().any(|entry| entry["file"].is_null());
        prop_assert_eq!(output.code, if any_absent { 3 } else { 0 });
    }
}
