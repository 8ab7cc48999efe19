//! What happens around a run: other runs at the same place, files that others
//! put there, inputs that stand where output goes, and odd surroundings.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::cli::{Workplace, binary, entries_of};
use support::synth::{Block, Records, Synth, noise, small_stream};

/// How long anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// A stream whose block of RAM was shared, and what was in it.
fn shared_stream() -> (Vec<u8>, Vec<u8>) {
    let shared = noise(3, 2 * 4096);
    let blocks = [Block::new("main.ram", 2 * 4096), Block::new("rom", 4096)];
    let records = Records::new().data("rom", 0, &noise(4, 4096));
    (Synth::machine().ram(&blocks, records).finish(), shared)
}

/// Another stream than [`small_stream`], with another block.
fn other_stream() -> Vec<u8> {
    let blocks = [Block::new("main.ram", 0x2000), Block::new("other.ram", 0x1000)];
    let records = Records::new().data("main.ram", 0, &noise(9, 4096)).fill("other.ram", 0, 7);
    Synth::machine().ram(&blocks, records).finish()
}

#[test]
fn no_file_that_is_read_is_replaced() {
    let (stream, shared) = shared_stream();
    let place = Workplace::with(&stream);
    fs::create_dir(place.join("out")).unwrap();
    fs::write(place.join("out/main.ram"), &shared).unwrap();
    let inode = |name: &str| place.join(name).metadata().unwrap().ino();
    let before = inode("out/main.ram");
    let args = ["extract", "stream", "-o", "out", "--force", "--shared-file", "main.ram=out/main.ram"];
    let output = place.ramlift(&args).expect_code(1);
    assert!(output.stderr.contains("out/main.ram: in the way is a file that is being read"), "{output:?}");
    assert_eq!((place.read("out/main.ram"), inode("out/main.ram")), (shared.clone(), before));
    assert_eq!(entries_of(place.join("out")), ["main.ram"]);

    fs::write(place.join("file.raw"), &shared).unwrap();
    let shared_file = ["--shared-file", "main.ram=file.raw", "--map", "main.ram@0"];
    let args = [&["extract", "stream", "--format", "raw", "-o", "file.raw", "--force"], &shared_file[..]];
    let output = place.ramlift(&args.concat()).expect_code(1);
    assert!(output.stderr.contains("file.raw: in the way is a file that is being read"), "{output:?}");
    assert_eq!(place.read("file.raw"), shared);
}

