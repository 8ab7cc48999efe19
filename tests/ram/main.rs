//! Guest RAM: what comes out is what a naive reader finds.

#[path = "../support/mod.rs"]
mod support;

mod blocks;
mod generated;
mod images;
mod page_size;
mod records;

use std::collections::BTreeMap;

use ramlift::{BlockId, BlockOffset, Page, PageSource, Ram, RecordContent, RunContent, Stream};
use support::going_by::{check_going_by, images_of};
use support::naive::{Content, Naive};
use support::synth::{Block, Synth, noise};

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
    for ((_, block, _), image) in ram.blocks().zip(images_of(ram)) {
        let idstr = block.idstr.as_bytes();
        assert!(image == naive.image(idstr, page_size), "the image of {idstr:?}");
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
