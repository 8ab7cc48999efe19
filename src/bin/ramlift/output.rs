//! Output that appears complete or not at all.
//!
//! Everything is written into a *staging* directory first, which nobody will
//! take for a result, and moved to its place when it is complete. If something
//! fails before that, the staging directory is removed and nothing else has
//! changed. Where files of an earlier output are replaced, there is no manifest
//! from the first to the last of them, and the staging directory stays if not
//! all could be moved.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use ramlift::create_new;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, mkdirat, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use serde_json::Value;

use crate::durable::{self, sync_place};
use crate::exit::Failure;
use crate::extract::{DESC, DOMAIN};
use crate::inputs;
use crate::manifest::{MANIFEST, read_earlier};
use crate::room::Allowance;
use crate::staging::{DIRECTORY_MODE, StagingDir, remove_leftovers, staged, take_turn};

/// The name of an earlier output's manifest in the staging directory: one that
/// no encoded name is.
pub(crate) const EARLIER: &str = "%earlier-manifest";

/// A directory being written.
pub(crate) struct Staging {
    target: PathBuf,
    is_new: bool,
    may_replace: bool,
    temporary: StagingDir,
    is_to_be_synced: bool,
    allowed: Allowance,
    files: Vec<PathBuf>,
    /// Manifests of earlier outputs, and of those that came to no end.
    manifests: Vec<Vec<u8>>,
    /// Files of an earlier output, to be removed if they are not replaced.
    stale: Vec<PathBuf>,
}

impl Staging {
    /// Prepares to write into `target`.
    ///
    /// A directory that does not exist appears whole at the end. In one that
    /// does, files appear at the end, each whole; if there is anything in it,
    /// only with `may_replace`.
    pub(crate) fn new(target: &Path, may_replace: bool) -> Result<Self, Failure> {
        // Without the `.` components, which have no parent.
        let target: PathBuf = target.components().collect();
        refuse_dangling(&target)?;
        let mut manifests = Vec::new();
        remove_leftovers(&target, |left| {
            manifests.extend([MANIFEST, EARLIER].iter().filter_map(|name| read_earlier(&left.join(name))));
        });
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
        if is_new {
            remove_leftovers(place, |_| ());
        } else {
            manifests.extend(read_earlier(&target.join(MANIFEST)));
        }
        let temporary = StagingDir::make(place)?;
        let is_to_be_synced = durable::is_needed(place);
        let (files, stale) = (Vec::new(), Vec::new());
        Ok(Self {
            target,
            is_new,
            may_replace,
            temporary,
            is_to_be_synced,
            allowed: Allowance::new(None),
            files,
            manifests,
            stale,
        })
    }

    /// Has all that is written be on the disk before it is in its place.
    pub(crate) fn sync(&mut self) {
        self.is_to_be_synced = true;
    }

    /// Allows no more than so many bytes of output.
    pub(crate) fn allow(&mut self, max: Option<u64>) {
        self.allowed = Allowance::new(max);
    }

    /// Counts bytes of output.
    pub(crate) fn spend(&mut self, len: u64) -> Result<(), Failure> {
        self.allowed.spend(len)
    }

    /// A path on the file system that is written to.
    pub(crate) fn place(&self) -> &Path {
        self.temporary.name()
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
        // Not the staging directory itself: where a signal has removed it, it
        // shall not be there again.
        let made = open_directories(self.temporary.path(), relative);
        made.map_err(Failure::file(&parent(&self.target.join(relative))))?;
        self.files.push(relative.to_owned());
        Ok(path)
    }

    /// Does not expect a file that was given out: it has been removed.
    pub(crate) fn forget(&mut self, relative: &str) {
        self.files.retain(|file| file != Path::new(relative));
    }

    /// The files that were given out: what each will be in the target, and where
    /// it is.
    pub(crate) fn files(&self) -> Vec<(OsString, PathBuf)> {
        let place = |file: &PathBuf| (file.clone().into_os_string(), self.temporary.path().join(file));
        self.files.iter().map(place).collect()
    }

