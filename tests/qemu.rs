//! Streams made now, by the QEMU of this system: what comes out is what its
//! memory held.
//!
//! `scripts/make-streams` makes them, and reads the truth out of the stopped
//! QEMU. It also loads each stream back: a QEMU that takes it in must have the
//! same memory. It needs `qemu-system-x86_64` and Python. Without a QEMU these
//! tests test nothing, and say so; with `RAMLIFT_REQUIRE_QEMU=1` in the
//! environment they fail. Rows that the QEMU at hand cannot make are left out.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::cli::ramlift_in;
use support::hex::sha256;

const QEMU: &str = "qemu-system-x86_64";
const REQUIRE: &str = "RAMLIFT_REQUIRE_QEMU";

/// Whether there is a QEMU. If it is required, there has to be one.
fn has_qemu() -> bool {
    let is_there = Command::new(QEMU).arg("--version").output().is_ok_and(|output| output.status.success());
    let is_required = std::env::var_os(REQUIRE).is_some_and(|value| value == "1");
    assert!(is_there || !is_required, "{REQUIRE} is set, and there is no {QEMU}");
    if !is_there {
        // Not by a macro: what those print is shown for failed tests alone.
        let _ = writeln!(std::io::stderr(), "skipped: no {QEMU} here; {REQUIRE}=1 makes that a failure");
    }
    is_there
}

/// Makes the streams of `rows`, and checks each one that could be made.
#[track_caller]
fn check(rows: &[&str]) {
    if !has_qemu() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-streams");
    let mut make = Command::new(script);
    make.arg("--out").arg(place.path()).args(["--size", "8", "--reload"]);
    let output = make.args(rows.iter().flat_map(|row| ["--only", row])).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    let manifest = fs::read(place.path().join("manifest.json")).unwrap_or_else(|why| panic!("{why}: {said}"));
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for (row, truth) in manifest.as_object().unwrap() {
        check_stream(place.path(), row, truth);
    }
}

/// Compares what `extract` and `info` give with the truth.
#[track_caller]
fn check_stream(place: &Path, row: &str, truth: &Value) {
    let stream = truth["file"].as_str().unwrap();
    let channels = truth["channels"].as_array().into_iter().flatten();
    let channels = channels.flat_map(|channel| ["--channel", channel["file"].as_str().unwrap()]);
    let args = ["extract", stream, "-o", row, "--quiet"];
    let output = ramlift_in(place, &args.into_iter().chain(channels).collect::<Vec<_>>()).expect_code(0);
    let read = |name: &str| fs::read(place.join(row).join(name)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let images = manifest["blocks"].as_array().unwrap();
    let known = truth["blocks"].as_object().unwrap();
    let unknown = truth["blocks_without_truth"].as_object().into_iter().flat_map(|blocks| blocks.keys());
    let expected: BTreeSet<&str> = known.keys().chain(unknown).map(String::as_str).collect();
    let names: BTreeSet<&str> = images.iter().map(|image| image["idstr"].as_str().unwrap()).collect();
    assert_eq!(names, expected, "{row}");
    for image in images {
        let Some(block) = known.get(image["idstr"].as_str().unwrap()) else { continue };
        let bytes = read(image["file"].as_str().unwrap());
        assert_eq!(bytes.len() as u64, block["bytes"], "{row}: {image}");
        assert_eq!(sha256(bytes), block["sha256"], "{row}: {image}");
    }
    // A main channel alone is not complete, nor can a QEMU load it.
    assert_eq!(truth["reloaded"] == true, !truth["channels"].is_array(), "{row}");
    let code = if truth["channels"].is_array() { 3 } else { 0 };
    let info = ramlift_in(place, &["info", "--json", stream]).expect_code(code).json();
    assert_eq!(info["page_size"], truth["page_size"], "{row}");
    // Main channels and pages without order or records show no passes.
    if truth["channels"].is_array() {
        return;
    }
    let shows_passes = ["compress", "mapped-ram"].iter().all(|kind| !row.contains(kind));
    let is_live = row.ends_with("-live") || row == "pc-xbzrle";
    assert_eq!(info["passes"].as_u64().unwrap() > 1, is_live && shows_passes, "{row}");
    if info["description"].is_null() {
        return;
    }
    assert_eq!(output.stderr, "", "{row}");
    let state: Value = serde_json::from_slice(&read("state.json")).unwrap();
    for device in state["devices"].as_array().unwrap() {
        assert_eq!(device["status"], "decoded", "{row}: {device}");
    }
}

#[test]
fn a_stopped_guest_gives_its_memory() {
    check(&["pc-paused", "q35-paused", "microvm-paused"]);
}

#[test]
fn a_live_guest_gives_its_memory() {
    check(&["pc-live", "q35-live", "microvm-live"]);
}

#[test]
fn pages_in_other_encodings_give_its_memory() {
    check(&["pc-xbzrle", "pc-compress", "pc-mapped-ram", "pc-mapped-ram-live", "pc-mapped-ram-multifd"]);
}

#[test]
fn multifd_channels_give_its_memory() {
    check(&["pc-multifd-live", "pc-multifd-zlib-live", "pc-multifd-machine-7.2"]);
}

#[test]
fn a_guest_with_several_memory_blocks_gives_its_memory() {
    check(&["pc-numa-live", "q35-dimm-live", "pc-canonical-path"]);
}

#[test]
fn a_guest_of_an_old_machine_type_gives_its_memory() {
    check(&["pc-machine-2.2", "pc-machine-2.3-live", "pc-machine-2.4", "pc-machine-6.0", "pc-no-vmdesc"]);
}

#[test]
fn a_guest_with_more_devices_gives_its_memory() {
    check(&["pc-smp", "pc-usb", "pc-virtio", "pc-validate-uuid"]);
}

#[test]
fn a_guest_with_virtio_devices_in_use_gives_its_memory() {
    check(&["pc-virtio-set-up", "q35-virtio-set-up", "microvm-virtio-set-up"]);
}

#[test]
fn a_guest_with_dirty_bitmaps_gives_its_memory() {
    check(&["pc-dirty-bitmaps"]);
}
