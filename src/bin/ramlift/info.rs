//! `ramlift info`: what a stream holds.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use indexmap::IndexMap;
use ramlift::{BlockId, BlockPages, Device, Iterated, Ram, Section, SectionType, Stream};
use serde::Serialize;

use crate::args::InfoArgs;
use crate::exit::{Exit, Failure};
use crate::guest::GuestReport;
use crate::layers::Origin;
use crate::snapshots::{self, SnapshotReport};
use crate::{channels, progress, source, terminal};

/// The output of `info --json`.
#[derive(Serialize)]
struct Report {
    ramlift: &'static str,
    source: Source,
    format: &'static str,
    machine: Option<String>,
    page_size: Option<u64>,
    capabilities: Vec<String>,
    uuid: Option<String>,
    has_footers: bool,
    vcpus: usize,
    passes: u64,
    pages_per_pass: Vec<u64>,
    blocks: Vec<Block>,
    commands: Vec<Command>,
    sections: Vec<SectionReport>,
    description: Option<DescriptionReport>,
    guest: GuestReport,
    end: u64,
    salvaged: bool,
    lost: Vec<Lost>,
    doubtful_pages: Vec<Doubtful>,
    warnings: Vec<String>,
}

/// A range of the stream that is in no result.
#[derive(Serialize)]
pub(crate) struct Lost {
    offset: u64,
    len: u64,
    why: String,
    section: Option<String>,
}

/// Pages in a row that may not be the guest's.
#[derive(Serialize)]
pub(crate) struct Doubtful {
    idstr: String,
    offset: u64,
    pages: u64,
}

pub(crate) fn lost(stream: &Stream<'_>) -> Vec<Lost> {
    let lost = |loss: &ramlift::Loss| Lost {
        offset: loss.offset.0,
        len: loss.len,
        why: loss.why.clone(),
        section: loss.section.clone(),
    };
    stream.losses().iter().map(lost).collect()
}

/// Whether this is what could be had of a stream that is not whole.
pub(crate) fn is_salvaged(stream: &Stream<'_>) -> bool {
    !stream.losses().is_empty() || !stream.doubtful_pages().is_empty()
}

pub(crate) fn doubtful_pages(stream: &Stream<'_>) -> Vec<Doubtful> {
    let doubtful = |page: &ramlift::DoubtfulPage| {
        let block = stream.ram().and_then(|ram| ram.block(page.block))?;
        Some(Doubtful { idstr: block.idstr.to_string(), offset: page.offset.0, pages: page.pages })
    };
    stream.doubtful_pages().iter().filter_map(doubtful).collect()
}

/// The file that was read.
#[derive(Serialize)]
pub(crate) struct Source {
    path: String,
    /// In bytes; not known of what goes by.
    size: Option<u64>,
    /// What the stream is inside of, from the outside in, and itself.
    layers: Vec<String>,
    snapshot: Option<SnapshotReport>,
}

impl Source {
    pub(crate) fn of(path: &Path, origin: &Origin) -> Self {
        Self {
            path: path.to_string_lossy().into_owned(),
            size: origin.size,
            layers: origin.layers.0.iter().map(ToString::to_string).collect(),
            snapshot: origin.snapshot.as_ref().map(SnapshotReport::of),
        }
    }
}

#[derive(Serialize)]
struct Block {
    idstr: String,
    used_length: u64,
    host_page_size: Option<u64>,
    mr_addr: Option<u64>,
    #[serde(flatten)]
    coverage: Coverage,
}

/// How much of a block's pages the stream holds, and as what.
#[derive(Serialize)]
pub(crate) struct Coverage {
    seen_pages: u64,
    data_pages: u64,
    xbzrle_pages: u64,
    fill_pages: u64,
    resent_pages: u64,
    pub(crate) absent_pages: u64,
    possibly_stale_pages: u64,
}

impl Coverage {
    pub(crate) fn of(stream: &Stream<'_>, id: BlockId, pages: &BlockPages<'_>) -> Self {
        Self {
            seen_pages: pages.data_pages() + pages.fill_pages(),
            data_pages: pages.data_pages(),
            xbzrle_pages: pages.xbzrle_pages(),
            fill_pages: pages.fill_pages(),
            resent_pages: pages.resent_pages(),
            absent_pages: stream.ram().map_or(0, |ram| ram.absent_pages(id)),
            possibly_stale_pages: stream.possibly_stale_pages(id),
        }
    }

