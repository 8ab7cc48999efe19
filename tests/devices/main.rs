//! Device state, as `ramlift state` shows it: what fields hold, where devices
//! end, and what is had of those that nothing describes as they are.

#[path = "../support/mod.rs"]
mod support;

mod boundaries;
mod fields;
mod pointers;
mod undecoded;
mod virtio;

use serde_json::{Value, json};
use support::cli::{Output, Workplace};
use support::hex::hex;
use support::synth::{Block, Records, Synth};

/// The device's entry in what `ramlift state` prints.
#[track_caller]
fn state_of(stream: &[u8], code: i32) -> (Value, Output) {
    let output = Workplace::with(stream).ramlift(&["state", "stream"]).expect_code(code);
    (output.json(), output)
}

/// Checks a device of these fields, between two others that must not suffer.
#[track_caller]
fn check(fields: &str, body: &[u8], expected: &Value) {
    check_keys(&format!(r#""vmsd_name": "dut", "version": 1, "fields": [{fields}]"#), body, expected);
}

#[track_caller]
fn check_keys(keys: &str, body: &[u8], expected: &Value) {
    for stream in [
        between_others(Synth::machine(), keys, body),
        between_others(Synth::machine().without_footers(), keys, body),
    ] {
        let (report, _) = state_of(&stream, 0);
        assert_neighbours(&report);
        let dut = &report["devices"][1];
        assert_eq!(dut["status"], "decoded");
        assert_eq!(dut["length"], body.len());
        assert_eq!(dut["state"], *expected);
    }
}

/// Checks a device that its description does not fit.
#[track_caller]
fn check_undecoded(fields: &str, body: &[u8]) {
    let keys = format!(r#""vmsd_name": "dut", "version": 1, "fields": [{fields}]"#);
    let stream = between_others(Synth::machine(), &keys, body);
    let (report, output) = state_of(&stream, 3);
    assert_neighbours(&report);
    let dut = &report["devices"][1];
    assert_eq!(dut["status"], "undecoded");
    assert_eq!(dut["bytes"], hex(body));
    assert!(dut["reason"].as_str().unwrap().contains("\"dut\""), "{dut}");
    assert_eq!(dut.get("state"), None);
    assert!(output.stderr.contains("dut"), "{}", output.stderr);
}

fn between_others(stream: Synth, keys: &str, body: &[u8]) -> Vec<u8> {
    stream
        .ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0))
        .device(3, "before", &[1], BOOL)
        .device_as(4, "dut", 7, body, keys)
        .device(5, "behind", &[0], BOOL)
        .finish()
}

const BOOL: &str = r#"{"name": "on", "type": "bool", "size": 1}"#;

/// The keys of an element of a list or a tree.
const LEAF: &str =
    r#""vmsd_name": "leaf", "version": 1, "fields": [{"name": "v", "type": "uint8", "size": 1}], "#;

#[track_caller]
fn assert_neighbours(report: &Value) {
    assert_eq!(report["devices"].as_array().unwrap().len(), 3);
    assert_eq!(report["devices"][0]["state"], json!({"on": true}));
    assert_eq!(report["devices"][2]["state"], json!({"on": false}));
}
