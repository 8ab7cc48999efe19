//! A stream with its channels, if it is the main channel of a multifd migration:
//! those are read, and unpacked where they are compressed, since such pages
//! cannot be had one by one.

use std::io::BufWriter;
use std::path::Path;

use ramlift::{Channel, ChannelPages, Input, MultifdCompression, Ram, Stream, TargetPageSize};
use rayon::prelude::*;

use crate::args::SourceArgs;
use crate::exit::Failure;
use crate::{inputs, progress};

/// Walks the stream in `input`, which `args` name, and hands it on with the
/// pages of its channels.
pub(crate) fn with_channels<T>(
    args: &SourceArgs,
    input: &Input,
    bar: bool,
    then: impl FnOnce(Stream<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let channels = args.channels.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut stream = progress::index_or_salvage(input, bar, args.salvage)?;
    let page_size = stream.ram().map(Ram::page_size);
    let unpacked = unpack_all(&channels, page_size)?;
    if !channels.is_empty() {
        stream.join(&pages(&channels, &unpacked)).map_err(Failure::input(input.path()))?;
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
/// unpacked is in files without names, in the system's directory for such
/// (`TMPDIR`): as much as the channels hold pages.
fn unpack_all(inputs: &[Input], page_size: Option<TargetPageSize>) -> Result<Vec<Unpacked<'_>>, Failure> {
    let Some(page_size) = page_size.filter(|_| !inputs.is_empty()) else { return Ok(Vec::new()) };
    inputs.par_iter().map(|input| unpack(input, page_size).map_err(Failure::input(input.path()))).collect()
}

fn unpack(input: &Input, page_size: TargetPageSize) -> ramlift::Result<Unpacked<'_>> {
    let channel = Channel::parse(input.bytes(), page_size)?;
    if channel.compression() == MultifdCompression::None || channel.unpacked_len() == 0 {
        return Ok(Unpacked { channel, spool: None });
    }
    let dir = std::env::temp_dir();
    let fail = |source| ramlift::Error::io(&dir, source);
    let mut file = BufWriter::new(tempfile::tempfile_in(&dir).map_err(fail)?);
    channel.unpack(&mut file, &dir)?;
    let file = file.into_inner().map_err(|error| fail(error.into_error()))?;
    inputs::remember_temporary(&dir, &file).map_err(|source| ramlift::Error::io(&dir, source))?;
    let spool = Some(Input::of_file(dir, &file)?);
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
