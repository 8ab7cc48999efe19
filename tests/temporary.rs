//! Temporary files: what a run may put into TMPDIR, and what is said of more.

mod support;

use std::fs;
use std::io::Write;
use std::process::Command;

use support::channel::{Packet, ZSTD, channel, zstd_packed};
use support::cli::{Workplace, binary, entries_of, with_mounts};
use support::synth::{Block, Records, Synth, noise, small_stream};

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A small stream with `len` bytes behind it that are not zero, packed.
fn bomb(len: usize) -> Vec<u8> {
    let mut stream = small_stream().finish();
    stream.resize(stream.len() + len, 0x55);
    zstd(&stream)
}

/// Ways to need a temporary file for a stream.
const WAYS: [&[&str]; 6] = [
    &["info", "--salvage"],
    &["info", "--guest"],
    &["state", "--salvage"],
    &["layout", "--salvage"],
    &["extract", "-o", "out", "--salvage"],
    &["extract", "-o", "out", "--format", "raw", "--map", "main.ram@0"],
];

#[track_caller]
fn check_refused(stderr: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
    assert!(stderr.contains("stream: temporary file in ") && stderr.contains("hint: "), "{stderr}");
}

#[track_caller]
fn check_unchecked(text: &str, part: &str) {
    assert!(text.starts_with("not checked: against the stream: ") && text.contains(part), "{text}");
    assert!(text.contains("stream: temporary file in ") && text.contains("--max-temp SIZE"), "{text}");
}

#[test]
fn what_is_unpacked_takes_no_more_than_is_allowed() {
    let place = Workplace::with(&bomb(3 << 20));
    for way in WAYS {
        let run = |max| place.ramlift(&[way, &["stream", "--max-temp", max]].concat());
        let output = run("2M").expect_code(1);
        check_refused(&output.stderr, &["takes more than the 2097152 bytes that --max-temp allows"]);
        assert_eq!(entries_of(place.path()), ["stream"], "{way:?}");
        let output = run("4M");
        assert!([0, 3].contains(&output.code), "{way:?}: {}", output.stderr);
        for left in entries_of(place.path()).iter().filter(|name| *name != "stream") {
            let left = place.join(left);
            if left.is_dir() { fs::remove_dir_all(left).unwrap() } else { fs::remove_file(left).unwrap() }
        }
    }
}

