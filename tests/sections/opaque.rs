//! What stays opaque: bytes at a place, which can be had as they stand.

use super::{VFIO, device, handler, old_style, state, vfio_tag};
use crate::support::cli::Workplace;
use crate::support::fixtures::unpack;
use crate::support::hex::hex;
use crate::support::synth::{Synth, noise};
use ramlift::{ErrorKind, Stream};
use serde_json::{Value, json};

/// A stream with a vfio device: it iterates, and has a FULL section with a
/// configuration that looks like the end of an iterated one.
fn vfio_stream() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let data = noise(1, 5000);
    let state = |data: &[u8]| [&vfio_tag(4), (data.len() as u64).to_be_bytes().as_slice(), data].concat();
    let full = [&vfio_tag(2), noise(2, 300).as_slice(), &vfio_tag(1), &[7], &vfio_tag(1)].concat();
    let head = Synth::machine().head(1, 9, VFIO, 0, 1).raw(vfio_tag(3)).raw(vfio_tag(1)).footer(9);
    let stream = head
        .part(9, &[state(&data).as_slice(), &vfio_tag(5)].concat())
        .part(9, &[state(&[]).as_slice(), &vfio_tag(1)].concat())
        .end(9, &vfio_tag(1))
        .device_as(9, VFIO, 0, &full, &old_style(full.len()))
        .device(10, "behind", &[1], r#"{"name": "on", "type": "bool", "size": 1}"#)
        .finish();
    (stream, data, full)
}

#[test]
fn a_vfio_device_iterates_and_has_a_section_of_its_own_under_one_id() {
    let (stream, data, full) = vfio_stream();
    let state = state(&stream);
    let handler = &state["handlers"][0];
    assert_eq!((&handler["name"], &handler["status"]), (&json!(VFIO), &json!("opaque")));
    let records = handler["state"]["records"].as_array().unwrap();
    let tags: Vec<_> = records.iter().map(|record| (&record["tag"], &record["length"])).collect();
    assert_eq!(
        tags,
        [
            (&json!("DEV_SETUP_STATE"), &Value::Null),
            (&json!("DEV_DATA_STATE"), &json!(data.len())),
            (&json!("DEV_INIT_DATA_SENT"), &Value::Null),
            (&json!("DEV_DATA_STATE"), &json!(0)),
        ]
    );
    // Tag and size stand in front of the data.
    let at = records[1]["offset"].as_u64().unwrap() as usize + 16;
    assert_eq!(stream[at..at + data.len()], data);
    let device = device(&state, VFIO);
    assert_eq!((&device["length"], &device["state"]), (&json!(full.len()), &json!({"data": hex(&full)})));
    assert_eq!(state["devices"][1]["state"], json!({"on": true}));
}

#[test]
fn a_vfio_device_ends_by_its_footer_without_a_description() {
    let (stream, ..) = vfio_stream();
    let description = Stream::parse(&stream).unwrap().description().unwrap().offset.0 as usize;
    // Type byte and length stand before the text.
    let bare = &stream[..description - 5];
    let lens = |stream: &[u8]| -> Vec<u64> {
        Stream::parse(stream).unwrap().sections().iter().map(ramlift::Section::body_len).collect()
    };
    assert_eq!(lens(bare), lens(&stream));
}

#[test]
fn info_says_what_is_opaque() {
    let (stream, ..) = vfio_stream();
    let place = Workplace::with(&stream);
    let info = place.ramlift(&["info", "stream", "--json"]).expect_code(0).json();
    let contents: Vec<_> =
        info["sections"].as_array().unwrap().iter().map(|section| section["content"].clone()).collect();
    assert_eq!(contents, ["opaque", "opaque", "opaque", "opaque", "opaque", "described"]);
    let text = place.ramlift(&["info", "stream"]).expect_code(0);
    assert_eq!(text.text().matches(" (opaque)").count(), 4, "{}", text.text());
    let s390x = Workplace::with(&unpack("s390x-11.1"));
    let info = s390x.ramlift(&["info", "stream", "--json"]).expect_code(0).json();
    for section in info["sections"].as_array().unwrap() {
        let expected = match section["name"].as_str().unwrap() {
            "ram" => "pages",
            "s390-skeys" | "todclock" | "s390-storage_attributes" => "decoded",
            _ => "described",
        };
        assert_eq!(section["content"], expected, "{section}");
    }
}