#[test]
fn standard_input_is_not_replaced_either() {
    let place = Workplace::with(&small_stream().finish());
    let before = place.read("stream");
    fs::create_dir(place.join("out")).unwrap();
    fs::hard_link(place.join("stream"), place.join("out/main.ram")).unwrap();
    let to_file = ["--format", "raw", "--map", "main.ram@0", "-o", "stream"];
    for args in [&["-o", "out"][..], &to_file] {
        let mut command = Command::new(binary());
        command.args(["extract", "-q", "-", "--force"]).args(args).current_dir(place.path());
        let output = command.stdin(File::open(place.join("stream")).unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(place.read("stream") == before && place.read("out/main.ram") == before, "{args:?}");
        assert_eq!(entries_of(place.path()), ["out", "stream"]);
    }
}

#[test]
fn only_files_are_replaced() {
    let place = Workplace::with(&small_stream().finish());
    fs::create_dir(place.join("out")).unwrap();
    for name in ["out/main.ram", "file.raw"] {
        assert!(Command::new("mkfifo").arg(place.join(name)).status().unwrap().success());
    }
    let to_file = ["--format", "raw", "--map", "main.ram@0", "-o", "file.raw"];
    for args in [&["-o", "out"][..], &to_file] {
        let args = [&["extract", "stream", "--force"], args].concat();
        let output = place.ramlift(&args).expect_code(1);
        assert!(output.stderr.contains("in the way is a device, a pipe or a socket"), "{output:?}");
    }
    for name in ["out/main.ram", "file.raw"] {
        assert!(place.join(name).metadata().unwrap().file_type().is_fifo(), "{name}");
    }
}

/// A stream that is long enough for images to be made before all of it is there.
fn long_stream() -> Vec<u8> {
    let (pages, page) = (24 << 8, noise(1, 4096));
    let first = Records::new().data("main.ram", 0, &page);
    let records = (1..pages).fold(first, |records, number| records.next_data(number << 12, &page));
    Synth::machine().ram(&[Block::new("main.ram", pages << 12)], records).finish()
}

/// A run that has begun to write into `out` and waits for the rest of its stream.
fn begin(place: &Workplace, stream: &[u8], args: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command.args(["extract", "-q", "-", "-o", "out"]).args(args).current_dir(place.path());
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(&stream[..stream.len() - 9]).unwrap();
    let has_image = |name: &String| place.join("out").join(name).join("main.ram").exists();
    wait_for("it has begun", || entries_of(place.join("out")).iter().any(has_image));
    child
}

fn go_on(child: &mut Child, stream: &[u8]) {
    child.stdin.take().unwrap().write_all(&stream[stream.len() - 9..]).unwrap();
}

#[test]
fn what_appears_while_a_run_goes_on_is_not_replaced() {
    let stream = long_stream();
    let place = Workplace::with(&stream);
    fs::create_dir(place.join("out")).unwrap();
    let mut child = begin(&place, &stream, &[]);
    fs::write(place.join("out/main.ram"), "mine").unwrap();
    go_on(&mut child, &stream);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(entries_of(place.join("out")), ["main.ram"]);
    assert_eq!(place.read("out/main.ram"), b"mine");
}

#[test]
fn of_two_runs_into_one_directory_the_later_one_is_whole() {
    let (stream, other) = (long_stream(), other_stream());
    let place = Workplace::with(&stream);
    fs::write(place.join("other"), &other).unwrap();
    place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    let mut child = begin(&place, &stream, &["--force"]);
    // All of another run comes and goes meanwhile.
    place.ramlift(&["extract", "-q", "other", "-o", "out", "--force"]).expect_code(0);
    assert!(place.join("out/other.ram").exists());
    go_on(&mut child, &stream);
    assert!(child.wait().unwrap().success());
    place.ramlift(&["verify", "out", "--stream", "stream"]).expect_code(0);
    assert_eq!(entries_of(place.join("out")), ["desc.json", "main.ram", "manifest.json", "state.json"]);
}

/// Takes a lock on a directory, and lets go of it when its input ends.
fn lock(place: &Workplace, directory: &str) -> Child {
    let script = "exec 9<\"$0\"; flock -x 9; touch locked; read -r _";
    let mut command = Command::new("sh");
    command.args(["-c", script, directory]).current_dir(place.path()).stdin(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for("it is locked", || place.join("locked").exists());
    fs::remove_file(place.join("locked")).unwrap();
    child
}

#[test]
fn runs_move_their_files_to_one_place_in_turn() {
    let stream = small_stream().finish();
    let place = Workplace::with(&stream);
    fs::create_dir(place.join("out")).unwrap();
    for (args, directory) in [
        (&["extract", "-q", "stream", "-o", "out"][..], "out"),
        (&["extract", "-q", "stream", "-o", "file", "--format", "lime", "--map", "main.ram@0"], "."),
    ] {
        let mut holder = lock(&place, directory);
        let mut command = Command::new(binary());
        let mut child = command.args(args).current_dir(place.path()).spawn().unwrap();
        sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "{args:?}: it does not wait");
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}");
    }
    assert!(place.join("out/manifest.json").exists() && place.join("file.manifest.json").exists());
}

