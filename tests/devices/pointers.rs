//! Arrays of pointers, of which each QEMU describes those that are NULL in
//! another way.

use super::{BOOL, check, check_undecoded};
use crate::support::hex::unhex;
use serde_json::{Value, json};

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
        &[unhex(digits), vec![1]].concat(),
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
    check_undecoded(&empty_struct(r#""array_len": 4,"#), &unhex("30 0005 30 30"));
    check_undecoded(&entries(r#""array_len": 4,"#), &unhex("0005 30 30 30"));
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
    let body = [unhex("3030 0005 0006 30"), [1, 2].repeat(300)].concat();
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
fn a_marker_that_is_none_stays_undecoded() {
    check_undecoded(&markers("nullptr", ""), &[0x31]);
    check_undecoded(&markers("ptr-marker", ""), &[0x32]);
}
