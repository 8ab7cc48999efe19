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
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::Parser;
use indexmap::IndexSet;
use rayon::prelude::*;
use serde_json::Value;

use crate::again::{Again, missing};
use crate::args::{Cli, Command, ExtractArgs, VerifyArgs};
use crate::compare::{OutputDir, first_difference};
use crate::evidence::{InputEntry, Role};
use crate::exit::{Exit, Failure};
use crate::hash;
use crate::inputs;
use crate::manifest::{Content, FileEntry, MANIFEST, SIDECAR};
use crate::os_text::{self, RecordedPath};
use crate::recorded::Recorded;
use crate::source;
use crate::terminal::{self, Brief};

/// What has come of the checks.
#[derive(Default)]
pub(crate) struct Report {
    /// A fault can be met by several checks: it is told once.
    differences: IndexSet<String>,
    unchecked: Vec<String>,
    /// The files that the stream makes.
    pub(crate) made: BTreeSet<RecordedPath>,
}

impl Report {
    pub(crate) fn differs(&mut self, text: String) {
        self.differences.insert(text);
    }

    fn cannot_check(&mut self, text: String) {
        self.unchecked.push(text);
    }
}

pub(crate) fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let (directory, name) = place(&args.output)?;
    let output = OutputDir::open(&directory).map_err(Failure::file(&directory))?;
    let path = directory.join(&name);
    let file = output.file(&name).map_err(Failure::file(&path))?;
    let len = file.metadata().map_err(Failure::file(&path))?.len();
    if len == 0 {
        return Err(Failure::Hinted {
            text: format!("{}: is no manifest that can be checked: it is empty", path.display()),
            hint: "did the system go down soon after it was written? extract again, by --force, and by --sync if that can happen",
        });
    }
    let (manifest, unknown) = Recorded::read(&path, file, len)?;
    let check = Check { args, output: &output, name: &name, manifest: &manifest };
    let mut report = Report::default();
    unknown.iter().for_each(|key| check.unknown_key(key, &mut report));
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
fn place(output: &Path) -> Result<(PathBuf, RecordedPath), Failure> {
    let metadata = output.metadata().map_err(Failure::file(output))?;
    if metadata.is_dir() {
        return Ok((output.to_owned(), MANIFEST.into()));
    }
    let is_manifest = |name: &&OsStr| *name == MANIFEST || single_file(name).is_some();
    let Some(name) = output.file_name().filter(is_manifest) else {
        let text = format!("is no directory and no manifest; of a single file give FILE{SIDECAR}");
        return Err(Failure::Other(format!("{}: {text}", output.display())));
    };
    let directory = output.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    Ok((directory.to_owned(), name.into()))
}

/// The file that a manifest of this name is of, if it is of a single one.
fn single_file(manifest: &OsStr) -> Option<&OsStr> {
    manifest.as_bytes().strip_suffix(SIDECAR.as_bytes()).map(OsStr::from_bytes)
}

/// An extraction that is checked.
#[derive(Clone, Copy)]
struct Check<'c> {
    args: &'c VerifyArgs,
    output: &'c OutputDir,
    /// The manifest's.
    name: &'c RecordedPath,
    manifest: &'c Recorded,
}

