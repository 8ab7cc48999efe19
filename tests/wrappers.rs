//! What streams are wrapped in: read as the tools read it that wrote it, and
//! refused, in time and by its place, if nobody can have written it.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use ramlift::wrapper::compression::{Compression, decoder};
use ramlift::wrapper::libvirt::{ByteOrder, Format, HEADER_LEN, SaveImage};
use ramlift::wrapper::qcow2::{ImageFile, Qcow2, ReadAt, RunSource};
use ramlift::wrapper::{Chain, Layer, detect, error_of};
use ramlift::{BlockOffset, Error, ErrorKind, Page, Stream, StreamOffset};
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::fixtures::{data, read_json, unpack};

/// What any of these may take.
const TIME: Duration = Duration::from_secs(20);

const SAVEVM: [&str; 6] = [
    "pc-10.0-savevm-qcow2",
    "savevm-7.2",
    "savevm-7.2-v2-small-clusters",
    "savevm-7.2-large-clusters",
    "savevm-7.2-extended-l2",
    "savevm-11.1-mapped-ram",
];
const DISKS: [&str; 3] = ["disk-7.2-deflate", "disk-7.2-zstd", "disk-7.2-extended-l2"];
const PACKED: [(&str, Compression); 11] = [
    ("packed.gz", Compression::Gzip),
    ("packed.bz2", Compression::Bzip2),
    ("packed.xz", Compression::Xz),
    ("packed-blocks.xz", Compression::Xz),
    ("packed.lzma", Compression::Lzma),
    ("packed.zst", Compression::Zstd),
    ("packed.lz4", Compression::Lz4),
    ("packed-linked.lz4", Compression::Lz4),
    ("packed.lzo", Compression::Lzop),
    ("packed-crc32.lzo", Compression::Lzop),
    ("packed-unchecked.lzo", Compression::Lzop),
];

/// What is known of a file, by the tools that made it.
fn truth(name: &str) -> Value {
    read_json("wrappers.json")[name].clone()
}

/// A file that is packed by zstd for the sake of this repository only.
fn unzst(name: &str) -> Vec<u8> {
    let packed = fs::read(data(truth(name)["file"].as_str().unwrap())).unwrap();
    let mut unpacked = Vec::new();
    decoder(Compression::Zstd, packed.as_slice(), StreamOffset(0)).read_to_end(&mut unpacked).unwrap();
    unpacked
}

#[track_caller]
fn check_content(truth: &Value, content: &[u8]) {
    let extent = truth["extent"].as_u64().unwrap() as usize;
    // Behind the last cluster a VM state is zeros, as far as one asks.
    let mut content = content.to_vec();
    content.resize(extent, 0);
    let met: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(met, truth["sha256"].as_str().unwrap());
}

/// What a decoder gives up to its end or failure.
fn decode(kind: Compression, bytes: &[u8]) -> (Vec<u8>, Option<Error>) {
    let start = Instant::now();
    let mut content = Vec::new();
    let result = decoder(kind, bytes, StreamOffset(0)).read_to_end(&mut content);
    assert!(start.elapsed() < TIME);
    (content, result.err().map(|error| error_of(error, "")))
}

#[track_caller]
fn packed(name: &str) -> Vec<u8> {
    fs::read(data(name)).unwrap()
}

/// What all of `PACKED` are of.
fn packed_content() -> Vec<u8> {
    decode(Compression::Gzip, &packed("packed.gz")).0
}

// libvirt

#[test]
fn reads_save_images_as_libvirt_does() {
    for format in ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"] {
        let name = format!("libvirt-12.8-{format}");
        let file = unzst(&name);
        let truth = truth(&name);
        let mut rest = file.as_slice();
        let image = SaveImage::read(&mut rest).unwrap();
        assert_eq!(image.format.to_string(), format);
        assert_eq!(image.stream_offset(), truth["stream_offset"].as_u64().unwrap());
        assert_eq!(rest.len() as u64, file.len() as u64 - image.stream_offset());
        assert_eq!((image.version, image.byte_order), (2, ByteOrder::Little));
        assert!(!image.interrupted && !image.was_running);
        assert!(image.xml.starts_with(b"<domain ") && image.xml.ends_with(b"</domain>\n"), "{:?}", image.xml);
        assert!(image.cookie.as_ref().unwrap().starts_with(b"<cookie"));

        let mut stream = Vec::new();
        image.open(rest, StreamOffset(0)).read_to_end(&mut stream).unwrap();
        assert_eq!(stream.len() as u64, truth["extent"].as_u64().unwrap());
        check_content(&truth, &stream);
        assert_eq!(SaveImage::parse(&file).unwrap(), image);

        let shown = if format == "raw" { String::new() } else { format!(", {format}") };
        let chain = Chain(vec![detect(&file), detect(&stream)]);
        assert_eq!(chain.to_string(), format!("libvirt save v2{shown} → QEVM"));
        assert_eq!(chain.0[0], image.layer());
    }
}

