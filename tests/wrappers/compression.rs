//! Compressed data, unpacked as the tools do that packed it, and refused where
//! it is cut, damaged or made to harm.

use std::io::{self, Read};

use super::{PACKED, check_content, decode, fixture, small_stream, truth};
use ramlift::wrapper::PREFIX_LEN;
use ramlift::wrapper::compression::{Compression, decoder};
use ramlift::wrapper::{Layer, detect, error_of};
use ramlift::{Error, ErrorKind, StreamOffset};

#[test]
fn decodes_what_each_tool_writes() {
    for (name, kind) in PACKED {
        let bytes = fixture(name);
        assert_eq!(detect(&bytes), Layer::Compressed(kind), "{name}");
        let (content, error) = decode(kind, &bytes);
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(content.len() as u64, truth(name)["extent"].as_u64().unwrap(), "{name}");
        check_content(&truth(name), &content);
    }
}

#[test]
fn decodes_what_comes_in_single_bytes() {
    struct Single<'a>(&'a [u8]);
    impl Read for Single<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let len = into.len().min(1);
            self.0.read(&mut into[..len])
        }
    }
    for (name, kind) in PACKED {
        let bytes = fixture(name);
        let mut content = Vec::new();
        decoder(kind, Single(&bytes), StreamOffset(0)).read_to_end(&mut content).unwrap();
        check_content(&truth(name), &content);
    }
}

#[test]
fn decodes_members_in_a_row_and_ends_at_zeros() {
    let content = small_stream();
    let twice = [&content[..], &content].concat();
    for (name, kind) in PACKED.into_iter().filter(|(_, kind)| *kind != Compression::Lzma) {
        let bytes = fixture(name);
        let row = [&bytes[..], &bytes].concat();
        let (met, error) = decode(kind, &row);
        assert!(met == twice && error.is_none(), "{name}: {error:?}");
        for zeros in [1, 4, 511, 300_000] {
            let (met, error) = decode(kind, &[&row[..], &vec![0; zeros]].concat());
            assert!(met == twice && error.is_none(), "{name}: {error:?}");
        }
    }
}

#[test]
fn decodes_skippable_frames_and_padding_between_streams() {
    let content = small_stream();
    let twice = [&content[..], &content].concat();
    let skippable = b"\x5f\x2a\x4d\x18\x05\0\0\0.....";
    let paddings: [(&str, Compression, &[u8]); 3] = [
        ("packed.zst", Compression::Zstd, skippable),
        ("packed.lz4", Compression::Lz4, skippable),
        ("packed.xz", Compression::Xz, &[0; 8]),
    ];
    for (name, kind, padding) in paddings {
        let bytes = fixture(name);
        let (met, error) = decode(kind, &[&bytes[..], padding, &bytes, padding].concat());
        assert!(met == twice && error.is_none(), "{name}: {error:?}");
    }
    // Either can begin with them, and their number is no limit.
    for (name, kind) in [("packed.zst", Compression::Zstd), ("packed.lz4", Compression::Lz4)] {
        let bytes = [&skippable.repeat(3)[..], &fixture(name)].concat();
        assert_eq!(Compression::detect(&bytes[..PREFIX_LEN]), Some(kind), "{name}");
        let (met, error) = decode(kind, &bytes);
        assert!(met == content && error.is_none(), "{name}: {error:?}");
    }
    let (_, error) = decode(
        Compression::Zstd,
        &[&fixture("packed.zst")[..], b"\x50\x2a\x4d\x18\xff\xff\xff\xff."].concat(),
    );
    assert!(error.unwrap().to_string().contains("skippable"));
}