    /// A line of the table that [`write_head`](Self::write_head) begins.
    pub(crate) fn write_line(&self, out: &mut impl Write, used_length: u64, idstr: &str) -> io::Result<()> {
        let Self {
            data_pages,
            xbzrle_pages,
            fill_pages,
            resent_pages,
            absent_pages,
            possibly_stale_pages,
            ..
        } = self;
        writeln!(
            out,
            "  {used_length:>14} {data_pages:>10} {xbzrle_pages:>10} {fill_pages:>10} {resent_pages:>10} {absent_pages:>10} {possibly_stale_pages:>10}  {idstr}"
        )
    }

    pub(crate) fn write_head(out: &mut impl Write, per_pass: &[u64], passes: u64) -> io::Result<()> {
        /// Passes whose pages are shown.
        const SHOWN: usize = 12;
        let unit = if passes == 1 { "pass" } else { "passes" };
        write!(out, "\nRAM blocks, pages sent in {passes} {unit}")?;
        if passes > 1 {
            let shown: Vec<String> = per_pass.iter().take(SHOWN).map(u64::to_string).collect();
            let more = if per_pass.len() > SHOWN { " + …" } else { "" };
            write!(out, ": {}{more}", shown.join(" + "))?;
        }
        writeln!(
            out,
            "\n  {:>14} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  idstr",
            "bytes", "data", "of XBZRLE", "fill", "re-sent", "never sent", "stale?"
        )
    }
}

#[derive(Serialize)]
struct Command {
    offset: u64,
    command: u16,
    name: Option<&'static str>,
    length: u16,
}

#[derive(Serialize)]
struct SectionReport {
    offset: u64,
    r#type: String,
    section_id: u32,
    name: String,
    instance_id: u32,
    version_id: u32,
    body: u64,
    length: u64,
    content: Content,
}

/// How much is known of what a section's body means.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    /// RAM: it makes the images.
    Pages,
    /// It has a layout of its own, which is read.
    Decoded,
    /// The stream describes it.
    Described,
    /// Bytes for the code that wrote them alone.
    Opaque,
    /// There is no description of it.
    Undescribed,
}

#[derive(Serialize)]
struct DescriptionReport {
    offset: u64,
    length: u64,
    devices: usize,
}

pub(crate) fn run(args: &InfoArgs) -> Result<Exit, Failure> {
    if !args.xml
        && let Some(snapshots) = snapshots::several(&args.source.stream, &args.source.layers)?
    {
        return snapshots::print(&snapshots, &args.source.stream, args.json);
    }
    if args.guest {
        // Memory can only be looked at where it can be gone back to.
        let source = &args.source;
        let (input, origin) = source::open_unpacked(&source.stream, &source.layers, source.salvage)?;
        let bar = progress::is_visible(false);
        return channels::with_channels(source, &input, &origin, bar, |stream| print(args, &stream, &origin));
    }
    source::with_stream(&args.source, |stream, origin| print(args, stream, origin))
}

fn print(args: &InfoArgs, stream: &Stream<'_>, origin: &Origin) -> Result<Exit, Failure> {
    if args.xml {
        return print_xml(&args.source.stream, origin);
    }
    let report = report(args, origin, stream);
    if args.json {
        terminal::print_json(&report)?;
    } else {
        let mut out = terminal::stdout();
        write_text(&mut out, &report, stream).map_err(Failure::stdout)?;
        terminal::finish(out)?;
    }
    Ok(Exit::of(origin.is_damaged || stream.warnings().iter().any(|warning| warning.is_loss)))
}

fn print_xml(path: &Path, origin: &Origin) -> Result<Exit, Failure> {
    let Some(xml) = &origin.domain_xml else {
        let text = format!("{}: no domain XML in {}", path.display(), origin.layers);
        return Err(Failure::Other(text));
    };
    let mut out = terminal::stdout();
    out.write_all(&terminal::as_shown(xml)).map_err(Failure::stdout)?;
    terminal::finish(out)?;
    Ok(Exit::Complete)
}

