//! The files that are read: opened so that nothing of them changes, and looked
//! at again at the end, whether somebody else changed them.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ramlift::{Change, FileState};
use rustix::fs::fstatvfs;

use crate::exit::Failure;

/// A file that was written to no longer ago may still be.
const RECENT: Duration = Duration::from_secs(60);

const COPY_FIRST: &str = "copy it to where nobody writes to it, and give the copy";

/// A file that is open.
struct Opened {
    path: PathBuf,
    file: File,
    kind: Kind,
}

/// What is known of a file that is open.
enum Kind {
    /// What it was when it was opened.
    Regular(FileState),
    /// Its length and times say nothing.
    Device,
    /// A file of ours, which nobody else can change.
    Temporary,
    /// All that was wanted of it is read.
    Done,
}

static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

/// Bytes that came by a pipe.
static PASSED: AtomicU64 = AtomicU64::new(0);

fn opened() -> MutexGuard<'static, Vec<Opened>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a file to be read, and remembers what it is.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = ramlift::open_to_read(path)?;
    remember(path, &file)?;
    Ok(file)
}

/// Remembers what a file is that is open already.
pub(crate) fn remember(path: &Path, file: &File) -> io::Result<()> {
    let file_type = file.metadata()?.file_type();
    let kind = match file_type.is_file() {
        true => Kind::Regular(FileState::of(file)?),
        false if file_type.is_block_device() => Kind::Device,
        // What goes by is read, and not mapped.
        false => return Ok(()),
    };
    add(path, file, kind)
}

/// Counts what is read of an input that comes by a pipe.
pub(crate) struct Passing(pub(crate) File);

impl Read for Passing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(into)?;
        PASSED.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

/// Bytes of all inputs, as far as they have come. What a sparse file has not got
/// does not count: anybody can make one of any length.
pub(crate) fn len() -> u64 {
    const SPARSE_LEN: u64 = 1 << 20;
    let mut files = HashMap::new();
    for opened in opened().iter().filter(|opened| !matches!(opened.kind, Kind::Temporary)) {
        let Ok(metadata) = opened.file.metadata() else { continue };
        let len = match metadata.is_file() {
            // Short ones may take no blocks at all.
            true => metadata.len().min(metadata.blocks().saturating_mul(512).max(SPARSE_LEN)),
            false => device_len(&opened.path).unwrap_or(0),
        };
        files.insert((metadata.dev(), metadata.ino()), len);
    }
    files.values().fold(PASSED.load(Ordering::Relaxed), |sum, len| sum.saturating_add(*len))
}

/// Bytes of a block device.
fn device_len(path: &Path) -> io::Result<u64> {
    // Opened anew: to seek would move what others read from.
    ramlift::open_to_read(path)?.seek(SeekFrom::End(0))
}

/// Remembers a temporary file in `dir`.
pub(crate) fn remember_temporary(dir: &Path, file: &File) -> io::Result<()> {
    add(dir, file, Kind::Temporary)
}

fn add(path: &Path, file: &File, kind: Kind) -> io::Result<()> {
    opened().push(Opened { path: path.to_owned(), file: file.try_clone()?, kind });
    Ok(())
}

/// Fails if what was opened as `path` is not the file that was `found` there at
/// first: each time it is opened, another can have been moved to its place.
pub(crate) fn check_found(path: &Path, found: &Metadata) -> Result<(), Failure> {
    let told = |file: &Metadata| {
        let content = file.is_file().then(|| (file.len(), file.mtime(), file.mtime_nsec()));
        (file.dev(), file.ino(), content)
    };
    let is_found = |opened: &Opened| opened.file.metadata().is_ok_and(|now| told(&now) == told(found));
    check()?;
    if opened().iter().all(|opened| opened.path != path || !opened.is_input() || is_found(opened)) {
        return Ok(());
    }
    Err(replaced(path))
}

