//! `ramlift extract`: RAM images and device state into a directory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ramlift::{BlockId, Description, Error, Incoming, Input, Kept, Ram, Stream};

use crate::args::{ExtractArgs, Format, SharedFile};
use crate::evidence::Evidence;
use crate::exit::{Exit, Failure};
use crate::images::{self, Status, Taker, choose_blocks};
use crate::info::Coverage;
use crate::layers::Origin;
use crate::manifest::{self, Content, MANIFEST};
use crate::output::Staging;
use crate::source::{self, Opened};
use crate::state::{Chosen, write_report};
use crate::{block_devices, channels, info, memory, physical, progress, room, terminal};

pub(crate) const STATE: &str = "state.json";
pub(crate) const DESC: &str = "desc.json";
pub(crate) const DOMAIN: &str = "domain.xml";

pub(crate) fn run(args: &mut ExtractArgs) -> Result<Exit, Failure> {
    args.source.layers.hash = args.hash;
    let args = &*args;
    match args.format {
        Format::Blocks if args.vaddr => Err(Failure::Other("--vaddr is for --format elf".to_owned())),
        Format::Blocks if args.layout.is_given() => {
            let text = "--map and --below-4g are for the formats of guest-physical memory: --format elf, lime, avml, kdump or raw";
            Err(Failure::Other(text.to_owned()))
        }
        format if args.compress.is_some() && format != Format::Kdump => {
            Err(Failure::Other("--compress is for --format kdump".to_owned()))
        }
        Format::Blocks => extract(args),
        format => physical::extract(args, format),
    }
}

fn extract(args: &ExtractArgs) -> Result<Exit, Failure> {
    let target = args.output.clone().map_or_else(|| default_target(&args.source.stream, "extracted"), Ok)?;
    let evidence = Evidence::begin(args);
    let job = Job { args, target: &target, evidence: &evidence };
    match source::open(&args.source)? {
        Opened::Mapped(input, origin) if is_to_be_read_once(args, &input) => {
            let incoming = source::read_once(&input, &args.source.layers, &origin)?;
            match extract_incoming(job, incoming, &origin) {
                // What can only be had by going back, like mapped-ram.
                Err(failure) if failure.is_gone_by() || failure.is_too_much_to_keep() => {
                    origin.passing.replace(None);
                    extract_mapped(job, &input, &origin)
                }
                outcome => outcome,
            }
        }
        Opened::Mapped(input, origin) => extract_mapped(job, &input, &origin),
        Opened::Incoming(incoming, origin) => extract_incoming(job, incoming, &origin).or_else(|failure| {
            let source = &args.source;
            let (input, origin) = source::go_back(&source.stream, &source.layers, failure, &origin)?;
            extract_mapped(job, &input, &origin)
        }),
    }
}

/// What is to be done.
#[derive(Clone, Copy)]
struct Job<'j> {
    args: &'j ExtractArgs,
    target: &'j Path,
    evidence: &'j Evidence,
}

/// Whether a file is read as it goes by. To index it first and then go back to
/// its pages reads it twice, if memory cannot keep it and what is written. One
/// of holes above all is not: as it goes by they would be read too.
fn is_to_be_read_once(args: &ExtractArgs, input: &Input) -> bool {
    let is_mostly_data = || input.bytes().len() as u64 / 4 <= input.data_len();
    let is_too_long = || {
        let half = memory::available().map(|len| len / 2);
        half.is_some_and(|half| input.bytes().len() as u64 > half) && is_mostly_data()
    };
    args.read_once || !args.source.salvage && args.source.channels.is_empty() && is_too_long()
}