    /// Writes a whole file.
    pub(crate) fn write(
        &mut self,
        relative: &str,
        content: impl FnOnce(&mut BufWriter<Counted>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let path = self.file(relative)?;
        let left = self.allowed.left().unwrap_or(u64::MAX);
        let write = || -> io::Result<u64> {
            let mut file = BufWriter::new(Counted { file: create_new(&path)?, len: 0, left });
            content(&mut file)?;
            file.flush()?;
            Ok(file.get_ref().len)
        };
        match write() {
            Ok(len) => self.spend(len),
            Err(error) if error.get_ref().is_some_and(|why| why.is::<Spent>()) => {
                Err(self.allowed.exceeded())
            }
            Err(error) => Err(Failure::file(&self.target.join(relative))(error)),
        }
    }

    /// The path that a file given out has in the end, for messages: `text`
    /// with the staging directory's name replaced.
    pub(crate) fn shown(&self, text: &str) -> String {
        text.replace(&*self.temporary.path().to_string_lossy(), &self.target.to_string_lossy())
    }

    /// The manifests of earlier outputs in the target.
    pub(crate) fn earlier_manifests(&self) -> Vec<Vec<u8>> {
        self.manifests.clone()
    }

    /// Names the files of an extraction that was there before, by its manifest:
    /// two streams' files must not be mixed.
    pub(crate) fn replaces_files_of(&mut self, manifest: &Value) {
        let listed = |key| manifest.get(key).and_then(Value::as_array).into_iter().flatten();
        let images = listed("blocks").chain(listed("block_devices"));
        for file in images.filter_map(|block| block.get("file")?.as_str()) {
            self.replaces(file);
        }
        self.replaces(DESC);
        self.replaces(DOMAIN);
    }

    /// Names a file of an earlier output: it goes unless this one has it too.
    fn replaces(&mut self, relative: &str) {
        let relative = Path::new(relative);
        if relative.components().all(|component| matches!(component, Component::Normal(_))) {
            self.stale.push(relative.to_owned());
        }
    }

    /// Moves everything to its place, if the input is still what it was.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        inputs::close()?;
        if self.is_to_be_synced {
            durable::sync(self.temporary.path(), &self.files)
                .map_err(|failure| failure.map_text(|text| self.shown(text)))?;
        }
        let _turn = if self.is_new { None } else { take_turn(&self.target)? };
        let mut staged = staged();
        let moved = if self.is_new { self.commit_directory() } else { self.commit_files() };
        *staged = None;
        moved
    }

    fn commit_files(mut self) -> Result<(), Failure> {
        self.check_the_way()?;
        self.set_manifest_aside()?;
        let Err(failure) = self.move_files() else {
            self.temporary.remove();
            return if self.is_to_be_synced { sync_place(&self.target, &self.target) } else { Ok(()) };
        };
        let target = self.target.display().to_string();
        let left = self.temporary.keep();
        Err(failure.map_text(|text| {
            format!(
                "{text}; {target} is not complete: some of its files are still in {}; give --force again when that is mended",
                left.display()
            )
        }))
    }

    /// Whatever can be in the way is met before anything is replaced.
    fn check_the_way(&self) -> Result<(), Failure> {
        for relative in &self.files {
            let target = self.target.join(relative);
            open_directories(&self.target, relative).map_err(Failure::file(&target))?;
            let Ok(metadata) = target.symlink_metadata() else { continue };
            if let Some(what) = in_the_way(&metadata, self.may_replace) {
                return Err(Failure::Other(format!("{}: in the way is {what}", target.display())));
            }
        }
        Ok(())
    }

