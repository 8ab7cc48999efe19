//! `manifest.json`: what a run made of what, and how to make it again.
//!
//! What follows from the inputs alone is [`Content`], [`InputEntry`] and
//! [`FileEntry`]: the same for each run, whatever the threads. What is of one
//! run is in [`Run`].

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use ramlift::{BlockId, Stream};
use rayon::prelude::*;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::args::{ExtractArgs, Format};
use crate::block_devices::BlockDeviceEntry;
use crate::evidence::{Evidence, InputEntry};
use crate::exit::Failure;
use crate::hash::{self, Algorithm};
use crate::images::Status;
use crate::info::{self, Coverage, Doubtful, Lost, Source};
use crate::layers::Origin;
use crate::os_text::{self, RecordedPath};
use crate::terminal;

/// The manifest of a directory.
pub(crate) const MANIFEST: &str = "manifest.json";

/// What the name of a file's manifest ends with, behind the file's own.
pub(crate) const SIDECAR: &str = ".manifest.json";

/// The version of the manifest: another one if a key means something else, or
/// if one has to be understood for the rest to be checked.
pub(crate) const VERSION: u64 = 1;

#[derive(Serialize)]
struct Manifest<'c> {
    ramlift: &'static str,
    manifest_version: u64,
    #[serde(flatten)]
    content: &'c Content,
    hash: Option<Algorithm>,
    inputs: Vec<InputEntry>,
    files: Vec<FileEntry>,
    run: Run,
}

/// What is told of the stream, and of what was made of it.
#[derive(Serialize)]
pub(crate) struct Content {
    pub(crate) format: Format,
    source: Source,
    machine: Option<String>,
    pub(crate) pages_per_pass: Vec<u64>,
    pub(crate) blocks: Vec<BlockEntry>,
    pub(crate) block_devices: Vec<BlockDeviceEntry>,
    salvaged: bool,
    lost: Vec<Lost>,
    doubtful_pages: Vec<Doubtful>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Serialize)]
pub(crate) struct BlockEntry {
    pub(crate) idstr: String,
    pub(crate) file: Option<String>,
    pub(crate) used_length: u64,
    page_size: u64,
    #[serde(flatten)]
    pub(crate) coverage: Coverage,
    pub(crate) status: Status,
}

/// A file that was written.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Relative to the manifest's directory.
    #[serde(flatten)]
    pub(crate) path: RecordedPath,
    pub(crate) size: u64,
    pub(crate) hash: Option<String>,
}

/// What is of one run, and of no other.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "RunKeys", into = "RunKeys")]
pub(crate) struct Run {
    /// The command line behind the command's name.
    pub(crate) arguments: Vec<OsString>,
    /// The directory that relative paths count from.
    pub(crate) directory: PathBuf,
    started: String,
    finished: String,
    threads: usize,
    host: Host,
}

/// A run, as JSON has it.
#[derive(Serialize, Deserialize)]
struct RunKeys {
    arguments: Vec<String>,
    /// Those that are not UTF-8, each in its place, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arguments_escaped: Option<Vec<Option<String>>>,
    directory: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory_escaped: Option<String>,
    /// RFC 3339, UTC.
    started: String,
    finished: String,
    threads: usize,
    host: Host,
}

#[derive(Clone, Serialize, Deserialize)]
struct Host {
    /// `little` or `big`.
    byte_order: String,
    os: String,
    architecture: String,
}

impl Content {
    pub(crate) fn of(
        args: &ExtractArgs,
        stream: &Stream<'_>,
        origin: &Origin,
        images: &[(BlockId, Option<String>)],
        warnings: Vec<String>,
    ) -> Self {
        Self {
            format: args.format,
            source: Source::of(&args.source.stream, origin),
            machine: stream.configuration().map(|configuration| configuration.machine.to_string()),
            pages_per_pass: stream.ram().map(|ram| ram.pages_per_pass().to_vec()).unwrap_or_default(),
            blocks: block_entries(stream, images),
            block_devices: Vec::new(),
            salvaged: info::is_salvaged(stream),
            lost: info::lost(stream),
            doubtful_pages: info::doubtful_pages(stream),
            warnings,
        }
    }
}

