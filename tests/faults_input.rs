//! Input that is not what it was: shortened, growing or written to while it is
//! read, on a device that fails, or cut because it is still being written. And
//! input that stays what it is, its times included.

mod support;

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use support::cli::{Workplace, binary, entries_of, ramlift_in};
use support::fault::{Ended, Fault, at_every_call, ramlift_with};
use support::synth::{Block, Records, Synth, noise, small_stream};

/// A stream whose pages, devices and description each are in other pages of
/// its file.
fn stream() -> Vec<u8> {
    let pages = 64;
    let records = (0..pages)
        .fold(Records::new(), |records, page| records.data("main.ram", page << 12, &noise(page + 1, 4096)));
    let fields = r#"{"name": "buffer", "type": "buffer", "size": 65536}"#;
    Synth::machine()
        .ram(&[Block::new("main.ram", pages << 12)], records)
        .device(3, "device", &noise(99, 65536), fields)
        .finish()
}

fn check_shortened(ended: &Ended, what: &str) {
    assert_eq!(ended.code, Some(1), "{what}: {ended:?}");
    assert!(ended.stderr.contains("stream: was shortened while it was read"), "{what}: {ended:?}");
    assert!(ended.stderr.contains("copy it"), "{what}: {ended:?}");
}

#[test]
fn a_file_that_is_shortened_before_it_is_walked_is_an_error_of_every_command() {
    let commands: [&[&str]; 9] = [
        &["info", "stream"],
        &["info", "--guest", "stream"],
        &["info", "--salvage", "stream"],
        &["state", "stream"],
        &["state", "--raw", "device", "stream"],
        &["desc", "stream"],
        &["layout", "stream"],
        &["cpu", "stream"],
        &["analyze-migration", "-m", "-f", "stream"],
    ];
    for len in [0, 8192, 200 << 10] {
        for args in commands {
            let place = Workplace::with(&stream());
            // The first call that is counted maps it.
            let ended = ramlift_with(place.path(), args, 1, Fault::Resize(len));
            check_shortened(&ended, &format!("{args:?} to {len}"));
        }
    }
}

#[test]
fn a_file_that_is_shortened_at_any_moment_leaves_no_output() {
    let ways: [&[&str]; 5] = [
        &["extract", "-q", "stream", "-o", "out"],
        &["extract", "-q", "stream", "-o", "out", "--read-once"],
        &["extract", "-q", "stream", "-o", "out", "--format", "elf", "--map", "main.ram@0"],
        &["extract", "-q", "stream", "-o", "out", "--format", "avml", "--map", "main.ram@0"],
        &["extract", "-q", "stream", "-o", "out", "--salvage"],
    ];
    for args in ways {
        at_every_call(
            args,
            Fault::Resize(100_000),
            || Workplace::with(&stream()),
            |place, nth, ended| {
                let what = format!("{args:?}, call {nth}");
                // Before it is opened, it is a stream that was cut.
                let is_before =
                    ended.code == Some(1) && ended.stderr.contains("the input ends here") && nth < 4;
                // Behind the last look at it, nobody minds.
                if is_before {
                    assert_eq!(entries_of(place.path()), ["stream"], "{what}");
                } else if ended.code != Some(0) {
                    check_shortened(ended, &what);
                    assert_eq!(entries_of(place.path()), ["stream"], "{what}");
                } else {
                    assert!(nth + 3 >= ended.calls, "{what}: {ended:?}");
                }
            },
        );
    }
}

