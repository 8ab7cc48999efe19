//! `ramlift analyze-migration` against QEMU's script of that name: the same
//! text and the same files, wherever the script gives a right answer.
//!
//! `tests/data/script.json` has the SHA-256 of what the script of QEMU 10.0.2
//! prints for each stream there, or null where it fails; two streams have the
//! whole text beside them. `scripts/compare-script` writes the hashes, and
//! compares much more than is kept here.

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use support::cli::{Output, Workplace, files_in, ramlift_in};
use support::fixtures::{data, read_json, unpack};
use support::hex::sha256;
use support::synth::{Block, Records, Synth, noise, small_stream};

fn unpacked(name: &str) -> Workplace {
    place(&unpack(name))
}

fn place(stream: &[u8]) -> Workplace {
    let place = Workplace::with(stream);
    fs::create_dir(place.join("out")).unwrap();
    place
}

/// Runs it in the empty directory.
fn analyze(place: &Workplace, args: &[&str]) -> Output {
    let args = [&["analyze-migration", "-f", "../stream"], args].concat();
    ramlift_in(place.join("out"), &args)
}

/// Checks the text that `args` print for each stream against what the script
/// prints. Gives the streams that the script fails for.
fn check_texts(key: &str, args: &[&str], wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let script = read_json("script.json");
    let mut failures = Vec::new();
    for (name, hashes) in script.as_object().unwrap().iter().filter(|(name, _)| wanted(name)) {
        let Some(hash) = hashes[key].as_str() else {
            failures.push(name.clone());
            continue;
        };
        let output = analyze(&unpacked(name), args).expect_code(0);
        assert_eq!(sha256(&output.stdout), hash, "{name}");
    }
    failures
}

/// What the script does not read.
const SCRIPT_FAILS: [&str; 3] = ["pc-11.1-mapped-ram", "pc-7.2-compress", "pc-7.2-xbzrle"];

/// Streams without a description: they have no `-d desc`.
const UNDESCRIBED: [&str; 3] = ["pc-10.0-no-vmdesc", "pc-5.2-machine-2.2-no-vmdesc", "pc-7.2-machine-2.2"];

/// Streams with block devices or dirty bitmaps: the script has no state of them.
const BLOCK_DEVICES: [&str; 3] = ["pc-10.0-dirty-bitmaps", "pc-7.2-block", "pc-7.2-dirty-bitmaps"];

#[test]
fn state_is_the_scripts_text() {
    let failures = check_texts("state", &["-d", "state"], |_| true);
    let more = failures.iter().filter(|name| !SCRIPT_FAILS.contains(&name.as_str()));
    let known = [UNDESCRIBED, BLOCK_DEVICES].concat();
    let more: Vec<&String> = more.filter(|name| !known.contains(&name.as_str())).collect();
    assert_eq!(more, ["pc-7.2-validate-uuid"]);
}

#[test]
fn desc_is_the_scripts_text() {
    assert_eq!(check_texts("desc", &["-d", "desc"], |_| true), UNDESCRIBED);
}

/// As the script's, with its one wrong call mended: it stops at the first page
/// of data. Not of all streams, because the text is three times as long.
#[test]
fn memory_is_the_mended_scripts_text() {
    let wanted = ["avr-7.2", "pc-10.0-numa-live", "riscv64-virt-10.0", "tricore-10.0"];
    assert!(check_texts("-m", &["-m"], |name| wanted.contains(&name)).is_empty());
}

