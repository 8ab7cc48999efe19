//! Sections with layouts of their own, and the `virtio` blob: what real
//! streams hold, and what only synthetic ones can.

mod support;

use ramlift::{ErrorKind, Stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::cli::Workplace;
use support::fixtures::{read_json, unpack};
use support::synth::{Synth, noise, str8};

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &Value) -> Vec<u8> {
    let digits = digits.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn sha256(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
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

#[test]
fn commands_are_listed_by_their_names_with_their_data() {
    let all: [(u16, &str, &[u8]); 10] = [
        (1, "OPEN_RETURN_PATH", &[]),
        (2, "PING", &[0, 0, 0, 1]),
        (3, "POSTCOPY_ADVISE", &[0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]),
        (4, "POSTCOPY_LISTEN", &[]),
        (5, "POSTCOPY_RUN", &[]),
        (6, "POSTCOPY_RAM_DISCARD", &[0, 1, b'a', 0]),
        (8, "ENABLE_COLO", &[]),
        (9, "POSTCOPY_RESUME", &[]),
        (10, "RECV_BITMAP", &[1, b'a']),
        (11, "SWITCHOVER_START", &[]),
    ];
    let stream = all.iter().fold(Synth::machine(), |stream, (number, _, data)| stream.command(*number, data));
    let stream = stream.finish();
    let stream = Stream::parse(&stream).unwrap();
    let met: Vec<_> = stream
        .commands()
        .iter()
        .map(|met| (met.command, met.name().unwrap(), stream.command_data(met)))
        .collect();
    assert_eq!(met, all);
    assert_eq!(stream.warnings(), []);
}

// Dirty bitmaps.

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

// Block migration.

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

// Handlers of single targets.

#[test]
fn the_hash_page_table_has_the_entries_that_the_guest_entered() {
    let handler = handler(&unpack("ppc64-10.0-htab"));
    assert_eq!(handler["state"]["shift"], 21);
    // As the guest of scripts/qemu_streams/programs.py enters them.
    let mut entered: Vec<(u64, u64, u64)> = [0, 1, 2, 7, 8, 300, 4000]
        .map(|index| (index, 0x1234_5000_0000 | index << 12 | 1, (0x20_0000 + (index << 12)) | 0x10))
        .to_vec();
    for chunk in handler["state"]["chunks"].as_array().unwrap() {
        let valid = from_hex(&chunk["valid"]);
        assert_eq!(valid.len() as u64, 16 * chunk["n_valid"].as_u64().unwrap());
        for (nth, entry) in valid.chunks(16).enumerate() {
            let word = |at: usize| u64::from_be_bytes(entry[at..at + 8].try_into().unwrap());
            let met = (chunk["index"].as_u64().unwrap() + nth as u64, word(0), word(8));
            let at = entered.iter().position(|entry| *entry == met);
            entered.remove(at.unwrap_or_else(|| unreachable!("{met:x?} was never entered")));
        }
    }
    assert_eq!(entered, []);
}

#[test]
fn a_hash_page_table_says_what_is_no_longer_valid_and_may_not_be_there() {
    let chunk = |index: u32, valid: u16, invalid: u16| {
        let entries = noise(index.into(), usize::from(valid) * 16);
        [index.to_be_bytes().as_slice(), &valid.to_be_bytes(), &invalid.to_be_bytes(), &entries].concat()
    };
    let part = [vec![0; 4], chunk(5, 2, 3), chunk(70_000, 0, 0xffff), vec![0; 8]].concat();
    let stream = |shift: u32, part: &[u8]| {
        Synth::machine().start(7, "spapr/htab", 1, &shift.to_be_bytes()).end(7, part).finish()
    };
    let state = handler(&stream(24, &part))["state"].clone();
    assert_eq!(state["shift"], 24);
    assert_eq!(state["chunks"][0]["valid"], to_hex(&noise(5, 32)));
    assert_eq!((&state["chunks"][0]["index"], &state["chunks"][0]["n_invalid"]), (&json!(5), &json!(3)));
    assert_eq!(
        (&state["chunks"][1]["n_valid"], &state["chunks"][1]["n_invalid"]),
        (&json!(0), &json!(0xffff))
    );
    let without = handler(&stream(u32::MAX, &[0xff; 4]));
    assert_eq!(without["state"], json!({"shift": null, "chunks": []}));
}

#[test]
fn storage_keys_are_those_that_the_guest_set() {
    let state = state(&unpack("s390x-10.0-keys"));
    let keys = device(&state, "s390-skeys")["state"].clone();
    assert_eq!(keys["has_failed"], false);
    let mut all = vec![0; 0x211];
    for range in keys["ranges"].as_array().unwrap() {
        let first = range["address"].as_u64().unwrap() as usize / 4096;
        let bytes = from_hex(&range["keys"]);
        assert_eq!(bytes.len() as u64, range["count"]);
        for (nth, key) in bytes.iter().enumerate().filter(|(nth, _)| first + nth < 0x211) {
            // But for the bits that say that a page was read or written to.
            all[first + nth] = key & 0xf8;
        }
    }
    for (page, key) in all.iter().enumerate().take(0x210) {
        let expected = if page < 0x200 { 0 } else { (page as u8 & 15) << 4 };
        assert_eq!(*key, expected, "page {page:#x}");
    }
    let clock = device(&state, "todclock")["state"].clone();
    assert_eq!(clock["high"], 0);
    assert!(clock["low"].as_u64().unwrap() > 0);
}

/// The keys that describe a device of the old style.
fn old_style(len: usize) -> String {
    format!(r#""size": {len}, "fields": [{{"name": "data", "size": {len}, "type": "buffer"}}]"#)
}

#[test]
fn a_clock_that_qemu_could_not_read_has_no_value_and_one_of_another_layout_is_its_bytes() {
    for (body, expected) in [
        (vec![1, 2, 0, 0, 0, 0, 0, 0, 0, 9], json!({"high": 2, "low": 9})),
        (vec![0], json!({"high": null, "low": null})),
        (vec![2, 3, 4], json!({"data": "020304"})),
        (vec![0, 0], json!({"data": "0000"})),
    ] {
        let stream = Synth::machine().device_as(3, "todclock", 0, &body, &old_style(body.len())).finish();
        assert_eq!(device(&state(&stream), "todclock")["state"], expected);
    }
}

#[test]
fn storage_keys_are_decoded_without_a_description_too() {
    let body = [[0, 0, 0, 0, 0, 0, 0x50, 2].as_slice(), &3u64.to_be_bytes(), &[7, 8, 9], &4u64.to_be_bytes()]
        .concat();
    let stream = Synth::machine().undescribed(3, "s390-skeys", 0, &body).finish_undescribed();
    let report = Workplace::with(&stream).ramlift(&["state", "stream"]).expect_code(3).json();
    let keys = device(&report, "s390-skeys");
    assert_eq!(keys["status"], "decoded");
    let offset = keys["offset"].clone();
    let range = json!({"offset": offset, "address": 0x5000, "count": 3, "keys": "070809"});
    assert_eq!(keys["state"], json!({"ranges": [range], "has_failed": true}));
}

#[test]
fn storage_attributes_are_gathered_from_all_sections() {
    let (eos, done) = (1u64.to_be_bytes(), 8u64.to_be_bytes());
    let more = |address: u64, values: &[u8]| {
        [&(address | 2).to_be_bytes(), (values.len() as u64).to_be_bytes().as_slice(), values].concat()
    };
    let part = [more(0x1000, &[1, 2]), more(0x7fff_f000, &[3]), eos.to_vec()].concat();
    let end = [more(0x1000, &[4]), done.to_vec(), eos.to_vec()].concat();
    let start = Synth::machine().start(6, "s390-storage_attributes", 0, &eos).part(6, &part);
    let handler = handler(&start.end(6, &end).finish());
    let ranges = handler["state"]["ranges"].as_array().unwrap();
    let met: Vec<_> = ranges.iter().map(|range| (&range["address"], &range["attributes"])).collect();
    assert_eq!(
        met,
        [
            (&json!(0x1000), &json!("0102")),
            (&json!(0x7fff_f000), &json!("03")),
            (&json!(0x1000), &json!("04"))
        ]
    );
    assert_eq!(
        (&handler["state"]["has_failed"], &handler["state"]["is_complete"]),
        (&json!(false), &json!(true))
    );
}

// What stays opaque.

const VFIO: &str = "0000:00:05.0/vfio";

fn vfio_tag(tag: u64) -> [u8; 8] {
    (0xffff_ffff_ef10_0000 | tag).to_be_bytes()
}

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
    assert_eq!((&device["length"], &device["state"]), (&json!(full.len()), &json!({"data": to_hex(&full)})));
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

#[test]
fn more_bitmaps_than_anybody_has_are_not_gathered() {
    let chunks: Vec<u8> = (0..70_000u32).flat_map(|nth| chunk(0x24, &[&nth.to_string()], &[])).collect();
    let stream = Synth::machine().start(4, "dirty-bitmap", 1, &[chunks.as_slice(), &[1]].concat()).finish();
    let report = Workplace::with(&stream).ramlift(&["state", "stream"]).expect_code(3).json();
    assert_eq!(report["handlers"][0]["status"], "undecoded");
}

// The virtio blob.

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
    let state = state(&unpack(name));
    let blobs = blobs(&state);
    let known = truth(name, "virtio");
    let known = known.as_array().unwrap();
    assert_eq!(blobs.len(), known.len());
    for truth in known {
        let first = &truth["queues"][0]["desc"];
        let (device, blob) = blobs.iter().find(|(_, blob)| blob["queues"][0]["desc"] == *first).unwrap();
        assert_eq!(blob["transport"]["type"], transport);
        let space = blob["transport"].get("config_space").map(|space| from_hex(space).len());
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
    let state = state(&unpack("s390x-10.0-keys"));
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
            }
        }
    }
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
    let report = state(&stream);
    assert_eq!(report["devices"][0]["status"], "decoded");
    report["devices"][0]["state"]["virtio"].clone()
}

