//! Hashes of files: of what was read, and of what was written.
//!
//! A file is hashed from the page cache, through which its bytes went a moment
//! ago. Holes are zeros that nobody has to read. BLAKE3 is a tree: all threads
//! hash windows of one file, whose values are then merged. SHA-256 is a chain:
//! a thread a file, and zeros take as long as all else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use clap::ValueEnum;
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a file that are hashed at a time: a subtree of BLAKE3's, so a power
/// of two, and what stays in a core's own cache.
const WINDOW_LEN: u64 = 1 << 20;

/// What a hole reads as: a window of it.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// A hash function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Algorithm {
    /// What courts and `sha256sum` know
    Sha256,
    /// Several times as fast, on all threads; as `b3sum` has it
    Blake3,
}

impl Algorithm {
    /// Its name, as on the command line and in the manifest.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }
}

/// A hash of bytes that come in order.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Blake3 => Self::Blake3(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The hash, in hex.
    pub(crate) fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::Blake3(hasher) => hex(hasher.finalize().as_bytes()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of the first `len` bytes of a file, in hex. `threads` of this
/// function's own do it, where the algorithm allows: it waits for nobody of a
/// rayon pool, so it can be called from outside of one and inside.
///
/// # Errors
/// What reading says, and [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) of a
/// file that is shorter.
pub(crate) fn of_file(file: &File, len: u64, algorithm: Algorithm, threads: usize) -> io::Result<String> {
    let windows = Windows { file, len };
    match algorithm {
        Algorithm::Blake3 if len > WINDOW_LEN => Ok(hex(&windows.tree(threads)?)),
        _ => windows.chain(Hasher::new(algorithm)),
    }
}

/// A file, window by window.
struct Windows<'f> {
    file: &'f File,
    len: u64,
}

impl Windows<'_> {
    fn count(&self) -> u64 {
        self.len.div_ceil(WINDOW_LEN)
    }

    /// The bytes of a window.
    fn read<'b>(&self, number: u64, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
        let start = number * WINDOW_LEN;
        let len = usize::try_from(WINDOW_LEN.min(self.len - start)).unwrap_or(ZEROS.len());
        if next_data(self.file, start) >= start + len as u64 {
            // A file that was cut has no data there either.
            self.file.read_exact_at(&mut [0], start + len as u64 - 1)?;
            return Ok(ZEROS.get(..len).unwrap_or_default());
        }
        buffer.resize(len, 0);
        self.file.read_exact_at(buffer, start)?;
        Ok(buffer)
    }

    /// The hash by one thread, from the first byte to the last.
    fn chain(&self, mut hasher: Hasher) -> io::Result<String> {
        let mut buffer = Vec::new();
        for number in 0..self.count() {
            hasher.update(self.read(number, &mut buffer)?);
        }
        Ok(hasher.finish())
    }

    /// BLAKE3's hash of more than one window, by several threads.
    fn tree(&self, threads: usize) -> io::Result<[u8; 32]> {
        let next = AtomicU64::new(0);
        let work = || self.subtrees(&next);
        let mut values = std::thread::scope(|scope| {
            // Those that are to be had: what they would do the others do.
            let begin = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
            let helpers: Vec<_> = (1..threads).filter_map(begin).collect();
            let mut values = work()?;
            for helper in helpers {
                let of_helper =
                    helper.join().map_err(|_| io::Error::other("a thread that hashes panicked"))?;
                values.extend(of_helper?);
            }
            Ok::<_, io::Error>(values)
        })?;
        values.sort_unstable_by_key(|(number, _)| *number);
        let values: Vec<ChainingValue> = values.into_iter().map(|(_, value)| value).collect();
        let (left, right) = halves(&values);
        Ok(*merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).as_bytes())
    }

    /// The values of windows that nobody else has taken, each with its number.
    fn subtrees(&self, next: &AtomicU64) -> io::Result<Vec<(u64, ChainingValue)>> {
        let mut buffer = Vec::new();
        let mut values = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count() {
                return Ok(values);
            }
            let bytes = self.read(number, &mut buffer)?;
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(number * WINDOW_LEN).update(bytes);
            values.push((number, hasher.finalize_non_root()));
        }
    }
}

/// The value of the tree above those of windows in a row.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [] => ChainingValue::default(),
        [value] => *value,
        values => {
            let (left, right) = halves(values);
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// BLAKE3's tree is full on the left: the largest power of two that leaves
/// something for the right.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    let left = left_subtree_len(values.len() as u64 * WINDOW_LEN) / WINDOW_LEN;
    values.split_at_checked(usize::try_from(left).unwrap_or(0)).unwrap_or((values, &[]))
}

/// The first byte from `at` on that is in no hole of the file. Where nobody
/// tells, it is `at`.
pub(crate) fn next_data(file: &File, at: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        Err(_) => at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash by one call of the algorithm's own crate.
    fn plain(algorithm: Algorithm, bytes: &[u8]) -> String {
        match algorithm {
            Algorithm::Sha256 => hex(&Sha256::digest(bytes)),
            Algorithm::Blake3 => blake3::hash(bytes).to_hex().to_string(),
        }
    }

    #[test]
    fn files_hash_as_their_bytes_whatever_the_length_and_the_threads() {
        let window = WINDOW_LEN;
        for len in [0, 1, 1024, window - 1, window, window + 1, 2 * window, 3 * window + 7, 9 * window - 1] {
            let bytes: Vec<u8> = (0..len).map(|at| ((at % 251) ^ (at >> 20)).to_le_bytes()[0]).collect();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            for (algorithm, threads) in
                [(Algorithm::Sha256, 1), (Algorithm::Blake3, 1), (Algorithm::Blake3, 3)]
            {
                let hash = of_file(&file, len, algorithm, threads).unwrap();
                assert_eq!(hash, plain(algorithm, &bytes), "{len} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn holes_hash_as_zeros() {
        let len = 6 * WINDOW_LEN + 5;
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(b"data", 3 * WINDOW_LEN + 4096).unwrap();
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            assert_eq!(of_file(&file, len, algorithm, 2).unwrap(), plain(algorithm, &bytes));
        }
    }

    #[test]
    fn a_file_that_was_cut_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * WINDOW_LEN).unwrap();
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let error = of_file(&file, 4 * WINDOW_LEN, algorithm, 2).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