#[test]
fn a_shared_file_is_looked_at_too() {
    let blocks = [Block::new("main.ram", 0x4_0000).mr_addr(0)];
    let main = Synth::machine().capabilities(&["x-ignore-shared"]).ram(&blocks, Records::new()).finish();
    // It is the file called `stream` that is shortened.
    let place = Workplace::with(&noise(5, 0x4_0000));
    fs::write(place.join("main"), main).unwrap();
    let args = ["extract", "-q", "main", "-o", "out", "--shared-file", "main.ram=stream"];
    let mut shortened = 0;
    for nth in 1..8 {
        fs::write(place.join("stream"), noise(5, 0x4_0000)).unwrap();
        let ended = ramlift_with(place.path(), &args, nth, Fault::Resize(4096));
        if ended.stderr.contains("was shortened") {
            check_shortened(&ended, "a shared file");
            assert_eq!(entries_of(place.path()), ["main", "stream"]);
            shortened += 1;
        }
    }
    assert!(shortened >= 3, "{shortened}");
}

#[test]
fn a_file_that_grows_or_is_written_to_leaves_no_output() {
    let len = stream().len() as u64;
    for (now, text) in [(len + 1, "still growing"), (len, "was written to")] {
        let place = Workplace::with(&stream());
        File::open(place.join("stream")).unwrap().set_times(long_ago()).unwrap();
        let args = ["extract", "-q", "stream", "-o", "out"];
        let ended = ramlift_with(place.path(), &args, 4, Fault::Resize(now));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains(text) && ended.stderr.contains("hint: "), "{ended:?}");
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
}

#[test]
fn what_is_printed_of_a_file_that_grows_is_not_called_complete() {
    let place = Workplace::with(&stream());
    let len = stream().len() as u64;
    let ended = ramlift_with(place.path(), &["state", "stream"], 1, Fault::Resize(len + 4096));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("is the migration still running?"), "{ended:?}");
}

#[test]
fn a_cut_stream_that_was_just_written_may_be_in_the_making() {
    let bytes = stream();
    let place = Workplace::with(&bytes[..bytes.len() / 2]);
    let says_so = || {
        let output = place.ramlift(&["extract", "stream", "-o", "out"]).expect_code(1);
        output.stderr.contains("is the migration still running?")
    };
    assert!(says_so());
    File::open(place.join("stream")).unwrap().set_times(long_ago()).unwrap();
    assert!(!says_so());
}

fn long_ago() -> FileTimes {
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    // Accessed before it was modified: so that most mounts would note the next.
    FileTimes::new().set_modified(now - 24 * hour).set_accessed(now - 48 * hour)
}

#[test]
fn input_is_not_changed_nor_its_times() {
    let commands: [&[&str]; 9] = [
        &["info", "stream"],
        &["state", "stream"],
        &["desc", "stream"],
        &["extract", "stream", "-o", "mapped", "--hash", "sha256"],
        &["verify", "mapped"],
        &["extract", "stream", "-o", "once", "--read-once"],
        &["extract", "stream", "-o", "raw", "--format", "raw", "--map", "main.ram@0"],
        &["analyze-migration", "-f", "stream"],
        &["info", "packed"],
    ];
    let place = Workplace::with(&small_stream().finish());
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &small_stream().finish()).unwrap();
    fs::write(place.join("packed"), packed.finish().unwrap()).unwrap();
    for args in commands {
        let name = if args.contains(&"packed") { "packed" } else { "stream" };
        File::open(place.join(name)).unwrap().set_times(long_ago()).unwrap();
        let before = fs::metadata(place.join(name)).unwrap();
        place.ramlift(args).expect_code(0);
        let after = fs::metadata(place.join(name)).unwrap();
        assert_eq!(before.atime(), after.atime(), "{args:?}");
        assert_eq!(
            (before.mtime_nsec(), before.ctime_nsec()),
            (after.mtime_nsec(), after.ctime_nsec()),
            "{args:?}"
        );
    }
    assert_eq!(place.read("stream"), small_stream().finish());
}

