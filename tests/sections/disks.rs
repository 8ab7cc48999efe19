//! Disks: dirty bitmaps, and block migration.

use super::{from_hex, handler, truth};
use crate::support::cli::Workplace;
use crate::support::fixtures::unpack;
use crate::support::hex::sha256;
use crate::support::synth::{Synth, str8};
use ramlift::{ErrorKind, Stream};
use serde_json::{Value, json};

/// Checks the bitmaps of a real stream by QEMU's own hash of their bits.
#[track_caller]
fn check_bitmaps(name: &str) {
    let handler = handler(&unpack(name));
    assert_eq!((&handler["name"], &handler["status"]), (&json!("dirty-bitmap"), &json!("decoded")));
    let bitmaps = handler["state"]["bitmaps"].as_array().unwrap();
    let known = truth(name, "dirty_bitmaps");
    let known = known.as_array().unwrap();
    assert_eq!(bitmaps.len(), known.len());
    for truth in known {
        let is_it = |bitmap: &&Value| bitmap["node"] == truth["device"] && bitmap["name"] == truth["name"];
        let bitmap = bitmaps.iter().find(is_it).unwrap();
        assert_eq!(bitmap["granularity"], truth["granularity"]);
        assert_eq!(bitmap["is_enabled"], truth["recording"]);
        assert_eq!((&bitmap["is_persistent"], &bitmap["is_complete"]), (&json!(false), &json!(true)));
        let granularity = truth["granularity"].as_u64().unwrap();
        let bit_count = truth["node_bytes"].as_u64().unwrap().div_ceil(granularity);
        let bits = bits(bitmap, granularity, bit_count.div_ceil(64) * 8);
        assert_eq!(sha256(&bits), truth["sha256"], "{bitmap}");
        let count: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        assert_eq!(count * granularity, truth["count"]);
    }
}

/// All bits of a bitmap that takes `len` bytes.
fn bits(bitmap: &Value, granularity: u64, len: u64) -> Vec<u8> {
    let mut bits = vec![0; len as usize];
    for range in bitmap["ranges"].as_array().unwrap().iter().filter(|range| !range["bits"].is_null()) {
        let at = (range["first_sector"].as_u64().unwrap() * 512 / granularity / 8) as usize;
        let part = from_hex(&range["bits"]);
        let len = part.len().min(bits.len() - at);
        bits[at..at + len].copy_from_slice(&part[..len]);
    }
    bits
}

#[test]
fn dirty_bitmaps_of_qemu_7_2_are_those_it_had() {
    check_bitmaps("pc-7.2-dirty-bitmaps");
}

#[test]
fn dirty_bitmaps_of_qemu_10_0_are_those_it_had() {
    check_bitmaps("pc-10.0-dirty-bitmaps");
}

/// A chunk of `dirty-bitmap`.
fn chunk(flags: u8, names: &[&str], payload: &[u8]) -> Vec<u8> {
    let names: Vec<u8> = names.iter().flat_map(str8).collect();
    [&[flags], names.as_slice(), payload].concat()
}

fn bits_chunk(flags: u8, first_sector: u64, bits: &[u8]) -> Vec<u8> {
    let place = [first_sector.to_be_bytes().as_slice(), &8u32.to_be_bytes()].concat();
    let size = (bits.len() as u64).to_be_bytes();
    chunk(0x40 | flags, &[], &[place.as_slice(), &size, bits].concat())
}

#[test]
fn names_of_dirty_bitmaps_last_until_others_come_in_a_later_section_too() {
    let start = |flags: u8, names: &[&str]| chunk(0x10 | flags, names, &[0, 0, 2, 0, 0x07]);
    let zeroes = [[0; 8].as_slice(), &[0, 0, 0, 8]].concat();
    let first = [start(0x0c, &["disk", "one"]), start(0x04, &["two"]), vec![1]].concat();
    let part = [bits_chunk(0, 64, &[0xaa, 1]), chunk(0x42, &[], &zeroes), vec![1]].concat();
    let end = [chunk(0x20, &[], &[]), chunk(0x24, &["one"], &[]), vec![1]].concat();
    let stream = Synth::machine().start(4, "dirty-bitmap", 1, &first).part(4, &part).end(4, &end).finish();
    let handler = handler(&stream);
    let bitmaps = &handler["state"]["bitmaps"];
    assert_eq!((&bitmaps[0]["name"], &bitmaps[0]["ranges"]), (&json!("one"), &json!([])));
    let two = &bitmaps[1];
    assert_eq!(
        (&two["node"], &two["name"], &two["granularity"]),
        (&json!("disk"), &json!("two"), &json!(512))
    );
    assert_eq!((&two["flags"], &two["is_persistent"]), (&json!(7), &json!(true)));
    assert_eq!(two["ranges"][0]["bits"], "aa01");
    assert_eq!(two["ranges"][0]["first_sector"], 64);
    assert_eq!(two["ranges"][1]["bits"], Value::Null);
    assert!(bitmaps.as_array().unwrap().iter().all(|bitmap| bitmap["is_complete"] == true));
    let types: Vec<_> =
        handler["sections"].as_array().unwrap().iter().map(|section| section["type"].clone()).collect();
    assert_eq!(types, ["START", "PART", "END"]);
}

