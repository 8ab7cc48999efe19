//! What a stream is inside of: found out layer by layer, from the outside in.
//!
//! As long as a layer leaves the bytes of the next as they are, and in a row, the
//! file is mapped from there on. From the first that does not, a compressed one
//! or scattered clusters, the stream is read as it goes by.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ramlift::wrapper::compression::Compression;
use ramlift::wrapper::libvirt::{Format, SaveImage};
use ramlift::wrapper::qcow2::{ImageFile, Qcow2, RunSource, Snapshot, VmState};
use ramlift::wrapper::{Bounded, Chain, Layer, PREFIX_LEN, compression, detect, error_of};
use ramlift::{Incoming, Input, StreamOffset};
use rustix::fs::{SeekFrom as SystemSeek, seek};
use rustix::io::Errno;

use crate::args::LayerArgs;
use crate::evidence::{self, Passing, Reader};
use crate::exit::Failure;
use crate::temporary::Bound;
use crate::{inputs, spool};

/// Layers that are opened; more are nobody's work.
const DEPTH: usize = 8;

/// Bytes of an unpacked stream that are read at a time.
const UNPACKED_LEN: usize = 4 << 20;

/// What any input may unpack to, in bytes.
const UNPACKED_LEAST: u64 = 1 << 30;

/// How many times its own length an input may unpack to, beside that: zstd makes
/// blocks of 128 KiB zeros into 4 bytes. bzip2 could make them into less, but no
/// guest's stream is zeros alone.
const UNPACKED_TIMES: u64 = 32 << 10;

/// A hole that neither packed data has nor a stream that is read as it goes by.
const HOLE_LEN: u64 = 1 << 30;

/// A stream, as it can be had.
pub(crate) enum Bytes {
    /// Mapped: they can be gone back to.
    Mapped(Input),
    /// They come once.
    Incoming(Incoming),
    /// Those of a snapshot, here and there in its image.
    Scattered(Scattered),
}

/// One image a run of the command, read by a thread that outlives its opener.
pub(crate) type Scattered = &'static VmState<&'static ImageFile>;

/// A stream, and what it was inside of.
pub(crate) struct Unwrapped {
    pub(crate) bytes: Bytes,
    pub(crate) origin: Origin,
}

/// What a stream was inside of.
#[derive(Default)]
pub(crate) struct Origin {
    /// The layers, the stream itself included.
    pub(crate) layers: Chain,
    /// libvirt's description of the guest.
    pub(crate) domain_xml: Option<Vec<u8>>,
    /// The snapshot that the stream is of.
    pub(crate) snapshot: Option<Snapshot>,
    /// The length of the file, if it is one.
    pub(crate) size: Option<u64>,
    /// What stands behind all that could be unpacked, and is no part of it.
    pub(crate) behind: Option<ramlift::Error>,
    /// Whether a layer could be unpacked only in part.
    pub(crate) is_damaged: bool,
    /// What is odd about the layers.
    pub(crate) warnings: Vec<String>,
    /// The hash of the input, if it comes once and is to be hashed.
    pub(crate) passing: RefCell<Option<Passing>>,
}

/// Opens the layers of `file`.
pub(crate) fn unwrap_file(path: &Path, mut file: File, args: &LayerArgs) -> Result<Unwrapped, Failure> {
    let size = file.seek(SeekFrom::End(0)).map_err(Failure::file(path))?;
    if args.offset > 0 && args.offset >= size {
        return Err(ends_before(path, args.offset, size));
    }
    let origin = Origin { size: Some(size), ..Origin::default() };
    unwrap_range(path, file, args.offset..size, args, origin)
}