/// Extracts from a file: the index first, then each page once.
fn extract_mapped(job: Job<'_>, input: &Input, origin: &Origin) -> Result<Exit, Failure> {
    let Job { args, target, evidence } = job;
    let path = input.path();
    evidence.hash_beside(origin)?;
    let bar = progress::is_visible(args.quiet);
    let shared = args.shared_files.iter().map(open_shared).collect::<Result<Vec<_>, _>>()?;
    channels::with_channels(&args.source, input, origin, bar, |stream| {
        let mut stream = stream;
        stream.check_whole().map_err(Failure::input(path))?;
        supply_shared(path, &mut stream, &shared)?;
        let blocks = stream.ram().map(|ram| choose_blocks(path, ram, &args.blocks)).transpose()?;
        let mut staging = Staging::new(target, args.force)?;
        prepare(args, &mut staging);
        if let Some((ram, blocks)) = stream.ram().zip(blocks.as_ref()) {
            let parts = room::whole(blocks);
            staging.spend(room::check(ram, &parts, staging.place(), args.max_output, input)?)?;
        }
        let images = match stream.ram().zip(blocks) {
            Some((ram, blocks)) => images::write(&mut staging, ram, &blocks, input, bar)?,
            None => images::none(path, &args.blocks)?,
        };
        finish(job, staging, &stream, &images, origin)
    })
}

/// Extracts from what goes by: pages are written as they come.
fn extract_incoming(job: Job<'_>, incoming: Incoming, origin: &Origin) -> Result<Exit, Failure> {
    let Job { args, target, evidence } = job;
    evidence.hash_beside(origin)?;
    let path = &args.source.stream;
    let bar = progress::is_visible(args.quiet);
    let shared = args.shared_files.iter().map(open_shared).collect::<Result<Vec<_>, _>>()?;
    let mut staging = Staging::new(target, args.force)?;
    prepare(args, &mut staging);
    let kept = Kept::new();
    let mut taker = Taker::new(&mut staging, path, &args.blocks, args.max_output);
    let passed = progress::pass(bar, |progress| Stream::read_once(incoming, &kept, progress, &mut taker));
    let (mut stream, written) = taker.outcome(passed)?;
    stream.check_whole().map_err(Failure::input(path))?;
    supply_shared(path, &mut stream, &shared)?;
    let images = match stream.ram() {
        Some(ram) => written.settle(&mut staging, ram, &shared)?,
        None => images::none(path, &args.blocks)?,
    };
    finish(job, staging, &stream, &images, origin)
}

/// Makes ready to write.
fn prepare(args: &ExtractArgs, staging: &mut Staging) {
    for manifest in staging.earlier_manifests() {
        if let Ok(manifest) = serde_json::from_slice(&manifest) {
            staging.replaces_files_of(&manifest);
        }
    }
    staging.allow(args.max_output);
    if args.sync {
        staging.sync();
    }
}

/// Writes all that is not RAM, and moves everything to its place.
fn finish(
    job: Job<'_>,
    mut staging: Staging,
    stream: &Stream<'_>,
    images: &[(BlockId, Option<String>)],
    origin: &Origin,
) -> Result<Exit, Failure> {
    let Job { args, target, evidence } = job;
    let block_devices = block_devices::write(&mut staging, stream, args.block_devices)?;
    if let Some(xml) = &origin.domain_xml {
        staging.write(DOMAIN, |out| out.write_all(xml))?;
    }
    let failures = write_state(&mut staging, stream)?;
    let warnings = warnings(stream, origin, block_devices.warning, &failures);
    let mut content = Content::of(args, stream, origin, images, warnings);
    content.block_devices = block_devices.entries;
    // A device that QEMU described wrongly is whole in the stream, and its
    // bytes are in state.json: the output is as complete as the stream is.
    let is_partial = origin.is_damaged
        || content.blocks.iter().any(|entry| entry.status == Status::Absent)
        || stream.warnings().iter().any(|warning| warning.is_loss);
    let text = manifest::make(&content, origin, evidence, staging.files())?;
    staging.write(MANIFEST, |out| out.write_all(&text.bytes))?;
    staging.commit()?;
    let passes = stream.ram().map_or(0, Ram::pass_count);
    let told = report(args, target, &content, passes, text.seal(&target.join(MANIFEST)));
    Failure::of_report(told, target)?;
    Ok(Exit::of(is_partial))
}

