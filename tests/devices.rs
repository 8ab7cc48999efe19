//! Device state: each kind of field, and the faults of QEMU's descriptions,
//! as `ramlift state` shows them.

mod support;

use ramlift::Stream;
use serde_json::{Value, json};
use support::cli::{Output, Workplace};
use support::synth::{Block, Records, Synth, noise, str8, subsection};

/// Bytes from text: hex digits, blanks between them.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

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
    assert_eq!(dut["bytes"], to_hex(body));
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

#[track_caller]
fn assert_neighbours(report: &Value) {
    assert_eq!(report["devices"].as_array().unwrap().len(), 3);
    assert_eq!(report["devices"][0]["state"], json!({"on": true}));
    assert_eq!(report["devices"][2]["state"], json!({"on": false}));
}

/// A field of a plain type, its size being that of its bytes.
fn plain(kind: &str, bytes: &[u8]) -> String {
    format!(r#"{{"name": "x", "type": "{kind}", "size": {}}}"#, bytes.len())
}

/// Checks a field of a plain type, and that what follows it stands where it
/// should.
#[track_caller]
fn check_plain(kind: &str, digits: &str, expected: &Value) {
    let bytes = hex(digits);
    let fields = format!(r#"{}, {{"name": "next", "type": "uint16", "size": 2}}"#, plain(kind, &bytes));
    let body = [bytes.as_slice(), &[0xbe, 0xef]].concat();
    check(&fields, &body, &json!({"x": expected, "next": 0xbeef}));
}

#[test]
fn truth_values() {
    check_plain("bool", "00", &json!(false));
    check_plain("bool", "01", &json!(true));
    check_plain("powered_off", "01", &json!(true));
}

#[test]
fn signed_numbers() {
    check_plain("int8", "ff", &json!(-1));
    check_plain("int16", "8000", &json!(i16::MIN));
    check_plain("int32", "80000000", &json!(i32::MIN));
    check_plain("int64", "8000000000000000", &json!(i64::MIN));
    check_plain("int64", "7fffffffffffffff", &json!(i64::MAX));
    check_plain("int32 equal", "fffffffe", &json!(-2));
}

#[test]
fn unsigned_numbers() {
    check_plain("uint8", "ff", &json!(0xff));
    check_plain("uint16", "fffe", &json!(0xfffe));
    check_plain("uint32", "fffefdfc", &json!(0xfffe_fdfc_u32));
    check_plain("uint64", "ffffffffffffffff", &json!(u64::MAX));
    check_plain("uint8 equal", "80", &json!(0x80));
    check_plain("uint16 equal", "8000", &json!(0x8000));
    check_plain("uint32 equal", "80000000", &json!(0x8000_0000_u32));
    check_plain("int32_as_uint16", "8001", &json!(0x8001));
    check_plain("uint16_from_uint8", "81", &json!(0x81));
    check_plain("fd", "20", &json!(0x20));
}

#[test]
fn the_check_called_int64_equal_is_of_an_unsigned_number() {
    check_plain("int64 equal", "ffffffffffffffff", &json!(u64::MAX));
}

#[test]
fn le_means_less_or_equal_and_not_little_endian() {
    check_plain("int32 le", "00000002", &json!(2));
    check_plain("int32 le", "fffffffd", &json!(-3));
}

#[test]
fn floating_point_numbers_are_their_bits() {
    check_plain("CPU_Double_U", "400921fb54442d18", &json!(0x4009_21fb_5444_2d18_u64));
    check_plain("float64", "c00921fb54442d18", &json!(0xc009_21fb_5444_2d18_u64));
}

#[test]
fn timers_are_signed_and_all_ones_is_not_armed() {
    check_plain("timer", "ffffffffffffffff", &json!(-1));
    check_plain("timer", "00000000000003e8", &json!(1000));
}

#[test]
fn registers_take_the_size_that_is_described() {
    check_plain("fpr", "0123456789abcdef", &json!(0x0123_4567_89ab_cdef_u64));
    check_plain("fpr", "00000000000000010000000000000002", &json!([1, 2]));
    check_plain("fsr", "89abcdef", &json!(0x89ab_cdef_u32));
    check_plain("fsr", "89abcdef00000000", &json!(0x89ab_cdef_0000_0000_u64));
    check_plain("psw", "80000001", &json!(0x8000_0001_u32));
    check_plain("psw", "8000000100000000", &json!(0x8000_0001_0000_0000_u64));
    check_plain("fpcr", "00000000ffffffff", &json!(0xffff_ffff_u32));
    check_plain("fpsr", "00000000ffffffff", &json!(0xffff_ffff_u32));
    check_plain("slbe", "000000000800000000000000000000ff", &json!([0x0800_0000, 0xff]));
    check_plain("avr", "00000000000000010000000000000002", &json!([1, 2]));
    for kind in ["cpsr", "fpscr", "psr", "xcc", "sr", "msr", "cpu/altivec/vscr"] {
        check_plain(kind, "80010203", &json!(0x8001_0203_u32));
    }
    for kind in ["vsr", "pstate64"] {
        check_plain(kind, "8001020304050607", &json!(0x8001_0203_0405_0607_u64));
    }
    for kind in ["sreg", "rampD", "rampX", "rampY", "rampZ", "eind"] {
        check_plain(kind, "81", &json!(0x81));
    }
}

#[test]
fn bitmaps_are_words() {
    check_plain("bitmap", "00000000000000038000000000000000", &json!([3, 0x8000_0000_0000_0000_u64]));
}

#[test]
fn opaque_fields_are_hex() {
    for kind in [
        "buffer",
        "unused_buffer",
        "pci config",
        "msix state",
        "shpc",
        "virtio-gpu",
        "blob",
        "scsi-requests",
        "tlb entry",
        "tlb_entry",
        "unknown",
        "a type of some later QEMU",
    ] {
        check_plain(kind, "00017eff", &json!("00017eff"));
    }
    check_plain("buffer", "", &json!(""));
}

#[test]
fn interrupt_lines_are_four_numbers() {
    check_plain("pci irq state", "00000000 00000001 00000000 00000001", &json!([0, 1, 0, 1]));
}

#[test]
fn counted_bytes_are_hex_without_their_length() {
    check_plain("capability", "03 616263", &json!("616263"));
    check_plain("capability", "00", &json!(""));
    check_plain("GByteArray", "00000003 616263", &json!("616263"));
    check_plain("usb-redir-parser", "00000002 0102", &json!("0102"));
    check_plain(
        "usb-redir-packet-id-q",
        "00000002 0000000000000001 8000000000000000",
        &json!([1, 1u64 << 63]),
    );
}

#[test]
fn lists_of_opaque_pieces_are_hex_as_they_stand() {
    for (kind, digits) in [
        ("usb-redir-bufpq", "00000002 00000003 00000000 616263 00000000 00000001"),
        ("virtio-fs back-end state", "00000002 6162 00000001 63 00000000"),
        ("virtio-net vhost-user backend state", "00000000"),
        ("irqs", "ffffffffffffffff"),
    ] {
        check_plain(kind, digits, &json!(digits.replace(' ', "")));
    }
    let irqs = format!("0000000000000002 {}", "5a".repeat(144));
    check_plain("irqs", &irqs, &json!(irqs.replace(' ', "")));
}

#[test]
fn structures_are_objects() {
    let point = r#"{"vmsd_name": "point", "version": 1, "fields": [
        {"name": "x", "type": "int8", "size": 1}, {"name": "y", "type": "int8", "size": 1}]}"#;
    let fields = format!(r#"{{"name": "at", "type": "struct", "struct": {point}, "size": 2}}"#);
    check(&fields, &[1, 0xff], &json!({"at": {"x": 1, "y": -1}}));
}

#[test]
fn structures_described_in_the_field_are_objects() {
    for kind in ["vstruct", "tmp", "vdagent/cbinfos"] {
        let fields = format!(
            r#"{{"name": "at", "type": "{kind}", "vmsd_name": "point", "version": 1, "fields": [
                {{"name": "x", "type": "int8", "size": 1}}], "size": 1}}, {BOOL}"#
        );
        check(&fields, &[5, 1], &json!({"at": {"x": 5}, "on": true}));
    }
}