fn report(args: &InfoArgs, origin: &Origin, stream: &Stream<'_>) -> Report {
    let configuration = stream.configuration();
    let capabilities =
        configuration.map(|configuration| configuration.capabilities.as_slice()).unwrap_or_default();
    let description = stream.description().map(|description| DescriptionReport {
        offset: description.offset.0,
        length: description.text.len() as u64,
        devices: description.desc.devices.len(),
    });
    Report {
        ramlift: env!("CARGO_PKG_VERSION"),
        source: Source::of(&args.source.stream, origin),
        format: "QEVM version 3",
        machine: configuration.map(|configuration| configuration.machine.to_string()),
        page_size: stream.ram().map(|ram| ram.page_size().bytes()),
        capabilities: capabilities.iter().map(ToString::to_string).collect(),
        uuid: configuration.and_then(|configuration| configuration.uuid).map(uuid_text),
        has_footers: stream.has_footers(),
        vcpus: stream.vcpu_count(),
        passes: stream.ram().map_or(0, Ram::pass_count),
        pages_per_pass: stream.ram().map(|ram| ram.pages_per_pass().to_vec()).unwrap_or_default(),
        blocks: stream.ram().map(|ram| blocks(stream, ram)).unwrap_or_default(),
        commands: stream.commands().iter().map(command).collect(),
        sections: sections(stream),
        description,
        guest: GuestReport::of(stream, origin, args.guest),
        end: stream.end().0,
        salvaged: is_salvaged(stream),
        lost: lost(stream),
        doubtful_pages: doubtful_pages(stream),
        warnings: origin.warnings.iter().cloned().chain(warnings(stream)).collect(),
    }
}

/// All warnings on a stream: those of the walk, and pages that no record
/// holds.
pub(crate) fn warnings(stream: &Stream<'_>) -> Vec<String> {
    let mut texts: Vec<String> = stream.warnings().iter().map(ToString::to_string).collect();
    let Some(ram) = stream.ram() else { return texts };
    for (id, block, _) in ram.blocks() {
        let absent = ram.absent_pages(id);
        if absent > 0 {
            let all = ram.page_size().pages_in(block.used_length);
            texts.push(format!(
                "RAM block \"{}\": {absent} of {all} pages are not in the stream",
                block.idstr
            ));
        }
    }
    texts
}

fn blocks(stream: &Stream<'_>, ram: &Ram<'_>) -> Vec<Block> {
    let block = |(id, block, pages): (_, &ramlift::RamBlock, &BlockPages<'_>)| Block {
        idstr: block.idstr.to_string(),
        used_length: block.used_length,
        host_page_size: block.host_page_size,
        mr_addr: block.mr_addr,
        coverage: Coverage::of(stream, id, pages),
    };
    ram.blocks().map(block).collect()
}

fn command(command: &ramlift::Command) -> Command {
    Command { offset: command.offset.0, command: command.command, name: command.name(), length: command.len }
}

fn sections(stream: &Stream<'_>) -> Vec<SectionReport> {
    let contents = contents(stream);
    stream.sections().iter().zip(contents).map(|(of, content)| section(of, content)).collect()
}

/// How much is known of each section, in the order of the stream.
fn contents(stream: &Stream<'_>) -> Vec<Content> {
    let opaque: HashSet<u32> =
        stream.iterated().filter(Iterated::is_opaque).map(|iterated| iterated.handler().section_id).collect();
    let mut devices = stream.devices();
    let content = |section: &Section| match section.kind {
        SectionType::Full => devices.next().map_or(Content::Undescribed, |device| of_device(&device)),
        _ if section.handler.idstr == *"ram" => Content::Pages,
        _ if opaque.contains(&section.handler.section_id) => Content::Opaque,
        _ => Content::Decoded,
    };
    stream.sections().iter().map(content).collect()
}

fn of_device(device: &Device<'_>) -> Content {
    match device.desc {
        _ if device.pieces().is_some() => Content::Decoded,
        // A device of the old style is described as its bytes.
        Some(desc) if desc.vmsd.vmsd_name.is_empty() && desc.fault.is_none() => Content::Opaque,
        Some(_) => Content::Described,
        None => Content::Undescribed,
    }
}

fn section(section: &Section, content: Content) -> SectionReport {
    SectionReport {
        offset: section.offset.0,
        r#type: section.kind.to_string(),
        section_id: section.handler.section_id,
        name: section.handler.idstr.to_string(),
        instance_id: section.handler.instance_id,
        version_id: section.handler.version_id,
        body: section.body.0,
        length: section.body_len(),
        content,
    }
}

