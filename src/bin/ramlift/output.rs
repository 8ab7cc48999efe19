//! Output that appears complete or not at all.
//!
//! Everything is written into a *staging* directory first, which nobody will
//! take for a result, and moved to its place when it is complete. If something
//! fails before that, the staging directory is removed and nothing else has
//! changed.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ramlift::create_new;
use tempfile::TempDir;

use crate::exit::Failure;
use crate::manifest::SIDECAR;

/// The staging directory that a signal has to remove.
static STAGED: Mutex<Option<PathBuf>> = Mutex::new(None);

fn staged() -> MutexGuard<'static, Option<PathBuf>> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a signal (hang-up, interrupt, terminate) remove what is half written.
/// One that comes while files are moved to their places waits until they are.
pub(crate) fn clean_up_on_signals() {
    // If the handler cannot be set, a signal leaves a directory behind whose
    // name tells what it is.
    let _ = ctrlc::set_handler(|| {
        // Held until the end of the process: nothing is staged any more. What
        // other threads still make in the directory needs another try.
        let staged = staged();
        if let Some(path) = &*staged {
            let _ = (0..100).find(|_| fs::remove_dir_all(path).is_ok() || !path.exists());
        }
        std::process::exit(crate::exit::INTERRUPTED);
    });
}

/// A directory being written.
pub(crate) struct Staging {
    target: PathBuf,
    is_new: bool,
    may_replace: bool,
    /// The stream that is read: never to be replaced.
    input: PathBuf,
    temporary: TempDir,
    files: Vec<PathBuf>,
    /// Files of an earlier output, to be removed if they are not replaced.
    stale: Vec<PathBuf>,
}

impl Staging {
    /// Prepares to write what comes out of `input` into `target`.
    ///
    /// A directory that does not exist appears whole at the end. In one that
    /// does, files appear at the end, each whole; if there is anything in it,
    /// only with `may_replace`.
    pub(crate) fn new(target: &Path, may_replace: bool, input: &Path) -> Result<Self, Failure> {
        // Without the `.` components, which have no parent.
        let target: PathBuf = target.components().collect();
        let is_new = match fs::read_dir(&target) {
            Ok(mut entries) => {
                if !may_replace && entries.next().is_some() {
                    let text = format!(
                        "{}: the output directory exists and is not empty; --force replaces files in it, -o DIR gives another",
                        target.display()
                    );
                    return Err(Failure::Other(text));
                }
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(Failure::file(&target)(error)),
        };
        // On the same file system as its target, so that the moves at the end
        // are renames: in it, or in the nearest directory above that is there.
        let place = if is_new {
            target.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new("."))
        } else {
            &target
        };
        let temporary = stage_in(place)?;
        let (files, stale) = (Vec::new(), Vec::new());
        Ok(Self { target, is_new, may_replace, input: input.to_owned(), temporary, files, stale })
    }

    /// Where to write the file that will be `relative` in the target. Makes
    /// the directories for it.
    pub(crate) fn file(&mut self, relative: &str) -> Result<PathBuf, Failure> {
        let relative = Path::new(relative);
        // What leaves the directory never gets here; if it did, it would end
        // here.
        if !relative.components().all(|component| matches!(component, Component::Normal(_))) {
            return Err(Failure::Other(format!(
                "{}: is no path inside the output directory",
                relative.display()
            )));
        }
        if !self.is_new && !self.may_replace && self.target.join(relative).symlink_metadata().is_ok() {
            return Err(Failure::Other(format!("{}: exists already", self.target.join(relative).display())));
        }
        let path = self.temporary.path().join(relative);
        let directory = parent(&path);
        fs::create_dir_all(&directory).map_err(Failure::file(&directory))?;
        self.files.push(relative.to_owned());
        Ok(path)
    }

    /// Does not expect a file that was given out: it has been removed.
    pub(crate) fn forget(&mut self, relative: &str) {
        self.files.retain(|file| file != Path::new(relative));
    }

