//! How the command ends.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::source;

/// The exit code after a signal, as shells have it for an interrupt.
pub(crate) const INTERRUPTED: i32 = 130;

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
        Self::from(match exit {
            Exit::Complete => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Partial => 3,
        })
    }
}

impl Exit {
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

    /// A failure to open what a stream is inside of, so that nothing of it is
    /// to be had.
    pub(crate) fn layer(path: &Path) -> impl Fn(ramlift::Error) -> Self + '_ {
        move |error| Self::Input { path: source::name(path).to_owned(), error, can_salvage: false }
    }

    /// A failure to write to standard output.
    pub(crate) fn stdout(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Other(format!("standard output: {error}")),
        }
    }

    /// A failure to write to the file `path`.
    pub(crate) fn file(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |error| Self::Other(format!("{}: {error}", path.display()))
    }

    /// Whether it is the input's fault, of a certain kind.
    pub(crate) fn is_of(&self, wanted: impl Fn(&ramlift::ErrorKind) -> bool) -> bool {
        matches!(self, Self::Input { error, .. } if wanted(error.kind()))
    }

    /// Whether the stream would have to be gone back in.
    pub(crate) fn is_gone_by(&self) -> bool {
        self.is_of(|kind| matches!(kind, ramlift::ErrorKind::GoneBy { .. }))
    }

    /// Whether it is only of reading a stream as it goes by: too much would
    /// have to be kept.
    pub(crate) fn is_too_much_to_keep(&self) -> bool {
        self.is_of(|kind| matches!(kind, ramlift::ErrorKind::TooMuchToKeep { .. }))
    }

    /// Says it on standard error.
    pub(crate) fn report(&self) -> Exit {
        if matches!(self, Self::ClosedPipe) {
            return Exit::Complete;
        }
        crate::terminal::say(format_args!("error: {self}"));
        if let Self::Input { error, .. } = self
            && let Some(hint) = error.hint()
        {
            crate::terminal::say(format_args!("hint: {hint}"));
        }
        if matches!(self, Self::Input { can_salvage: true, .. }) {
            crate::terminal::say(format_args!(
                "hint: `ramlift extract --salvage` writes what is whole and lists what is lost; `info` and `state` take it too"
            ));
        }
        Exit::Failed
    }
}

impl From<ramlift::Error> for Failure {
    /// A failure that names its own file, if it has one.
    fn from(error: ramlift::Error) -> Self {
        Self::Other(chain(&error))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input { path, error, .. } => match error.kind() {
                // It names the file itself.
                ramlift::ErrorKind::Io { .. } => f.write_str(&chain(error)),
                _ => write!(f, "{}: {}", path.display(), chain(error)),
            },
            Self::Other(text) => f.write_str(text),
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
