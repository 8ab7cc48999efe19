//! Makes the seeds out of `tests/data`, and packs and unpacks them.
//!
//! ```text
//! seeds make DIR      DIR/TARGET/*, out of the streams of tests/data
//! seeds pack DIR      fuzz/seeds/TARGET.tar.zst, of what is in DIR/TARGET, where that is
//! seeds unpack DIR    the other way round
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a tool of developers ends by panicking"
)]

mod made;
mod streams;

#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../../tests/support/channel.rs"]
mod channel;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../../tests/support/synth.rs"]
mod synth;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

// It is built as the targets are, and what counts their coverage is there.
use libfuzzer_sys as _;
use ramlift_fuzz::TARGETS;

/// Seeds of a target, by name.
type Seeds = Vec<(String, Vec<u8>)>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [command, dir] = args.as_slice() else { panic!("usage: seeds make|pack|unpack DIR") };
    let dir = Path::new(dir);
    match command.as_str() {
        "make" => make(dir),
        "pack" => {
            let named = TARGETS.iter().filter(|target| dir.join(target.name).exists());
            named.for_each(|target| pack(&dir.join(target.name), &packed(target.name)));
        }
        "unpack" => TARGETS.iter().for_each(|target| unpack(&dir.join(target.name), target.name)),
        other => panic!("no command {other}"),
    }
}

/// Where the seeds of a target are, packed.
fn packed(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(format!("{target}.tar.zst"))
}

fn make(dir: &Path) {
    let mut seeds: HashMap<&str, Seeds> = made::seeds();
    for (target, more) in streams::seeds() {
        seeds.entry(target).or_default().extend(more);
    }
    for (target, seeds) in seeds {
        let dir = dir.join(ramlift_fuzz::target(target).name);
        fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in seeds {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

/// Packs the files of a directory, in the order of their names, and without
/// times: the same files make the same archive.
fn pack(dir: &Path, archive: &Path) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let mut tar = tar::Builder::new(Vec::new());
    for name in names {
        let bytes = fs::read(dir.join(&name)).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, &name, bytes.as_slice()).unwrap();
    }
    let mut encoder = zstd::Encoder::new(fs::File::create(archive).unwrap(), 19).unwrap();
    encoder.write_all(&tar.into_inner().unwrap()).unwrap();
    encoder.finish().unwrap();
}

fn unpack(dir: &Path, target: &str) {
    fs::create_dir_all(dir).unwrap();
    let decoder = zstd::Decoder::new(fs::File::open(packed(target)).unwrap()).unwrap();
    tar::Archive::new(decoder).unpack(dir).unwrap();
}
