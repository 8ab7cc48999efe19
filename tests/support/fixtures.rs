//! The real streams of `tests/data`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The path of a file of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A JSON file of `tests/data`.
pub fn read_json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(data(name)).unwrap()).unwrap()
}

/// A stream by its name in `tests/data/manifest.json`, unpacked.
pub fn unpack(name: &str) -> Vec<u8> {
    let manifest = read_json("manifest.json");
    let file = manifest[name]["file"].as_str().unwrap_or_else(|| panic!("no stream {name}"));
    unpack_file(file)
}

/// The channels of a stream, unpacked, in their order.
pub fn unpack_channels(name: &str) -> Vec<Vec<u8>> {
    let manifest = read_json("manifest.json");
    let channels = manifest[name]["channels"].as_array().unwrap_or_else(|| panic!("no channels of {name}"));
    channels.iter().map(|channel| unpack_file(channel["file"].as_str().unwrap())).collect()
}

/// A file of `tests/data`, unpacked.
pub fn unpack_file(file: &str) -> Vec<u8> {
    let packed = fs::read(data(file)).unwrap();
    if !file.ends_with(".zst") {
        return packed;
    }
    let mut decoder = zstd::Decoder::new(packed.as_slice()).unwrap();
    // The streams are packed with a window of 128 MiB.
    decoder.window_log_max(27).unwrap();
    let mut stream = Vec::new();
    decoder.read_to_end(&mut stream).unwrap();
    stream
}
