//! `ramlift extract --format`: guest-physical memory as one file.

use std::fs;
use std::io::Write;
use std::path::Path;

use ramlift::cpu::{self, Vcpus};
use ramlift::guest::{self, Depth, Linux, Uts};
use ramlift::physical::{
    self, Avml, Compression, Core, Kdump, Layout, PhysicalMemory, Plan, Region, Uname, elf, lime, raw,
};
use ramlift::{Architecture, BlockOffset, Input, Progress, Ram, Stream};

use crate::args::{Compress, ExtractArgs, Format, SourceArgs};
use crate::cpu::why_none;
use crate::evidence::Evidence;
use crate::exit::{Exit, Failure};
use crate::extract::{default_target, open_shared, supply_shared};
use crate::images::Status;
use crate::layers::Origin;
use crate::manifest::{self, Content};
use crate::room::Unwritten;
use crate::single_file::StagedFile;
use crate::temporary::{self, Bound};
use crate::{channels, info, layout, progress, room, source, terminal};

/// Writes guest-physical memory as one file.
pub(crate) fn extract(args: &ExtractArgs, format: Format) -> Result<Exit, Failure> {
    if !args.blocks.is_empty() || args.block_devices || args.read_once {
        let text = "--block, --block-devices and --read-once are for --format blocks";
        return Err(Failure::Other(text.to_owned()));
    }
    if args.vaddr && format != Format::Elf {
        return Err(Failure::Other("--vaddr is for --format elf".to_owned()));
    }
    let path = &args.source.stream;
    let evidence = Evidence::begin(args);
    let target = args.output.clone().map_or_else(|| default_target(path, extension(format)), Ok)?;
    let mut staged = StagedFile::new(&target, args.force, path, args.max_output)?;
    if args.sync {
        staged.sync();
    }
    let (input, origin) = source::open_unpacked(path, &args.source.layers, args.source.salvage)?;
    evidence.hash_beside(&origin)?;
    let bar = progress::is_visible(args.quiet);
    let shared = args.shared_files.iter().map(open_shared).collect::<Result<Vec<_>, _>>()?;
    let (content, is_partial) = channels::with_channels(&args.source, &input, &origin, bar, |stream| {
        let mut stream = stream;
        stream.check_whole().map_err(Failure::input(path))?;
        supply_shared(path, &mut stream, &shared)?;
        with_file(args, &stream, &origin, |file, memory| {
            file.check_room((memory.ram(), memory.layout()), &mut staged, args.max_output, &input)?;
            let max = file.len_within(staged.allowed.left());
            let write = |progress: &Progress| {
                room::with_file_limit(max, || file.write(memory, &staged.path(), Some(&input), progress))
            };
            let len = file.progress_len(memory.ram(), memory.layout());
            progress::watch(bar, "writing", len, write).map_err(|unwritten| match unwritten {
                Unwritten::TooLong => staged.allowed.exceeded(),
                Unwritten::Failed(error) => Failure::from(error).map_text(|text| staged.shown(text)),
            })?;
            if file.is_packed() { staged.allowed.spend(room::taken_by(&staged.path())) } else { Ok(()) }
        })
    })?;
    let name = target.file_name().unwrap_or_default().to_owned();
    let text = manifest::make(&content, &origin, &evidence, vec![(name, staged.path())])?;
    staged.write_manifest(&text.bytes)?;
    let seal = text.seal(staged.manifest());
    staged.commit()?;
    for warning in &content.warnings {
        terminal::say(format_args!("warning: {warning}"));
    }
    if !args.quiet {
        Failure::of_report(report(&target, seal), &target)?;
    }
    Ok(Exit::of(is_partial || origin.is_damaged))
}

fn report(target: &Path, seal: Option<String>) -> Result<(), Failure> {
    let mut out = terminal::stdout();
    writeln!(out, "{}", target.display()).map_err(Failure::stdout)?;
    seal.map_or(Ok(()), |seal| writeln!(out, "{seal}")).map_err(Failure::stdout)?;
    terminal::finish(out)
}

