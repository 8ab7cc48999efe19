//! What `scripts/bench` times is right: its synthetic streams give the images
//! that their writer says they must.
//!
//! Needs Python, as the scripts do; without it this tests nothing, and says so.

use std::io::Write;
use std::path::Path;
use std::process::Command;

fn has_python() -> bool {
    let is_there = Command::new("python3").arg("--version").output().is_ok_and(|said| said.status.success());
    if !is_there {
        // Not by a macro: what those print is shown for failed tests alone.
        let _ = writeln!(std::io::stderr(), "skipped: no python3 here");
    }
    is_there
}

#[test]
fn the_streams_of_the_bench_give_their_images() {
    if !has_python() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench");
    let place = tempfile::tempdir().unwrap();
    let mut check = Command::new(script);
    check.args(["--check", "--ramlift", env!("CARGO_BIN_EXE_ramlift"), "--dir"]).arg(place.path());
    let output = check.output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    assert!(place.path().read_dir().unwrap().next().is_none(), "something is left");
}
