//! Output at odd places: what is in the way, what is left behind, what is gone.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use support::cli::{Output, Workplace, binary, entries_of};
use support::synth::{Block, Records, Synth, noise, small_stream};

const TO_FILE: [&str; 8] = ["extract", "-q", "stream", "-o", "file", "--format", "lime", "--map=main.ram@0"];

fn small() -> Workplace {
    Workplace::with(&small_stream().finish())
}

#[track_caller]
fn refused(output: Output, parts: &[&str]) {
    let output = output.expect_code(1);
    assert!(parts.iter().all(|part| output.stderr.contains(part)), "{}", output.stderr);
    assert!(output.stderr.contains("hint: "), "{}", output.stderr);
}

#[test]
fn a_manifest_whose_file_is_gone_is_replaced() {
    let place = small();
    place.ramlift(&TO_FILE).expect_code(0);
    // Both are there.
    let output = place.ramlift(&TO_FILE).expect_code(1);
    assert!(output.stderr.contains("exists already; --force"), "{output:?}");
    fs::remove_file(place.join("file")).unwrap();
    fs::write(place.join("other"), "of somebody").unwrap();
    place.ramlift(&TO_FILE).expect_code(0);
    place.ramlift(&["verify", "file.manifest.json"]).expect_code(0);
    assert_eq!(entries_of(place.path()), ["file", "file.manifest.json", "other", "stream"]);
}

#[test]
fn what_is_no_manifest_of_that_file_stays() {
    let place = small();
    place.ramlift(&TO_FILE).expect_code(0);
    let manifest = place.read("file.manifest.json");
    fs::remove_file(place.join("file")).unwrap();
    let renamed =
        String::from_utf8(manifest.clone()).unwrap().replace("\"path\": \"file\"", "\"path\": \"elif\"");
    for other in ["", "{}", "{\"files\": [{\"path\": \"file\", \"size\": 1, \"hash\": null}]}", &renamed] {
        fs::write(place.join("file.manifest.json"), other).unwrap();
        let output = place.ramlift(&TO_FILE).expect_code(1);
        assert!(output.stderr.contains("file.manifest.json: exists already"), "{output:?}");
        assert_eq!(place.read("file.manifest.json"), other.as_bytes());
        assert_eq!(entries_of(place.path()), ["file.manifest.json", "stream"]);
    }
    // Nor is what a symlink leads to.
    fs::remove_file(place.join("file.manifest.json")).unwrap();
    fs::write(place.join("kept"), &manifest).unwrap();
    symlink("kept", place.join("file.manifest.json")).unwrap();
    place.ramlift(&TO_FILE).expect_code(1);
    assert!(place.join("file.manifest.json").is_symlink() && place.read("kept") == manifest);
}

#[test]
fn a_symlink_to_nothing_is_refused_before_anything_is_done() {
    let place = small();
    symlink("missing", place.join("out")).unwrap();
    // Nobody can say that of a pipe that nothing was read from.
    for output in ["out", "out/deep/er", "out/"] {
        let mut command = Command::new(binary());
        command
            .args(["extract", "-", "-o", output, "--force"])
            .current_dir(place.path())
            .stdin(Stdio::null());
        let ended = command.output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert!(stderr.contains("out: is a symlink to missing, which is not there"), "{stderr}");
    }
    refused(
        place.ramlift(&["extract", "stream", "--format", "raw", "--map", "main.ram@0", "-o", "out/file"]),
        &["out: is a symlink to missing, which is not there"],
    );
    assert_eq!(entries_of(place.path()), ["out", "stream"]);
    // One that leads somewhere is gone through.
    fs::create_dir(place.join("missing")).unwrap();
    place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    assert!(place.join("missing/manifest.json").exists());
}

#[test]
fn standard_output_is_not_taken_for_a_file() {
    let place = small();
    for format in ["blocks", "raw"] {
        let output = place.ramlift(&["extract", "stream", "--format", format, "-o", "-"]).expect_code(2);
        assert!(output.stderr.contains("./-"), "{}", output.stderr);
        assert_eq!(entries_of(place.path()), ["stream"]);
    }
    place.ramlift(&["extract", "-q", "stream", "-o", "./-"]).expect_code(0);
    place.ramlift(&["verify", "-q", "./-"]).expect_code(0);
}

#[test]
fn a_file_longer_than_files_can_be_is_said_to_be_so() {
    let stream = |len| {
        let records = Records::new().data("main.ram", 0, &noise(1, 4096));
        Workplace::with(&Synth::machine().ram(&[Block::new("main.ram", len)], records).finish())
    };
    let place = stream(1 << 63);
    for format in ["raw", "lime", "elf"] {
        let output =
            place.ramlift(&["extract", "stream", "-o", "out", "--format", format, "--map", "main.ram@0"]);
        refused(output, &["RAM block \"main.ram\" at 0x0 to 0x8000000000000000", "9223372036854775807"]);
    }
    let output = place.ramlift(&["extract", "stream", "-o", "out"]);
    refused(
        output,
        &["RAM block \"main.ram\" of 0x8000000000000000 bytes at 0x", "at most 9223372036854775807"],
    );
    let output =
        support::cli::ramlift_fed(place.path(), &["extract", "-", "-o", "out"], &place.read("stream"));
    refused(
        output,
        &["RAM block \"main.ram\" of 0x8000000000000000 bytes at 0x", "at most 9223372036854775807"],
    );
    assert_eq!(entries_of(place.path()), ["stream"]);
    // A block that is short, and far away.
    let place = stream(0x1000);
    let far = ["extract", "stream", "-o", "out", "--format", "raw", "--map", "main.ram@0x8000000000000000"];
    refused(place.ramlift(&far), &["at 0x8000000000000000 to 0x8000000000001000", "--format elf"]);
    place
        .ramlift(&[
            "extract",
            "-q",
            "stream",
            "-o",
            "out",
            "--format",
            "elf",
            "--map=main.ram@0x8000000000000000",
        ])
        .expect_code(0);
}