/// A number in one byte order or the other.
type Word = fn(u32) -> [u8; 4];

/// A save image as libvirt's `virQEMUSaveDataWrite` writes it.
fn save_image(magic: &str, word: Word, [version, data_len, running, format, cookie]: [u32; 5]) -> Vec<u8> {
    let mut bytes = magic.as_bytes().to_vec();
    for number in [version, data_len, running, format, cookie] {
        bytes.extend(word(number));
    }
    bytes.resize(HEADER_LEN, 0);
    bytes.extend(b"<domain/>\0<cookie/>\0");
    bytes.resize(HEADER_LEN + 64, 0);
    bytes.extend(b"QEVM\0\0\0\x03");
    bytes
}

#[test]
fn reads_save_images_of_both_byte_orders_and_all_versions() {
    let orders = [(u32::to_le_bytes as Word, ByteOrder::Little), (u32::to_be_bytes, ByteOrder::Big)];
    for (word, byte_order) in orders {
        for version in 1..=3 {
            for (magic, interrupted) in [("LibvirtQemudSave", false), ("LibvirtQemudPart", true)] {
                let file = save_image(magic, word, [version, 64, 1, 6, 10]);
                let image = SaveImage::parse(&file).unwrap();
                // Version 1 has no formats: the number there means nothing.
                let format = if version == 1 { Format::Raw } else { Format::Sparse };
                let expected = (version, byte_order, interrupted, true, format);
                let met =
                    (image.version, image.byte_order, image.interrupted, image.was_running, image.format);
                assert_eq!(met, expected);
                assert_eq!(
                    (&*image.xml, image.cookie.as_deref()),
                    (&b"<domain/>"[..], Some(&b"<cookie/>"[..]))
                );
                assert_eq!(image.stream_offset(), 92 + 64);
                assert_eq!(detect(&file), image.layer());
            }
        }
    }
    let file = save_image("LibvirtQemudPart", u32::to_le_bytes, [2, 64, 0, 5, 0]);
    assert_eq!(detect(&file).to_string(), "interrupted libvirt save v2, zstd");
    assert_eq!(SaveImage::parse(&file).unwrap().cookie, None);
}

#[test]
fn says_where_a_save_image_is_wrong() {
    let cases = [
        ([0, 64, 0, 0, 0], 16, "1 to 3"),
        ([4, 64, 0, 0, 0], 16, "1 to 3"),
        ([2, 0, 0, 0, 0], 20, "data_len"),
        ([2, u32::MAX, 0, 0, 0], 20, "at most"),
        ([2, 64, 0, 7, 0], 28, "0 to 6"),
        ([2, 64, 0, 0, 65], 32, "at most data_len, 0x40"),
        ([2, 64, 0, 0, u32::MAX], 32, "at most data_len"),
    ];
    for (numbers, at, text) in cases {
        let error = SaveImage::parse(&save_image("LibvirtQemudSave", u32::to_le_bytes, numbers)).unwrap_err();
        assert_eq!(error.offset(), Some(StreamOffset(at)), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    let error = SaveImage::parse(&[b'x'; 200]).unwrap_err();
    assert!(error.to_string().contains("LibvirtQemudSave"), "{error}");
}

#[test]
fn a_save_image_cut_anywhere_before_its_stream_is_cut() {
    let file = save_image("LibvirtQemudSave", u32::to_be_bytes, [2, 64, 0, 0, 10]);
    for len in 0..HEADER_LEN + 64 {
        let error = SaveImage::parse(&file[..len]).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Truncated { available, .. } if *available <= len as u64),
            "{error}"
        );
        detect(&file[..len]);
    }
    SaveImage::parse(&file[..HEADER_LEN + 64]).unwrap();
}

