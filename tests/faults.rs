//! Output is whole or plainly is not, whatever fails and whenever: each system
//! call that makes, fills or moves a file fails once, or the process is killed
//! before it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::cli::{Workplace, binary, entries_of, files_in};
use support::fault::{Ended, Fault, at_every_call};
use support::synth::{Block, Records, Synth, noise, small_stream};

const MARK: &str = ".ramlift-incomplete-";

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const EDQUOT: i32 = 122;

/// A stream with other blocks than [`small_stream`], so that files of both tell
/// apart.
fn earlier_stream() -> Vec<u8> {
    let blocks = [Block::new("main.ram", 0x2000), Block::new("gone.ram", 0x1000)];
    let records = Records::new().data("main.ram", 0, &noise(9, 4096)).fill("gone.ram", 0, 7);
    Synth::machine().ram(&blocks, records).finish()
}

/// All files below a path, or the one that it is, but for what is plainly
/// incomplete.
type Tree = BTreeMap<String, Vec<u8>>;

fn tree(path: &Path) -> Tree {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => [(String::new(), fs::read(path).unwrap())].into(),
        Ok(_) => {
            let files = files_in(path).into_iter().filter(|file| !file.starts_with(MARK));
            files.map(|file| (file.clone(), of_any_run(&path.join(file)))).collect()
        }
        Err(_) => Tree::new(),
    }
}

/// What a file holds, but for what a manifest says of the run and its input.
fn of_any_run(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    if path.file_name().is_none_or(|name| name != "manifest.json") {
        return bytes;
    }
    let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    manifest["run"].take();
    manifest["inputs"].take();
    manifest.to_string().into_bytes()
}

fn is_marked(dir: &Path) -> bool {
    dir.is_dir() && !leftovers(dir).is_empty() && !dir.join("manifest.json").exists()
}

fn leftovers(dir: &Path) -> Vec<String> {
    entries_of(dir).into_iter().filter(|name| name.starts_with(MARK)).collect()
}

/// A way to write output.
struct Way {
    args: &'static [&'static str],
    /// Makes what is at `out` before.
    earlier: fn(&Workplace),
}

impl Way {
    fn place(&self) -> Workplace {
        let place = Workplace::with(&small_stream().finish());
        (self.earlier)(&place);
        place
    }

    /// What comes out without a fault.
    fn whole(&self) -> Tree {
        let place = self.place();
        place.ramlift(self.args).expect_code(0);
        tree(&place.join("out"))
    }

    /// Lets `fault` happen before each call. Gives how many there were.
    fn check(&self, fault: Fault) -> u64 {
        let (whole, earlier) = (self.whole(), tree(&self.place().join("out")));
        let calls = at_every_call(
            self.args,
            fault,
            || self.place(),
            |place, nth, ended| {
                let what = format!("{:?}, {fault:?} before call {nth}: {ended:?}", self.args);
                self.judge(place, ended, &whole, &earlier, &what);
                if ended.code.is_none() || is_marked(&place.join("out")) {
                    self.check_second_run(place, &whole, &what);
                }
            },
        );
        assert!(calls > 5, "{calls} calls");
        calls
    }

    fn judge(&self, place: &Workplace, ended: &Ended, whole: &Tree, earlier: &Tree, what: &str) {
        let out = place.join("out");
        let now = tree(&out);
        let has_manifest = place.join("out.manifest.json").exists();
        assert!(!has_manifest || now == *whole, "{what}");
        match ended.code {
            // The fault was got around.
            Some(0) => assert!(now == *whole && has_manifest != out.is_dir(), "{what}"),
            Some(1) => {
                assert!(ended.stderr.starts_with("error: "), "{what}");
                let is_in_place = now == *whole && ended.stderr.contains("is in its place");
                assert!(now == *earlier || is_marked(&out) || is_in_place, "{what}");
            }
            Some(code) => {
                assert!(code > 128 && leftovers(place.path()).is_empty(), "{what}");
                assert!(now == *earlier || now == *whole, "{what}");
            }
            None => assert!(now == *earlier || now == *whole || is_marked(&out), "{what}"),
        }
    }

