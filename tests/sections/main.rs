//! Sections with layouts of their own, and commands: what real streams hold, and
//! what only synthetic ones can.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod disks;
mod opaque;
mod targets;

use ramlift::{ErrorKind, Stream};
use serde_json::Value;
use support::cli::Workplace;
use support::fixtures::read_json;
use support::hex::unhex;
use support::synth::Synth;

fn from_hex(digits: &Value) -> Vec<u8> {
    unhex(digits.as_str().unwrap())
}

/// What `ramlift state` prints of a stream.
#[track_caller]
fn state(stream: &[u8]) -> Value {
    Workplace::with(stream).ramlift(&["state", "stream"]).expect_code(0).json()
}

/// The entry of the only handler of a stream that iterates beside `ram`.
#[track_caller]
fn handler(stream: &[u8]) -> Value {
    let state = state(stream);
    let [handler] = state["handlers"].as_array().unwrap().as_slice() else { unreachable!("{state}") };
    handler.clone()
}

fn device(state: &Value, name: &str) -> Value {
    let devices = state["devices"].as_array().unwrap();
    devices.iter().find(|device| device["name"] == name).unwrap_or_else(|| unreachable!("no {name}")).clone()
}

fn truth(name: &str, key: &str) -> Value {
    read_json("manifest.json")[name][key].clone()
}

/// The keys that describe a device of the old style.
fn old_style(len: usize) -> String {
    format!(r#""size": {len}, "fields": [{{"name": "data", "size": {len}, "type": "buffer"}}]"#)
}

const VFIO: &str = "0000:00:05.0/vfio";

fn vfio_tag(tag: u64) -> [u8; 8] {
    (0xffff_ffff_ef10_0000 | tag).to_be_bytes()
}

#[test]
fn flags_tags_and_counts_that_make_no_sense_are_refused() {
    let too_long = [vfio_tag(4), u64::MAX.to_be_bytes()].concat();
    let cases: [(&str, &[u8]); 9] = [
        ("dirty-bitmap", &[0x80, 0, 0, 1]),
        ("dirty-bitmap", &[0x30, 0, 0, 1]),
        ("dirty-bitmap", &[0x02, 1]),
        ("block", &[0, 0, 0, 0, 0, 0, 0, 0x10]),
        ("block", &[0, 0, 0, 0, 0, 0, 0, 8]),
        ("block", &[0, 0, 0, 0, 0, 0, 0, 1, 1, b'a', 5]),
        (VFIO, &[0; 8]),
        (VFIO, &too_long),
        ("pbs-state", &[0xff; 12]),
    ];
    for (name, body) in cases {
        let stream = Synth::machine().start(4, name, 1, body).finish();
        let error = Stream::parse(&stream).err().unwrap();
        let is_expected = matches!(error.kind(), ErrorKind::Malformed { .. } | ErrorKind::Truncated { .. });
        assert!(is_expected && error.to_string().contains(name), "{error}");
    }
}
