//! Streams inside something else: the command gives what it gives of the bare
//! stream, or says which layer is wrong, and where.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};

use ramlift::StreamOffset;
use ramlift::wrapper::compression::{Compression, decoder};
use ramlift::wrapper::libvirt::SaveImage;
use ramlift::wrapper::qcow2::Qcow2;
use serde_json::{Value, json};
use support::cli::{Output, Workplace, binary, entries_of, files_in, ramlift_fed, ramlift_within};
use support::fixtures::{data, read_json, unpack, unpack_channels};

const FORMATS: [&str; 7] = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"];

/// Snapshots of one small stream, scattered over the image or in a row.
const SAVEVM: [&str; 4] =
    ["savevm-7.2", "savevm-7.2-v2-small-clusters", "savevm-7.2-large-clusters", "savevm-7.2-extended-l2"];

const PACKED: [(&str, &str); 11] = [
    ("packed.gz", "gzip"),
    ("packed.bz2", "bzip2"),
    ("packed.xz", "xz"),
    ("packed-blocks.xz", "xz"),
    ("packed.lzma", "lzma"),
    ("packed.zst", "zstd"),
    ("packed.lz4", "lz4"),
    ("packed-linked.lz4", "lz4"),
    ("packed.lzo", "lzop"),
    ("packed-crc32.lzo", "lzop"),
    ("packed-unchecked.lzo", "lzop"),
];

/// Address space that is enough for any of these, in KiB: some of it is stacks.
const ENOUGH_KIB: u64 = 2 << 20;

/// A wrapped stream of `tests/data`, out of the zstd that it is kept in.
fn fixture(name: &str) -> Vec<u8> {
    let list = read_json("wrappers.json");
    let file = list[name]["file"].as_str().unwrap_or_else(|| panic!("no {name}"));
    let bytes = fs::read(data(file)).unwrap();
    if name.starts_with("packed") { bytes } else { decode(Compression::Zstd, &bytes) }
}

fn decode(kind: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    decoder(kind, bytes, StreamOffset(0)).read_to_end(&mut content).unwrap();
    content
}

/// What all of `PACKED` hold, and the snapshots of `SAVEVM`.
fn small_stream() -> Vec<u8> {
    decode(Compression::Gzip, &fixture("packed.gz"))
}

