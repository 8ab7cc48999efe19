//! Save images of libvirt, read as libvirt reads them.

use std::io::Read;

use super::{FORMATS, check_content, fixture, small_stream, truth, zstd};
use ramlift::wrapper::compression::{Compression, decoder};
use ramlift::wrapper::libvirt::{ByteOrder, Format, HEADER_LEN, SaveImage};
use ramlift::wrapper::{Chain, detect, error_of};
use ramlift::{ErrorKind, StreamOffset};

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
fn reads_save_images_as_libvirt_does() {
    for format in FORMATS {
        let name = format!("libvirt-12.8-{format}");
        let file = fixture(&name);
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

#[test]
fn layers_nest_in_any_order() {
    let file = save_image("LibvirtQemudSave", u32::to_le_bytes, [2, 64, 0, 1, 10]);
    let stream = &fixture("packed.gz");
    let file = [&file[..HEADER_LEN + 64], stream].concat();
    let twice = zstd(&file);

    let mut outside = decoder(Compression::Zstd, twice.as_slice(), StreamOffset(0));
    let image = SaveImage::read(&mut outside).unwrap();
    let mut inside = Vec::new();
    image.open(outside, StreamOffset(156)).read_to_end(&mut inside).unwrap();
    assert!(inside == small_stream());
    let chain = Chain(vec![detect(&twice), image.layer(), detect(&inside)]);
    assert_eq!(chain.to_string(), "zstd → libvirt save v2, gzip → QEVM");

    // A layer's failure is that layer's, however many are outside.
    let cut = zstd(&file[..file.len() - 100]);
    let mut outside = decoder(Compression::Zstd, cut.as_slice(), StreamOffset(0));
    let image = SaveImage::read(&mut outside).unwrap();
    let error = image.open(outside, StreamOffset(156)).read_to_end(&mut Vec::new()).unwrap_err();
    let error = error_of(error, "");
    assert!(error.to_string().contains("gzip"), "{error}");
}
