//! Files of an output, compared with what they should hold.
//!
//! What they should hold comes as an extraction makes it: in pieces, from
//! several threads, zeros left out; or in order, as text does.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ramlift::{BlockId, BlockOffset, Error, ImageSink, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::Value;

use crate::hash::next_data;
use crate::os_text::RecordedPath;

/// Bytes that are read and compared at a time.
const STEP: usize = 64 << 10;

/// The directory of an output. No path leads out of it, and no symlink.
pub(crate) struct OutputDir {
    pub(crate) path: PathBuf,
    directory: OwnedFd,
}

impl OutputDir {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), directory })
    }

    /// Opens a file in it, which has to be a plain one.
    pub(crate) fn file(&self, relative: impl AsRef<Path>) -> io::Result<File> {
        let outside = || io::Error::other("is no plain path inside the directory");
        let names = relative.as_ref().components().map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(outside()),
        });
        let names = names.collect::<io::Result<Vec<_>>>()?;
        let (last, above) = names.split_last().ok_or_else(outside)?;
        let mut directory = None;
        for name in above {
            let place = directory.as_ref().map_or(self.directory.as_fd(), |fd: &OwnedFd| fd.as_fd());
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            directory = Some(openat(place, *name, flags, Mode::empty())?);
        }
        let place = directory.as_ref().map_or(self.directory.as_fd(), |fd| fd.as_fd());
        // A pipe shall not have to be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(place, *last, flags, Mode::empty()) {
            Err(rustix::io::Errno::LOOP) => return Err(io::Error::other("is a symlink")),
            file => File::from(file?),
        };
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("is no regular file")),
        }
    }
}

/// Where a file is other than it should be, first, and in how many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Difference {
    at: u64,
    /// The byte that should be there; none behind the end.
    expected: Option<u8>,
    met: Option<u8>,
    bytes: u64,
}

impl Difference {
    /// Between bytes at `at` that should be there and those that are: as many, or
    /// less.
    fn between(at: u64, expected: &[u8], met: &[u8]) -> Option<Self> {
        if expected == met {
            return None;
        }
        let both = || expected.iter().zip(met).zip(at..).filter(|((one, other), _)| one != other);
        let missing = (expected.len() - met.len()) as u64;
        let cut = || (at + met.len() as u64, expected.get(met.len()).copied(), None);
        let first = both().next().map(|((one, other), at)| (at, Some(*one), Some(*other)));
        let (at, expected, met) = first.unwrap_or_else(cut);
        Some(Self { at, expected, met, bytes: both().count() as u64 + missing })
    }

    /// Of a file that does not end at `len`.
    fn of_len(len: u64, met: u64) -> Option<Self> {
        (met > len).then(|| Self { at: len, expected: None, met: None, bytes: met - len })
    }

    /// Both, as one.
    fn and(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (Some(one), Some(other)) = (one, other) else { return one.or(other) };
        let (first, _) = if one.at <= other.at { (one, other) } else { (other, one) };
        Some(Self { bytes: one.bytes + other.bytes, ..first })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, expected, met, bytes } = self;
        match (expected, met) {
            (Some(expected), Some(met)) => {
                write!(f, "differs at {at:#x}: {met:#04x}, expected {expected:#04x}; in {bytes} bytes in all")
            }
            (Some(_), None) => write!(f, "ends at {at:#x}; {bytes} bytes are missing or differ"),
            (None, _) => write!(f, "goes on behind {at:#x}, where it should end, for {bytes} bytes"),
        }
    }
}

/// A file, compared in pieces that come in any order.
pub(crate) struct Expected<'o> {
    output: &'o OutputDir,
    pub(crate) path: RecordedPath,
    len: u64,
    met: Mutex<Met>,
}

#[derive(Default)]
struct Met {
    given: Vec<Range<u64>>,
    difference: Option<Difference>,
}

impl<'o> Expected<'o> {
    /// A file that should have `len` bytes.
    pub(crate) fn new(output: &'o OutputDir, path: &RecordedPath, len: u64) -> Self {
        Self { output, path: path.clone(), len, met: Mutex::default() }
    }

    /// Expects `data` at `at`. Not twice the same place.
    pub(crate) fn expect(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let file = self.output.file(&self.path)?;
        let mut buffer = vec![0; STEP.min(data.len())];
        let mut difference = None;
        for (nth, piece) in data.chunks(STEP).enumerate() {
            let at = at + (nth * STEP) as u64;
            let met = read_at(&file, at, buffer.get_mut(..piece.len()).unwrap_or_default())?;
            difference = Difference::and(difference, Difference::between(at, piece, met));
        }
        self.add(at..at + data.len() as u64, difference);
        Ok(())
    }