#[test]
fn bodies_can_be_had_as_they_stand() {
    let (stream, data, full) = vfio_stream();
    let place = Workplace::with(&stream);
    let all = place.ramlift(&["state", "stream", "--raw", VFIO]).expect_code(0).stdout;
    let parsed = Stream::parse(&stream).unwrap();
    let sections: Vec<_> = parsed.sections().iter().filter(|section| section.handler.idstr == VFIO).collect();
    let bodies: Vec<u8> = sections.iter().flat_map(|section| parsed.body(section)).copied().collect();
    assert_eq!(all, bodies);
    for at in [sections[1].body.0.to_string(), format!("{:#x}", sections[1].offset.0)] {
        let one = place.ramlift(&["state", "stream", "--raw", VFIO, "--at", &at]).expect_code(0).stdout;
        assert_eq!(one[16..one.len() - 8], data);
    }
    let last = sections[4].body.0.to_string();
    assert_eq!(place.ramlift(&["state", "stream", "--raw", VFIO, "--at", &last]).stdout, full);
    place.ramlift(&["state", "stream", "--raw", VFIO, "--at", "1"]).expect_code(1);
    place.ramlift(&["state", "stream", "--raw", "nobody"]).expect_code(1);
    place.ramlift(&["state", "stream", "--at", "1"]).expect_code(2);
}

#[test]
fn of_several_sections_of_one_name_the_instance_decides() {
    let stream = Synth::machine()
        .device_as(3, "dma", 0, &[1], &old_style(1))
        .device_as(4, "dma", 1, &[2], &old_style(1))
        .finish();
    let place = Workplace::with(&stream);
    let output = place.ramlift(&["state", "stream", "--raw", "dma"]).expect_code(1);
    assert!(output.stderr.contains("0, 1"), "{}", output.stderr);
    let one = place.ramlift(&["state", "stream", "--raw", "dma", "--instance", "1"]).expect_code(0);
    assert_eq!(one.stdout, [2]);
}

#[test]
fn the_state_of_a_proxmox_backup_is_bytes_at_a_place() {
    let body = [3u64.to_be_bytes().as_slice(), &[1, 2, 3]].concat();
    let stream = Synth::machine().start(8, "pbs-state", 1, &body).finish();
    let handler = handler(&stream);
    assert_eq!(handler["status"], "opaque");
    assert_eq!(handler["state"]["records"][0]["length"], 3);
    let raw = Workplace::with(&stream).ramlift(&["state", "stream", "--raw", "pbs-state"]).expect_code(0);
    assert_eq!(raw.stdout, body);
    let part = Synth::machine().start(8, "pbs-state", 1, &body).part(8, &body).finish();
    assert!(matches!(Stream::parse(&part).err().unwrap().kind(), ErrorKind::Unsupported { .. }));
}

#[test]
fn handlers_can_be_chosen_as_devices_can() {
    let (stream, ..) = vfio_stream();
    let place = Workplace::with(&stream);
    let state = place.ramlift(&["state", "stream", "--device", "*/vfio"]).expect_code(0).json();
    assert_eq!(state["devices"].as_array().unwrap().len(), 1);
    assert_eq!(state["handlers"].as_array().unwrap().len(), 1);
    let state = place.ramlift(&["state", "stream", "--device", "behind"]).expect_code(0).json();
    assert_eq!(state["handlers"], json!([]));
}
