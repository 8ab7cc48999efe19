//! The command: options, exit codes, what is printed and what is left behind.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::cli::{Workplace, binary, entries_of, files_in, ramlift, ramlift_in};
use support::synth::{Block, Records, Synth, noise, small_stream};

const BOOL: &str = r#"{"name": "on", "type": "bool", "size": 1}"#;

/// What [`small_stream`] extracts to.
const SMALL_FILES: [&str; 5] =
    ["0000:00:02.0/vga.vram", "desc.json", "main.ram", "manifest.json", "state.json"];

/// A block that is there, and one of which no page is.
fn partial_stream() -> Vec<u8> {
    let blocks = [Block::new("shared", 0x2000).mr_addr(0x10_0000), Block::new("main.ram", 0x1000).mr_addr(0)];
    Synth::machine()
        .capabilities(&["x-ignore-shared"])
        .ram(&blocks, Records::new().data("main.ram", 0, &noise(1, 4096)))
        .device(3, "timer", &[1], BOOL)
        .finish()
}

fn undecoded_stream() -> Vec<u8> {
    small_stream().device(9, "wrong", &[1, 2], BOOL).device(10, "right", &[1], BOOL).finish()
}

#[test]
fn extract_writes_images_state_description_and_manifest() {
    let place = Workplace::with(&small_stream().finish());
    let output = place.ramlift(&["extract", "stream", "--output", "out"]).expect_code(0);
    assert_eq!(files_in(place.join("out")), SMALL_FILES);
    assert_eq!(output.stderr, "");
    for file in ["out/main.ram", "out/0000:00:02.0/vga.vram"] {
        assert!(output.text().contains(file), "{}", output.text());
    }
    let expected = [noise(1, 4096), vec![0; 3 * 4096]].concat();
    assert!(place.read("out/main.ram") == expected);
    assert_eq!(place.read("out/0000:00:02.0/vga.vram"), [0; 2 * 4096]);
}

#[test]
fn the_default_output_is_named_after_the_stream_in_the_current_directory() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream"]).expect_code(0);
    assert_eq!(entries_of(place.path()), ["stream", "stream.extracted"]);
    fs::create_dir(place.join("elsewhere")).unwrap();
    ramlift_in(place.join("elsewhere"), &["extract", "../stream"]).expect_code(0);
    assert_eq!(entries_of(place.join("elsewhere")), ["stream.extracted"]);
}

#[test]
fn directories_above_the_output_are_made() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "a/b/out"]).expect_code(0);
    assert_eq!(files_in(place.join("a/b/out")), SMALL_FILES);
    assert_eq!(entries_of(place.join("a/b")), ["out"]);
}

#[test]
fn images_can_be_read_by_their_owner_alone() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    for file in SMALL_FILES {
        let mode = fs::metadata(place.join("out").join(file)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600, "{file}");
    }
    assert_eq!(fs::metadata(place.join("out")).unwrap().mode() & 0o077, 0);
}

#[test]
fn the_manifest_says_what_is_where() {
    let bytes = small_stream().finish();
    let place = Workplace::with(&bytes);
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    let version = ramlift(&["--version"]).expect_code(0);
    let version = version.text().trim().strip_prefix("ramlift ").unwrap();
    let expected = json!({
        "ramlift": version,
        "manifest_version": 1,
        "format": "blocks",
        "source": {"path": "stream", "size": bytes.len(), "layers": ["QEVM"], "snapshot": null},
        "machine": "synth-1.0",
        "pages_per_pass": [6, 1],
        "blocks": [
            {
                "idstr": "main.ram", "file": "main.ram", "used_length": 0x4000, "page_size": 4096,
                "seen_pages": 4, "data_pages": 1, "xbzrle_pages": 0, "fill_pages": 3, "resent_pages": 1, "absent_pages": 0,
                "possibly_stale_pages": 0, "status": "complete",
            },
            {
                "idstr": "0000:00:02.0/vga.vram", "file": "0000:00:02.0/vga.vram", "used_length": 0x2000,
                "page_size": 4096, "seen_pages": 2, "data_pages": 0, "xbzrle_pages": 0, "fill_pages": 2, "resent_pages": 0,
                "absent_pages": 0, "possibly_stale_pages": 0, "status": "complete",
            },
        ],
        "block_devices": [],
        "salvaged": false,
        "lost": [],
        "doubtful_pages": [],
        "warnings": [],
        "hash": null,
        "inputs": [
            {
                "role": "stream", "path": "stream", "size": bytes.len(), "modified": null, "device": null,
                "inode": null, "hash": null,
            },
        ],
        "files": [
            {"path": "0000:00:02.0/vga.vram", "size": 0x2000, "hash": null},
            {"path": "desc.json", "size": place.read("out/desc.json").len(), "hash": null},
            {"path": "main.ram", "size": 0x4000, "hash": null},
            {"path": "state.json", "size": place.read("out/state.json").len(), "hash": null},
        ],
        "run": null,
    });
    let mut manifest = place.json("out/manifest.json");
    // What is of this file and this run alone.
    for key in ["/inputs/0/modified", "/inputs/0/device", "/inputs/0/inode", "/run"] {
        assert_ne!(std::mem::take(manifest.pointer_mut(key).unwrap()), Value::Null, "{key}");
    }
    // As text: the order of keys is part of the format.
    assert_eq!(format!("{manifest:#}"), format!("{expected:#}"));
}

