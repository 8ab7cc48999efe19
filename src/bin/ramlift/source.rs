//! Where a stream comes from: a file, a device, or something that goes by.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use ramlift::wrapper::Layer;
use ramlift::wrapper::compression::BEHIND_DATA;
use ramlift::{Error, ErrorKind, Incoming, Input, Kept, Progress, Stream};
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};

use crate::args::{LayerArgs, SourceArgs};
use crate::evidence::Reader;
use crate::exit::Failure;
use crate::layers::{self, Bytes, Origin, Unwrapped};
use crate::temporary::Bound;
use crate::{channels, inputs, progress, spool};

/// The name of standard input on the command line.
pub(crate) const STDIN: &str = "-";

/// And in messages.
const NAME: &str = "standard input";

/// A stream, as it is read.
pub(crate) enum Opened {
    /// In memory: it can be gone back in.
    Mapped(Input, Origin),
    /// As it goes by.
    Incoming(Incoming, Origin),
}

/// Opens the stream that `args` name, through all that it is inside of.
pub(crate) fn open(args: &SourceArgs) -> Result<Opened, Failure> {
    let what = match args {
        SourceArgs { salvage: true, .. } => "--salvage",
        SourceArgs { channels, .. } if !channels.is_empty() => "--channel",
        _ => return open_path(&args.stream, &args.layers),
    };
    let (input, origin) = open_mapped(&args.stream, &args.layers, what, args.salvage)?;
    Ok(Opened::Mapped(input, origin))
}

/// Opens the stream at `path`, so that `what` can go back in it: what can only
/// be read once is unpacked into a file. For a salvage, what comes before a
/// failure of that counts.
pub(crate) fn open_mapped(
    path: &Path,
    args: &LayerArgs,
    what: &str,
    is_salvage: bool,
) -> Result<(Input, Origin), Failure> {
    let unwrapped = open_layers(path, args)?;
    if matches!(unwrapped.bytes, Bytes::Incoming(_)) && unwrapped.origin.size.is_none() {
        return Err(needs_a_file(path, what, &unwrapped.origin));
    }
    map(path, unwrapped, args, is_salvage)
}

/// The same, of a pipe too: all that comes out of it goes into a file first.
pub(crate) fn open_unpacked(
    path: &Path,
    args: &LayerArgs,
    is_salvage: bool,
) -> Result<(Input, Origin), Failure> {
    map(path, open_layers(path, args)?, args, is_salvage)
}

fn map(
    path: &Path,
    unwrapped: Unwrapped,
    args: &LayerArgs,
    is_salvage: bool,
) -> Result<(Input, Origin), Failure> {
    let bound = Bound::new(args.max_temp);
    let Unwrapped { bytes, mut origin } = unwrapped;
    let (input, failure) = match bytes {
        Bytes::Mapped(input) => (input, None),
        Bytes::Scattered(state) => spool::gather(path, state, bound)?,
        Bytes::Incoming(incoming) => spool::unpack(path, incoming, bound)?,
    };
    let is_behind_data = |error: &Error| matches!(error.kind(), ErrorKind::Wrapper { what: BEHIND_DATA, .. });
    match failure {
        Some(error) if is_behind_data(&error) => origin.behind = Some(error),
        Some(error) if is_salvage => {
            origin.is_damaged = true;
            origin.warnings.push(format!("unpacked up to here: {error}"));
        }
        Some(error) => return Err(Failure::input(path)(error)),
        None => {}
    }
    Ok((input, origin))
}

/// The failure of doing `what` with a stream that goes by.
fn needs_a_file(path: &Path, what: &str, origin: &Origin) -> Failure {
    let is_inside = origin.layers.0.len() > 1;
    let why = if is_inside { format!(", and this is {}", origin.layers) } else { String::new() };
    Failure::Other(format!(
        "{}: {what} needs a stream that can be gone back to{why}, from a pipe: write it to a file first, and give that",
        name(path).display()
    ))
}

/// Opens the stream at `path`, to be read as it goes by if it is not in a row.
pub(crate) fn open_path(path: &Path, args: &LayerArgs) -> Result<Opened, Failure> {
    let Unwrapped { bytes, origin } = open_layers(path, args)?;
    Ok(match bytes {
        Bytes::Mapped(input) => Opened::Mapped(input, origin),
        Bytes::Incoming(incoming) => Opened::Incoming(incoming, origin),
        Bytes::Scattered(state) => Opened::Incoming(Incoming::new(path, layers::dense(state)), origin),
    })
}

/// Opens the stream at `path`, or at standard input for `-`.
fn open_layers(path: &Path, args: &LayerArgs) -> Result<Unwrapped, Failure> {
    let unwrapped = open_any(path, args)?;
    let layers = &unwrapped.origin.layers;
    let is_image = layers.0.iter().any(|layer| matches!(layer, Layer::Qcow2 { .. }));
    if args.snapshot.is_some() && !is_image {
        let text = format!("--snapshot is for qcow2 images, and this is {layers}");
        return Err(Failure::Other(format!("{}: {text}", name(path).display())));
    }
    Ok(unwrapped)
}

