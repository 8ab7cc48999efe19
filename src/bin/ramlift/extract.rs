//! `ramlift extract`: RAM images and device state into a directory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ramlift::{BlockFiles, BlockId, Input, Progress, Ram, Stream, image_len, scatter};
use serde::Serialize;

use crate::args::{ExtractArgs, SharedFile};
use crate::block_devices::{self, BlockDeviceEntry};
use crate::exit::{Exit, Failure};
use crate::info::{self, Coverage, Doubtful, Lost, Source};
use crate::output::Staging;
use crate::paths::BlockPaths;
use crate::state::{Chosen, write_report};
use crate::{channels, progress, terminal};

pub(crate) const STATE: &str = "state.json";
pub(crate) const DESC: &str = "desc.json";
pub(crate) const MANIFEST: &str = "manifest.json";

/// `manifest.json`.
#[derive(Serialize)]
struct Manifest {
    ramlift: &'static str,
    source: Source,
    machine: Option<String>,
    pages_per_pass: Vec<u64>,
    blocks: Vec<BlockEntry>,
    block_devices: Vec<BlockDeviceEntry>,
    salvaged: bool,
    lost: Vec<Lost>,
    doubtful_pages: Vec<Doubtful>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct BlockEntry {
    idstr: String,
    file: Option<String>,
    used_length: u64,
    page_size: u64,
    #[serde(flatten)]
    coverage: Coverage,
    status: Status,
}

/// How much of a block is in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// Every page.
    Complete,
    /// Some pages; the others are zero in the image.
    Partial,
    /// No page: there is no image.
    Absent,
}

impl Status {
    fn of(ram: &Ram<'_>, id: BlockId) -> Self {
        let pages = ram.block(id).map_or(0, |block| ram.page_size().pages_in(block.used_length));
        match ram.absent_pages(id) {
            0 => Self::Complete,
            absent if absent == pages => Self::Absent,
            _ => Self::Partial,
        }
    }
}

pub(crate) fn run(args: &ExtractArgs) -> Result<Exit, Failure> {
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = args.threads {
        pool = pool.num_threads(threads.into());
    }
    let pool = pool.build().map_err(|error| Failure::Other(format!("threads: {error}")))?;
    let bar = progress::is_visible(args.quiet);
    pool.install(|| {
        let shared = args.shared_files.iter().map(open_shared).collect::<Result<Vec<_>, _>>()?;
        channels::with_stream(&args.source, bar, |input, stream| {
            let mut stream = stream;
            stream.check_whole().map_err(Failure::input(input.path()))?;
            supply_shared(input.path(), &mut stream, &shared)?;
            extract(args, input, &stream, bar)
        })
    })
}

fn extract(args: &ExtractArgs, input: &Input, stream: &Stream<'_>, bar: bool) -> Result<Exit, Failure> {
    let path = &args.source.stream;
    let blocks = choose_blocks(path, stream, &args.blocks)?;
    let target = args.output.clone().map_or_else(|| default_target(path), Ok)?;
    let mut staging = Staging::new(&target, args.force, path)?;
    name_earlier_files(&mut staging);
    let images = write_images(&mut staging, stream, &blocks, bar)?;
    let block_devices = block_devices::write(&mut staging, stream, args.block_devices)?;
    let mut warnings = info::warnings(stream);
    warnings.extend(block_devices.warning);
    warnings.extend(write_state(&mut staging, stream)?);
    let entries = block_entries(stream, &blocks, &images);
    // A device that QEMU described wrongly is whole in the stream, and its
    // bytes are in state.json: the output is as complete as the stream is.
    let is_partial = entries.iter().any(|entry| entry.status == Status::Absent)
        || stream.warnings().iter().any(|warning| warning.is_loss);
    let manifest = Manifest {
        ramlift: env!("CARGO_PKG_VERSION"),
        source: Source::of(path, input),
        machine: stream.configuration().map(|configuration| configuration.machine.to_string()),
        pages_per_pass: stream.ram().map(|ram| ram.pages_per_pass().to_vec()).unwrap_or_default(),
        blocks: entries,
        block_devices: block_devices.entries,
        salvaged: info::is_salvaged(stream),
        lost: info::lost(stream),
        doubtful_pages: info::doubtful_pages(stream),
        warnings,
    };
    staging.write(MANIFEST, |out| terminal::write_json(out, &manifest))?;
    staging.commit()?;
    let passes = stream.ram().map_or(0, Ram::pass_count);
    report(args, &target, &manifest, passes)?;
    Ok(Exit::of(is_partial))
}

