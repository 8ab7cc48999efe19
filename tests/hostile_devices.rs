//! Streams that nobody wrote in good faith: many sections, descriptions that
//! are of no use, and devices that make much of little, in time and memory.

mod support;

use std::fs;

use ramlift::{ErrorKind, Stream};
use support::cli::{Workplace, ramlift_within};
use support::hostile::{
    MEMORY_KIB, check, check_description, check_undecoded, exercise, in_time, one_page, state_within,
};
use support::synth::{Block, Records, Synth, noise};

#[test]
fn a_million_sections_are_read_in_time() {
    let eos = Records::new().end();
    let part = Synth::new().part(2, &eos).bytes()[8..].to_vec();
    let stream = Synth::machine()
        .ram_start(&[Block::new("main.ram", 0x1000)])
        .ram_part(Records::new().fill("main.ram", 0, 1))
        .raw(part.repeat(1_000_000))
        .ram_end(Records::new());
    check_busy(&stream.finish(), 0);
}

#[test]
fn a_million_commands_are_read_in_time() {
    let command = Synth::new().command(11, &[]).bytes()[8..].to_vec();
    check_busy(&one_page().raw(command.repeat(1_000_000)).finish(), 0);
}

#[test]
fn many_devices_without_description_are_read_in_time() {
    let mut stream = one_page();
    for id in 10..100_010 {
        stream = stream.undescribed(id, "dev", id, &[1, 2, 3]);
    }
    check_busy(&stream.finish_undescribed(), 0);
}

#[test]
fn many_devices_with_bad_descriptions_are_read_in_time() {
    check_busy(&badly_described(one_page()), 0);
}

#[test]
fn many_devices_with_bad_descriptions_and_no_footers_are_read_in_time() {
    let stream = Synth::machine().without_footers();
    let stream = stream.ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0x55));
    check_busy(&badly_described(stream), 0);
}

/// Devices described as too short, too long, and longer than the input.
fn badly_described(mut stream: Synth) -> Vec<u8> {
    let sizes = [400, 1, u64::MAX, 1 << 40];
    for id in 10..10_010u32 {
        let size = sizes[id as usize % 4];
        let field = format!(r#"{{"name": "x", "type": "buffer", "size": {size}}}"#);
        let keys = format!(r#""vmsd_name": "dev", "version": 1, "fields": [{field}]"#);
        stream = stream.device_as(id, "device-of-some-name", id, &noise(id.into(), 40), &keys);
    }
    stream.finish()
}

/// Checks that a stream that makes much work of little is read in time and
/// memory.
#[track_caller]
fn check_busy(stream: &[u8], code: i32) {
    let place = Workplace::with(stream);
    let output =
        in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-q", "-o", "out"]));
    output.expect_code(code);
    in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["info", "stream"])).expect_code(0);
}

#[test]
fn footers_everywhere_are_looked_at_once() {
    // A device whose described size is wrong and whose body is made of what
    // looks like its end, but is followed by nothing that can follow.
    let footer = [0x7e, 0, 0, 0, 3, 0x04];
    let fields = r#"{"name": "x", "type": "buffer", "size": 5}"#;
    check_undecoded(fields, &footer.repeat(1_000_000));
}

