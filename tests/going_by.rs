//! Streams that go by: what comes out is what comes of one that can be gone
//! back to.

mod support;

use std::fs;
use std::io::{self, Cursor, Read};

use ramlift::{ErrorKind, Incoming, Kept, Progress, Stream};
use support::cli::{Workplace, entries_of, files_in, ramlift_fed};
use support::fixtures::{read_json, unpack};
use support::going_by::{Images, check_going_by};
use support::synth::{Block, Records, Synth, noise};

const KIB_4: usize = 4096;

fn page(seed: u64) -> Vec<u8> {
    noise(seed, KIB_4)
}

/// Reads a stream as it goes by, and gives how that failed.
#[track_caller]
fn failure(incoming: Incoming) -> ramlift::Error {
    let (kept, mut images) = (Kept::new(), Images::new());
    Stream::read_once(incoming, &kept, &Progress::new(), &mut images).expect_err("it is refused")
}

fn by_chunks(bytes: &[u8], len: usize) -> Incoming {
    Incoming::new("pipe", Cursor::new(bytes.to_vec())).with_chunk_len(len)
}

#[test]
fn real_streams_are_the_same_as_they_go_by() {
    let manifest = read_json("manifest.json");
    let mut checked = 0;
    for name in manifest.as_object().unwrap().keys() {
        let bytes = unpack(name);
        let is_mapped = |stream: &Stream<'_>| {
            stream.configuration().is_some_and(|configuration| configuration.has_capability("mapped-ram"))
        };
        if Stream::parse(&bytes).is_ok_and(|stream| !is_mapped(&stream)) {
            println!("{name}");
            let stretches = check_going_by(&bytes, 150_000);
            assert!(stretches > 1 || bytes.len() < 500_000, "{name} is one stretch");
            check_going_by(&bytes, 8 << 20);
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} streams");
}

#[test]
fn what_needs_going_back_is_refused() {
    let error = failure(by_chunks(&unpack("pc-11.1-mapped-ram"), 1 << 20));
    assert!(matches!(error.kind(), ErrorKind::GoneBy { .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn pages_that_become_zero_are_zeroed_and_neighbours_stay() {
    let blocks = [Block::new("main.ram", 64 * KIB_4 as u64)];
    let mut first = Records::new();
    for nth in 0..64 {
        first = first.data("main.ram", nth * KIB_4 as u64, &page(nth));
    }
    // Zero by a fill, by data, and twice; between them is what came before.
    let second = Records::new()
        .fill("main.ram", 0x3000, 0)
        .data("main.ram", 0x5000, &[0; KIB_4])
        .data("main.ram", 0x8000, &page(100))
        .fill("main.ram", 0x9000, 7)
        .fill("main.ram", 0x9000, 0)
        .fill("main.ram", 0xa000, 9);
    let stream = Synth::machine()
        .target_page_bits(12)
        .ram_start(&blocks)
        .ram_part(first)
        .ram_end(second)
        .finish_undescribed();
    assert!(check_going_by(&stream, 10_000) > 20);
}

#[test]
fn a_device_before_ram_is_found_by_its_footer() {
    let stream = Synth::machine()
        .undescribed(9, "early", 0, &noise(5, 30_000))
        .ram(&[Block::new("main.ram", 0x4000)], Records::new().data("main.ram", 0, &page(1)))
        .finish_undescribed();
    check_going_by(&stream, 2_000);
}

#[test]
fn no_record_waits_for_the_page_size_for_ever() {
    // More fill pages than are put off until a page of data shows the page size;
    // or some, and then a delta, which is not put off.
    let many = (0..(1 << 20) + 5).map(|nth| (nth % 16) * KIB_4 as u64);
    let many =
        many.fold(Records::new().fill("main.ram", 0, 0), |records, offset| records.next_fill(offset, 0));
    let few = Records::new().fill("main.ram", 0, 1).next_xbzrle(0, &[(3, b"new")]);
    for (records, chunk_len) in [(many, 1 << 18), (few, 100)] {
        let records = records.next_fill(0x10_000, 7).next_fill(0x11_000, 8);
        for records in [records.clone(), records.next_data(0x12_000, &page(1))] {
            let blocks = [Block::new("main.ram", 0x20_000)];
            check_going_by(&Synth::machine().ram(&blocks, records).finish_undescribed(), chunk_len);
        }
    }
}

#[test]
fn what_stands_behind_a_stream_is_counted() {
    let whole = unpack("pc-10.0-paused");
    check_going_by(&[whole.clone(), vec![0; 20 << 20]].concat(), 1 << 20);
    check_going_by(&[whole.clone(), noise(3, 20 << 20)].concat(), 1 << 20);
    // The remains of an older save.
    check_going_by(&[whole.as_slice(), &whole[whole.len() / 3..]].concat(), 1 << 20);
}

#[test]
fn a_stream_cut_anywhere_is_an_error() {
    let whole = unpack("pc-7.2-live");
    for nth in 1..40 {
        let cut = whole.len() * nth / 40;
        let error = failure(by_chunks(&whole[..cut], 100_000));
        assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "cut at {cut}: {error}");
        assert!(error.offset().is_some_and(|at| at.0 <= cut as u64));
    }
}

#[test]
fn a_reader_that_fails_is_an_error_with_its_name() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the line is down"))
        }
    }
    let whole = unpack("pc-7.2-live");
    for len in [0, 4, whole.len() / 2] {
        let head = Cursor::new(whole[..len].to_vec());
        let error = failure(Incoming::new("a pipe", head.chain(Broken)));
        assert!(matches!(error.kind(), ErrorKind::Io { .. }), "{len}: {error}");
        assert!(error.to_string().contains("a pipe"));
    }
}

