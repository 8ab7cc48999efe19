//! RAM images as sparse files, the usual place for a scatter to write to.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::{FallocateFlags, OFlags, copy_file_range, fallocate, fstatfs};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::extract::{ImageSink, ImageStore, PIECE_ALIGN, WINDOW_LEN};
use crate::input::Input;
use crate::pace::{Pace, Way};
use crate::ram::Ram;
use crate::units::{BlockId, BlockOffset, StreamOffset, index};

/// A sink of sparse files, one for each block.
///
/// Each is created new, readable by its owner alone (guest RAM holds secrets)
/// and as long as its block from the start; what is never written stays a
/// hole. Only a few files are open at a time, however many blocks there are.
///
/// Bytes go through the page cache as long as that is fast, else past it:
/// see the module `pace`. Pages that stand in a row in the stream's file, as
/// mapped-ram has them, are shared with it where the file system can: no byte
/// is moved.
#[derive(Debug)]
pub struct BlockFiles {
    paths: Vec<Option<PathBuf>>,
    open: Mutex<VecDeque<(BlockId, Arc<Handles>)>>,
    pace: Pace,
    shared: Option<Shared>,
}

/// The stream's file, to share its blocks with images.
#[derive(Debug)]
struct Shared {
    file: File,
    /// Where in it the stream begins.
    start: u64,
    /// [`SHARES`], or how often that was tried in vain.
    state: AtomicU8,
}

/// What takes this many bytes a second, or more, moves none: it is twice what
/// memory takes.
const SHARING_RATE: f64 = 8e9;

/// How often that is tried before it counts as impossible.
const TRIES: u8 = 4;

/// The file system shares blocks. Any other state is the count of tries.
const SHARES: u8 = u8::MAX;

/// An image file, opened for the ways into it.
#[derive(Debug)]
struct Handles {
    cached: File,
    /// `None` where the file system has no such way.
    direct: Option<File>,
    /// Whether to claim blocks before they are written pays.
    gains_by_claims: bool,
}

/// `f_type` of ext2, ext3 and ext4 (`EXT4_SUPER_MAGIC` of Linux).
const EXT4: u64 = 0xef53;

impl Handles {
    fn open(path: &Path) -> std::io::Result<Self> {
        let cached = OpenOptions::new().read(true).write(true).open(path)?;
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let direct = OpenOptions::new().write(true).custom_flags(flags).open(path).ok();
        let gains_by_claims = fstatfs(&cached).is_ok_and(|status| u64::try_from(status.f_type) == Ok(EXT4));
        Ok(Self { cached, direct, gains_by_claims })
    }
}

/// How many image files are kept open.
const OPEN_FILES: usize = 64;

impl BlockFiles {
    /// Creates the file at `path` for each block given.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file exists already, or
    /// cannot be made, or not as long as its block; [`ErrorKind::Limit`] if no file
    /// can be as long.
    pub fn create(ram: &Ram<'_>, files: impl IntoIterator<Item = (BlockId, PathBuf)>) -> Result<Self> {
        let mut paths: Vec<Option<PathBuf>> = ram.blocks().map(|_| None).collect();
        for (id, path) in files {
            let (Some(block), Some(slot)) = (ram.block(id), paths.get_mut(id.0)) else { continue };
            create_of_len(&path, block.used_length).map_err(|kind| {
                let what = format!("RAM block \"{}\" of {:#x} bytes", block.idstr, block.used_length);
                Error::at(block.offset, kind).inside(what)
            })?;
            *slot = Some(path);
        }
        Ok(Self { paths, open: Mutex::default(), pace: Pace::new(), shared: None })
    }

