//! Whether there is room for what will be written: as much as `--max-output`
//! allows, and as the file system has free.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ramlift::{
    BlockFiles, BlockId, BlockOffset, Error, ErrorKind, ImageSink, ImageStore, Input, Ram, StreamOffset,
    data_len, nonzero_len,
};
use rustix::fs::{fstatvfs, statfs};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use crate::exit::Failure;

/// File systems that may take less room for bytes than there are: btrfs, ZFS,
/// bcachefs, F2FS, EROFS's kin.
const COMPRESSING: [u64; 4] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e, 0xf2f5_2010];

/// The parts of blocks that will be written.
pub(crate) type Parts = Vec<(BlockId, Range<BlockOffset>)>;

/// All of some blocks.
pub(crate) fn whole(blocks: &[BlockId]) -> Parts {
    blocks.iter().map(|block| (*block, BlockOffset(0)..BlockOffset(u64::MAX))).collect()
}

/// The failure of writing more than `--max-output` allows.
pub(crate) fn beyond(what: &str, max: u64) -> Failure {
    Failure::Hinted {
        text: format!("--max-output: {what}, and {max} bytes are allowed"),
        hint: "allow more if this is the guest that you expect; --block writes some blocks only",
    }
}

/// Fails if `parts` of `ram` take more than is allowed or free. `place` is on
/// the file system that is written to. Gives the bytes that they take at most.
pub(crate) fn check(
    ram: &Ram<'_>,
    parts: &Parts,
    place: &Path,
    max_output: Option<u64>,
    input: &Input,
) -> Result<u64, Failure> {
    let free = free(place);
    // Mostly there is room even for all that the blocks could hold.
    let whole = parts.iter().map(|(block, range)| {
        let used_length = ram.block(*block).map_or(0, |block| block.used_length);
        used_length.min(range.end.0).saturating_sub(range.start.0)
    });
    let whole = whole.fold(0, u64::saturating_add);
    if max_output.is_none() && free.is_none_or(|free| whole <= free) {
        return Ok(whole);
    }
    let lens = parts.iter().map(|(block, range)| data_len(ram, *block, range.clone()));
    let needed = lens.fold(0, u64::saturating_add);
    if let Some(max) = max_output.filter(|max| needed > *max) {
        return Err(beyond(&format!("the memory in the stream takes up to {needed} bytes"), max));
    }
    let Some(free) = free.filter(|free| needed > *free && !may_take_less(place, input)) else {
        return Ok(needed);
    };
    // Pages of data can be zero, which take nothing.
    let at_least = parts.iter().fold(0_u64, |len, (block, range)| {
        len.saturating_add(nonzero_len(ram, *block, range.clone(), free.saturating_sub(len)))
    });
    if at_least <= free {
        return Ok(needed);
    }
    Err(Failure::Hinted {
        text: format!(
            "the memory in the stream takes {needed} bytes, and the file system of {} has {free} free",
            place.parent().unwrap_or(place).display()
        ),
        hint: "write to another file system by -o, or some blocks only by --block; --format kdump compresses",
    })
}

/// Bytes that this user can write on the file system of `place`.
pub(crate) fn free(place: &Path) -> Option<u64> {
    let system = fs::File::open(place).ok().and_then(|place| fstatvfs(place).ok())?;
    let blocks = if geteuid().is_root() { system.f_bfree } else { system.f_bavail };
    blocks.checked_mul(system.f_frsize)
}

/// Whether the file system of `place` may take less room than there are bytes:
/// because it compresses, or shares the blocks of `input` with the images.
fn may_take_less(place: &Path, input: &Input) -> bool {
    let device = |metadata: std::io::Result<fs::Metadata>| metadata.ok().map(|metadata| metadata.dev());
    let is_same = device(place.metadata()) == device(input.file().metadata());
    let kind = statfs(place).ok().and_then(|system| u64::try_from(system.f_type).ok());
    const XFS: u64 = 0x5846_5342;
    kind.is_some_and(|kind| COMPRESSING.contains(&kind) || is_same && kind == XFS)
}

/// What may still be written of a run's output.
pub(crate) struct Allowance {
    /// And what all of it may be.
    left: Option<(u64, u64)>,
}

impl Allowance {
    /// What `--max-output` allows.
    pub(crate) fn new(max: Option<u64>) -> Self {
        Self { left: max.map(|max| (max, max)) }
    }

    /// Bytes that are left; none if all are.
    pub(crate) fn left(&self) -> Option<u64> {
        self.left.map(|(left, _)| left)
    }

    /// Counts bytes of output.
    pub(crate) fn spend(&mut self, len: u64) -> Result<(), Failure> {
        let Some((left, max)) = &mut self.left else { return Ok(()) };
        *left = left.checked_sub(len).ok_or_else(|| beyond("the output takes more", *max))?;
        Ok(())
    }

    /// Why there is no more.
    pub(crate) fn exceeded(&self) -> Failure {
        beyond("the output takes more", self.left.map_or(0, |(_, max)| max))
    }
}

