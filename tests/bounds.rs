//! What a stream can make the command take: disk, files, directories, memory.
//! And that it takes no more than it is allowed.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use support::cli::{Output, Workplace, entries_of, files_in, ramlift_fed, ramlift_within, with_mounts};
use support::hostile::in_time;
use support::synth::{Block, Records, Synth, noise};

/// Pages of the streams here.
const PAGES: u64 = 64;

/// A stream of one block of 64 pages, each sent so often.
fn stream(passes: u64) -> Vec<u8> {
    let start = Synth::machine().ram_start(&[Block::new("main.ram", PAGES << 12)]);
    let pass = |synth: Synth, pass: u64| {
        let records = (0..PAGES).fold(Records::new(), |records, page| {
            records.data("main.ram", page << 12, &noise(pass * PAGES + page + 1, 4096))
        });
        synth.ram_part(records)
    };
    (0..passes).fold(start, pass).ram_end(Records::new()).finish()
}

/// Bytes of disk that everything below `dir` takes.
fn disk_of(dir: &Path) -> u64 {
    files_in(dir).iter().map(|file| fs::metadata(dir.join(file)).unwrap().blocks() * 512).sum()
}

#[track_caller]
fn assert_refused(place: &Workplace, output: Output) {
    let output = output.expect_code(1);
    assert!(output.stderr.starts_with("error: --max-output: "), "{}", output.stderr);
    assert!(output.stderr.contains("hint: "), "{}", output.stderr);
    assert_eq!(entries_of(place.path()), ["stream"]);
}

#[test]
fn more_than_is_allowed_is_not_begun() {
    let place = Workplace::with(&stream(1));
    let bytes = PAGES << 12;
    for format in ["blocks", "elf", "lime", "raw", "avml", "kdump"] {
        let run = |max: u64| {
            let max = max.to_string();
            let args = ["extract", "-q", "stream", "-o", "out", "--format", format];
            let map = ["--map", "main.ram@0"];
            let rest = ["--max-output", max.as_str()];
            let map = if format == "blocks" { &map[..0] } else { &map[..] };
            place.ramlift(&[&args[..], map, &rest].concat())
        };
        assert_refused(&place, run(bytes / 2));
        if format == "blocks" {
            assert_refused(&place, run(bytes - 1));
            // The manifest counts too.
            assert_refused(&place, run(bytes + 10));
        }
        run(bytes + (64 << 10)).expect_code(0);
        let out = place.join("out");
        if out.is_dir() {
            fs::remove_dir_all(out).unwrap();
        } else {
            fs::remove_file(out).unwrap();
            fs::remove_file(place.join("out.manifest.json")).unwrap();
        }
    }
    let output = place.ramlift(&["extract", "-q", "stream", "-o", "out", "--max-output", "1M", "--sync"]);
    output.expect_code(0);
}

#[test]
fn heads_and_manifests_of_single_files_count_too() {
    let place = Workplace::with(&stream(1));
    for format in ["elf", "lime", "raw", "avml", "kdump"] {
        let run = |max: Option<u64>| {
            let max = max.map(|max| format!("--max-output={max}"));
            let args = ["extract", "-q", "stream", "-o", "out", "--format", format, "--map=main.ram@0"];
            place.ramlift(&args.into_iter().chain(max.as_deref()).collect::<Vec<_>>())
        };
        run(None).expect_code(0);
        let [file, manifest] = ["out", "out.manifest.json"].map(|name| place.join(name).metadata().unwrap());
        let remove = || {
            fs::remove_file(place.join("out")).unwrap();
            fs::remove_file(place.join("out.manifest.json")).unwrap();
        };
        remove();
        let memory = PAGES << 12;
        // Raw memory has no head.
        assert_refused(&place, run(Some(memory - u64::from(format == "raw"))));
        assert_refused(&place, run(Some(memory + manifest.len() / 2)));
        // The limit is an argument, and those are in the manifest.
        run(Some(file.len() + manifest.len() + 200)).expect_code(0);
        remove();
    }
}

