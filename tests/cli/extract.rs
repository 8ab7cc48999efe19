//! `extract`: files and their manifest, blocks by name, and what is in the way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::{BOOL, SMALL_FILES};
use crate::support::cli::{Workplace, entries_of, files_in, ramlift, ramlift_in};
use crate::support::synth::{Block, Records, Synth, noise, small_stream};
use serde_json::{Value, json};

/// A block that is there, and one of which no page is.
fn partial_stream() -> Vec<u8> {
    let blocks = [Block::new("shared", 0x2000).mr_addr(0x10_0000), Block::new("main.ram", 0x1000).mr_addr(0)];
    Synth::machine()
        .capabilities(&["x-ignore-shared"])
        .ram(&blocks, Records::new().data("main.ram", 0, &noise(1, 4096)))
        .device(3, "timer", &[1], BOOL)
        .finish()
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
    place.ramlift(&["extract", "stream", "-o", ".", "--force"]).expect_code(1);
    assert!(place.read("stream") == bytes, "the stream is gone");
    assert_eq!(entries_of(place.path()), ["stream"]);
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
fn quiet_prints_warnings_alone() {
    let place = Workplace::with(&small_stream().finish());
    let output = place.ramlift(&["extract", "stream", "--quiet"]).expect_code(0);
    assert_eq!(output.text(), "");
    assert!(output.stderr.lines().all(|line| line.starts_with("warning: ")), "{}", output.stderr);
    let output =
        place.ramlift(&["extract", "stream", "-q", "-o", "main", "--block", "main.ram"]).expect_code(0);
    assert_eq!(output.text(), "");
}
