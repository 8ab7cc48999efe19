//! A stream with its channels, if it is the main channel of a multifd migration:
//! those are read, and unpacked where they are compressed, since such pages
//! cannot be had one by one.

use std::io::{BufWriter, Write};
use std::path::Path;

use ramlift::{Channel, ChannelPages, Input, MultifdCompression, Ram, Stream, TargetPageSize};
use rayon::prelude::*;

use crate::args::SourceArgs;
use crate::exit::Failure;
use crate::layers::Origin;
use crate::temporary::{self, Bound, Temporary};
use crate::{inputs, progress};

/// Bytes of pages that are written at a time.
const WRITE_LEN: usize = 1 << 20;

/// Walks the stream in `input`, which `args` name and `origin` tells of, and
/// hands it on with the pages of its channels.
pub(crate) fn with_channels<T>(
    args: &SourceArgs,
    input: &Input,
    origin: &Origin,
    bar: bool,
    then: impl FnOnce(Stream<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let channels = args.channels.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut stream = progress::index_or_salvage(input, bar, args.salvage)?;
    let page_size = stream.ram().map(Ram::page_size);
    let unpacked = unpack_all(&channels, page_size, Bound::new(args.layers.max_temp))?;
    if !channels.is_empty() {
        stream.join(&pages(&channels, &unpacked)).map_err(Failure::layer(input.path()))?;
    }
    if let Some(failure) = &origin.behind {
        stream.warn_behind(failure);
    }
    then(stream)
}

/// Opens a file that is named on the command line.
pub(crate) fn open(path: &Path) -> Result<Input, Failure> {
    let input = Input::open(path).map_err(Failure::input(path))?;
    inputs::remember(path, input.file()).map_err(Failure::file(path))?;
    Ok(input)
}

/// A channel, and the file of its pages if they are compressed.
struct Unpacked<'i> {
    channel: Channel<'i>,
    spool: Option<Input>,
}

/// Reads the channels in `inputs`, and unpacks them in parallel. What is
/// unpacked is in temporary files: as much as the channels hold pages.
fn unpack_all(
    inputs: &[Input],
    page_size: Option<TargetPageSize>,
    bound: Bound,
) -> Result<Vec<Unpacked<'_>>, Failure> {
    let Some(page_size) = page_size.filter(|_| !inputs.is_empty()) else { return Ok(Vec::new()) };
    inputs.par_iter().map(|input| unpack(input, page_size, bound)).collect()
}

fn unpack(input: &Input, page_size: TargetPageSize, bound: Bound) -> Result<Unpacked<'_>, Failure> {
    let path = input.path();
    let channel = Channel::parse(input.bytes(), page_size).map_err(Failure::layer(path))?;
    if channel.compression() == MultifdCompression::None || channel.unpacked_len() == 0 {
        return Ok(Unpacked { channel, spool: None });
    }
    let fail = |refused| temporary::failure(path, &refused);
    let mut temporary = Temporary::new(bound, Some(channel.unpacked_len())).map_err(fail)?;
    // Packets are of few pages as well.
    let mut writer = BufWriter::with_capacity(WRITE_LEN, &mut temporary);
    let unpacked = channel.unpack(&mut writer, path);
    let flushed = unpacked.and_then(|()| writer.flush().map_err(|source| ramlift::Error::io(path, source)));
    // What it could not write is nothing to try again when it is dropped.
    drop(writer.into_parts());
    flushed.map_err(|error| {
        temporary::failure_of(&error, path).unwrap_or_else(|| Failure::layer(path)(error))
    })?;
    let dir = temporary.dir().to_owned();
    let file = temporary.finish().map_err(fail)?;
    let spool = Some(Input::of_file(dir, &file).map_err(Failure::input(path))?);
    Ok(Unpacked { channel, spool })
}

/// The pages of all channels.
fn pages<'i>(inputs: &'i [Input], unpacked: &'i [Unpacked<'i>]) -> Vec<ChannelPages<'i>> {
    let channels = inputs.iter().zip(unpacked);
    channels
        .map(|(input, unpacked)| ChannelPages {
            channel: unpacked.channel,
            pages: unpacked.spool.as_ref().unwrap_or(input).bytes(),
        })
        .collect()
}