#[test]
fn structures_without_bytes_are_empty_objects() {
    let fields = format!(
        r#"{{"name": "none", "type": "struct", "struct": {{"vmsd_name": "none", "version": 1, "fields": []}}, "size": 0}}, {BOOL}"#
    );
    check(&fields, &[1], &json!({"none": {}, "on": true}));
}

#[test]
fn arrays_are_arrays() {
    check(
        r#"{"name": "regs", "array_len": 3, "type": "uint16", "size": 2}"#,
        &hex("000100020003"),
        &json!({"regs": [1, 2, 3]}),
    );
}

#[test]
fn an_array_of_one_element_by_its_index_is_an_array() {
    check(r#"{"name": "regs", "index": 0, "type": "uint8", "size": 1}"#, &[9], &json!({"regs": [9]}));
}

#[test]
fn arrays_of_structures_are_arrays_of_objects() {
    let segment = r#"{"vmsd_name": "segment", "version": 1, "fields": [
        {"name": "selector", "type": "uint16", "size": 2}, {"name": "flags", "array_len": 2, "type": "uint8", "size": 1}]}"#;
    check(
        &format!(r#"{{"name": "segs", "array_len": 2, "type": "struct", "struct": {segment}, "size": 4}}"#),
        &hex("0010 0102 0018 0304"),
        &json!({"segs": [{"selector": 0x10, "flags": [1, 2]}, {"selector": 0x18, "flags": [3, 4]}]}),
    );
}