    /// One file of `len` bytes at `path`: that of the block 0, as a place to
    /// put others in pieces.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub(crate) fn create_one(path: &Path, len: u64) -> Result<Self> {
        create_of_len(path, len).map_err(Error::new)?;
        Ok(Self {
            paths: vec![Some(path.to_owned())],
            open: Mutex::default(),
            pace: Pace::new(),
            shared: None,
        })
    }

    /// The same, with the file that the stream is in: its blocks may be shared.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be held open.
    pub fn sharing(mut self, input: &Input) -> Result<Self> {
        let file = input.file().try_clone().map_err(|source| Error::io(input.path(), source))?;
        let state = AtomicU8::new(0);
        self.shared = Some(Shared { file, start: input.range().start, state });
        Ok(self)
    }

    fn is_sharing(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.state.load(Ordering::Relaxed) == SHARES)
    }

    fn path(&self, id: BlockId) -> PathBuf {
        self.paths.get(id.0).cloned().flatten().unwrap_or_default()
    }

    /// The open file of a block. The one used longest ago is closed for it.
    fn file(&self, id: BlockId) -> Result<Option<Arc<Handles>>> {
        let Some(path) = self.paths.get(id.0).and_then(Option::as_ref) else { return Ok(None) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(known, _)| *known == id) {
            return Ok(open.get(at).map(|(_, file)| Arc::clone(file)));
        }
        let file = Arc::new(Handles::open(path).map_err(|source| Error::io(path, source))?);
        open.truncate(OPEN_FILES - 1);
        open.push_front((id, Arc::clone(&file)));
        Ok(Some(file))
    }
}

impl Shared {
    /// Has the kernel copy a range to `file`, which is to share the blocks.
    /// False if it did not do all of it: what it did will be written again.
    fn copy_to(&self, file: &File, place: StreamOffset, offset: BlockOffset, len: u64) -> bool {
        let Some(mut from) = self.start.checked_add(place.0) else { return false };
        let mut to = offset.0;
        let end = to.saturating_add(len);
        while to < end {
            let left = index(end - to).unwrap_or(usize::MAX);
            match copy_file_range(&self.file, Some(&mut from), file, Some(&mut to), left) {
                Ok(done) if done > 0 => {}
                _ => return false,
            }
        }
        true
    }
}

/// Creates a file of holes.
fn create_of_len(path: &Path, len: u64) -> std::result::Result<(), ErrorKind> {
    /// The system counts bytes of files by signed numbers.
    const LONGEST: u64 = i64::MAX.unsigned_abs();
    if len > LONGEST {
        return Err(ErrorKind::Limit { what: "bytes of a file", met: len, bound: LONGEST });
    }
    let created = create_new(path).and_then(|file| file.set_len(len));
    created.map_err(|source| ErrorKind::Io { path: path.to_owned(), source })
}

