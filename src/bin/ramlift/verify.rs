//! `ramlift verify`: an extraction, checked again.
//!
//! Three things are held against each other: the files, what the manifest says
//! of them, and what the stream makes of them now. The run's arguments are in
//! the manifest, so it is made again, but compared instead of written.
//!
//! The manifest can be anybody's. Of the output's files none is read outside of
//! its directory; what it says of the inputs is opened to be read, if those are
//! files.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::Parser;
use indexmap::IndexSet;
use ramlift::physical::{PhysicalMemory, Plan, scatter_file};
use ramlift::{BlockId, Error, Ram, Stream, image_len, scatter};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use crate::args::{Cli, Command, ExtractArgs, Format, VerifyArgs};
use crate::compare::{Expected, Images, OutputDir, Reread, expect_file, first_difference};
use crate::evidence::{InputEntry, Role};
use crate::exit::{Exit, Failure};
use crate::extract::{self, DESC, DOMAIN, STATE, open_shared, supply_shared};
use crate::hash::{self, Algorithm};
use crate::images::{self, choose_blocks};
use crate::layers::Origin;
use crate::manifest::{Content, FileEntry, MANIFEST, Run, SIDECAR};
use crate::state::{Chosen, write_report};
use crate::{block_devices, channels, physical, progress, source, temporary, terminal};

/// What a manifest says.
#[derive(Deserialize)]
struct Recorded {
    ramlift: String,
    hash: Option<Algorithm>,
    inputs: Vec<InputEntry>,
    files: Vec<FileEntry>,
    run: Run,
    /// All that follows from the stream.
    #[serde(flatten)]
    content: serde_json::Map<String, Value>,
}

/// What has come of the checks.
#[derive(Default)]
struct Report {
    /// A fault can be met by several checks: it is told once.
    differences: IndexSet<String>,
    unchecked: Vec<String>,
    /// The files that the stream makes.
    made: BTreeSet<String>,
}

impl Report {
    fn differs(&mut self, text: String) {
        self.differences.insert(text);
    }

    fn cannot_check(&mut self, text: String) {
        self.unchecked.push(text);
    }
}

pub(crate) fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let (directory, name) = place(&args.output)?;
    let output = OutputDir::open(&directory).map_err(Failure::file(&directory))?;
    let manifest = read_manifest(&output, &name)?;
    let check = Check { args, output: &output, name: &name, manifest: &manifest };
    let mut report = Report::default();
    check.files(&mut report);
    check.unexpected(&mut report)?;
    check.stream(&mut report)?;
    tell(args, &manifest, &report)?;
    Ok(match report {
        Report { differences, .. } if !differences.is_empty() => Exit::Failed,
        Report { unchecked, .. } => Exit::of(!unchecked.is_empty()),
    })
}

/// The directory of an output, and the name of the manifest in it.
fn place(output: &Path) -> Result<(PathBuf, String), Failure> {
    let metadata = output.metadata().map_err(Failure::file(output))?;
    if metadata.is_dir() {
        return Ok((output.to_owned(), MANIFEST.to_owned()));
    }
    let name = output.file_name().and_then(|name| name.to_str());
    let is_manifest = |name: &&str| *name == MANIFEST || name.ends_with(SIDECAR);
    let Some(name) = name.filter(is_manifest) else {
        let text = format!("is no directory and no manifest; of a single file give FILE{SIDECAR}");
        return Err(Failure::Other(format!("{}: {text}", output.display())));
    };
    let directory = output.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    Ok((directory.to_owned(), name.to_owned()))
}

fn read_manifest(output: &OutputDir, name: &str) -> Result<Recorded, Failure> {
    let path = output.path.join(name);
    let file = output.file(name).map_err(Failure::file(&path))?;
    // Not all of it first: a file that is no manifest can be of any length.
    serde_json::from_reader(BufReader::new(file)).map_err(|error| {
        let text = format!("{}: is no manifest that can be checked: {error}", path.display());
        Failure::Other(text)
    })
}

/// An extraction that is checked.
#[derive(Clone, Copy)]
struct Check<'c> {
    args: &'c VerifyArgs,
    output: &'c OutputDir,
    /// The manifest's.
    name: &'c str,
    manifest: &'c Recorded,
}

