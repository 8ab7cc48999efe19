//! Where there is little of what a process needs: address space, threads.

mod support;

use std::process::{Command, Stdio};

use support::cli::{Output, Workplace, binary, entries_of};
use support::fault::{Fault, ramlift_with};
use support::synth::small_stream;

/// Ends in an error that says so, or in a success.
#[track_caller]
fn check(what: &str, code: Option<i32>, stderr: &str) {
    let is_told = code == Some(1) && stderr.starts_with("error: ");
    assert!(code == Some(0) || is_told, "{what}: {code:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
}

#[test]
fn without_memory_for_a_chunk_of_a_pipe_the_run_ends_in_an_error() {
    let place = Workplace::with(&small_stream().finish());
    // Address space that one chunk, of 8 MiB, has no place in. What there is
    // beside it is of the process, its two threads and their stacks.
    let mut refused = 0;
    for mib in (24..64).step_by(4) {
        let script =
            format!("ulimit -v {} && exec \"$0\" extract - -o out --force --threads 1 < stream", mib << 10);
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(binary()).current_dir(place.path());
        let ended = command.env("MALLOC_ARENA_MAX", "1").stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        // A process that cannot be loaded is none of ours.
        if ended.status.code() == Some(127) {
            continue;
        }
        check(&format!("{mib} MiB"), ended.status.code(), &stderr);
        refused += u32::from(stderr.contains("out of memory"));
    }
    assert!(refused > 0, "none of them met it");
    assert!(entries_of(place.path()).iter().all(|name| !name.starts_with(".ramlift")));
}

#[test]
fn without_threads_the_run_ends_in_an_error() {
    let place = Workplace::with(&small_stream().finish());
    const EAGAIN: i32 = 11;
    let ways: [&[&str]; 4] = [
        &["extract", "stream", "-o", "out", "--force"],
        &["extract", "stream", "-o", "out", "--force", "--read-once"],
        &["extract", "stream", "-o", "out", "--force", "--hash", "sha256"],
        &["info", "stream"],
    ];
    for way in ways {
        for nth in 1..8 {
            let ended = ramlift_with(place.path(), way, nth, Fault::NoThread(EAGAIN));
            assert_eq!(ended.signal, None, "{way:?}, {nth}: {}", ended.stderr);
            check(&format!("{way:?}, {nth}"), ended.code, &ended.stderr);
            if ended.calls < nth {
                break;
            }
        }
    }
}

#[test]
fn little_address_space_ends_no_command_by_a_signal() {
    let place = Workplace::with(&small_stream().finish());
    for mib in (64..512).step_by(64) {
        for way in
            [&["info", "stream"][..], &["state", "stream"], &["extract", "stream", "-o", "out", "--force"]]
        {
            let Output { code, stderr, .. } = support::cli::ramlift_within(mib << 10, place.path(), way);
            check(&format!("{way:?} in {mib} MiB"), Some(code), &stderr);
        }
    }
}

#[test]
fn the_environment_asks_for_no_more_threads_than_options_can() {
    // A million of them took ten minutes, and panicked.
    let place = Workplace::with(&small_stream().finish());
    for (asked, expected) in [("1025", 1024), ("99999999999", 1024), ("3", 3)] {
        let mut command = Command::new(binary());
        command.args(["extract", "stream", "-o", "out", "--force"]).current_dir(place.path());
        let ended = command.env("RAYON_NUM_THREADS", asked).output().unwrap();
        assert!(ended.status.success(), "{asked}: {}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(place.json("out/manifest.json")["run"]["threads"], expected, "{asked}");
    }
}