/// Opens the layers that begin in a range of `file`, in those of `origin`.
fn unwrap_range(
    path: &Path,
    mut file: File,
    mut range: Range<u64>,
    args: &LayerArgs,
    mut origin: Origin,
) -> Result<Unwrapped, Failure> {
    let size = range.end;
    while origin.layers.0.len() < DEPTH {
        let prefix = read_prefix(&mut file, range.start).map_err(Failure::file(path))?;
        let layer = detect(prefix.get(to_len(&range)).unwrap_or(&prefix));
        match layer {
            Layer::Libvirt { .. } => {
                let image =
                    SaveImage::read(&mut rest_of(path, &file, &range)?).map_err(Failure::layer(path))?;
                origin.add_libvirt(&image);
                range.start = range.start.saturating_add(image.stream_offset()).min(size);
                if !matches!(image.format, Format::Raw | Format::Sparse) {
                    let rest = packed(path, &file, range, &mut origin)?;
                    return unwrap_reader(path, open_image_stream(&image, rest), args, origin);
                }
            }
            Layer::Qcow2 { .. } if range.start == 0 => {
                let clone = file.try_clone().map_err(Failure::file(path))?;
                let state = open_snapshot(path, clone, args, &mut origin)?;
                match in_a_row(path, state)? {
                    Some(row) => range = row,
                    None if is_stream(path, state)? => {
                        origin.layers.0.push(Layer::Stream);
                        return Ok(Unwrapped { bytes: Bytes::Scattered(state), origin });
                    }
                    None => return unwrap_reader(path, Box::new(dense(state)), args, origin),
                }
            }
            Layer::Compressed(compression) => {
                origin.layers.0.push(layer);
                let rest = packed(path, &file, range, &mut origin)?;
                return unwrap_reader(path, decoder(compression, rest), args, origin);
            }
            layer => {
                origin.layers.0.push(layer);
                let input = Input::of_range(path, &file, range).map_err(Failure::input(path))?;
                return Ok(Unwrapped { bytes: Bytes::Mapped(input), origin });
            }
        }
    }
    Err(too_deep(path, &origin))
}

/// Opens the layers of what comes out of `reader`.
pub(crate) fn unwrap_reader(
    path: &Path,
    mut reader: Reader,
    args: &LayerArgs,
    mut origin: Origin,
) -> Result<Unwrapped, Failure> {
    while origin.layers.0.len() < DEPTH {
        let mut prefix = Vec::new();
        let fail = |error| Failure::input(path)(error_of(error, path));
        (&mut reader).take(PREFIX_LEN as u64).read_to_end(&mut prefix).map_err(fail)?;
        let layer = detect(&prefix);
        reader = Box::new(Cursor::new(prefix).chain(reader));
        match layer {
            Layer::Libvirt { .. } => {
                let image = SaveImage::read(&mut reader).map_err(Failure::layer(path))?;
                origin.add_libvirt(&image);
                reader = open_image_stream(&image, reader);
            }
            Layer::Compressed(compression) => {
                origin.layers.0.push(layer);
                reader = decoder(compression, reader);
            }
            // To be read here and there; of a file, what it unpacks to can be.
            Layer::Qcow2 { .. } if origin.size.is_some() => {
                let mut file = spool::unpack_file(path, reader, Bound::new(args.max_temp))?;
                let size = file.seek(SeekFrom::End(0)).map_err(Failure::file(path))?;
                return unwrap_range(path, file, 0..size, args, origin);
            }
            Layer::Qcow2 { .. } => {
                origin.layers.0.push(layer);
                let text = "a qcow2 image is read here and there, and this one comes as it goes by: write it to a file first, and give that";
                return Err(Failure::Other(format!("{}: this is {}: {text}", path.display(), origin.layers)));
            }
            layer => {
                origin.layers.0.push(layer);
                let incoming = Incoming::new(path, reader);
                // Decoders take memory too: what they leave of it.
                let is_bare = origin.layers.0.len() == 1;
                let incoming = if is_bare { incoming } else { incoming.with_chunk_len(UNPACKED_LEN) };
                return Ok(Unwrapped { bytes: Bytes::Incoming(incoming), origin });
            }
        }
    }
    Err(too_deep(path, &origin))
}