#[test]
fn the_scripts_double_leaves_a_manifest_that_is_none_of_ours() {
    let place = Workplace::with(&small_stream().finish());
    fs::write(place.join("manifest.json"), r#"{"name": "an application"}"#).unwrap();
    place.ramlift(&["analyze-migration", "-x", "-f", "stream"]).expect_code(0);
    assert_eq!(place.read("manifest.json"), br#"{"name": "an application"}"#);
    // One of ours would be said of files that are no longer there.
    place.ramlift(&["extract", "-q", "stream", "-o", ".", "--force"]).expect_code(0);
    place.ramlift(&["analyze-migration", "-x", "-f", "stream"]).expect_code(0);
    assert!(!place.join("manifest.json").exists());
}

#[test]
fn an_umask_takes_nothing_from_the_owner() {
    let place = Workplace::with(&small_stream().finish());
    let script = "umask 0777; exec \"$0\" extract -q stream -o out";
    let status =
        Command::new("sh").args(["-c", script]).arg(binary()).current_dir(place.path()).status().unwrap();
    assert!(status.success());
    let mode = |name: &str| place.join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("out"), mode("out/main.ram"), mode("out/0000:00:02.0")), (0o700, 0o600, 0o700));
}

#[test]
fn nobody_who_reads_the_report_changes_what_the_exit_code_tells() {
    let place = Workplace::with(&shared_stream().0);
    let to_file = ["--format", "raw", "--map", "main.ram@0", "-o", "file"];
    for (args, output) in [(&["-o", "out"][..], "out"), (&to_file, "file")] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(binary());
        command.args(["extract", "stream", "--force"]).args(args).current_dir(place.path());
        assert_eq!(command.stdout(writer).status().unwrap().code(), Some(3), "{args:?}");
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = command.stdout(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{args:?}");
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert!(
            stderr.contains(&format!("; {output} is in its place")) && !stderr.contains("-o"),
            "{stderr}"
        );
    }
}

/// Who may rename files in the directory that output is made in.
#[test]
fn a_directory_that_is_moved_while_it_is_written_leads_nowhere_else() {
    // Longer than what is read before anything is written.
    let pages = 10_000;
    let page = noise(1, 4096);
    let first = Records::new().data("main.ram", 0, &page);
    let records = (1..pages).fold(first, |records, nth| records.next_data(nth << 12, &page));
    let stream = Synth::machine().ram(&[Block::new("main.ram", pages << 12)], records).finish();
    for (args, has_out) in [
        (&["extract", "-", "-o", "made/out"][..], false),
        (&["extract", "-", "-o", "made/out", "--force"], true),
        (&["extract", "-", "-o", "made/out", "--format", "raw", "--map", "main.ram@0"], false),
    ] {
        let place = Workplace::with(&[]);
        fs::create_dir(place.join("made")).unwrap();
        fs::create_dir(place.join("victim")).unwrap();
        if has_out {
            fs::create_dir(place.join("made/out")).unwrap();
        }
        let within = place.join(if has_out { "made/out" } else { "made" });
        let staged = || {
            let entries = fs::read_dir(&within).unwrap().map(|entry| entry.unwrap().path());
            entries.into_iter().find(|path| path.to_string_lossy().contains(".ramlift-incomplete-"))
        };
        let mut child = Command::new(binary())
            .args(args)
            .current_dir(place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let (begin, rest) = stream.split_at(stream.len() / 4 * 3);
        pipe.write_all(begin).unwrap();
        wait_for("a directory to write into", || staged().is_some());
        let staged = staged().unwrap();
        fs::rename(&staged, place.join("made/moved")).unwrap();
        std::os::unix::fs::symlink(place.join("victim"), &staged).unwrap();
        pipe.write_all(rest).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        assert_eq!(entries_of(place.join("victim")), [""; 0], "{args:?}: {output:?}");
        let is_whole = place.join("made/out").symlink_metadata().is_ok_and(|out| !out.is_symlink());
        assert_eq!(output.status.success(), is_whole && args.len() > 4, "{args:?}: {output:?}");
    }
}
