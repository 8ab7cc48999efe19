//! Devices of streams that go by: what is kept of them, and what is not.

mod support;

use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ramlift::{ErrorKind, Incoming, Kept, Progress, Stream};
use support::cli::{Workplace, entries_of, ramlift_fed_within};
use support::fixtures::unpack;
use support::going_by::{Images, check_going_by};
use support::synth::{Block, Records, Synth, noise};

const MIB: usize = 1 << 20;

/// What a stream may make memory hold in vain: a device of 64 MiB.
const UNPROVEN_LEN: u64 = 65 << 20;

/// Address space that the command may have: the code, the stacks, three chunks,
/// and once what is looked at. Vectors double.
const MEMORY_KIB: u64 = 320 << 10;

fn ram() -> Synth {
    let blocks = [Block::new("main.ram", 0x4000)];
    Synth::machine().ram(&blocks, Records::new().data("main.ram", 0, &noise(1, 4096)))
}

fn device(stream: Synth, nth: u32, len: usize) -> Synth {
    let body = noise(nth.into(), len);
    let field = format!(r#"{{"name": "state", "type": "buffer", "size": {len}}}"#);
    stream.device(10 + nth, &format!("device-{nth}"), &body, &field)
}

/// Counts what is read of it.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Reads a stream that begins with `head` and goes on with zeros. Gives how
/// that failed and how much was read.
#[track_caller]
fn failure_before_zeros(head: Vec<u8>) -> (ramlift::Error, u64) {
    let read = Arc::new(AtomicU64::new(0));
    let endless = Cursor::new(head).chain(io::repeat(0));
    let incoming = Incoming::new("pipe", Counted(endless, Arc::clone(&read))).with_chunk_len(4 * MIB);
    let (kept, mut images) = (Kept::new(), Images::new());
    let error = Stream::read_once(incoming, &kept, &Progress::new(), &mut images).expect_err("no end");
    (error, read.load(Ordering::Relaxed))
}

#[track_caller]
fn check_bounded(head: Vec<u8>, at: u64, proven: u64) {
    let (error, read) = failure_before_zeros(head);
    assert!(matches!(error.kind(), ErrorKind::TooMuchToKeep { .. }), "{error}");
    assert_eq!(error.offset().map(|offset| offset.0), Some(at), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("file")));
    let chunks = 3 * 4 * MIB as u64;
    assert!(read <= proven + UNPROVEN_LEN + chunks, "{read} bytes were read");
}

/// `head`, and `len` zeros behind it, compressed.
fn bomb(head: &[u8], len: usize) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(head).unwrap();
    let zeros = vec![0; MIB];
    (0..len / MIB).for_each(|_| encoder.write_all(&zeros).unwrap());
    encoder.finish().unwrap()
}

#[test]
fn a_device_without_an_end_is_looked_at_no_further_than_64_mib() {
    let first = ram().head(4, 9, "endless", 0, 1).bytes();
    check_bounded(first.clone(), first.len() as u64, first.len() as u64);
    // Devices before it lead there.
    let later = (0..20).fold(ram(), |stream, nth| device(stream, nth, 2 * MIB));
    let later = later.head(4, 99, "endless", 0, 1).bytes();
    check_bounded(later.clone(), later.len() as u64, later.len() as u64);
    let early = Synth::machine().head(4, 9, "early", 0, 1).bytes();
    check_bounded(early.clone(), early.len() as u64, early.len() as u64);
}

#[test]
fn a_bomb_takes_no_more_memory_than_a_device() {
    let place = Workplace::with(b"");
    let heads = [
        // A device without an end: zeros are read for it until it is too much.
        (ram().head(4, 9, "endless", 0, 1).bytes(), 1),
        (Synth::machine().head(4, 9, "early", 0, 1).bytes(), 1),
        // Behind a stream's end they are counted.
        (ram().finish_undescribed(), 0),
        (device(ram(), 1, 1000).finish_undescribed(), 0),
        (device(ram(), 1, 1000).finish(), 0),
    ];
    for (nth, (head, code)) in heads.into_iter().enumerate() {
        let input = bomb(&head, 1 << 30);
        assert!(input.len() < 256 << 10);
        let args = ["extract", "-", "-q", "--threads", "1", "-o", &format!("out-{nth}")];
        let output = ramlift_fed_within(MEMORY_KIB, place.path(), &args, &input).expect_code(code);
        assert_eq!(output.stderr.contains("unpack it to a file first"), code != 0, "{}", output.stderr);
    }
    assert_eq!(entries_of(place.path()), ["out-2", "out-3", "out-4", "stream"]);
}

#[test]
fn large_devices_and_many_are_kept() {
    // As the frame buffers of a virtio-gpu.
    let large = [3000, 64 * MIB, 5000].into_iter().zip(0..).fold(ram(), |s, (len, nth)| device(s, nth, len));
    check_going_by(&large.finish(), MIB);
    let many = (0..300).fold(ram(), |stream, nth| device(stream, nth, 300_000));
    check_going_by(&many.finish(), MIB);
    let many = (0..300).fold(ram(), |stream, nth| device(stream, nth, 300_000));
    check_going_by(&many.finish_undescribed(), MIB);
    let early =
        Synth::machine().undescribed(9, "early", 0, &noise(5, 20 * MIB)).undescribed(8, "other", 0, &[7]);
    let blocks = [Block::new("main.ram", 0x4000)];
    let stream = early.ram(&blocks, Records::new().data("main.ram", 0, &noise(1, 4096)));
    check_going_by(&device(stream, 1, 1000).finish(), MIB);
}

#[test]
fn what_stands_behind_a_stream_without_a_description_is_no_part_of_it() {
    let stream = device(ram(), 1, 70_000).finish_undescribed();
    let older = unpack("pc-10.0-paused");
    for behind in [vec![0; 5 * MIB], noise(3, 5 * MIB), older[older.len() / 3..].to_vec(), older] {
        check_going_by(&[stream.as_slice(), &behind].concat(), 100_000);
    }
}
