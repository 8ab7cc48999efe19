//! mapped-ram and blocks that are not in the stream.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a helper of tests fails by panicking, as they do"
)]

mod support;

use ramlift::{BlockId, BlockOffset, ErrorKind, Page, Stream};
use support::cli::{Workplace, files_in};
use support::fixtures::unpack;
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