#[test]
fn a_file_as_standard_input_keeps_its_times_too() {
    let commands: [&[&str]; 4] = [
        &["info", "-"],
        &["state", "-"],
        &["extract", "-q", "-", "-o", "out", "--hash", "sha256"],
        &["extract", "-q", "-", "-o", "core", "--format", "elf", "--map", "main.ram@0"],
    ];
    for args in commands {
        let place = Workplace::with(&stream());
        let file = File::open(place.join("stream")).unwrap();
        file.set_times(long_ago()).unwrap();
        let before = file.metadata().unwrap();
        let mut command = Command::new(binary());
        command.args(args).current_dir(&place).stdin(file).stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "{args:?}");
        let after = fs::metadata(place.join("stream")).unwrap();
        let times = |file: &fs::Metadata| (file.atime(), file.atime_nsec(), file.mtime(), file.ctime_nsec());
        assert_eq!(times(&before), times(&after), "{args:?}");
    }
}

/// A block device that is shorter than it says.
struct Loop(String);

impl Loop {
    /// `None` where loop devices cannot be had.
    fn of(file: &std::path::Path) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file).output().ok()?;
        let name = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| Self(name.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_device_that_fails_is_an_error() {
    let place = Workplace::with(&stream());
    let len = stream().len() as u64;
    let file = File::options().write(true).open(place.join("stream")).unwrap();
    file.set_len(len.next_multiple_of(4096)).unwrap();
    let Some(device) = Loop::of(&place.join("stream")) else {
        eprintln!("SKIPPED: no loop devices here, so none can fail");
        return;
    };
    ramlift_in(place.path(), &["info", &device.0]).expect_code(0);
    // The device stays as long as it was, and what is behind its file's end
    // cannot be read.
    file.set_len(64 << 10).unwrap();
    Command::new("blockdev").args(["--flushbufs", &device.0]).status().unwrap();
    for args in
        [&["info"][..], &["state"], &["extract", "-q", "-o", "out"], &["extract", "-o", "out", "--read-once"]]
    {
        let args: Vec<&str> = args.iter().copied().chain([device.0.as_str()]).collect();
        let output = ramlift_in(place.path(), &args).expect_code(1);
        assert!(output.stderr.starts_with("error: "), "{args:?}: {output:?}");
        assert!(output.stderr.contains("failed"), "{args:?}: {output:?}");
        assert!(output.stderr.contains(&device.0), "{args:?}: {output:?}");
        assert_eq!(entries_of(place.path()), ["stream"], "{args:?}");
    }
}

/// A file is opened by its name more than once: for its length, to be hashed, to
/// be read. What is told of it has to be of one file.
#[test]
fn a_file_that_is_replaced_by_another_is_noticed() {
    let blocks = [Block::new("shared", 0x2000).mr_addr(0x10_0000), Block::new("main.ram", 0x1000).mr_addr(0)];
    let records = Records::new().data("main.ram", 0, &noise(1, 4096));
    let stream = Synth::machine().capabilities(&["x-ignore-shared"]).ram(&blocks, records).finish();
    for more in [&["--hash", "sha256"][..], &[]] {
        let place = Workplace::with(b"");
        fs::write(place.join("mem"), noise(2, 0x2000)).unwrap();
        fs::write(place.join("other"), noise(3, 0x2000)).unwrap();
        assert!(Command::new("mkfifo").arg(place.join("pipe")).status().unwrap().success());
        let mut command = Command::new(binary());
        command.args(["extract", "-q", "pipe", "-o", "out", "--shared-file", "shared=mem"]).args(more);
        let child = command.current_dir(place.path()).stderr(Stdio::piped()).spawn().unwrap();
        // It waits until it has looked for its other inputs.
        let mut pipe = File::options().write(true).open(place.join("pipe")).unwrap();
        fs::rename(place.join("other"), place.join("mem")).unwrap();
        std::io::Write::write_all(&mut pipe, &stream).unwrap();
        drop(pipe);
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("mem: was replaced or written to while it was read"), "{stderr}");
        assert_eq!(entries_of(place.path()), ["mem", "pipe", "stream"]);
    }
}