    fn add(&self, given: Range<u64>, difference: Option<Difference>) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.difference = Difference::and(met.difference, difference);
        met.given.push(given);
    }

    /// Expects zeros where nothing else was. Gives what there is of differences
    /// in all.
    pub(crate) fn finish(self) -> io::Result<Option<Difference>> {
        let file = self.output.file(&self.path)?;
        let Met { mut given, mut difference } = self.met.into_inner().unwrap_or_else(PoisonError::into_inner);
        given.sort_unstable_by_key(|range| range.start);
        let mut end = 0;
        for range in given.into_iter().chain(std::iter::once(self.len..self.len)) {
            difference = Difference::and(difference, expect_zeros(&file, end..range.start)?);
            end = end.max(range.end);
        }
        let met = file.metadata()?.len();
        // Zeros that are missing at the end are none that were read.
        let cut = Difference { at: met, expected: Some(0), met: None, bytes: self.len.saturating_sub(met) };
        let is_cut = met < self.len && difference.is_none_or(|difference| difference.at > met);
        difference = Difference::and(difference, is_cut.then_some(cut));
        Ok(Difference::and(difference, Difference::of_len(self.len, met)))
    }
}

/// Compares a range with zeros. Holes are, and need no reading.
fn expect_zeros(file: &File, range: Range<u64>) -> io::Result<Option<Difference>> {
    static ZEROS: [u8; STEP] = [0; STEP];
    let mut buffer = vec![0; STEP];
    let mut difference = None;
    let mut at = next_data(file, range.start);
    while at < range.end {
        let len = usize::try_from(range.end - at).unwrap_or(STEP).min(STEP);
        let met = read_at(file, at, buffer.get_mut(..len).unwrap_or_default())?;
        let zeros = ZEROS.get(..met.len()).unwrap_or_default();
        difference = Difference::and(difference, Difference::between(at, zeros, met));
        at = next_data(file, at + len as u64);
    }
    Ok(difference)
}

/// Reads as much as there is, up to the length of `into`.
fn read_at<'b>(file: &File, at: u64, into: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(into.get(..done).unwrap_or_default())
}

/// Images of blocks, each by its number: what a scatter gives is expected.
pub(crate) struct Images<'o>(pub(crate) Vec<Option<Expected<'o>>>);

impl ImageSink for Images<'_> {
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()> {
        let Some(Some(image)) = self.0.get(block.0) else { return Ok(()) };
        image.expect(offset.0, data).map_err(|source| Error::io(image.output.path.join(&image.path), source))
    }
}

/// Expects what `file` holds: for formats that are known when they are written.
pub(crate) fn expect_file(expected: &Expected<'_>, file: &File) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut buffer = vec![0; STEP];
    let mut at = next_data(file, 0);
    while at < len {
        let data = read_at(file, at, &mut buffer)?;
        expected.expect(at, data)?;
        at = next_data(file, at + data.len() as u64);
    }
    Ok(())
}

/// Compares what is written to it with what a file holds.
pub(crate) struct Reread {
    file: BufReader<File>,
    at: u64,
    difference: Option<Difference>,
    buffer: Vec<u8>,
}

impl Reread {
    pub(crate) fn new(file: File) -> Self {
        Self { file: BufReader::with_capacity(STEP, file), at: 0, difference: None, buffer: Vec::new() }
    }

    /// Expects the end.
    pub(crate) fn finish(self) -> io::Result<Option<Difference>> {
        let len = self.file.get_ref().metadata()?.len();
        Ok(Difference::and(self.difference, Difference::of_len(self.at, len)))
    }
}

impl Write for Reread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.clear();
        (&mut self.file).take(bytes.len() as u64).read_to_end(&mut self.buffer)?;
        self.difference = Difference::and(self.difference, Difference::between(self.at, bytes, &self.buffer));
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where two values differ first, but for what `is_other` may be.
pub(crate) fn first_difference<'v>(
    at: &str,
    expected: &'v Value,
    met: &'v Value,
    is_other: &dyn Fn(&str) -> bool,
) -> Option<(String, &'v Value, &'v Value)> {
    let inside = |key: &str, expected, met| first_difference(&format!("{at}/{key}"), expected, met, is_other);
    match (expected, met) {
        _ if expected == met || is_other(at) => None,
        (Value::Object(one), Value::Object(other)) if one.keys().eq(other.keys()) => {
            one.iter().zip(other.values()).find_map(|((key, one), other)| inside(key, one, other))
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => one
            .iter()
            .zip(other)
            .enumerate()
            .find_map(|(nth, (one, other))| inside(&nth.to_string(), one, other)),
        _ => Some((at.to_owned(), expected, met)),
    }
}