/// Block after block, as the scripts that read it do: that of 10.0 does not.
#[test]
fn memory_of_mapped_ram_is_every_page_in_its_place() {
    let place = unpacked("pc-11.1-mapped-ram");
    let output = analyze(&place, &["-m"]).expect_code(0);
    place.ramlift(&["extract", "stream", "-o", "images"]).expect_code(0);
    let manifest: serde_json::Value = serde_json::from_slice(&place.read("images/manifest.json")).unwrap();
    let digits: Vec<String> = (0..=0xff).map(|byte| format!("{byte:02x}")).collect();
    let mut lines = output.text().lines().skip_while(|line| !line.contains("\"memory\"")).skip(1);
    for block in manifest["blocks"].as_array().unwrap() {
        let (idstr, file) = (block["idstr"].as_str().unwrap(), block["file"].as_str().unwrap());
        for (page, nth) in place.read(&format!("images/{file}")).chunks(4096).zip(0..) {
            let bytes =
                page.iter().map(|byte| digits[usize::from(*byte)].as_str()).collect::<Vec<_>>().join(" ");
            let is_zero = page.iter().all(|byte| *byte == 0);
            let shown = if is_zero { "Filled with 0x00" } else { &bytes };
            let expected = format!("\"{idstr} ({:#018x})\": \"{shown}\"", nth * 4096);
            assert_eq!(lines.next().unwrap().trim().trim_end_matches(','), expected);
        }
    }
    assert_eq!(lines.next().unwrap().trim(), "}");
}

/// The whole text, so that a difference can be read.
#[test]
fn state_and_desc_of_small_streams_are_the_scripts_line_by_line() {
    for name in ["avr-7.2", "tricore-10.0"] {
        let place = unpacked(name);
        for what in ["state", "desc"] {
            let golden = fs::read_to_string(data(&format!("{name}.script-{what}.json"))).unwrap();
            let output = analyze(&place, &["-d", what]).expect_code(0);
            for (ours, theirs) in output.text().lines().zip(golden.lines()) {
                assert_eq!(ours, theirs, "{name} -d {what}");
            }
            assert!(output.text() == golden, "{name} -d {what}: one has more lines");
        }
    }
}

/// Checks `-x`: its text is the script's, its JSON files are what `-d` prints,
/// and its images are what QEMU's memory held.
#[track_caller]
fn check_extract(name: &str) {
    let place = unpacked(name);
    let output = analyze(&place, &["-x"]).expect_code(0);
    assert_eq!(sha256(&output.stdout), read_json("script.json")[name]["-x"], "{name}");
    for what in ["desc", "state"] {
        let printed = analyze(&place, &["-d", what]).expect_code(0);
        let file = fs::read(place.join(&format!("out/{what}.json"))).unwrap();
        assert!([file.as_slice(), b"\n"].concat() == printed.stdout, "{what}.json");
    }
    let truth = read_json("manifest.json");
    for (block, truth) in truth[name]["blocks"].as_object().unwrap() {
        let image = place.read(&format!("out/{}", block.trim_start_matches('/')));
        assert_eq!(image.len() as u64, truth["bytes"], "{block}");
        assert_eq!(sha256(&image), truth["sha256"], "{block}");
    }
    // A line for each file, and no more files.
    assert_eq!(files_in(place.join("out")).len(), output.text().lines().count());
}

#[test]
fn extract_writes_the_scripts_files() {
    for name in ["avr-7.2", "tricore-10.0", "or1k-10.0", "pc-10.0-paused", "pc-10.0-canonical-path"] {
        check_extract(name);
    }
}

/// The script writes no zero pages. A page that was data in one pass and zero
/// in a later one keeps its data there.
#[test]
fn extract_writes_pages_that_went_from_data_to_zero() {
    for name in ["pc-10.0-numa-live", "pc-7.2-machine-2.3-live", "q35-11.1-live"] {
        check_extract(name);
    }
}

#[test]
fn extract_says_that_a_shared_block_is_not_in_the_stream() {
    let output = analyze(&unpacked("pc-10.0-ignore-shared"), &["-x"]).expect_code(0);
    assert_eq!(sha256(&output.stdout), read_json("script.json")["pc-10.0-ignore-shared"]["-x"]);
    assert!(output.stderr.contains("4096 of 4096 pages are not in the stream"), "{}", output.stderr);
}

// Where the script fails.

#[test]
fn a_stream_with_a_uuid_has_its_state() {
    let place = unpacked("pc-7.2-validate-uuid");
    let state = analyze(&place, &[]).expect_code(0).json();
    assert_eq!(state["timer (0)"]["unused"], "00 00 00 00 00 00 00 00");
    assert_eq!(analyze(&place, &["-x"]).expect_code(0).stderr, "");
}