    /// The files that were given out: what each will be in the target, and where
    /// it is.
    pub(crate) fn files(&self) -> Vec<(String, PathBuf)> {
        let place = |file: &PathBuf| (file.to_string_lossy().into_owned(), self.temporary.path().join(file));
        self.files.iter().map(place).collect()
    }

    /// Writes a whole file.
    pub(crate) fn write(
        &mut self,
        relative: &str,
        content: impl FnOnce(&mut BufWriter<fs::File>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let path = self.file(relative)?;
        let write = || {
            let mut file = BufWriter::new(create_new(&path)?);
            content(&mut file)?;
            file.flush()
        };
        write().map_err(Failure::file(&self.target.join(relative)))
    }

    /// The path that a file given out has in the end, for messages: `text`
    /// with the staging directory's name replaced.
    pub(crate) fn shown(&self, text: &str) -> String {
        text.replace(&*self.temporary.path().to_string_lossy(), &self.target.to_string_lossy())
    }

    /// The content of a file that the target has of an earlier output.
    pub(crate) fn read_earlier(&self, relative: &str) -> Option<Vec<u8>> {
        if self.is_new { None } else { fs::read(self.target.join(relative)).ok() }
    }

    /// Names a file of an earlier output: it goes unless this one has it too.
    pub(crate) fn replaces(&mut self, relative: &str) {
        let relative = Path::new(relative);
        if relative.components().all(|component| matches!(component, Component::Normal(_))) {
            self.stale.push(relative.to_owned());
        }
    }

    /// Moves everything to its place.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        let mut staged = staged();
        self.move_all()?;
        *staged = None;
        Ok(())
    }

    fn move_all(self) -> Result<(), Failure> {
        if self.is_new {
            return self.commit_directory();
        }
        // Whatever can be in the way is met before anything is replaced.
        for relative in &self.files {
            let target = self.target.join(relative);
            make_directories(&self.target, relative).map_err(Failure::file(&target))?;
            let in_the_way = match target.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => "a directory",
                Ok(metadata) if self.is_input(&metadata) => "the stream that is being read",
                _ => continue,
            };
            return Err(Failure::Other(format!("{}: in the way is {in_the_way}", target.display())));
        }
        for relative in &self.files {
            let target = self.target.join(relative);
            fs::rename(self.temporary.path().join(relative), &target).map_err(Failure::file(&target))?;
        }
        for relative in self.stale.iter().filter(|relative| !self.files.contains(relative)) {
            self.remove(relative)?;
        }
        Ok(())
    }

    /// Removes a file of an earlier output, through no symlink, and the
    /// directories that it leaves empty.
    fn remove(&self, relative: &Path) -> Result<(), Failure> {
        let target = self.target.join(relative);
        let is_real = make_directories(&self.target, relative).is_ok();
        match target.symlink_metadata() {
            Ok(metadata) if is_real && metadata.is_file() && !self.is_input(&metadata) => {
                fs::remove_file(&target).map_err(Failure::file(&target))?;
            }
            _ => {}
        }
        for directory in relative.ancestors().skip(1).filter(|above| *above != Path::new("")) {
            // Fails on one that is not empty, as it should.
            let _ = fs::remove_dir(self.target.join(directory));
        }
        Ok(())
    }

    /// Whether a file is the input, by whatever name.
    fn is_input(&self, file: &fs::Metadata) -> bool {
        is_same_file(&self.input, file)
    }

    fn commit_directory(self) -> Result<(), Failure> {
        let above = parent(&self.target);
        fs::create_dir_all(&above).map_err(Failure::file(&above))?;
        let from = self.temporary.path();
        // Where the file system cannot promise that nothing is replaced, a
        // rename fails on all but an empty directory.
        move_new(from, &self.target, || fs::rename(from, &self.target))
            .map_err(Failure::file(&self.target))?;
        // Moved: there is nothing left to remove.
        let _ = self.temporary.keep();
        Ok(())
    }
}

/// A file being written, and its manifest.
pub(crate) struct StagedFile {
    target: PathBuf,
    manifest: PathBuf,
    may_replace: bool,
    temporary: TempDir,
}