/// Creates a file that did not exist, for its owner alone.
///
/// # Errors
/// What the system says, [`AlreadyExists`](std::io::ErrorKind::AlreadyExists)
/// for a symlink too.
pub fn create_new(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Pieces shorter than this always go through the cache: a device takes many
/// short writes badly.
const DIRECT_LEN: usize = 128 << 10;

fn is_aligned(offset: BlockOffset, data: &[u8]) -> bool {
    let align = PIECE_ALIGN as u64;
    offset.0.is_multiple_of(align)
        && data.len().is_multiple_of(PIECE_ALIGN)
        && data.as_ptr().addr().is_multiple_of(PIECE_ALIGN)
}

impl ImageSink for BlockFiles {
    fn piece_len(&self) -> u64 {
        if self.is_sharing() { WINDOW_LEN } else { self.pace.way().piece_len() }
    }

    fn write(&self, block: BlockId, offset: BlockOffset, data: &[u8]) -> Result<()> {
        let Some(file) = self.file(block)? else { return Ok(()) };
        let len = data.len() as u64;
        let way = self.pace.way();
        if way == Way::Direct && data.len() >= DIRECT_LEN && is_aligned(offset, data) {
            let write = |file: &File| self.pace.timed(Way::Direct, len, || file.write_all_at(data, offset.0));
            if file.direct.as_ref().map(write).is_some_and(|written| written.is_ok()) {
                return Ok(());
            }
            // Whatever is wrong, the way through the cache says it better.
            self.pace.rule_out_direct();
        }
        // What is longer was gathered before short pieces were asked for.
        let is_short = way == Way::Short && len <= Way::Short.piece_len();
        let way = if is_short { Way::Short } else { Way::Cached };
        let written = self.pace.timed(way, len, || file.cached.write_all_at(data, offset.0));
        written.map_err(|source| Error::io(self.path(block), source))
    }

    /// Shares the blocks of the stream's file. The first tries are timed: where
    /// the kernel copies, they take as long as a copy does.
    fn share(&self, block: BlockId, offset: BlockOffset, place: StreamOffset, len: u64) -> Result<bool> {
        let Some(shared) = &self.shared else { return Ok(false) };
        let tries = shared.state.load(Ordering::Relaxed);
        if (TRIES..SHARES).contains(&tries) {
            return Ok(false);
        }
        let Some(file) = self.file(block)? else { return Ok(false) };
        let began = Instant::now();
        let is_done = shared.copy_to(&file.cached, place, offset, len);
        let is_fast = len as f64 / began.elapsed().as_secs_f64().max(1e-9) >= SHARING_RATE;
        match is_done {
            false => shared.state.store(TRIES, Ordering::Relaxed),
            true if tries == SHARES => {}
            true => shared.state.store(if is_fast { SHARES } else { tries + 1 }, Ordering::Relaxed),
        }
        Ok(is_done)
    }

    /// Claims blocks of the file system, where it is ext4: there a write into
    /// its own blocks is a third cheaper than one that reserves each. Others
    /// reserve a write's blocks at once, and a claim costs them more: 128 KiB
    /// take XFS 2.7 times as long with it, btrfs and tmpfs 1.1 times.
    fn claim(&self, block: BlockId, offset: BlockOffset, len: u64) -> Result<()> {
        if self.is_sharing() {
            return Ok(());
        }
        let Some(file) = self.file(block)?.filter(|file| file.gains_by_claims) else { return Ok(()) };
        match fallocate(&file.cached, FallocateFlags::empty(), offset.0, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(source) => Err(Error::io(self.path(block), source.into())),
        }
    }
}

impl ImageStore for BlockFiles {
    fn read(&self, block: BlockId, offset: BlockOffset, data: &mut [u8]) -> Result<()> {
        let file = self.file(block)?;
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let read = file.as_ref().map_or(Ok(0), |file| file.cached.read_at(rest, offset.0 + done as u64));
            match read {
                // Behind the end of the image, or of none.
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(len) => done += len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::io(self.path(block), source)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    mod faults;

    use super::*;
    use crate::extract::scatter;
    use crate::progress::Progress;
    use crate::stream::Stream;

    /// A stream of `pages` pages of data of 4 KiB, each of other bytes.
    fn stream(pages: u64) -> Vec<u8> {
        let be64 = |word: u64| word.to_be_bytes();
        let header = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04";
        let mut bytes = header.to_vec();
        bytes.extend(be64(pages << 12 | 4));
        bytes.extend(b"\x03ram");
        bytes.extend(be64(pages << 12));
        for page in 0..pages {
            bytes.extend(be64(page << 12 | 8));
            bytes.extend(b"\x03ram");
            bytes.extend(content(page));
        }
        bytes.extend(be64(16));
        bytes.push(0);
        bytes
    }

    fn content(page: u64) -> impl Iterator<Item = u8> {
        (page..).step_by(7).flat_map(u64::to_le_bytes).map(|byte| byte | 1).take(4096)
    }

    #[test]
    fn what_goes_past_the_cache_arrives_as_well() {
        let pages = WINDOW_LEN * 3 / 4096 + 5;
        let bytes = stream(pages);
        let stream = Stream::parse(&bytes).unwrap();
        let ram = stream.ram().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let files = BlockFiles::create(ram, [(BlockId(0), path.clone())]).unwrap();
        files.pace.fix(Way::Direct);
        scatter(ram, &[BlockId(0)], &files, &Progress::new()).unwrap();
        let image = std::fs::read(&path).unwrap();
        assert!(image == (0..pages).flat_map(content).collect::<Vec<u8>>());
    }
}