#[test]
fn a_directory_that_was_removed_under_the_command_is_told_of() {
    let place = small();
    for args in ["extract \"$OLDPWD/stream\"", "info stream", "extract --format raw \"$OLDPWD/stream\""] {
        let script = format!("mkdir gone && cd gone && rmdir ../gone && exec \"$0\" {args}");
        let mut command = Command::new("sh");
        let output = command.args(["-c", &script]).arg(binary()).current_dir(place.path()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
        assert!(stderr.contains("hint: the current directory was removed"), "{args}: {stderr}");
    }
}

#[test]
fn who_comes_second_to_a_new_directory_is_told_what_happened() {
    let place = small();
    let mut command = Command::new(binary());
    command.args(["extract", "-q", "-", "-o", "out"]).current_dir(place.path());
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let stream = place.read("stream");
    let (begin, rest) = stream.split_at(stream.len() - 9);
    std::io::Write::write_all(&mut pipe, begin).unwrap();
    let is_staged = || entries_of(place.path()).iter().any(|name| name.starts_with(".ramlift-incomplete-"));
    let began = std::time::Instant::now();
    while !is_staged() {
        assert!(began.elapsed().as_secs() < 60, "it does not begin");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    place.ramlift(&["extract", "-q", "stream", "-o", "out"]).expect_code(0);
    let manifest = place.read("out/manifest.json");
    std::io::Write::write_all(&mut pipe, rest).unwrap();
    drop(pipe);
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("out: was made by another run") && stderr.contains("--force"), "{stderr}");
    assert!(entries_of(place.path()) == ["out", "stream"] && place.read("out/manifest.json") == manifest);
}

/// Not even a pipe, which would have to be waited for, or a device without an end.
#[test]
fn what_stands_where_an_earlier_manifest_would_is_read_if_it_is_a_file() {
    let place = small();
    let make = |script: &str| {
        let script = format!("rm -rf out && mkdir -p -m 700 out/.ramlift-incomplete-abcdef && {script}");
        let made = Command::new("sh").args(["-c", &script]).current_dir(place.path()).status();
        assert!(made.unwrap().success(), "{script}");
    };
    let extract = || {
        let args =
            ["-k", "1", "60", "sh", "-c", "ulimit -v 2000000; exec \"$0\" extract -q stream -o out --force"];
        let mut command = Command::new("timeout");
        let ended = command.args(args).arg(binary()).current_dir(place.path()).output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    make("mkfifo out/manifest.json");
    let (code, stderr) = extract();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("out/manifest.json: in the way is a device, a pipe or a socket"), "{stderr}");
    make("mkfifo out/.ramlift-incomplete-abcdef/manifest.json");
    let (code, stderr) = extract();
    assert_eq!(code, Some(0), "{stderr}");
    // Read to the end, it would be all the memory that there is.
    for script in ["ln -s /dev/zero out/manifest.json", "truncate -s 1500M out/manifest.json"] {
        make(script);
        let (code, stderr) = extract();
        assert_eq!(code, Some(0), "{script}: {stderr}");
        place.ramlift(&["verify", "out"]).expect_code(0);
    }
}

#[test]
fn a_file_is_not_begun_whose_name_is_that_of_a_directory() {
    let place = small();
    // Not even what is no stream is looked at.
    fs::write(place.join("stream"), "no stream").unwrap();
    let args = ["extract", "stream", "--format", "raw", "--map=main.ram@0", "-o", "file/"];
    let output = place.ramlift(&args).expect_code(1);
    assert!(
        output.stderr.contains("file/: has the name of a directory; this format is one file"),
        "{output:?}"
    );
    assert_eq!(entries_of(place.path()), ["stream"]);
}

/// What the user allows by `ulimit -f` is not taken for what the command was to.
#[test]
fn which_limit_of_a_packed_file_is_met_is_said() {
    let place = Workplace::with(
        &Synth::machine()
            .ram(
                &[Block::new("main.ram", 0x10000)],
                (0..16).fold(Records::new(), |records, page| {
                    records.data("main.ram", page << 12, &noise(page + 1, 4096))
                }),
            )
            .finish(),
    );
    let limited = |args: &str| {
        let script = format!("ulimit -f 8; exec \"$0\" {args}");
        let mut command = Command::new("sh");
        let ended = command.args(["-c", &script]).arg(binary()).current_dir(place.path()).output().unwrap();
        let text = [ended.stdout, ended.stderr].concat();
        (ended.status.code(), String::from_utf8(text).unwrap())
    };
    let args = "extract -q stream --format avml --map main.ram@0 -o file";
    for (max, expected) in [("1G", "`ulimit -f`"), ("1K", "--max-output: ")] {
        let (code, text) = limited(&format!("{args} --max-output {max}"));
        assert_eq!(code, Some(1), "{text}");
        let other = if max == "1G" { "--max-output" } else { "ulimit" };
        assert!(text.contains(expected) && !text.contains(other), "{text}");
    }
    place.ramlift(&args.split(' ').collect::<Vec<_>>()).expect_code(0);
    let (code, text) = limited("verify file.manifest.json");
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("File too large") && !text.contains("--max-temp"), "{text}");
}