/// The directory for a stream, if none is given: in the current directory,
/// because evidence is often where nothing can be written.
fn default_target(path: &Path) -> Result<PathBuf, Failure> {
    let mut name = path
        .file_name()
        .ok_or_else(|| Failure::Other(format!("{}: has no file name; give -o DIR", path.display())))?
        .to_owned();
    name.push(".extracted");
    Ok(PathBuf::from(name))
}

/// The blocks asked for: all, or those of the names given.
fn choose_blocks(path: &Path, stream: &Stream<'_>, names: &[String]) -> Result<Vec<BlockId>, Failure> {
    let Some(ram) = stream.ram() else {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        return Err(Failure::Other(format!("{}: the stream has no RAM", path.display())));
    };
    if names.is_empty() {
        return Ok(ram.blocks().map(|(id, ..)| id).collect());
    }
    let is_named = |name: &String, block: &ramlift::RamBlock| {
        block.idstr == name.as_str() || block.idstr.to_string() == *name
    };
    for name in names {
        if !ram.blocks().any(|(_, block, _)| is_named(name, block)) {
            let known: Vec<String> =
                ram.blocks().take(20).map(|(_, block, _)| block.idstr.to_string()).collect();
            let text = format!("{}: no RAM block \"{name}\"; there are {}", path.display(), known.join(", "));
            return Err(Failure::Other(text));
        }
    }
    let is_chosen = |block: &ramlift::RamBlock| names.iter().any(|name| is_named(name, block));
    Ok(ram.blocks().filter(|(_, block, _)| is_chosen(block)).map(|(id, ..)| id).collect())
}

/// A RAM block's name and the file that it was shared through.
type Shared = (String, Input);

fn open_shared(file: &SharedFile) -> Result<Shared, Failure> {
    Ok((file.idstr.clone(), channels::open(&file.path)?))
}

/// Gives the stream the blocks that it does not have itself.
fn supply_shared<'a>(path: &Path, stream: &mut Stream<'a>, files: &'a [Shared]) -> Result<(), Failure> {
    for (idstr, file) in files {
        let ids = choose_blocks(path, stream, std::slice::from_ref(idstr))?;
        for id in ids {
            let is_absent = stream.ram().is_some_and(|ram| Status::of(ram, id) == Status::Absent);
            if !is_absent {
                let text = format!("--shared-file: RAM block \"{idstr}\" is in the stream itself");
                return Err(Failure::Other(text));
            }
            stream.supply(id, file.bytes()).map_err(Failure::input(file.path()))?;
        }
    }
    Ok(())
}

/// Names the files of an extraction that was there before, by its manifest:
/// two streams' files must not be mixed.
fn name_earlier_files(staging: &mut Staging) {
    let Some(manifest) = staging.read_earlier(MANIFEST) else { return };
    let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(&manifest) else { return };
    let listed = |key| manifest.get(key).and_then(serde_json::Value::as_array).into_iter().flatten();
    let images = listed("blocks").chain(listed("block_devices"));
    for file in images.filter_map(|block| block.get("file")?.as_str()) {
        staging.replaces(file);
    }
    staging.replaces(DESC);
}

