//! The command gives of a wrapped stream what it gives of the bare one, or says
//! which layer is wrong, and where.

mod damaged;
mod unpacked;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use super::{FORMATS, PACKED, SAVEVM, bzip2, fixture, gzip, small_stream, zstd};
use crate::support::cli::{Output, Workplace, entries_of, files_in, ramlift_fed};
use ramlift::StreamOffset;
use ramlift::wrapper::libvirt::SaveImage;
use ramlift::wrapper::qcow2::Qcow2;
use serde_json::{Value, json};

/// The stream of a save image, and its XML.
fn opened(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut rest = bytes;
    let image = SaveImage::read(&mut rest).unwrap();
    let mut stream = Vec::new();
    image.open(rest, StreamOffset(0)).read_to_end(&mut stream).unwrap();
    (stream, image.xml)
}

fn snapshot(image: &[u8], name: &str) -> Vec<u8> {
    let qcow2 = Qcow2::open(image).unwrap();
    let mut stream = Vec::new();
    let state = qcow2.vm_state(qcow2.find(name.as_bytes()).unwrap()).unwrap();
    state.reader().read_to_end(&mut stream).unwrap();
    stream
}

/// What came of an extraction.
struct Extracted {
    output: Output,
    /// All but the manifest.
    files: BTreeMap<String, Vec<u8>>,
    manifest: Value,
}

impl Extracted {
    /// Takes what is in `out`, which is then no more.
    fn take(place: &Workplace, output: Output) -> Self {
        let out = place.join("out");
        let read = |name: String| (name.clone(), fs::read(out.join(name)).unwrap());
        let mut files: BTreeMap<_, _> = files_in(&out).into_iter().map(read).collect();
        let manifest = serde_json::from_slice(&files.remove("manifest.json").unwrap()).unwrap();
        fs::remove_dir_all(out).unwrap();
        Self { output, files, manifest }
    }

    #[track_caller]
    fn check_same(&self, bare: &Self, layers: &[&str]) {
        assert_eq!(self.manifest["source"]["layers"], json!(layers));
        assert_eq!(self.manifest["blocks"], bare.manifest["blocks"]);
        let names = |of: &Self| of.files.keys().filter(|name| *name != "domain.xml").cloned().collect();
        let (met, expected): (Vec<_>, Vec<_>) = (names(self), names(bare));
        assert_eq!(met, expected);
        for name in expected {
            assert!(self.files[&name] == bare.files[&name], "{name} of {layers:?}");
        }
    }
}

const EXTRACT: [&str; 4] = ["extract", "stream", "-o", "out"];

/// Extracts from a file.
#[track_caller]
fn extract(bytes: &[u8], more: &[&str]) -> Extracted {
    let place = Workplace::with(bytes);
    let output = place.ramlift(&[&EXTRACT[..], more].concat()).expect_code(0);
    Extracted::take(&place, output)
}

/// Extracts from a pipe.
#[track_caller]
fn extract_piped(bytes: &[u8], more: &[&str]) -> Extracted {
    let place = Workplace::with(b"");
    let args = [&["extract", "-", "-o", "out"][..], more].concat();
    let output = ramlift_fed(place.path(), &args, bytes).expect_code(0);
    Extracted::take(&place, output)
}

/// Checks that nothing comes of it, from a file and from a pipe. Gives what
/// is said of the file.
#[track_caller]
fn check_refused(bytes: &[u8], more: &[&str]) -> String {
    let place = Workplace::with(bytes);
    let args = [&["extract", "-", "-o", "out"][..], more].concat();
    ramlift_fed(place.path(), &args, bytes).expect_code(1);
    let output = place.ramlift(&[&EXTRACT[..], more].concat()).expect_code(1);
    assert_eq!(entries_of(place.path()), ["stream"]);
    output.stderr
}

/// Checks that all commands that print say of `wrapped` what they say of the
/// stream.
#[track_caller]
fn check_printed(wrapped: &[u8], stream: &[u8], more: &[&str]) {
    let (place, bare) = (Workplace::with(wrapped), Workplace::with(stream));
    for args in [
        ["state", "stream"].as_slice(),
        &["desc", "stream"],
        &["analyze-migration", "-f", "stream", "-d", "state"],
        &["analyze-migration", "-f", "stream", "-d", "desc"],
    ] {
        let expected = bare.ramlift(args).expect_code(0);
        let met = place.ramlift(&[args, more].concat()).expect_code(0);
        assert!(met.stdout == expected.stdout && !met.stdout.is_empty(), "{args:?}");
    }
}

