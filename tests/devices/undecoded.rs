//! Devices that their description does not fit, and those that have none: their
//! bytes are there, and so is all else.

use super::{BOOL, LEAF, assert_neighbours, between_others, check_undecoded, state_of};
use crate::support::cli::{Workplace, files_in};
use crate::support::hex::unhex;
use crate::support::synth::{Block, Records, Synth, noise, subsection};
use serde_json::json;

#[test]
fn a_body_that_is_longer_or_shorter_than_described_stays_undecoded() {
    let fields = r#"{"name": "x", "type": "uint32", "size": 4}"#;
    check_undecoded(fields, &[1, 2, 3]);
    check_undecoded(fields, &[1, 2, 3, 4, 5]);
    check_undecoded(fields, &[]);
}

#[test]
fn a_list_whose_bytes_are_no_list_stays_undecoded() {
    let list = format!(
        r#"{{"name": "list", "type": "qtailq", {LEAF}"size": 4}}, {{"name": "x", "type": "uint8", "size": 1}}"#
    );
    check_undecoded(&list, &unhex("02 05 00"));
    let tree = format!(r#"{{"name": "tree", "type": "gtree", {LEAF}"size": 20}}"#);
    check_undecoded(&tree, &unhex("00000003 01 0000000000000010 aa 00"));
}

#[test]
fn a_subsection_of_another_name_stays_undecoded() {
    let keys = format!(
        r#""vmsd_name": "dut", "version": 1, "fields": [{BOOL}], "subsections": [{{"vmsd_name": "dut/a", "version": 1, "fields": []}}]"#
    );
    let stream = between_others(Synth::machine(), &keys, &[vec![1], subsection("dut/b", 1, &[])].concat());
    let (report, _) = state_of(&stream, 3);
    assert_neighbours(&report);
    assert_eq!(report["devices"][1]["status"], "undecoded");
}

#[test]
fn one_undecoded_device_leaves_extraction_complete() {
    let keys = r#""vmsd_name": "dut", "version": 1, "fields": [{"name": "x", "type": "uint32", "size": 4}]"#;
    let place = Workplace::with(&between_others(Synth::machine(), keys, &[1, 2]));
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let state = place.json("out/state.json");
    assert_neighbours(&state);
    assert_eq!(state["devices"][1]["bytes"], "0102");
    let warnings = place.json("out/manifest.json")["warnings"].to_string();
    assert!(warnings.contains("dut"), "{warnings}");
    // Not asked for, not missed.
    place.ramlift(&["state", "stream", "--device", "be*"]).expect_code(0);
}

#[test]
fn a_faulty_description_of_one_device_is_of_no_harm_to_others() {
    for fields in [
        r#"{"name": "x", "type": "uint8", "size": -1}"#,
        r#"{"name": "x", "type": "uint8"}"#,
        r#"{"name": "x", "array_len": -1, "type": "uint8", "size": 1}"#,
        r#"{"name": "x", "type": "struct", "struct": null, "size": 1}"#,
    ] {
        let stream = Synth::machine()
            .device(3, "before", &[1], BOOL)
            .device(4, "dut", &[7], fields)
            .device(5, "behind", &[0], BOOL)
            .finish();
        let (report, output) = state_of(&stream, 3);
        assert_eq!(report["devices"][0]["state"], json!({"on": true}), "{fields}");
        assert_eq!(report["devices"][1]["bytes"], "07", "{fields}");
        assert_eq!(report["devices"][2]["state"], json!({"on": false}), "{fields}");
        assert!(output.stderr.contains("dut"), "{}", output.stderr);
    }
}

#[test]
fn without_a_description_devices_are_found_and_stay_undecoded() {
    let stream = Synth::machine()
        .ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0))
        .undescribed(3, "timer", 0, &[1, 2, 3])
        .undescribed(4, "0000:00:02.0/vga", 0, &noise(3, 500))
        .finish_undescribed();
    let (report, output) = state_of(&stream, 3);
    let names: Vec<_> =
        report["devices"].as_array().unwrap().iter().map(|device| device["name"].clone()).collect();
    assert_eq!(names, ["timer", "0000:00:02.0/vga"]);
    assert_eq!(report["devices"][0]["bytes"], "010203");
    assert!(!output.stderr.is_empty());
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert_eq!(files_in(place.join("out")), ["main.ram", "manifest.json", "state.json"]);
    place.ramlift(&["desc", "stream"]).expect_code(1);
}

#[test]
fn without_footers_and_description_ram_is_complete() {
    let stream = Synth::new()
        .without_footers()
        .ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0x55))
        .undescribed(3, "timer", 0, &[1, 2, 3])
        .undescribed(4, "cpu", 0, &noise(3, 500))
        .finish_undescribed();
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert_eq!(place.read("out/main.ram"), [0x55; 0x1000]);
    place.ramlift(&["state", "stream"]).expect_code(3);
}