#[test]
fn no_bit_of_a_save_images_header_breaks_it() {
    let file = save_image("LibvirtQemudSave", u32::to_le_bytes, [2, 64, 1, 3, 10]);
    for bit in 0..HEADER_LEN * 8 {
        let mut file = file.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        detect(&file);
        if let Ok(image) = SaveImage::parse(&file) {
            assert!(image.stream_offset() <= file.len() as u64);
        }
    }
}

// Compression

#[test]
fn decodes_what_each_tool_writes() {
    for (name, kind) in PACKED {
        let bytes = packed(name);
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
        let bytes = packed(name);
        let mut content = Vec::new();
        decoder(kind, Single(&bytes), StreamOffset(0)).read_to_end(&mut content).unwrap();
        check_content(&truth(name), &content);
    }
}

#[test]
fn decodes_members_in_a_row_and_ends_at_zeros() {
    let content = packed_content();
    let twice = [&content[..], &content].concat();
    for (name, kind) in PACKED.into_iter().filter(|(_, kind)| *kind != Compression::Lzma) {
        let bytes = packed(name);
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
    let content = packed_content();
    let twice = [&content[..], &content].concat();
    let skippable = b"\x5f\x2a\x4d\x18\x05\0\0\0.....";
    let paddings: [(&str, Compression, &[u8]); 3] = [
        ("packed.zst", Compression::Zstd, skippable),
        ("packed.lz4", Compression::Lz4, skippable),
        ("packed.xz", Compression::Xz, &[0; 8]),
    ];
    for (name, kind, padding) in paddings {
        let bytes = packed(name);
        let (met, error) = decode(kind, &[&bytes[..], padding, &bytes, padding].concat());
        assert!(met == twice && error.is_none(), "{name}: {error:?}");
    }
    let (met, error) = decode(Compression::Zstd, &[&skippable[..], &packed("packed.zst")].concat());
    assert!(met == content && error.is_none(), "{error:?}");
    let (_, error) = decode(
        Compression::Zstd,
        &[&packed("packed.zst")[..], b"\x50\x2a\x4d\x18\xff\xff\xff\xff."].concat(),
    );
    assert!(error.unwrap().to_string().contains("skippable"));
}

#[test]
fn gives_all_of_the_data_before_it_complains_of_what_is_behind() {
    let content = packed_content();
    for (name, kind) in PACKED {
        let bytes = packed(name);
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
    let content = packed_content();
    for (name, kind) in PACKED {
        let bytes = packed(name);
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
    let content = packed_content();
    for (name, kind) in PACKED {
        let has_checksum = !matches!(name, "packed.lzma" | "packed-unchecked.lzo");
        let bytes = packed(name);
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
    let mut lzma = packed("packed.lzma");
    lzma[1..5].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    assert_eq!(Compression::detect(&lzma), Some(Compression::Lzma));
    let (met, error) = decode(Compression::Lzma, &lzma);
    assert!(met.is_empty() && error.unwrap().hint().unwrap().contains("memory"));
    // A block of lzop that would be 64 MiB out of ten bytes.
    let mut lzop = packed("packed-unchecked.lzo");
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

#[test]
fn layers_nest_in_any_order() {
    let file = save_image("LibvirtQemudSave", u32::to_le_bytes, [2, 64, 0, 1, 10]);
    let stream = &packed("packed.gz");
    let file = [&file[..HEADER_LEN + 64], stream].concat();
    let mut twice = zstd::Encoder::new(Vec::new(), 1).unwrap();
    twice.write_all(&file).unwrap();
    let twice = twice.finish().unwrap();

    let mut outside = decoder(Compression::Zstd, twice.as_slice(), StreamOffset(0));
    let image = SaveImage::read(&mut outside).unwrap();
    let mut inside = Vec::new();
    image.open(outside, StreamOffset(156)).read_to_end(&mut inside).unwrap();
    assert!(inside == packed_content());
    let chain = Chain(vec![detect(&twice), image.layer(), detect(&inside)]);
    assert_eq!(chain.to_string(), "zstd → libvirt save v2, gzip → QEVM");

    // A layer's failure is that layer's, however many are outside.
    let cut = zstd::encode_all(&file[..file.len() - 100], 1).unwrap();
    let mut outside = decoder(Compression::Zstd, cut.as_slice(), StreamOffset(0));
    let image = SaveImage::read(&mut outside).unwrap();
    let error = image.open(outside, StreamOffset(156)).read_to_end(&mut Vec::new()).unwrap_err();
    let error = error_of(error, "");
    assert!(error.to_string().contains("gzip"), "{error}");
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
    let content = packed_content();
    for (name, kind) in PACKED {
        let bytes = packed(name);
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

#[test]
fn tells_what_is_no_stream() {
    for head in [&b"\x7fELF\x02\x01"[..], b"KDUMP   ", b"makedumpfile\0", b"\x11\x22\x33\x44\0\0\0\x01"] {
        assert!(matches!(detect(head), Layer::NotAStream(_)));
    }
    for head in [&b""[..], b"Q", b"LibvirtQemud", b"BZh0", b"\x1f\x8b", &[0; 92], &[0x5d; 92]] {
        assert_eq!(detect(head), Layer::Unknown, "{head:?}");
    }
}

// qcow2

#[test]
fn reads_a_vm_state_as_qemu_io_does() {
    for name in SAVEVM.into_iter().chain(DISKS) {
        let image = unzst(name);
        let truth = truth(name);
        let qcow2 = Qcow2::open(image.as_slice()).unwrap();
        let known = truth["snapshots"].as_object().unwrap();
        assert_eq!(qcow2.snapshots().len(), known.len());
        for (tag, truth) in known {
            let snapshot = qcow2.find(tag.as_bytes()).unwrap();
            assert_eq!(snapshot.vm_state_size, truth["vm_state_size"].as_u64().unwrap());
            let state = qcow2.vm_state(snapshot).unwrap();
            let mut content = Vec::new();
            state.reader().read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, state.len());
            assert!(state.len() >= snapshot.vm_state_size);
            check_content(truth, &content);
            check_runs(&qcow2, tag, &image, &content);
        }
    }
}

/// Runs follow each other, are merged, and are of the same bytes.
fn check_runs<F: ReadAt>(qcow2: &Qcow2<F>, tag: &str, image: &[u8], content: &[u8]) {
    let state = qcow2.vm_state(qcow2.find(tag.as_bytes()).unwrap()).unwrap();
    let runs: Vec<_> = state.runs().collect::<Result<_, _>>().unwrap();
    let mut at = 0;
    for run in &runs {
        assert_eq!(run.at, at);
        let part = &content[at as usize..][..run.len as usize];
        match run.source {
            RunSource::Zeros => assert!(part.iter().all(|byte| *byte == 0)),
            RunSource::File(offset) => assert!(part == &image[offset as usize..][..run.len as usize]),
            RunSource::Compressed { offset, .. } => assert!(offset < image.len() as u64),
        }
        at += run.len;
    }
    assert_eq!(at, state.len());
    for pair in runs.windows(2) {
        assert!(pair[0].source != RunSource::Zeros || pair[1].source != RunSource::Zeros);
        assert!(pair[0].host().is_none_or(|host| pair[1].host() != Some(host + pair[0].len)));
    }
}

#[test]
fn reads_an_image_as_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), unzst("savevm-7.2")).unwrap();
    let qcow2 = Qcow2::open(ImageFile::new(fs::File::open(file.path()).unwrap()).unwrap()).unwrap();
    let state = qcow2.vm_state(qcow2.find(b"second").unwrap()).unwrap();
    let mut content = Vec::new();
    state.reader().take(state.vm_state_size()).read_to_end(&mut content).unwrap();
    check_content(&truth("savevm-7.2")["snapshots"]["second"], &content);
}

#[test]
fn meets_every_kind_of_cluster() {
    let kinds = |name| {
        let image = unzst(name);
        let qcow2 = Qcow2::open(image.as_slice()).unwrap();
        let state = qcow2.vm_state(&qcow2.snapshots()[0]).unwrap();
        let runs: Vec<_> = state.runs().collect::<Result<_, _>>().unwrap();
        let is_compressed = |source| matches!(source, RunSource::Compressed { .. });
        let count = |kind: &dyn Fn(RunSource) -> bool| runs.iter().filter(|run| kind(run.source)).count();
        (count(&is_compressed), count(&|source| source == RunSource::Zeros), runs.len())
    };
    for name in DISKS {
        let (compressed, zeros, all) = kinds(name);
        assert!(compressed >= 4 && zeros >= 4 && all > compressed + zeros, "{name}");
    }
    assert_eq!(kinds("savevm-7.2"), (0, 0, 1));
    // Holes are where mapped-ram aligns its pages.
    assert!(kinds("savevm-11.1-mapped-ram").1 > 0);
}

#[test]
fn the_vm_state_is_a_stream_with_the_guests_ram() {
    for name in SAVEVM.into_iter().filter(|name| name.starts_with("savevm-")) {
        let image = unzst(name);
        let qcow2 = Qcow2::open(image.as_slice()).unwrap();
        for snapshot in qcow2.snapshots() {
            let mut content = Vec::new();
            qcow2.vm_state(snapshot).unwrap().reader().read_to_end(&mut content).unwrap();
            let ram = block(&content, b"ram");
            // What scripts/make-wrappers put there.
            for (number, page) in ram.chunks(4096).enumerate() {
                let word = if number % 3 == 0 { 0 } else { number as u32 };
                assert!(
                    page.as_chunks::<4>().0.iter().all(|met| *met == word.to_le_bytes()),
                    "{name}: {number}"
                );
            }
            assert_eq!(ram.len(), 1 << 20);
        }
    }
}

#[test]
fn the_vm_states_of_a_pc_have_the_ram_that_qemu_had() {
    let manifest = read_json("manifest.json");
    let name = "pc-10.0-savevm-qcow2";
    let image = unpack(name);
    let qcow2 = Qcow2::open(image.as_slice()).unwrap();
    for (tag, blocks) in manifest[name]["snapshots"].as_object().unwrap() {
        let mut content = Vec::new();
        qcow2
            .vm_state(qcow2.find(tag.as_bytes()).unwrap())
            .unwrap()
            .reader()
            .read_to_end(&mut content)
            .unwrap();
        for (idstr, truth) in blocks.as_object().unwrap() {
            let met = block(&content, idstr.as_bytes());
            let met: String = Sha256::digest(&met).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(met, truth["sha256"].as_str().unwrap(), "{tag}: {idstr}");
        }
    }
}

/// A RAM block of a stream, page by page.
fn block(stream: &[u8], idstr: &[u8]) -> Vec<u8> {
    let stream = Stream::parse(stream).unwrap();
    let ram = stream.ram().unwrap();
    let id = ram.find(idstr).unwrap();
    let (_, block, _) = ram.blocks().find(|(met, ..)| *met == id).unwrap();
    let mut content = vec![0; block.used_length as usize];
    for (number, into) in content.chunks_mut(4096).enumerate() {
        match ram.page(id, BlockOffset(number as u64 * 4096)).unwrap() {
            Page::Data(bytes) => into.copy_from_slice(&bytes[..into.len()]),
            Page::Fill(byte) => into.fill(byte),
            _ => {}
        }
    }
    content
}

#[test]
fn finds_a_snapshot_by_name_and_id_and_lists_them_otherwise() {
    let image = unzst("savevm-7.2");
    let qcow2 = Qcow2::open(image.as_slice()).unwrap();
    assert_eq!(qcow2.find(b"2").unwrap().name, "second");
    assert!(!qcow2.is_dirty() && !qcow2.is_corrupt());
    let error = qcow2.find(b"third\x1b").unwrap_err().to_string();
    assert!(error.contains("\"first\" (1), \"second\" (2)") && error.contains("third\\x1b"), "{error}");
    let layer = Layer::Qcow2 { snapshot: Some(qcow2.find(b"first").unwrap().name.clone()) };
    let chain = Chain(vec![layer, Layer::Stream]);
    assert_eq!(chain.to_string(), "qcow2 snapshot \"first\" → QEVM");
    assert_eq!(detect(&image), Layer::Qcow2 { snapshot: None });
}

/// An image that was tampered with.
struct Tampered(Vec<u8>);

impl Tampered {
    fn with(name: &str) -> Self {
        Self(unzst(name))
    }

    fn be32(&self, at: u64) -> u64 {
        u32::from_be_bytes(*self.0[at as usize..].first_chunk().unwrap()).into()
    }

    fn be64(&self, at: u64) -> u64 {
        u64::from_be_bytes(*self.0[at as usize..].first_chunk().unwrap())
    }

    fn put<const N: usize>(mut self, at: u64, bytes: [u8; N]) -> Self {
        self.0[at as usize..][..N].copy_from_slice(&bytes);
        self
    }

    /// Where the snapshot table begins.
    fn table(&self) -> u64 {
        self.be64(64)
    }

    /// Where the first snapshot's first L1 entry for its VM state is, if the
    /// disk takes one entry.
    fn l1(&self) -> u64 {
        let span = 1_u64 << (2 * self.be32(20) - 3);
        self.be64(self.table()) + self.be64(self.table() + 48).div_ceil(span) * 8
    }

    fn l2(&self) -> u64 {
        self.be64(self.l1()) & 0x00ff_ffff_ffff_fe00
    }

    /// Reads the first snapshot to its end, or not.
    fn read(&self) -> Result<u64, Error> {
        let start = Instant::now();
        let qcow2 = Qcow2::open(self.0.as_slice())?;
        let Some(snapshot) = qcow2.snapshots().first() else { return Ok(0) };
        let state = qcow2.vm_state(snapshot)?;
        // What is claimed beyond the file is zeros without end.
        let enough = 4 * self.0.len() as u64 + (8 << 20);
        let result = io::copy(&mut state.reader().take(enough), &mut io::sink());
        assert!(start.elapsed() < TIME);
        result.map_err(|error| error_of(error, ""))
    }

    #[track_caller]
    fn check(&self, at: u64, text: &str) {
        let error = self.read().unwrap_err();
        assert_eq!(error.offset(), Some(StreamOffset(at)), "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.hint().is_some() || matches!(error.kind(), ErrorKind::Limit { .. }), "{error}");
    }
}

#[test]
fn refuses_images_that_it_would_read_wrongly() {
    let image = || Tampered::with("savevm-7.2");
    image().put(4, [0, 0, 0, 1]).check(4, "2 or 3");
    image().put(20, [0, 0, 0, 8]).check(20, "9 to 21");
    image().put(20, [0, 0, 0, 22]).check(20, "9 to 21");
    image().put(32, [0, 0, 0, 2]).check(32, "not encrypted");
    image().put(72, 1_u64.rotate_left(5).to_be_bytes()).check(72, "0x20");
    image().put(72, 4_u64.to_be_bytes()).check(72, "external data file");
    image().put(72, 8_u64.to_be_bytes()).check(104, "zstd");
    image().put(104, [1]).check(104, "zlib");
    image().put(60, [0, 1, 0, 1]).check(60, "65536");
    image().put(64, 0x1234_u64.to_be_bytes()).check(64, "start of a cluster");
    image().put(64, (1_u64 << 62).to_be_bytes()).check(1 << 62, "snapshot 1 of 2");
    let dirty = image().put(72, 3_u64.to_be_bytes());
    dirty.read().unwrap();
    let qcow2 = Qcow2::open(dirty.0.as_slice()).unwrap();
    assert!(qcow2.is_dirty() && qcow2.is_corrupt() && qcow2.version() == 3);
}

#[test]
fn refuses_tables_that_loop_overlap_or_lie() {
    let image = || Tampered::with("savevm-7.2");
    let (table, l1, l2) = (image().table(), image().l1(), image().l2());
    let len = image().0.len() as u64;
    let copied = 1_u64 << 63;
    // Snapshots.
    image().put(table + 36, [0, 0, 4, 1]).check(table + 36, "1024");
    image().put(table + 8, [0xff; 4]).check(table + 8, "4194304");
    image().put(table + 8, [0; 4]).check(table + 8, "map the disk");
    image().put(table, (copied - 65_536).to_be_bytes()).check(copied - 65_536 + 8, "L1 table");
    image().put(table, 0x201_u64.to_be_bytes()).check(table, "start of a cluster");
    image().put(table + 40, u64::MAX.to_be_bytes()).check(table + 40, "maps");
    image().put(table + 40, [0; 8]).check(table + 32, "disk alone");
    image().put(table + 48, u64::MAX.to_be_bytes()).check(table + 8, "map the disk");
    // L1.
    image().put(l1, (l2 | 1).to_be_bytes()).check(l1, "no bit but");
    image().put(l1, (l2 + 512).to_be_bytes()).check(l1, "start of a cluster");
    image().put(l1, (1_u64 << 40).to_be_bytes()).check(l1, "inside the file");
    // L2: reserved bits, itself, not a cluster's start, behind the end, more than there is.
    let entry = image().be64(l2);
    image().put(l2, (entry | 2).to_be_bytes()).check(l2, "reserved");
    image().put(l2, l2.to_be_bytes()).check(l2, "in a table");
    image().put(l2, table.to_be_bytes()).check(l2, "in a table");
    let own = image().be64(table);
    image().put(l2, own.to_be_bytes()).check(l2, "in a table");
    image().put(l1, own.to_be_bytes()).check(l1, "part of another table");
    image().put(l2, (entry + 512).to_be_bytes()).check(l2, "cluster's start");
    image().put(l2, (1_u64 << 40).to_be_bytes()).check(1 << 40, "left");
    image().put(l2, (1_u64 << 62 | len).to_be_bytes()).check(l2, "inside the file");
    let mut everywhere = image();
    for number in 0..8192 {
        everywhere = everywhere.put(l2 + number * 8, entry.to_be_bytes());
    }
    let error = everywhere.read().unwrap_err();
    assert!(error.to_string().contains("no more than the file has"), "{error}");
}

#[test]
fn refuses_an_l2_table_that_is_there_twice() {
    let image = Tampered::with("savevm-7.2-v2-small-clusters");
    let (l1, l2, offset) = (image.l1(), image.l2(), image.be64(image.table()));
    image.put(l1 + 8, l2.to_be_bytes()).check(offset, "twice");
}

#[test]
fn a_compressed_cluster_that_does_not_unpack_is_an_error_at_its_place() {
    for name in ["disk-7.2-deflate", "disk-7.2-zstd"] {
        let mut image = Tampered::with(name);
        let places: Vec<_> = {
            let qcow2 = Qcow2::open(image.0.as_slice()).unwrap();
            let state = qcow2.vm_state(&qcow2.snapshots()[0]).unwrap();
            let compressed = state.runs().map(Result::unwrap).filter_map(|run| match run.source {
                RunSource::Compressed { offset, .. } => Some(offset),
                _ => None,
            });
            compressed.collect()
        };
        image.0[places[0] as usize..][..8].fill(0xff);
        image.check(places[0], "compressed cluster");
    }
}

#[test]
fn an_image_cut_anywhere_is_read_to_there_or_refused() {
    let whole = Tampered::with("savevm-7.2");
    for len in (0..4096).chain((4096..whole.0.len()).step_by(4093)) {
        let cut = Tampered(whole.0[..len].to_vec());
        // The second snapshot is behind the first: some cuts leave that whole.
        if let Ok(read) = cut.read() {
            assert!(read >= whole.be64(whole.table() + 40) && len > whole.0.len() / 2);
        }
        assert!(len >= 72 || cut.read().is_err());
    }
}

#[test]
fn no_bit_of_a_header_or_table_hangs_or_breaks_it() {
    for name in SAVEVM.into_iter().filter(|name| name.starts_with("savevm-7.2")).chain(DISKS) {
        let image = Tampered::with(name);
        let (table, l1, l2) = (image.table(), image.l1(), image.l2());
        let large = image.0.len() > 4 << 20;
        let step = if large { 29 } else { 7 };
        let places = [(0, 112), (table, 80), (l1, 16), (l2, 128)];
        let end = image.0.len() as u64 * 8;
        for bit in places.iter().flat_map(|(at, len)| (at * 8..end.min((at + len) * 8)).step_by(step)) {
            let mut image = Tampered(image.0.clone());
            image.0[(bit / 8) as usize] ^= 1 << (bit % 8);
            let _ = image.read();
        }
    }
}
