//! Streams that nobody wrote in good faith: their names stay in the output
//! directory and do no harm on a terminal, and what they claim to be takes no
//! disk.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::cli::{Output, Workplace, binary, entries_of, files_in, ramlift_in, ramlift_within};
use support::hostile::{MEMORY_KIB, exercise, in_time, one_page, two_pages};
use support::synth::{Block, Records, Synth, noise};

/// Names that would do harm as paths or on a terminal.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "../x",
        "../../x",
        "/etc/passwd",
        "//x",
        "a/../../b",
        ".",
        "..",
        "...",
        "/",
        "//",
        "a/",
        "a",
        "A",
        "./a",
        "a\0b",
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "line\nbreak\r",
        "%2e%2e/x",
        "%",
        "manifest.json",
        "state.json",
        "desc.json",
        "manifest.json/x",
        "\u{202e}gnp.exe",
        "\u{9b}31m",
        "\u{200b}",
        " ",
        "-rf",
        "~",
        "\\..\\x",
        ".ramlift-incomplete-x",
        ".ramlift-incomplete-x/y",
        "desc.json~2",
        "a~2",
        "CON",
        "*",
        "a/b/c/../../../../d",
    ]
    .map(|name| name.as_bytes().to_vec())
    .into();
    names.extend([vec![b'a'; 255], [vec![b'a'; 254], vec![b'b']].concat(), vec![0xff; 255], vec![0x1b; 255]]);
    names.extend([b"/".repeat(255), b"a/".repeat(127), b"../".repeat(85), b"\xff\xfe/..".to_vec()]);
    names
}

