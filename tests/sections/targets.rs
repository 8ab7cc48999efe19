//! Handlers of single targets: hash page tables, storage keys and attributes,
//! the clock of IBM Z. What is in them, and where they end.

use super::{device, from_hex, handler, old_style, state};
use crate::support::cli::Workplace;
use crate::support::fixtures::unpack;
use crate::support::hex::{hex, unhex};
use crate::support::synth::{Synth, noise};
use ramlift::Stream;
use serde_json::json;

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
    assert_eq!(state["chunks"][0]["valid"], hex(&noise(5, 32)));
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

/// The body lengths of the sections of a stream that is walked to its end.
#[track_caller]
fn body_lens(stream: &[u8]) -> Vec<u64> {
    let stream = Stream::parse(stream).unwrap();
    assert!(stream.description().is_some());
    stream.sections().iter().map(ramlift::Section::body_len).collect()
}

#[test]
fn storage_keys_end_by_their_own_layout() {
    let eos = 1u64.to_be_bytes().to_vec();
    let keys = |address: u64, keys: &[u8]| {
        [&(address | 2).to_be_bytes(), (keys.len() as u64).to_be_bytes().as_slice(), keys].concat()
    };
    // The keys look like a footer and the end of the stream.
    let full =
        [keys(0x1000, &unhex("7e 00000003 00 06")), keys(0x9000, &noise(1, 40_000)), eos.clone()].concat();
    for body in [eos, full] {
        let described =
            Synth::machine().device_as(3, "s390-skeys", 0, &body, &old_style(body.len())).finish();
        assert_eq!(body_lens(&described), [body.len() as u64]);
        let undescribed = Synth::machine().undescribed(3, "s390-skeys", 0, &body).finish_undescribed();
        let stream = Stream::parse(&undescribed).unwrap();
        assert_eq!(stream.sections()[0].body_len(), body.len() as u64);
    }
}

#[test]
fn storage_attributes_end_by_their_own_layout() {
    let (eos, done) = (1u64.to_be_bytes(), 8u64.to_be_bytes());
    let more = |address: u64, values: &[u8]| {
        [&(address | 2).to_be_bytes(), (values.len() as u64).to_be_bytes().as_slice(), values].concat()
    };
    let part = [more(0, &noise(1, 1000)), more(0x7fff_f000, &unhex("7e 00000006")), eos.to_vec()].concat();
    let end = [more(0x5000, &noise(2, 70_000)), done.to_vec(), eos.to_vec()].concat();
    let stream =
        Synth::machine().start(6, "s390-storage_attributes", 0, &eos).part(6, &part).end(6, &end).finish();
    assert_eq!(body_lens(&stream), [8, part.len() as u64, end.len() as u64]);
}

#[test]
fn hash_page_tables_end_by_their_own_layout() {
    let chunk = |index: u32, valid: u16, invalid: u16| {
        let entries = noise(index.into(), usize::from(valid) * 16);
        [index.to_be_bytes().as_slice(), &valid.to_be_bytes(), &invalid.to_be_bytes(), &entries].concat()
    };
    // Counts above 32767 are not negative, and indices may go back.
    let part =
        [vec![0; 4], chunk(5, 0xffff, 3), chunk(70_000, 0x8001, 0), chunk(1, 2, 0xffff), vec![0; 8]].concat();
    let no_table = [0xff; 4];
    let stream = Synth::machine()
        .start(7, "spapr/htab", 1, &24u32.to_be_bytes())
        .part(7, &part)
        .part(7, &[0; 12])
        .end(7, &no_table)
        .finish();
    assert_eq!(body_lens(&stream), [4, part.len() as u64, 12, 4]);
}
