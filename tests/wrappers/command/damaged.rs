//! What is cut, damaged or made to harm.

use super::{EXTRACT, check_refused, extract};
use crate::support::cli::{Workplace, entries_of, ramlift_within};
use crate::{FORMATS, PACKED, Tampered, bzip2, fixture, gzip, small_stream, zstd};

/// Address space that is enough for any of these, in KiB: some of it is stacks.
const ENOUGH_KIB: u64 = 2 << 20;

/// Checks that a wrapped stream cut anywhere is refused, by a place in it.
#[track_caller]
fn check_cuts(wrapped: &[u8], more: &[&str]) {
    for part in [3, 50, 90, 99] {
        let len = wrapped.len() * part / 100;
        let stderr = check_refused(&wrapped[..len], more);
        assert!(stderr.contains(" at 0x") && stderr.contains("hint: "), "{part}: {stderr}");
    }
}

#[test]
fn what_is_cut_is_never_a_smaller_guest() {
    for (name, _) in PACKED {
        check_cuts(&fixture(name), &[]);
    }
    check_cuts(&zstd(&fixture("libvirt-12.8-gzip")), &[]);
    check_cuts(&gzip(&fixture("packed.zst")[..1000]), &[]);
    for format in FORMATS {
        check_cuts(&fixture(&format!("libvirt-12.8-{format}")), &[]);
    }
}

#[test]
fn a_cut_image_is_never_a_smaller_guest() {
    for name in ["savevm-7.2", "savevm-11.1-mapped-ram"] {
        let image = fixture(name);
        for len in [50, 80, 103, 1000, image.len() / 3, image.len() * 9 / 10] {
            let place = Workplace::with(&image[..len]);
            let stderr = place.ramlift(&[&EXTRACT[..], &["--snapshot", "2"]].concat()).expect_code(1).stderr;
            assert!(stderr.contains(" at 0x"), "{name} cut at {len}: {stderr}");
            assert_eq!(entries_of(place.path()), ["stream"]);
        }
    }
}

#[test]
fn a_checksum_behind_the_stream_counts() {
    for wrapped in [gzip(&small_stream()), zstd(&small_stream())] {
        let mut wrong = wrapped.clone();
        // Of gzip the length follows the sum, of zstd nothing.
        let at = if wrapped[0] == 0x1f { wrong.len() - 8 } else { wrong.len() - 4 };
        wrong[at] ^= 1;
        let stderr = check_refused(&wrong, &[]);
        assert!(stderr.contains("compressed data") && stderr.contains(" at 0x"), "{stderr}");
        check_refused(&wrapped[..wrapped.len() - 1], &[]);
        let place = Workplace::with(&wrong);
        place.ramlift(&["analyze-migration", "-f", "stream", "-m"]).expect_code(1);
        place.ramlift(&["info", "stream", "--salvage"]).expect_code(3);
    }
}

#[test]
fn a_bomb_takes_no_memory_and_leaves_nothing() {
    let zeros = vec![0; 1 << 28];
    // A frame whose window is 2³¹ bytes.
    let window = b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0".to_vec();
    for bomb in [gzip(&zeros), zstd(&zeros), bzip2(&zeros), gzip(&gzip(&zeros)), window] {
        let place = Workplace::with(&bomb);
        for args in [&EXTRACT[..], &["info", "stream"], &["extract", "stream", "--salvage"]] {
            ramlift_within(ENOUGH_KIB, place.path(), args).expect_code(1);
        }
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
    // Behind a stream they are only looked at.
    let place = Workplace::with(&zstd(&[small_stream(), zeros].concat()));
    ramlift_within(ENOUGH_KIB, place.path(), &EXTRACT).expect_code(0);
}

#[test]
fn layers_without_end_are_refused() {
    let mut wrapped = small_stream();
    for _ in 0..20 {
        wrapped = gzip(&wrapped);
    }
    let stderr = check_refused(&wrapped, &[]);
    assert!(stderr.contains("more than 8 layers: gzip → gzip"), "{stderr}");
}

#[test]
fn zeros_that_no_cluster_holds_are_no_work() {
    let image = Tampered::with("savevm-7.2");
    let (table, l1, end) = (image.table(), image.l1(), image.0.len().next_multiple_of(1 << 16));
    // An L1 table at the end, of 2²² entries: 2⁵¹ bytes, of which the last and the first are there.
    let disk = (l1 - image.be64(table)) / 8;
    let entry = image.be64(l1);
    let mut claiming = image
        .put(table, (end as u64).to_be_bytes())
        .put(table + 8, (1_u32 << 22).to_be_bytes())
        .put(table + 40, ((((1_u64 << 22) - disk) << 29) - 5).to_be_bytes())
        .0;
    claiming.resize(end + (disk as usize) * 8, 0);
    claiming.extend(entry.to_be_bytes());
    claiming.resize(end + (32 << 20), 0);
    let bare = extract(&small_stream(), &[]);
    let met = extract(&claiming, &["--snapshot", "first"]);
    met.check_same(&bare, &["qcow2 snapshot \"first\"", "QEVM"]);
    let place = Workplace::with(&claiming);
    let args = [&EXTRACT[..], &["--salvage", "--snapshot", "first"]].concat();
    let output = ramlift_within(ENOUGH_KIB, place.path(), &args);
    assert!(output.code == 1 && output.stderr.starts_with("error: "), "{output:?}");
}