/// One page for each name, filled with its number.
fn named_blocks() -> Vec<u8> {
    let names = names();
    let blocks: Vec<Block> = names.iter().map(|name| Block::new(name, 0x1000)).collect();
    let records = (1..).zip(&names).fold(Records::new(), |records, (nth, name)| records.fill(name, 0, nth));
    Synth::new()
        .configuration(b"\x1b[31mpc\x07")
        .ram(&blocks, records)
        .device(3, "timer", &[1], r#"{"name": "on", "type": "bool", "size": 1}"#)
        .finish()
}

#[track_caller]
fn assert_harmless_on_a_terminal(output: &Output) {
    let is_harmful = |c: &char| {
        c.is_control() && *c != '\n' || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
    };
    for text in [output.text(), &output.stderr] {
        assert_eq!(text.chars().find(is_harmful), None, "{text:?}");
    }
}

#[test]
fn names_do_not_leave_the_output_directory() {
    let place = Workplace::with(&named_blocks());
    fs::create_dir_all(place.join("a/b")).unwrap();
    fs::rename(place.join("stream"), place.join("a/b/stream")).unwrap();
    let output = ramlift_in(place.join("a/b"), &["extract", "stream", "-o", "out"]).expect_code(0);
    assert_harmless_on_a_terminal(&output);
    assert_eq!(entries_of(place.path()), ["a"]);
    assert_eq!(entries_of(place.join("a")), ["b"]);
    assert_eq!(entries_of(place.join("a/b")), ["out", "stream"]);
    let manifest = place.json("a/b/out/manifest.json");
    let mut files: Vec<&str> =
        manifest["blocks"].as_array().unwrap().iter().map(|block| block["file"].as_str().unwrap()).collect();
    for (nth, file) in (1..).zip(&files) {
        let metadata = fs::symlink_metadata(place.join("a/b/out").join(file)).unwrap();
        assert!(metadata.is_file(), "{file:?}");
        assert_eq!(place.read(&format!("a/b/out/{file}")), [nth; 4096], "{file:?}");
    }
    files.extend(["desc.json", "manifest.json", "state.json"]);
    files.sort_unstable();
    assert_eq!(files_in(place.join("a/b/out")), files, "one file for each block, and the three");
}

#[test]
fn names_do_no_harm_on_a_terminal() {
    let place = Workplace::with(&named_blocks());
    assert_harmless_on_a_terminal(&place.ramlift(&["info", "stream"]).expect_code(0));
    assert_harmless_on_a_terminal(&place.ramlift(&["extract", "stream", "--block", "none"]).expect_code(1));
    let unlisted = two_pages().ram_part(Records::new().fill("\x1b[31m", 0, 0)).finish();
    assert_harmless_on_a_terminal(&Workplace::with(&unlisted).ramlift(&["info", "stream"]).expect_code(1));
}

#[test]
fn names_in_a_description_do_no_harm_on_a_terminal() {
    let evil = r"\u001b[31m\u009b\u202e\n";
    let wrong = format!(r#"{{"name": "{evil}", "type": "nullptr", "size": 1}}"#);
    let subsection = format!(
        r#""vmsd_name": "dut", "version": 1, "fields": [], "subsections": [{{"vmsd_name": "{evil}", "version": 1, "fields": []}}]"#
    );
    let stream = one_page()
        .device(3, "dut", &[7], &wrong)
        .device_as(4, "dut", 1, &[5, 1, b'x', 0, 0, 0, 1], &subsection)
        .finish();
    let place = Workplace::with(&stream);
    let extract = place.ramlift(&["extract", "stream"]).expect_code(0);
    assert!(extract.stderr.contains("dut"), "{}", extract.stderr);
    assert_harmless_on_a_terminal(&extract);
    let state = place.ramlift(&["state", "stream"]).expect_code(3);
    assert_harmless_on_a_terminal(&Output { stdout: Vec::new(), ..state });
    let unusable = one_page().describe(format!(r#"{{"devices": "{evil}"}}"#));
    assert_harmless_on_a_terminal(&Workplace::with(&unusable).ramlift(&["info", "stream"]).expect_code(3));
}

#[test]
fn json_of_what_a_description_names_does_no_harm_on_a_terminal() {
    let evil = "\u{7f}\u{9b}31m\u{202e}\u{200b}";
    let field = format!(r#"{{"name": "{evil}", "type": "uint8", "size": 1}}"#);
    let place = Workplace::with(&one_page().device(3, "dut", &[7], &field).finish());
    let state = place.ramlift(&["state", "stream"]).expect_code(0);
    assert_harmless_on_a_terminal(&state);
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    assert_eq!(state["devices"][0]["state"][evil], 7, "{state}");
}

/// What is printed byte for byte is so, but for a terminal.
#[test]
fn a_description_does_no_harm_on_a_terminal() {
    let field = "{\"name\": \"\u{9b}31m\",\n\t\"type\": \"uint8\", \"size\": 1}";
    let place = Workplace::with(&one_page().device(3, "dut", &[7], field).finish());
    let desc = place.ramlift(&["desc", "stream"]).expect_code(0);
    assert!(desc.text().contains(field), "{desc:?}");
    let command = format!("{} desc stream", binary().to_str().unwrap());
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).current_dir(place.path()).stdin(Stdio::null());
    let Ok(shown) = script.output() else {
        eprintln!("SKIPPED: no script(1) here that makes a terminal");
        return;
    };
    let shown = String::from_utf8(shown.stdout).unwrap().replace("\r\n", "\n");
    assert!(shown.contains(&field.replace('\u{9b}', "\u{fffd}")), "{shown:?}");
}

#[test]
fn the_scripts_double_stays_in_its_directory_too() {
    let place = Workplace::with(&named_blocks());
    fs::create_dir_all(place.join("a/b")).unwrap();
    ramlift_in(place.join("a/b"), &["analyze-migration", "-f", "../../stream", "-x"]);
    assert_eq!(entries_of(place.path()), ["a", "stream"]);
    assert_eq!(entries_of(place.join("a")), ["b"]);
}

#[test]
fn a_block_of_2_to_the_63_bytes_takes_nothing_while_it_has_no_page() {
    let blocks = [Block::new("huge", 1 << 63), Block::new("main.ram", 0x1000)];
    let records = Records::new().data("main.ram", 0, &noise(1, 4096));
    let stream = Synth::machine().ram(&blocks, records).finish();
    exercise(&stream).unwrap();
    let place = Workplace::with(&stream);
    let output = in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]));
    output.expect_code(3);
    assert_eq!(files_in(place.join("out")), ["desc.json", "main.ram", "manifest.json", "state.json"]);
    let manifest = place.json("out/manifest.json");
    assert_eq!(manifest["blocks"][0]["status"], "absent");
    assert_eq!(manifest["blocks"][0]["file"], Value::Null);
    assert_eq!(manifest["blocks"][0]["absent_pages"], 1u64 << 51);
}

#[test]
fn a_block_of_2_to_the_63_bytes_with_a_page_at_its_end_fails_cleanly() {
    let len = 1u64 << 63;
    let records = Records::new().data("huge", len - 0x1000, &noise(1, 4096));
    let stream = Synth::machine().ram(&[Block::new("huge", len)], records).finish();
    exercise(&stream).unwrap();
    let place = Workplace::with(&stream);
    // No file can be as long.
    for target in ["out", "deep/er/out"] {
        let args = ["extract", "stream", "-o", target];
        in_time(|| ramlift_within(MEMORY_KIB, place.path(), &args)).expect_code(1);
        assert_eq!(entries_of(place.path()), ["stream"], "-o {target}");
    }
}

#[test]
fn a_huge_block_takes_disk_for_its_records_alone() {
    let len = 1u64 << 42;
    let records = (0..1000u64)
        .fold(Records::new(), |records, nth| records.fill("huge", (nth * (len / 1000)) & !0xfff, 1));
    let records = records.next_data(0, &noise(1, 4096));
    let stream = Synth::machine().ram(&[Block::new("huge", len)], records).finish();
    exercise(&stream).unwrap();
    let place = Workplace::with(&stream);
    let output = in_time(|| ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out"]));
    output.expect_code(0);
    let metadata = fs::metadata(place.join("out/huge")).unwrap();
    assert_eq!(metadata.len(), len);
    assert!(metadata.blocks() * 512 <= 1000 * (64 << 10), "{} bytes", metadata.blocks() * 512);
}

#[test]
fn long_names_that_begin_alike_cost_no_more_than_others() {
    // File names are cut, so all of these want the same one.
    let name = |nth: usize| [vec![b'a'; 247], format!("{nth:08}").into_bytes()].concat();
    let mut blocks: Vec<Block> = (0..20_000).map(|nth| Block::new(name(nth), 0)).collect();
    blocks.push(Block::new("main.ram", 0x1000));
    let stream = Synth::machine().ram(&blocks, Records::new().fill("main.ram", 0, 1)).finish();
    let place = Workplace::with(&stream);
    let output = in_time(|| {
        ramlift_within(MEMORY_KIB, place.path(), &["extract", "stream", "-o", "out", "--block", "main.ram"])
    });
    output.expect_code(0);
    assert_eq!(place.read("out/main.ram"), [1; 4096]);
}

#[test]
fn names_of_many_slashes_take_little_memory_and_few_directories() {
    let name = |nth: usize| [format!("{nth:06}").into_bytes(), b"/a".repeat(124)].concat();
    let mut blocks: Vec<Block> = (0..20_000).map(|nth| Block::new(name(nth), 0)).collect();
    blocks.push(Block::new("main.ram", 0x1000));
    let stream = Synth::machine().ram(&blocks, Records::new().fill("main.ram", 0, 1)).finish();
    let place = Workplace::with(&stream);
    let args = ["extract", "stream", "-o", "out", "--block", "main.ram"];
    let kib = (stream.len() as u64 >> 10) * 8 + (256 << 10);
    in_time(|| ramlift_within(kib, place.path(), &args)).expect_code(0);
    assert_eq!(place.read("out/main.ram"), [1; 4096]);
}

#[test]
fn a_block_that_no_file_can_hold_is_refused_by_name_and_place() {
    let blocks = [Block::new("huge", 1 << 62)];
    let stream = Synth::machine().ram(&blocks, Records::new().data("huge", 0, &noise(1, 4096))).finish();
    let place = Workplace::with(&stream);
    let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
    assert!(output.stderr.contains("\"huge\""), "{}", output.stderr);
    assert!(output.stderr.contains("0x"), "{}", output.stderr);
    assert!(!output.stderr.contains(".ramlift-incomplete"), "{}", output.stderr);
    assert_eq!(entries_of(place.path()), ["stream"]);
}