#[test]
fn a_page_size_that_shows_late_counts_from_the_first_page() {
    // Pages of 16 KiB, and nothing says so before the first of data.
    let len = 16 << 10;
    let mut records = Records::new();
    for nth in 0..200 {
        records = records.fill("main.ram", nth * len as u64, 0);
    }
    records = records.data("main.ram", 200 * len as u64, &noise(1, len));
    for nth in 201..210 {
        records = records.data("main.ram", nth * len as u64, &noise(nth, len));
    }
    let blocks = [Block::new("main.ram", 256 * len as u64)];
    let stream = Synth::machine().ram(&blocks, records).finish_undescribed();
    assert_eq!(Stream::parse(&stream).unwrap().ram().unwrap().page_size().bytes(), len as u64);
    check_going_by(&stream, 500);
}

/// What `extract` writes of a stream, but for what tells files from pipes.
fn extracted(place: &Workplace, args: &[&str], input: Option<&[u8]>) -> (i32, Vec<(String, Vec<u8>)>) {
    let output = match input {
        Some(input) => ramlift_fed(place.path(), args, input),
        None => place.ramlift(args),
    };
    let mut files: Vec<(String, Vec<u8>)> = files_in(place.join("out"))
        .into_iter()
        .map(|name| (name.clone(), fs::read(place.join("out").join(name)).unwrap()))
        .collect();
    for (_, bytes) in files.iter_mut().filter(|(name, _)| name == "manifest.json") {
        let mut manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        for key in ["source", "inputs", "run"] {
            manifest[key] = serde_json::Value::Null;
        }
        *bytes = manifest.to_string().into_bytes();
    }
    (output.code, files)
}

#[test]
fn the_command_writes_the_same_from_a_pipe() {
    for name in ["pc-10.0-paused", "pc-7.2-xbzrle", "pc-7.2-block", "pc-10.0-ignore-shared", "arm-mps2-7.2"] {
        let bytes = unpack(name);
        let (file, pipe) = (Workplace::with(&bytes), Workplace::with(b""));
        let from_file = extracted(&file, &["extract", "stream", "-o", "out", "--block-devices"], None);
        let from_pipe = extracted(&pipe, &["extract", "-", "-o", "out", "--block-devices"], Some(&bytes));
        assert!(from_file == from_pipe, "{name}");
        std::fs::remove_dir_all(file.join("out")).unwrap();
        let args = ["extract", "stream", "-o", "out", "--block-devices", "--read-once"];
        assert!(extracted(&file, &args, None) == from_pipe, "{name}");
    }
}