    /// Without its manifest a directory is no complete output. Files that it has
    /// are of an earlier one, if by a run that has ended since this one began.
    fn set_manifest_aside(&mut self) -> Result<(), Failure> {
        let manifest = self.target.join(MANIFEST);
        let met = read_earlier(&manifest).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let met = met.filter(|manifest| manifest.get("ramlift").is_some_and(Value::is_string));
        let has_own = self.files.iter().any(|file| file == Path::new(MANIFEST));
        match met {
            Some(met) if has_own => self.replaces_files_of(&met),
            // Somebody else's file of that name, and none of ours to replace it.
            None if !has_own => return Ok(()),
            _ => {}
        }
        match fs::rename(&manifest, self.temporary.path().join(EARLIER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::file(&manifest)(error)),
            _ => Ok(()),
        }
    }

    /// The manifest is the last of the files. If power may fail, the disk has it
    /// that there is none before it hears of another file, and of all others
    /// before it hears of the new one: a file system may well put a later change
    /// on the disk before an earlier one.
    fn move_files(&self) -> Result<(), Failure> {
        let settle = |files: &[PathBuf]| match self.is_to_be_synced {
            true => durable::sync_directories(&self.target, files),
            false => Ok(()),
        };
        settle(&[MANIFEST.into()])?;
        for relative in self.stale.iter().filter(|relative| !self.files.contains(relative)) {
            self.remove(relative)?;
        }
        let Some((last, others)) = self.files.split_last() else { return Ok(()) };
        others.iter().try_for_each(|relative| self.move_file(relative))?;
        settle(&[others, &self.stale].concat())?;
        self.move_file(last)
    }

    fn move_file(&self, relative: &Path) -> Result<(), Failure> {
        let target = self.target.join(relative);
        let name = relative.file_name().unwrap_or_default();
        let from = self.temporary.path().join(relative);
        let moved = open_directories(&self.target, relative)
            .and_then(|directory| Ok(self.move_one(&from, &directory, name)?));
        moved.map_err(not_moved(&target))
    }

    fn move_one(&self, from: &Path, directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        if !self.may_replace {
            match renameat_with(CWD, from, directory, name, RenameFlags::NOREPLACE) {
                // The file system cannot promise it.
                Err(Errno::INVAL | Errno::NOSYS) => {}
                moved => return moved,
            }
        }
        renameat(CWD, from, directory, name)
    }

    /// Removes a file of an earlier output, through no symlink, and the
    /// directories that it leaves empty.
    fn remove(&self, relative: &Path) -> Result<(), Failure> {
        let target = self.target.join(relative);
        let name = relative.file_name().unwrap_or_default();
        let is_ours = |file: fs::Metadata| file.is_file() && !inputs::is_one(&file);
        if let Ok(directory) = open_directories(&self.target, relative)
            && target.symlink_metadata().is_ok_and(is_ours)
        {
            let removed = unlinkat(&directory, name, AtFlags::empty()).map_err(io::Error::from);
            removed.map_err(Failure::file(&target))?;
        }
        for directory in relative.ancestors().skip(1).filter(|above| *above != Path::new("")) {
            // Fails on one that is not empty, as it should, and on a symlink.
            let _ = fs::remove_dir(self.target.join(directory));
        }
        Ok(())
    }

    fn commit_directory(self) -> Result<(), Failure> {
        let above = self.target.ancestors().skip(1).filter(|above| **above != *"");
        let made: Vec<&Path> = above.take_while(|above| !above.is_dir()).collect();
        let above = parent(&self.target);
        fs::create_dir_all(&above).map_err(Failure::file(&above))?;
        let from = self.temporary.name();
        if !self.temporary.is_at(from) {
            return Err(self.was_moved(from));
        }
        // Where the file system cannot promise that nothing is replaced, a
        // rename fails on all but an empty directory.
        move_new(from, &self.target, || fs::rename(from, &self.target)).map_err(not_moved(&self.target))?;
        if !self.temporary.is_at(&self.target) {
            return Err(self.was_moved(&self.target));
        }
        let is_to_be_synced = self.is_to_be_synced;
        // Moved: there is nothing left to remove.
        let _ = self.temporary.keep();
        if !is_to_be_synced {
            return Ok(());
        }
        let there = parent(made.last().unwrap_or(&self.target.as_path()));
        let above = made.into_iter().chain([there.as_path()]);
        above.into_iter().try_for_each(|directory| sync_place(directory, &self.target))
    }

