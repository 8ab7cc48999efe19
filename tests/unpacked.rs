//! What is unpacked: no more than an input of its length can honestly hold, zeros
//! too, which take no disk but time.

mod support;

use std::io::Write;

use support::cli::{Output, Workplace, entries_of, ramlift_fed};
use support::hostile::in_time;
use support::synth::small_stream;

/// Zeros of one frame.
const FRAME_LEN: usize = 64 << 20;

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 19).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `head` with so many frames of zeros behind it, and all that packed twice more.
fn bomb(head: &[u8], frames: usize) -> Vec<u8> {
    let zeros = zstd(&vec![0; FRAME_LEN]).repeat(frames);
    zstd(&zstd(&[zstd(head), zeros].concat()))
}

/// 8 GiB.
const FRAMES: usize = 128;

/// What an input may unpack to.
fn bound(len: usize) -> usize {
    (1 << 30) + (32 << 10) * len
}

#[track_caller]
fn assert_refused(output: Output, len: usize) {
    let output = output.expect_code(1);
    let text = format!("unpacked data: met more than {} bytes", bound(len));
    assert!(output.stderr.contains(&text) && output.stderr.contains("hint: "), "{}", output.stderr);
}

const WAYS: [&[&str]; 7] = [
    &["info", "stream"],
    &["info", "--guest", "stream"],
    &["state", "stream"],
    &["layout", "stream"],
    &["desc", "stream"],
    &["extract", "-q", "stream", "-o", "out"],
    &["extract", "-q", "stream", "-o", "out", "--format", "raw", "--map", "main.ram@0"],
];

#[test]
fn zeros_that_no_honest_input_holds_end_soon() {
    let stream = bomb(b"QEVM\0\0\0\x03", FRAMES);
    assert!(stream.len() < 200, "{}", stream.len());
    let place = Workplace::with(&stream);
    for way in WAYS {
        assert_refused(in_time(|| place.ramlift(way)), stream.len());
        assert_eq!(entries_of(place.path()), ["stream"], "{way:?}");
    }
    let output = in_time(|| ramlift_fed(place.path(), &["info", "-"], &stream));
    assert_refused(output, stream.len());
}

#[test]
fn a_salvage_has_what_stands_before_them() {
    let stream = bomb(&small_stream().finish(), FRAMES);
    let place = Workplace::with(&stream);
    let output = in_time(|| place.ramlift(&["extract", "-q", "--salvage", "stream", "-o", "out"]));
    let output = output.expect_code(3);
    assert!(output.stderr.contains("unpacked up to here: at 0x4"), "{}", output.stderr);
    place.ramlift(&["verify", "-q", "out"]).expect_code(0);
}

#[test]
fn zeros_as_one_frame_packs_them_are_no_bomb() {
    // Behind the end of a stream, as in a copy of a volume that is larger.
    let zeros = zstd(&vec![0; FRAME_LEN]).repeat(20);
    let stream = [zstd(&small_stream().finish()), zeros].concat();
    let place = Workplace::with(&stream);
    in_time(|| place.ramlift(&["extract", "-q", "stream", "-o", "out"])).expect_code(0);
    in_time(|| ramlift_fed(place.path(), &["info", "-"], &stream)).expect_code(0);
}
