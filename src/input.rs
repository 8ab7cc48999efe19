//! The input: a file, mapped.
//!
//! What a walk over a mapped file takes is page faults, nearly all of it: some
//! 90 ns a page that is in the page cache, 15 for what the walk does with it.
//! So the other threads take faults off it: they bring chunks into the map
//! that the walk is about to reach. Nothing depends on them; where they are
//! late, the walk faults as it would without them.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::holes::{FileHoles, Holes};
use crate::progress::Progress;
use crate::units::index;

/// Bytes that another thread brings into the map at a time.
const CHUNK_LEN: usize = 2 << 20;

/// How many chunks such threads may be ahead of the walk.
const CHUNKS_AHEAD: usize = 16;

/// How many threads go ahead: more cannot, as each takes some six times as
/// long for a chunk as the walk then does.
const THREADS_AHEAD: usize = 6;

/// Of so many chunks, a thread that is alone ahead brings [`BROUGHT_ALONE`],
/// and leaves the first of each lot to the walk: by then both take as long,
/// and never meet in one chunk.
const LOT: usize = 3;
const BROUGHT_ALONE: usize = 2;

/// How long a thread waits that is too far ahead: less than the walk takes for
/// the chunks between them.
const WAIT: Duration = Duration::from_micros(50);

/// A file in memory, read-only, without a copy.
///
/// The bytes are the file's own pages. They stay what they are only as long
/// as nobody writes to the file: a change while it is mapped can be seen half
/// done, and a file that *shrinks* makes the next access beyond its end kill
/// the process (`SIGBUS`), unless it handles that signal, as the command does.
/// Read streams that are complete, on storage of your own; copy first what
/// others can write to. [`FileState`] tells whether somebody did.
pub struct Input {
    path: PathBuf,
    /// Where in the file the map begins.
    start: u64,
    file: File,
    map: Mmap,
    holes: FileHoles,
}

impl Input {
    /// Opens and maps `path`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be opened or
    /// mapped, or is no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |source| Error::io(path, source);
        // Before it is opened: to open a named pipe is to wait for a writer.
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() {
            let what = if kind.is_dir() { "a directory" } else { "no regular file" };
            return Err(fail(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!("is {what}; this version reads streams from regular files"),
            )));
        }
        Self::of_file(path, &open_to_read(path).map_err(fail)?)
    }

    /// Maps a file that is open already. `path` is its name for messages.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be mapped.
    pub fn of_file(path: impl Into<PathBuf>, file: &File) -> Result<Self> {
        let path = path.into();
        let len = file.metadata().map_err(|source| Error::io(&path, source))?.len();
        Self::of_range(path, file, 0..len)
    }

    /// Maps a range of bytes of a file or block device that is open already.
    ///
    /// # Errors
    /// As [`of_file`](Self::of_file).
    pub fn of_range(path: impl Into<PathBuf>, file: &File, range: Range<u64>) -> Result<Self> {
        let path = path.into();
        let fail = |source| Error::io(&path, source);
        let map = map_file(file, &range).map_err(fail)?;
        let file = file.try_clone().map_err(fail)?;
        Ok(Self { path, start: range.start, file, map, holes: FileHoles::new(range) })
    }

    /// Where in the file the bytes are.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.map.len() as u64
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Bytes that the file has on the disk of these, at most: all but its holes.
    pub fn data_len(&self) -> u64 {
        self.holes().data_len()
    }

    /// Where the file has data.
    pub(crate) fn holes(&self) -> Holes<'_> {
        Holes::Of(&self.file, &self.holes)
    }

    /// Does `work`, which goes over the bytes in order and tells `progress` how
    /// far it is, while the other threads of the current rayon pool bring what
    /// comes next into the map.
    pub fn ahead_of<T: Send>(&self, progress: &Progress, work: impl FnOnce() -> T + Send) -> T {
        let threads = THREADS_AHEAD.min(rayon::current_num_threads() - 1);
        if self.map.len() < CHUNKS_AHEAD * CHUNK_LEN || threads == 0 {
            return work();
        }
        let ahead = Ahead {
            map: &self.map,
            progress,
            is_alone: threads == 1,
            next: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        };
        rayon::in_place_scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|_| ahead.run());
            }
            let done = work();
            ahead.is_over.store(true, Ordering::Relaxed);
            done
        })
    }
}