/// Its RAM is in the stream all the same, and so are the bytes of its devices
/// where footers tell their ends.
#[test]
fn block_devices_and_dirty_bitmaps_show_nothing_and_the_devices_behind_them_are_there() {
    for name in BLOCK_DEVICES {
        let state = analyze(&unpacked(name), &["-d", "state"]).expect_code(0).json();
        let sections = state.as_object().unwrap();
        let is_iterated = |key: &String| key.starts_with("block (") || key.starts_with("dirty-bitmap (");
        let iterated: Vec<_> = sections.iter().filter(|(key, _)| is_iterated(key)).collect();
        assert!(matches!(iterated.as_slice(), [(_, text)] if **text == ""), "{name}");
        assert!(sections.len() > 30, "{name}");
    }
}

#[test]
fn a_stream_without_description_has_its_sections() {
    let state = analyze(&unpacked("pc-10.0-no-vmdesc"), &[]).expect_code(0).json();
    assert_eq!(state["ram (1)"]["section sizes"]["pc.ram"], "0x0000000001000000");
    let timer = state["timer (0)"].as_str().unwrap();
    assert_eq!(timer.split(' ').count(), 24);
    let state = analyze(&unpacked("pc-7.2-machine-2.2"), &[]).expect_code(0).json();
    assert_eq!(state.as_object().unwrap().len(), 1);
}

#[test]
fn what_needs_a_description_fails_without_one_and_leaves_nothing() {
    for name in UNDESCRIBED {
        let place = unpacked(name);
        for args in [["-d", "desc"].as_slice(), &["-x"]] {
            let output = analyze(&place, args).expect_code(1);
            assert!(output.stderr.contains("description") && output.stdout.is_empty(), "{}", output.stderr);
        }
        assert!(files_in(place.join("out")).is_empty());
    }
}

#[test]
fn encodings_that_the_script_does_not_read_are_read() {
    for name in SCRIPT_FAILS {
        let place = unpacked(name);
        let state = analyze(&place, &[]).expect_code(0).json();
        assert!(state.as_object().unwrap().len() > 10, "{name}: {state}");
        analyze(&place, &["-x"]).expect_code(0);
        place.ramlift(&["extract", "stream", "-o", "images"]).expect_code(0);
        for file in ["pc.ram", "pc.bios"] {
            let (theirs, ours) = (place.read(&format!("out/{file}")), place.read(&format!("images/{file}")));
            assert!(theirs == ours && theirs.iter().any(|byte| *byte != 0), "{name}: {file}");
        }
    }
}

/// A page as the test has it: block, offset, and what its last record says.
type PageText<'p> = (&'p str, u64, Result<&'p [u8], u8>);