/// What there is to warn of. `failures` are those of devices.
pub(crate) fn warnings(
    stream: &Stream<'_>,
    origin: &Origin,
    block_devices: Option<String>,
    failures: &[Error],
) -> Vec<String> {
    let mut warnings = origin.warnings.clone();
    warnings.extend(info::warnings(stream));
    warnings.extend(block_devices);
    // Without a description one warning of the walk says it of all of them.
    let failures = failures.iter().filter(|_| stream.description().is_some());
    warnings.extend(failures.map(|failure| format!("not decoded: {failure}")));
    warnings
}

/// Where a stream goes, if nothing is given: into the current directory,
/// because evidence is often where nothing can be written.
pub(crate) fn default_target(path: &Path, extension: &str) -> Result<PathBuf, Failure> {
    if path == source::STDIN {
        return Ok(PathBuf::from(format!("stdin.{extension}")));
    }
    let mut name = path
        .file_name()
        .ok_or_else(|| Failure::Other(format!("{}: has no file name; give -o PATH", path.display())))?
        .to_owned();
    name.push(".");
    name.push(extension);
    Ok(PathBuf::from(name))
}

/// A RAM block's name and the file that it was shared through.
pub(crate) type Shared = (String, Input);

pub(crate) fn open_shared(file: &SharedFile) -> Result<Shared, Failure> {
    Ok((file.idstr.clone(), channels::open(&file.path)?))
}

/// Gives the stream the blocks that it does not have itself.
pub(crate) fn supply_shared<'a>(
    path: &Path,
    stream: &mut Stream<'a>,
    files: &'a [Shared],
) -> Result<(), Failure> {
    for (idstr, file) in files {
        let Some(ram) = stream.ram() else {
            images::none(path, std::slice::from_ref(idstr)).map(drop)?;
            continue;
        };
        for id in choose_blocks(path, ram, std::slice::from_ref(idstr))? {
            let is_absent = stream.ram().is_some_and(|ram| Status::of(ram, id) == Status::Absent);
            if !is_absent {
                let text = format!("--shared-file: RAM block \"{idstr}\" is in the stream itself");
                return Err(Failure::Other(text));
            }
            stream.supply(id, file).map_err(Failure::input(file.path()))?;
        }
    }
    Ok(())
}

/// Writes the description and the decoded devices. Gives the failures of those
/// that could not be decoded.
fn write_state(staging: &mut Staging, stream: &Stream<'_>) -> Result<Vec<Error>, Failure> {
    if let Some(description) = stream.description() {
        staging.write(DESC, |out| write_description(out, description))?;
    }
    let mut failures = Vec::new();
    staging.write(STATE, |out| {
        failures = write_report(out, stream, Chosen::all(stream))?;
        Ok(())
    })?;
    Ok(failures)
}

/// Writes what `desc.json` has.
pub(crate) fn write_description(out: &mut impl Write, description: &Description<'_>) -> io::Result<()> {
    out.write_all(description.text).and_then(|()| writeln!(out))
}

/// Says what was written, and what was odd.
fn report(
    args: &ExtractArgs,
    target: &Path,
    manifest: &Content,
    passes: u64,
    seal: Option<String>,
) -> Result<(), Failure> {
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
    if let Some(seal) = seal {
        writeln!(out, "{seal}").map_err(Failure::stdout)?;
    }
    if args.source.salvage {
        write_coverage(&mut out, manifest, passes).map_err(Failure::stdout)?;
    }
    terminal::finish(out)
}

fn write_coverage(out: &mut impl Write, manifest: &Content, passes: u64) -> io::Result<()> {
    Coverage::write_head(out, &manifest.pages_per_pass, passes)?;
    let blocks = &manifest.blocks;
    blocks.iter().try_for_each(|block| block.coverage.write_line(out, block.used_length, &block.idstr))
}