/// Opens a file to be read, and nothing of it to be changed: not even the time
/// of its last access, if the system lets us have that (it does for owners).
///
/// # Errors
/// What the system says.
pub fn open_to_read(path: &Path) -> std::io::Result<File> {
    let flags = i32::try_from(OFlags::NOATIME.bits()).unwrap_or(0);
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => File::open(path),
        opened => opened,
    }
}

/// What a file is at a moment: how long, and when it was last written to.
///
/// Two of these tell whether somebody wrote to a file between them. They do not
/// tell if that was set right again on purpose, or if the file has no times of
/// its own, like a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileState {
    len: u64,
    modified: SystemTime,
}

/// How a file became another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is shorter.
    Shrunk,
    /// It is longer.
    Grown,
    /// It was written to.
    Written,
}

impl FileState {
    /// What `file` is now.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { len: metadata.len(), modified: metadata.modified()? })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When it was last written to.
    pub fn modified(&self) -> SystemTime {
        self.modified
    }

    /// What happened between this and a later state.
    pub fn change_to(&self, later: &Self) -> Option<Change> {
        match later.len.cmp(&self.len) {
            std::cmp::Ordering::Less => Some(Change::Shrunk),
            std::cmp::Ordering::Greater => Some(Change::Grown),
            std::cmp::Ordering::Equal => (later.modified != self.modified).then_some(Change::Written),
        }
    }
}

/// What the threads that go ahead of a walk share.
struct Ahead<'i> {
    map: &'i Mmap,
    progress: &'i Progress,
    is_alone: bool,
    /// The chunk behind the last that one of them has taken.
    next: AtomicUsize,
    is_over: AtomicBool,
}

impl Ahead<'_> {
    fn run(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            // The walk is in one chunk and soon in the next.
            let walked = index(self.progress.done()).unwrap_or(usize::MAX) / CHUNK_LEN;
            let taken = self.next.load(Ordering::Relaxed);
            let mut chunk = taken.max(walked.saturating_add(2));
            if self.is_alone && chunk % LOT >= BROUGHT_ALONE {
                chunk = chunk.next_multiple_of(LOT);
            }
            if chunk > walked.saturating_add(CHUNKS_AHEAD) {
                std::thread::sleep(WAIT);
                continue;
            }
            let Some(left) =
                self.map.len().checked_sub(chunk.saturating_mul(CHUNK_LEN)).filter(|left| *left > 0)
            else {
                return;
            };
            let claim = self.next.compare_exchange(taken, chunk + 1, Ordering::Relaxed, Ordering::Relaxed);
            if claim.is_ok() && self.bring(chunk * CHUNK_LEN, left.min(CHUNK_LEN)).is_err() {
                // A kernel before 5.14 cannot.
                return;
            }
        }
    }

    fn bring(&self, offset: usize, len: usize) -> std::io::Result<()> {
        self.map.advise_range(Advice::PopulateRead, offset, len)
    }
}

#[expect(unsafe_code, reason = "mapping a file is unsafe by nature; this is the only place")]
fn map_file(file: &File, range: &Range<u64>) -> std::io::Result<Mmap> {
    let len = index(range.end - range.start).ok_or(std::io::ErrorKind::FileTooLarge)?;
    // SAFETY: the map is read-only and private to `Input`, which hands out
    // shared slices that live no longer than it does. The one thing that can
    // break them is another process changing the file, which no program can
    // rule out for a mapped file. `u8` has no invalid values, every number
    // read from the map is checked after it is copied out, and nothing is
    // read twice with the hope of the same answer where memory safety would
    // depend on it; a file that shrinks ends the process by a signal, which
    // is what the type's documentation tells its users.
    unsafe { MmapOptions::new().offset(range.start).len(len).map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_has_no_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Input::open(file.path()).unwrap().bytes(), b"");
    }

    #[test]
    fn a_directory_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = Input::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains(&dir.path().display().to_string()));
    }
}