/// The chain that `info` prints.
#[track_caller]
fn chain(bytes: &[u8], more: &[&str]) -> String {
    let output = Workplace::with(bytes).ramlift(&[&["info", "stream"], more].concat()).expect_code(0);
    let line = output.text().lines().find_map(|line| line.strip_prefix("  layers        "));
    line.unwrap_or_else(|| panic!("{}", output.text())).to_owned()
}

#[test]
fn a_save_image_gives_what_its_stream_gives() {
    for format in FORMATS {
        let wrapped = fixture(&format!("libvirt-12.8-{format}"));
        let (stream, xml) = opened(&wrapped);
        let shown = if format == "raw" { String::new() } else { format!(", {format}") };
        let layers = [&*format!("libvirt save v2{shown}"), "QEVM"];
        let bare = extract(&stream, &[]);
        let from_file = extract(&wrapped, &[]);
        from_file.check_same(&bare, &layers);
        assert!(from_file.files["domain.xml"] == xml && xml.starts_with(b"<domain"));
        assert_eq!(from_file.manifest["source"]["size"], wrapped.len());
        assert_eq!(chain(&wrapped, &[]), layers.join(" → "));
        let place = Workplace::with(&wrapped);
        assert!(place.ramlift(&["info", "--xml", "stream"]).expect_code(0).stdout == xml);
        if format == "sparse" {
            continue;
        }
        let piped = extract_piped(&wrapped, &[]);
        piped.check_same(&bare, &layers);
        assert!(piped.files["domain.xml"] == xml);
        assert_eq!(piped.manifest["source"]["size"], Value::Null);
        let output = ramlift_fed(place.path(), &["info", "--xml", "-"], &wrapped).expect_code(0);
        assert!(output.stdout == xml);
    }
}

#[test]
fn what_is_printed_of_a_save_image_is_that_of_its_stream() {
    for format in ["raw", "zstd", "sparse"] {
        let wrapped = fixture(&format!("libvirt-12.8-{format}"));
        check_printed(&wrapped, &opened(&wrapped).0, &[]);
    }
}

#[test]
fn a_sparse_save_image_needs_a_file() {
    let place = Workplace::with(b"");
    for args in [["extract", "-"], ["info", "-"], ["state", "-"], ["desc", "-"]] {
        let output = ramlift_fed(place.path(), &args, &fixture("libvirt-12.8-sparse")).expect_code(1);
        let stderr = &output.stderr;
        assert!(stderr.contains("libvirt save v2, sparse → QEVM"), "{stderr}");
        assert!(stderr.contains("write it to a file first"), "{stderr}");
    }
    assert_eq!(entries_of(place.path()), ["stream"]);
}

#[test]
fn an_interrupted_save_image_is_read_with_a_warning() {
    for format in ["raw", "gzip"] {
        let mut wrapped = fixture(&format!("libvirt-12.8-{format}"));
        let bare = extract(&opened(&wrapped).0, &[]);
        wrapped[..16].copy_from_slice(b"LibvirtQemudPart");
        let met = extract(&wrapped, &[]);
        let shown = if format == "raw" { "" } else { ", gzip" };
        met.check_same(&bare, &[&*format!("interrupted libvirt save v2{shown}"), "QEVM"]);
        assert!(met.output.stderr.contains("never finished"), "{}", met.output.stderr);
        assert!(met.manifest["warnings"][0].as_str().unwrap().contains("never finished"));
        let report = Workplace::with(&wrapped).ramlift(&["info", "stream"]).expect_code(0);
        assert!(report.text().contains("never finished"));
    }
}

#[test]
fn there_is_no_xml_in_what_is_no_save_image() {
    for name in ["packed.gz", "savevm-7.2"] {
        let output = Workplace::with(&fixture(name)).ramlift(&["info", "--xml", "stream"]).expect_code(1);
        assert!(output.stdout.is_empty() && output.stderr.starts_with("error: stream: "), "{output:?}");
    }
}