/// What a script that does not stop prints for `-m`: each page once, in the
/// order of first records.
fn memory_text(sizes: &[(&str, u64)], pages: &[PageText<'_>]) -> String {
    let size = |(name, size): &(&str, u64)| format!("            \"{name}\": \"0x{size:016x}\"");
    let page = |(name, offset, content): &PageText<'_>| {
        let text = match content {
            Ok(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
            Err(fill) => format!("Filled with 0x{fill:02x}"),
        };
        format!("            \"{name} (0x{offset:016x})\": \"{text}\"")
    };
    let sizes: Vec<String> = sizes.iter().map(size).collect();
    let pages: Vec<String> = pages.iter().map(page).collect();
    format!(
        "{{\n    \"ram (2)\": {{\n        \"section sizes\": {{\n{}\n        }},\n        \
         \"memory\": {{\n{}\n        }}\n    }}\n}}\n",
        sizes.join(",\n"),
        pages.join(",\n")
    )
}

/// A fill byte is unsigned here; the script takes 0xaa for -0x56.
#[test]
fn memory_shows_each_page_once_where_it_came_first_and_as_it_came_last() {
    let [first, last, other] = [1, 2, 3].map(|seed| noise(seed, 4096));
    let blocks = [Block::new("a", 0x3000), Block::new("b", 0x1000)];
    let stream = Synth::machine()
        .ram_start(&blocks)
        .ram_part(Records::new().data("a", 0x1000, &first).next_fill(0, 0).data("b", 0, &other))
        .ram_part(Records::new().fill("a", 0x2000, 0xaa).next_data(0x1000, &last))
        .ram_end(Records::new().fill("b", 0, 0).data("a", 0, &first));
    let expected = memory_text(
        &[("a", 0x3000), ("b", 0x1000)],
        &[("a", 0x1000, Ok(&last)), ("a", 0, Ok(&first)), ("b", 0, Err(0)), ("a", 0x2000, Err(0xaa))],
    );
    let place = place(&stream.finish());
    for option in ["-m", "--memory", "--mem"] {
        let output = analyze(&place, &[option]).expect_code(0);
        assert!(output.text() == expected, "{option}: {}", output.text());
    }
}

/// The script stops with an exception: it writes text to a binary file.
#[test]
fn extract_writes_fill_pages_of_any_byte() {
    let records = Records::new().fill("r", 0, 0x5a).next_fill(0x1000, 0xaa);
    let place = place(&Synth::machine().ram(&[Block::new("r", 0x2000)], records).finish());
    analyze(&place, &["-x"]).expect_code(0);
    assert!(place.read("out/r") == [[0x5a; 4096], [0xaa; 4096]].concat());
}

/// The script reads the length of a name as a signed byte.
#[test]
fn names_may_be_longer_than_127_bytes() {
    let name = "n".repeat(200);
    let stream = Synth::machine().ram(&[Block::new(&name, 0x1000)], Records::new().fill(&name, 0, 0));
    let state = analyze(&place(&stream.finish()), &[]).expect_code(0).json();
    assert_eq!(state["ram (2)"]["section sizes"][name], "0x0000000000001000");
}

/// The script looks for the last zero byte of the file.
#[test]
fn zeros_behind_the_description_change_nothing() {
    let stream = small_stream().finish();
    let padded = [stream.as_slice(), &[0; 4096]].concat();
    for args in [["-d", "state"], ["-d", "desc"]] {
        let plain = analyze(&place(&stream), &args).expect_code(0);
        assert!(analyze(&place(&padded), &args).expect_code(0).stdout == plain.stdout);
    }
}

/// The script looks for it in the last 10 MiB.
#[test]
fn a_description_may_be_longer_than_10_mib() {
    let stream = small_stream();
    let text =
        stream.description_text().replacen('{', &format!("{{\"more\": \"{}\", ", "x".repeat(11 << 20)), 1);
    let place = place(&stream.describe(text));
    assert!(analyze(&place, &["-d", "state"]).expect_code(0).json()["timer (3)"].is_object());
    assert!(analyze(&place, &["-d", "desc"]).expect_code(0).stdout.len() > 11 << 20);
}

#[test]
fn a_device_with_a_wrong_description_is_shown_as_bytes_and_the_others_decoded() {
    let bool = r#"{"name": "on", "type": "bool", "size": 1}"#;
    let stream = Synth::machine().device(2, "wrong", &[1, 2], bool).device(3, "right", &[1], bool);
    let output = analyze(&place(&stream.finish()), &[]).expect_code(0);
    assert!(output.stderr.contains("\"wrong\""), "{}", output.stderr);
    let expected = serde_json::json!({"wrong (2)": "01 02", "right (3)": {"on": true}});
    assert_eq!(output.json(), expected);
}

// Text as Python writes it.

#[test]
fn text_beyond_ascii_is_escaped() {
    let fields = r#"{"name": "é\u007f\ud83d\ude00\n", "type": "bool", "size": 1}"#;
    let output = analyze(&place(&Synth::machine().device(2, "d", &[0], fields).finish()), &[]).expect_code(0);
    let expected = "{\n    \"d (2)\": {\n        \"\\u00e9\\u007f\\ud83d\\ude00\\n\": false\n    }\n}\n";
    assert_eq!(output.text(), expected);
}

#[test]
fn numbers_are_hex_and_negative_ones_decimal_too() {
    let fields = r#"
        {"name": "i8", "type": "int8", "size": 1},
        {"name": "i64", "type": "int64", "size": 8},
        {"name": "le", "type": "int32 le", "size": 4},
        {"name": "equal", "type": "uint16 equal", "size": 2},
        {"name": "u8", "array_len": 2, "type": "uint8", "size": 1},
        {"name": "nobody", "type": "no such type", "size": 2}"#;
    let body = [b"\x85".as_slice(), &[0xff; 8], &[0, 0, 0, 2], &[0xff, 0xfe], &[7, 0x80], &[1, 2]].concat();
    let output =
        analyze(&place(&Synth::machine().device(2, "d", &body, fields).finish()), &[]).expect_code(0);
    let expected = serde_json::json!({
        "i8": "0x85 (-123)",
        "i64": "0xffffffffffffffff (-1)",
        "le": "0x00000002",
        "equal": "0xfffe (-2)",
        "u8": ["0x07", "0x80"],
        "nobody": "01 02",
    });
    assert_eq!(output.json()["d (2)"], expected);
}

/// As Python's objects do.
#[test]
fn of_a_key_that_is_there_twice_the_last_value_is_shown_in_the_first_place() {
    let text = r#"{"page_size": 4096, "a": 1, "b": 2, "a": 3, "devices": []}"#;
    let output = analyze(&place(&Synth::machine().describe(text)), &["-d", "desc"]).expect_code(0);
    let expected = "{\n    \"page_size\": 4096,\n    \"a\": 3,\n    \"b\": 2,\n    \"devices\": []\n}\n";
    assert_eq!(output.text(), expected);
}

// Files.

/// The script writes to `../x`, and over its own `desc.json`.
#[test]
fn blocks_cannot_leave_the_directory_or_take_the_name_of_another_file() {
    let blocks = [Block::new("../x", 0x1000), Block::new("desc.json", 0x1000)];
    let records = Records::new().fill("../x", 0, 1).fill("desc.json", 0, 2);
    let place = place(&Synth::machine().ram(&blocks, records).finish());
    analyze(&place, &["-x"]).expect_code(0);
    assert_eq!(files_in(place.path()).len(), 5, "{:?}", files_in(place.path()));
    assert_eq!(files_in(place.join("out")).len(), 4);
    assert_eq!(place.json("out/desc.json")["page_size"], 4096);
}

#[test]
fn extract_replaces_files_and_goes_through_no_symlink() {
    let place = place(&small_stream().finish());
    fs::write(place.join("victim"), "left alone").unwrap();
    symlink("../victim", place.join("out/desc.json")).unwrap();
    fs::write(place.join("out/main.ram"), "old").unwrap();
    analyze(&place, &["-x"]).expect_code(0);
    assert_eq!(place.read("victim"), b"left alone");
    assert!(place.read("out/desc.json").starts_with(b"{"));
    assert_eq!(place.read("out/main.ram").len(), 4 * 4096);
}

// Options.

#[test]
fn options_are_the_scripts() {
    let place = place(&small_stream().finish());
    let state = analyze(&place, &[]).expect_code(0).stdout;
    for args in [["-d", "state"].as_slice(), &["--dump", "state"], &["--dump=state"], &["--du=state"]] {
        assert!(analyze(&place, args).expect_code(0).stdout == state, "{args:?}");
    }
    let long = ramlift_in(place.path(), &["analyze-migration", "--file", "stream", "--dump", "desc"]);
    assert!(long.expect_code(0).stdout == analyze(&place, &["-d", "desc"]).expect_code(0).stdout);
    analyze(&place, &["--extract"]).expect_code(0);
    for args in [["-d", "other"].as_slice(), &["--no-such-option"]] {
        analyze(&place, args).expect_code(2);
    }
}
