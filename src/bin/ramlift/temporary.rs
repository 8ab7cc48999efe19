//! Temporary files: without a name, in the system's directory for such
//! (`TMPDIR`), and of a bounded length.
//!
//! What is unpacked can be a bomb: some KiB that become as many GiB. So all
//! temporary files of a run together take no more than is allowed, and part of
//! what the file system has free is left to others.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::fstatfs;

use crate::exit::Failure;
use crate::{inputs, room};

/// What any input may unpack to, in bytes.
const LEAST: u64 = 64 << 20;

/// How many times its own length an input may unpack to, beside that. The memory
/// of guests packs to a third or a tenth, zeros not counted.
const TIMES: u64 = 100;

/// The part of what is free that is left to others: one of so many.
const FREE_PARTS: u64 = 16;

/// Bytes that are written between two looks at what is free.
const LOOK_LEN: u64 = 16 << 20;

/// Bytes that are written or, if all are zero, left out.
const PIECE_LEN: usize = 64 << 10;

/// The directory for temporary files.
pub(crate) fn directory() -> PathBuf {
    std::env::temp_dir()
}

/// Bytes that the temporary files of this run take.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Why a temporary file cannot be made, or be no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("more than the {0} bytes that --max-temp allows")]
    Given(u64),
    #[error("more than {bound} bytes, which is 64 MiB and {TIMES} times the {inputs} bytes of the input")]
    Usual { bound: u64, inputs: u64 },
    #[error("{needed} bytes and more, of {free} that are free and of which a sixteenth is left to others")]
    Free { needed: u64, free: u64 },
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Refused {
    /// What can be tried.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Given(_) | Self::Usual { .. } => {
                "a small file that unpacks to a large one can be made to fill disks: allow more by --max-temp SIZE if this is the guest that you expect"
            }
            Self::Free { .. } | Self::System(_) => {
                "temporary files go where TMPDIR says: set it to a directory with more room"
            }
        }
    }

    fn into_io(self) -> io::Error {
        match self {
            Self::System(error) => io::Error::new(error.kind(), Self::System(error)),
            refused => io::Error::other(refused),
        }
    }
}

/// How much temporary files may take, all of this run together.
#[derive(Clone, Copy)]
pub(crate) struct Bound {
    max: Option<u64>,
}

impl Bound {
    /// What `--max-temp` gives, or what is usual.
    pub(crate) fn new(max: Option<u64>) -> Self {
        Self { max }
    }

    fn bytes(self) -> u64 {
        self.max.unwrap_or_else(|| inputs::len().saturating_mul(TIMES).saturating_add(LEAST))
    }

    /// What is left of it.
    pub(crate) fn left(self) -> u64 {
        self.bytes().saturating_sub(TAKEN.load(Ordering::Relaxed))
    }

    /// Why there is no more.
    pub(crate) fn refused(self) -> Refused {
        match self.max {
            Some(max) => Refused::Given(max),
            None => Refused::Usual { bound: self.bytes(), inputs: inputs::len() },
        }
    }
}

/// The failure of a temporary file which is made of what is at `path`.
pub(crate) fn failure(path: &Path, refused: &Refused) -> Failure {
    let takes = if matches!(refused, Refused::System(_)) { "" } else { "takes " };
    let (path, dir) = (path.display(), directory());
    let text = format!("{path}: temporary file in {}: {takes}{refused}", dir.display());
    Failure::Hinted { text, hint: refused.hint() }
}

/// The failure of writing into a [`Temporary`], which is the cause of `error`; none
/// if it has another.
pub(crate) fn failure_of(error: &ramlift::Error, path: &Path) -> Option<Failure> {
    let cause = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
    Some(failure(path, cause.get_ref()?.downcast_ref()?))
}

/// The failure of writing the temporary file `temporary`, which is made of what is
/// at `path`, or of what it is made of.
pub(crate) fn failure_at(temporary: &Path, error: ramlift::Error, path: &Path) -> Failure {
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.filter(|_| error.is_of_file(temporary)) {
        Some(cause) => failure(path, &Refused::System(again(cause))),
        None => Failure::from(error),
    }
}

