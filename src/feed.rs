//! A stream that comes from a reader and goes by: a pipe, a decompressor.
//!
//! ```text
//!  reader ──► chunk ──► chunk ──► window: bytes that are not done with
//!  (a thread of its own)             │
//!                                    └─► kept: copies of what is no page
//! ```
//!
//! A thread reads ahead, a chunk at a time; there are never more than three.
//! The window is the last chunk with what was left of the one before. Pages go
//! from the window to their images, and the window moves on; all the rest of a
//! stream is small, and copied to where it can stay.

use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use elsa::FrozenVec;

use crate::bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{StreamOffset, index};
use crate::wire::limit;
use crate::wrapper::error_of;

/// Bytes that are read at a time, if nothing else is wanted.
const CHUNK_LEN: usize = 8 << 20;

/// Room before a chunk's bytes for what is left of the chunk before: more
/// than the longest page record.
const HEADROOM: usize = 128 << 10;

/// Bytes of memory that a piece which is kept takes beside its own, with what is
/// noted of its section: most of what the shortest ones take.
const PIECE_LEN: u64 = 96;

/// A stream that comes out of a reader.
pub struct Incoming {
    name: PathBuf,
    reader: Box<dyn Read + Send>,
    chunk_len: usize,
}

impl Incoming {
    /// A stream that comes out of `reader`, which is called `name` in messages.
    pub fn new(name: impl Into<PathBuf>, reader: impl Read + Send + 'static) -> Self {
        Self { name: name.into(), reader: Box::new(reader), chunk_len: CHUNK_LEN }
    }

    /// Has `len` bytes read at a time; 8 MiB if nothing is said. There are up
    /// to three times as many in memory, and threads share the pages of one.
    #[must_use]
    pub fn with_chunk_len(mut self, len: usize) -> Self {
        self.chunk_len = len.max(1);
        self
    }
}

impl Read for Incoming {
    /// Takes bytes, which are then no part of the stream any more.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into)
    }
}

/// What is kept of a stream that goes by: the bodies of its devices, its
/// description, all but the pages.
#[derive(Default)]
pub struct Kept(FrozenVec<Vec<u8>>);

impl Kept {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn keep(&self, bytes: Vec<u8>) -> &[u8] {
        self.0.push_get(bytes)
    }
}

/// The parts of a stream that can be gone back to: all of it, or what was kept.
#[derive(Clone, Default, Debug)]
pub(crate) struct Parts<'a>(Vec<(StreamOffset, &'a [u8])>);

impl<'a> Parts<'a> {
    /// All of a stream.
    pub(crate) fn whole(bytes: &'a [u8]) -> Self {
        Self(vec![(StreamOffset(0), bytes)])
    }

    /// Adds a part, which begins at `at`: not before the last.
    pub(crate) fn add(&mut self, at: StreamOffset, bytes: &'a [u8]) {
        self.0.push((at, bytes));
    }

    /// Where the last part ends.
    pub(crate) fn end(&self) -> StreamOffset {
        self.0.last().map_or(StreamOffset(0), |(at, bytes)| StreamOffset(at.0 + bytes.len() as u64))
    }

    /// The bytes of a range, if all of them are there.
    pub(crate) fn get(&self, range: Range<StreamOffset>) -> Option<&'a [u8]> {
        let behind = self.0.partition_point(|(at, _)| *at <= range.start);
        let (at, bytes) = self.0.get(behind.checked_sub(1)?)?;
        bytes.get(index(range.start.0 - at.0)?..index(range.end.0.checked_sub(at.0)?)?)
    }
}

/// The bytes of a stream that goes by, as far as they are not done with.
pub(crate) struct Feed {
    name: PathBuf,
    chunks: Receiver<io::Result<Vec<u8>>>,
    spare: Sender<Vec<u8>>,
    window: Vec<u8>,
    /// Where in the window the bytes begin that are not done with, and where
    /// in the stream that is.
    start: usize,
    at: StreamOffset,
    kept_len: u64,
    /// Why there is no more, if that is not the end.
    failure: Option<Error>,
}