impl Origin {
    /// A reader of what `reader` reads of the input, which hashes it if
    /// `args` say so.
    pub(crate) fn hashing(&self, reader: Reader, args: &LayerArgs) -> Reader {
        let Some(algorithm) = args.hash else { return reader };
        let (reader, passing) = evidence::hashing(reader, algorithm);
        self.passing.replace(Some(passing));
        reader
    }

    fn add_libvirt(&mut self, image: &SaveImage) {
        if image.interrupted {
            let text = "libvirt never finished this save image: the stream may be cut";
            self.warnings.push(text.to_owned());
        }
        self.layers.0.push(image.layer());
        self.domain_xml = Some(image.xml.clone());
    }
}

/// What `packed` unpacks to.
fn decoder(compression: Compression, packed: impl Read + Send + 'static) -> Reader {
    bounded(compression::decoder(compression, packed, StreamOffset(0)))
}

/// The stream in a save image, whose header has been read from `rest`.
fn open_image_stream(image: &SaveImage, rest: impl Read + Send + 'static) -> Reader {
    let stream = image.open(rest, StreamOffset(image.stream_offset()));
    if image.format == Format::Raw { stream } else { bounded(stream) }
}

/// What is unpacked, up to what the inputs can honestly become. To go over zeros
/// takes time too, though they take no room.
fn bounded(unpacked: Reader) -> Reader {
    Box::new(Bounded::new(unpacked, || {
        UNPACKED_TIMES.saturating_mul(inputs::len()).saturating_add(UNPACKED_LEAST)
    }))
}

/// The failure of something that is no longer than `len` to have anything at
/// `offset`.
pub(crate) fn ends_before(path: &Path, offset: u64, len: u64) -> Failure {
    Failure::Other(format!("{}: --offset {offset:#x} is behind its end, at {len:#x}", path.display()))
}

fn too_deep(path: &Path, origin: &Origin) -> Failure {
    Failure::Other(format!("{}: more than {DEPTH} layers: {}", path.display(), origin.layers))
}

fn to_len(range: &Range<u64>) -> std::ops::RangeTo<usize> {
    ..usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}

fn read_prefix(file: &mut File, at: u64) -> io::Result<Vec<u8>> {
    let mut prefix = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(PREFIX_LEN as u64).read_to_end(&mut prefix)?;
    Ok(prefix)
}

/// The bytes of a range of a file, from its start on.
fn rest_of(path: &Path, file: &File, range: &Range<u64>) -> Result<io::Take<File>, Failure> {
    let mut file = file.try_clone().map_err(Failure::file(path))?;
    file.seek(SeekFrom::Start(range.start)).map_err(Failure::file(path))?;
    Ok(file.take(range.end - range.start))
}

/// The packed bytes that begin a range of a file, up to a hole that nothing packed
/// has. Anybody can make a file of terabytes that are none.
fn packed(
    path: &Path,
    file: &File,
    mut range: Range<u64>,
    origin: &mut Origin,
) -> Result<io::Take<File>, Failure> {
    let hole = dense_end(file, &range)..range.end;
    range.end = hole.start;
    if seek(file, SystemSeek::Data(hole.start)).is_ok_and(|data| data < hole.end) {
        let text = "a hole in the midst of packed data: what is behind it in the file is not looked at";
        origin.warnings.push(format!("at {} of the file: {text}", StreamOffset(hole.start)));
    }
    rest_of(path, file, &range)
}

/// Where in a range of a file there is no data for a long way, or its end.
fn dense_end(file: &File, range: &Range<u64>) -> u64 {
    let is_sparse = |file: &Metadata| file.is_file() && file.blocks().saturating_mul(512) < file.len();
    if !file.metadata().is_ok_and(|file| is_sparse(&file)) {
        return range.end;
    }
    let mut data = range.start;
    while let Ok(hole) = seek(file, SystemSeek::Hole(data))
        && hole < range.end
    {
        let next = match seek(file, SystemSeek::Data(hole)) {
            Ok(next) => next.min(range.end),
            Err(Errno::NXIO) => range.end,
            Err(_) => break,
        };
        if next - hole >= HOLE_LEN {
            return hole;
        }
        data = next;
    }
    range.end
}