/// A stream of so many pages of zeros.
fn zeros(pages: u64) -> Vec<u8> {
    let records = (1..pages)
        .fold(Records::new().fill("main.ram", 0, 0), |records, page| records.next_fill(page << 12, 0));
    Synth::machine().ram(&[Block::new("main.ram", pages << 12)], records).finish()
}

#[test]
fn a_compressed_dump_whose_fixed_part_is_too_long_is_not_begun() {
    // 24 bytes for each page, zero or not.
    let place = Workplace::with(&zeros(100_000));
    let script = "mkdir small && mount -t tmpfs -o size=2m none small && cp stream small; \"$0\" extract -q stream --format kdump --map main.ram@0 -o small/out; echo $?; ls small";
    let args = ["extract", "-q", "stream", "-o", "out", "--format", "kdump", "--map", "main.ram@0"];
    assert_refused(&place, place.ramlift(&[&args[..], &["--max-output", "2300K"]].concat()));
    place.ramlift(&[&args[..], &["--max-output", "2700K"]].concat()).expect_code(0);
    let Some((text, stderr)) = with_mounts(place.path(), script) else { return };
    assert!(text == "1\nstream\n" && stderr.contains("takes 24"), "{text}{stderr}");
    assert!(stderr.contains("hint: "), "{stderr}");
}

#[test]
fn a_stream_that_goes_by_is_ended_when_it_takes_more_than_is_allowed() {
    let place = Workplace::with(&[]);
    let args = |max| ["extract", "-q", "-", "-o", "out", "--max-output", max];
    assert_refused(&place, ramlift_fed(place.path(), &args("128K"), &stream(1)));
    // Pages that are sent again take no more room.
    ramlift_fed(place.path(), &args("1M"), &stream(40)).expect_code(0);
    assert!(disk_of(&place.join("out")) <= 1 << 20);
}

#[test]
fn the_least_record_takes_no_more_disk_than_is_said() {
    // 9 bytes of the stream: a page of one byte, as far from the next as a gap
    // can be that is written along.
    const TAKES: u64 = 68 << 10;
    let count = 1000;
    let records = (1..count).fold(Records::new().data("main.ram", 0, &noise(1, 4096)), |records, nth| {
        records.next_fill(nth * TAKES, 1)
    });
    let stream = Synth::machine().ram(&[Block::new("main.ram", count * TAKES)], records).finish();
    let place = Workplace::with(&stream);
    assert_refused(&place, place.ramlift(&["extract", "-q", "stream", "-o", "out", "--max-output", "16M"]));
    place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    let disk = fs::metadata(place.join("out/main.ram")).unwrap().blocks() * 512;
    assert!(disk <= count * TAKES, "{disk}");
}

#[test]
fn files_and_directories_are_no_more_than_blocks_allow() {
    let count = 500;
    let name = |nth: u64| format!("{nth}/a/b/c/d/e/f/g");
    let blocks: Vec<Block> = (0..count).map(|nth| Block::new(name(nth), 0x1000)).collect();
    let records = (0..count).fold(Records::new(), |records, nth| records.fill(name(nth), 0, 1));
    let place = Workplace::with(&Synth::machine().ram(&blocks, records).finish());
    place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    let files = files_in(place.join("out"));
    assert_eq!(files.len() as u64, count + 3, "a file for each block, and three");
    let directories: std::collections::BTreeSet<&Path> =
        files.iter().flat_map(|file| Path::new(file).ancestors().skip(1)).collect();
    assert!(directories.len() as u64 <= 8 * count, "{}", directories.len());
}

/// Address space, in KiB, that a stream of so many bytes may take: what is kept
/// of it (most of the shortest sections), and what the command has anyway, which
/// is less than half of this.
fn memory_kib(len: usize) -> u64 {
    (len as u64 >> 10) * 20 + (256 << 10)
}

