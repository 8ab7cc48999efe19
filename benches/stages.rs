//! Each stage by itself: the walk that indexes, the scatter, the decoding of
//! devices.
//!
//! Streams are synthetic, one block, the shapes that `docs/performance.md`
//! names: `data` (one ascending pass of data pages), `half` (half of the
//! pages zero, in runs), `passes` (three passes, the later ones sparse).

#![allow(missing_docs, reason = "criterion's macros make functions without any")]
#![expect(clippy::unwrap_used, reason = "a bench that fails has nothing to measure")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ramlift::{BlockFiles, BlockId, BlockOffset, ImageSink, Input, Progress, Result, Stream, scatter};

const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;
const PAGES: u64 = 64 << 8;

/// A sink that takes everything and keeps nothing: the gathering alone.
struct Nowhere;

impl ImageSink for Nowhere {
    fn write(&self, _: BlockId, _: BlockOffset, data: &[u8]) -> Result<()> {
        black_box(data);
        Ok(())
    }
}

/// A stream of one block, whose PART section has the given pages: number and
/// whether it is data.
fn stream_of(pages: impl Iterator<Item = (u64, bool)>) -> Vec<u8> {
    let mut bytes = b"QEVM\0\0\0\x03".to_vec();
    bytes.extend(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    bytes.extend(((PAGES * PAGE) | 0x04).to_be_bytes());
    bytes.extend(b"\x06pc.ram");
    bytes.extend((PAGES * PAGE).to_be_bytes());
    bytes.extend(0x10u64.to_be_bytes());
    bytes.extend(b"\x7e\0\0\0\x01\x02\0\0\0\x01");
    for (nth, (page, is_data)) in pages.enumerate() {
        let named = if nth == 0 { 0 } else { 0x20 };
        bytes.extend(((page * PAGE) | if is_data { 0x08 } else { 0x02 } | named).to_be_bytes());
        if named == 0 {
            bytes.extend(b"\x06pc.ram");
        }
        bytes.extend_from_slice(if is_data { &[0xa5; PAGE_LEN] } else { &[0] });
    }
    bytes.extend(0x10u64.to_be_bytes());
    bytes.extend(b"\x7e\0\0\0\x01\x03\0\0\0\x01");
    bytes.extend(0x10u64.to_be_bytes());
    bytes.extend(b"\x7e\0\0\0\x01\0");
    bytes
}

/// The named shapes.
fn shapes() -> Vec<(&'static str, Vec<u8>)> {
    // Multiplying by an odd number stirs the bits enough to look random.
    let stirred = |page: u64| page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let all = || 0..PAGES;
    let later = move |one_in: u64| all().filter(move |page| stirred(*page).is_multiple_of(one_in));
    let half = all().map(move |page| (page, stirred(page / 8) & 1 == 0));
    let passes = all().chain(later(3)).chain(later(10)).map(|page| (page, true));
    vec![
        ("data", stream_of(all().map(|page| (page, true)))),
        ("half", stream_of(half)),
        ("passes", stream_of(passes)),
    ]
}

fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    for (shape, bytes) in shapes() {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(shape, |bencher| bencher.iter(|| Stream::parse(black_box(&bytes)).unwrap()));
    }
}

fn scatter_pages(c: &mut Criterion) {
    let mut group = c.benchmark_group("scatter");
    group.sample_size(20).throughput(Throughput::Bytes(PAGES * PAGE));
    for (shape, bytes) in shapes() {
        let stream = Stream::parse(&bytes).unwrap();
        let ram = stream.ram().unwrap();
        let block = ram.find(b"pc.ram").unwrap();
        group.bench_function(format!("{shape}/nowhere"), |bencher| {
            bencher.iter(|| scatter(ram, &[block], &Nowhere, &Progress::new()).unwrap());
        });
        group.bench_function(format!("{shape}/file"), |bencher| {
            bencher.iter_with_large_drop(|| {
                let dir = tempfile::tempdir().unwrap();
                let files = BlockFiles::create(ram, [(block, dir.path().join("image"))]).unwrap();
                scatter(ram, &[block], &files, &Progress::new()).unwrap();
                (dir, files)
            });
        });
    }
}

fn decode(c: &mut Criterion) {
    let input = Input::open("tests/data/riscv64-virt-10.0.qevm").unwrap();
    let stream = Stream::parse(input.bytes()).unwrap();
    let len: usize = stream.devices().map(|device| device.body().len()).sum();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(len as u64));
    group.bench_function("riscv64-virt", |bencher| {
        bencher.iter(|| stream.devices().map(|device| device.decode().unwrap().fields.len()).sum::<usize>());
    });
}

criterion_group!(benches, index, scatter_pages, decode);
criterion_main!(benches);