fn replaced(path: &Path) -> Failure {
    let text = format!("{}: was replaced or written to while it was read", path.display());
    Failure::Hinted { text, hint: COPY_FIRST }
}

/// Fails if a file is not what it was when it was opened, or if two were opened by
/// one name.
pub(crate) fn check() -> Result<(), Failure> {
    let opened = opened();
    opened.iter().try_for_each(|opened| opened.check())?;
    let mut numbers = HashMap::new();
    for file in opened.iter().filter(|opened| opened.is_input()) {
        let metadata = file.file.metadata().map_err(Failure::file(&file.path))?;
        let number = (metadata.dev(), metadata.ino());
        if *numbers.entry(&file.path).or_insert(number) != number {
            return Err(replaced(&file.path));
        }
    }
    Ok(())
}

/// The same, when all is read: what happens to the files from now on is
/// nobody's concern.
pub(crate) fn close() -> Result<(), Failure> {
    check()?;
    opened().iter_mut().for_each(|opened| opened.kind = Kind::Done);
    Ok(())
}

/// Whether `file` is one of them, by whatever name: then nothing replaces it.
pub(crate) fn is_one(file: &Metadata) -> bool {
    let is_same = |input: Metadata| (input.dev(), input.ino()) == (file.dev(), file.ino());
    opened().iter().any(|opened| opened.file.metadata().is_ok_and(is_same))
}

/// Why a mapped page cannot be read.
pub(crate) fn why_lost() -> Failure {
    let opened = opened();
    if let Some(Err(failure)) = opened.iter().map(Opened::check).find(Result::is_err) {
        return failure;
    }
    let is_full = |opened: &&Opened| fstatvfs(&opened.file).is_ok_and(|system| system.f_bavail == 0);
    if let Some(full) = opened.iter().filter(|opened| matches!(opened.kind, Kind::Temporary)).find(is_full) {
        let text = format!(
            "{}: the file system is full, so a temporary file in it cannot be read",
            full.path.display()
        );
        return Failure::Hinted { text, hint: "set TMPDIR to a directory with more room" };
    }
    let paths: Vec<String> = opened.iter().map(|opened| opened.path.display().to_string()).collect();
    let text = format!(
        "{}: cannot be read: the device, or the server it is on, failed; the kernel's log tells more",
        paths.join(" or ")
    );
    Failure::Hinted { text, hint: COPY_FIRST }
}

/// How long ago an input was written to that may be in the making.
pub(crate) fn recent() -> Option<Duration> {
    let opened = opened();
    let states = opened.iter().filter_map(Opened::state);
    let ages = states.filter_map(|state| SystemTime::now().duration_since(state.modified()).ok());
    ages.min().filter(|age| *age <= RECENT)
}

impl Opened {
    /// Whether it is read, and somebody else's.
    fn is_input(&self) -> bool {
        matches!(self.kind, Kind::Regular(_) | Kind::Device)
    }

    fn state(&self) -> Option<FileState> {
        match self.kind {
            Kind::Regular(state) => Some(state),
            Kind::Device | Kind::Temporary | Kind::Done => None,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let Some(was) = self.state() else { return Ok(()) };
        let now = FileState::of(&self.file).map_err(Failure::file(&self.path))?;
        let (path, old, new) = (self.path.display(), was.len(), now.len());
        let text = match was.change_to(&now) {
            None => return Ok(()),
            Some(Change::Shrunk) => {
                format!("{path}: was shortened while it was read: {old} bytes when it was opened, {new} now")
            }
            Some(Change::Grown) => format!(
                "{path}: the file was still growing while it was read: {old} bytes when it was opened, {new} now"
            ),
            Some(Change::Written) => format!("{path}: was written to while it was read"),
        };
        let hint = match was.change_to(&now) {
            Some(Change::Grown) => "is the migration still running? wait until it is complete",
            _ => COPY_FIRST,
        };
        Err(Failure::Hinted { text, hint })
    }
}
