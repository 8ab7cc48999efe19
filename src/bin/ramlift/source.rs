//! Where a stream comes from: a file, or something that goes by.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::path::Path;

use ramlift::{Incoming, Input, Kept, Progress, Stream};
use rustix::fs::{Advice, fadvise};

use crate::args::SourceArgs;
use crate::exit::Failure;
use crate::{channels, progress};

/// The name of standard input on the command line.
pub(crate) const STDIN: &str = "-";

/// And in messages.
const NAME: &str = "standard input";

/// A stream, as it can be had.
pub(crate) enum Opened {
    /// A file that can be gone back to.
    Mapped(Input),
    /// Bytes that come once.
    Incoming(Incoming),
}

/// Opens the stream that `args` name.
pub(crate) fn open(args: &SourceArgs) -> Result<Opened, Failure> {
    let refused = match args {
        _ if args.stream != *STDIN => return open_file(&args.stream),
        SourceArgs { salvage: true, .. } => "--salvage",
        SourceArgs { channels, .. } if !channels.is_empty() => "--channel",
        _ => return open_stdin(),
    };
    Err(Failure::Other(format!(
        "{NAME}: {refused} needs a file that can be gone back to; write the stream to one and give that"
    )))
}

/// Opens the stream at `path`, or at standard input for `-`.
pub(crate) fn open_path(path: &Path) -> Result<Opened, Failure> {
    if path == STDIN { open_stdin() } else { open_file(path) }
}

fn open_file(path: &Path) -> Result<Opened, Failure> {
    Input::open(path).map(Opened::Mapped).map_err(Failure::input(path))
}

fn open_stdin() -> Result<Opened, Failure> {
    let file = stdin().map_err(Failure::file(Path::new(NAME)))?;
    Ok(Opened::Incoming(Incoming::new(NAME, file)))
}

/// Standard input, without a buffer of its own, and with as much room in the
/// pipe as anybody gets: each turn of writer and reader costs.
fn stdin() -> io::Result<File> {
    const PIPE_LEN: usize = 1 << 20;
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    // What is no pipe has no room, and a small one is only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&file, PIPE_LEN);
    Ok(file)
}

/// A file to be read once, and its length.
pub(crate) fn read_once(path: &Path) -> Result<(Incoming, u64), Failure> {
    let file = File::open(path).map_err(Failure::file(path))?;
    let len = file.metadata().map_err(Failure::file(path))?.len();
    Ok((Incoming::new(path, Once { file, done: 0 }), len))
}

/// A file that is read once: what has been read is not kept in memory.
struct Once {
    file: File,
    done: u64,
}

impl Read for Once {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(bytes)?;
        // A hint: if it is not taken, nothing is wrong.
        let _ = fadvise(&self.file, self.done, NonZeroU64::new(len as u64), Advice::DontNeed);
        self.done += len as u64;
        Ok(len)
    }
}

/// Walks the stream that `args` name for all but its pages, and does `work`
/// with it; with its length, if that is known.
pub(crate) fn with_stream<T>(
    args: &SourceArgs,
    work: impl FnOnce(&Stream<'_>, Option<u64>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match open(args)? {
        Opened::Mapped(input) => {
            let len = input.bytes().len() as u64;
            let bar = progress::is_visible(false);
            channels::with_channels(args, &input, bar, |stream| work(&stream, Some(len)))
        }
        Opened::Incoming(incoming) => pass(&args.stream, incoming, |stream| work(stream, None)),
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