    /// The next run has no use for what a killed one left, and removes it.
    fn check_second_run(&self, place: &Workplace, whole: &Tree, what: &str) {
        let args: Vec<&str> = self.args.iter().copied().chain(["--force"]).collect();
        let args = if self.args.contains(&"--force") { self.args } else { args.as_slice() };
        place.ramlift(args).expect_code(0);
        assert!(tree(&place.join("out")) == *whole, "{what}");
        assert_eq!(leftovers(place.path()), [""; 0], "{what}");
        assert!(!place.join("out").is_dir() || leftovers(&place.join("out")).is_empty(), "{what}");
    }
}

fn nothing(_: &Workplace) {}

fn an_empty_directory(place: &Workplace) {
    fs::create_dir(place.join("out")).unwrap();
}

fn an_earlier_output(place: &Workplace) {
    fs::write(place.join("earlier"), earlier_stream()).unwrap();
    place.ramlift(&["extract", "-q", "earlier", "-o", "out"]).expect_code(0);
}

fn a_file(place: &Workplace) {
    fs::write(place.join("out"), "earlier").unwrap();
}

const NEW: Way = Way { args: &["extract", "-q", "stream", "-o", "out"], earlier: nothing };
const SYNCED: Way = Way { args: &["extract", "-q", "stream", "-o", "out", "--sync"], earlier: nothing };
const EMPTY: Way = Way { args: NEW.args, earlier: an_empty_directory };
const ONCE: Way = Way { args: &["extract", "-q", "stream", "-o", "out", "--read-once"], earlier: nothing };
const REPLACED: Way =
    Way { args: &["extract", "-q", "stream", "-o", "out", "--force"], earlier: an_earlier_output };
const RAW: Way = Way {
    args: &["extract", "-q", "stream", "-o", "out", "--format", "raw", "--map", "main.ram@0"],
    earlier: nothing,
};
const ELF: Way = Way {
    args: &["extract", "-q", "stream", "-o", "out", "--format", "elf", "--map", "main.ram@0", "--force"],
    earlier: a_file,
};
const AVML: Way = Way {
    args: &["extract", "-q", "stream", "-o", "out", "--format", "avml", "--map", "main.ram@0"],
    earlier: nothing,
};

#[test]
fn a_full_disk_leaves_what_was_there() {
    for way in [NEW, SYNCED, EMPTY, ONCE, REPLACED, RAW, ELF, AVML] {
        way.check(Fault::ErrnoFrom(ENOSPC));
    }
}

#[test]
fn a_call_that_fails_once_leaves_what_was_there() {
    for way in [NEW, SYNCED, EMPTY, ONCE, REPLACED, RAW, ELF, AVML] {
        way.check(Fault::Errno(EIO));
    }
}

#[test]
fn a_used_up_quota_and_a_file_system_that_turns_read_only_leave_what_was_there() {
    for way in [NEW, REPLACED, ELF] {
        way.check(Fault::ErrnoFrom(EDQUOT));
        way.check(Fault::ErrnoFrom(EROFS));
    }
}

#[test]
fn a_process_that_is_killed_leaves_what_a_second_run_removes() {
    for way in [NEW, EMPTY, ONCE, REPLACED, RAW, ELF, AVML] {
        way.check(Fault::Signal(9));
    }
}

#[test]
fn a_process_that_is_asked_to_end_leaves_what_was_there() {
    for (way, signal) in [(NEW, 2), (REPLACED, 15), (ELF, 1), (ONCE, 15)] {
        way.check(Fault::Signal(signal));
    }
}