fn extension(format: Format) -> &'static str {
    match format {
        Format::Blocks => "extracted",
        Format::Elf => "elf",
        Format::Lime => "lime",
        Format::Avml => "avml",
        Format::Kdump => "kdump",
        Format::Raw => "raw",
    }
}

/// Makes the file that `args` ask for, without writing it, and has `take` take
/// it. Gives what there is to tell of it, and whether RAM is missing.
pub(crate) fn with_file(
    args: &ExtractArgs,
    stream: &Stream<'_>,
    origin: &Origin,
    take: impl FnOnce(&File<'_, '_>, PhysicalMemory<'_, '_>) -> Result<(), Failure>,
) -> Result<(Content, bool), Failure> {
    let path = &args.source.stream;
    let Some(ram) = stream.ram() else {
        return Err(Failure::Other(format!("{}: the stream has no RAM", path.display())));
    };
    let layout = Layout::derive(stream, &layout::hints(&args.layout, origin));
    let layout = layout.map_err(Failure::layer(path))?;
    if layout.regions().is_empty() {
        let why = layout::warnings(stream, &layout).join("; ");
        return Err(Failure::Other(format!("{}: no RAM has a place: {why}", path.display())));
    }
    let memory = PhysicalMemory::new(ram, &layout);
    let mut warnings = origin.warnings.clone();
    let file = File::of(args, args.format, stream, memory, &mut warnings)?;
    file.check_len(&layout, ram)?;
    take(&file, memory)?;
    warnings.extend(info::warnings(stream));
    warnings.extend(layout::warnings(stream, &layout));
    let is_partial = layout::is_partial(&layout)
        || is_absent(ram, &layout)
        || stream.warnings().iter().any(|warning| warning.is_loss);
    let blocks: Vec<_> = ram.blocks().map(|(id, ..)| (id, None)).collect();
    Ok((Content::of(args, stream, origin, &blocks, warnings), is_partial))
}

/// A file of guest-physical memory, whatever its format.
pub(crate) enum File<'r, 'a> {
    Plan(Plan),
    Avml(Avml<'r, 'a>),
    Kdump(Box<Kdump<'r, 'a>>),
}