    fn was_moved(&self, path: &Path) -> Failure {
        Failure::Hinted {
            text: format!("{}: is not the directory that was written: somebody moved that", path.display()),
            hint: "write where nobody else may rename files",
        }
    }
}

/// A file of which no more than `left` bytes are written.
pub(crate) struct Counted {
    file: fs::File,
    len: u64,
    left: u64,
}

/// There are none left.
#[derive(Debug, thiserror::Error)]
#[error("--max-output is reached")]
struct Spent;

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left - self.len {
            return Err(io::Error::other(Spent));
        }
        let len = self.file.write(bytes)?;
        self.len += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(crate) const BEING_READ: &str = "a file that is being read";

/// What is never replaced, or not without `may_replace`.
pub(crate) fn in_the_way(there: &fs::Metadata, may_replace: bool) -> Option<&'static str> {
    let kind = there.file_type();
    match () {
        () if kind.is_dir() => Some("a directory"),
        () if inputs::is_one(there) => Some(BEING_READ),
        // A name such as /dev/null leads to something for others, too.
        () if !kind.is_file() && !kind.is_symlink() => Some("a device, a pipe or a socket"),
        () if !may_replace => Some("a file that was not there before; --force replaces it"),
        () => None,
    }
}

/// Fails if `path`, or a directory above it, is a symlink to nothing: what is
/// made does not get through it.
pub(crate) fn refuse_dangling(path: &Path) -> Result<(), Failure> {
    let leads_nowhere = |path: &&Path| {
        let is_there = path.metadata().map_err(|error| error.kind());
        path.is_symlink() && matches!(is_there, Err(io::ErrorKind::NotFound))
    };
    let Some(symlink) = path.ancestors().find(leads_nowhere) else { return Ok(()) };
    let to = fs::read_link(symlink).unwrap_or_default();
    Err(Failure::Hinted {
        text: format!("{}: is a symlink to {}, which is not there", symlink.display(), to.display()),
        hint: "make that directory, or write to another by -o",
    })
}

/// Moves a file or directory to where nothing is: what appeared there meanwhile
/// is not replaced. `other` does it where the file system cannot promise that.
pub(crate) fn move_new(from: &Path, to: &Path, other: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => other(),
        moved => moved.map_err(io::Error::from),
    }
}

/// The failure of moving something to `path`, where nothing was when the run
/// began.
pub(crate) fn not_moved(path: &Path) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| match Errno::from_io_error(&error) {
        Some(Errno::EXIST | Errno::NOTEMPTY) => Failure::Hinted {
            text: format!(
                "{}: was made by another run, or by somebody else, while this one wrote",
                path.display()
            ),
            hint: "what is there stays: run again with --force to replace it, or write to another by -o",
        },
        _ => Failure::file(path)(error),
    }
}

/// Opens the directory that `relative` is in, in `root`. Makes what is not
/// there, and goes through no symlink, whoever puts one there meanwhile.
fn open_directories(root: &Path, relative: &Path) -> io::Result<OwnedFd> {
    const FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);
    let mut directory = openat(CWD, root, FLAGS, Mode::empty())?;
    for component in relative.parent().into_iter().flat_map(Path::components) {
        match mkdirat(&directory, component.as_os_str(), Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let opened = openat(&directory, component.as_os_str(), FLAGS | OFlags::NOFOLLOW, Mode::empty());
        directory = match opened {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let text = format!("{} is in the way: it is no directory", component.as_os_str().display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

/// The directory that `path` is in.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
