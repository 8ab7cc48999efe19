//! The command: options, exit codes, help, inputs of any kind.

#[path = "../support/mod.rs"]
mod support;

mod extract;
mod reports;

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use support::cli::{Workplace, binary, entries_of, files_in, ramlift, ramlift_in};
use support::synth::{noise, small_stream};

const BOOL: &str = r#"{"name": "on", "type": "bool", "size": 1}"#;

/// What [`small_stream`] extracts to.
const SMALL_FILES: [&str; 5] =
    ["0000:00:02.0/vga.vram", "desc.json", "main.ram", "manifest.json", "state.json"];

#[test]
fn a_command_line_that_makes_no_sense_is_exit_code_2() {
    for args in [
        &[][..],
        &["explode"],
        &["info"],
        &["info", "stream", "--loud"],
        &["extract", "stream", "--threads", "0"],
        &["extract", "stream", "--threads", "1025"],
        &["extract", "stream", "--threads", "many"],
        &["extract", "stream", "-o"],
        &["generate", "poetry"],
    ] {
        let output = ramlift(args);
        assert_eq!(output.code, 2, "{args:?}");
        assert_eq!(output.text(), "");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for args in [&["--help"][..], &["-h"], &["extract", "--help"], &["--version"], &["info", "--version"]] {
        let output = ramlift(args).expect_code(0);
        assert!(output.text().contains("ramlift"), "{args:?}");
        assert_eq!(output.stderr, "");
    }
}

#[test]
fn inputs_that_cannot_be_read_are_exit_code_1() {
    let place = Workplace::with(b"no stream at all");
    fs::create_dir(place.join("directory")).unwrap();
    fs::write(place.join("empty"), "").unwrap();
    for input in ["stream", "missing", "directory", "empty", "/dev/null", "/dev/zero"] {
        for command in ["info", "extract", "state", "desc"] {
            let output = place.ramlift(&[command, input]).expect_code(1);
            assert!(output.stderr.contains(input), "{command} {input}: {}", output.stderr);
            assert_eq!(output.text(), "");
        }
    }
    assert_eq!(entries_of(place.path()), ["directory", "empty", "stream"]);
}

#[test]
fn a_named_pipe_is_read_as_it_comes() {
    let stream = small_stream().finish();
    let place = Workplace::with(&stream);
    assert!(Command::new("mkfifo").arg(place.join("pipe")).status().unwrap().success());
    let (pipe, bytes) = (place.join("pipe"), stream.clone());
    let writer = std::thread::spawn(move || fs::write(pipe, bytes));
    let output = place.ramlift(&["state", "pipe"]).expect_code(0);
    writer.join().unwrap().unwrap();
    assert_eq!(output.text(), place.ramlift(&["state", "stream"]).text());
}

#[test]
fn names_of_files_need_not_be_text() {
    let place = Workplace::with(&small_stream().finish());
    let name = std::ffi::OsStr::from_bytes(b"str\xffeam");
    fs::rename(place.join("stream"), place.path().join(name)).unwrap();
    ramlift_in(place.path(), &["extract".as_ref(), name]).expect_code(0);
    let extracted = place.path().join(std::ffi::OsStr::from_bytes(b"str\xffeam.extracted"));
    assert_eq!(files_in(extracted), SMALL_FILES);
}

#[test]
fn a_closed_pipe_is_success() {
    // Far more than a pipe holds.
    let blob = format!(r#"{{"name": "blob", "type": "buffer", "size": {}}}"#, 1 << 20);
    let stream = small_stream().device(9, "flash", &noise(1, 1 << 20), &blob).finish();
    let place = Workplace::with(&stream);
    for args in [
        &["state", "stream"][..],
        &["info", "stream"],
        &["info", "stream", "--json"],
        &["desc", "stream"],
        &["generate", "man"],
        &["extract", "stream"],
    ] {
        let mut child = Command::new(binary())
            .args(args)
            .current_dir(place.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("panic") && !stderr.contains("error"), "{args:?}: {stderr}");
    }
}

#[test]
fn completions_and_the_man_page_are_generated() {
    for what in ["bash", "elvish", "fish", "powershell", "zsh", "man"] {
        let output = ramlift(&["generate", what]).expect_code(0);
        for text in ["ramlift", "extract", "info", "state"] {
            assert!(output.text().contains(text), "{what} has no {text}");
        }
        assert_eq!(output.stderr, "");
    }
    assert!(!ramlift(&["--help"]).text().contains("generate"), "it is for packagers");
}
