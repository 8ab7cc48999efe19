//! How the command ends.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ramlift::ErrorKind;

use crate::{inputs, source};

/// The exit codes: part of the public interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// Everything asked for was done.
    Complete,
    /// Nothing was done.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// Something that the stream should hold is missing from the output.
    Partial,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Partial => 3,
        }
    }

    /// Complete, or partial if something is missing.
    pub(crate) fn of(is_partial: bool) -> Self {
        if is_partial { Self::Partial } else { Self::Complete }
    }
}

/// Why the command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The input, or the system while reading it.
    Input {
        /// The input.
        path: PathBuf,
        /// What went wrong.
        error: ramlift::Error,
        /// Whether a salvage gets any further.
        can_salvage: bool,
    },
    /// The output, or a request that this input cannot serve.
    Other(String),
    /// The same, and there is something to try.
    Hinted {
        /// What went wrong.
        text: String,
        /// What to try.
        hint: &'static str,
    },
    /// Whoever read the output has had enough: no failure.
    ClosedPipe,
}

impl Failure {
    pub(crate) fn input(path: &Path) -> impl Fn(ramlift::Error) -> Self + '_ {
        move |error| {
            let can_salvage = error.is_damage();
            Self::Input { path: source::name(path).to_owned(), error, can_salvage }
        }
    }

    /// A failure of what is no part of the stream, so that a salvage gets no
    /// further: what it is inside of, its channels, what is told of its memory.
    pub(crate) fn layer(path: &Path) -> impl Fn(ramlift::Error) -> Self + '_ {
        move |error| Self::Input { path: source::name(path).to_owned(), error, can_salvage: false }
    }

    /// A failure to write to standard output.
    pub(crate) fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            // What can be tried with files is of no use here.
            _ => Self::Other(format!("standard output: {error}")),
        }
    }

    /// What came of telling of `output`, which is in its place. Whoever closed the
    /// pipe has had enough: what there is to tell, the exit code tells.
    pub(crate) fn of_report(told: Result<(), Self>, output: &Path) -> Result<(), Self> {
        match told {
            Err(Self::ClosedPipe) => Ok(()),
            told => told.map_err(|failure| {
                failure.map_text(|text| format!("{text}; {} is in its place", output.display()))
            }),
        }
    }

    /// A failure to write to the file `path`.
    pub(crate) fn file(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |error| Self::system(format!("{}: {error}", path.display()), path, &error)
    }

    fn system(text: String, path: &Path, error: &io::Error) -> Self {
        match system_hint(error).or_else(|| directory_hint(path, error)).or_else(|| name_hint(error, path)) {
            Some(hint) => Self::Hinted { text, hint },
            None => Self::Other(text),
        }
    }

    /// The same failure in other words.
    pub(crate) fn map_text(self, map: impl FnOnce(&str) -> String) -> Self {
        match self {
            Self::Other(text) => Self::Other(map(&text)),
            Self::Hinted { text, hint } => Self::Hinted { text: map(&text), hint },
            other => other,
        }
    }

    /// Whether it is the input's fault, of a certain kind.
    pub(crate) fn is_of(&self, wanted: impl Fn(&ramlift::ErrorKind) -> bool) -> bool {
        matches!(self, Self::Input { error, .. } if wanted(error.kind()))
    }

    /// Whether the stream would have to be gone back in.
    pub(crate) fn is_gone_by(&self) -> bool {
        self.is_of(|kind| matches!(kind, ErrorKind::GoneBy { .. }))
    }

    /// Whether it is only of reading a stream as it goes by: too much would
    /// have to be kept.
    pub(crate) fn is_too_much_to_keep(&self) -> bool {
        self.is_of(|kind| matches!(kind, ErrorKind::TooMuchToKeep { .. }))
    }

    /// Says it on standard error.
    pub(crate) fn report(&self) -> Exit {
        if matches!(self, Self::ClosedPipe) {
            return Exit::Complete;
        }
        crate::terminal::say(format_args!("error: {self}"));
        for hint in self.hints() {
            crate::terminal::say(format_args!("hint: {hint}"));
        }
        Exit::Failed
    }

    /// What can be tried.
    fn hints(&self) -> Vec<String> {
        let (error, can_salvage) = match self {
            Self::Input { error, can_salvage, .. } => (error, *can_salvage),
            Self::Hinted { hint, .. } => return vec![(*hint).to_owned()],
            Self::Other(_) | Self::ClosedPipe => return Vec::new(),
        };
        let mut hints = Vec::new();
        let is_whole = matches!(error.kind(), ErrorKind::Part { .. } | ErrorKind::Limit { .. });
        if let Some(age) = inputs::recent().filter(|_| error.is_damage() && !is_whole) {
            hints.push(format!(
                "the file was written to {} seconds ago: is the migration still running? wait until it is complete",
                age.as_secs()
            ));
        }
        hints.extend(error.hint().map(str::to_owned));
        let of_system = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
        hints.extend(of_system.and_then(system_hint).map(str::to_owned));
        if let (ErrorKind::Io { path, .. }, Some(cause)) = (error.kind(), of_system) {
            hints.extend(directory_hint(path, cause).map(str::to_owned));
        }
        if can_salvage {
            let text = "`ramlift extract --salvage` writes what is whole and lists what is lost; `info` and `state` take it too";
            hints.push(text.to_owned());
        }
        hints
    }
}