impl Check<'_> {
    /// Whether each file is there, as long as it was, and has its hash.
    fn files(&self, report: &mut Report) {
        let faults: Vec<Option<String>> =
            self.manifest.files.par_iter().with_max_len(1).map(|entry| self.file(entry)).collect();
        faults.into_iter().flatten().for_each(|fault| report.differs(fault));
        let mut seen = BTreeSet::new();
        for entry in self.manifest.files.iter().filter(|entry| !seen.insert(&entry.path)) {
            report.differs(format!("{}: is in the manifest twice", entry.path));
        }
    }

    /// What is wrong with a file.
    fn file(&self, entry: &FileEntry) -> Option<String> {
        let path = &entry.path;
        let file = match self.output.file(path) {
            Ok(file) => file,
            Err(error) => return Some(missing(path, &error)),
        };
        let size = match file.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) => return Some(format!("{path}: {error}")),
        };
        if size != entry.size {
            return Some(format!("{path}: {size} bytes, expected {}", entry.size));
        }
        let threads = rayon::current_num_threads();
        let hash = |algorithm| hash::of_file(&file, size, algorithm, threads);
        match (self.manifest.hash.map(hash)?, &entry.hash) {
            (Err(error), _) => Some(format!("{path}: {error}")),
            (Ok(_), None) => Some(format!("{path}: the manifest has no hash of it")),
            (Ok(hash), Some(recorded)) if hash == *recorded => None,
            (Ok(hash), Some(recorded)) => Some(format!("{path}: hash {hash}, expected {recorded}")),
        }
    }

    /// Whether there is anything that the manifest does not tell of.
    fn unexpected(&self, report: &mut Report) -> Result<(), Failure> {
        if let Some(file) = self.name.strip_suffix(SIDECAR) {
            let is_other = |entry: &&FileEntry| entry.path != file;
            for entry in self.manifest.files.iter().filter(is_other) {
                report.differs(format!("{}: is in the manifest of {file}", entry.path));
            }
            if !self.manifest.files.iter().any(|entry| entry.path == file) {
                report.differs(format!("{file}: is not in its manifest"));
            }
            return Ok(());
        }
        let known: BTreeSet<&str> = self.manifest.files.iter().map(|entry| entry.path.as_str()).collect();
        for file in files_below(&self.output.path)? {
            if file != MANIFEST && !known.contains(file.as_str()) {
                report.differs(format!("{file}: is not in the manifest"));
            }
        }
        Ok(())
    }

    /// Makes all of it again, and compares.
    fn stream(&self, report: &mut Report) -> Result<(), Failure> {
        let extraction = match self.extraction() {
            Ok(extraction) => extraction,
            Err(why) => {
                report.cannot_check(format!("against the stream: {why}"));
                return self.without_stream(report);
            }
        };
        if !self.inputs(&extraction, report) {
            return self.without_stream(report);
        }
        let file = self.name.strip_suffix(SIDECAR);
        let again = Again { output: self.output, file, args: &extraction, is_quiet: self.args.quiet };
        let content = match again.compare(report) {
            Ok(content) => content,
            // Of the machine, or of what it may take: the files can be as they should.
            Err(Failure::Hinted { text, hint }) => {
                report.cannot_check(format!("against the stream: {text}; {hint}"));
                return self.without_stream(report);
            }
            Err(failure) => {
                report.differs(format!("cannot be made again from the stream: {failure}"));
                return Ok(());
            }
        };
        for entry in self.manifest.files.iter().filter(|entry| !report.made.contains(&entry.path)) {
            report.differences.insert(format!("{}: is nothing that the stream makes", entry.path));
        }
        if self.manifest.ramlift != env!("CARGO_PKG_VERSION") {
            let text = format!("{}: is of version {} of ramlift", self.name, self.manifest.ramlift);
            report.cannot_check(text);
            return Ok(());
        }
        self.content(&content, report);
        Ok(())
    }

    fn without_stream(&self, report: &mut Report) -> Result<(), Failure> {
        if self.manifest.hash.is_none() {
            report.cannot_check("what the files hold: the manifest has no hashes".to_owned());
        }
        Ok(())
    }

    /// The arguments of the extraction, its files where they are now.
    fn extraction(&self) -> Result<ExtractArgs, String> {
        let run = &self.manifest.run;
        let line = std::iter::once("ramlift").chain(run.arguments.iter().map(String::as_str));
        let parsed = Cli::try_parse_from(line).map_err(|error| {
            let text = error.to_string();
            format!("the arguments in the manifest: {}", text.lines().next().unwrap_or_default())
        })?;
        let Command::Extract(mut extraction) = parsed.command else {
            return Err("the arguments in the manifest are not of an extraction".to_owned());
        };
        let placed = |path: &Path| Path::new(&run.directory).join(path);
        let stream = &mut extraction.source.stream;
        *stream = match &self.args.stream {
            Some(path) => path.clone(),
            None if stream == source::STDIN => {
                return Err("it came by a pipe; --stream PATH says where it is".to_owned());
            }
            None => placed(stream),
        };
        // What a manifest allows is what its maker had room for.
        extraction.source.layers.max_temp = self.args.max_temp;
        extraction.source.channels.iter_mut().for_each(|path| *path = placed(path));
        extraction.shared_files.iter_mut().for_each(|file| file.path = placed(&file.path));
        Ok(extraction)
    }

    /// Whether all inputs are there. Compares them with what was read.
    fn inputs(&self, extraction: &ExtractArgs, report: &mut Report) -> bool {
        let stream = (Role::Stream, &extraction.source.stream);
        let channels = extraction.source.channels.iter().map(|path| (Role::Channel, path));
        let shared = extraction.shared_files.iter().map(|file| (Role::SharedFile, &file.path));
        let paths: Vec<_> = std::iter::once(stream).chain(channels).chain(shared).collect();
        let recorded = &self.manifest.inputs;
        let placed = |entry: &InputEntry| Path::new(&self.manifest.run.directory).join(&entry.path);
        // Where the stream is now can have been said.
        let is_given =
            |path: &Path, entry: &InputEntry| self.is_elsewhere(entry.role) || placed(entry) == path;
        if !paths.iter().map(|(role, _)| *role).eq(recorded.iter().map(|entry| entry.role))
            || !paths.iter().zip(recorded).all(|((_, path), entry)| is_given(path, entry))
        {
            report.differs(format!("{}: its inputs are not those of its arguments", self.name));
            // None is opened that was not looked at.
            return false;
        }
        if self.manifest.hash != extraction.hash {
            report.differs(format!("{}: its hashes are not those of its arguments", self.name));
        }
        let mut are_there = true;
        for ((_, path), entry) in paths.iter().zip(recorded) {
            match self.input(path, entry) {
                Ok(None) => {}
                Ok(Some(fault)) => report.differs(fault),
                Err(error) => {
                    let hint =
                        if entry.role == Role::Stream { "; --stream PATH says where it is" } else { "" };
                    report.cannot_check(format!("against the stream: {}: {error}{hint}", path.display()));
                    are_there = false;
                }
            }
        }
        are_there
    }

    /// How an input is other than what was read.
    fn input(&self, path: &Path, entry: &InputEntry) -> io::Result<Option<String>> {
        // What is no file could wait for somebody, or be changed by being read.
        let kind = path.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("is no file"));
        }
        let mut file = ramlift::open_to_read(path)?;
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        let shown = path.display();
        match entry.size {
            Some(recorded) if recorded != size => {
                return Ok(Some(format!("{shown}: {size} bytes, and what was read had {recorded}")));
            }
            // Of what came by a pipe none is known, if it was not hashed.
            None if !self.is_elsewhere(entry.role) || self.manifest.hash.is_some() => {
                return Ok(Some(format!("{shown}: the manifest does not say how long it was")));
            }
            _ => {}
        }
        let Some(algorithm) = self.manifest.hash else { return Ok(None) };
        let Some(recorded) = &entry.hash else {
            return Ok(Some(format!("{shown}: the manifest has no hash of it")));
        };
        let hash = hash::of_file(&file, size, algorithm, rayon::current_num_threads())?;
        let fault = || format!("{shown}: hash {hash}, and what was read had {recorded}");
        Ok((hash != *recorded).then(fault))
    }

    /// Whether an input may be in another place than it was.
    fn is_elsewhere(&self, role: Role) -> bool {
        role == Role::Stream && self.args.stream.is_some()
    }

    /// Whether the manifest tells of the stream what it is.
    fn content(&self, content: &Content, report: &mut Report) {
        let Ok(Value::Object(expected)) = serde_json::to_value(content) else { return };
        for (key, expected) in &expected {
            let met = self.manifest.content.get(key).unwrap_or(&Value::Null);
            let is_elsewhere = |at: &str| match at {
                // That is checked as an input's.
                "/source/path" => self.has_path_of_stream(),
                "/source/size" => self.is_elsewhere(Role::Stream),
                _ => false,
            };
            if let Some((at, expected, met)) =
                first_difference(&format!("/{key}"), expected, met, &is_elsewhere)
            {
                report.differs(format!("{}: {at} is {met}, expected {expected}", self.name));
            }
        }
        for key in self.manifest.content.keys().filter(|key| !expected.contains_key(*key)) {
            report.differs(format!("{}: /{key} is of no extraction", self.name));
        }
    }

    /// Whether what is told of the stream names the first input.
    fn has_path_of_stream(&self) -> bool {
        let met = self.manifest.content.get("source").and_then(|source| source.get("path"));
        let input = self.manifest.inputs.first().map(|input| input.path.as_str());
        met.and_then(Value::as_str) == input
    }
}