/// The same, whatever snapshot is asked for.
fn open_any(path: &Path, args: &LayerArgs) -> Result<Unwrapped, Failure> {
    if path == STDIN {
        let path = name(path);
        let file = stdin().map_err(Failure::file(path))?;
        inputs::remember(path, &file).map_err(Failure::file(path))?;
        return open_passing(path, file, args);
    }
    let kind = std::fs::metadata(path).map_err(Failure::file(path))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        let file = inputs::open(path).map_err(Failure::file(path))?;
        return layers::unwrap_file(path, file, args);
    }
    if kind.is_fifo() {
        let file = File::open(path).map_err(Failure::file(path))?;
        return open_passing(path, file, args);
    }
    let what = if kind.is_dir() { "a directory" } else { "no file, block device or pipe" };
    Err(Failure::Other(format!("{}: is {what}", path.display())))
}

/// Opens what comes out of a pipe.
fn open_passing(path: &Path, file: File, args: &LayerArgs) -> Result<Unwrapped, Failure> {
    let origin = Origin::default();
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let reader: Reader = if is_file { Box::new(file) } else { Box::new(inputs::Passing(file)) };
    let mut reader = origin.hashing(reader, args);
    skip(path, &mut reader, args.offset)?;
    layers::unwrap_reader(path, reader, args, origin)
}

/// The name of what is read, for messages.
pub(crate) fn name(path: &Path) -> &Path {
    if path == STDIN { Path::new(NAME) } else { path }
}

/// Passes over bytes before the stream.
fn skip(path: &Path, reader: &mut Reader, len: u64) -> Result<(), Failure> {
    let skipped = io::copy(&mut reader.take(len), &mut io::sink()).map_err(Failure::file(path))?;
    if skipped < len { Err(layers::ends_before(path, len, skipped)) } else { Ok(()) }
}

/// Standard input, without a buffer of its own, and with as much room in the
/// pipe as anybody gets: each turn of writer and reader costs.
fn stdin() -> io::Result<File> {
    const PIPE_LEN: usize = 1 << 20;
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    // What is no pipe has no room, and a small one is only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&file, PIPE_LEN);
    if file.metadata()?.is_file() {
        keep_access_time(&file);
    }
    Ok(file)
}

/// Has reads of an open file leave the time of its last access, if the system
/// lets us have that. The file is not opened again for it: whoever shares the
/// descriptor, as a shell's next command does, shall find it behind what was
/// read here, and not every name of it may be opened.
fn keep_access_time(file: &File) {
    // Who may not have it reads all the same.
    let _ = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::NOATIME));
}

/// A mapped stream as one that goes by. If it is hashed, all of the file goes by.
pub(crate) fn read_once(input: &Input, args: &LayerArgs, origin: &Origin) -> Result<Incoming, Failure> {
    let path = input.path();
    let range = input.range();
    let mut file = input.file().try_clone().map_err(Failure::file(path))?;
    let start = if args.hash.is_some() { 0 } else { range.start };
    file.seek(SeekFrom::Start(start)).map_err(Failure::file(path))?;
    let mut reader = origin.hashing(Box::new(Once { file, done: start }), args);
    skip(path, &mut reader, range.start - start)?;
    Ok(Incoming::new(path, reader.take(range.end - range.start)))
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
    let (input, origin) = match open(args)? {
        Opened::Mapped(input, origin) => (input, origin),
        Opened::Incoming(incoming, origin) => {
            let kept = Kept::new();
            match pass(&args.stream, incoming, &kept) {
                Ok(stream) => return work(&stream, &origin),
                Err(failure) => go_back(&args.stream, &args.layers, failure, &origin)?,
            }
        }
    };
    let bar = progress::is_visible(false);
    channels::with_channels(args, &input, &origin, bar, |stream| work(&stream, &origin))
}

/// Opens the stream again whose reading as it goes by ended in `failure`, if
/// that is because it has to be gone back in.
pub(crate) fn go_back(
    path: &Path,
    args: &LayerArgs,
    failure: Failure,
    origin: &Origin,
) -> Result<(Input, Origin), Failure> {
    // What comes out of a decompressor may be no more than a bomb, and would
    // fill the disk.
    let is_dense = |layer: &Layer| matches!(layer, Layer::Qcow2 { .. } | Layer::Stream);
    let is_unpacked = || origin.size.is_some() && origin.layers.0.iter().all(is_dense);
    if !(failure.is_gone_by() || failure.is_too_much_to_keep() && is_unpacked()) {
        return Err(failure);
    }
    if origin.size.is_some() {
        return open_mapped(path, args, "this", false);
    }
    let text =
        format!("{failure}; this is {}, from a pipe: write it to a file first, and give that", origin.layers);
    Err(Failure::Other(text))
}

/// Walks a stream that goes by for all but its pages.
pub(crate) fn pass<'k>(path: &Path, incoming: Incoming, kept: &'k Kept) -> Result<Stream<'k>, Failure> {
    let pass = |progress: &Progress| Stream::read_once(incoming, kept, progress, &mut ());
    progress::pass(progress::is_visible(false), pass).map_err(Failure::input(path))
}
