//! Pieces of compressed data, unpacked side by side and given out in order.
//!
//! ```text
//! input ──cut──► piece ──► a thread: decoder ──► chunks ──┐
//!           └──► piece ──► a thread: decoder ──► chunks ──┴──► read, in order
//! ```
//!
//! What is cut off is a piece that needs nothing of what stands before it: a
//! frame of zstd, a block of bzip2. A thread that is ahead waits when as many
//! chunks are unread as its piece says; so memory is bounded, whatever a piece
//! unpacks to. Where no piece can be had, data is read as it comes.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::compression::{Compression, GO_LEN, Member, Members, explain};

/// Bytes that all pieces at work take, once no further one is begun: with the
/// chunks of a stream that goes by, no more than 64 MiB in all.
const BUDGET: usize = 20 << 20;

/// Bytes that are handed over at a time.
const CHUNK_LEN: usize = 256 << 10;

/// A piece that can be unpacked alone.
pub(super) struct Piece {
    /// Where it begins in the layer outside.
    pub(super) at: u64,
    /// Reads what it unpacks to.
    pub(super) decoder: Box<dyn Read + Send>,
    /// Bytes of that, if known, or as many as may wait to be read.
    pub(super) output_len: usize,
    /// Bytes that it takes: packed, and to be unpacked; without its output.
    pub(super) memory: usize,
}

/// What a member gives next.
pub(super) enum Cut {
    Piece(Piece),
    /// So many bytes, read in place.
    Read(usize),
    /// Nothing before all pieces were read: then, in place.
    Wait,
}

/// A member that can be cut into pieces.
pub(super) trait Divisible<R>: Member<R> {
    /// Cuts the next piece off; reads into `into`, if there is such a place and
    /// no piece. Nothing is the member's end.
    fn cut(&mut self, into: Option<&mut [u8]>) -> io::Result<Option<Cut>>;
}

/// A piece at work.
struct Work {
    chunks: Receiver<io::Result<Vec<u8>>>,
    memory: usize,
}

/// All that members unpack to, in order.
pub(super) struct Parallel<R, M> {
    members: Members<R, M>,
    compression: Compression,
    works: VecDeque<Work>,
    works_max: usize,
    memory: usize,
    /// The chunk that is being read, and how much of it was.
    chunk: Vec<u8>,
    taken: usize,
    /// How the input ended, behind all pieces.
    end: Option<io::Result<()>>,
}

impl<R: Read, M: Divisible<R>> Parallel<R, M> {
    pub(super) fn new(compression: Compression, members: Members<R, M>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            members,
            compression,
            works: VecDeque::new(),
            // While one is read out, all threads have one.
            works_max: threads + 1,
            memory: 0,
            chunk: Vec::new(),
            taken: 0,
            end: None,
        }
    }

    /// Cuts off pieces while there is room. Gives what was read in place.
    fn fill(&mut self, into: &mut [u8]) -> Option<usize> {
        while self.end.is_none()
            && (self.works.is_empty() || self.works.len() < self.works_max && self.memory < BUDGET)
        {
            let mut into = self.works.is_empty().then_some(&mut *into);
            match self.members.step(|member| member.cut(into.as_deref_mut())) {
                Ok(Some(Cut::Piece(piece))) => {
                    if let Err(error) = self.begin(piece) {
                        self.end = Some(Err(error));
                    }
                }
                Ok(Some(Cut::Read(len))) => return Some(len),
                Ok(Some(Cut::Wait)) => break,
                Ok(None) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error)),
            }
        }
        None
    }

    fn begin(&mut self, piece: Piece) -> io::Result<()> {
        let chunks_max = piece.output_len.div_ceil(CHUNK_LEN);
        let memory = piece.memory + chunks_max * CHUNK_LEN;
        let (sender, chunks) = sync_channel(chunks_max);
        let compression = self.compression;
        std::thread::Builder::new().spawn(move || unpack(compression, piece, &sender))?;
        self.memory += memory;
        self.works.push_back(Work { chunks, memory });
        Ok(())
    }
}

/// Unpacks a piece, as long as somebody reads.
fn unpack(compression: Compression, mut piece: Piece, chunks: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_LEN);
        let result = piece.decoder.by_ref().take(CHUNK_LEN as u64).read_to_end(&mut chunk);
        let is_over = chunk.is_empty();
        if !is_over && chunks.send(Ok(chunk)).is_err() {
            return;
        }
        match result {
            Ok(_) if !is_over => {}
            Ok(_) => return,
            Err(error) => {
                // Nobody may want to know.
                let _ = chunks.send(Err(explain(compression, piece.at, error)));
                return;
            }
        }
    }
}

impl<R: Read, M: Divisible<R>> Read for Parallel<R, M> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let read = self.chunk.get(self.taken..).unwrap_or_default().read(into)?;
            self.taken += read;
            if read > 0 {
                return Ok(read);
            }
            let go = into.len().min(GO_LEN);
            if let Some(read) = self.fill(into.get_mut(..go).unwrap_or_default()) {
                return Ok(read);
            }
            let Some(work) = self.works.front() else {
                let failed = || io::Error::other("the decoder failed before");
                return match self.end.replace(Err(failed())) {
                    Some(Ok(())) => {
                        self.end = Some(Ok(()));
                        Ok(0)
                    }
                    end => end.unwrap_or_else(|| Err(failed())).map(|()| 0),
                };
            };
            match work.chunks.recv() {
                Ok(Ok(chunk)) => (self.chunk, self.taken) = (chunk, 0),
                Ok(Err(error)) => {
                    // What fails stays so: no read goes on behind an error.
                    self.works.clear();
                    self.end = Some(Err(error));
                }
                Err(_) => {
                    self.memory -= work.memory;
                    self.works.pop_front();
                }
            }
        }
    }
}