#[test]
fn elements_described_one_by_one_are_one_array() {
    check(
        r#"{"name": "irq", "index": 0, "type": "uint8", "size": 1}, {"name": "irq", "index": 1, "type": "uint16", "size": 2},
           {"name": "next", "type": "uint8", "size": 1}"#,
        &hex("01 0002 03"),
        &json!({"irq": [1, 2], "next": 3}),
    );
}

#[test]
fn names_that_look_like_indices_are_names() {
    check(
        r#"{"name": "cr[0]", "type": "uint8", "size": 1}, {"name": "cr[2]", "type": "uint8", "size": 1}"#,
        &[1, 2],
        &json!({"cr[0]": 1, "cr[2]": 2}),
    );
}

#[test]
fn elements_of_varying_length_are_read_by_their_own_lengths() {
    // QEMU's "capabilities": `size` is that of the first one.
    check(
        &format!(r#"{{"name": "capabilities", "array_len": 3, "type": "capability", "size": 4}}, {BOOL}"#),
        &[str8("abc"), str8(""), str8("x-long-name"), vec![1]].concat(),
        &json!({"capabilities": ["616263", "", to_hex(b"x-long-name")], "on": true}),
    );
}

#[test]
fn structures_of_varying_length_are_read_by_their_own_lengths() {
    let chunk = r#"{"vmsd_name": "chunk", "version": 1, "fields": [
        {"name": "id", "type": "uint8", "size": 1}, {"name": "bytes", "type": "GByteArray", "size": 5}]}"#;
    check(
        &format!(
            r#"{{"name": "chunks", "array_len": 3, "type": "struct", "struct": {chunk}, "size": 6}}, {BOOL}"#
        ),
        &hex("01 00000001 aa  02 00000000  03 00000003 bbccdd  01"),
        &json!({"chunks": [{"id": 1, "bytes": "aa"}, {"id": 2, "bytes": ""}, {"id": 3, "bytes": "bbccdd"}], "on": true}),
    );
}