fn block_entries(stream: &Stream<'_>, images: &[(BlockId, Option<String>)]) -> Vec<BlockEntry> {
    let Some(ram) = stream.ram() else { return Vec::new() };
    let entry = |(id, file): &(BlockId, Option<String>)| {
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
    images.iter().filter_map(entry).collect()
}

impl Run {
    fn since(started: Timestamp) -> Self {
        let host = Host {
            byte_order: if cfg!(target_endian = "little") { "little" } else { "big" }.to_owned(),
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
        };
        Self {
            arguments: std::env::args_os().skip(1).collect(),
            directory: std::env::current_dir().unwrap_or_default(),
            started: started.to_string(),
            finished: Timestamp::now().to_string(),
            threads: rayon::current_num_threads(),
            host,
        }
    }
}

impl From<Run> for RunKeys {
    fn from(run: Run) -> Self {
        let Run { arguments, directory, started, finished, threads, host } = run;
        let escaped: Vec<_> = arguments.iter().map(|argument| os_text::escaped(argument)).collect();
        Self {
            arguments_escaped: escaped.iter().any(Option::is_some).then_some(escaped),
            arguments: arguments.iter().map(|argument| os_text::shown(argument)).collect(),
            directory_escaped: os_text::escaped(directory.as_os_str()),
            directory: os_text::shown(directory.as_os_str()),
            started,
            finished,
            threads,
            host,
        }
    }
}

impl TryFrom<RunKeys> for Run {
    type Error = String;

    fn try_from(keys: RunKeys) -> Result<Self, String> {
        let RunKeys { arguments, arguments_escaped, directory, directory_escaped, .. } = keys;
        let RunKeys { started, finished, threads, host, .. } = keys;
        let escaped = arguments_escaped.unwrap_or_else(|| vec![None; arguments.len()]);
        if escaped.len() != arguments.len() {
            let (of, count) = (arguments.len(), escaped.len());
            return Err(format!("arguments_escaped has {count} elements, and arguments has {of}"));
        }
        let restore = |text, escaped| os_text::restore(text, escaped).map_err(|error| error.to_string());
        let arguments = arguments.into_iter().zip(escaped).map(|(text, escaped)| restore(text, escaped));
        Ok(Self {
            arguments: arguments.collect::<Result<_, _>>()?,
            directory: restore(directory, directory_escaped)?.into(),
            started,
            finished,
            threads,
            host,
        })
    }
}

/// A manifest as it is written, and its own hash.
pub(crate) struct Text {
    pub(crate) bytes: Vec<u8>,
    hash: Option<(Algorithm, String)>,
}

impl Text {
    /// Whoever keeps this line has the hashes of all that was read and written.
    pub(crate) fn seal(&self, path: &Path) -> Option<String> {
        let (algorithm, hash) = self.hash.as_ref()?;
        Some(format!("{}: {} {hash}", path.display(), algorithm.name()))
    }
}

/// What the file at `path` holds, where a manifest of an earlier run can be: none
/// if it is no file, or too long to be one. A pipe is not waited for.
pub(crate) fn read_earlier(path: &Path) -> Option<Vec<u8>> {
    /// Longer than any that there is: 65,536 blocks of 1 KiB.
    const LONGEST: u64 = 64 << 20;
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The files that the manifest at `path` tells of; none if it is no manifest of
/// ours.
pub(crate) fn files_of(path: &Path) -> Option<Vec<RecordedPath>> {
    #[derive(Deserialize)]
    struct Told {
        #[serde(rename = "ramlift")]
        _version: String,
        files: Vec<FileEntry>,
    }
    let told: Told = serde_json::from_slice(&read_earlier(path)?).ok()?;
    Some(told.files.into_iter().map(|file| file.path).collect())
}

/// Makes the manifest of files that are written: each one's name in the output,
/// and where it is now. Hashes them, and waits for the hashes of the inputs.
pub(crate) fn make(
    content: &Content,
    origin: &Origin,
    evidence: &Evidence,
    written: Vec<(OsString, PathBuf)>,
) -> Result<Text, Failure> {
    let algorithm = evidence.algorithm;
    let files = file_entries(written, algorithm)?;
    let manifest = Manifest {
        ramlift: env!("CARGO_PKG_VERSION"),
        manifest_version: VERSION,
        content,
        hash: algorithm,
        inputs: evidence.finish(origin)?,
        files,
        run: Run::since(evidence.started),
    };
    let mut bytes = Vec::new();
    terminal::write_json(&mut bytes, &manifest).map_err(|error| Failure::Other(error.to_string()))?;
    let hash = algorithm.map(|algorithm| {
        let mut hasher = hash::Hasher::new(algorithm);
        hasher.update(&bytes);
        (algorithm, hasher.finish())
    });
    Ok(Text { bytes, hash })
}

fn file_entries(
    mut written: Vec<(OsString, PathBuf)>,
    algorithm: Option<Algorithm>,
) -> Result<Vec<FileEntry>, Failure> {
    written.sort();
    let threads = rayon::current_num_threads();
    let entry = |(name, path): (OsString, PathBuf)| {
        let file = File::open(&path).map_err(Failure::file(&path))?;
        let size = file.metadata().map_err(Failure::file(&path))?.len();
        let hash = algorithm.map(|algorithm| hash::of_file(&file, size, algorithm, threads));
        let hash = hash.transpose().map_err(Failure::file(&path))?;
        Ok(FileEntry { path: RecordedPath::from(&name), size, hash })
    };
    written.into_par_iter().with_max_len(1).map(entry).collect()
}