/// A stream that takes a while to be written.
fn long_stream() -> Vec<u8> {
    let pages = 4096;
    let content = noise(3, 1 << 20);
    let records = (0..pages).fold(Records::new().fill("main.ram", 0, 0), |records, page: u64| {
        let at = usize::try_from(page * 40).unwrap();
        records.next_data(page << 12, &content[at..at + 4096])
    });
    Synth::machine().ram(&[Block::new("main.ram", pages << 12)], records).finish()
}

/// How many processes are killed; `RAMLIFT_KILLS` for more.
fn kills() -> u64 {
    std::env::var("RAMLIFT_KILLS").map_or(100, |count| count.parse().unwrap())
}

#[test]
fn whatever_the_moment_of_its_end_nothing_looks_complete_that_is_not() {
    let place = Workplace::with(&long_stream());
    let out = place.join("out");
    let args = ["extract", "-q", "stream", "-o", "out"];
    place.ramlift(&args).expect_code(0);
    let whole = tree(&out);
    // The least of a few: a machine that is busy makes one run long.
    let run = || {
        fs::remove_dir_all(&out).unwrap();
        let began = Instant::now();
        place.ramlift(&args).expect_code(0);
        began.elapsed()
    };
    let takes = (0..5).map(|_| run()).min().unwrap();
    fs::remove_dir_all(&out).unwrap();
    let (mut ended, mut state) = (0, 1_u64);
    for nth in 0..kills() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = f64::from(u32::try_from(state >> 40).unwrap()) / f64::from(1 << 24);
        let signal = [9, 15, 9, 2, 9, 1][usize::try_from(nth % 6).unwrap()];
        let mut child = Command::new(binary())
            .args(args)
            .current_dir(place.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(takes.mul_f64(share * 1.1));
        send(&child, signal);
        let status = child.wait().unwrap();
        ended += u64::from(status.code() != Some(0));
        let is_whole = out.exists();
        assert!(!is_whole || tree(&out) == whole, "kill {nth}: {status}");
        assert!(is_whole || status.code() != Some(0), "kill {nth}: {status}");
        if status.signal().is_none() {
            assert!(leftovers(place.path()).len() <= usize::from(nth > 0), "kill {nth}: {status}");
        }
        if is_whole {
            fs::remove_dir_all(&out).unwrap();
        }
    }
    println!("{ended} of {} were ended before they were done", kills());
    assert!(ended * 20 > kills(), "{ended} were ended");
    place.ramlift(&args).expect_code(0);
    assert!(tree(&out) == whole);
    assert_eq!(entries_of(place.path()), ["out", "stream"]);
}

fn send(child: &Child, signal: i32) {
    let args = [format!("-{signal}"), child.id().to_string()];
    Command::new("kill").args(args).stderr(Stdio::null()).status().unwrap();
}

/// A run that has begun to write and waits for more of its stream. A shell sets
/// up what it is to meet.
fn begin(place: &Workplace, out: &str, setup: &str) -> Child {
    let script = format!("{setup}\nexec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(binary()).args(["extract", "-q", "-", "-o", out]);
    let mut child = command.current_dir(place.path()).stdin(Stdio::piped()).spawn().unwrap();
    let bytes = place.read("stream");
    child.stdin.as_mut().unwrap().write_all(&bytes[..bytes.len() - 9]).unwrap();
    let began = Instant::now();
    while leftovers(place.path()).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(5));
    }
    child
}

