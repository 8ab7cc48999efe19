//! Hands files to a target, without libFuzzer: for interpreters, sanitizers, and to
//! count what is run.
//!
//! ```text
//! replay TARGET FILE|DIRECTORY...
//! ```

#![allow(clippy::panic, clippy::expect_used, reason = "a tool of developers ends by panicking")]

use std::fs;
use std::path::PathBuf;

// It is built as the targets are, and what counts their coverage is there.
use libfuzzer_sys as _;

fn main() {
    let mut args = std::env::args().skip(1);
    let target = ramlift_fuzz::target(&args.next().expect("usage: replay TARGET FILE|DIRECTORY..."));
    for path in args.map(PathBuf::from).flat_map(files) {
        // Who fuzzes meanwhile replaces files by smaller ones.
        let Ok(bytes) = fs::read(&path) else { continue };
        println!("{}", path.display());
        (target.run)(&bytes);
    }
}

/// The files of a directory, or the one that this is.
fn files(path: PathBuf) -> Vec<PathBuf> {
    match fs::read_dir(&path) {
        Ok(entries) => entries.map(|entry| entry.expect("it is listed").path()).collect(),
        Err(_) => vec![path],
    }
}