#[test]
fn the_command_writes_only_the_blocks_asked_for_from_a_pipe() {
    let place = Workplace::with(b"");
    let args = ["extract", "-", "-o", "out", "--block", "pc.rom"];
    ramlift_fed(place.path(), &args, &unpack("pc-10.0-paused")).expect_code(0);
    assert_eq!(files_in(place.join("out")), ["desc.json", "manifest.json", "pc.rom", "state.json"]);
    let args = ["extract", "-", "-o", "other", "--block", "no.such"];
    let output = ramlift_fed(place.path(), &args, &unpack("pc-10.0-paused")).expect_code(1);
    assert!(output.stderr.contains("no RAM block \"no.such\""), "{}", output.stderr);
    assert!(!place.join("other").exists());
}

#[test]
fn what_cannot_be_read_once_from_a_file_is_read_as_ever() {
    let place = Workplace::with(&unpack("pc-11.1-mapped-ram"));
    place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(0);
    place.ramlift(&["extract", "stream", "-o", "once", "--read-once"]).expect_code(0);
    assert!(place.read("once/pc.ram") == place.read("out/pc.ram"));
    assert_eq!(entries_of(place.path()), ["once", "out", "stream"]);
}

#[test]
fn a_shared_block_is_supplied_to_what_came_by_a_pipe() {
    let bytes = unpack("pc-10.0-ignore-shared");
    let len = Stream::parse(&bytes).unwrap().ram().unwrap().block(ramlift::BlockId(0)).unwrap().used_length;
    let shared = noise(8, len as usize);
    let place = Workplace::with(&shared);
    let args = ["extract", "-", "-o", "out", "--shared-file", "pc.ram=stream"];
    ramlift_fed(place.path(), &args, &bytes).expect_code(0);
    assert!(place.read("out/pc.ram") == shared);
}

#[test]
fn all_commands_read_a_pipe() {
    let bytes = unpack("pc-10.0-paused");
    let place = Workplace::with(&bytes);
    for args in [
        ["state", "-"].as_slice(),
        &["desc", "-"],
        &["analyze-migration", "-f", "-"],
        &["analyze-migration", "-f", "-", "-d", "desc"],
        &["state", "-", "--raw", "timer"],
    ] {
        let from_pipe = ramlift_fed(place.path(), args, &bytes).expect_code(0);
        let from_file: Vec<&str> = args.iter().map(|arg| if *arg == "-" { "stream" } else { arg }).collect();
        assert!(place.ramlift(&from_file).stdout == from_pipe.stdout, "{args:?}");
    }
    let info = ramlift_fed(place.path(), &["info", "-", "--json"], &bytes).expect_code(0).json();
    let mut expected = place.ramlift(&["info", "stream", "--json"]).json();
    expected["source"] =
        serde_json::json!({ "path": "-", "size": null, "layers": ["QEVM"], "snapshot": null });
    // Pages that went by are gone.
    expected["guest"] = serde_json::json!({ "looked_at": "nothing", "linux": null, "windows": null });
    assert_eq!(info, expected);
}

#[test]
fn what_a_pipe_cannot_give_is_refused_and_nothing_is_left() {
    let bytes = unpack("pc-10.0-paused");
    let place = Workplace::with(b"");
    for args in [
        ["extract", "-", "--salvage"].as_slice(),
        &["info", "-", "--salvage"],
        &["extract", "-", "--channel", "stream"],
        &["analyze-migration", "-f", "-", "-x"],
        &["analyze-migration", "-f", "-", "-m"],
        &["state", "-", "--raw", "ram"],
    ] {
        let output = ramlift_fed(place.path(), args, &bytes).expect_code(1);
        assert!(output.stderr.contains("file"), "{args:?}: {}", output.stderr);
    }
    let mapped = unpack("pc-11.1-mapped-ram");
    let output = ramlift_fed(place.path(), &["extract", "-"], &mapped).expect_code(1);
    assert!(output.stderr.contains("write it to a file first"), "{}", output.stderr);
    ramlift_fed(place.path(), &["extract", "-"], &bytes[..bytes.len() / 2]).expect_code(1);
    assert_eq!(entries_of(place.path()), ["stream"]);
}
