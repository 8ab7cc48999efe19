//! A single file of output, and its manifest beside it: both appear whole, or
//! not at all. See [`output`](crate::output).

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ramlift::create_new;

use crate::durable::{self, sync_place};
use crate::exit::Failure;
use crate::inputs;
use crate::manifest::{self, SIDECAR};
use crate::os_text::RecordedPath;
use crate::output::{BEING_READ, EARLIER, in_the_way, move_new, not_moved, parent, refuse_dangling};
use crate::room::Allowance;
use crate::staging::{StagingDir, remove_leftovers, staged, take_turn};

/// A file being written, and its manifest.
pub(crate) struct StagedFile {
    target: PathBuf,
    manifest: PathBuf,
    may_replace: bool,
    is_to_be_synced: bool,
    temporary: StagingDir,
    pub(crate) allowed: Allowance,
}

impl StagedFile {
    /// Prepares to write what comes out of `input` into the file `target`,
    /// which appears whole at the end. One that exists is replaced only with
    /// `may_replace`, and never if it is `input`. No more than `max_output` bytes
    /// are written.
    pub(crate) fn new(
        target: &Path,
        may_replace: bool,
        input: &Path,
        max_output: Option<u64>,
    ) -> Result<Self, Failure> {
        let Some(name) = target.file_name() else {
            return Err(Failure::Other(format!("{}: has no file name", target.display())));
        };
        if target.as_os_str().as_bytes().ends_with(b"/") {
            let text = "has the name of a directory; this format is one file: give its name by -o FILE";
            return Err(Failure::Other(format!("{}: {text}", target.display())));
        }
        let mut name = name.to_owned();
        name.push(SIDECAR);
        let manifest = target.with_file_name(name);
        let place = parent(target);
        refuse_dangling(&place)?;
        check_the_way(target, &manifest, may_replace)?;
        for file in [target, &manifest] {
            if file.symlink_metadata().is_ok_and(|file| is_same_file(input, &file)) {
                return Err(Failure::Other(format!("{}: in the way is {BEING_READ}", file.display())));
            }
        }
        remove_leftovers(&place, |_| ());
        let temporary = StagingDir::make(&place)?;
        let is_to_be_synced = durable::is_needed(&place);
        let (target, allowed) = (target.to_owned(), Allowance::new(max_output));
        Ok(Self { target, manifest, may_replace, is_to_be_synced, temporary, allowed })
    }

    /// As [`Staging::sync`](crate::output::Staging::sync).
    pub(crate) fn sync(&mut self) {
        self.is_to_be_synced = true;
    }

    /// As [`Staging::place`](crate::output::Staging::place).
    pub(crate) fn place(&self) -> &Path {
        self.temporary.name()
    }

    /// Writes the manifest.
    pub(crate) fn write_manifest(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.allowed.spend(bytes.len() as u64)?;
        let path = self.staged(&self.manifest);
        let write = || create_new(&path)?.write_all(bytes);
        write().map_err(Failure::file(&self.manifest))
    }

    /// Where the manifest will be.
    pub(crate) fn manifest(&self) -> &Path {
        &self.manifest
    }

    /// Where a file is until it is moved.
    fn staged(&self, target: &Path) -> PathBuf {
        self.temporary.path().join(target.file_name().unwrap_or_default())
    }

    /// Where to write it.
    pub(crate) fn path(&self) -> PathBuf {
        self.staged(&self.target)
    }

    /// As [`Staging::shown`](crate::output::Staging::shown).
    pub(crate) fn shown(&self, text: &str) -> String {
        text.replace(&*self.temporary.path().to_string_lossy(), &parent(&self.target).to_string_lossy())
    }

    /// Moves both to their places, if the input is still what it was: the
    /// manifest last, so that what has one is whole.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        inputs::close()?;
        // Files that were opened since, and by other names, are known now.
        check_the_way(&self.target, &self.manifest, self.may_replace)?;
        if self.is_to_be_synced {
            let names =
                [&self.target, &self.manifest].map(|path| path.file_name().unwrap_or_default().into());
            durable::sync(self.temporary.path(), &names)
                .map_err(|failure| failure.map_text(|text| self.shown(text)))?;
        }
        let _turn = take_turn(&parent(&self.target))?;
        let mut staged = staged();
        let moved = self.move_both();
        // What is left is removed, whatever came of it.
        self.temporary.remove();
        *staged = None;
        drop(staged);
        moved?;
        if self.is_to_be_synced { sync_place(&parent(&self.target), &self.target) } else { Ok(()) }
    }

    /// A manifest of an earlier file is never beside this one.
    fn move_both(&self) -> Result<(), Failure> {
        let aside = self.temporary.path().join(EARLIER);
        let may_go = self.may_replace || is_left_behind(&self.manifest, &self.target);
        let is_aside = may_go && fs::rename(&self.manifest, &aside).is_ok();
        self.move_to(&self.target).inspect_err(|_| {
            if is_aside {
                let _ = fs::rename(&aside, &self.manifest);
            }
        })?;
        self.move_to(&self.manifest).map_err(|failure| {
            if !self.may_replace && fs::remove_file(&self.target).is_ok() {
                return failure;
            }
            failure.map_text(|text| format!("{text}; {} is in its place", self.target.display()))
        })
    }

    fn move_to(&self, target: &Path) -> Result<(), Failure> {
        let path = self.staged(target);
        let moved = match self.may_replace {
            true => fs::rename(&path, target),
            // A link fails where something is, too.
            false => move_new(&path, target, || fs::hard_link(&path, target)),
        };
        moved.map_err(not_moved(target))
    }
}

/// Fails if something is where the file `target` or its manifest is to be, but for
/// what may be replaced.
fn check_the_way(target: &Path, manifest: &Path, may_replace: bool) -> Result<(), Failure> {
    refuse_in_the_way(target, may_replace)?;
    refuse_in_the_way(manifest, may_replace || is_left_behind(manifest, target))
}

/// Whether `manifest` is one of ours that tells of `target` alone, which is gone:
/// somebody removed the file, and left what is said of it.
fn is_left_behind(manifest: &Path, target: &Path) -> bool {
    let is_gone =
        |path: &Path| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let name = RecordedPath::from(target.file_name().unwrap_or_default());
    is_gone(target)
        && manifest.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
        && manifest::files_of(manifest).is_some_and(|files| files == [name])
}

/// Fails if something is where a file is to be, but for one that may be replaced.
fn refuse_in_the_way(target: &Path, may_replace: bool) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::Other(format!("{}: {why}", target.display())));
    match target.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {
            refuse("is a directory; this format is one file: give its name by -o FILE")
        }
        Ok(_) if !may_replace => refuse("exists already; --force replaces it, -o FILE gives another"),
        Ok(metadata) => {
            in_the_way(&metadata, true).map_or(Ok(()), |what| refuse(&format!("in the way is {what}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::file(target)(error)),
    }
}

/// Whether a file is `input`, by whatever name.
fn is_same_file(input: &Path, file: &fs::Metadata) -> bool {
    input.metadata().is_ok_and(|input| (input.dev(), input.ino()) == (file.dev(), file.ino()))
}
