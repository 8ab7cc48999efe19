//! Where a stream comes from: a file, or something that goes by.

use std::io;
use std::path::Path;

use ramlift::{Incoming, Input, Kept, Progress, Stream};

use crate::exit::Failure;
use crate::progress;

/// The name of standard input on the command line.
pub(crate) const STDIN: &str = "-";

/// A stream, as it can be had.
pub(crate) enum Opened {
    /// A file that can be gone back to.
    Mapped(Input),
    /// Bytes that come once.
    Incoming(Incoming),
}

/// What is asked for that takes going back.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wants {
    /// To go on behind damage.
    pub(crate) salvage: bool,
    /// To join the channels of a multifd migration.
    pub(crate) channels: bool,
}

/// Opens the stream at `path`, or at standard input for `-`.
pub(crate) fn open(path: &Path, wants: Wants) -> Result<Opened, Failure> {
    if path != STDIN {
        return Input::open(path).map(Opened::Mapped).map_err(Failure::input(path));
    }
    let refused = match wants {
        Wants { salvage: true, .. } => "--salvage",
        Wants { channels: true, .. } => "--channel",
        _ => return Ok(Opened::Incoming(Incoming::new("standard input", io::stdin()))),
    };
    Err(Failure::Other(format!(
        "standard input: {refused} needs a file that can be gone back to; write the stream to one and give that"
    )))
}

/// Walks the stream at `path` for all but its pages, and does `work` with it;
/// with its length, if that is known.
pub(crate) fn with_stream<T>(
    path: &Path,
    wants: Wants,
    work: impl FnOnce(&Stream<'_>, Option<u64>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match open(path, wants)? {
        Opened::Mapped(input) => {
            let stream = progress::index_or_salvage(&input, progress::is_visible(false), wants.salvage)?;
            work(&stream, Some(input.bytes().len() as u64))
        }
        Opened::Incoming(incoming) => pass(path, incoming, |stream| work(stream, None)),
    }
}

/// Walks a stream that goes by for all but its pages, and does `work` with it.
pub(crate) fn pass<T>(
    path: &Path,
    incoming: Incoming,
    work: impl FnOnce(&Stream<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let kept = Kept::new();
    let pass = |progress: &Progress| Stream::read_once(incoming, &kept, progress, &mut ());
    work(&progress::pass(progress::is_visible(false), pass).map_err(Failure::input(path))?)
}