#[test]
fn heads_of_descriptions_everywhere_are_looked_at_once() {
    // Each looks like the head of a long description.
    let head = [0x00, 0x06, 0x00, 0x10, 0x00, 0x00, b'{'];
    let body = [head.repeat(300_000), b"}".repeat(100_000)].concat();
    let fields = format!(r#"{{"name": "x", "type": "buffer", "size": {}}}"#, body.len());
    state_within(&fields, &body).expect_code(0);
}

#[test]
fn descriptions_that_are_not_json_are_of_no_use() {
    for text in [
        "{}",
        "{\"devices\": 5}",
        "{\"devices\": [5]}",
        "{\"devices\": [{}]}",
        "{",
        "{}}",
        "{\"devices\": []",
    ] {
        check_description(text);
    }
    for text in ["", "null", "[]", "{\"devices\": [], }", "\u{1b}[31m"] {
        check_description(text);
    }
    check_description(b"{\"devices\": [], \"\xff\": 1}");
    check_description(vec![0; 5000]);
}

#[test]
fn descriptions_of_wrong_types_are_of_no_use() {
    let device = |keys: &str| format!(r#"{{"devices": [{{{keys}}}]}}"#);
    for keys in [
        r#""name": 5, "instance_id": 0, "fields": []"#,
        r#""name": "timer", "instance_id": "0", "fields": []"#,
        r#""name": "timer", "instance_id": 99999999999999999999, "fields": []"#,
        r#""name": "timer", "instance_id": 1e400, "fields": []"#,
        r#""name": "timer", "instance_id": 0.5, "fields": []"#,
        r#""name": "timer", "instance_id": 0, "fields": {}"#,
        r#""name": "timer", "instance_id": 0"#,
        r#""name": "timer", "fields": []"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8"}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": -1}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": 1.5}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": 18446744073709551616}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "uint8", "size": 1, "array_len": -1}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": null, "size": 1}]"#,
        r#""name": "timer", "instance_id": 0, "fields": [{"name": "x", "type": "struct", "struct": [], "size": 1}]"#,
    ] {
        check_description(device(keys));
    }
}

#[test]
fn a_description_cut_or_longer_than_the_input_is_refused() {
    let stream = one_page();
    let text = stream.description_text();
    let at = stream.offset() + 6;
    let whole = stream.describe(&text);
    let truncated: fn(&ErrorKind) -> bool = |kind| matches!(kind, ErrorKind::Truncated { .. });
    check(&whole[..whole.len() - 1], at, "description", truncated);
    let mut longer = whole.clone();
    longer[at as usize - 1] += 1;
    check(&longer, at, "description", truncated);
    let mut huge = whole;
    huge[at as usize - 4..at as usize].fill(0xff);
    check(&huge, at - 4, "description", |kind| matches!(kind, ErrorKind::Limit { .. }));
}

#[test]
fn a_description_shorter_than_it_is_is_of_no_use() {
    let stream = one_page();
    let at = stream.offset() as usize + 6;
    let mut bytes = stream.finish();
    bytes[at - 1] -= 1;
    let place = Workplace::with(&bytes);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(3);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
}

#[test]
fn nesting_without_end_takes_no_stack() {
    let nested = |open: &str, close: &str, depth: usize| {
        let fields = format!("{}{}", open.repeat(depth), close.repeat(depth));
        format!(r#"{{"devices": [{{"name": "timer", "instance_id": 0, "fields": [{fields}]}}]}}"#)
    };
    let open = r#"{"name": "x", "type": "struct", "size": 3, "struct": {"fields": ["#;
    check_description(nested(open, "]}}", 100_000));
    check_description(nested("[", "]", 1_000_000));
    check_description("{\"a\":".repeat(100_000));
    // Not deep enough to be no JSON, but deeper than any device.
    let deep = format!("{}{}", open.repeat(40), "]}}".repeat(40));
    check_undecoded(&deep, &[1, 2, 3]);
}

#[test]
fn a_description_that_names_no_device_of_the_stream_leaves_them_undecoded() {
    let text = r#"{"devices": [{"name": "cpu", "instance_id": 0, "fields": []}, {"name": "timer", "instance_id": 1, "fields": []}]}"#;
    let place = Workplace::with(&one_page().undescribed(3, "timer", 0, &[1, 2, 3]).describe(text));
    place.ramlift(&["state", "stream"]).expect_code(3);
    place.ramlift(&["extract", "stream", "-o", "out"]);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
    assert_eq!(place.json("out/state.json")["devices"][0]["bytes"], "010203");
}

#[test]
fn devices_described_twice_and_sent_twice_are_taken_in_order() {
    let fields = |name: &str| {
        format!(
            r#""vmsd_name": "dup", "version": 1, "fields": [{{"name": "{name}", "type": "uint8", "size": 1}}]"#
        )
    };
    let stream = one_page()
        .device_as(3, "dup", 0, &[1], &fields("a"))
        .device_as(4, "dup", 0, &[2], &fields("b"))
        .device_as(3, "dup", 0, &[3], &fields("c"))
        .finish();
    let output = Workplace::with(&stream).ramlift(&["state", "stream"]).expect_code(0).json();
    let states: Vec<String> =
        output["devices"].as_array().unwrap().iter().map(|device| device["state"].to_string()).collect();
    assert_eq!(states, [r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#]);
}

#[test]
fn arrays_longer_than_the_device_stay_undecoded() {
    let array = |len: u64, kind: &str, size: u64| {
        format!(r#"{{"name": "x", "array_len": {len}, "type": "{kind}", "size": {size}}}"#)
    };
    for len in [5, 1 << 20, 1 << 40, 1 << 62, u64::MAX] {
        check_undecoded(&array(len, "uint8", 1), &[1; 4]);
        check_undecoded(&array(len, "uint64", 8), &[1; 4]);
        check_undecoded(&array(len, "buffer", u64::MAX), &[1; 4]);
        check_undecoded(&array(len, "no type", 1 << 40), &[1; 4]);
        check_undecoded(&array(len, "nullptr", 1), b"0000");
    }
    for len in [1 << 40, u64::MAX] {
        check_undecoded(&array(len, "buffer", 0), &[]);
        check_undecoded(&array(len, "bitmap", 0), &[1]);
        check_undecoded(&array(len, "struct", 0), &[]);
    }
}

#[test]
fn arrays_of_nothing_in_arrays_of_nothing_stay_undecoded() {
    let mut fields = String::from(r#"{"name": "x", "array_len": 1000000, "type": "buffer", "size": 0}"#);
    for _ in 0..10 {
        fields = format!(
            r#"{{"name": "s", "array_len": 1000000, "type": "struct", "struct": {{"vmsd_name": "s", "version": 1, "fields": [{fields}]}}, "size": 0}}"#
        );
    }
    check_undecoded(&fields, &[]);
    // No element at all, again and again.
    let none = fields.replacen("1000000", "0", 1);
    state_within(&none, &[]).expect_code(0);
}

#[test]
fn a_structure_of_many_empty_arrays_repeated_for_each_byte_ends_in_time() {
    // Neither the description nor the body is large; their product is.
    let empty: Vec<String> = (0..20_000)
        .map(|nth| format!(r#"{{"name": "e{nth}", "array_len": 0, "type": "uint8", "size": 1}}"#))
        .collect();
    let element = format!(r#"{{"name": "v", "type": "uint8", "size": 1}}, {}"#, empty.join(", "));
    let fields = format!(
        r#"{{"name": "s", "array_len": 200000, "type": "struct", "struct": {{"vmsd_name": "s", "version": 1, "fields": [{element}]}}, "size": 1}}"#
    );
    let output = state_within(&fields, &[7; 200_000]);
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
}

#[test]
fn a_device_of_a_million_readings_ends_in_time() {
    // Everything that asks for another reading, and none that fits.
    let parts: Vec<String> = (0..500)
        .map(|nth| {
            format!(
                r#"{{"name": "p{nth}", "array_len": 2, "type": "uint8", "size": 1}}, {{"name": "p{nth}", "type": "nullptr", "size": 1}}, {{"name": "l{nth}", "type": "qtailq", "size": 1}}"#
            )
        })
        .collect();
    let tail = r#"{"name": "x", "array_len": 2000000, "type": "uint8", "size": 1}"#;
    let body = [b"110\0".repeat(500), vec![1; 1_999_000]].concat();
    check_undecoded(&format!("{}, {tail}", parts.join(", ")), &body);
}

#[test]
fn lists_of_nothing_take_no_more_memory_than_others() {
    // Each element is one byte of the stream.
    let list = r#"{"name": "l", "type": "qtailq", "vmsd_name": "e", "version": 1, "fields": [], "size": 1}"#;
    let output = state_within(list, &[vec![1; 16 << 20], vec![0]].concat());
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
}

#[test]
fn trees_of_a_count_that_nobody_described_stay_undecoded() {
    let tree = r#"{"name": "t", "type": "gtree", "vmsd_name": "e", "version": 1, "fields": [], "size": 3}"#;
    check_undecoded(tree, &[0xff, 0xff, 0xff, 0xff, 0]);
    check_undecoded(tree, &[0, 0, 0, 1, 1, 0, 0]);
    check_undecoded(tree, &[[0, 0, 0, 1].as_slice(), &[1; 900_000], &[0]].concat());
}

#[test]
fn many_large_arrays_fit_in_memory() {
    // 32 devices of a million elements each.
    let fields = r#"{"name": "x", "array_len": 1000000, "type": "bool", "size": 1}"#;
    let mut stream = one_page();
    for id in 10..42 {
        stream = stream.device(id, &format!("dev{id}"), &[1; 1_000_000], fields);
    }
    let place = Workplace::with(&stream.finish());
    let output = ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]);
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
}

#[test]
fn json_of_many_small_values_fits_in_memory() {
    // 16 MiB of description. Each of these is a whole structure.
    let device = |keys: &str| format!(r#"{{"devices": [{{"name": "timer", "instance_id": 0, {keys}}}]}}"#);
    for unit in ["{},", "{\"fields\":[]},"] {
        let many = unit.repeat((16 << 20) / unit.len());
        let text = device(&format!(r#""fields": [], "subsections": [{}]"#, many.trim_end_matches(',')));
        check_memory(&text);
    }
    let unit = r#"{"name":"","type":"","size":0},"#;
    let many = unit.repeat((16 << 20) / unit.len());
    check_memory(&device(&format!(r#""fields": [{}]"#, many.trim_end_matches(','))));
    let lists = r#""fields":[],"vmsd_name":"","#.repeat((16 << 20) / 25);
    check_memory(&device(&format!(r#""fields": [{{"name": "l", "type": "qtailq", {lists} "size": 1}}]"#)));
    check_memory(&device(&format!(r#""fields": [], "unknown": [{}1]"#, "1,".repeat(8 << 20))));
}

#[track_caller]
fn check_memory(text: &str) {
    let stream = one_page().undescribed(3, "timer", 0, &[1, 2, 3]).describe(text);
    let place = Workplace::with(&stream);
    let output = in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]));
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
    assert_eq!(place.read("out/main.ram"), [0x55; 4096]);
}

#[test]
fn a_long_name_that_each_element_repeats_does_not_fill_the_disk() {
    let field = format!(r#"{{"name": "{}", "type": "uint8", "size": 1}}"#, "n".repeat(64 << 10));
    let fields = format!(
        r#"{{"name": "s", "array_len": 5000, "type": "struct", "struct": {{"vmsd_name": "s", "version": 1, "fields": [{field}]}}, "size": 1}}"#
    );
    let place = Workplace::with(&one_page().device(3, "dut", &[1; 5000], &fields).finish());
    let output = in_time(|| place.ramlift(&["extract", "stream", "-o", "out"]));
    assert!(matches!(output.code, 0 | 3), "{}", output.stderr);
    let len = fs::metadata(place.join("out/state.json")).unwrap().len();
    assert!(len < 64 << 20, "{len} bytes for a stream of {}", place.read("stream").len());
}

#[test]
fn page_sizes_that_cannot_be_are_not_believed() {
    for size in [0, 1, 255, 4095, 131_072, 1 << 63, u64::MAX] {
        let stream = Synth::machine()
            .described_page_size(Some(size))
            .ram(&[Block::new("main.ram", 0x1000)], Records::new().data("main.ram", 0, &noise(1, 4096)))
            .finish();
        exercise(&stream).unwrap();
        Workplace::with(&stream).ramlift(&["info", "stream"]).expect_code(3);
    }
}

#[test]
fn bodies_that_look_like_storage_keys_one_behind_the_other_are_read_in_time() {
    // Each count leads just behind the next header, so that every body's own
    // layout runs through all that follow, in vain.
    let mut stream = Synth::machine();
    for id in 0..60_000 {
        let body = [2u64.to_be_bytes(), 29u64.to_be_bytes()].concat();
        stream = stream.undescribed(id, "s390-skeys", 0, &body);
    }
    let stream = stream.finish_undescribed();
    in_time(|| Stream::parse(&stream).map(|stream| stream.sections().len())).unwrap();
}

#[test]
fn names_that_nested_structures_repeat_take_no_more_than_a_multiple_of_the_body() {
    let name = "n".repeat(250);
    let mut fields = format!(r#"{{"name": "{name}", "type": "uint8", "size": 1}}"#);
    for _ in 0..20 {
        let vmsd = format!(r#"{{"vmsd_name": "v", "version": 1, "fields": [{fields}]}}"#);
        fields = format!(r#"{{"name": "{name}", "type": "struct", "struct": {vmsd}, "size": 1}}"#);
    }
    let vmsd = format!(r#"{{"vmsd_name": "v", "version": 1, "fields": [{fields}]}}"#);
    let body = vec![0; 20_000];
    let array = format!(
        r#"{{"name": "a", "array_len": {}, "type": "struct", "struct": {vmsd}, "size": 1}}"#,
        body.len()
    );
    let output = state_within(&array, &body);
    assert!(output.stdout.len() < 100 * body.len(), "{} bytes", output.stdout.len());
    assert_eq!(output.json()["devices"][1]["state"]["on"], true);
}