fn missing(path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path}: is missing"),
        _ => format!("{path}: {error}"),
    }
}

/// All that is below a directory and is no directory, relative to it. Symlinks
/// are not followed.
fn files_below(directory: &Path) -> Result<Vec<String>, Failure> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).map_err(Failure::file(&next))? {
            let entry = entry.map_err(Failure::file(&next))?;
            let path = entry.path();
            if entry.file_type().map_err(Failure::file(&path))?.is_dir() {
                pending.push(path);
            } else {
                let relative = path.strip_prefix(directory).unwrap_or(&path);
                files.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Says what came of it.
fn tell(args: &VerifyArgs, manifest: &Recorded, report: &Report) -> Result<(), Failure> {
    let mut out = terminal::stdout();
    let differences = report.differences.iter().map(|text| format!("differs: {text}"));
    let unchecked = report.unchecked.iter().map(|text| format!("not checked: {text}"));
    let mut lines: Vec<String> = differences.chain(unchecked).collect();
    if lines.is_empty() && !args.quiet {
        let count = manifest.files.len();
        let by =
            manifest.hash.map_or_else(String::new, |hash| format!(", their {} as recorded", hash.name()));
        lines.push(format!("{}: {count} files, all as the stream has them{by}", args.output.display()));
    }
    lines.iter().try_for_each(|line| writeln!(out, "{}", terminal::plain(line))).map_err(Failure::stdout)?;
    terminal::finish(out)
}

/// An extraction, made again.
struct Again<'c> {
    output: &'c OutputDir,
    /// The file's name, if it is a single one.
    file: Option<&'c str>,
    args: &'c ExtractArgs,
    is_quiet: bool,
}

impl Again<'_> {
    /// Compares all that it makes. Gives what a manifest has to tell of it.
    fn compare(&self, report: &mut Report) -> Result<Content, Failure> {
        let (args, bar) = (self.args, progress::is_visible(self.is_quiet));
        let path = &args.source.stream;
        let (input, origin) = source::open_mapped(path, &args.source.layers, "verify", args.source.salvage)?;
        let shared = args.shared_files.iter().map(open_shared).collect::<Result<Vec<_>, _>>()?;
        channels::with_channels(&args.source, &input, bar, |stream| {
            let mut stream = stream;
            stream.check_whole().map_err(Failure::input(path))?;
            supply_shared(path, &mut stream, &shared)?;
            match args.format {
                Format::Blocks => self.directory(&stream, &origin, report),
                _ => self.single_file(&stream, &origin, report),
            }
        })
    }

    fn directory(
        &self,
        stream: &Stream<'_>,
        origin: &Origin,
        report: &mut Report,
    ) -> Result<Content, Failure> {
        let (args, path) = (self.args, &self.args.source.stream);
        let images = match stream.ram() {
            Some(ram) => {
                let images = images::plan(ram, &choose_blocks(path, ram, &args.blocks)?);
                self.images(ram, &images, report)?;
                images
            }
            None => images::none(path, &args.blocks)?,
        };
        let block_devices = block_devices::each(stream, args.block_devices, |device, file| {
            self.pieces(file, device.proven_len(), report, |expected| {
                block_devices::pieces(device).try_for_each(|(at, piece)| expected.expect(at, piece))
            })
        })?;
        if let Some(xml) = &origin.domain_xml {
            self.text(DOMAIN, report, |out| out.write_all(xml))?;
        }
        if let Some(description) = stream.description() {
            self.text(DESC, report, |out| extract::write_description(out, description))?;
        }
        let mut failures: Vec<Error> = Vec::new();
        self.text(STATE, report, |out| {
            failures = write_report(out, stream, Chosen::all(stream))?;
            Ok(())
        })?;
        let warnings = extract::warnings(stream, origin, block_devices.warning, &failures);
        let mut content = Content::of(args, stream, origin, &images, warnings);
        content.block_devices = block_devices.entries;
        Ok(content)
    }

    fn images(
        &self,
        ram: &Ram<'_>,
        images: &[(BlockId, Option<String>)],
        report: &mut Report,
    ) -> Result<(), Failure> {
        let mut expected: Vec<Option<Expected<'_>>> = ram.blocks().map(|_| None).collect();
        let mut blocks = Vec::new();
        for (id, name) in images {
            let (Some(name), Some(block), Some(slot)) = (name, ram.block(*id), expected.get_mut(id.0)) else {
                continue;
            };
            report.made.insert(name.clone());
            match self.output.file(name) {
                Ok(_) => *slot = Some(Expected::new(self.output, name, block.used_length)),
                Err(error) => report.differs(missing(name, &error)),
            }
            blocks.push(*id);
        }
        let sink = Images(expected);
        let bar = progress::is_visible(self.is_quiet);
        progress::watch(bar, "checking", image_len(ram, &blocks), |progress| {
            scatter(ram, &blocks, &sink, progress)
        })?;
        let outcomes: Vec<_> = sink.0.into_par_iter().flatten().map(finish).collect();
        outcomes.into_iter().flatten().for_each(|fault| report.differs(fault));
        Ok(())
    }

    /// Compares a file that is made in pieces.
    fn pieces(
        &self,
        name: &str,
        len: u64,
        report: &mut Report,
        make: impl FnOnce(&Expected<'_>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        report.made.insert(name.to_owned());
        let expected = Expected::new(self.output, name, len);
        match self.output.file(name).and_then(|_| make(&expected)) {
            Ok(()) => finish(expected).into_iter().for_each(|fault| report.differs(fault)),
            Err(error) => report.differs(missing(name, &error)),
        }
        Ok(())
    }

    /// Compares a file that is written from begin to end.
    fn text(
        &self,
        name: &str,
        report: &mut Report,
        write: impl FnOnce(&mut Reread) -> io::Result<()>,
    ) -> Result<(), Failure> {
        report.made.insert(name.to_owned());
        let path = self.output.path.join(name);
        let mut reread = match self.output.file(name) {
            Ok(file) => Reread::new(file),
            Err(error) => {
                report.differs(missing(name, &error));
                // What is told of it is asked for all the same.
                return write(&mut Reread::new(tempfile::tempfile().map_err(Failure::file(&path))?))
                    .map_err(Failure::file(&path));
            }
        };
        write(&mut reread).map_err(Failure::file(&path))?;
        if let Some(difference) = reread.finish().map_err(Failure::file(&path))? {
            report.differs(format!("{name}: {difference}"));
        }
        Ok(())
    }

    /// Compares a file of guest-physical memory. One that packs is made again, as
    /// a temporary file.
    fn single_file(
        &self,
        stream: &Stream<'_>,
        origin: &Origin,
        report: &mut Report,
    ) -> Result<Content, Failure> {
        let Some(name) = self.file else {
            return Err(Failure::Other("a directory is what --format blocks makes".to_owned()));
        };
        report.made.insert(name.to_owned());
        let fault = |error| missing(name, &error);
        if let Err(error) = self.output.file(name) {
            report.differs(fault(error));
        }
        let take = |file: &physical::File<'_, '_>, memory: PhysicalMemory<'_, '_>| {
            let expected = match file {
                physical::File::Plan(plan) => self.planned(name, plan, memory)?,
                packed => self.packed(name, packed, memory)?,
            };
            finish(expected).into_iter().for_each(|fault| report.differs(fault));
            Ok(())
        };
        physical::with_file(self.args, stream, origin, take).map(|(content, _)| content)
    }

    fn planned(
        &self,
        name: &str,
        plan: &Plan,
        memory: PhysicalMemory<'_, '_>,
    ) -> Result<Expected<'_>, Failure> {
        let (ram, layout) = (memory.ram(), memory.layout());
        let sink = Images(vec![Some(Expected::new(self.output, name, plan.file_len()))]);
        let bar = progress::is_visible(self.is_quiet);
        progress::watch(bar, "checking", ramlift::physical::progress_len(ram, layout), |progress| {
            scatter_file(ram, layout, plan, &sink, progress)
        })?;
        let expected = sink.0.into_iter().flatten().next();
        expected.ok_or_else(|| Failure::Other(format!("{name}: cannot be compared")))
    }

    fn packed(
        &self,
        name: &str,
        packed: &physical::File<'_, '_>,
        memory: PhysicalMemory<'_, '_>,
    ) -> Result<Expected<'_>, Failure> {
        let file = packed.write_again(memory, &self.args.source)?;
        let len = file.metadata().map_err(Failure::file(&temporary::directory()))?.len();
        let expected = Expected::new(self.output, name, len);
        expect_file(&expected, &file).map_err(Failure::file(&self.output.path.join(name)))?;
        Ok(expected)
    }
}

/// What is wrong with a file that has been given all that it should hold.
fn finish(expected: Expected<'_>) -> Option<String> {
    let path = expected.path.clone();
    match expected.finish() {
        Ok(difference) => difference.map(|difference| format!("{path}: {difference}")),
        Err(error) => Some(missing(&path, &error)),
    }
}
