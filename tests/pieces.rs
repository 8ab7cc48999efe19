//! Compressed data of many blocks or frames, which are unpacked side by side:
//! the same bytes, in order, and the same failures, behind what came before.

use std::io::{self, Read, Write};

use liblzma::stream::{Check, MtStreamBuilder};
use ramlift::StreamOffset;
use ramlift::wrapper::compression::{Compression, decoder};

/// What any guest may have: numbers, noise, and runs that pack to next to nothing.
fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        let page = bytes.len() / 4096;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = match page % 5 {
            0 => state,
            1 | 2 => page as u64 * 0x0101,
            3 => 0,
            _ => state >> 52,
        };
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn bzip2(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut packed = Vec::new();
    bzip2::read::BzEncoder::new(bytes, bzip2::Compression::new(level)).read_to_end(&mut packed).unwrap();
    packed
}

/// A frame that says how long its content is, or not.
fn zstd(bytes: &[u8], has_len: bool) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.include_contentsize(has_len).unwrap();
    if has_len {
        encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
    }
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An xz stream of blocks that say how long they are.
fn xz(bytes: &[u8], block_size: u64) -> Vec<u8> {
    let mut builder = MtStreamBuilder::new();
    let stream = builder.threads(2).preset(0).block_size(block_size).check(Check::Crc64).encoder().unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What comes out, and the failure at its end.
fn decode(kind: Compression, bytes: &[u8]) -> (Vec<u8>, Option<io::Error>) {
    let mut unpacked = Vec::new();
    let result = decoder(kind, bytes, StreamOffset(0)).read_to_end(&mut unpacked);
    (unpacked, result.err())
}

#[track_caller]
fn check(kind: Compression, packed: &[u8], expected: &[u8]) {
    let (unpacked, failure) = decode(kind, packed);
    assert!(failure.is_none(), "{kind}: {failure:?}");
    assert!(unpacked == expected, "{kind}: {} bytes, not {}", unpacked.len(), expected.len());
}

#[test]
fn blocks_of_bzip2_come_in_order() {
    let content = content(3 << 20);
    for level in [1, 2, 5, 9] {
        check(Compression::Bzip2, &bzip2(&content, level), &content);
    }
    check(Compression::Bzip2, &bzip2(b"", 9), b"");
    // Blocks and what follows them begin at each of the eight bits.
    for len in 0..64 {
        check(Compression::Bzip2, &bzip2(&content[..len * 7], 1), &content[..len * 7]);
    }
    let long = bzip2(&content, 1);
    let (blocks, ends) = (find(&long, 0x3141_5926_5359), find(&long, 0x1772_4538_5090));
    assert!(blocks.len() > 20 && ends.len() == 1);
    assert_eq!((0..8).filter(|bit| blocks.iter().any(|at| at % 8 == *bit)).count(), 8);
}

/// The bits at which 48 bits stand, found without any cleverness.
fn find(bytes: &[u8], magic: u64) -> Vec<usize> {
    let bit = |at: usize| u64::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let mut word = 0;
    let ends = (0..bytes.len() * 8).filter(|at| {
        word = (word << 1 | bit(*at)) & 0xffff_ffff_ffff;
        word == magic && *at >= 47
    });
    ends.map(|at| at - 47).collect()
}

#[test]
fn streams_of_bzip2_in_a_row_are_unpacked_as_one() {
    let content = content(2 << 20);
    let packed: Vec<u8> =
        content.chunks(300_000).enumerate().flat_map(|(n, part)| bzip2(part, n as u32 % 9 + 1)).collect();
    check(Compression::Bzip2, &packed, &content);
    let padded = [packed.as_slice(), &[0; 5000]].concat();
    check(Compression::Bzip2, &padded, &content);
}

#[test]
fn a_run_that_packs_to_nothing_is_unpacked_to_its_end() {
    // A block of bzip2 holds up to 46 MB of these.
    let zeros = vec![0; 100 << 20];
    check(Compression::Bzip2, &bzip2(&zeros, 9), &zeros);
    let frames: Vec<u8> = zeros.chunks(33 << 20).flat_map(|part| zstd(part, false)).collect();
    check(Compression::Zstd, &frames, &zeros);
    check(Compression::Xz, &xz(&zeros, 1 << 20), &zeros);
}

/// A magic inside of a block is no block, if nothing that is a block follows.
#[test]
fn what_looks_like_a_block_is_none() {
    let mut content = content(300_000);
    for (at, magic) in [(1000, 0x3141_5926_5359_u64), (150_001, 0x1772_4538_5090)] {
        content[at..at + 6].copy_from_slice(&magic.to_be_bytes()[2..]);
    }
    let packed = bzip2(&content, 9);
    check(Compression::Bzip2, &packed, &content);
    // Not packed at all, it is a stream cut off: said, and no end of it taken.
    let (unpacked, failure) =
        decode(Compression::Bzip2, &[b"BZh9".as_slice(), &content[1000..9000]].concat());
    assert!(unpacked.is_empty() && failure.is_some());
}

#[test]
fn frames_of_zstd_come_in_order_whatever_their_size() {
    let content = content(24 << 20);
    for has_len in [true, false] {
        let sizes = [1, 0, 5000, 3 << 20, 100, 9 << 20, 1 << 20, 1 << 20, 2 << 20, 17];
        let (mut packed, mut rest) = (Vec::new(), content.as_slice());
        for (nth, size) in sizes.into_iter().chain([usize::MAX]).enumerate() {
            let (part, behind) = rest.split_at(size.min(rest.len()));
            packed.extend(zstd(part, has_len));
            if nth % 2 == 0 {
                packed.extend([0x50 + nth as u8, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9]);
            }
            rest = behind;
        }
        check(Compression::Zstd, &packed, &content);
    }
}

#[test]
fn blocks_of_xz_come_in_order_whatever_their_size() {
    let content = content(5 << 20);
    for block_size in [1 << 16, 1 << 20, 3 << 20, 1 << 30] {
        check(Compression::Xz, &xz(&content, block_size), &content);
    }
    let packed: Vec<u8> = content.chunks(700_000).flat_map(|part| xz(part, 1 << 17)).collect();
    check(Compression::Xz, &packed, &content);
}

#[test]
fn what_is_cut_gives_what_is_whole_and_a_failure() {
    let content = content(2 << 20);
    let frames: Vec<u8> = content.chunks(150_000).flat_map(|part| zstd(part, false)).collect();
    for (kind, packed, least) in [
        (Compression::Bzip2, bzip2(&content, 1), 200_000),
        (Compression::Zstd, frames, 300_000),
        (Compression::Xz, xz(&content, 1 << 16), 1 << 17),
    ] {
        for nth in 1..40 {
            let len = packed.len() * nth / 40;
            let (unpacked, failure) = decode(kind, &packed[..len]);
            let failure = failure.unwrap_or_else(|| panic!("{kind} cut to {len}"));
            assert_eq!(failure.kind(), io::ErrorKind::UnexpectedEof, "{kind} cut to {len}: {failure}");
            assert!(content.starts_with(&unpacked), "{kind} cut to {len}");
            let expected = (content.len() * nth / 40).saturating_sub(least + 200_000);
            assert!(unpacked.len() >= expected, "{kind} cut to {len}: {} bytes", unpacked.len());
        }
        let (unpacked, failure) = decode(kind, &packed[..packed.len() - 1]);
        assert!(failure.is_some() && unpacked.len() <= content.len(), "{kind}");
    }
}

#[test]
fn what_is_damaged_gives_what_stands_before_and_a_failure() {
    let content = content(1 << 20);
    let frames: Vec<u8> = content.chunks(60_000).flat_map(|part| zstd(part, true)).collect();
    for (kind, packed) in [
        (Compression::Bzip2, bzip2(&content, 1)),
        (Compression::Zstd, frames),
        (Compression::Xz, xz(&content, 1 << 16)),
    ] {
        for nth in 0..120 {
            let mut damaged = packed.clone();
            let at = packed.len() * nth / 120;
            damaged[at] ^= 1 << (nth % 8);
            let (unpacked, failure) = decode(kind, &damaged);
            assert!(failure.is_some() || unpacked == content, "{kind} at {at}");
            // The tail of a block can come out before its checksum shows that it is wrong.
            let common = unpacked.iter().zip(&content).take_while(|(met, expected)| met == expected).count();
            assert!(unpacked.len() - common <= 1 << 20, "{kind} at {at}: {common} of {}", unpacked.len());
        }
    }
}

#[test]
fn nobody_need_read_to_the_end() {
    let content = content(4 << 20);
    let frames: Vec<u8> = content.chunks(100_000).flat_map(|part| zstd(part, true)).collect();
    for (kind, packed) in [(Compression::Bzip2, bzip2(&content, 1)), (Compression::Zstd, frames)] {
        let mut first = [0; 1000];
        decoder(kind, packed.as_slice(), StreamOffset(0)).read_exact(&mut first).unwrap();
        assert!(content.starts_with(&first));
    }
}