/// What can be tried where the system fails in a way that has a name.
fn system_hint(error: &io::Error) -> Option<&'static str> {
    const EIO: i32 = 5;
    const EFAULT: i32 = 14;
    Some(match error.kind() {
        io::ErrorKind::StorageFull => "the file system is full: write to another by -o, or less by --block",
        io::ErrorKind::QuotaExceeded => {
            "your quota is used up: write to another file system by -o, or less by --block"
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only: write to another by -o",
        io::ErrorKind::FileTooLarge => {
            "the file system, or `ulimit -f`, allows no file as long: write to another by -o, or leave the block out by --block"
        }
        io::ErrorKind::OutOfMemory => {
            "there is too little memory, or `ulimit -v` allows too little: `extract --threads 1` takes the least"
        }
        _ if error.raw_os_error() == Some(EIO) => {
            "the device, or the server it is on, failed: the kernel's log tells more"
        }
        // A page of the map was to be written, and is not there.
        _ if error.raw_os_error() == Some(EFAULT) => {
            "the input cannot be read, its device or server failed: the kernel's log tells more"
        }
        _ => return None,
    })
}

/// What can be tried where there is no file of such a name.
fn name_hint(error: &io::Error, path: &Path) -> Option<&'static str> {
    // QEMU's own names have colons.
    const NOT_OF_DOS: &[u8] = b":*?\"<>|\\";
    let has_any = || path.as_os_str().as_bytes().iter().any(|byte| NOT_OF_DOS.contains(byte));
    (error.kind() == io::ErrorKind::InvalidInput && has_any()).then_some(
        "FAT, exFAT and NTFS have no names with : and the like: write to another file system by -o, or leave the block out by --block, or write one file by --format",
    )
}

/// What can be tried where a path leads nowhere because where it counts from is
/// gone.
fn directory_hint(path: &Path, error: &io::Error) -> Option<&'static str> {
    let is_gone = error.kind() == io::ErrorKind::NotFound
        && path.is_relative()
        && std::env::current_dir().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    is_gone.then_some("the current directory was removed: go to one that is there, or give absolute paths")
}

impl From<ramlift::Error> for Failure {
    /// A failure that names its own file, if it has one.
    fn from(error: ramlift::Error) -> Self {
        match error.kind() {
            ErrorKind::Io { path, source } => Self::system(chain(&error), path, source),
            _ => Self::Other(chain(&error)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input { path, error, .. } => match error.kind() {
                // It names the file itself.
                ErrorKind::Io { .. } => f.write_str(&chain(error)),
                _ => write!(f, "{}: {}", path.display(), chain(error)),
            },
            Self::Other(text) | Self::Hinted { text, .. } => f.write_str(text),
            Self::ClosedPipe => f.write_str("standard output was closed"),
        }
    }
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
