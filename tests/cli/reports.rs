//! `info`, `state` and `desc`: what is printed of a stream.

use super::BOOL;
use crate::support::cli::{Workplace, entries_of};
use crate::support::synth::{Block, Records, Synth, small_stream};
use serde_json::{Value, json};

fn undecoded_stream() -> Vec<u8> {
    small_stream().device(9, "wrong", &[1, 2], BOOL).device(10, "right", &[1], BOOL).finish()
}

#[test]
fn info_says_what_the_stream_holds() {
    let place = Workplace::with(&small_stream().finish());
    let output = place.ramlift(&["info", "stream"]).expect_code(0);
    let expected = [
        "synth-1.0",
        "main.ram",
        "0000:00:02.0/vga.vram",
        "timer",
        "SWITCHOVER_START",
        "4096",
        "07070707-0707",
    ];
    for text in expected {
        assert!(output.text().contains(text), "{text} is not in {}", output.text());
    }
    assert_eq!(entries_of(place.path()), ["stream"]);
}

#[test]
fn info_as_json_has_all_that_is_documented() {
    let builder = small_stream();
    let (eof, text) = (builder.offset(), builder.description_text());
    let bytes = builder.finish();
    let report = Workplace::with(&bytes).ramlift(&["info", "stream", "--json"]).expect_code(0).json();
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    let expected = [
        "ramlift",
        "source",
        "format",
        "machine",
        "page_size",
        "capabilities",
        "uuid",
        "has_footers",
        "vcpus",
        "passes",
        "pages_per_pass",
        "blocks",
        "commands",
        "sections",
        "description",
        "guest",
        "end",
        "salvaged",
        "lost",
        "doubtful_pages",
        "warnings",
    ];
    assert_eq!(keys, expected);
    let source = json!({"path": "stream", "size": bytes.len(), "layers": ["QEVM"], "snapshot": null});
    assert_eq!(report["source"], source);
    assert_eq!(report["format"], "QEVM version 3");
    assert_eq!(report["guest"], json!({"looked_at": "nothing", "linux": null, "windows": null}));
    assert_eq!(report["capabilities"], json!(["x-colo"]));
    assert_eq!(report["uuid"], "07070707-0707-0707-0707-070707070707");
    assert_eq!(
        (&report["has_footers"], &report["vcpus"], &report["passes"]),
        (&json!(true), &json!(0), &json!(2))
    );
    assert_eq!(
        report["blocks"],
        json!([
            {"idstr": "main.ram", "used_length": 0x4000, "host_page_size": null, "mr_addr": null,
             "seen_pages": 4, "data_pages": 1, "xbzrle_pages": 0, "fill_pages": 3, "resent_pages": 1, "absent_pages": 0,
             "possibly_stale_pages": 0},
            {"idstr": "0000:00:02.0/vga.vram", "used_length": 0x2000, "host_page_size": null, "mr_addr": null,
             "seen_pages": 2, "data_pages": 0, "xbzrle_pages": 0, "fill_pages": 2, "resent_pages": 0, "absent_pages": 0,
             "possibly_stale_pages": 0},
        ])
    );
    let commands: Vec<_> =
        report["commands"].as_array().unwrap().iter().map(|command| &command["name"]).collect();
    assert_eq!(commands, ["OPEN_RETURN_PATH", "SWITCHOVER_START"]);
    let sections: Vec<_> = report["sections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|section| (section["type"].as_str().unwrap(), section["name"].as_str().unwrap()))
        .collect();
    let expected = [
        ("START", "ram"),
        ("PART", "ram"),
        ("PART", "ram"),
        ("END", "ram"),
        ("FULL", "timer"),
        ("FULL", "0000:00:02.0/vga"),
    ];
    assert_eq!(sections, expected);
    let last = report["sections"].as_array().unwrap().last().unwrap();
    assert_eq!(last["length"], 4);
    assert_eq!(last["body"].as_u64().unwrap() + 4 + 5, eof);
    assert_eq!(report["description"], json!({"offset": eof + 6, "length": text.len(), "devices": 2}));
    assert_eq!(report["end"], bytes.len());
}

#[test]
fn info_counts_processors() {
    let cpu = |stream: Synth, nth: u32| {
        let keys = format!(r#""vmsd_name": "cpu_common", "version": 1, "fields": [{BOOL}]"#);
        stream.device_as(20 + nth, "cpu_common", nth, &[1], &keys)
    };
    let stream = (0..3).fold(small_stream(), cpu).finish();
    let report = Workplace::with(&stream).ramlift(&["info", "stream", "--json"]).json();
    assert_eq!(report["vcpus"], 3);
}

#[test]
fn info_on_a_stream_without_configuration_ram_and_description() {
    let stream = Synth::new().finish_undescribed();
    let report = Workplace::with(&stream).ramlift(&["info", "stream", "--json"]).expect_code(0).json();
    for key in ["machine", "page_size", "uuid", "description"] {
        assert_eq!(report[key], Value::Null, "{key}");
    }
    assert_eq!(report["blocks"], json!([]));
}

#[test]
fn state_prints_devices_that_match() {
    let place = Workplace::with(&undecoded_stream());
    let names = |args: &[&str], code: i32| -> Vec<String> {
        let output = place.ramlift(&[&["state", "stream"], args].concat()).expect_code(code);
        let devices = output.json()["devices"].as_array().unwrap().clone();
        devices.iter().map(|device| device["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&[], 3), ["timer", "0000:00:02.0/vga", "wrong", "right"]);
    assert_eq!(names(&["--device", "timer"], 0), ["timer"]);
    assert_eq!(names(&["--device", "*/vga"], 0), ["0000:00:02.0/vga"]);
    assert_eq!(names(&["--device", "?ight"], 0), ["right"]);
    assert_eq!(names(&["--device", "right", "--device", "t*r"], 0), ["timer", "right"]);
    assert_eq!(names(&["--device", "wrong"], 3), ["wrong"]);
    let output = place.ramlift(&["state", "stream", "--device", "timer", "--device", "none"]).expect_code(1);
    assert!(output.stderr.contains("none"), "{}", output.stderr);
    assert_eq!(output.text(), "");
}

#[test]
fn state_says_where_each_device_is() {
    let place = Workplace::with(&small_stream().finish());
    let report = place.ramlift(&["state", "stream"]).expect_code(0).json();
    assert_eq!(report["machine"], "synth-1.0");
    assert_eq!(report["page_size"], 4096);
    let mut timer = report["devices"][0].clone();
    let offset = timer.as_object_mut().unwrap().remove("offset").unwrap().as_u64().unwrap();
    let offset = usize::try_from(offset).unwrap();
    assert_eq!(place.read("stream")[offset..][..5], [0, 0, 0, 5, 1]);
    assert_eq!(
        timer,
        json!({"name": "timer", "instance_id": 0, "version_id": 1, "section_id": 3, "length": 5,
               "status": "decoded", "state": {"ticks": 5, "on": true}})
    );
    // The same as what `extract` writes.
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert_eq!(place.json("out/state.json"), report);
}

#[test]
fn desc_prints_the_description_as_it_stands() {
    let builder = small_stream();
    let text = format!("{}\n", builder.description_text());
    let place = Workplace::with(&builder.finish());
    assert_eq!(place.ramlift(&["desc", "stream"]).expect_code(0).text(), text);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert_eq!(place.read("out/desc.json"), text.as_bytes());
}

#[test]
fn desc_of_a_stream_that_cannot_be_walked_is_the_one_it_ends_with() {
    let stream = Synth::machine()
        .ram_start(&[Block::new("main.ram", 0x1000)])
        .ram_part(Records::new().word(0x80, b"\x08main.ram\x01\x00\x00"))
        .device(3, "timer", &[1], BOOL);
    let text = stream.description_text();
    let place = Workplace::with(&stream.finish());
    let output = place.ramlift(&["desc", "stream"]).expect_code(3);
    assert_eq!(output.text().trim_end(), text);
    assert!(output.stderr.contains("HOOK"), "{}", output.stderr);
}