#[test]
fn lists_repeat_their_keys_once_for_each_element() {
    // Two elements: the keys stand twice in one object. Plain JSON readers
    // keep the last or refuse the text.
    let fields = |size: usize, elements: usize| {
        let one =
            r#""vmsd_name": "crw", "version": 1, "fields": [{"name": "crw", "type": "uint16", "size": 2}], "#;
        format!(r#"{{"name": "pending", "type": "qtailq", {}"size": {size}}}, {BOOL}"#, one.repeat(elements))
    };
    check(
        &fields(7, 2),
        &hex("01 0005 01 0006 00  01"),
        &json!({"pending": [{"crw": 5}, {"crw": 6}], "on": true}),
    );
    check(&fields(1, 0), &hex("00 01"), &json!({"pending": [], "on": true}));
}

#[test]
fn elements_of_a_list_may_differ() {
    let fields = r#"{"name": "list", "type": "qlist",
        "vmsd_name": "e", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}],
        "vmsd_name": "e", "version": 1, "fields": [{"name": "b", "type": "uint16", "size": 2}], "size": 6}"#;
    check(fields, &hex("01 0a 01 0b0c 00"), &json!({"list": [{"a": 10}, {"b": 0x0b0c}]}));
}

#[test]
fn lists_in_an_array_are_as_long_as_their_bytes_say() {
    let fields = format!(
        r#"{{"name": "queues", "array_len": 3, "type": "qtailq",
            "vmsd_name": "e", "version": 1, "fields": [{{"name": "a", "type": "uint8", "size": 1}}], "size": 3}}, {BOOL}"#
    );
    check(
        &fields,
        &hex("01 07 00  00  01 08 01 09 00  01"),
        &json!({"queues": [[{"a": 7}], [], [{"a": 8}, {"a": 9}]], "on": true}),
    );
}

const LEAF: &str =
    r#""vmsd_name": "leaf", "version": 1, "fields": [{"name": "v", "type": "uint8", "size": 1}], "#;

