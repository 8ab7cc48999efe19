//! What streams are wrapped in: read as the tools read it that wrote it, and
//! refused, in time and by its place, if nobody can have written it.

#[path = "../support/mod.rs"]
mod support;

mod command;
mod compression;
mod libvirt;
mod qcow2;

use std::fs;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use ramlift::wrapper::compression::{Compression, decoder};
use ramlift::wrapper::qcow2::Qcow2;
use ramlift::wrapper::{Layer, detect, error_of};
use ramlift::{Error, ErrorKind, StreamOffset};
use serde_json::Value;
use support::fixtures::{data, read_json, unpack_file};
use support::hex::sha256;

/// What any of these may take.
const TIME: Duration = Duration::from_secs(20);

const FORMATS: [&str; 7] = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"];

/// Snapshots of one small stream, scattered over the image or in a row.
const SAVEVM: [&str; 4] =
    ["savevm-7.2", "savevm-7.2-v2-small-clusters", "savevm-7.2-large-clusters", "savevm-7.2-extended-l2"];

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

/// A wrapped stream of `tests/data`, out of the zstd that it is kept in.
fn fixture(name: &str) -> Vec<u8> {
    let truth = truth(name);
    let file = truth["file"].as_str().unwrap_or_else(|| panic!("no {name}"));
    if name.starts_with("packed") { fs::read(data(file)).unwrap() } else { unpack_file(file) }
}

#[track_caller]
fn check_content(truth: &Value, content: &[u8]) {
    let extent = truth["extent"].as_u64().unwrap() as usize;
    // Behind the last cluster a VM state is zeros, as far as one asks.
    let mut content = content.to_vec();
    content.resize(extent, 0);
    assert_eq!(sha256(content), truth["sha256"].as_str().unwrap());
}

/// What a decoder gives up to its end or failure.
fn decode(kind: Compression, bytes: &[u8]) -> (Vec<u8>, Option<Error>) {
    let start = Instant::now();
    let mut content = Vec::new();
    let result = decoder(kind, bytes, StreamOffset(0)).read_to_end(&mut content);
    assert!(start.elapsed() < TIME);
    (content, result.err().map(|error| error_of(error, "")))
}

/// What all of `PACKED` hold, and the snapshots of `SAVEVM`.
fn small_stream() -> Vec<u8> {
    decode(Compression::Gzip, &fixture("packed.gz")).0
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

/// An image that was tampered with.
struct Tampered(Vec<u8>);

impl Tampered {
    fn with(name: &str) -> Self {
        Self(fixture(name))
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

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
