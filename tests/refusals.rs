//! What is asked for and cannot be had is refused in words that lead on, and
//! never passed over.

mod support;

use support::cli::{Workplace, entries_of, ramlift_fed};
use support::fixtures::unpack;

/// What is said of `bytes`, of which nothing comes.
#[track_caller]
fn refused(bytes: &[u8], args: &[&str]) -> String {
    let place = Workplace::with(bytes);
    let args = [&["extract", "stream", "-o", "out"][..], args].concat();
    let stderr = place.ramlift(&args).expect_code(1).stderr;
    assert_eq!(entries_of(place.path()), ["stream"]);
    stderr
}

/// A qcow2 image of 64 KiB clusters without snapshots.
fn image() -> Vec<u8> {
    let mut image = vec![0; 0x10000];
    for (at, word) in [(0, 0x5146_49fb_u32), (4, 3), (20, 16), (28, 1 << 20), (96, 4), (100, 104)] {
        image[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    image
}

#[test]
fn a_snapshot_of_what_is_no_image_is_not_passed_over() {
    let stream = unpack("pc-10.0-paused");
    let text = "--snapshot is for qcow2 images, and this is QEVM";
    assert!(refused(&stream, &["--snapshot", "first"]).contains(text));
    let place = Workplace::with(b"");
    let args = ["extract", "-", "--snapshot", "first"];
    let stderr = ramlift_fed(place.path(), &args, &stream).expect_code(1).stderr;
    assert!(stderr.contains(&format!("standard input: {text}")), "{stderr}");
}

#[test]
fn an_offset_behind_the_end_is_named_with_it() {
    let stream = unpack("pc-10.0-paused");
    let len = stream.len();
    let text = format!("--offset {len:#x} is behind its end, at {len:#x}");
    assert!(refused(&stream, &["--offset", &len.to_string()]).contains(&text));
    let place = Workplace::with(b"");
    let stderr = ramlift_fed(place.path(), &["info", "-", "--offset", "0x40000000"], &stream);
    let text = format!("standard input: --offset 0x40000000 is behind its end, at {len:#x}");
    assert!(stderr.expect_code(1).stderr.contains(&text));
}

#[test]
fn a_salvage_is_advised_only_where_it_gets_further() {
    let mut encrypted = image();
    encrypted[35] = 2;
    let stderr = refused(&encrypted, &[]);
    assert!(stderr.contains("encrypted") && !stderr.contains("--salvage"), "{stderr}");
    let mut external = image();
    external[79] = 4;
    let stderr = refused(&external, &[]);
    assert!(stderr.contains("external data file") && !stderr.contains("--salvage"), "{stderr}");
    let stream = unpack("pc-10.0-paused");
    let stderr = refused(&stream, &["--format", "raw", "--map", "none@0"]);
    assert!(stderr.contains("met none@0x0") && !stderr.contains("--salvage"), "{stderr}");
    let stderr = refused(&stream, &["--channel", "stream", "--salvage"]);
    assert!(stderr.contains("multifd channel") && !stderr.contains("--salvage"), "{stderr}");
    let stderr = refused(&stream[..stream.len() / 2], &[]);
    assert!(stderr.contains("--salvage"), "{stderr}");
}

#[test]
fn an_image_without_a_vm_state_is_said_to_have_none() {
    let stderr = refused(&image(), &[]);
    assert!(stderr.contains("no snapshot of this qcow2 image has VM state"), "{stderr}");
    let place = Workplace::with(&image());
    let output = place.ramlift(&["info", "stream"]).expect_code(0);
    assert!(output.text().contains("qcow2, 0 snapshots\n\nno snapshot has VM state"), "{}", output.text());
}

#[test]
fn what_came_by_standard_input_is_called_so() {
    let place = Workplace::with(b"");
    let stderr = ramlift_fed(place.path(), &["info", "-"], b"nothing that is known").expect_code(1).stderr;
    assert!(stderr.starts_with("error: standard input: "), "{stderr}");
}

#[test]
fn an_option_of_another_format_is_not_passed_over() {
    let stream = support::synth::small_stream().finish();
    for args in [&["--map", "main.ram@0"][..], &["--below-4g", "1G"]] {
        let stderr = refused(&stream, args);
        assert!(stderr.contains("--map and --below-4g are for the formats of guest-physical"), "{stderr}");
    }
    for args in [&["--compress", "zlib"][..], &["--compress", "zstd", "--format", "raw"]] {
        assert!(refused(&stream, args).contains("--compress is for --format kdump"));
    }
}