impl<'r, 'a> File<'r, 'a> {
    fn of(
        args: &ExtractArgs,
        format: Format,
        stream: &Stream<'_>,
        memory: PhysicalMemory<'r, 'a>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Failure> {
        let (ram, layout) = (memory.ram(), memory.layout());
        let fail = Failure::layer(&args.source.stream);
        Ok(match format {
            Format::Lime => Self::Plan(lime::plan(layout)),
            Format::Raw => Self::Plan(raw::plan(layout)),
            Format::Avml => Self::Avml(Avml::new(ram, layout)),
            Format::Kdump => {
                let compression = match args.compress.unwrap_or(Compress::Zstd) {
                    Compress::Zlib => Compression::Zlib,
                    Compress::Zstd => Compression::Zstd,
                };
                let core = core(args, stream, memory, warnings)?;
                Self::Kdump(Box::new(Kdump::new(ram, layout, &core, compression).map_err(fail)?))
            }
            Format::Elf | Format::Blocks => {
                let core = core(args, stream, memory, warnings)?;
                Self::Plan(elf::plan(layout, &core).map_err(fail)?)
            }
        })
    }

    /// Whether memory is packed, so that nobody knows before how long it is.
    fn is_packed(&self) -> bool {
        matches!(self, Self::Avml(_) | Self::Kdump(_))
    }

    /// Fails if no file can be as long.
    fn check_len(&self, layout: &Layout, ram: &Ram<'_>) -> Result<(), Failure> {
        const LONGEST: u64 = i64::MAX.unsigned_abs();
        let (Self::Plan(plan), Some(last)) = (self, layout.regions().last()) else { return Ok(()) };
        if plan.file_len() <= LONGEST {
            return Ok(());
        }
        let idstr = ram.block(last.block).map(|block| block.idstr.to_string()).unwrap_or_default();
        Err(Failure::Hinted {
            text: format!(
                "RAM block \"{idstr}\" at {} to {}: the file would have {} bytes, and files have at most {LONGEST}",
                last.range.start,
                last.range.end,
                plan.file_len()
            ),
            hint: "--map puts a block elsewhere, a part of it too; --format blocks writes each for itself, --format elf without what is between",
        })
    }

    /// How long it may be, so that it takes no more than `max` bytes of disk; none
    /// if it may be of any length, or is not packed.
    pub(crate) fn len_within(&self, max: Option<u64>) -> Option<u64> {
        max.and_then(|max| match self {
            Self::Plan(_) => None,
            Self::Avml(_) => Some(max),
            Self::Kdump(kdump) => Some(max.saturating_add(kdump.data_offset() - kdump.fixed_len())),
        })
    }

    /// Bytes that it takes at least, of those that are not known to be of memory.
    pub(crate) fn fixed_len(&self) -> u64 {
        match self {
            Self::Plan(plan) => plan.heads_len(),
            Self::Avml(_) => 0,
            Self::Kdump(kdump) => kdump.fixed_len(),
        }
    }

    /// Whether there is room for it: of what is packed, for what is known before.
    fn check_room(
        &self,
        (ram, layout): (&Ram<'_>, &Layout),
        staged: &mut StagedFile,
        max_output: Option<u64>,
        input: &Input,
    ) -> Result<(), Failure> {
        let fixed = self.fixed_len();
        if self.is_packed() {
            check_fixed(fixed, input)?;
            return match staged.allowed.left().is_some_and(|left| fixed > left) {
                true => Err(staged.allowed.exceeded()),
                false => room::check_free(fixed, staged.place()),
            };
        }
        let part = |region: &Region| {
            let end = region.offset.0.saturating_add(region.bytes());
            (region.block, region.offset..BlockOffset(end))
        };
        let parts = layout.regions().iter().map(part).collect();
        let memory = room::check(ram, &parts, staged.place(), max_output, input)?;
        staged.allowed.spend(memory.saturating_add(fixed))
    }

    /// The bytes that [`write`](Self::write) counts.
    pub(crate) fn progress_len(&self, ram: &Ram<'_>, layout: &Layout) -> u64 {
        match self {
            Self::Plan(_) => physical::progress_len(ram, layout),
            Self::Avml(avml) => avml.progress_len(),
            Self::Kdump(kdump) => kdump.progress_len(),
        }
    }

    /// Writes it at `path`. With the stream's own file as `input`, its blocks may be
    /// shared.
    pub(crate) fn write(
        &self,
        memory: PhysicalMemory<'_, '_>,
        path: &Path,
        input: Option<&Input>,
        progress: &Progress,
    ) -> ramlift::Result<()> {
        match self {
            Self::Plan(plan) => physical::write(memory.ram(), memory.layout(), plan, path, input, progress),
            Self::Avml(avml) => avml.write(path, progress),
            Self::Kdump(kdump) => kdump.write(path, progress),
        }
    }
}

impl File<'_, '_> {
    /// Writes it into a temporary file, which is gone when it is closed: to be
    /// compared. `source` is what it is made of.
    pub(crate) fn write_again(
        &self,
        memory: PhysicalMemory<'_, '_>,
        source: &SourceArgs,
    ) -> Result<fs::File, Failure> {
        let (directory, bound) = (temporary::directory(), Bound::new(source.layers.max_temp));
        let fail = |refused| temporary::failure(&source.stream, &refused);
        temporary::spare(&directory, bound, self.fixed_len()).map_err(fail)?;
        let place =
            tempfile::tempdir_in(&directory).map_err(|error| fail(temporary::without_path(error).into()))?;
        let path = place.path().join("packed");
        let write = || self.write(memory, &path, None, &Progress::new());
        let written = room::with_file_limit(self.len_within(Some(bound.left())), write);
        written.map_err(|unwritten| match unwritten {
            Unwritten::TooLong => fail(bound.refused()),
            Unwritten::Failed(error) => temporary::failure_at(&path, error, &source.stream),
        })?;
        fs::File::open(&path).map_err(Failure::file(&directory))
    }
}

/// Fails if `fixed` bytes, which a compressed dump has for pages that are zero
/// too, are out of all proportion to what the stream has on the disk.
fn check_fixed(fixed: u64, input: &Input) -> Result<(), Failure> {
    /// What any stream may take: that of a guest of 170 GiB.
    const LEAST: u64 = 1 << 30;
    const TIMES: u64 = 100;
    let data_len = input.data_len();
    if fixed <= LEAST.max(data_len.saturating_mul(TIMES)) {
        return Ok(());
    }
    Err(Failure::Hinted {
        text: format!(
            "a compressed dump takes {fixed} bytes for the pages of this guest, zero or not, and the stream has {data_len} on the disk"
        ),
        hint: "--format elf, raw or lime leave holes, --format avml leaves out memory that is zero",
    })
}

/// Adds what the guest's kernel tells.
fn add_guest(
    args: &ExtractArgs,
    stream: &Stream<'_>,
    memory: PhysicalMemory<'_, '_>,
    core: &mut Core,
) -> Result<(), Failure> {
    let path = &args.source.stream;
    let fail = Failure::input(path);
    let linux = Linux::find(stream, memory, Depth::Starts).map_err(&fail)?;
    match &linux {
        Some(linux) if args.vaddr => {
            core.virtual_ranges = guest::kernel_ranges(&memory, linux).map_err(&fail)?
        }
        None if args.vaddr => {
            let text = "--vaddr: no kernel of Linux is found in memory that tells where it is (VMCOREINFO)";
            return Err(Failure::Other(format!("{}: {text}", path.display())));
        }
        _ => {}
    }
    core.notes.extend(linux.as_ref().map(|linux| linux.vmcoreinfo.to_note()));
    core.uname = linux.and_then(|linux| linux.uts).map(uname);
    Ok(())
}

fn uname(uts: Uts) -> Uname {
    let Uts { nodename, release, version, machine } = uts;
    Uname { sysname: "Linux".to_owned(), nodename, release, version, machine }
}

/// What a core file tells beside memory. A vCPU that cannot be read has no
/// notes: that is warned of.
fn core(
    args: &ExtractArgs,
    stream: &Stream<'_>,
    memory: PhysicalMemory<'_, '_>,
    warnings: &mut Vec<String>,
) -> Result<Core, Failure> {
    let Vcpus { vcpus, failures } = cpu::vcpus(stream);
    warnings.extend(failures.iter().map(|failure| format!("not in the core file: {failure}")));
    if vcpus.is_empty() && failures.is_empty() && stream.description().is_none() {
        warnings.push(format!("not in the core file: registers; {}", why_none(stream)));
    }
    let (architecture, is_big_endian) = match cpu::core_kind(&vcpus) {
        Some(kind) => (Some(kind.architecture), kind.is_big_endian),
        None => {
            let architecture = Architecture::of(stream);
            (architecture, architecture.is_some_and(Architecture::is_big_endian))
        }
    };
    let mut core = Core { architecture, is_big_endian, notes: cpu::notes(&vcpus), ..Core::default() };
    add_guest(args, stream, memory, &mut core)?;
    Ok(core)
}

/// Whether the stream has no page of a block that is in the layout.
fn is_absent(ram: &Ram<'_>, layout: &Layout) -> bool {
    layout.regions().iter().any(|region| Status::of(ram, region.block) == Status::Absent)
}