impl Feed {
    /// Begins to read.
    ///
    /// The thread that reads ends with the reader, or when nobody listens any
    /// more; one that waits for a pipe is left behind.
    pub(crate) fn new(Incoming { name, reader, chunk_len }: Incoming) -> Self {
        let (chunk_sender, chunks) = sync_channel(1);
        let (spare, spares) = channel();
        let reading =
            std::thread::Builder::new().spawn(move || read_chunks(reader, chunk_len, &chunk_sender, &spares));
        // Where no thread is to be had, nothing comes, and this is why.
        let failure = reading.err().map(|source| Error::io(&name, source));
        Self { name, chunks, spare, window: Vec::new(), start: 0, at: StreamOffset(0), kept_len: 0, failure }
    }

    /// Where the window begins.
    pub(crate) fn start(&self) -> StreamOffset {
        self.at
    }

    /// The window: all bytes that were read and are not done with.
    pub(crate) fn window(&self) -> &[u8] {
        self.window.get(self.start..).unwrap_or_default()
    }

    /// The bytes of the window from `at` on.
    pub(crate) fn from(&self, at: StreamOffset) -> &[u8] {
        let skipped = at.0.checked_sub(self.at.0).and_then(index);
        skipped.and_then(|skipped| self.window().get(skipped..)).unwrap_or_default()
    }

    /// Why the reader ended, if it failed. What the stream has may be whole by
    /// then: who knows that has to ask.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Lets go of what stands before `at`, and reads on. False at the end, or
    /// where the reader [fails](Self::failure).
    pub(crate) fn more(&mut self, at: StreamOffset) -> bool {
        let done = at.0.checked_sub(self.at.0).and_then(index).unwrap_or(0);
        self.start = (self.start + done).min(self.window.len());
        self.at = at;
        let mut chunk = match self.chunks.recv() {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(source)) => {
                self.failure = Some(error_of(source, &self.name));
                return false;
            }
            Err(_) => return false,
        };
        let left = self.window.get(self.start..).unwrap_or_default();
        let used = match HEADROOM.checked_sub(left.len()) {
            Some(start) => {
                if let Some(room) = chunk.get_mut(start..HEADROOM) {
                    room.copy_from_slice(left);
                }
                self.start = start;
                std::mem::replace(&mut self.window, chunk)
            }
            None => {
                self.window.drain(..self.start);
                self.window.extend_from_slice(chunk.get(HEADROOM..).unwrap_or_default());
                self.start = 0;
                chunk
            }
        };
        // Nobody may want it any more.
        let _ = self.spare.send(used);
        true
    }

    /// Whether so many bytes are not copied to be kept.
    pub(crate) fn gives_away(len: usize) -> bool {
        len > CHUNK_LEN
    }

    /// `len` bytes from `at` on, which is in the window; less if the window has
    /// less. What [is long](Self::gives_away) is not copied: the window gives
    /// it away, and has a copy of its end, where reading goes on.
    ///
    /// # Errors
    /// [`ErrorKind::TooMuchToKeep`] if it is too much with all that was kept before.
    pub(crate) fn keep(&mut self, at: StreamOffset, len: usize) -> Result<Vec<u8>> {
        let skipped = self.window.len() - self.from(at).len();
        let len = len.min(self.window.len() - skipped);
        self.kept_len += len as u64 + PIECE_LEN;
        if self.kept_len > limit::KEPT_LEN {
            let what = "bytes besides RAM pages";
            let kind = ErrorKind::TooMuchToKeep { what, met: self.kept_len, bound: limit::KEPT_LEN };
            return Err(Error::at(at, kind));
        }
        if !Self::gives_away(len) {
            return Ok(self.window.get(skipped..skipped + len).unwrap_or_default().to_vec());
        }
        let again = len - HEADROOM;
        let end = self.window.get(skipped + again..).unwrap_or_default().to_vec();
        let mut kept = std::mem::replace(&mut self.window, end);
        self.start = 0;
        self.at = StreamOffset(at.0 + again as u64);
        kept.truncate(skipped + len);
        kept.drain(..skipped);
        kept.shrink_to_fit();
        Ok(kept)
    }

    /// Reads what is left to the end, and drops it. Gives how many bytes it
    /// is, and whether all of them are zero.
    pub(crate) fn drain(&mut self) -> (u64, bool) {
        let mut len = 0;
        let mut is_zero = true;
        let mut end = StreamOffset(self.at.0 + self.window().len() as u64);
        while self.more(end) {
            len += self.window().len() as u64;
            is_zero &= bytes::is_zero(self.window());
            end = StreamOffset(self.at.0 + self.window().len() as u64);
        }
        (len, is_zero)
    }
}