fn uuid_text(uuid: [u8; 16]) -> String {
    let mut text = String::new();
    for (nth, byte) in uuid.iter().enumerate() {
        if matches!(nth, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The same for people. Sections of one handler in a row are one line.
fn write_text(out: &mut impl Write, report: &Report, stream: &Stream<'_>) -> io::Result<()> {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "not in the stream".to_owned());
    writeln!(out, "{}", ramlift::Idstr::from(report.source.path.as_str()))?;
    if report.source.layers.len() > 1 {
        writeln!(out, "  layers        {}", report.source.layers.join(" → "))?;
    }
    if let Some(snapshot) = &report.source.snapshot {
        writeln!(out, "  snapshot      {snapshot}")?;
    }
    write!(out, "  format        {}, {} bytes", report.format, report.end)?;
    match report.source.size {
        Some(size) => writeln!(out, " of {size}")?,
        None => writeln!(out)?,
    }
    writeln!(out, "  machine       {}", or_none(&report.machine))?;
    if let Some(uuid) = &report.uuid {
        writeln!(out, "  uuid          {uuid}")?;
    }
    let capabilities = if report.capabilities.is_empty() {
        "none listed".to_owned()
    } else {
        report.capabilities.join(", ")
    };
    writeln!(out, "  capabilities  {capabilities}")?;
    if let Some(page_size) = report.page_size {
        writeln!(out, "  page size     {page_size} bytes")?;
    }
    writeln!(out, "  vCPUs         {}", report.vcpus)?;
    writeln!(out, "  footers       {}", if report.has_footers { "yes" } else { "no" })?;
    match &report.description {
        Some(found) => writeln!(
            out,
            "  description   {} bytes at {:#x}, {} devices",
            found.length, found.offset, found.devices
        )?,
        None => writeln!(out, "  description   none")?,
    }
    report.guest.write_text(out)?;
    write_blocks(out, report)?;
    write_sections(out, report, stream)?;
    for warning in &report.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    Ok(())
}

fn write_blocks(out: &mut impl Write, report: &Report) -> io::Result<()> {
    Coverage::write_head(out, &report.pages_per_pass, report.passes)?;
    report.blocks.iter().try_for_each(|block| block.coverage.write_line(out, block.used_length, &block.idstr))
}

/// What a line of the section table stands for.
struct Line<'s> {
    first: &'s Section,
    content: Content,
    count: usize,
    len: u64,
}

fn write_sections(out: &mut impl Write, report: &Report, stream: &Stream<'_>) -> io::Result<()> {
    writeln!(out, "\nSections")?;
    writeln!(
        out,
        "  {:>14} {:>14} {:>5} {:>8} {:>10} {:>7}  name",
        "offset", "bytes", "type", "id", "instance", "version"
    )?;
    // Commands stand where they are between the sections.
    let mut lines: IndexMap<(u64, SectionType), Line<'_>> = IndexMap::new();
    let mut run_start = None;
    for (section, SectionReport { content, .. }) in stream.sections().iter().zip(&report.sections) {
        let key = match run_start {
            Some((offset, id)) if section.kind == SectionType::Part && id == section.handler.section_id => {
                offset
            }
            _ => section.offset.0,
        };
        run_start = (section.kind == SectionType::Part).then_some((key, section.handler.section_id));
        let new = Line { first: section, content: *content, count: 0, len: 0 };
        let line = lines.entry((key, section.kind)).or_insert(new);
        line.count += 1;
        line.len += section.body_len();
    }
    let mut commands = stream.commands().iter().peekable();
    for line in lines.values() {
        while let Some(command) = commands.next_if(|command| command.offset < line.first.offset) {
            write_command(out, command)?;
        }
        write_line(out, line)?;
    }
    commands.try_for_each(|command| write_command(out, command))
}

fn write_line(out: &mut impl Write, line: &Line<'_>) -> io::Result<()> {
    let Section { offset, kind, handler, .. } = line.first;
    let count = if line.count > 1 { format!(" ×{}", line.count) } else { String::new() };
    let mark = if line.content == Content::Opaque { " (opaque)" } else { "" };
    writeln!(
        out,
        "  {:>14} {:>14} {:>5} {:>8} {:>10} {:>7}  {}{count}{mark}",
        offset.to_string(),
        line.len,
        kind.to_string(),
        handler.section_id,
        handler.instance_id,
        handler.version_id,
        handler.idstr
    )
}

fn write_command(out: &mut impl Write, command: &ramlift::Command) -> io::Result<()> {
    let name = command.name().map_or_else(|| format!("command {}", command.command), str::to_owned);
    writeln!(
        out,
        "  {:>14} {:>14} {:>5} {:>8} {:>10} {:>7}  {name}",
        command.offset.to_string(),
        command.len,
        "CMD",
        "",
        "",
        ""
    )
}