#[test]
fn trees_with_direct_keys() {
    check(
        &format!(r#"{{"name": "tree", "type": "gtree", {}"size": 25}}"#, LEAF.repeat(2)),
        &hex("00000002 01 0000000000000010 aa 01 ffffffffffffffff bb 00"),
        &json!({"tree": [{"key": 0x10, "value": {"v": 0xaa}}, {"key": u64::MAX, "value": {"v": 0xbb}}]}),
    );
}

#[test]
fn trees_with_structures_as_keys() {
    let key =
        r#""vmsd_name": "interval", "version": 1, "fields": [{"name": "low", "type": "uint8", "size": 1}], "#;
    let entry = [key, LEAF].concat();
    check(
        &format!(r#"{{"name": "tree", "type": "gtree", {}"size": 11}}, {BOOL}"#, entry.repeat(2)),
        &hex("00000002 01 05 aa 01 06 bb 00  01"),
        &json!({"tree": [{"key": {"low": 5}, "value": {"v": 0xaa}}, {"key": {"low": 6}, "value": {"v": 0xbb}}], "on": true}),
    );
}

#[test]
fn an_empty_tree_is_an_empty_array() {
    check(r#"{"name": "tree", "type": "gtree", "size": 5}"#, &hex("00000000 00"), &json!({"tree": []}));
}

#[test]
fn subsections_are_objects_behind_the_fields() {
    let inner =
        r#"{"vmsd_name": "dut/a/b", "version": 2, "fields": [{"name": "z", "type": "uint8", "size": 1}]}"#;
    let keys = format!(
        r#""vmsd_name": "dut", "version": 1, "fields": [{BOOL}], "subsections": [
            {{"vmsd_name": "dut/a", "version": 1, "fields": [{{"name": "y", "type": "uint8", "size": 1}}], "subsections": [{inner}]}},
            {{"vmsd_name": "dut/c", "version": 1, "fields": []}}]"#
    );
    let body =
        [vec![1], subsection("dut/a", 1, &[2]), subsection("dut/a/b", 2, &[3]), subsection("dut/c", 1, &[])]
            .concat();
    check_keys(&keys, &body, &json!({"on": true, "dut/a": {"y": 2, "dut/a/b": {"z": 3}}, "dut/c": {}}));
}

#[test]
fn subsections_of_structures_stand_inside_them() {
    let point = r#"{"vmsd_name": "p", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}],
        "subsections": [{"vmsd_name": "p/more", "version": 1, "fields": [{"name": "y", "type": "uint8", "size": 1}]}]}"#;
    let fields = format!(r#"{{"name": "at", "type": "struct", "struct": {point}, "size": 14}}, {BOOL}"#);
    let body = [vec![1], subsection("p/more", 1, &[2]), vec![1]].concat();
    check(&fields, &body, &json!({"at": {"x": 1, "p/more": {"y": 2}}, "on": true}));
}

#[test]
fn a_device_of_the_old_style_is_its_bytes() {
    let keys = r#""size": 3, "fields": [{"name": "data", "size": 3, "type": "buffer"}]"#;
    check_keys(keys, &[1, 2, 3], &json!({"data": "010203"}));
}

#[test]
fn a_device_without_fields_has_no_bytes() {
    check("", &[], &json!({}));
}

const ENTRY: &str = r#""struct": {"vmsd_name": "e", "version": 1, "fields": [{"name": "v", "type": "uint16", "size": 2}]}, "size": 2"#;

/// A part of an array of pointers: structures.
fn entries(keys: &str) -> String {
    format!(r#"{{"name": "p", {keys} "type": "struct", {ENTRY}}}"#)
}

/// A part of an array of pointers: marked by type.
fn markers(kind: &str, keys: &str) -> String {
    format!(r#"{{"name": "p", {keys} "type": "{kind}", "size": 1}}"#)
}

/// A NULL as QEMU up to 9.1 described it.
fn empty_struct(keys: &str) -> String {
    format!(r#"{{"name": "p", {keys} "type": "struct", "struct": {{}}, "size": 1}}"#)
}

/// Checks an array of pointers that stands before another field.
#[track_caller]
fn check_pointers(parts: &[String], digits: &str, expected: &Value) {
    check(
        &format!("{}, {BOOL}", parts.join(", ")),
        &[hex(digits), vec![1]].concat(),
        &json!({"p": expected, "on": true}),
    );
}

#[test]
fn null_pointers_up_to_9_1_are_empty_structures_of_size_1() {
    let parts = [entries(r#""index": 0,"#), empty_struct(r#""index": 1,"#), entries(r#""index": 2,"#)];
    check_pointers(&parts, "0005 30 0006", &json!([{"v": 5}, null, {"v": 6}]));
    check_pointers(&[empty_struct(r#""array_len": 3,"#)], "303030", &json!([null, null, null]));
}

#[test]
fn an_array_up_to_9_1_that_is_described_by_its_first_element_stays_undecoded() {
    // QEMU 7.2's css: all elements are described as NULL, and one is not.
    check_undecoded(&empty_struct(r#""array_len": 4,"#), &hex("30 0005 30 30"));
    check_undecoded(&entries(r#""array_len": 4,"#), &hex("0005 30 30 30"));
}

#[test]
fn null_pointers_since_10_0_are_runs() {
    let parts =
        [markers("nullptr", r#""array_len": 2,"#), entries(r#""array_len": 2,"#), markers("nullptr", "")];
    check_pointers(&parts, "3030 0005 0006 30", &json!([null, null, {"v": 5}, {"v": 6}, null]));
}

#[test]
fn the_first_run_since_10_0_may_be_counted_as_the_whole_array() {
    let parts = [entries(r#""array_len": 5,"#), markers("nullptr", r#""array_len": 3,"#)];
    check_pointers(&parts, "0005 0006 303030", &json!([{"v": 5}, {"v": 6}, null, null, null]));
    let parts = [
        entries(r#""array_len": 5,"#),
        markers("nullptr", ""),
        entries(r#""array_len": 2,"#),
        markers("nullptr", ""),
    ];
    check_pointers(&parts, "0005 30 0006 0007 30", &json!([{"v": 5}, null, {"v": 6}, {"v": 7}, null]));
}

#[test]
fn null_pointers_since_10_0_among_elements_that_differ_count_down() {
    // Each part is one element, whatever its array_len says.
    let parts = [
        entries(r#""index": 0,"#),
        markers("nullptr", r#""index": 1, "array_len": 3,"#),
        markers("nullptr", r#""index": 2, "array_len": 2,"#),
        markers("nullptr", ""),
    ];
    check_pointers(&parts, "0005 303030", &json!([{"v": 5}, null, null, null]));
    let parts = [
        markers("nullptr", r#""index": 0, "array_len": 2,"#),
        markers("nullptr", r#""index": 1, "array_len": 3,"#),
        entries(r#""index": 2,"#),
        markers("nullptr", r#""index": 3, "array_len": 2,"#),
        markers("nullptr", ""),
    ];
    check_pointers(&parts, "3030 0005 3030", &json!([null, null, {"v": 5}, null, null]));
}

#[test]
fn pointers_since_11_0_are_marked() {
    let parts = [markers("ptr-marker", r#""array_len": 2,"#), entries(""), markers("ptr-marker", "")];
    check_pointers(&parts, "3030 0005 30", &json!([null, null, {"v": 5}, null]));
}

#[test]
fn a_mark_of_presence_since_11_0_precedes_its_element() {
    let mark = || markers("ptr-marker", "");
    let parts = [mark(), entries(""), mark(), mark(), entries("")];
    check_pointers(&parts, "31 0005 30 31 0006", &json!([{"v": 5}, null, {"v": 6}]));
}

#[test]
fn a_last_single_null_since_11_0_is_missing_from_the_description() {
    // A run of one behind a longer run is not described at all.
    let parts = [markers("ptr-marker", r#""array_len": 2,"#), entries(r#""array_len": 2,"#)];
    check_pointers(&parts, "3030 0005 0006 30", &json!([null, null, {"v": 5}, {"v": 6}, null]));
}

#[test]
fn the_first_run_since_11_0_may_be_counted_as_the_whole_array() {
    let parts = [entries(r#""array_len": 6,"#), markers("ptr-marker", r#""array_len": 4,"#)];
    check_pointers(&parts, "0005 0006 30303030", &json!([{"v": 5}, {"v": 6}, null, null, null, null]));
}

#[test]
fn a_missing_null_is_found_before_many_structures() {
    // What is wrong shows only at the very end of the body.
    let parts = [markers("ptr-marker", r#""array_len": 2,"#), entries(r#""array_len": 2,"#)];
    let leaf =
        r#"{"vmsd_name": "leaf", "version": 1, "fields": [{"name": "v", "type": "uint8", "size": 1}]}"#;
    let inner =
        format!(r#"{{"name": "leaves", "array_len": 2, "type": "struct", "struct": {leaf}, "size": 1}}"#);
    let outer = format!(r#"{{"vmsd_name": "queue", "version": 1, "fields": [{inner}]}}"#);
    let queues =
        format!(r#"{{"name": "queues", "array_len": 300, "type": "struct", "struct": {outer}, "size": 2}}"#);
    let body = [hex("3030 0005 0006 30"), [1, 2].repeat(300)].concat();
    check(
        &format!("{}, {queues}", parts.join(", ")),
        &body,
        &json!({
            "p": [null, null, {"v": 5}, {"v": 6}, null],
            "queues": vec![json!({"leaves": [{"v": 1}, {"v": 2}]}); 300],
        }),
    );
}

#[test]
fn a_body_that_is_longer_or_shorter_than_described_stays_undecoded() {
    let fields = r#"{"name": "x", "type": "uint32", "size": 4}"#;
    check_undecoded(fields, &[1, 2, 3]);
    check_undecoded(fields, &[1, 2, 3, 4, 5]);
    check_undecoded(fields, &[]);
}

#[test]
fn a_marker_that_is_none_stays_undecoded() {
    check_undecoded(&markers("nullptr", ""), &[0x31]);
    check_undecoded(&markers("ptr-marker", ""), &[0x32]);
}

#[test]
fn a_list_whose_bytes_are_no_list_stays_undecoded() {
    let list = format!(
        r#"{{"name": "list", "type": "qtailq", {LEAF}"size": 4}}, {{"name": "x", "type": "uint8", "size": 1}}"#
    );
    check_undecoded(&list, &hex("02 05 00"));
    let tree = format!(r#"{{"name": "tree", "type": "gtree", {LEAF}"size": 20}}"#);
    check_undecoded(&tree, &hex("00000003 01 0000000000000010 aa 00"));
}

#[test]
fn a_subsection_of_another_name_stays_undecoded() {
    let keys = format!(
        r#""vmsd_name": "dut", "version": 1, "fields": [{BOOL}], "subsections": [{{"vmsd_name": "dut/a", "version": 1, "fields": []}}]"#
    );
    let stream = between_others(Synth::machine(), &keys, &[vec![1], subsection("dut/b", 1, &[])].concat());
    let (report, _) = state_of(&stream, 3);
    assert_neighbours(&report);
    assert_eq!(report["devices"][1]["status"], "undecoded");
}

#[test]
fn one_undecoded_device_leaves_extraction_complete() {
    let keys = r#""vmsd_name": "dut", "version": 1, "fields": [{"name": "x", "type": "uint32", "size": 4}]"#;
    let place = Workplace::with(&between_others(Synth::machine(), keys, &[1, 2]));
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let state = place.json("out/state.json");
    assert_neighbours(&state);
    assert_eq!(state["devices"][1]["bytes"], "0102");
    let warnings = place.json("out/manifest.json")["warnings"].to_string();
    assert!(warnings.contains("dut"), "{warnings}");
    // Not asked for, not missed.
    place.ramlift(&["state", "stream", "--device", "be*"]).expect_code(0);
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
fn keys_stand_in_the_order_of_the_stream() {
    let fields = r#"{"name": "z", "type": "uint8", "size": 1}, {"name": "a", "type": "uint8", "size": 1}, {"name": "m", "type": "uint8", "size": 1}"#;
    let stream = Synth::machine().device(3, "dut", &[1, 2, 3], fields).finish();
    let text = Workplace::with(&stream).ramlift(&["state", "stream"]).expect_code(0);
    let at = |key: &str| text.text().find(key).unwrap();
    assert!(at("\"z\"") < at("\"a\"") && at("\"a\"") < at("\"m\""));
}

#[test]
fn without_a_description_devices_are_found_and_stay_undecoded() {
    let stream = Synth::machine()
        .ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0))
        .undescribed(3, "timer", 0, &[1, 2, 3])
        .undescribed(4, "0000:00:02.0/vga", 0, &noise(3, 500))
        .finish_undescribed();
    let (report, output) = state_of(&stream, 3);
    let names: Vec<_> =
        report["devices"].as_array().unwrap().iter().map(|device| device["name"].clone()).collect();
    assert_eq!(names, ["timer", "0000:00:02.0/vga"]);
    assert_eq!(report["devices"][0]["bytes"], "010203");
    assert!(!output.stderr.is_empty());
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert_eq!(support::cli::files_in(place.join("out")), ["main.ram", "manifest.json", "state.json"]);
    place.ramlift(&["desc", "stream"]).expect_code(1);
}

#[test]
fn without_footers_and_description_ram_is_complete() {
    let stream = Synth::new()
        .without_footers()
        .ram(&[Block::new("main.ram", 0x1000)], Records::new().fill("main.ram", 0, 0x55))
        .undescribed(3, "timer", 0, &[1, 2, 3])
        .undescribed(4, "cpu", 0, &noise(3, 500))
        .finish_undescribed();
    let place = Workplace::with(&stream);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert_eq!(place.read("out/main.ram"), [0x55; 0x1000]);
    place.ramlift(&["state", "stream"]).expect_code(3);
}

#[test]
fn a_device_before_ram_is_decoded() {
    // virtio-mem, since QEMU 8.0: described as the first device.
    let early = "0000:00:03.0/virtio-mem-device-early";
    let body = [hex("0000000000000002"), noise(5, 24)].concat();
    let fields =
        r#"{"name": "size", "type": "uint64", "size": 8}, {"name": "bitmap", "type": "buffer", "size": 24}"#;
    for stream in [Synth::machine(), Synth::machine().without_footers()] {
        let stream = stream
            .ram_start(&[Block::new("main.ram", 0x2000)])
            .device(9, early, &body, fields)
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
        assert_eq!(report["devices"][1]["state"], json!({"blob": to_hex(&other)}), "early: {early}");
    }
}

#[test]
fn a_body_that_looks_like_its_own_footer_is_read_whole() {
    // The footer's bytes and a header stand in the middle of the body.
    let fake = [hex("7e 00000003 04 00000004"), str8("behind"), vec![0; 8]].concat();
    let fields = format!(r#"{{"name": "blob", "type": "buffer", "size": {}}}"#, fake.len());
    let stream = Synth::machine().device(3, "dut", &fake, &fields).device(4, "behind", &[1], BOOL).finish();
    let (report, _) = state_of(&stream, 0);
    assert_eq!(report["devices"][0]["state"], json!({"blob": to_hex(&fake)}));
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

/// The body lengths of the sections of a stream that is walked to its end.
#[track_caller]
fn body_lens(stream: &[u8]) -> Vec<u64> {
    let stream = Stream::parse(stream).unwrap();
    assert!(stream.description().is_some());
    stream.sections().iter().map(ramlift::Section::body_len).collect()
}

/// The keys that describe a device of the old style.
fn old_style(len: usize) -> String {
    format!(r#""size": {len}, "fields": [{{"name": "data", "size": {len}, "type": "buffer"}}]"#)
}

#[test]
fn storage_keys_end_by_their_own_layout() {
    let eos = 1u64.to_be_bytes().to_vec();
    let keys = |address: u64, keys: &[u8]| {
        [&(address | 2).to_be_bytes(), (keys.len() as u64).to_be_bytes().as_slice(), keys].concat()
    };
    // The keys look like a footer and the end of the stream.
    let full =
        [keys(0x1000, &hex("7e 00000003 00 06")), keys(0x9000, &noise(1, 40_000)), eos.clone()].concat();
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
    let part = [more(0, &noise(1, 1000)), more(0x7fff_f000, &hex("7e 00000006")), eos.to_vec()].concat();
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

#[test]
fn a_footer_before_zeros_inside_a_wrongly_described_body_ends_nothing() {
    // A footer and two zeros look like the last device of a stream.
    let body = [hex("01 02 7e 00000003 00 00"), vec![9; 20]].concat();
    let fields = r#"{"name": "x", "type": "buffer", "size": 1}"#;
    let stream = Synth::machine().device(3, "dut", &body, fields).device(4, "behind", &[1], BOOL).finish();
    let (report, _) = state_of(&stream, 3);
    assert_eq!(report["devices"][0]["bytes"], to_hex(&body));
    assert_eq!(report["devices"][1]["state"], json!({"on": true}));
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
fn a_faulty_description_of_one_device_is_of_no_harm_to_others() {
    for fields in [
        r#"{"name": "x", "type": "uint8", "size": -1}"#,
        r#"{"name": "x", "type": "uint8"}"#,
        r#"{"name": "x", "array_len": -1, "type": "uint8", "size": 1}"#,
        r#"{"name": "x", "type": "struct", "struct": null, "size": 1}"#,
    ] {
        let stream = Synth::machine()
            .device(3, "before", &[1], BOOL)
            .device(4, "dut", &[7], fields)
            .device(5, "behind", &[0], BOOL)
            .finish();
        let (report, output) = state_of(&stream, 3);
        assert_eq!(report["devices"][0]["state"], json!({"on": true}), "{fields}");
        assert_eq!(report["devices"][1]["bytes"], "07", "{fields}");
        assert_eq!(report["devices"][2]["state"], json!({"on": false}), "{fields}");
        assert!(output.stderr.contains("dut"), "{}", output.stderr);
    }
}
