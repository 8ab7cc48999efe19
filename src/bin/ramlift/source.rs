//! Where a stream comes from: a file, a device, or something that goes by.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use ramlift::{Incoming, Input, Kept, Progress, Stream};
use rustix::fs::{Advice, fadvise};

use crate::args::{LayerArgs, SourceArgs};
use crate::exit::Failure;
use crate::layers::{self, Bytes, Origin, Unwrapped};
use crate::{channels, progress};

/// The name of standard input on the command line.
pub(crate) const STDIN: &str = "-";

/// And in messages.
const NAME: &str = "standard input";

/// Opens the stream that `args` name, through all that it is inside of.
pub(crate) fn open(args: &SourceArgs) -> Result<Unwrapped, Failure> {
    let unwrapped = open_path(&args.stream, &args.layers)?;
    let refused = match (args, &unwrapped.bytes) {
        (SourceArgs { salvage: true, .. }, Bytes::Incoming(_)) => "--salvage",
        (SourceArgs { channels, .. }, Bytes::Incoming(_)) if !channels.is_empty() => "--channel",
        _ => return Ok(unwrapped),
    };
    Err(needs_a_file(&args.stream, refused, &unwrapped.origin))
}

/// The failure of doing `what` with a stream that goes by.
pub(crate) fn needs_a_file(path: &Path, what: &str, origin: &Origin) -> Failure {
    let is_inside = origin.layers.0.len() > 1;
    let why = if is_inside { format!(", and this is {}", origin.layers) } else { String::new() };
    Failure::Other(format!(
        "{}: {what} needs a stream that can be gone back to{why}: write it to a file of its own, and give that",
        name(path).display()
    ))
}

/// Opens the stream at `path`, or at standard input for `-`.
pub(crate) fn open_path(path: &Path, args: &LayerArgs) -> Result<Unwrapped, Failure> {
    if path == STDIN {
        let path = name(path);
        let mut file = stdin().map_err(Failure::file(path))?;
        skip(&mut file, args.offset).map_err(Failure::file(path))?;
        return layers::unwrap_reader(path, Box::new(file), Origin::default());
    }
    let kind = std::fs::metadata(path).map_err(Failure::file(path))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        let file = File::open(path).map_err(Failure::file(path))?;
        return layers::unwrap_file(path, file, args);
    }
    if kind.is_fifo() {
        let mut file = File::open(path).map_err(Failure::file(path))?;
        skip(&mut file, args.offset).map_err(Failure::file(path))?;
        return layers::unwrap_reader(path, Box::new(file), Origin::default());
    }
    let what = if kind.is_dir() { "a directory" } else { "no file, block device or pipe" };
    Err(Failure::Other(format!("{}: is {what}", path.display())))
}

/// The name of what is read, for messages.
fn name(path: &Path) -> &Path {
    if path == STDIN { Path::new(NAME) } else { path }
}

/// Passes over bytes before the stream.
fn skip(file: &mut File, len: u64) -> io::Result<()> {
    io::copy(&mut file.take(len), &mut io::sink()).map(drop)
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

/// A mapped stream as one that goes by.
pub(crate) fn read_once(input: &Input) -> Result<Incoming, Failure> {
    let path = input.path();
    let range = input.range();
    let mut file = File::open(path).map_err(Failure::file(path))?;
    file.seek(SeekFrom::Start(range.start)).map_err(Failure::file(path))?;
    let once = Once { file, done: range.start };
    Ok(Incoming::new(path, once.take(range.end - range.start)))
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
/// with it.
pub(crate) fn with_stream<T>(
    args: &SourceArgs,
    work: impl FnOnce(&Stream<'_>, &Origin) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let Unwrapped { bytes, origin } = open(args)?;
    match bytes {
        Bytes::Mapped(input) => {
            let bar = progress::is_visible(false);
            channels::with_channels(args, &input, bar, |stream| work(&stream, &origin))
        }
        Bytes::Incoming(incoming) => pass(&args.stream, incoming, |stream| work(stream, &origin)),
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