fn go_on(place: &Workplace, mut child: Child) -> Option<i32> {
    let bytes = place.read("stream");
    child.stdin.take().unwrap().write_all(&bytes[bytes.len() - 9..]).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn what_a_living_run_writes_is_left_alone() {
    let place = Workplace::with(&small_stream().finish());
    let child = begin(&place, "one", "");
    let staged = leftovers(place.path());
    place.ramlift(&["extract", "-q", "stream", "-o", "other"]).expect_code(0);
    assert_eq!(leftovers(place.path()), staged);
    assert_eq!(go_on(&place, child), Some(0));
    assert!(tree(&place.join("one")).contains_key("main.ram"));
    assert_eq!(entries_of(place.path()), ["one", "other", "stream"]);
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    let place = Workplace::with(&small_stream().finish());
    let child = begin(&place, "out", "trap '' HUP INT");
    send(&child, 1);
    send(&child, 2);
    assert_eq!(go_on(&place, child), Some(0));
    let mut child = begin(&place, "other", "");
    // Open until it has ended: the end of its input would end it too.
    let pipe = child.stdin.take();
    // Not by hang-up, which is ignored here already if this runs under `nohup`.
    send(&child, 15);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    drop(pipe);
    assert_eq!(entries_of(place.path()), ["out", "stream"]);
}

#[test]
fn only_what_is_a_staging_directory_is_removed() {
    let place = Workplace::with(&small_stream().finish());
    let make = |name: &str, mode| {
        fs::DirBuilder::new().mode(mode).create(place.join(name)).unwrap();
        fs::write(place.join(name).join("file"), "kept").unwrap();
    };
    make("victim", 0o700);
    symlink("victim", place.join(".ramlift-incomplete-symlnk")).unwrap();
    make(".ramlift-incomplete-others", 0o755);
    make(".ramlift-incomplete-is-not-one", 0o700);
    fs::write(place.join(".ramlift-incomplete-afilet"), "").unwrap();
    make(".ramlift-incomplete-aDead1", 0o700);
    symlink("../victim", place.join(".ramlift-incomplete-aDead1/link")).unwrap();
    let before = entries_of(place.path());
    let output = place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    assert!(output.stderr.contains("aDead1: removed"), "{}", output.stderr);
    let mut after = entries_of(place.path());
    after.retain(|name| name != "out");
    let expected: Vec<String> = before.into_iter().filter(|name| !name.ends_with("aDead1")).collect();
    assert_eq!(after, expected);
    assert_eq!(place.read("victim/file"), b"kept");
}

#[test]
fn files_and_directories_are_their_owners_alone() {
    let place = Workplace::with(&small_stream().finish());
    let run = |args: &str| {
        let script = format!("umask 0 && exec \"$0\" extract -q stream {args}");
        let status =
            Command::new("sh").arg("-c").arg(script).arg(binary()).current_dir(place.path()).status();
        assert!(status.unwrap().success());
    };
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
    run("-o new");
    fs::create_dir(place.join("there")).unwrap();
    run("-o there");
    run("--format raw --map main.ram@0 -o raw");
    assert_eq!(mode(&place.join("raw")), 0o600);
    assert_eq!(mode(&place.join("new")), 0o700);
    for out in ["new", "there"] {
        assert_eq!(mode(&place.join(out).join("0000:00:02.0")), 0o700);
        for file in files_in(place.join(out)) {
            assert_eq!(mode(&place.join(out).join(&file)), 0o600, "{file}");
        }
    }
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_death() {
    let place = Workplace::with(&long_stream());
    for args in ["-o out", "-o out --format raw --map main.ram@0", "-o out --format kdump --map main.ram@0"] {
        // In blocks of 512 bytes.
        let script = format!("ulimit -f 64 && exec \"$0\" extract -q stream {args}");
        let output =
            Command::new("sh").arg("-c").arg(script).arg(binary()).current_dir(place.path()).output();
        let output = output.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
        assert!(stderr.contains("ulimit -f"), "{args}: {stderr}");
        assert_eq!(entries_of(place.path()), ["stream"], "{args}");
    }
}

#[test]
fn a_full_standard_output_is_an_error() {
    let place = Workplace::with(&small_stream().finish());
    let commands = [
        "info stream",
        "info --json stream",
        "state stream",
        "state --raw timer stream",
        "desc stream",
        "generate bash",
    ];
    for args in commands {
        let script = format!("exec \"$0\" {args} > /dev/full");
        let output =
            Command::new("sh").arg("-c").arg(script).arg(binary()).current_dir(place.path()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}");
        assert!(output.stderr.starts_with(b"error: standard output: No space"), "{args}");
    }
}