/// The stream of a save image, and its XML.
fn save_image(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
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

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
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

// libvirt

#[test]
fn a_save_image_gives_what_its_stream_gives() {
    for format in FORMATS {
        let wrapped = fixture(&format!("libvirt-12.8-{format}"));
        let (stream, xml) = save_image(&wrapped);
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
        check_printed(&wrapped, &save_image(&wrapped).0, &[]);
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
        let bare = extract(&save_image(&wrapped).0, &[]);
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

// qcow2

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

// Compressed as a whole, and several layers

#[test]
fn a_compressed_file_gives_what_its_stream_gives() {
    let stream = small_stream();
    let bare = extract(&stream, &[]);
    for (name, command) in PACKED {
        let wrapped = fixture(name);
        extract(&wrapped, &[]).check_same(&bare, &[command, "QEVM"]);
        extract_piped(&wrapped, &[]).check_same(&bare, &[command, "QEVM"]);
        assert_eq!(chain(&wrapped, &[]), format!("{command} → QEVM"));
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
    let (stream, xml) = save_image(&image);
    let (bare, wrapped) = (extract(&stream, &[]), zstd(&image));
    for met in [extract(&wrapped, &[]), extract_piped(&wrapped, &[])] {
        met.check_same(&bare, &["zstd", "libvirt save v2, gzip", "QEVM"]);
        assert!(met.files["domain.xml"] == xml);
    }
    // Offsets are those of the stream, which is then in a file of its own.
    let image = fixture("libvirt-12.8-sparse");
    let bare = extract(&save_image(&image).0, &[]);
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

// What is cut, damaged or made to harm

/// Checks that a wrapped stream cut anywhere is refused, by a place in it.
#[track_caller]
fn check_cuts(wrapped: &[u8], more: &[&str]) {
    for part in [3, 50, 90, 99] {
        let len = wrapped.len() * part / 100;
        let stderr = check_refused(&wrapped[..len], more);
        assert!(stderr.contains(" at 0x") && stderr.contains("hint: "), "{part}: {stderr}");
    }
}

#[test]
fn what_is_cut_is_never_a_smaller_guest() {
    for (name, _) in PACKED {
        check_cuts(&fixture(name), &[]);
    }
    check_cuts(&zstd(&fixture("libvirt-12.8-gzip")), &[]);
    check_cuts(&gzip(&fixture("packed.zst")[..1000]), &[]);
    for format in FORMATS {
        check_cuts(&fixture(&format!("libvirt-12.8-{format}")), &[]);
    }
}

#[test]
fn a_cut_image_is_never_a_smaller_guest() {
    for name in ["savevm-7.2", "savevm-11.1-mapped-ram"] {
        let image = fixture(name);
        for len in [50, 80, 103, 1000, image.len() / 3, image.len() * 9 / 10] {
            let place = Workplace::with(&image[..len]);
            let stderr = place.ramlift(&[&EXTRACT[..], &["--snapshot", "2"]].concat()).expect_code(1).stderr;
            assert!(stderr.contains(" at 0x"), "{name} cut at {len}: {stderr}");
            assert_eq!(entries_of(place.path()), ["stream"]);
        }
    }
}

#[test]
fn a_checksum_behind_the_stream_counts() {
    for wrapped in [gzip(&small_stream()), zstd(&small_stream())] {
        let mut wrong = wrapped.clone();
        // Of gzip the length follows the sum, of zstd nothing.
        let at = if wrapped[0] == 0x1f { wrong.len() - 8 } else { wrong.len() - 4 };
        wrong[at] ^= 1;
        let stderr = check_refused(&wrong, &[]);
        assert!(stderr.contains("compressed data") && stderr.contains(" at 0x"), "{stderr}");
        check_refused(&wrapped[..wrapped.len() - 1], &[]);
        let place = Workplace::with(&wrong);
        place.ramlift(&["analyze-migration", "-f", "stream", "-m"]).expect_code(1);
        place.ramlift(&["info", "stream", "--salvage"]).expect_code(3);
    }
}

#[test]
fn a_bomb_takes_no_memory_and_leaves_nothing() {
    let zeros = vec![0; 1 << 28];
    // A frame whose window is 2³¹ bytes.
    let window = b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0".to_vec();
    for bomb in [gzip(&zeros), zstd(&zeros), bzip2(&zeros), gzip(&gzip(&zeros)), window] {
        let place = Workplace::with(&bomb);
        for args in [&EXTRACT[..], &["info", "stream"], &["extract", "stream", "--salvage"]] {
            ramlift_within(ENOUGH_KIB, place.path(), args).expect_code(1);
        }
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
    // Behind a stream they are only looked at.
    let place = Workplace::with(&zstd(&[small_stream(), zeros].concat()));
    ramlift_within(ENOUGH_KIB, place.path(), &EXTRACT).expect_code(0);
}

#[test]
fn layers_without_end_are_refused() {
    let mut wrapped = small_stream();
    for _ in 0..20 {
        wrapped = gzip(&wrapped);
    }
    let stderr = check_refused(&wrapped, &[]);
    assert!(stderr.contains("more than 8 layers: gzip → gzip"), "{stderr}");
}

/// Where the tables of the image's first snapshot are: the first L1 entry of
/// its VM state, and the L2 table that this names.
fn tables(image: &[u8]) -> (usize, usize) {
    let be64 = |at: usize| u64::from_be_bytes(*image[at..].first_chunk().unwrap());
    let table = be64(64) as usize;
    // Clusters of 64 KiB.
    let l1 = be64(table) + be64(table + 48).div_ceil(1 << 29) * 8;
    (l1 as usize, (be64(l1 as usize) & 0x00ff_ffff_ffff_fe00) as usize)
}

fn put(image: &[u8], at: usize, number: usize) -> Vec<u8> {
    let mut image = image.to_vec();
    image[at..at + 8].copy_from_slice(&(number as u64).to_be_bytes());
    image
}

#[test]
fn tables_that_loop_are_refused() {
    let image = fixture("savevm-7.2");
    let (l1, l2) = tables(&image);
    let snapshot_table = put(&image, l1, u64::from_be_bytes(*image[64..].first_chunk().unwrap()) as usize);
    for image in [put(&image, l1, l1 & !0xffff), put(&image, l2, l2), put(&image, l2 + 8, l2), snapshot_table]
    {
        let stderr = check_refused(&image, &["--snapshot", "first"]);
        assert!(stderr.contains("at 0x") && stderr.contains("table"), "{stderr}");
    }
}

#[test]
fn zeros_that_no_cluster_holds_are_no_work() {
    let image = fixture("savevm-7.2");
    let (l1, _) = tables(&image);
    let table = u64::from_be_bytes(*image[64..].first_chunk().unwrap()) as usize;
    // An L1 table at the end, of 2²² entries: 2⁵¹ bytes, of which the last and the first are there.
    let disk = (l1 - u64::from_be_bytes(*image[table..].first_chunk().unwrap()) as usize) / 8;
    let mut claiming = put(&image, table, image.len().next_multiple_of(1 << 16));
    claiming[table + 8..table + 12].copy_from_slice(&(1_u32 << 22).to_be_bytes());
    claiming = put(&claiming, table + 40, (((1_usize << 22) - disk) << 29) - 5);
    claiming.resize(image.len().next_multiple_of(1 << 16) + (disk << 3), 0);
    claiming.extend_from_slice(&image[l1..l1 + 8]);
    claiming.resize(image.len().next_multiple_of(1 << 16) + (32 << 20), 0);
    let bare = extract(&small_stream(), &[]);
    let met = extract(&claiming, &["--snapshot", "first"]);
    met.check_same(&bare, &["qcow2 snapshot \"first\"", "QEVM"]);
    let place = Workplace::with(&claiming);
    let args = [&EXTRACT[..], &["--salvage", "--snapshot", "first"]].concat();
    let output = ramlift_within(ENOUGH_KIB, place.path(), &args);
    assert!(output.code == 1 && output.stderr.starts_with("error: "), "{output:?}");
}

// What has to be gone back in

#[test]
fn what_is_whole_is_salvaged_from_a_cut_file() {
    let image = fixture("libvirt-12.8-zstd");
    let cut = &image[..image.len() - 9000];
    let place = Workplace::with(cut);
    let args = [&EXTRACT[..], &["--salvage"]].concat();
    let output = place.ramlift(&args).expect_code(3);
    assert!(output.stderr.contains("unpacked up to here: "), "{}", output.stderr);
    let met = Extracted::take(&place, output);
    // The same as of the stream's beginning.
    let mut rest = cut;
    let mut stream = Vec::new();
    let image = SaveImage::read(&mut rest).unwrap();
    image.open(rest, StreamOffset(0)).read_to_end(&mut stream).unwrap_err();
    let bare = Workplace::with(&stream);
    let output = bare.ramlift(&args).expect_code(3);
    met.check_same(&Extracted::take(&bare, output), &["libvirt save v2, zstd", "QEVM"]);
    assert!(met.files.contains_key("domain.xml"));
    assert_eq!(met.manifest["salvaged"], true);
    place.ramlift(&["state", "stream", "--salvage"]).expect_code(3);
    place.ramlift(&["info", "stream", "--salvage"]).expect_code(3);
}

#[test]
fn a_whole_file_is_salvaged_whole() {
    let bare = extract(&small_stream(), &["--salvage"]);
    for (name, command) in PACKED {
        extract(&fixture(name), &["--salvage"]).check_same(&bare, &[command, "QEVM"]);
    }
    for name in SAVEVM {
        let met = extract(&fixture(name), &["--salvage", "--snapshot", "first"]);
        met.check_same(&bare, &["qcow2 snapshot \"first\"", "QEVM"]);
    }
}

#[test]
fn what_is_whole_is_salvaged_from_a_damaged_image() {
    let image = fixture("savevm-7.2");
    let (_, l2) = tables(&image);
    // The seventh cluster of the VM state is behind the file's end.
    let damaged = put(&image, l2 + 6 * 8, 1 << 40);
    check_refused(&damaged, &["--snapshot", "first"]);
    let place = Workplace::with(&damaged);
    let args = [&EXTRACT[..], &["--salvage", "--snapshot", "first"]].concat();
    let met = Extracted::take(&place, place.ramlift(&args).expect_code(3));
    let bare = Workplace::with(&small_stream()[..6 << 16]);
    let bare = Extracted::take(&bare, bare.ramlift(&[&EXTRACT[..], &["--salvage"]].concat()).expect_code(3));
    met.check_same(&bare, &["qcow2 snapshot \"first\"", "QEVM"]);
    assert!(met.output.stderr.contains("0x10000000000"), "{}", met.output.stderr);
}

#[test]
fn a_directory_for_temporary_files_that_is_not_there_is_named() {
    let place = Workplace::with(&fixture("packed.gz"));
    let mut command = std::process::Command::new(binary());
    command.args(["extract", "stream", "--salvage"]).current_dir(place.path());
    let output = command.env("TMPDIR", place.join("missing")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("missing"), "{stderr}");
    // Where it is there, nothing stays in it.
    fs::create_dir(place.join("missing")).unwrap();
    assert!(command.output().unwrap().status.success());
    assert_eq!(entries_of(place.join("missing")), [""; 0]);
}

#[test]
fn the_script_does_all_of_its_work_on_wrapped_streams() {
    let stream = small_stream();
    let bare = Workplace::with(&stream);
    let files = |place: &Workplace| {
        let out = place.ramlift(&["analyze-migration", "-f", "stream", "-x"]).expect_code(0).stdout;
        let names = files_in(place.path()).into_iter().filter(|name| name != "stream");
        (out, names.map(|name| place.read(&name)).collect::<Vec<_>>())
    };
    let memory =
        |place: &Workplace| place.ramlift(&["analyze-migration", "-f", "stream", "-m"]).expect_code(0).stdout;
    let expected = (files(&bare), memory(&bare));
    for wrapped in [fixture("packed.xz"), zstd(&gzip(&stream))] {
        let place = Workplace::with(&wrapped);
        assert!((files(&place), memory(&place)) == expected);
    }
}

#[test]
fn channels_are_joined_to_a_compressed_main_channel() {
    let name = "pc-7.2-multifd-live";
    let (stream, channels) = (unpack(name), unpack_channels(name));
    let [plain, packed] = [stream.clone(), zstd(&stream)].map(|main| {
        let place = Workplace::with(&main);
        let mut args = EXTRACT.map(str::to_owned).to_vec();
        for (nth, channel) in channels.iter().enumerate() {
            let path = place.join(&format!("channel-{nth}"));
            fs::write(&path, channel).unwrap();
            args.extend(["--channel".to_owned(), path.display().to_string()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = place.ramlift(&args).expect_code(0);
        Extracted::take(&place, output)
    });
    packed.check_same(&plain, &["zstd", "QEVM"]);
}

#[test]
fn a_pipe_cannot_be_gone_back_in() {
    let place = Workplace::with(b"");
    for args in [&["extract", "-", "--salvage"][..], &["analyze-migration", "-f", "-", "-x"]] {
        let stderr = ramlift_fed(place.path(), args, &fixture("libvirt-12.8-zstd")).expect_code(1).stderr;
        assert!(stderr.contains("libvirt save v2, zstd → QEVM"), "{stderr}");
        assert!(stderr.contains("write it to a file first"), "{stderr}");
    }
    assert_eq!(entries_of(place.path()), ["stream"]);
}