#[test]
fn block_devices_of_qemu_7_2_are_the_disks_that_it_had() {
    let name = "pc-7.2-block";
    let place = Workplace::with(&unpack(name));
    place.ramlift(&["extract", "stream", "-o", "out", "-q", "--block-devices"]).expect_code(0);
    let manifest = place.json("out/manifest.json");
    let devices = manifest["block_devices"].as_array().unwrap();
    let known = truth(name, "block_devices");
    assert_eq!(devices.len(), known.as_object().unwrap().len());
    for device in devices {
        let truth = &known[device["name"].as_str().unwrap()];
        let image = place.read(&format!("out/{}", device["file"].as_str().unwrap()));
        assert_eq!(image.len() as u64, device["length"]);
        let len = truth["bytes"].as_u64().unwrap() as usize;
        assert_eq!(image.len(), len.next_multiple_of(1 << 20));
        assert_eq!(sha256(&image[..len]), truth["sha256"], "{device}");
        assert!(image[len..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn block_devices_are_written_if_they_are_asked_for_and_mentioned_if_not() {
    let place = Workplace::with(&unpack("pc-7.2-block"));
    let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert!(output.stderr.contains("--block-devices"), "{}", output.stderr);
    assert_eq!(place.json("out/manifest.json")["block_devices"], json!([]));
    assert!(!place.join("out/block").exists());
}

/// A chunk of `block`, or a zero one.
fn block_chunk(position: u64, device: &str, data: Option<u8>) -> Vec<u8> {
    let flags = if data.is_some() { 1 } else { 9 };
    let data = data.map_or_else(Vec::new, |byte| vec![byte; 1 << 20]);
    [(position | flags).to_be_bytes().as_slice(), &str8(device), &data].concat()
}

#[test]
fn the_last_chunk_of_a_position_counts_and_names_stay_in_the_directory() {
    const MIB: u64 = 1 << 20;
    let (eos, progress) = (2u64.to_be_bytes(), (50u64 << 9 | 4).to_be_bytes());
    let part = [
        block_chunk(0, "../disk", Some(0x11)),
        block_chunk(MIB, "../disk", Some(0x22)),
        progress.to_vec(),
        block_chunk(0, "b", None),
        eos.to_vec(),
    ];
    let end = [
        block_chunk(MIB, "../disk", None),
        block_chunk(0, "../disk", Some(0x33)),
        block_chunk(3 * MIB, "../disk", None),
        eos.to_vec(),
    ];
    let stream =
        Synth::machine().start(4, "block", 1, &eos).part(4, &part.concat()).end(4, &end.concat()).finish();
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out", "-q", "--block-devices"]).expect_code(0);
    let image = place.read("out/block/%2E%2E/disk");
    assert_eq!(image.len() as u64, 4 * MIB);
    assert!(image[..1 << 20].iter().all(|byte| *byte == 0x33));
    assert!(image[1 << 20..].iter().all(|byte| *byte == 0));
    let manifest = place.json("out/manifest.json");
    assert_eq!(
        manifest["block_devices"][0],
        json!({"name": "../disk", "file": "block/%2E%2E/disk", "length": 4 * MIB,
            "data_chunks": 1, "zero_chunks": 2, "absent_chunks": 1})
    );
    let handler = handler(&stream);
    let disk = &handler["state"]["devices"][0];
    assert_eq!((&disk["data_chunks"], &disk["zero_chunks"]), (&json!(3), &json!(2)));
    assert_eq!(disk["chunks"][1]["position"], MIB);
    // Another extraction into the same place leaves none of its files behind.
    std::fs::write(place.join("stream"), Synth::machine().finish()).unwrap();
    place.ramlift(&["extract", "stream", "-o", "out", "-q", "--force"]).expect_code(0);
    assert!(!place.join("out/block/%2E%2E/disk").exists());
}

#[test]
fn chunks_between_chunks_and_beyond_any_device_are_refused() {
    for position in [512, (1 << 20) + 512, 1 << 63] {
        let stream = Synth::machine().start(4, "block", 1, &block_chunk(position, "disk", None)).finish();
        let error = Stream::parse(&stream).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Malformed { .. }), "{error}");
    }
}

#[test]
fn more_bitmaps_than_anybody_has_are_not_gathered() {
    let chunks: Vec<u8> = (0..70_000u32).flat_map(|nth| chunk(0x24, &[&nth.to_string()], &[])).collect();
    let stream = Synth::machine().start(4, "dirty-bitmap", 1, &[chunks.as_slice(), &[1]].concat()).finish();
    let report = Workplace::with(&stream).ramlift(&["state", "stream"]).expect_code(3).json();
    assert_eq!(report["handlers"][0]["status"], "undecoded");
}
