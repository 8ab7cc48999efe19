//! What a run reads: which files, as they were met, and their hashes.
//!
//! A file is hashed by a thread beside the work, from its first byte to its
//! last, whatever part of it the stream is. What comes once, from a pipe or
//! because memory cannot keep the file, is hashed where it is read: before
//! anything is unpacked. Either way it is what `sha256sum` says of it.

use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::args::ExtractArgs;
use crate::exit::Failure;
use crate::hash::{self, Algorithm, Hasher};
use crate::layers::Origin;
use crate::os_text::RecordedPath;
use crate::{inputs, source};

/// Bytes that are read at a time of what the work left unread.
const CHUNK_LEN: usize = 1 << 20;

pub(crate) type Reader = Box<dyn Read + Send>;

/// What an input is for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    Stream,
    Channel,
    SharedFile,
}

/// An input in `manifest.json`.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct InputEntry {
    pub(crate) role: Role,
    /// As it was given.
    #[serde(flatten)]
    pub(crate) path: RecordedPath,
    /// In bytes. Of what came by a pipe it is known if it was hashed.
    pub(crate) size: Option<u64>,
    /// When it was last written to: RFC 3339, UTC. None of a pipe.
    modified: Option<String>,
    /// Which file it was, by the numbers that its file system knows it by.
    device: Option<u64>,
    inode: Option<u64>,
    pub(crate) hash: Option<String>,
}

/// An input, and the thread that hashes it if there is one.
struct Input {
    entry: InputEntry,
    path: PathBuf,
    /// What was there before anything was read; none of a pipe.
    found: Option<Metadata>,
    beside: Option<JoinHandle<io::Result<String>>>,
}

/// What there is to tell of a run beside its result.
pub(crate) struct Evidence {
    pub(crate) started: Timestamp,
    pub(crate) algorithm: Option<Algorithm>,
    inputs: RefCell<Vec<Input>>,
}

impl Evidence {
    /// Looks at the inputs, before anything is read of them.
    pub(crate) fn begin(args: &ExtractArgs) -> Self {
        let started = Timestamp::now();
        let stream = (Role::Stream, &args.source.stream);
        let channels = args.source.channels.iter().map(|path| (Role::Channel, path));
        let shared = args.shared_files.iter().map(|file| (Role::SharedFile, &file.path));
        let inputs = std::iter::once(stream).chain(channels).chain(shared);
        let inputs = inputs.map(|(role, path)| Input::look(role, path)).collect();
        Self { started, algorithm: args.hash, inputs: RefCell::new(inputs) }
    }

    /// Begins to hash the files that are not hashed yet: not those that come
    /// once, nor a stream that is hashed as it goes by.
    pub(crate) fn hash_beside(&self, origin: &Origin) -> Result<(), Failure> {
        let Some(algorithm) = self.algorithm else { return Ok(()) };
        let mut inputs = self.inputs.borrow_mut();
        let threads = (rayon::current_num_threads() / inputs.len().max(1)).max(1);
        for input in inputs.iter_mut() {
            let is_passing = input.entry.role == Role::Stream && origin.passing.borrow().is_some();
            if !is_passing && input.beside.is_none() && input.entry.size.is_some() {
                input.beside = Some(beside(&input.path, algorithm, threads)?);
            }
        }
        Ok(())
    }

    /// The inputs with their hashes. Waits for these.
    pub(crate) fn finish(&self, origin: &Origin) -> Result<Vec<InputEntry>, Failure> {
        let mut inputs = self.inputs.borrow_mut();
        let entry = |input: &mut Input| {
            let fail = Failure::file(source::name(&input.path));
            if let Some(found) = &input.found {
                inputs::check_found(&input.path, found)?;
            }
            let mut entry = input.entry.clone();
            if let Some(hashing) = input.beside.take() {
                let hash = hashing.join().map_err(|_| io::Error::other("the thread that hashes it panicked"));
                entry.hash = Some(hash.and_then(|hash| hash).map_err(fail)?);
            } else if entry.role == Role::Stream
                && let Some(passing) = origin.passing.take()
            {
                let (hash, len) = passing.finish().map_err(fail)?;
                entry.hash = Some(hash);
                entry.size = Some(len);
            }
            Ok(entry)
        };
        inputs.iter_mut().map(entry).collect()
    }
}

impl Input {
    /// What is not there, or cannot be looked at, is an error for who opens it.
    fn look(role: Role, path: &Path) -> Self {
        let metadata = if path == source::STDIN { None } else { path.metadata().ok() };
        let is_file = |metadata: &Metadata| metadata.is_file() || metadata.file_type().is_block_device();
        let metadata = metadata.filter(is_file);
        let len = |metadata: &Metadata| match metadata.is_file() {
            true => Some(metadata.len()),
            false => File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0))).ok(),
        };
        let modified = |metadata: &Metadata| Timestamp::try_from(metadata.modified().ok()?).ok();
        let entry = InputEntry {
            role,
            path: path.into(),
            size: metadata.as_ref().and_then(len),
            modified: metadata.as_ref().and_then(modified).map(|time| time.to_string()),
            device: metadata.as_ref().map(Metadata::dev),
            inode: metadata.as_ref().map(Metadata::ino),
            hash: None,
        };
        Self { entry, path: path.to_owned(), found: metadata, beside: None }
    }
}

/// Begins to hash a file.
fn beside(
    path: &Path,
    algorithm: Algorithm,
    threads: usize,
) -> Result<JoinHandle<io::Result<String>>, Failure> {
    let mut file = inputs::open(path).map_err(Failure::file(path))?;
    let len = file.seek(SeekFrom::End(0)).map_err(Failure::file(path))?;
    std::thread::Builder::new()
        .spawn(move || hash::of_file(&file, len, algorithm, threads))
        .map_err(|error| Failure::Other(format!("threads: {error}")))
}

/// What has been read of an input that comes once.
struct Passed {
    reader: Reader,
    hasher: Hasher,
    len: u64,
}

impl Passed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(into)?;
        self.hasher.update(into.get(..len).unwrap_or_default());
        self.len += len as u64;
        Ok(len)
    }
}

/// Hashes what is read through it. Who reads lets go of it in the end: what is
/// left is then for [`Passing`].
struct Tee {
    passed: Option<Passed>,
    done: Sender<Passed>,
}

impl Read for Tee {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.passed.as_mut().map_or(Ok(0), |passed| passed.read(into))
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        if let Some(passed) = self.passed.take() {
            // Nobody listens if the work has failed.
            let _ = self.done.send(passed);
        }
    }
}

/// The hash of an input that comes once, when all of it has been read.
pub(crate) struct Passing(Receiver<Passed>);

impl Passing {
    /// Reads what the work left unread: the hash is of all of it. Gives the
    /// hash and the length.
    fn finish(self) -> io::Result<(String, u64)> {
        let ended = |_| io::Error::other("the thread that read it ended without its hash");
        let mut passed = self.0.recv().map_err(ended)?;
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            match passed.read(&mut chunk) {
                Ok(0) => return Ok((passed.hasher.finish(), passed.len)),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }
}

/// Has what `reader` reads hashed.
pub(crate) fn hashing(reader: Reader, algorithm: Algorithm) -> (Reader, Passing) {
    let (done, passed) = channel();
    let tee = Tee { passed: Some(Passed { reader, hasher: Hasher::new(algorithm), len: 0 }), done };
    (Box::new(tee), Passing(passed))
}