#[test]
fn the_scripts_double_and_verify_take_no_more_either() {
    let place = Workplace::with(&bomb(3 << 20));
    for way in ["-x", "-m"] {
        let args = ["analyze-migration", "-f", "stream", way, "--max-temp", "2M"];
        check_refused(&place.ramlift(&args).expect_code(1).stderr, &["--max-temp"]);
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
    // Whoever made the manifest had room for it.
    place.ramlift(&["extract", "-q", "stream", "-o", "out", "--max-temp", "1G"]).expect_code(0);
    let output = place.ramlift(&["verify", "out", "--max-temp", "2M"]).expect_code(3);
    check_unchecked(output.text(), "takes more than the 2097152 bytes that --max-temp allows");
    place.ramlift(&["verify", "out", "--max-temp", "4M"]).expect_code(0);
    place.ramlift(&["verify", "out"]).expect_code(0);
}

/// 64 MiB, and 100 times the file.
fn usual(len: usize) -> u64 {
    (64 << 20) + 100 * len as u64
}

#[test]
fn a_bomb_takes_no_more_than_a_multiple_of_itself() {
    let place = Workplace::with(&bomb(80 << 20));
    let len = place.read("stream").len();
    assert!(usual(len) < 76 << 20);
    let text = format!("takes more than {} bytes, which is 64 MiB and 100 times the {len} bytes", usual(len));
    check_refused(
        &place.ramlift(&["info", "--salvage", "stream"]).expect_code(1).stderr,
        &[&text, "--max-temp"],
    );
    place.ramlift(&["info", "--salvage", "stream", "--max-temp", "100M"]).expect_code(0);
    // From a pipe too, where nobody knows before how long it is.
    let output = support::cli::ramlift_fed(place.path(), &["info", "--guest", "-"], &place.read("stream"));
    assert!(output.expect_code(1).stderr.contains("bytes of the input"));
}

#[test]
fn all_temporary_files_of_a_run_count_together() {
    let pages = 64;
    let blocks = [Block::new("main.ram", 2 * pages * 4096)];
    let main = Synth::machine().capabilities(&["multifd"]).ram(&blocks, Records::new()).finish();
    let place = Workplace::with(&main);
    for id in 0..2 {
        let offsets: Vec<u64> = (0..pages).map(|page| (u64::from(id) * pages + page) * 4096).collect();
        let data = noise(u64::from(id) + 1, offsets.len() * 4096);
        let payload = zstd_packed(&[&data], 1).remove(0);
        let packet = Packet { flags: ZSTD, payload, ..Packet::data("main.ram", &offsets, &data) };
        fs::write(
            place.join(&format!("channel-{id}")),
            channel(id, &[packet, Packet::sync(), Packet::sync(), Packet::sync()]),
        )
        .unwrap();
    }
    let run = |max: &str| {
        let channels = ["--channel", "channel-0", "--channel", "channel-1"];
        place.ramlift(&[&["extract", "-q", "stream", "-o", "out", "--max-temp", max][..], &channels].concat())
    };
    // Each takes 256 KiB.
    for max in ["200K", "500K"] {
        let output = run(max).expect_code(1);
        assert!(
            output.stderr.contains("channel-") && output.stderr.contains("--max-temp allows"),
            "{output:?}"
        );
        assert!(!place.join("out").exists());
    }
    run("512K").expect_code(0);
}

#[test]
fn a_part_of_what_is_free_is_left_to_others() {
    let place = Workplace::with(&bomb(40 << 20));
    fs::create_dir(place.join("small")).unwrap();
    // What is freed while it ends is free again.
    let script = "mount -t tmpfs -o size=40m none small && export TMPDIR=small; \"$0\" info --salvage stream >/dev/null; echo $?; ls -A small; df small | tail -1";
    let Some((text, stderr)) = with_mounts(place.path(), script) else { return };
    check_refused(&stderr, &["in small: takes", "are free and of which a sixteenth is left", "TMPDIR"]);
    assert!(text.starts_with("1\nnone ") && text.contains(" 0% "), "{text}");
}

#[test]
fn a_full_directory_for_temporary_files_is_named() {
    let place = Workplace::with(&bomb(1 << 20));
    fs::create_dir(place.join("small")).unwrap();
    let script = "mount -t tmpfs -o size=1m none small && head -c 1M /dev/zero > small/full; export TMPDIR=small; \"$0\" info --salvage stream; echo $?";
    let Some((text, stderr)) = with_mounts(place.path(), script) else { return };
    check_refused(&stderr, &["in small: ", "TMPDIR says"]);
    assert!(text == "1\n" && !stderr.contains("-o"), "{stderr}");
    let mut command = Command::new(binary());
    command.args(["info", "--salvage", "stream"]).current_dir(place.path());
    let output = command.env("TMPDIR", place.join("missing")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    check_refused(&stderr, &["missing: ", "TMPDIR says"]);
}

#[test]
fn zeros_count_where_they_take_memory() {
    // A stream, and as many zeros as nothing else would be told from.
    let mut stream = small_stream().finish();
    stream.resize(stream.len() + (8 << 20), 0);
    let place = Workplace::with(&zstd(&stream));
    place.ramlift(&["info", "--salvage", "stream", "--max-temp", "1M"]).expect_code(0);
    fs::create_dir(place.join("small")).unwrap();
    let script = "mount -t tmpfs none small && export TMPDIR=small; \"$0\" info --salvage stream --max-temp 1M; echo $?";
    let Some((text, stderr)) = with_mounts(place.path(), script) else { return };
    assert!(text == "1\n" && stderr.contains("--max-temp allows"), "{text}{stderr}");
}

#[test]
fn what_verify_packs_again_takes_no_more() {
    let pages = 1024;
    let records = (0..pages)
        .fold(Records::new(), |records, page| records.data("main.ram", page << 12, &noise(page + 1, 4096)));
    let stream = Synth::machine().ram(&[Block::new("main.ram", pages << 12)], records).finish();
    let place = Workplace::with(&stream);
    for format in ["avml", "kdump"] {
        place
            .ramlift(&["extract", "-q", "stream", "--format", format, "--map", "main.ram@0", "-o", format])
            .expect_code(0);
        let manifest = format!("{format}.manifest.json");
        let run = |max| place.ramlift(&["verify", &manifest, "--max-temp", max]);
        for max in ["1K", "2M"] {
            check_unchecked(run(max).expect_code(3).text(), "that --max-temp allows");
        }
        run("5M").expect_code(0);
    }
}
