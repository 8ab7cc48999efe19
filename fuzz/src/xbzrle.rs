//! XBZRLE: the bytes of a delta, against a decoder as plain as can be.

use ramlift::{BlockId, BlockOffset, Page, Stream};

use super::images::Images;
use super::look::check_error;
use super::read_once::{check_going_by, chunk_len};
use super::synth::{Block, CONTINUE, Records, Synth, XBZRLE, noise};

const PAGE: usize = 4096;

/// A page, and deltas over it: each `be16` long, then as many bytes of pairs.
/// The first byte says what the page is, and how the stream goes by.
pub fn run(bytes: &[u8]) {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    let mut page = if first & 1 == 0 { noise(1, PAGE) } else { vec![*first; PAGE] };
    let mut records = Records::new();
    records = if first & 1 == 0 {
        records.data("main.ram", 0x1000, &page)
    } else {
        records.fill("main.ram", 0x1000, *first)
    };
    let mut is_valid = true;
    while let Some((len, behind)) = rest.split_first_chunk::<2>() {
        let pairs;
        (pairs, rest) = behind.split_at(usize::from(u16::from_be_bytes(*len)).min(PAGE).min(behind.len()));
        let head = [&[1], (pairs.len() as u16).to_be_bytes().as_slice(), pairs].concat();
        records = records.word(0x1000 | XBZRLE | CONTINUE, &head);
        is_valid &= apply(pairs, &mut page).is_some();
    }
    let stream = Synth::machine()
        .target_page_bits(12)
        .ram(&[Block::new("main.ram", 0x3000)], records)
        .finish_undescribed();
    check(&stream, &page, is_valid);
    check_going_by(&stream, chunk_len(first >> 1));
}

fn check(stream: &[u8], page: &[u8], is_valid: bool) {
    let parsed = Stream::parse(stream).expect("records are found whatever they hold");
    let ram = parsed.ram().unwrap();
    let scattered = Images::scattered(ram, 2);
    match ram.page(BlockId(0), BlockOffset(0x1000)) {
        Ok(content) => {
            assert!(is_valid, "a delta is taken that is none");
            let content = match content {
                Page::Data(data) => data.into_owned(),
                Page::Fill(byte) => vec![byte; PAGE],
                Page::Absent => panic!("the page is absent"),
            };
            assert!(content == page, "the page is another one");
            assert!(scattered.unwrap().bytes(0, 0x1000, PAGE) == page, "the image has another page");
        }
        Err(error) => {
            check_error(&error, stream);
            assert!(!is_valid && scattered.is_err(), "{error}");
        }
    }
}

/// What QEMU's `xbzrle_decode_buffer` does.
fn apply(mut pairs: &[u8], page: &mut [u8]) -> Option<()> {
    let (mut at, mut is_first) = (0, true);
    while !pairs.is_empty() {
        let keep = leb128(&mut pairs)?;
        let take = leb128(&mut pairs)?;
        if take == 0 || (keep == 0 && !is_first) {
            return None;
        }
        is_first = false;
        at += keep;
        let (new, behind) = pairs.split_at_checked(take)?;
        page.get_mut(at..at + take)?.copy_from_slice(new);
        at += take;
        pairs = behind;
    }
    Some(())
}

fn leb128(pairs: &mut &[u8]) -> Option<usize> {
    let (low, rest) = pairs.split_first()?;
    *pairs = rest;
    if low & 0x80 == 0 {
        return Some(usize::from(*low));
    }
    let (high, rest) = pairs.split_first()?;
    *pairs = rest;
    (high & 0x80 == 0).then(|| usize::from(low & 0x7f) | usize::from(*high) << 7)
}