impl Check<'_> {
    /// Hears of a key that is not understood. If the manifest is of this version
    /// it can have none; another version's may say what nobody here can check.
    fn unknown_key(&self, key: &str, report: &mut Report) {
        match self.is_of_this_version() {
            true => report.differs(format!("{}: {key} is of no extraction", self.name)),
            false => report.cannot_check(format!("{}: {key} is unknown to this version", self.name)),
        }
    }

    fn is_of_this_version(&self) -> bool {
        self.manifest.ramlift == env!("CARGO_PKG_VERSION")
    }

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
        let Some(algorithm) = self.manifest.hash else {
            return entry.hash.as_ref().map(|_| format!("{path}: {HASH_OF_NOTHING}"));
        };
        match (hash::of_file(&file, size, algorithm, rayon::current_num_threads()), &entry.hash) {
            (Err(error), _) => Some(format!("{path}: {error}")),
            (Ok(_), None) => Some(format!("{path}: the manifest has no hash of it")),
            (Ok(hash), Some(recorded)) if hash == *recorded => None,
            (Ok(hash), Some(recorded)) => Some(format!("{path}: hash {hash}, expected {}", Brief(recorded))),
        }
    }

    /// Whether there is anything that the manifest does not tell of.
    fn unexpected(&self, report: &mut Report) -> Result<(), Failure> {
        if let Some(file) = self.single_file() {
            for entry in self.manifest.files.iter().filter(|entry| entry.path != file) {
                report.differs(format!("{}: is in the manifest of {file}", entry.path));
            }
            if !self.manifest.files.iter().any(|entry| entry.path == file) {
                report.differs(format!("{file}: is not in its manifest"));
            }
            return Ok(());
        }
        let files = self.manifest.files.iter().map(|entry| Path::new(&entry.path));
        let mut known: BTreeSet<&Path> = files.flat_map(Path::ancestors).collect();
        known.insert(Path::new(MANIFEST));
        for path in leaves_below(&self.output.path)?.iter().filter(|path| !known.contains(path.as_path())) {
            let path = RecordedPath::from(path.as_os_str());
            report.differs(format!("{path}: is not in the manifest"));
        }
        Ok(())
    }

    /// The single file that the manifest is of.
    fn single_file(&self) -> Option<RecordedPath> {
        single_file(self.name.as_ref()).map(RecordedPath::from)
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
        let again = Again {
            output: self.output,
            file: self.single_file(),
            args: &extraction,
            is_quiet: self.args.quiet,
        };
        let content = match again.compare(report) {
            Ok(content) => content,
            // Of the machine, or of what it may take: the files can be as they should.
            Err(Failure::Hinted { text, hint }) => {
                report.cannot_check(format!("against the stream: {text}; {hint}"));
                return self.without_stream(report);
            }
            Err(failure) => {
                let failure = failure.to_string();
                report.differs(format!("cannot be made again from the stream: {}", Brief(&failure)));
                return Ok(());
            }
        };
        for entry in self.manifest.files.iter().filter(|entry| !report.made.contains(&entry.path)) {
            report.differences.insert(format!("{}: is nothing that the stream makes", entry.path));
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
        let line =
            std::iter::once(OsStr::new("ramlift")).chain(run.arguments.iter().map(OsString::as_os_str));
        let parsed = Cli::try_parse_from(line).map_err(|error| {
            let text = error.to_string();
            format!("the arguments in the manifest: {}", Brief(text.lines().next().unwrap_or_default()))
        })?;
        let Command::Extract(mut extraction) = parsed.command else {
            return Err("the arguments in the manifest are not of an extraction".to_owned());
        };
        let placed = |path: &Path| run.directory.join(path);
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
        let placed = |entry: &InputEntry| self.manifest.run.directory.join(&entry.path);
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
                    report.cannot_check(format!("against the stream: {}: {error}{hint}", brief(path)));
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
        let mut file = inputs::open(path)?;
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        let shown = brief(path);
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
        let Some(algorithm) = self.manifest.hash else {
            return Ok(entry.hash.as_ref().map(|_| format!("{shown}: {HASH_OF_NOTHING}")));
        };
        let Some(recorded) = &entry.hash else {
            return Ok(Some(format!("{shown}: the manifest has no hash of it")));
        };
        let hash = hash::of_file(&file, size, algorithm, rayon::current_num_threads())?;
        let fault = || format!("{shown}: hash {hash}, and what was read had {}", Brief(recorded));
        Ok((hash != *recorded).then(fault))
    }

    /// Whether an input may be in another place than it was.
    fn is_elsewhere(&self, role: Role) -> bool {
        role == Role::Stream && self.args.stream.is_some()
    }

    /// Whether the manifest tells of the stream what it is. Another version may
    /// tell it in other words.
    fn content(&self, content: &Content, report: &mut Report) {
        let Ok(Value::Object(expected)) = serde_json::to_value(content) else { return };
        for key in self.manifest.content.keys().filter(|key| !expected.contains_key(*key)) {
            self.unknown_key(&format!("/{}", Brief(key)), report);
        }
        if !self.is_of_this_version() {
            let version = Brief(&self.manifest.ramlift);
            report.cannot_check(format!("{}: is of version {version} of ramlift", self.name));
            return;
        }
        for (key, expected) in &expected {
            let met = self.manifest.content.get(key).unwrap_or(&Value::Null);
            let is_elsewhere = |at: &str| match at {
                // That is checked as an input's.
                "/source/path" => self.has_path_of_stream(),
                "/source/size" => self.is_elsewhere(Role::Stream) && self.has_size_of_stream(),
                _ => false,
            };
            if let Some((at, expected, met)) =
                first_difference(&format!("/{key}"), expected, met, &is_elsewhere)
            {
                let (met, expected) = (met.to_string(), expected.to_string());
                let text = format!("is {}, expected {}", Brief(&met), Brief(&expected));
                report.differs(format!("{}: {} {text}", self.name, Brief(&at)));
            }
        }
    }

    /// Whether what is told of the stream names the first input.
    fn has_path_of_stream(&self) -> bool {
        let met = self.manifest.content.get("source").and_then(|source| source.get("path"));
        let input = self.manifest.inputs.first().map(|input| os_text::shown(input.path.as_ref()));
        met.and_then(Value::as_str) == input.as_deref()
    }

    /// The same of its length, which can be untold.
    fn has_size_of_stream(&self) -> bool {
        let met = self.manifest.content.get("source").and_then(|source| source.get("size"));
        let input = self.manifest.inputs.first().and_then(|input| input.size);
        met.is_some_and(|met| met.is_null() || input.is_some() && met.as_u64() == input)
    }
}

/// What is wrong with a hash where the manifest says that nothing was hashed: nobody
/// could check it, and somebody could believe it.
const HASH_OF_NOTHING: &str = "the manifest has a hash of it, and says that there are none";

/// A path for messages, which can be of any length.
fn brief(path: &Path) -> String {
    RecordedPath::from(path).to_string()
}

/// All that is below a directory, relative to it, but for directories with
/// something in them. Symlinks are not followed.
fn leaves_below(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut leaves = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        let mut is_empty = true;
        for entry in fs::read_dir(&next).map_err(Failure::file(&next))? {
            let entry = entry.map_err(Failure::file(&next))?;
            let path = entry.path();
            let is_directory = entry.file_type().map_err(Failure::file(&path))?.is_dir();
            if is_directory { &mut pending } else { &mut leaves }.push(path);
            is_empty = false;
        }
        if is_empty {
            leaves.push(next);
        }
    }
    let relative = |path: &PathBuf| path.strip_prefix(directory).unwrap_or(path).to_owned();
    let mut leaves: Vec<PathBuf> = leaves.iter().map(relative).collect();
    leaves.sort();
    Ok(leaves)
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