#[test]
fn a_snapshot_gives_what_its_stream_gives() {
    for name in SAVEVM {
        let image = fixture(name);
        let bare = extract(&snapshot(&image, "first"), &[]);
        for choice in [["--snapshot", "first"], ["--snapshot", "1"]] {
            let met = extract(&image, &choice);
            met.check_same(&bare, &["qcow2 snapshot \"first\"", "QEVM"]);
            assert_eq!(met.manifest["source"]["snapshot"]["id"], "1");
            assert_eq!(chain(&image, &choice), "qcow2 snapshot \"first\" → QEVM");
        }
        let bare = extract(&snapshot(&image, "2"), &[]);
        extract(&image, &["--snapshot", "2"]).check_same(&bare, &["qcow2 snapshot \"second\"", "QEVM"]);
    }
    check_printed(&fixture("savevm-7.2"), &small_stream(), &["--snapshot", "first"]);
}

#[test]
fn mapped_ram_in_a_snapshot_is_read() {
    let image = fixture("savevm-11.1-mapped-ram");
    let stream = snapshot(&image, "second");
    let layers = ["qcow2 snapshot \"second\"", "QEVM"];
    extract(&image, &["--snapshot", "second"]).check_same(&extract(&stream, &[]), &layers);
    check_printed(&image, &stream, &["--snapshot", "second"]);
    assert_eq!(chain(&image, &["--snapshot", "2"]), layers.join(" → "));
}

#[test]
fn the_only_snapshot_need_not_be_named() {
    // The count in the header; the table's second entry is not looked at then.
    let mut image = fixture("savevm-7.2");
    image[60..64].copy_from_slice(&1_u32.to_be_bytes());
    extract(&image, &[]).check_same(&extract(&small_stream(), &[]), &["qcow2 snapshot \"first\"", "QEVM"]);
}

#[test]
fn several_snapshots_are_listed_and_none_is_guessed() {
    let image = fixture("pc-10.0-savevm-qcow2");
    let place = Workplace::with(&image);
    let list = place.ramlift(&["info", "stream"]).expect_code(0);
    for line in ["1 \"first\", 20", "2 \"second\", 20", "VM clock 0.1", "VM state 11792519 bytes"] {
        assert!(list.text().contains(line), "{}", list.text());
    }
    let snapshots = place.ramlift(&["info", "stream", "--json"]).expect_code(0).json()["snapshots"].take();
    let tags: Vec<_> = snapshots.as_array().unwrap().iter().map(|snapshot| &snapshot["tag"]).collect();
    assert_eq!(tags, ["first", "second"]);
    for (key, met) in snapshots[0].as_object().unwrap() {
        let is_there = match key.as_str() {
            "id" => *met == "1",
            "vm_state_size" => *met == 11_792_519,
            "date" => met.as_u64().unwrap() > 1_700_000_000,
            "vm_clock" => met.as_u64().unwrap() > 1_000_000,
            "tag" => true,
            _ => false,
        };
        assert!(is_there, "{key}: {met}");
    }
    for args in [&EXTRACT[..], &["extract", "stream", "--snapshot", "third"], &["state", "stream"]] {
        let stderr = place.ramlift(args).expect_code(1).stderr;
        assert!(stderr.contains("\"first\" (1), \"second\" (2)"), "{stderr}");
        assert!(!stderr.contains("--salvage"), "{stderr}");
    }
    assert_eq!(entries_of(place.path()), ["stream"]);
}

#[test]
fn a_qcow2_image_needs_a_file() {
    let image = fixture("savevm-7.2");
    let place = Workplace::with(&zstd(&image));
    for args in [&["extract", "-"][..], &["info", "-"], &["state", "-", "--snapshot", "first"]] {
        let stderr = ramlift_fed(place.path(), args, &image).expect_code(1).stderr;
        assert!(stderr.contains("qcow2") && stderr.contains("write it to a file first"), "{stderr}");
    }
    let stderr = ramlift_fed(place.path(), &["extract", "-"], &zstd(&image)).expect_code(1).stderr;
    assert!(stderr.contains("zstd → qcow2") && stderr.contains("write it to a file first"), "{stderr}");
    assert_eq!(entries_of(place.path()), ["stream"]);
    // Also one that is compressed.
    let layers = ["zstd", "qcow2 snapshot \"first\"", "QEVM"];
    let met = extract(&zstd(&image), &["--snapshot", "first"]);
    met.check_same(&extract(&small_stream(), &[]), &layers);
    let met = extract(&gzip(&zstd(&image)), &["--snapshot", "first", "--salvage"]);
    assert_eq!(met.manifest["source"]["layers"], json!([&["gzip"], &layers[..]].concat()));
    let stderr = place.ramlift(&EXTRACT).expect_code(1).stderr;
    assert!(stderr.contains("\"first\" (1), \"second\" (2)"), "{stderr}");
}

