//! Fields of each kind, alone and in structures, arrays, lists, trees and
//! subsections.

use super::{BOOL, LEAF, check, check_keys};
use crate::support::cli::Workplace;
use crate::support::hex::{hex, unhex};
use crate::support::synth::{Synth, str8, subsection};
use serde_json::{Value, json};

/// A field of a plain type, its size being that of its bytes.
fn plain(kind: &str, bytes: &[u8]) -> String {
    format!(r#"{{"name": "x", "type": "{kind}", "size": {}}}"#, bytes.len())
}

/// Checks a field of a plain type, and that what follows it stands where it
/// should.
#[track_caller]
fn check_plain(kind: &str, digits: &str, expected: &Value) {
    let bytes = unhex(digits);
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
        &unhex("000100020003"),
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
        &unhex("0010 0102 0018 0304"),
        &json!({"segs": [{"selector": 0x10, "flags": [1, 2]}, {"selector": 0x18, "flags": [3, 4]}]}),
    );
}

#[test]
fn elements_described_one_by_one_are_one_array() {
    check(
        r#"{"name": "irq", "index": 0, "type": "uint8", "size": 1}, {"name": "irq", "index": 1, "type": "uint16", "size": 2},
           {"name": "next", "type": "uint8", "size": 1}"#,
        &unhex("01 0002 03"),
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
        &json!({"capabilities": ["616263", "", hex(b"x-long-name")], "on": true}),
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
        &unhex("01 00000001 aa  02 00000000  03 00000003 bbccdd  01"),
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
        &unhex("01 0005 01 0006 00  01"),
        &json!({"pending": [{"crw": 5}, {"crw": 6}], "on": true}),
    );
    check(&fields(1, 0), &unhex("00 01"), &json!({"pending": [], "on": true}));
}

#[test]
fn elements_of_a_list_may_differ() {
    let fields = r#"{"name": "list", "type": "qlist",
        "vmsd_name": "e", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}],
        "vmsd_name": "e", "version": 1, "fields": [{"name": "b", "type": "uint16", "size": 2}], "size": 6}"#;
    check(fields, &unhex("01 0a 01 0b0c 00"), &json!({"list": [{"a": 10}, {"b": 0x0b0c}]}));
}

#[test]
fn lists_in_an_array_are_as_long_as_their_bytes_say() {
    let fields = format!(
        r#"{{"name": "queues", "array_len": 3, "type": "qtailq",
            "vmsd_name": "e", "version": 1, "fields": [{{"name": "a", "type": "uint8", "size": 1}}], "size": 3}}, {BOOL}"#
    );
    check(
        &fields,
        &unhex("01 07 00  00  01 08 01 09 00  01"),
        &json!({"queues": [[{"a": 7}], [], [{"a": 8}, {"a": 9}]], "on": true}),
    );
}

#[test]
fn trees_with_direct_keys() {
    check(
        &format!(r#"{{"name": "tree", "type": "gtree", {}"size": 25}}"#, LEAF.repeat(2)),
        &unhex("00000002 01 0000000000000010 aa 01 ffffffffffffffff bb 00"),
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
        &unhex("00000002 01 05 aa 01 06 bb 00  01"),
        &json!({"tree": [{"key": {"low": 5}, "value": {"v": 0xaa}}, {"key": {"low": 6}, "value": {"v": 0xbb}}], "on": true}),
    );
}

#[test]
fn an_empty_tree_is_an_empty_array() {
    check(r#"{"name": "tree", "type": "gtree", "size": 5}"#, &unhex("00000000 00"), &json!({"tree": []}));
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

#[test]
fn keys_stand_in_the_order_of_the_stream() {
    let fields = r#"{"name": "z", "type": "uint8", "size": 1}, {"name": "a", "type": "uint8", "size": 1}, {"name": "m", "type": "uint8", "size": 1}"#;
    let stream = Synth::machine().device(3, "dut", &[1, 2, 3], fields).finish();
    let text = Workplace::with(&stream).ramlift(&["state", "stream"]).expect_code(0);
    let at = |key: &str| text.text().find(key).unwrap();
    assert!(at("\"z\"") < at("\"a\"") && at("\"a\"") < at("\"m\""));
}