/// Fails if `len` bytes are more than is free. For what is known before of files
/// that are packed.
pub(crate) fn check_free(len: u64, place: &Path) -> Result<(), Failure> {
    match free(place).filter(|free| len > *free) {
        None => Ok(()),
        Some(free) => Err(Failure::Hinted {
            text: format!(
                "what is no memory takes {len} bytes of the file, and the file system of {} has {free} free",
                place.parent().unwrap_or(place).display()
            ),
            hint: "write to another file system by -o; --format avml leaves out memory that is zero",
        }),
    }
}

/// Bytes of disk that the file at `path` takes.
pub(crate) fn taken_by(path: &Path) -> u64 {
    path.metadata().map_or(0, |file| file.len().min(file.blocks().saturating_mul(512)))
}

/// Why a file was not written.
pub(crate) enum Unwritten {
    /// It would be longer than is allowed.
    TooLong,
    /// As it says.
    Failed(Error),
}

/// Does `write`, which makes one file of no more than `max` bytes, holes included.
pub(crate) fn with_file_limit<T>(
    max: Option<u64>,
    write: impl FnOnce() -> ramlift::Result<T>,
) -> Result<T, Unwritten> {
    let Some(max) = max else { return write().map_err(Unwritten::Failed) };
    let limit = getrlimit(Resource::Fsize);
    let current = limit.current.map_or(max, |current| current.min(max));
    // Else it is the system's or the user's own limit that is met.
    let is_ours = limit.current.is_none_or(|current| max < current);
    // Lower than before, and back: nobody forbids that.
    let _ = setrlimit(Resource::Fsize, Rlimit { current: Some(current), ..limit });
    let written = write();
    let _ = setrlimit(Resource::Fsize, limit);
    written.map_err(|error| {
        let source = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref());
        match source.map(std::io::Error::kind) {
            Some(std::io::ErrorKind::FileTooLarge) if is_ours => Unwritten::TooLong,
            _ => Unwritten::Failed(error),
        }
    })
}

/// What may be written of a stream that goes by, where nobody knows before how
/// much there is.
pub(crate) struct Budget {
    max: Option<u64>,
    /// What is left, if each write is of bytes that were not there.
    left: AtomicU64,
    is_spent: AtomicBool,
    files: Mutex<Vec<PathBuf>>,
}

impl Budget {
    pub(crate) fn new(max: Option<u64>) -> Self {
        Self { max, left: AtomicU64::new(0), is_spent: AtomicBool::new(false), files: Mutex::default() }
    }

    /// The files that it is for.
    pub(crate) fn watch(&self, files: impl Iterator<Item = PathBuf>) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).extend(files);
    }

    /// Bytes of disk that the files take.
    pub(crate) fn taken(&self) -> u64 {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = files.iter().filter_map(|file| file.metadata().ok());
        metadata.map(|metadata| metadata.blocks().saturating_mul(512)).fold(0, u64::saturating_add)
    }

    /// Why it came to an end, if that was why.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let max = self.max.filter(|_| self.is_spent.load(Ordering::Relaxed))?;
        Some(beyond("the memory in the stream takes more", max))
    }

    /// Takes `len` bytes of it. Pages that are written again take none: when it
    /// seems to be used up, the files tell what it is.
    fn spend(&self, len: u64) -> ramlift::Result<()> {
        let Some(max) = self.max else { return Ok(()) };
        let take = |left: u64| left.checked_sub(len);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Ok(());
        }
        let met = self.taken().saturating_add(len);
        self.left.store(max.saturating_sub(met), Ordering::Relaxed);
        if met <= max {
            return Ok(());
        }
        self.is_spent.store(true, Ordering::Relaxed);
        Err(Error::new(ErrorKind::Limit { what: "bytes of output", met, bound: max }))
    }
}

/// Images that take no more than their budget.
pub(crate) struct Bounded<'s> {
    pub(crate) images: &'s BlockFiles,
    pub(crate) budget: &'s Budget,
}

impl ImageSink for Bounded<'_> {
    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> ramlift::Result<()> {
        self.budget.spend(data.len() as u64)?;
        self.images.write(block, offset, data)
    }

    fn share(
        &self,
        block: BlockId,
        offset: BlockOffset,
        place: StreamOffset,
        len: u64,
    ) -> ramlift::Result<bool> {
        self.images.share(block, offset, place, len)
    }

    fn piece_len(&self) -> u64 {
        self.images.piece_len()
    }

    fn claim(&self, block: BlockId, offset: BlockOffset, len: u64) -> ramlift::Result<()> {
        // What is claimed would be measured as taken before it is written.
        if self.budget.max.is_some() { Ok(()) } else { self.images.claim(block, offset, len) }
    }
}

impl ImageStore for Bounded<'_> {
    fn read(&self, block: BlockId, offset: BlockOffset, data: &mut [u8]) -> ramlift::Result<()> {
        self.images.read(block, offset, data)
    }
}