#[test]
fn gives_all_of_the_data_before_it_complains_of_what_is_behind() {
    let content = small_stream();
    for (name, kind) in PACKED {
        let bytes = fixture(name);
        for behind in [&b"stale"[..], &[&[0; 1000][..], b"stale"].concat()] {
            let (met, error) = decode(kind, &[&bytes[..], behind].concat());
            let error = error.expect("there is something behind");
            assert!(met == content, "{name}");
            let at = (bytes.len() + behind.len() - 5) as u64;
            assert_eq!(error.offset(), Some(StreamOffset(at)), "{name}: {error}");
            assert!(error.hint().is_some());
        }
    }
}

#[test]
fn what_is_cut_is_an_error_and_never_a_shorter_stream() {
    let content = small_stream();
    for (name, kind) in PACKED {
        let bytes = fixture(name);
        let near_an_end = |len: &usize| *len < 80 || len + 80 > bytes.len() || len.is_multiple_of(97);
        for len in (0..bytes.len()).filter(near_an_end) {
            let (met, error) = decode(kind, &bytes[..len]);
            let error = error.unwrap_or_else(|| panic!("{name} cut at {len} is taken for whole"));
            assert!(content.starts_with(&met), "{name} cut at {len}");
            assert!(error.offset().unwrap().0 <= len as u64 && error.hint().is_some(), "{name}: {error}");
            detect(&bytes[..len]);
        }
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_there_is_a_checksum() {
    let content = small_stream();
    for (name, kind) in PACKED {
        let has_checksum = !matches!(name, "packed.lzma" | "packed-unchecked.lzo");
        let bytes = fixture(name);
        let near_an_end = |at: &usize| *at < 48 || at + 16 > bytes.len() || at.is_multiple_of(101);
        for at in (0..bytes.len()).filter(near_an_end) {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let (met, error) = decode_at_most(kind, &bytes, BOMB);
                // Bits of the time, the name and the like say nothing of the content.
                let is_bomb = met.len() as u64 == BOMB;
                assert!(
                    !has_checksum || is_bomb || error.is_some() || met == content,
                    "{name}: bit {bit} of byte {at}"
                );
            }
        }
    }
}

/// More than a block of any format unpacks to before its checksum is compared.
const BOMB: u64 = 48 << 20;

/// As `decode`, for what may have become a bomb.
fn decode_at_most(kind: Compression, bytes: &[u8], len: u64) -> (Vec<u8>, Option<io::Error>) {
    let mut content = Vec::new();
    let result = decoder(kind, bytes, StreamOffset(0)).take(len).read_to_end(&mut content);
    (content, result.err())
}

#[test]
fn no_window_or_dictionary_is_larger_than_the_bounds() {
    // A frame whose window is 2³¹ bytes.
    let (_, error) = decode(Compression::Zstd, b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0");
    assert!(error.unwrap().hint().unwrap().contains("memory"));
    // A dictionary of 1 GiB; `.lzma` has no checksum over that.
    let mut lzma = fixture("packed.lzma");
    lzma[1..5].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    assert_eq!(Compression::detect(&lzma), Some(Compression::Lzma));
    let (met, error) = decode(Compression::Lzma, &lzma);
    assert!(met.is_empty() && error.unwrap().hint().unwrap().contains("memory"));
    // A block of lzop that would be 64 MiB out of ten bytes.
    let mut lzop = fixture("packed-unchecked.lzo");
    let block = lzop.len() - decode_blocks(&lzop);
    lzop[block..block + 8].copy_from_slice(&[4, 0, 0, 0, 0, 0, 0, 10]);
    let (_, error) = decode(Compression::Lzop, &lzop);
    assert_eq!(error.unwrap().offset(), Some(StreamOffset(block as u64)));
}

/// How many bytes of an lzop file its blocks and end are, if it has no name.
fn decode_blocks(lzop: &[u8]) -> usize {
    let head = 9 + 2 * 3 + 2 + 4 * 4 + 1 + usize::from(lzop[33]) + 4;
    lzop.len() - head
}

/// An lzop file of blocks that are stored as they are, by its format.
fn lzop(version: u16, flags: u32, blocks: &[&[u8]]) -> Vec<u8> {
    let sum = |bytes: &[u8]| if flags & 0x1000 != 0 { crc32(bytes) } else { adler32(bytes) };
    let mut head = version.to_be_bytes().to_vec();
    head.extend([0x20, 0xa0]);
    if version >= 0x0940 {
        head.extend([0x09, 0x40, 1, 5]);
    } else {
        head.push(1);
    }
    head.extend(flags.to_be_bytes());
    head.resize(head.len() + if version >= 0x0940 { 12 } else { 8 }, 7);
    head.extend(b"\x04name");
    let mut file = [b"\x89LZO\0\r\n\x1a\n", &head[..], &sum(&head).to_be_bytes()].concat();
    if flags & 0x40 != 0 {
        let extra = b"\0\0\0\x03abc";
        file.extend([&extra[..], &sum(extra).to_be_bytes()].concat());
    }
    for block in blocks {
        file.extend([block.len() as u32; 2].iter().flat_map(|len| len.to_be_bytes()));
        if flags & 0x1 != 0 {
            file.extend(adler32(block).to_be_bytes());
        }
        if flags & 0x100 != 0 {
            file.extend(crc32(block).to_be_bytes());
        }
        file.extend(*block);
    }
    [file, vec![0; 4]].concat()
}

fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1, 0), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 })
    })
}

