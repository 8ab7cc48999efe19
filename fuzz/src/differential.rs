//! What is extracted of made streams: by the scatter, by the piped engine, by
//! salvage, and by the naive reader.

use arbitrary::{Arbitrary, Unstructured};
use ramlift::{BlockId, BlockOffset, Page, Progress, Ram, Stream};

use super::images::Images;
use super::look::{check_every_byte, look_through};
use super::naive::{Content, Naive};
use super::plan::Plan;
use super::read_once::{check_going_by, chunk_len};

pub fn run(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let Ok((chunk, cut, plan)) = <(u8, u16, Plan)>::arbitrary(&mut u) else { return };
    let stream = plan.stream();
    let naive = Naive::read(&stream, plan.page_len() as usize);
    check_whole(&stream, &naive, plan.page_len());
    check_going_by(&stream, chunk_len(chunk));
    check_cut(&stream, &plan, usize::from(cut));
}

fn check_whole(bytes: &[u8], naive: &Naive, page_len: u64) {
    let stream = Stream::parse(bytes).expect("it is a stream");
    look_through(&stream, bytes);
    check_every_byte(&stream, bytes);
    let ram = stream.ram().unwrap();
    assert_eq!(ram.page_size().bytes(), page_len);
    assert!(
        Images::scattered(ram, 2).unwrap() == images(naive, page_len),
        "the naive reader has other images"
    );
    check_pages(ram, naive);
    assert_eq!(ram.pass_count(), naive.pass_count());
    assert_eq!(ram.pages_per_pass().iter().sum::<u64>(), naive.records.len() as u64);
    let place = |record: &ramlift::PageRecord| (record.block, record.offset.0);
    let records: Vec<_> = stream.page_records().map(|record| place(&record)).collect();
    let named = |name: &[u8]| ram.find(name).expect("the block is listed");
    let expected: Vec<_> = naive.records.iter().map(|(name, offset, _)| (named(name), *offset)).collect();
    assert_eq!(records, expected);
    let salvaged = Stream::salvage(bytes, &Progress::new()).unwrap();
    assert!(salvaged.losses().is_empty() && salvaged.doubtful_pages().is_empty(), "nothing is damaged");
}

/// The images as the naive reader has them.
pub fn images(naive: &Naive, page_len: u64) -> Images {
    let images = Images::with_lens(naive.blocks.iter().map(|(_, len)| *len).collect());
    for (nth, (name, _)) in naive.blocks.iter().enumerate() {
        for (offset, content) in naive.pages(name) {
            match content {
                Content::Fill(0) => {}
                Content::Fill(byte) => images.put(nth, offset, &vec![*byte; page_len as usize]),
                Content::Data(bytes) => images.put(nth, offset, bytes),
            }
        }
    }
    images
}

/// Checks each page by itself, and that no other is there.
pub fn check_pages(ram: &Ram<'_>, naive: &Naive) {
    for (id, block, pages) in ram.blocks() {
        let expected = naive.pages(block.idstr.as_bytes());
        for (offset, content) in &expected {
            assert!(same(ram, id, *offset, content), "{} {offset:#x}", block.idstr);
        }
        assert_eq!(pages.data_pages() + pages.fill_pages(), expected.len() as u64, "{}", block.idstr);
        assert_eq!(
            ram.absent_pages(id),
            ram.page_size().pages_in(block.used_length) - expected.len() as u64,
            "{}",
            block.idstr
        );
    }
}

/// Whether a page holds this.
pub fn same(ram: &Ram<'_>, id: BlockId, offset: u64, content: &Content) -> bool {
    match (ram.page(id, BlockOffset(offset)), content) {
        (Ok(Page::Fill(byte)), Content::Fill(expected)) => byte == *expected,
        (Ok(Page::Data(bytes)), Content::Data(expected)) => bytes == *expected,
        // A delta may be laid over a fill page.
        (Ok(Page::Data(bytes)), Content::Fill(expected)) => bytes.iter().all(|byte| byte == expected),
        _ => false,
    }
}

/// What stands before a cut agrees with the whole.
fn check_cut(bytes: &[u8], plan: &Plan, cut: usize) {
    let page_len = plan.page_len() as usize;
    let whole = Naive::read(bytes, page_len);
    let Some(first) = whole.starts.first() else { return };
    // Half of all cuts are at the end of a record.
    let at = match cut % 2 {
        0 => whole.ends[cut / 2 % whole.ends.len()],
        _ => first + cut / 2 * bytes.len() / 0x8000,
    };
    let at = at.clamp(*first, bytes.len() - 1);
    let naive = Naive::read_until(bytes, page_len, at);
    let Ok(stream) = Stream::salvage(&bytes[..at], &Progress::new()) else {
        panic!("cut at {at:#x} nothing is left");
    };
    look_through(&stream, &bytes[..at]);
    check_pages(stream.ram().unwrap(), &naive);
    assert!(stream.doubtful_pages().is_empty(), "cut at {at:#x}");
    assert!(!stream.losses().is_empty() || Stream::parse(&bytes[..at]).is_ok(), "cut at {at:#x}");
}