/// Writes the images of `blocks`. Gives the path of each, in the same order;
/// none where the stream has no page of it.
fn write_images(
    staging: &mut Staging,
    stream: &Stream<'_>,
    blocks: &[BlockId],
    bar: bool,
) -> Result<Vec<Option<String>>, Failure> {
    let Some(ram) = stream.ram() else { return Ok(Vec::new()) };
    // Names are given to all blocks, so that a block's file has the same name
    // whichever blocks are asked for.
    let mut paths = BlockPaths::with_reserved(&[STATE, DESC, MANIFEST]);
    let names: Vec<String> = ram.blocks().map(|(_, block, _)| paths.assign(&block.idstr)).collect();
    let mut files = Vec::new();
    let mut images = Vec::new();
    for id in blocks {
        let name = names.get(id.0).filter(|_| Status::of(ram, *id) != Status::Absent);
        if let Some(name) = name {
            files.push((*id, staging.file(name)?));
        }
        images.push(name.cloned());
    }
    let written: Vec<BlockId> = files.iter().map(|(id, _)| *id).collect();
    let write = |progress: &Progress| {
        let sink = BlockFiles::create(ram, files)?;
        scatter(ram, &written, &sink, progress)
    };
    let done = progress::watch(bar, "writing", image_len(ram, &written), write);
    done.map_err(|error| Failure::Other(staging.shown(&Failure::from(error).to_string())))?;
    Ok(images)
}

/// Writes the description and the decoded devices. Gives a warning for each
/// device that is described but could not be decoded.
fn write_state(staging: &mut Staging, stream: &Stream<'_>) -> Result<Vec<String>, Failure> {
    if let Some(description) = stream.description() {
        staging.write(DESC, |out| out.write_all(description.text).and_then(|()| writeln!(out)))?;
    }
    let mut failures = Vec::new();
    staging.write(STATE, |out| {
        failures = write_report(out, stream, Chosen::all(stream))?;
        Ok(())
    })?;
    // Without a description one warning of the walk says it of all of them.
    failures.retain(|_| stream.description().is_some());
    Ok(failures.iter().map(|failure| format!("not decoded: {failure}")).collect())
}

fn block_entries(stream: &Stream<'_>, blocks: &[BlockId], images: &[Option<String>]) -> Vec<BlockEntry> {
    let Some(ram) = stream.ram() else { return Vec::new() };
    let entry = |(id, file): (&BlockId, &Option<String>)| {
        let (block, pages) = (ram.block(*id)?, ram.pages(*id)?);
        Some(BlockEntry {
            idstr: block.idstr.to_string(),
            file: file.clone(),
            used_length: block.used_length,
            page_size: ram.page_size().bytes(),
            coverage: Coverage::of(stream, *id, pages),
            status: Status::of(ram, *id),
        })
    };
    blocks.iter().zip(images).filter_map(entry).collect()
}

/// Says what was written, and what was odd.
fn report(args: &ExtractArgs, target: &Path, manifest: &Manifest, passes: u64) -> Result<(), Failure> {
    for warning in &manifest.warnings {
        terminal::say(format_args!("warning: {warning}"));
    }
    if args.quiet {
        return Ok(());
    }
    let mut out = terminal::stdout();
    let files = manifest.blocks.iter().filter_map(|block| Some((block.used_length, block.file.as_ref()?)));
    let files = files.chain(manifest.block_devices.iter().map(|device| (device.length, &device.file)));
    for (len, file) in files {
        writeln!(out, "{:>14} bytes  {}", len, target.join(file).display()).map_err(Failure::stdout)?;
    }
    let count = manifest.blocks.iter().filter(|block| block.file.is_some()).count();
    writeln!(out, "{}: {count} RAM images, device state, manifest", target.display())
        .map_err(Failure::stdout)?;
    if args.source.salvage {
        write_coverage(&mut out, manifest, passes).map_err(Failure::stdout)?;
    }
    terminal::finish(out)
}

fn write_coverage(out: &mut impl Write, manifest: &Manifest, passes: u64) -> io::Result<()> {
    Coverage::write_head(out, &manifest.pages_per_pass, passes)?;
    let blocks = &manifest.blocks;
    blocks.iter().try_for_each(|block| block.coverage.write_line(out, block.used_length, &block.idstr))
}