#[test]
fn blocks_of_which_no_page_is_there_have_no_image() {
    let place = Workplace::with(&partial_stream());
    let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(3);
    assert!(output.stderr.contains("shared"), "{}", output.stderr);
    assert_eq!(files_in(place.join("out")), ["desc.json", "main.ram", "manifest.json", "state.json"]);
    let shared = &place.json("out/manifest.json")["blocks"][0];
    assert_eq!((&shared["status"], &shared["file"]), (&json!("absent"), &Value::Null));
    assert_eq!(shared["absent_pages"], 2);
    // Without it nothing is missing.
    place.ramlift(&["extract", "stream", "-o", "main", "--block", "main.ram"]).expect_code(0);
    place.ramlift(&["extract", "stream", "-o", "shared", "--block", "shared"]).expect_code(3);
}

#[test]
fn blocks_of_which_some_pages_are_there_are_partial_images() {
    let records = Records::new().data("main.ram", 0x1000, &noise(1, 4096));
    let stream = Synth::machine().ram(&[Block::new("main.ram", 0x3000)], records).finish();
    let place = Workplace::with(&stream);
    let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert!(output.stderr.starts_with("warning: "), "{}", output.stderr);
    let manifest = place.json("out/manifest.json");
    assert_eq!(manifest["blocks"][0]["status"], "partial");
    assert_eq!(manifest["blocks"][0]["absent_pages"], 2);
    assert!(manifest["warnings"][0].as_str().unwrap().contains("main.ram"), "{manifest}");
    assert!(place.read("out/main.ram") == [vec![0; 4096], noise(1, 4096), vec![0; 4096]].concat());
}

#[test]
fn block_chooses_images() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "one", "--block", "main.ram"]).expect_code(0);
    assert_eq!(files_in(place.join("one")), ["desc.json", "main.ram", "manifest.json", "state.json"]);
    assert_eq!(place.json("one/manifest.json")["blocks"].as_array().unwrap().len(), 1);
    let both = ["--block", "0000:00:02.0/vga.vram", "--block", "main.ram"];
    place.ramlift(&[&["extract", "stream", "-o", "both"], both.as_slice()].concat()).expect_code(0);
    assert_eq!(files_in(place.join("both")), SMALL_FILES);
}

