//! `ramlift extract --block-devices`: images of block devices whose content is
//! in the stream.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ramlift::{BlockDevice, Error, Idstr, Stream, create_new};
use serde::Serialize;

use crate::exit::Failure;
use crate::extract::{DESC, STATE};
use crate::manifest::MANIFEST;
use crate::output::Staging;
use crate::paths::BlockPaths;

/// The directory of the images.
const DIRECTORY: &str = "block/";

/// Bytes that are left out of an image if all of them are zero.
const HOLE_LEN: usize = 64 << 10;

/// A device in `manifest.json`.
#[derive(Serialize)]
pub(crate) struct BlockDeviceEntry {
    name: String,
    pub(crate) file: String,
    /// What the chunks prove: a whole number of MiB.
    pub(crate) length: u64,
    /// Positions whose last chunk holds data, and those where it is zero.
    data_chunks: usize,
    zero_chunks: usize,
    /// Positions that no chunk is of: zero in the image.
    absent_chunks: u64,
}

/// What has become of the devices in the stream.
#[derive(Default)]
pub(crate) struct Written {
    pub(crate) entries: Vec<BlockDeviceEntry>,
    /// That there are some, and they were not asked for.
    pub(crate) warning: Option<String>,
}

/// Writes an image of each device in the stream, if that is asked for.
pub(crate) fn write(
    staging: &mut Staging,
    stream: &Stream<'_>,
    is_asked_for: bool,
) -> Result<Written, Failure> {
    each(stream, is_asked_for, |device, file| {
        let path = staging.file(file)?;
        let chunks = device.last_chunks().iter().filter(|chunk| chunk.data.is_some()).count() as u64;
        staging.spend(chunks.saturating_mul(ramlift::BLOCK_LEN))?;
        let done = write_image(device, &path).map_err(|source| Failure::from(Error::io(&path, source)));
        done.map_err(|failure| failure.map_text(|text| staging.shown(text)))
    })
}

/// Has `take` take each device in the stream with its image's name, if that is
/// asked for.
pub(crate) fn each(
    stream: &Stream<'_>,
    is_asked_for: bool,
    mut take: impl FnMut(&BlockDevice<'_>, &str) -> Result<(), Failure>,
) -> Result<Written, Failure> {
    let Some(block) = stream.iterated().find(|iterated| iterated.handler().idstr == "block") else {
        return Ok(Written::default());
    };
    let devices = block.block_devices().map_err(Failure::from)?;
    if !is_asked_for {
        let count = devices.iter().count();
        let text = format!(
            "the content of {count} block devices is in the stream; --block-devices writes images of it"
        );
        return Ok(Written { warning: (count > 0).then_some(text), ..Written::default() });
    }
    let mut paths = paths_behind_blocks(stream);
    let mut entries = Vec::new();
    for device in devices.iter() {
        let file = paths.assign(&Idstr::from([DIRECTORY.as_bytes(), device.name].concat().as_slice()));
        take(device, &file)?;
        entries.push(entry(device, file));
    }
    Ok(Written { entries, warning: None })
}

/// The paths that are left when all RAM blocks have theirs.
fn paths_behind_blocks(stream: &Stream<'_>) -> BlockPaths {
    let mut paths = BlockPaths::with_reserved(&[STATE, DESC, MANIFEST]);
    for (_, block, _) in stream.ram().into_iter().flat_map(|ram| ram.blocks()) {
        paths.assign(&block.idstr);
    }
    paths
}

fn entry(device: &BlockDevice<'_>, file: String) -> BlockDeviceEntry {
    let chunks = device.last_chunks();
    let length = device.proven_len();
    let data_chunks = chunks.iter().filter(|chunk| chunk.data.is_some()).count();
    BlockDeviceEntry {
        name: Idstr::from(device.name).to_string(),
        file,
        length,
        data_chunks,
        zero_chunks: chunks.len() - data_chunks,
        absent_chunks: length / ramlift::BLOCK_LEN - chunks.len() as u64,
    }
}

/// Writes a new file: of each position its last chunk, but for zeros.
fn write_image(device: &BlockDevice<'_>, path: &Path) -> std::io::Result<()> {
    let image: File = create_new(path)?;
    image.set_len(device.proven_len())?;
    pieces(device).try_for_each(|(at, piece)| image.write_all_at(piece, at))
}

/// What an image of the device holds other than zeros, and where.
pub(crate) fn pieces<'d>(device: &BlockDevice<'d>) -> impl Iterator<Item = (u64, &'d [u8])> {
    let chunks = device.last_chunks().into_iter();
    let pieces = chunks.flat_map(|chunk| {
        let at = move |nth: usize| chunk.position + (nth * HOLE_LEN) as u64;
        let pieces = chunk.data.into_iter().flat_map(|data| data.chunks(HOLE_LEN));
        pieces.enumerate().map(move |(nth, piece)| (at(nth), piece))
    });
    pieces.filter(|(_, piece)| piece.iter().any(|byte| *byte != 0))
}
