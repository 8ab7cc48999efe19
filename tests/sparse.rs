//! Files of terabytes that are holes: what they take is what they hold, and what
//! comes out is what comes out of zeros.

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use ramlift::{Bytes, Progress, Stream};
use support::cli::{Workplace, binary, files_in};
use support::fixtures::unpack;
use support::synth::{Block, Records, Synth, noise, small_stream, str8};

const TIB: u64 = 1 << 40;

/// How long files are. ext4 has no longer ones than 16 TiB.
const LONG: u64 = 4 * TIB;

/// And those that are written out as well.
const SHORT: u64 = 16 << 20;

/// Processor time of a run, in seconds, and what it may allocate, in KiB. To look
/// through 4 TiB takes an hour.
const SECONDS: u64 = 10;
const DATA_KIB: u64 = 512 << 10;

const PAGE: u64 = 4096;

/// The fields of a device of one byte.
const BYTE: &str = r#"{"name": "byte", "type": "uint8", "size": 1}"#;

/// A file: its length, and what stands where in it.
struct Sparse {
    len: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    /// A piece, a hole, and another piece at the end of `len` bytes.
    fn around_hole(first: Vec<u8>, last: Vec<u8>, len: u64) -> Self {
        let at = len - last.len() as u64;
        Self { len, pieces: vec![(0, first), (at, last)] }
    }

    /// Writes it with its holes. `None`, which is said, where there is no such file.
    fn place(&self) -> Option<Workplace> {
        let place = Workplace::with(&[]);
        let file = File::options().write(true).open(place.join("stream")).unwrap();
        if let Err(why) = file.set_len(self.len) {
            eprintln!("SKIPPED: no file of {} bytes is to be had here: {why}", self.len);
            return None;
        }
        self.pieces.iter().for_each(|(at, piece)| file.write_all_at(piece, *at).unwrap());
        age(&file);
        let disk = file.metadata().unwrap().blocks() * 512;
        if disk > self.len / 2 {
            eprintln!("SKIPPED: there are no holes here");
            return None;
        }
        Some(place)
    }

    /// Its bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        for (at, piece) in &self.pieces {
            bytes[*at as usize..][..piece.len()].copy_from_slice(piece);
        }
        bytes
    }
}