#[test]
fn reads_headers_and_blocks_of_lzop_in_all_their_forms() {
    let blocks: [&[u8]; 2] = [b"QEVM and so on", b"the rest"];
    let content = blocks.concat();
    for version in [0x0900, 0x0940, 0x1040] {
        for flags in [0, 0x1, 0x100, 0x103, 0x303, 0x1000, 0x40, 0x1041, 0x0300_000d] {
            let file = lzop(version, flags, &blocks);
            let (met, error) = decode(Compression::Lzop, &file);
            assert!(met == content && error.is_none(), "{version:#x} {flags:#x}: {error:?}");
            for len in 0..file.len() {
                assert!(
                    decode(Compression::Lzop, &file[..len]).1.is_some(),
                    "{version:#x} {flags:#x} cut at {len}"
                );
            }
        }
    }
    for (version, flags, text) in
        [(0x0800, 0, "version"), (0x1040, 0x400, "parts"), (0x1040, 0x800, "filter")]
    {
        let (_, error) = decode(Compression::Lzop, &lzop(version, flags, &blocks));
        assert!(error.unwrap().to_string().contains(text));
    }
    let mut large = lzop(0x1040, 0, &[]);
    let end = large.len() - 4;
    large[end..].copy_from_slice(&[0xff; 4]);
    large.extend([0xff; 4]);
    let (_, error) = decode(Compression::Lzop, &large);
    assert_eq!(error.unwrap().offset(), Some(StreamOffset(end as u64)));
}

/// The bytes of a layer outside, and then its failure, said once.
struct Cut<'a>(&'a [u8], bool);

impl Read for Cut<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Self(bytes, has_failed) = self;
        if !bytes.is_empty() || *has_failed {
            return bytes.read(into);
        }
        *has_failed = true;
        let error = Error::at(StreamOffset(7), ErrorKind::Truncated { needed: 2, available: 1 });
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, error))
    }
}

#[test]
fn a_cut_outside_is_no_end_inside() {
    let content = small_stream();
    for (name, kind) in PACKED {
        let bytes = fixture(name);
        // lz4_flex takes such an error for the end of a frame, at each of its blocks.
        let step = if kind == Compression::Lz4 { 1 } else { 61 };
        for len in (0..bytes.len()).step_by(step) {
            let mut met = Vec::new();
            let result = decoder(kind, Cut(&bytes[..len], false), StreamOffset(0)).read_to_end(&mut met);
            let error = error_of(result.expect_err(name), "");
            assert!(content.starts_with(&met), "{name} cut at {len}");
            assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "{name} cut at {len}: {error}");
        }
    }
}