#[test]
fn memory_is_no_more_than_a_small_multiple_of_the_stream() {
    let pages = 2_000_000;
    let backwards = (0..pages).rev().fold(Records::new().fill("main.ram", 0, 0), |records, page| {
        records.next_fill(page << 12, (page % 5) as u8)
    });
    let backwards = Synth::machine().ram(&[Block::new("main.ram", pages << 12)], backwards).finish();
    let mut blocks: Vec<Block> = (0..60_000).map(|nth| Block::new(format!("{nth:06}"), 0)).collect();
    blocks.push(Block::new("main.ram", 0x1000));
    let blocks = Synth::machine().ram(&blocks, Records::new().fill("main.ram", 0, 1)).finish();
    let sections =
        (0..1_000_000).fold(Synth::machine(), |synth, nth| synth.undescribed(nth + 3, "x", nth, &[1]));
    let sections = sections.finish_undescribed();
    for (what, stream) in [("pages", backwards), ("blocks", blocks), ("sections", sections)] {
        let place = Workplace::with(&stream);
        let args = ["info", "--json", "stream"];
        let output = in_time(|| ramlift_within(memory_kib(stream.len()), place.path(), &args));
        assert!([0, 3].contains(&output.code), "{what}: {}", output.stderr);
    }
}

#[test]
fn what_is_kept_of_a_stream_that_goes_by_is_what_it_has() {
    let ram = |synth: Synth| {
        let records = Records::new().data("main.ram", 0, &noise(1, 4096));
        synth.ram(&[Block::new("main.ram", 0x1000)], records).finish_undescribed()
    };
    // A large guest's postcopy has as many commands, of up to 64 KiB each.
    let commands = (0..100_000).fold(Synth::machine(), |synth, _| synth.command(1, &[]));
    let early = (0..20_000)
        .fold(Synth::machine(), |synth, nth| synth.undescribed(nth + 3, "x", nth, &[1]).command(1, &[]));
    for (what, stream) in [("commands", ram(commands)), ("devices before RAM", ram(early))] {
        let place = Workplace::with(&stream);
        let args = ["extract", "stream", "-o", "out", "--read-once"];
        let output = in_time(|| ramlift_within(memory_kib(stream.len()), place.path(), &args));
        assert!([0, 3].contains(&output.code), "{what}: {}", output.stderr);
    }
}

#[test]
fn a_layout_of_as_many_blocks_as_there_can_be_takes_no_time() {
    let names = (0..60_000).map(|nth| format!("b{nth}"));
    let blocks: Vec<Block> = names.map(|name| Block::new(name, 0x1000)).collect();
    let records = Records::new().data("b0", 0, &noise(1, 4096));
    let stream = Synth::new().configuration("pc-i440fx-10.0").ram(&blocks, records).finish();
    let place = Workplace::with(&stream);
    // It took nine seconds of an optimised build: each block was compared with all.
    in_time(|| place.ramlift(&["layout", "stream"])).expect_code(0);
    // And each DIMM of a domain with each block.
    let dimms = "<memory model='dimm'><address base='0x100000000'/></memory>".repeat(30_000);
    let xml = format!("<domain>{dimms}</domain>\0");
    let numbers = [2, u32::try_from(xml.len()).unwrap(), 1, 0, 0].map(u32::to_le_bytes).concat();
    let save = [b"LibvirtQemudSave", numbers.as_slice(), &[0; 56], xml.as_bytes(), &stream].concat();
    let place = Workplace::with(&save);
    in_time(|| place.ramlift(&["layout", "stream"])).expect_code(0);
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let place = Workplace::with(&stream(1));
    // Zeros that are sent as data take no room.
    let zeros =
        (0..2000).fold(Records::new(), |records, page| records.data("main.ram", page << 12, &[0; 4096]));
    fs::write(
        place.join("zeros"),
        Synth::machine().ram(&[Block::new("main.ram", 2000 << 12)], zeros).finish(),
    )
    .unwrap();
    fs::create_dir(place.join("small")).unwrap();
    let script = "mount -t tmpfs -o size=128k none small && for stream in stream zeros; do \"$0\" extract -q $stream -o small/$stream; echo $stream $?; done; ls -A small";
    let Some((text, stderr)) = with_mounts(place.path(), script) else { return };
    assert!(stderr.contains("262144 bytes") && stderr.contains("131072 free"), "{stderr}");
    assert_eq!(text, "stream 1\nzeros 0\nzeros\n", "{stderr}");
}