fn read_chunks(
    mut reader: impl Read,
    len: usize,
    chunks: &SyncSender<io::Result<Vec<u8>>>,
    spares: &Receiver<Vec<u8>>,
) {
    loop {
        // A chunk that was full before is not cleared again.
        let mut chunk = spares.try_recv().unwrap_or_default();
        // The longest piece of memory that is asked for, and nobody's fault if
        // there is none.
        if chunk.try_reserve_exact((HEADROOM + len).saturating_sub(chunk.len())).is_err() {
            let _ = chunks.send(Err(io::ErrorKind::OutOfMemory.into()));
            return;
        }
        chunk.resize(HEADROOM + len, 0);
        let read = read_full(&mut reader, chunk.get_mut(HEADROOM..).unwrap_or_default());
        let (filled, failure) = match read {
            Ok(filled) => (filled, None),
            Err((filled, error)) => (filled, Some(error)),
        };
        chunk.truncate(HEADROOM + filled);
        // What came before a failure counts.
        if filled > 0 && chunks.send(Ok(chunk)).is_err() {
            return;
        }
        let is_over = filled < len || failure.is_some();
        if let Some(error) = failure {
            let _ = chunks.send(Err(error));
        }
        if is_over {
            return;
        }
    }
}

/// Reads until `bytes` are full or there are no more. Gives how many there
/// are, on a failure too.
fn read_full(reader: &mut impl Read, bytes: &mut [u8]) -> Result<usize, (usize, io::Error)> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((filled, error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u64).flat_map(|at| (at * 0x9e37).to_le_bytes()).take(len).collect()
    }

    #[test]
    fn the_window_moves_over_all_bytes() {
        let all = bytes(3 * CHUNK_LEN + 777);
        let mut feed = Feed::new(Incoming::new("test", io::Cursor::new(all.clone())));
        let mut done = 0;
        // Steps that leave little, nothing, and more than there is room for.
        for step in [1000, 5_000_000, 100_000].into_iter().cycle() {
            let at = StreamOffset(done as u64);
            while feed.from(at).len() < step && feed.more(at) {}
            let seen = feed.from(at);
            let len = seen.len().min(step);
            assert!(seen[..len] == all[done..done + len], "at {at}");
            done += len;
            if len < step {
                break;
            }
        }
        assert_eq!(done, all.len());
    }

    #[test]
    fn a_failure_comes_behind_the_bytes_before_it() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let mut feed = Feed::new(Incoming::new("pipe", io::Cursor::new(b"head").chain(Broken)));
        assert!(feed.more(StreamOffset(0)));
        assert_eq!(feed.window(), b"head");
        assert!(!feed.more(StreamOffset(4)));
        let error = feed.failure().unwrap();
        assert!(error.to_string().contains("pipe"), "{error}");
    }

    #[test]
    fn what_is_drained_is_counted() {
        let mut feed = Feed::new(Incoming::new("test", io::Cursor::new(vec![0; CHUNK_LEN + 5])));
        feed.more(StreamOffset(0));
        assert_eq!(feed.drain(), (5, true));
    }
}