fn subsection(name: &str, payload: &[u8]) -> Vec<u8> {
    support::synth::subsection(name, 1, payload)
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
    assert_eq!(virtio["device"]["bytes"], to_hex(&own_part));
    assert_eq!(virtio["subsections"], json!({"disabled": 1, "virtio/invented_since": "010203"}));
}

#[test]
fn the_request_that_a_failing_disk_could_not_answer_is_in_flight() {
    let stream = unpack("pc-10.0-virtio-in-flight");
    let state = state(&stream);
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
        assert_eq!(virtio["bytes"], to_hex(blob));
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

#[test]
fn memory_devices_before_ram_are_decoded_by_their_description() {
    // `virtio-mem-device-early` stands before the pages it explains.
    let body = [0x1_0000_0000_u64, 0x4000_0000, 0x20_0000].map(u64::to_be_bytes).concat();
    let fields = r#"{"name": "addr", "type": "uint64", "size": 8}, {"name": "region_size", "type": "uint64", "size": 8},
        {"name": "block_size", "type": "uint64", "size": 8}"#;
    let stream = Synth::machine().device(3, "0000:00:03.0/virtio-mem-device-early", &body, fields);
    let blocks = [support::synth::Block::new("main.ram", 0x1000)];
    let stream = stream.ram(&blocks, support::synth::Records::new().fill("main.ram", 0, 0)).finish();
    let state = state(&stream);
    assert_eq!(state["devices"][0]["state"]["block_size"], 0x20_0000);
}