/// Opens an image's snapshots.
pub(crate) fn open_image(path: &Path, file: File) -> Result<Qcow2<ImageFile>, Failure> {
    let file = ImageFile::new(file).map_err(Failure::file(path))?;
    Qcow2::open(file).map_err(Failure::layer(path))
}

/// The VM state of the snapshot that is asked for, or the only one.
fn open_snapshot(
    path: &Path,
    file: File,
    args: &LayerArgs,
    origin: &mut Origin,
) -> Result<Scattered, Failure> {
    let image: &'static Qcow2<ImageFile> = Box::leak(Box::new(open_image(path, file)?));
    let snapshot = choose(path, image, args.snapshot.as_deref())?;
    let state = image.vm_state(snapshot).map_err(Failure::layer(path))?;
    if image.is_corrupt() {
        let text = "QEMU has marked this image corrupt: clusters may have been written over";
        origin.warnings.push(text.to_owned());
    }
    origin.layers.0.push(Layer::Qcow2 { snapshot: Some(snapshot.name.clone()) });
    origin.snapshot = Some(snapshot.clone());
    Ok(Box::leak(Box::new(state)))
}

fn choose<'i>(path: &Path, image: &'i Qcow2<ImageFile>, name: Option<&str>) -> Result<&'i Snapshot, Failure> {
    if let Some(name) = name {
        // Nothing is damaged, so nothing is to be salvaged.
        let unknown = |error| Failure::Other(format!("{}: {error}", path.display()));
        return image.find(name.as_bytes()).map_err(unknown);
    }
    let mut with_state = image.snapshots().iter().filter(|snapshot| snapshot.vm_state_size > 0);
    match (with_state.next(), with_state.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Failure::Other(format!(
            "{}: no snapshot of this qcow2 image has VM state; snapshots of the disk alone: {}",
            path.display(),
            image.snapshots().len()
        ))),
        _ => {
            const SHOWN: usize = 16;
            let names: Vec<String> = image.snapshots().iter().take(SHOWN).map(ToString::to_string).collect();
            Err(Failure::Other(format!(
                "{}: a qcow2 image with several snapshots: choose one by --snapshot ID|TAG: {}",
                path.display(),
                names.join(", ")
            )))
        }
    }
}

/// Where in the file a VM state is, if all of it stands there in a row.
fn in_a_row(path: &Path, state: Scattered) -> Result<Option<Range<u64>>, Failure> {
    let mut runs = state.runs();
    let first = runs.next().transpose().map_err(Failure::input(path))?;
    Ok(first.and_then(|run| match run.source {
        RunSource::File(start) if run.len == state.len() => Some(start..start.checked_add(run.len)?),
        _ => None,
    }))
}

/// Whether a VM state is a stream, and not another layer.
fn is_stream(path: &Path, state: Scattered) -> Result<bool, Failure> {
    let mut prefix = Vec::new();
    let fail = |error| Failure::input(path)(error_of(error, path));
    state.reader().take(PREFIX_LEN as u64).read_to_end(&mut prefix).map_err(fail)?;
    Ok(detect(&prefix) == Layer::Stream)
}

/// A VM state from its start on, to be read as it goes by: up to a hole that
/// no stream has which can be read so. Tables can claim 2⁶¹ bytes of zeros.
pub(crate) fn dense(state: Scattered) -> impl Read + Send {
    let mut runs = state.runs().map_while(Result::ok);
    let hole = runs.find(|run| run.source == RunSource::Zeros && run.len >= HOLE_LEN);
    state.reader().take(hole.map_or(u64::MAX, |hole| hole.at))
}