/// The same error once more.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// A temporary file that is written from its begin to its end. Runs of zeros are
/// holes.
pub(crate) struct Temporary {
    dir: PathBuf,
    file: File,
    bound: Bound,
    /// What was allowed when it was last looked at: of a pipe it grows.
    allowed: u64,
    len: u64,
    /// Bytes that are written before there is another look at what is free, and
    /// what is left to others.
    unlooked: u64,
    spared: u64,
    /// Whether zeros take room when they are read.
    counts_zeros: bool,
}

impl Temporary {
    /// A new one, of `len` bytes if that is known.
    pub(crate) fn new(bound: Bound, len: Option<u64>) -> Result<Self, Refused> {
        let dir = directory();
        let spared = spare(&dir, bound, len.unwrap_or(0))?;
        let file = tempfile::tempfile_in(&dir).map_err(without_path)?;
        inputs::remember_temporary(&dir, &file)?;
        let counts_zeros = is_in_memory(&file);
        Ok(Self { dir, file, bound, allowed: 0, len: 0, unlooked: 0, spared, counts_zeros })
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves a hole.
    pub(crate) fn skip(&mut self, zeros: u64) -> Result<(), Refused> {
        if self.counts_zeros {
            self.take(zeros)?;
        }
        let too_long = || io::Error::from(io::ErrorKind::FileTooLarge);
        self.len = self.len.checked_add(zeros).ok_or_else(too_long)?;
        Ok(())
    }

    /// Adds bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        for piece in bytes.chunks(PIECE_LEN) {
            let len = piece.len() as u64;
            if piece.iter().all(|byte| *byte == 0) {
                self.skip(len)?;
                continue;
            }
            self.take(len)?;
            self.look(len)?;
            self.file.write_all_at(piece, self.len)?;
            self.len += len;
        }
        Ok(())
    }

    /// The file, as long as all that was put into it.
    pub(crate) fn finish(self) -> Result<File, Refused> {
        self.file.set_len(self.len)?;
        Ok(self.file)
    }

    fn take(&mut self, len: u64) -> Result<(), Refused> {
        let add = |taken: u64| Some(taken.saturating_add(len));
        let taken = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or(u64::MAX);
        if taken.saturating_add(len) <= self.allowed {
            return Ok(());
        }
        self.allowed = self.bound.bytes();
        if taken.saturating_add(len) <= self.allowed { Ok(()) } else { Err(self.bound.refused()) }
    }

    /// Looks from time to time at what is free.
    fn look(&mut self, len: u64) -> Result<(), Refused> {
        let Some(left) = self.unlooked.checked_sub(len) else {
            let free = room::free(&self.dir).unwrap_or(u64::MAX);
            let Some(usable) = free.checked_sub(self.spared).filter(|usable| *usable >= len) else {
                let taken = TAKEN.load(Ordering::Relaxed);
                return Err(Refused::Free { needed: taken, free: taken.saturating_add(free) });
            };
            self.unlooked = LOOK_LEN.min(usable) - len;
            return Ok(());
        };
        self.unlooked = left;
        Ok(())
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes).map_err(Refused::into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of what is free in `dir` that are left to others, if `len` may be taken.
pub(crate) fn spare(dir: &Path, bound: Bound, len: u64) -> Result<u64, Refused> {
    let free = room::free(dir).unwrap_or(u64::MAX);
    let spared = free / FREE_PARTS;
    if len > bound.left() {
        Err(bound.refused())
    } else if len > free - spared {
        Err(Refused::Free { needed: len, free })
    } else {
        Ok(spared)
    }
}

/// An error of making a temporary file, without the path that was tried, which
/// nobody asked for.
pub(crate) fn without_path(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|tried| tried.source()?.downcast_ref::<io::Error>());
    cause.and_then(io::Error::raw_os_error).map_or_else(|| again(&error), io::Error::from_raw_os_error)
}

/// Whether the file system has nothing but memory, of which a hole takes some
/// when it is read by a map.
fn is_in_memory(file: &File) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    fstatfs(file).is_ok_and(|system| u64::try_from(system.f_type) == Ok(TMPFS))
}
