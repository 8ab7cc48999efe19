//! The directory that output is written into before it is in its place, and
//! what is left of such directories where nobody could remove them.
//!
//! Its name says what it is, to people and to later runs. Who writes into it
//! holds a lock on it (`flock`), which ends with the process however that ends:
//! so a later run can tell a directory that is in use from one of a run that was
//! killed, and removes the latter.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::umask;
use tempfile::TempDir;

use crate::exit::Failure;
use crate::terminal;

/// What the names of such directories begin with.
pub(crate) const PREFIX: &str = ".ramlift-incomplete-";

/// How many characters follow.
const SUFFIX_LEN: usize = 6;

/// The mode of all directories: guest RAM holds secrets.
pub(crate) const DIRECTORY_MODE: u32 = 0o700;

/// The staging directory that a signal has to remove.
static STAGED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Lets the umask take nothing from the owner: a directory that its owner cannot
/// go into can neither be filled nor removed.
pub(crate) fn let_owner_in() {
    let owner = Mode::RWXU;
    umask(umask(owner).difference(owner));
}

/// What a signal has to remove. While this is held, none removes anything.
pub(crate) fn staged() -> MutexGuard<'static, Option<PathBuf>> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is half written, for a process that is about to end. As long as
/// what it gives is held, nothing is staged and nothing moved to its place.
pub(crate) fn abandon() -> impl Sized {
    let staged = staged();
    if let Some(path) = &*staged {
        // What other threads still make in the directory needs another try.
        let _ = (0..100).find(|_| fs::remove_dir_all(path).is_ok() || !path.exists());
    }
    staged
}

/// A directory to write into. It is its owner's alone, as the files are, and
/// removed with this.
pub(crate) struct StagingDir {
    temporary: TempDir,
    /// The directory itself, locked.
    held: Option<File>,
    /// A path into it.
    path: PathBuf,
}

impl StagingDir {
    /// Makes one in `place`. From its first moment on a signal removes it.
    pub(crate) fn make(place: &Path) -> Result<Self, Failure> {
        const TRIES: usize = 16;
        let mut staged = staged();
        let mut tries = (0..TRIES).filter_map(|_| Self::try_to_make(place).transpose());
        let made = tries.next().unwrap_or_else(|| Err(io::ErrorKind::ResourceBusy.into()));
        let made = made.map_err(Failure::file(place))?;
        *staged = Some(made.name().to_owned());
        Ok(made)
    }

    /// `None` if another run took it for a leftover before it was locked.
    fn try_to_make(place: &Path) -> io::Result<Option<Self>> {
        let temporary = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(SUFFIX_LEN)
            .permissions(Permissions::from_mode(DIRECTORY_MODE))
            .tempdir_in(place)
            .map_err(without_path)?;
        Ok(match lock(temporary.path()) {
            Ok(Lock::Held(file)) => {
                let path = path_into(&file).unwrap_or_else(|| temporary.path().to_owned());
                Some(Self { temporary, held: Some(file), path })
            }
            Ok(Lock::Taken) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // There are no locks here: nobody else gets one either.
            Err(_) => {
                let path = temporary.path().to_owned();
                Some(Self { temporary, held: None, path })
            }
        })
    }

    /// Where to write into it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it was made, and is if nobody has moved it.
    pub(crate) fn name(&self) -> &Path {
        self.temporary.path()
    }

    /// Whether it is what stands at `path`, as far as that can be told.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let Some(Ok(held)) = self.held.as_ref().map(File::metadata) else { return true };
        path.symlink_metadata().is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()))
    }

    /// Removes it, and says so if that fails: what is in its place is whole.
    pub(crate) fn remove(self) {
        let path = self.name().to_owned();
        if let Err(error) = self.temporary.close() {
            say(&path, &format!("could not be removed: {error}"));
        }
    }

    /// Leaves it where it is, for good.
    pub(crate) fn keep(self) -> PathBuf {
        self.temporary.keep()
    }
}

/// What the system said, without the name of a directory that nobody asked for.
fn without_path(error: io::Error) -> io::Error {
    let text = error.to_string();
    io::Error::new(error.kind(), text.split(" at path ").next().unwrap_or_default())
}

/// A path that leads into a directory whatever becomes of its name: who may
/// rename files around it could have a symlink stand there.
fn path_into(directory: &File) -> Option<PathBuf> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let (there, held) = (path.metadata().ok()?, directory.metadata().ok()?);
    ((there.dev(), there.ino()) == (held.dev(), held.ino())).then_some(path)
}

enum Lock {
    Held(File),
    Taken,
}

/// Locks the directory at `path`, through no symlink. An error if there are no
/// locks, or if it is not there (any more).
fn lock(path: &Path) -> io::Result<Lock> {
    let flags = i32::try_from((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Lock::Taken),
        Err(error) => return Err(error.into()),
    }
    // Whoever held it may have moved or removed the directory since.
    let (held, there) = (file.metadata()?, path.symlink_metadata()?);
    match (held.dev(), held.ino()) == (there.dev(), there.ino()) {
        true => Ok(Lock::Held(file)),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// How long a run waits for others that move files to the same place, and how
/// long between two looks.
const TURN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// Waits until no other run moves files into `directory`: else each would
/// replace a part of what the other has written, and both be content. Where
/// there are no locks, nobody waits.
pub(crate) fn take_turn(directory: &Path) -> Result<Option<File>, Failure> {
    let Ok(file) = File::open(directory) else { return Ok(None) };
    let began = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < TURN => thread::sleep(LOOK),
            Err(rustix::io::Errno::WOULDBLOCK) => break,
            Err(_) => return Ok(None),
        }
    }
    let text = format!("{}: another process holds a lock (flock) on it", directory.display());
    Err(Failure::Hinted { text, hint: "wait for it to end, or write to another directory by -o" })
}

/// Removes the staging directories in `place` of runs that were killed, and says
/// so. Before one goes, `rescue` can look at it.
pub(crate) fn remove_leftovers(place: &Path, mut rescue: impl FnMut(&Path)) {
    // Whatever is wrong here, it is not in the way.
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten().filter(|entry| is_staging_name(&entry.file_name())) {
        let path = entry.path();
        if !is_ours(&path) {
            continue;
        }
        match lock(&path) {
            Ok(Lock::Held(lock)) => {
                rescue(&path);
                match fs::remove_dir_all(&path) {
                    Ok(()) => say(&path, "removed: a run that was ended had left it"),
                    Err(error) => say(&path, &format!("left by a run that was ended: {error}")),
                }
                drop(lock);
            }
            Ok(Lock::Taken) => {}
            Err(_) => say(&path, "left by a run that was ended, or one goes on: remove it if none does"),
        }
    }
}

fn say(path: &Path, what: &str) {
    terminal::say(format_args!("note: {}: {what}", path.display()));
}

fn is_staging_name(name: &OsStr) -> bool {
    let suffix = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    suffix.is_some_and(|suffix| {
        suffix.len() == SUFFIX_LEN && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Whether it is a directory of this user with the mode that ours have.
fn is_ours(path: &Path) -> bool {
    let Ok(metadata) = path.symlink_metadata() else { return false };
    metadata.is_dir()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & 0o7777 == DIRECTORY_MODE
}