#[test]
fn a_compressed_file_gives_what_its_stream_gives() {
    let stream = small_stream();
    let bare = extract(&stream, &[]);
    for (name, kind) in PACKED {
        let wrapped = fixture(name);
        extract(&wrapped, &[]).check_same(&bare, &[&kind.to_string(), "QEVM"]);
        extract_piped(&wrapped, &[]).check_same(&bare, &[&kind.to_string(), "QEVM"]);
        assert_eq!(chain(&wrapped, &[]), format!("{kind} → QEVM"));
        check_printed(&wrapped, &stream, &[]);
    }
}

#[test]
fn layers_stand_in_each_other() {
    let stream = small_stream();
    let bare = extract(&stream, &[]);
    let wrapped = gzip(&bzip2(&zstd(&stream)));
    extract(&wrapped, &[]).check_same(&bare, &["gzip", "bzip2", "zstd", "QEVM"]);
    extract_piped(&wrapped, &[]).check_same(&bare, &["gzip", "bzip2", "zstd", "QEVM"]);

    let image = fixture("libvirt-12.8-gzip");
    let (stream, xml) = opened(&image);
    let (bare, wrapped) = (extract(&stream, &[]), zstd(&image));
    for met in [extract(&wrapped, &[]), extract_piped(&wrapped, &[])] {
        met.check_same(&bare, &["zstd", "libvirt save v2, gzip", "QEVM"]);
        assert!(met.files["domain.xml"] == xml);
    }
    // Offsets are those of the stream, which is then in a file of its own.
    let image = fixture("libvirt-12.8-sparse");
    let bare = extract(&opened(&image).0, &[]);
    extract(&zstd(&image), &[]).check_same(&bare, &["zstd", "libvirt save v2, sparse", "QEVM"]);
}

#[test]
fn what_stands_behind_the_stream_is_passed_over() {
    let stream = small_stream();
    let bare = extract(&stream, &[]);
    let older = zstd(&stream[1000..]);
    let layers: [(Vec<u8>, &[&str]); 3] =
        [(stream.clone(), &["QEVM"]), (zstd(&stream), &["zstd", "QEVM"]), (gzip(&stream), &["gzip", "QEVM"])];
    for (wrapped, names) in layers {
        let padded = [&wrapped[..], &[0; 100_000]].concat();
        for met in [extract(&padded, &[]), extract_piped(&padded, &[])] {
            met.check_same(&bare, names);
            assert_eq!(met.manifest["warnings"], json!([]));
        }
        for stale in [&stream[5000..], &older[7..]] {
            let padded = [&wrapped[..], &[0; 4096], stale].concat();
            for met in [extract(&padded, &[]), extract_piped(&padded, &[])] {
                met.check_same(&bare, names);
                assert!(met.output.stderr.contains("behind"), "{}", met.output.stderr);
            }
        }
    }
}

#[test]
fn the_stream_may_begin_further_on() {
    let stream = small_stream();
    let bare = extract(&stream, &[]);
    let layers: [(Vec<u8>, &[&str]); 2] = [(stream.clone(), &["QEVM"]), (zstd(&stream), &["zstd", "QEVM"])];
    for (wrapped, names) in layers {
        let shifted = [&[7; 6144], &wrapped[..]].concat();
        for offset in ["6144", "0x1800", "6K", "6KiB"] {
            extract(&shifted, &["--offset", offset]).check_same(&bare, names);
            extract_piped(&shifted, &["--offset", offset]).check_same(&bare, names);
        }
        check_refused(&shifted, &[]);
        check_refused(&shifted, &["--offset", "1TiB"]);
    }
}