#[test]
fn a_block_that_is_not_there_is_an_error_that_names_those_that_are() {
    let place = Workplace::with(&small_stream().finish());
    for args in [&["--block", "pc.ram"][..], &["--block", "main.ram", "--block", "main"]] {
        let output = place.ramlift(&[&["extract", "stream"], args].concat()).expect_code(1);
        assert!(output.stderr.contains("main.ram"), "{}", output.stderr);
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
    let place = Workplace::with(&Synth::machine().device(3, "timer", &[1], BOOL).finish());
    place.ramlift(&["extract", "stream", "--block", "main.ram"]).expect_code(1);
    assert_eq!(entries_of(place.path()), ["stream"]);
}

#[test]
fn a_block_can_be_named_as_it_is_shown() {
    let blocks = [Block::new("a\x1bb", 0x1000), Block::new("c", 0x1000)];
    let records = Records::new().fill("a\x1bb", 0, 1).fill("c", 0, 2);
    let place = Workplace::with(&Synth::machine().ram(&blocks, records).finish());
    let shown = place.ramlift(&["info", "stream", "--json"]).json()["blocks"][0]["idstr"].clone();
    place.ramlift(&["extract", "stream", "-o", "out", "--block", shown.as_str().unwrap()]).expect_code(0);
    let manifest = place.json("out/manifest.json");
    assert_eq!(manifest["blocks"][0]["idstr"], shown);
    let file = manifest["blocks"][0]["file"].as_str().unwrap();
    assert_eq!(place.read(&format!("out/{file}")), [1; 4096]);
}

#[test]
fn a_directory_that_is_not_empty_is_refused_and_stays_as_it_is() {
    let place = Workplace::with(&small_stream().finish());
    fs::create_dir(place.join("out")).unwrap();
    fs::write(place.join("out/mine"), "mine").unwrap();
    let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
    assert!(output.stderr.contains("--force"), "{}", output.stderr);
    assert_eq!(files_in(place.join("out")), ["mine"]);
    assert_eq!(place.read("out/mine"), b"mine");
}

#[test]
fn an_empty_directory_is_filled() {
    let place = Workplace::with(&small_stream().finish());
    fs::create_dir(place.join("out")).unwrap();
    fs::set_permissions(place.join("out"), fs::Permissions::from_mode(0o755)).unwrap();
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    assert_eq!(files_in(place.join("out")), SMALL_FILES);
    assert_eq!(fs::metadata(place.join("out")).unwrap().mode() & 0o777, 0o755, "it is the user's");
}

#[test]
fn force_replaces_files_and_keeps_all_others() {
    let place = Workplace::with(&small_stream().finish());
    fs::create_dir_all(place.join("out/0000:00:02.0")).unwrap();
    for file in ["main.ram", "mine", "0000:00:02.0/vga.rom", "0000:00:02.0/vga.vram"] {
        fs::write(place.join("out").join(file), "mine").unwrap();
    }
    place.ramlift(&["extract", "stream", "-o", "out", "--force"]).expect_code(0);
    let mut expected = SMALL_FILES.to_vec();
    expected.extend(["0000:00:02.0/vga.rom", "mine"]);
    expected.sort_unstable();
    assert_eq!(files_in(place.join("out")), expected);
    assert_eq!(place.read("out/mine"), b"mine");
    assert_eq!(place.read("out/0000:00:02.0/vga.rom"), b"mine");
    assert_eq!(place.read("out/main.ram").len(), 0x4000);
    assert_eq!(fs::metadata(place.join("out/main.ram")).unwrap().mode() & 0o777, 0o600);
    // And once more over its own output.
    place.ramlift(&["extract", "stream", "-o", "out", "--force"]).expect_code(0);
    assert_eq!(files_in(place.join("out")), expected);
}

#[test]
fn force_goes_through_no_symlink() {
    let place = Workplace::with(&small_stream().finish());
    fs::create_dir_all(place.join("victim")).unwrap();
    fs::write(place.join("victim/file"), "mine").unwrap();
    fs::create_dir(place.join("out")).unwrap();
    // A file's name that is a link is replaced, not written through.
    symlink("../victim/file", place.join("out/main.ram")).unwrap();
    place.ramlift(&["extract", "stream", "-o", "out", "--force"]).expect_code(0);
    assert!(fs::symlink_metadata(place.join("out/main.ram")).unwrap().is_file());
    assert_eq!(place.read("victim/file"), b"mine");
    // A directory's name that is a link is in the way.
    fs::remove_dir_all(place.join("out")).unwrap();
    fs::create_dir(place.join("out")).unwrap();
    symlink("../victim", place.join("out/0000:00:02.0")).unwrap();
    place.ramlift(&["extract", "stream", "-o", "out", "--force"]).expect_code(1);
    assert_eq!(files_in(place.join("victim")), ["file"]);
    assert_eq!(place.read("victim/file"), b"mine");
    assert_eq!(entries_of(place.path()), ["out", "stream", "victim"]);
    assert!(entries_of(place.join("out")).iter().all(|name| !name.starts_with('.')), "nothing half done");
}

#[test]
fn force_changes_nothing_if_something_is_in_the_way() {
    let place = Workplace::with(&small_stream().finish());
    fs::create_dir(place.join("out")).unwrap();
    fs::write(place.join("out/main.ram"), "mine").unwrap();
    fs::write(place.join("out/0000:00:02.0"), "mine").unwrap();
    place.ramlift(&["extract", "stream", "-o", "out", "--force"]).expect_code(1);
    assert_eq!(files_in(place.join("out")), ["0000:00:02.0", "main.ram"]);
    assert!(place.read("out/main.ram") == b"mine", "it was replaced");
    assert_eq!(place.read("out/0000:00:02.0"), b"mine");
}

#[test]
fn the_stream_itself_is_never_replaced() {
    // A block can have the name that the stream's file has.
    let records = Records::new().fill("stream", 0, 1);
    let bytes = Synth::machine().ram(&[Block::new("stream", 0x1000)], records).finish();
    let place = Workplace::with(&bytes);
    place.ramlift(&["extract", "stream", "-o", ".", "--force"]);
    assert!(place.read("stream") == bytes, "the stream is gone");
}

#[test]
fn an_output_that_is_a_file_is_refused() {
    let place = Workplace::with(&small_stream().finish());
    fs::write(place.join("out"), "mine").unwrap();
    for args in [&["extract", "stream", "-o", "out"][..], &["extract", "stream", "-o", "out", "--force"]] {
        place.ramlift(args).expect_code(1);
        assert_eq!(place.read("out"), b"mine");
    }
    assert_eq!(entries_of(place.path()), ["out", "stream"]);
}

#[test]
fn any_number_of_threads_writes_the_same() {
    let mut records = Records::new();
    for nth in 0..2000u64 {
        records = records.data("main.ram", nth * 7919 % 3000 * 4096, &noise(nth, 4096));
    }
    let stream = Synth::machine().ram(&[Block::new("main.ram", 3000 * 4096)], records);
    let place = Workplace::with(&stream.device(3, "timer", &[1], BOOL).finish());
    place.ramlift(&["extract", "stream", "-o", "0"]).expect_code(0);
    for threads in ["1", "2", "16"] {
        place.ramlift(&["extract", "stream", "-o", threads, "--threads", threads]).expect_code(0);
        for file in ["main.ram", "manifest.json", "state.json", "desc.json"] {
            assert!(place.read_of_any_run("0", file) == place.read_of_any_run(threads, file), "{file}");
        }
    }
}

#[test]
fn quiet_prints_warnings_alone() {
    let place = Workplace::with(&small_stream().finish());
    let output = place.ramlift(&["extract", "stream", "--quiet"]).expect_code(0);
    assert_eq!(output.text(), "");
    assert!(output.stderr.lines().all(|line| line.starts_with("warning: ")), "{}", output.stderr);
    let output =
        place.ramlift(&["extract", "stream", "-q", "-o", "main", "--block", "main.ram"]).expect_code(0);
    assert_eq!(output.text(), "");
}

#[test]
fn a_command_line_that_makes_no_sense_is_exit_code_2() {
    for args in [
        &[][..],
        &["explode"],
        &["info"],
        &["info", "stream", "--loud"],
        &["extract", "stream", "--threads", "0"],
        &["extract", "stream", "--threads", "1025"],
        &["extract", "stream", "--threads", "many"],
        &["extract", "stream", "-o"],
        &["generate", "poetry"],
    ] {
        let output = ramlift(args);
        assert_eq!(output.code, 2, "{args:?}");
        assert_eq!(output.text(), "");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for args in [&["--help"][..], &["-h"], &["extract", "--help"], &["--version"], &["info", "--version"]] {
        let output = ramlift(args).expect_code(0);
        assert!(output.text().contains("ramlift"), "{args:?}");
        assert_eq!(output.stderr, "");
    }
}

#[test]
fn inputs_that_cannot_be_read_are_exit_code_1() {
    let place = Workplace::with(b"no stream at all");
    fs::create_dir(place.join("directory")).unwrap();
    fs::write(place.join("empty"), "").unwrap();
    for input in ["stream", "missing", "directory", "empty", "/dev/null", "/dev/zero"] {
        for command in ["info", "extract", "state", "desc"] {
            let output = place.ramlift(&[command, input]).expect_code(1);
            assert!(output.stderr.contains(input), "{command} {input}: {}", output.stderr);
            assert_eq!(output.text(), "");
        }
    }
    assert_eq!(entries_of(place.path()), ["directory", "empty", "stream"]);
}

#[test]
fn a_named_pipe_is_read_as_it_comes() {
    let stream = small_stream().finish();
    let place = Workplace::with(&stream);
    assert!(Command::new("mkfifo").arg(place.join("pipe")).status().unwrap().success());
    let (pipe, bytes) = (place.join("pipe"), stream.clone());
    let writer = std::thread::spawn(move || fs::write(pipe, bytes));
    let output = place.ramlift(&["state", "pipe"]).expect_code(0);
    writer.join().unwrap().unwrap();
    assert_eq!(output.text(), place.ramlift(&["state", "stream"]).text());
}

#[test]
fn names_of_files_need_not_be_text() {
    let place = Workplace::with(&small_stream().finish());
    let name = std::ffi::OsStr::from_bytes(b"str\xffeam");
    fs::rename(place.join("stream"), place.path().join(name)).unwrap();
    ramlift_in(place.path(), &["extract".as_ref(), name]).expect_code(0);
    let extracted = place.path().join(std::ffi::OsStr::from_bytes(b"str\xffeam.extracted"));
    assert_eq!(files_in(extracted), SMALL_FILES);
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
fn info_counts_processors_and_passes() {
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

#[test]
fn a_closed_pipe_is_success() {
    // Far more than a pipe holds.
    let blob = format!(r#"{{"name": "blob", "type": "buffer", "size": {}}}"#, 1 << 20);
    let stream = small_stream().device(9, "flash", &noise(1, 1 << 20), &blob).finish();
    let place = Workplace::with(&stream);
    for args in [
        &["state", "stream"][..],
        &["info", "stream"],
        &["info", "stream", "--json"],
        &["desc", "stream"],
        &["generate", "man"],
        &["extract", "stream"],
    ] {
        let mut child = Command::new(binary())
            .args(args)
            .current_dir(place.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("panic") && !stderr.contains("error"), "{args:?}: {stderr}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let place = Workplace::with(&small_stream().finish());
    for args in [&["state", "stream"][..], &["info", "stream"], &["desc", "stream"], &["generate", "bash"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = Command::new(binary())
            .args(args)
            .current_dir(place.path())
            .stdout(full)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{args:?}");
    }
}

#[test]
fn completions_and_the_man_page_are_generated() {
    for what in ["bash", "elvish", "fish", "powershell", "zsh", "man"] {
        let output = ramlift(&["generate", what]).expect_code(0);
        for text in ["ramlift", "extract", "info", "state"] {
            assert!(output.text().contains(text), "{what} has no {text}");
        }
        assert_eq!(output.stderr, "");
    }
    assert!(!ramlift(&["--help"]).text().contains("generate"), "it is for packagers");
}

#[test]
fn the_same_stream_gives_the_same_files() {
    let place = Workplace::with(&undecoded_stream());
    for dir in ["one", "two"] {
        place.ramlift(&["extract", "stream", "-o", dir]).expect_code(0);
    }
    for file in SMALL_FILES {
        assert!(place.read_of_any_run("one", file) == place.read_of_any_run("two", file), "{file}");
    }
}

#[test]
fn force_leaves_nothing_of_another_stream_behind() {
    let place = Workplace::with(&small_stream().finish());
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    std::fs::write(place.join("out/notes.txt"), "mine").unwrap();
    let block = Block::new("other/ram", 0x1000);
    let other = Synth::machine().ram(&[block], Records::new().fill("other/ram", 0, 0)).finish_undescribed();
    std::fs::write(place.join("stream"), other).unwrap();
    place.ramlift(&["extract", "stream", "-o", "out", "--force"]).expect_code(0);
    let files = files_in(place.join("out"));
    assert_eq!(files, ["manifest.json", "notes.txt", "other/ram", "state.json"]);
}

#[test]
fn a_command_of_no_known_number_is_warned_of() {
    let stream = Synth::machine().command(99, &[1, 2]).ram(&[], Records::new()).finish();
    let output = Workplace::with(&stream).ramlift(&["info", "stream", "--json"]).expect_code(0);
    assert!(output.json()["warnings"][0].as_str().unwrap().contains("99"), "{}", output.text());
}

#[test]
fn a_signal_leaves_nothing_behind() {
    // Enough RAM to be caught at it, whatever the machine.
    let len = 256 << 20;
    let mut records = Records::new().fill("main.ram", 0, 1);
    for page in 1..len / 4096 {
        records = records.next_fill(page * 4096, 1);
    }
    let place = Workplace::with(&Synth::machine().ram(&[Block::new("main.ram", len)], records).finish());
    let mut child = std::process::Command::new(support::cli::binary())
        .args(["extract", "stream", "-o", "out", "--quiet"])
        .current_dir(place.path())
        .spawn()
        .unwrap();
    while child.try_wait().unwrap().is_none() && entries_of(place.path()).len() < 2 {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    let code = child.wait().unwrap().code();
    // A machine that was quicker than the signal has the whole output.
    match code {
        Some(143) => assert_eq!(entries_of(place.path()), ["stream"]),
        _ => assert_eq!(code, Some(0)),
    }
}