/// Has a file be as old as the other, and older than what may still be written.
fn age(file: &File) {
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

/// How a run ended that was allowed little.
struct Run {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

#[track_caller]
fn run(place: &Workplace, args: &[&str]) -> Run {
    let script = format!("ulimit -t {SECONDS} -d {DATA_KIB} && exec \"$0\" \"$@\"");
    let mut command = Command::new("bash");
    command.arg("-c").arg(script).arg(binary()).args(args).current_dir(place).stdin(Stdio::null());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let Some(code) = output.status.code() else { panic!("{args:?}: {}: {stderr}", output.status) };
    assert!(code <= 3, "{args:?}: {code}: {stderr}");
    Run { code, stdout: output.stdout, stderr }
}

/// All that is done with a stream, and where it may leave something.
const WAYS: [&[&str]; 14] = [
    &["info", "stream", "--json"],
    &["info", "stream", "--json", "--guest"],
    &["info", "stream", "--json", "--salvage"],
    &["state", "stream"],
    &["state", "stream", "--salvage"],
    &["cpu", "stream"],
    &["layout", "stream"],
    &["desc", "stream"],
    &["extract", "-q", "stream", "-o", "out"],
    &["extract", "-q", "stream", "-o", "saved", "--salvage"],
    &["extract", "-q", "stream", "-o", "elf", "--salvage", "--format", "elf", "--map", "main.ram@0"],
    &["extract", "-q", "stream", "-o", "raw", "--salvage", "--format", "raw", "--map", "main.ram@0"],
    &["extract", "-q", "stream", "-o", "lime", "--salvage", "--format", "lime", "--map", "main.ram@0"],
    &["extract", "-q", "stream", "-o", "avml", "--salvage", "--format", "avml", "--map", "main.ram@0"],
];

const KDUMP: [&str; 9] =
    ["extract", "-q", "stream", "-o", "kdump", "--salvage", "--format", "kdump", "--map=main.ram@0"];

/// Runs every way over a file. Fails if one takes its time, memory or disk from
/// the file's length. Gives what each printed.
#[track_caller]
fn check_long(sparse: &Sparse) -> Option<Vec<Run>> {
    let place = sparse.place()?;
    let mut runs: Vec<Run> = WAYS.iter().map(|args| run(&place, args)).collect();
    runs.push(run(&place, &KDUMP));
    for output in ["out", "saved"].into_iter().filter(|output| place.join(output).is_dir()) {
        let report = run(&place, &["verify", output]);
        assert!([0, 3].contains(&report.code), "{}", report.stderr);
    }
    let disk = files_in(&place).into_iter().map(|file| place.join(&file).metadata().unwrap().blocks() * 512);
    let disk: u64 = disk.sum();
    assert!(disk < 64 << 20, "{disk} bytes of disk");
    Some(runs)
}

/// Checks that a hole is read as zeros are.
#[track_caller]
fn check_same(sparse: &Sparse) {
    let Some(holes) = sparse.place() else { return };
    let bytes = sparse.bytes();
    let zeros = Workplace::with(&bytes);
    age(&File::options().write(true).open(zeros.join("stream")).unwrap());
    assert!(zeros.join("stream").metadata().unwrap().blocks() * 512 >= sparse.len);
    for args in WAYS.into_iter().chain([&KDUMP[..]]) {
        let [met, expected] = [&holes, &zeros].map(|place| place.ramlift(args));
        assert_eq!(met.code, expected.code, "{args:?}: {} {}", met.stderr, expected.stderr);
        assert!(met.stdout == expected.stdout, "{args:?}");
        assert_eq!(met.stderr, expected.stderr, "{args:?}");
    }
    assert_eq!(files_in(&holes), files_in(&zeros));
    for file in files_in(&holes).into_iter().filter(|file| file.contains('/')) {
        let (directory, file) = file.split_once('/').unwrap();
        let [met, expected] = [&holes, &zeros].map(|place| {
            // Two files are not one.
            let inode = format!(r#""inode":{}"#, place.join("stream").metadata().unwrap().ino());
            String::from_utf8_lossy(&place.read_of_any_run(directory, file)).replace(&inode, "")
        });
        assert!(met == expected, "{directory}/{file}");
    }
    for file in ["elf", "raw", "lime", "avml", "kdump"].into_iter().filter(|file| holes.join(file).exists()) {
        assert!(holes.read(file) == zeros.read(file), "{file}");
    }
}

/// Both, of what `sparse` makes of a length.
#[track_caller]
fn check(sparse: impl Fn(u64) -> Sparse) -> Option<Vec<Run>> {
    check_same(&sparse(SHORT));
    check_long(&sparse(LONG))
}

#[test]
fn a_hole_behind_the_end_is_passed_over() {
    let stream = small_stream().finish();
    let runs = check(|len| Sparse { len, pieces: vec![(0, stream.clone())] });
    let Some(runs) = runs else { return };
    assert_eq!(runs[0].code, 0, "{}", runs[0].stderr);
    let place = Workplace::with(&stream);
    assert!(place.ramlift(WAYS[3]).stdout == runs[3].stdout);
}

#[test]
fn a_real_stream_with_a_hole_behind_it_is_the_same_stream() {
    let stream = unpack("pc-11.1-paused");
    let Some(runs) = check_long(&Sparse { len: LONG, pieces: vec![(0, stream.clone())] }) else { return };
    let place = Workplace::with(&stream);
    for (args, run) in
        WAYS.iter().zip(&runs).filter(|(args, _)| ["state", "cpu", "layout"].contains(&args[0]))
    {
        let expected = place.ramlift(args);
        assert!(run.code == expected.code && run.stdout == expected.stdout, "{args:?}");
    }
}

#[test]
fn what_stands_behind_a_hole_behind_the_end_is_warned_of() {
    let runs = check(|len| Sparse::around_hole(small_stream().finish(), b"stray".to_vec(), len));
    let Some(runs) = runs else { return };
    assert!(String::from_utf8_lossy(&runs[0].stdout).contains("behind the end of the stream"));
}

/// Devices that nothing describes, but for a description of others far behind.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[test]
fn packed_data_ends_before_a_hole() {
    let stream = small_stream().finish();
    let Some(runs) = check(|len| Sparse { len, pieces: vec![(0, zstd(&stream))] }) else { return };
    assert_eq!(runs[0].code, 0, "{}", runs[0].stderr);
    // Cut, too, and with more behind.
    let packed = zstd(&stream);
    check(|len| Sparse { len, pieces: vec![(0, packed[..packed.len() - 9].to_vec())] });
    let runs = check_long(&Sparse::around_hole(zstd(&stream), b"stray".to_vec(), LONG));
    let Some(runs) = runs else { return };
    assert_eq!(runs[0].code, 0, "{}", runs[0].stderr);
    let text = "a hole in the midst of packed data: what is behind it in the file is not looked at";
    assert!(String::from_utf8_lossy(&runs[0].stdout).contains(text));
}

#[test]
fn a_description_behind_a_hole_is_looked_for() {
    for has_footers in [true, false] {
        let head = || if has_footers { small_stream() } else { small_stream().without_footers() };
        let whole = head().finish();
        let text = head().description_text().len() + 6;
        let (records, description) = whole.split_at(whole.len() - text);
        check(|len| Sparse::around_hole([records, &[0]].concat(), description.to_vec(), len));
        check(|len| Sparse::around_hole(records[..records.len() - 3].to_vec(), description.to_vec(), len));
    }
}

/// A stream whose `cut` last bytes stand behind a hole, and before it something else.
#[test]
fn a_stream_with_a_hole_in_it_is_salvaged_on_both_sides() {
    let page = |nth: u64| noise(nth + 1, PAGE as usize);
    let pages = |from: u64, count: u64| {
        (from + 1..from + count)
            .fold(Records::new().data("main.ram", from * PAGE, &page(from)), |records, nth| {
                records.next_data(nth * PAGE, &page(nth))
            })
    };
    let stream = Synth::machine()
        .ram_start(&[Block::new("main.ram", 64 * PAGE)])
        .ram_part(pages(0, 20))
        .ram_part(pages(20, 20))
        .ram_end(pages(40, 24))
        .device(3, "timer", &[5], BYTE)
        .device(4, "other", &[7], BYTE)
        .finish();
    for (cut, behind) in
        [(30_000, 120_000), (30_000, stream.len() - 1000), (100, 90_001), (30_000, stream.len())]
    {
        let runs = check(|len| Sparse::around_hole(stream[..cut].to_vec(), stream[behind..].to_vec(), len));
        let Some(runs) = runs else { return };
        assert_eq!((runs[0].code, runs[2].code), (1, 3), "{}", runs[2].stderr);
        let info = String::from_utf8_lossy(&runs[2].stdout);
        assert!(behind == stream.len() || info.contains("timer"), "{info}");
    }
}

/// The same, where nothing but its footer tells where a device ends.
#[test]
fn devices_without_description_are_found_behind_a_hole() {
    let head = Synth::machine().ram(&[Block::new("main.ram", PAGE)], Records::new().fill("main.ram", 0, 1));
    let devices = (0..200_u32)
        .fold(Synth::new(), |synth, nth| synth.undescribed(3 + nth, format!("device{nth}"), 0, &[5; 30]));
    let devices = devices.finish_undescribed().split_off(8);
    let head = head.raw([4, 0, 0]).bytes();
    let runs = check(|len| Sparse::around_hole(head.clone(), devices.clone(), len));
    let Some(runs) = runs else { return };
    let info = String::from_utf8_lossy(&runs[2].stdout);
    assert!(info.contains("device199"), "{info}");
}

/// A device whose footer stands behind a hole: its bytes are shown, one by one.
#[test]
fn a_device_with_a_hole_in_it_is_no_longer_than_what_is_there() {
    let head = Synth::machine()
        .ram(&[Block::new("main.ram", PAGE)], Records::new().fill("main.ram", 0, 1))
        .head(4, 3, "device", 0, 1)
        .raw([9; 100]);
    let behind = Synth::new().footer(3).undescribed(4, "next", 0, &[1]).finish_undescribed().split_off(8);
    let runs = check(|len| Sparse::around_hole(head.clone().bytes(), behind.clone(), len));
    let Some(runs) = runs else { return };
    assert_eq!(runs[0].code, 1);
    assert!(runs[0].stderr.contains("holes"), "{}", runs[0].stderr);
    assert_eq!(runs[2].code, 3);
}

/// A mapped-ram stream of one block. Its pages are a hole but for a few.
fn mapped(len: u64, bits: &[(u64, u8)], has_end: bool) -> Sparse {
    let used_length = (len - (len >> 5)) / (64 * PAGE) * (64 * PAGE);
    let head = Synth::machine().capabilities(&["mapped-ram"]).head(1, 2, "ram", 0, 4);
    let head = head.raw((used_length | 4).to_be_bytes()).raw(str8("main.ram")).raw(used_length.to_be_bytes());
    let head = head.raw(1_u32.to_be_bytes()).raw(PAGE.to_be_bytes());
    let bitmap = head.offset() + 16;
    let bitmap_len = used_length / PAGE / 8;
    let pages = (bitmap + bitmap_len).next_multiple_of(1 << 20);
    let head = head.raw(bitmap.to_be_bytes()).raw(pages.to_be_bytes()).bytes();
    let mut pieces = vec![(0, head)];
    pieces.extend(bits.iter().map(|(at, byte)| (bitmap + bitmap_len / 4 * at, vec![*byte; 8])));
    for nth in [0, 1, 7] {
        let at = pages + used_length / PAGE / 8 * nth * PAGE;
        pieces.push((at, noise(nth + 1, 2 * PAGE as usize)));
    }
    let end = Synth::new().raw(Records::new().end()).footer(2);
    let end = match has_end {
        true => end.end(2, &Records::new().end()).device(3, "timer", &[5], BYTE).finish(),
        false => end.bytes(),
    };
    // Without the head of a stream.
    pieces.push((pages + used_length, end[8..].to_vec()));
    let len = pages + used_length + (len >> 6);
    Sparse { len, pieces }
}

#[test]
fn mapped_ram_of_terabytes_that_was_finished_is_read() {
    for bits in [&[][..], &[(0, 0xff)], &[(1, 0x10), (3, 0xff)]] {
        let runs = check(|len| mapped(len, bits, true));
        let Some(runs) = runs else { return };
        assert_eq!((runs[0].code, runs[8].code), (0, 0), "{}{}", runs[0].stderr, runs[8].stderr);
        // The format has 24 bytes for each page that is zero.
        assert!(runs[14].code == 1 && runs[14].stderr.contains("hint: "), "{}", runs[14].stderr);
    }
}

#[test]
fn mapped_ram_of_terabytes_that_was_killed_is_salvaged() {
    for bits in [&[][..], &[(1, 0x10)]] {
        let runs = check(|len| mapped(len, bits, false));
        let Some(runs) = runs else { return };
        // A bitmap with a bit was written, and vouches for its block.
        let expected = if bits.is_empty() { 3 } else { 0 };
        assert_eq!((runs[2].code, runs[9].code), (expected, expected), "{}", runs[9].stderr);
    }
}

/// A bit of a bitmap claims 4096 bytes of the file, which may be a hole.
#[test]
fn pages_whose_bits_are_set_may_be_a_hole() {
    let set = |len: u64| {
        let mut sparse = mapped(len, &[], true);
        let bitmap = sparse.pieces[0].1.len() as u64;
        let bits = len / PAGE / 8 / 4;
        sparse.pieces.push((bitmap, vec![0xff; bits.min(4 << 20) as usize]));
        sparse
    };
    let Some(runs) = check(set) else { return };
    assert_eq!((runs[0].code, runs[8].code), (0, 0), "{}{}", runs[0].stderr, runs[8].stderr);
}

#[test]
fn the_killed_migration_of_a_real_guest_may_have_terabytes_behind_it() {
    let stream = unpack("pc-11.1-mapped-ram-killed");
    let Some(runs) = check_long(&Sparse { len: LONG, pieces: vec![(0, stream)] }) else { return };
    assert_eq!(runs[2].code, 3, "{}", runs[2].stderr);
}

#[test]
fn a_shared_file_of_terabytes_is_read_where_it_has_data() {
    let Some(shared) = (Sparse { len: LONG, pieces: vec![(TIB, noise(1, 100))] }).place() else { return };
    let stream = Synth::machine()
        .capabilities(&["x-ignore-shared"])
        .ram(&[Block::new("main.ram", LONG).mr_addr(0)], Records::new())
        .device(3, "timer", &[5], BYTE)
        .finish();
    std::fs::rename(shared.join("stream"), shared.join("shared")).unwrap();
    std::fs::write(shared.join("stream"), stream).unwrap();
    let args = ["extract", "-q", "stream", "-o", "out", "--shared-file", "main.ram=shared"];
    let Run { code, stderr, .. } = run(&shared, &args);
    assert_eq!(code, 0, "{stderr}");
    let image = shared.join("out/main.ram").metadata().unwrap();
    assert!(image.len() == LONG && image.blocks() * 512 < 1 << 20);
}

/// Zeros that are no hole take no time either, byte by byte.
#[test]
fn zeros_are_passed_over_by_a_salvage() {
    let mut stream = small_stream().finish();
    stream.truncate(stream.len() - 40);
    stream.resize(256 << 20, 0);
    support::hostile::in_time(|| Stream::salvage(&stream, &Progress::new()).map(drop)).unwrap();
}

/// What the library finds where it is told of holes.
#[test]
fn holes_that_are_listed_change_nothing() {
    let whole = small_stream().finish();
    for seed in 0..400_u64 {
        let bytes = noise(seed + 1, 64);
        let number = |nth: usize| u32::from_be_bytes(bytes[nth * 4..][..4].try_into().unwrap()) as usize;
        let (mut stream, mut data) = (Vec::new(), Vec::new());
        for nth in 0..3 {
            let start = number(3 * nth) % whole.len();
            let start = if nth == 0 && seed % 4 != 0 { 0 } else { start };
            let end = start + number(3 * nth + 1) % (whole.len() - start) + 1;
            let from = stream.len() as u64;
            stream.extend_from_slice(&whole[start..end]);
            data.push(from..stream.len() as u64);
            stream.resize(stream.len() + 1 + number(3 * nth + 2) % 1000, 0);
        }
        let found = |bytes: Bytes<'_>| {
            let parsed = Stream::parse_with(bytes, &Progress::new()).map(|stream| outline(&stream));
            let salvaged = Stream::salvage(bytes, &Progress::new()).map(|stream| outline(&stream));
            (format!("{parsed:?}"), format!("{salvaged:?}"))
        };
        assert_eq!(found(Bytes::with_data(&stream, &data)), found(Bytes::from(&stream)), "seed {seed}");
    }
}

/// What a stream is found to hold.
fn outline(stream: &Stream<'_>) -> String {
    let blocks = stream.ram().into_iter().flat_map(|ram| ram.blocks());
    let pages: Vec<_> =
        blocks.map(|(_, block, pages)| (block.clone(), pages.data_pages(), pages.fill_pages())).collect();
    let devices: Vec<_> =
        stream.devices().map(|device| (device.body().to_vec(), device.desc.is_some())).collect();
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {pages:?} {devices:?}",
        stream.sections(),
        stream.commands(),
        stream.losses(),
        stream.doubtful_pages(),
        stream.warnings(),
        stream.end(),
    )
}
