//! The `virtio` blob: what real streams hold, and what only synthetic ones can.

use super::state_of;
use crate::support::fixtures::{read_json, unpack};
use crate::support::hex::{hex, unhex};
use crate::support::synth::{self, Synth, noise};
use ramlift::Stream;
use serde_json::{Value, json};

/// All blobs of a state, with the names of their devices.
fn blobs(state: &Value) -> Vec<(String, Value)> {
    fn collect(name: &str, value: &Value, found: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(map) if map.contains_key("transport") => {
                found.push((name.to_owned(), value.clone()))
            }
            Value::Object(map) => map.values().for_each(|value| collect(name, value, found)),
            Value::Array(values) => values.iter().for_each(|value| collect(name, value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for device in state["devices"].as_array().unwrap() {
        collect(device["name"].as_str().unwrap(), &device["state"], &mut found);
    }
    found
}

/// Checks each device of a real stream by how it was set up.
#[track_caller]
fn check_virtio(name: &str, transport: &str, config_space_len: Option<usize>) {
    let state = state_of(&unpack(name), 0).0;
    let blobs = blobs(&state);
    let manifest = read_json("manifest.json");
    let known = manifest[name]["virtio"].as_array().unwrap();
    assert_eq!(blobs.len(), known.len());
    for truth in known {
        let first = &truth["queues"][0]["desc"];
        let (device, blob) = blobs.iter().find(|(_, blob)| blob["queues"][0]["desc"] == *first).unwrap();
        assert_eq!(blob["transport"]["type"], transport);
        let space = blob["transport"].get("config_space").map(|space| unhex(space.as_str().unwrap()).len());
        assert_eq!(space, config_space_len);
        assert_eq!(blob["guest_features"], truth["features"], "{device}");
        assert_eq!(blob["status"], truth["status"], "{device}");
        assert_eq!(blob["subsections"]["started"], 1, "{device}");
        for (nth, truth) in truth["queues"].as_array().unwrap().iter().enumerate() {
            let queue = &blob["queues"][nth];
            for (key, value) in truth.as_object().unwrap() {
                assert_eq!(queue[key], *value, "{device}, queue {nth}: {key}");
            }
            if let Some(modern) = queue.get("modern") {
                assert_eq!(modern["enabled"], true);
                assert_eq!((&modern["desc"], &modern["used"]), (&truth["desc"], &truth["used"]));
            }
        }
    }
}

#[test]
fn virtio_of_qemu_7_2_over_pci_is_as_it_was_set_up() {
    check_virtio("pc-7.2-virtio-set-up", "pci", Some(256));
}

#[test]
fn virtio_of_qemu_10_0_over_pci_is_as_it_was_set_up() {
    check_virtio("pc-10.0-virtio-set-up", "pci", Some(256));
}

#[test]
fn virtio_over_pci_express_is_as_it_was_set_up() {
    check_virtio("q35-10.0-virtio-set-up", "pci", Some(4096));
}

#[test]
fn virtio_over_mmio_is_as_it_was_set_up() {
    check_virtio("microvm-10.0-virtio-set-up", "mmio", None);
}

#[test]
fn virtio_over_legacy_mmio_is_as_it_was_set_up() {
    check_virtio("aarch64-10.0-virtio-set-up", "mmio", None);
}

#[test]
fn virtio_over_channels_is_as_the_guest_set_it_up() {
    let state = state_of(&unpack("s390x-10.0-keys"), 0).0;
    let blobs = blobs(&state);
    let names: Vec<&str> = blobs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["/fe.0.0000/virtio-blk", "/fe.0.0001/virtio-rng"]);
    for (nth, (_, blob)) in blobs.iter().enumerate() {
        // As the guest of scripts/qemu_streams/programs.py does.
        let rings = 0x2c000 + nth * 0x1000;
        let transport = &blob["transport"];
        assert_eq!((&transport["type"], &transport["devno"]), (&json!("ccw"), &json!(nth)));
        assert_eq!(transport["indicators"], json!({"address": rings + 0xc00, "length": 8}));
        assert_eq!(transport["indicators2"], json!({"address": rings + 0xc08, "length": 8}));
        assert_eq!(transport["revision"], 1);
        assert_eq!((&blob["status"], &blob["guest_features"]), (&json!(15), &json!(0x1_3000_0000_u64)));
        assert_eq!(blob["subsections"]["device_endian"], 2);
        let queue = &blob["queues"][0];
        let expected = [("num", 8), ("desc", rings), ("avail", rings + 0x400), ("used", rings + 0x800)];
        for (key, value) in expected {
            assert_eq!(queue[key], value, "{key}");
        }
    }
}

#[test]
fn every_real_blob_can_be_told_apart() {
    let mut count = 0;
    for name in read_json("manifest.json").as_object().unwrap().keys() {
        let bytes = unpack(name);
        // Encodings and wrappers that are not read.
        let Ok(stream) = Stream::parse(&bytes) else { continue };
        for device in stream.devices().filter(|device| device.desc.is_some()) {
            let Ok(state) = device.decode() else { continue };
            for virtio in state.fields.iter().filter_map(ramlift::Virtio::of) {
                let virtio = virtio.unwrap_or_else(|why| unreachable!("{name}: {why}"));
                assert!(!virtio.queues.is_empty());
                assert!(virtio.subsections.unknown.is_empty());
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count} blobs");
}

/// A blob over MMIO, its own part and what stands behind it given.
fn mmio_blob(queues: u32, own_part: &[u8], behind: &[u8]) -> Vec<u8> {
    let queue = [&8u32.to_be_bytes()[..], &4096u32.to_be_bytes(), &0x7000u64.to_be_bytes(), &[0, 5]].concat();
    let queues = [queues.to_be_bytes().to_vec(), queue.repeat(queues as usize)].concat();
    let head = [&[0; 12][..], &[15, 1, 0, 2], &[0x10, 0, 0, 1], &2u32.to_be_bytes(), &[0xab, 0xcd]].concat();
    [head.as_slice(), &queues, own_part, behind].concat()
}

/// The field `virtio` of a device with this blob.
#[track_caller]
fn virtio_of(vmsd_name: &str, blob: &[u8]) -> Value {
    let field = format!(r#"{{"name": "virtio", "type": "virtio", "size": {}}}"#, blob.len());
    let keys = format!(r#""vmsd_name": "{vmsd_name}", "version": 1, "fields": [{field}]"#);
    let stream = Synth::machine().device_as(3, "dev", 0, blob, &keys).finish();
    let (report, _) = state_of(&stream, 0);
    assert_eq!(report["devices"][0]["status"], "decoded");
    report["devices"][0]["state"]["virtio"].clone()
}

fn subsection(name: &str, payload: &[u8]) -> Vec<u8> {
    synth::subsection(name, 1, payload)
}

#[test]
fn a_blob_without_subsections_has_32_features_and_its_own_part_to_the_end() {
    let virtio = virtio_of("virtio-x", &mmio_blob(1, &[1, 2, 3], &[]));
    assert_eq!((&virtio["guest_features"], &virtio["config"]), (&json!(0x1000_0001), &json!("abcd")));
    assert_eq!((&virtio["status"], &virtio["isr"], &virtio["queue_sel"]), (&json!(15), &json!(1), &json!(2)));
    assert_eq!(virtio["device"]["bytes"], "010203");
    let queue = json!({"index": 0, "num": 8, "align": 4096, "desc": 0x7000, "last_avail_idx": 5});
    assert_eq!(virtio["queues"], json!([queue]));
}

#[test]
fn subsections_begin_where_they_lead_to_the_end() {
    // The device's own part looks like subsections too.
    let own_part = [subsection("virtio/broken", &[1]), vec![9; 5], b"virtio/started".to_vec()].concat();
    let behind = [
        subsection("virtio/64bit_features", &0x1_0000_0001_u64.to_be_bytes()),
        subsection("virtio/invented_since", &[1, 2, 3]),
        subsection("virtio/disabled", &[1]),
    ]
    .concat();
    let virtio = virtio_of("virtio-x", &mmio_blob(0, &own_part, &behind));
    assert_eq!(virtio["guest_features"], 0x1_0000_0001_u64);
    assert_eq!(virtio["device"]["bytes"], hex(&own_part));
    assert_eq!(virtio["subsections"], json!({"disabled": 1, "virtio/invented_since": "010203"}));
}

#[test]
fn the_request_that_a_failing_disk_could_not_answer_is_in_flight() {
    let stream = unpack("pc-10.0-virtio-in-flight");
    let (state, _) = state_of(&stream, 0);
    let blobs = blobs(&state);
    let [(_, blob)] = blobs.as_slice() else { unreachable!("{state}") };
    assert_eq!(blob["queues"][0]["last_avail_idx"], 1);
    let elements = blob["device"]["elements"].as_array().unwrap();
    // The disk has two queues, so each request says which it came by.
    assert_eq!((elements.len(), &elements[0]["words"]), (1, &json!([0])));
    let at = elements[0]["offset"].as_u64().unwrap() as usize;
    let word = |nth: usize| u32::from_le_bytes(stream[at + 4 * nth..][..4].try_into().unwrap());
    // QEMU's structure, of a host of this byte order: index, out_num, in_num.
    assert_eq!([word(0), word(1), word(2)], [0, 1, 2]);
    check_virtio("pc-10.0-virtio-in-flight", "pci", Some(256));
}

#[test]
fn requests_in_flight_are_counted() {
    let element = noise(3, 49168);
    for words in 0..3 {
        let entry = [&[1][..], &noise(4, words * 4), &element].concat();
        let own_part = [entry.repeat(2).as_slice(), &[0]].concat();
        let virtio = virtio_of("virtio-blk", &mmio_blob(1, &own_part, &[]));
        let elements = virtio["device"]["elements"].as_array().unwrap();
        assert_eq!(elements.len(), 2);
        assert_eq!(
            (&elements[1]["length"], elements[1]["words"].as_array().unwrap().len()),
            (&json!(49168), words)
        );
    }
    // Of a list that is none, and of other devices, the bytes are shown.
    let virtio = virtio_of("virtio-blk", &mmio_blob(1, &[1, 2], &[]));
    assert_eq!(virtio["device"]["bytes"], "0102");
    let virtio = virtio_of("virtio-net", &mmio_blob(1, &[0], &[]));
    assert_eq!(virtio["device"]["bytes"], "00");
}

#[test]
fn a_blob_that_cannot_be_told_apart_is_its_bytes_with_a_reason() {
    let whole = mmio_blob(2, &[], &[]);
    let cut = &whole[..whole.len() - 1];
    let many = mmio_blob(1025, &[], &[]);
    let odd_end = mmio_blob(1, &[], &[subsection("virtio/started", &[1]), vec![1]].concat());
    let pci = [&[0, 0, 0, 2, 0xf4, 0x1a][..], &[0xff; 100]].concat();
    for blob in [cut, &many, &odd_end, &pci, &[], &[0; 12]] {
        let virtio = virtio_of("virtio-x", blob);
        assert_eq!(virtio["bytes"], hex(blob));
        assert!(!virtio["reason"].as_str().unwrap().is_empty());
        assert_eq!(virtio.get("transport"), None);
    }
}

#[test]
fn capabilities_in_a_circle_end() {
    let mut config = vec![0; 256];
    config[..2].copy_from_slice(&[0xf4, 0x1a]);
    config[6] = 0x10;
    config[0x34] = 0x40;
    config[0x41] = 0x40;
    let blob = [&[0, 0, 0, 2][..], &config, &[0; 16]].concat();
    let blob = [blob.as_slice(), &mmio_blob(0, &[], &[])[12..]].concat();
    let virtio = virtio_of("virtio-x", &blob);
    assert_eq!(virtio["transport"]["type"], "pci");
    assert_eq!(virtio["transport"]["msix_table"], Value::Null);
}
