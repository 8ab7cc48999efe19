//! Where a device and where the stream ends, and which device it is that stands
//! there.

use super::{BOOL, state_of};
use crate::support::hex::{hex, unhex};
use crate::support::synth::{Block, Records, Synth, noise, str8};
use serde_json::json;

#[test]
fn a_device_before_ram_is_decoded() {
    // virtio-mem, since QEMU 8.0: described as the first device.
    let early = "0000:00:03.0/virtio-mem-device-early";
    let body = [unhex("0000000000000002"), noise(5, 24)].concat();
    let fields =
        r#"{"name": "size", "type": "uint64", "size": 8}, {"name": "bitmap", "type": "buffer", "size": 24}"#;
    let list = |stream: Synth| stream.ram_start(&[Block::new("main.ram", 0x2000)]);
    let device = |stream: Synth| stream.device(9, early, &body, fields);
    let heads = [Synth::machine(), Synth::machine().without_footers()];
    for stream in heads.into_iter().flat_map(|head| [device(list(head.clone())), list(device(head))]) {
        let stream = stream
            .ram_part(Records::new().data("main.ram", 0, &noise(1, 4096)).next_fill(0x1000, 0))
            .ram_end(Records::new())
            .device(4, "timer", &[1], BOOL)
            .finish();
        let (report, _) = state_of(&stream, 0);
        assert_eq!(report["devices"][0]["name"], early);
        assert_eq!(report["devices"][0]["state"]["size"], 2);
        assert_eq!(report["devices"][1]["state"], json!({"on": true}));
        assert_eq!(report["page_size"], 4096);
    }
}

#[test]
fn devices_of_one_name_are_told_apart_by_their_instance() {
    let cpu = |instance: u32, value: u8| {
        (
            instance,
            [value],
            r#""vmsd_name": "cpu", "version": 1, "fields": [{"name": "halted", "type": "uint8", "size": 1}]"#,
        )
    };
    let stream = [cpu(0, 1), cpu(1, 2), cpu(0x8000_0000, 3)].into_iter().fold(
        Synth::machine(),
        |stream, (instance, body, keys)| {
            stream.device_as(10 + (instance & 0xff) + (instance >> 31) * 5, "cpu", instance, &body, keys)
        },
    );
    let (report, _) = state_of(&stream.finish(), 0);
    let met: Vec<_> = report["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| (device["instance_id"].as_u64().unwrap(), device["state"]["halted"].as_u64().unwrap()))
        .collect();
    assert_eq!(met, [(0, 1), (1, 2), (0x8000_0000, 3)]);
}

#[test]
fn a_version_that_is_a_date_is_a_version() {
    // What the EEPROM of network cards has in QEMU (hw/nvram/eeprom93xx.c).
    let stream = Synth::machine()
        .undescribed(3, "dut", 0, &[1])
        .head(4, 4, "0000:00:16.0/eeprom", 0, 20_061_113)
        .raw([2])
        .footer(4)
        .finish_undescribed();
    let (report, _) = state_of(&stream, 3);
    assert_eq!(report["devices"][1]["version_id"], 20_061_113);
    assert_eq!(report["devices"][1]["bytes"], "02");
}

#[test]
fn a_body_that_looks_like_its_own_footer_is_read_whole() {
    // The footer's bytes and a header stand in the middle of the body.
    let fake = [unhex("7e 00000003 04 00000004"), str8("behind"), vec![0; 8]].concat();
    let fields = format!(r#"{{"name": "blob", "type": "buffer", "size": {}}}"#, fake.len());
    let stream = Synth::machine().device(3, "dut", &fake, &fields).device(4, "behind", &[1], BOOL).finish();
    let (report, _) = state_of(&stream, 0);
    assert_eq!(report["devices"][0]["state"], json!({"blob": hex(&fake)}));
}

#[test]
fn a_footer_before_zeros_inside_a_wrongly_described_body_ends_nothing() {
    // A footer and two zeros look like the last device of a stream.
    let body = [unhex("01 02 7e 00000003 00 00"), vec![9; 20]].concat();
    let fields = r#"{"name": "x", "type": "buffer", "size": 1}"#;
    let stream = Synth::machine().device(3, "dut", &body, fields).device(4, "behind", &[1], BOOL).finish();
    let (report, _) = state_of(&stream, 3);
    assert_eq!(report["devices"][0]["bytes"], hex(&body));
    assert_eq!(report["devices"][1]["state"], json!({"on": true}));
}

#[test]
fn the_last_device_described_wrongly_ends_where_the_stream_does() {
    for stream in [Synth::machine(), Synth::machine().without_footers()] {
        let stream = stream
            .ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0))
            .device(3, "before", &[1], BOOL)
            .device(4, "dut", &[1, 2, 3, 4, 5], r#"{"name": "x", "type": "uint32", "size": 4}"#)
            .finish();
        let (report, _) = state_of(&stream, 3);
        assert_eq!(report["devices"][0]["state"], json!({"on": true}));
        assert_eq!(report["devices"][1]["bytes"], "0102030405");
    }
}

#[test]
fn a_description_inside_guest_memory_is_not_taken_for_the_streams() {
    let other = Synth::machine().device(3, "timer", &[1], BOOL).finish();
    let mut page = noise(1, 4096);
    page[100..100 + other.len()].copy_from_slice(&other);
    let fields = r#"{"name": "ticks", "type": "uint16", "size": 2}"#;
    for early in [false, true] {
        let mut stream = Synth::machine().ram_start(&[Block::new("main.ram", 0x2000)]);
        if early {
            stream = stream.device(3, "timer", &[0, 7], fields);
        }
        stream = stream.ram_part(Records::new().data("main.ram", 0, &page)).ram_end(Records::new());
        if !early {
            stream = stream.device(3, "timer", &[0, 7], fields);
        }
        // A device whose body holds a whole stream as well.
        let blob = format!(r#"{{"name": "blob", "type": "buffer", "size": {}}}"#, other.len());
        let stream = stream.device(4, "flash", &other, &blob).finish();
        let (report, _) = state_of(&stream, 0);
        assert_eq!(report["devices"][0]["state"], json!({"ticks": 7}), "early: {early}");
        assert_eq!(report["devices"][1]["state"], json!({"blob": hex(&other)}), "early: {early}");
    }
}

#[test]
fn zeros_behind_the_stream_are_padding() {
    let stream = Synth::machine().device(3, "dut", &[1], BOOL).finish();
    let (report, output) = state_of(&[stream, vec![0; 70_000]].concat(), 0);
    assert_eq!(report["devices"][0]["state"], json!({"on": true}));
    assert_eq!(output.stderr, "");
}

#[test]
fn an_older_stream_behind_the_stream_is_warned_of_and_not_read() {
    let stream = Synth::machine().device(3, "dut", &[1], BOOL).finish();
    let older = Synth::machine().device(3, "dut", &[0], BOOL).device(4, "gone", &[0], BOOL).finish();
    let (report, output) = state_of(&[stream, older].concat(), 0);
    assert_eq!(report["devices"].as_array().unwrap().len(), 1);
    assert_eq!(report["devices"][0]["state"], json!({"on": true}));
    assert!(!output.stderr.is_empty());
}
