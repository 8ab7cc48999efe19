//! The fuzz targets, without a fuzzer: over their seeds, over changes of those
//! that are the same in each run, and over what was found before.
//!
//! `scripts/fuzz` is for finding more.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use targets::{MEMORY, TARGETS, TIME, Target, cpu_time, target};

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// How much slower a build for tests is than one for fuzzing.
const SLOWNESS: u32 = 2;

/// How long changed seeds are, in bytes.
const MAX_LEN: usize = 16 << 10;

/// One target at a time: memory is counted for all threads together.
static ALONE: Mutex<()> = Mutex::new(());

fn path(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

/// The seeds of a target.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let packed = fs::File::open(path("fuzz/seeds").join(format!("{}.tar.zst", target.name))).unwrap();
    let mut archive = tar::Archive::new(zstd::Decoder::new(packed).unwrap());
    let content = |mut entry: tar::Entry<'_, _>| {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        bytes
    };
    archive.entries().unwrap().map(|entry| content(entry.unwrap())).collect()
}

/// Runs a target within its limits, and keeps what it fails on.
fn run(target: &Target, bytes: &[u8]) {
    let allowed = ALLOCATOR.allocated() + MEMORY + bytes.len();
    ALLOCATOR.set_limit(allowed).unwrap();
    let start = cpu_time();
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let took = cpu_time() - start;
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    if result.is_err() || took > TIME * SLOWNESS {
        let kept = path("target").join(format!("fuzz-{}", target.name));
        fs::write(&kept, bytes).unwrap();
        let why = result.err().unwrap_or_else(|| Box::new(format!("it takes {took:?}")));
        eprintln!("the input is {}", kept.display());
        resume_unwind(why);
    }
}

/// Numbers without an order, the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^ word >> 27
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 8) as usize % bound.max(1)
    }
}

/// A seed with a few changes.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(8)).min(bytes.len());
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, random.next().to_be_bytes())),
            3 => bytes[at..end].fill([0, 0xff, 0x7f, 0x80][random.below(4)]),
            4 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
            5 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = byte.wrapping_add(1)),
            _ => {
                // What another one has there.
                let other = &seeds[random.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend(other.get(at..).unwrap_or_default());
            }
        }
    }
    bytes.truncate(MAX_LEN);
    bytes
}

/// Runs a target over its seeds, and over so many changed ones.
fn fuzz(name: &str, changes: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = target(name);
    let seeds = seeds(target);
    assert!(seeds.len() > 3, "{name} has {} seeds", seeds.len());
    seeds.iter().for_each(|seed| run(target, seed));
    let mut random = Random(1);
    (0..changes).for_each(|_| run(target, &changed(&seeds, &mut random)));
    for file in fs::read_dir(path("tests/data/findings")).unwrap().map(|entry| entry.unwrap().path()) {
        if file.file_name().unwrap().to_str().unwrap().starts_with(&format!("{name}-")) {
            run(target, &fs::read(file).unwrap());
        }
    }
}

#[test]
fn every_target_is_run_here() {
    let source = include_str!("fuzz.rs");
    for Target { name, .. } in TARGETS {
        assert!(source.contains(&format!("fuzz(\"{name}\", ")), "{name} is not run");
        assert!(path("fuzz/fuzz_targets").join(format!("{name}.rs")).exists(), "{name} has no binary");
    }
}

#[test]
fn streams() {
    fuzz("stream", 2000);
    fuzz("salvage", 2000);
    fuzz("read_once", 2000);
}

#[test]
fn devices() {
    fuzz("description", 2000);
    fuzz("device", 2000);
    fuzz("device_made", 2000);
    fuzz("body", 2000);
    fuzz("virtio", 400);
}

#[test]
fn encodings_of_pages() {
    fuzz("xbzrle", 2000);
    fuzz("mapped_ram", 1000);
    fuzz("multifd", 2000);
}

#[test]
fn wrappers() {
    fuzz("wrapper", 1000);
    fuzz("qcow2", 2000);
}

#[test]
fn what_debuggers_read() {
    fuzz("cpu", 300);
    fuzz("layout", 300);
    fuzz("guest", 60);
}

#[test]
fn made_streams_against_the_naive_reader() {
    fuzz("differential", 400);
    fuzz("damage", 400);
}