impl StagedFile {
    /// Prepares to write what comes out of `input` into the file `target`,
    /// which appears whole at the end. One that exists is replaced only with
    /// `may_replace`, and never if it is `input`.
    pub(crate) fn new(target: &Path, may_replace: bool, input: &Path) -> Result<Self, Failure> {
        let Some(name) = target.file_name() else {
            return Err(Failure::Other(format!("{}: has no file name", target.display())));
        };
        let mut name = name.to_owned();
        name.push(SIDECAR);
        let manifest = target.with_file_name(name);
        refuse_in_the_way(target, may_replace, input)?;
        refuse_in_the_way(&manifest, may_replace, input)?;
        let temporary = stage_in(&parent(target))?;
        Ok(Self { target: target.to_owned(), manifest, may_replace, temporary })
    }

    /// Writes the manifest.
    pub(crate) fn write_manifest(&self, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.temporary.path().join(self.manifest.file_name().unwrap_or_default());
        let write = || create_new(&path)?.write_all(bytes);
        write().map_err(Failure::file(&self.manifest))
    }

    /// Where the manifest will be.
    pub(crate) fn manifest(&self) -> &Path {
        &self.manifest
    }

    /// Where to write it.
    pub(crate) fn path(&self) -> PathBuf {
        self.temporary.path().join(self.target.file_name().unwrap_or_default())
    }

    /// As [`Staging::shown`].
    pub(crate) fn shown(&self, text: &str) -> String {
        text.replace(&*self.temporary.path().to_string_lossy(), &parent(&self.target).to_string_lossy())
    }

    /// Moves both to their places: the manifest last, so that what has one is
    /// whole.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        let mut staged = staged();
        let moved = self.move_to(&self.target).and_then(|()| {
            self.move_to(&self.manifest).inspect_err(|_| {
                if !self.may_replace {
                    let _ = fs::remove_file(&self.target);
                }
            })
        });
        // What is left is removed here, whatever came of it.
        *staged = None;
        drop(staged);
        moved
    }

    fn move_to(&self, target: &Path) -> Result<(), Failure> {
        let path = self.temporary.path().join(target.file_name().unwrap_or_default());
        let moved = match self.may_replace {
            true => fs::rename(&path, target),
            // A link fails where something is, too.
            false => move_new(&path, target, || fs::hard_link(&path, target)),
        };
        moved.map_err(Failure::file(target))
    }
}

/// Fails if something is where a file is to be, but for one that may be replaced.
fn refuse_in_the_way(target: &Path, may_replace: bool, input: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::Other(format!("{}: {why}", target.display())));
    match target.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {
            refuse("is a directory; this format is one file: give its name by -o FILE")
        }
        Ok(_) if !may_replace => refuse("exists already; --force replaces it, -o FILE gives another"),
        Ok(metadata) if is_same_file(input, &metadata) => refuse("is the stream that is being read"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::file(target)(error)),
    }
}

/// A directory in `place` to write into. From its first moment on a signal
/// removes it. It is its owner's alone, as the files are.
fn stage_in(place: &Path) -> Result<TempDir, Failure> {
    let mut staged = staged();
    let temporary = tempfile::Builder::new()
        .prefix(".ramlift-incomplete-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(place)
        .map_err(Failure::file(place))?;
    *staged = Some(temporary.path().to_owned());
    Ok(temporary)
}

/// Moves a file or directory to where nothing is: what appeared there meanwhile
/// is not replaced. `other` does it where the file system cannot promise that.
fn move_new(from: &Path, to: &Path, other: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => other(),
        moved => moved.map_err(io::Error::from),
    }
}

/// Whether a file is `input`, by whatever name.
fn is_same_file(input: &Path, file: &fs::Metadata) -> bool {
    input.metadata().is_ok_and(|input| (input.dev(), input.ino()) == (file.dev(), file.ino()))
}

/// Makes the directories of `relative` in `root`, through no symlink.
fn make_directories(root: &Path, relative: &Path) -> io::Result<()> {
    let mut path = root.to_owned();
    for component in relative.parent().into_iter().flat_map(Path::components) {
        path.push(component);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                let text = format!("{} is in the way: it is no directory", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(&path)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The directory that `path` is in.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
