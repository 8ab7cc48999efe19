//! Streams compressed as a whole, by their magic.
//!
//! ```text
//! 1f 8b 08           gzip    flate2 over zlib-rs: members in a row
//! "BZh" 1…9          bzip2   bzip2 over libbz2-rs-sys, Rust: streams in a row
//! fd "7zXZ" 00       xz      liblzma: streams in a row, zeros by fours between them
//! 5d 00 00 …         lzma    liblzma: `.lzma`, which has no magic and no checksum
//! 28 b5 2f fd        zstd    zstd: frames in a row, skippable ones among them
//! 04 22 4d 18        lz4     lz4_flex, safe Rust: frames in a row, skippable ones too
//! 89 "LZO" 00 0d …   lzop    lzo, safe Rust, for LZO1X; the container is our own
//! ```
//!
//! Zeros up to the end of the input end the data: a volume is longer than
//! what was written to it. Any other bytes behind the data are an error, but
//! one that comes only after all of it was read: who has a stream whole by
//! then need not ask further.
//!
//! **Side by side.** Blocks of bzip2 and frames of zstd are cut apart here and
//! unpacked by several threads; blocks of xz by liblzma's own, if their headers
//! say how long they are, as `xz -T` writes them. How many at a time follows from
//! memory, so that a stream that goes by takes no more than 64 MiB in all. One
//! frame of zstd, as `zstd` writes, a gzip member and a single block of xz cannot be
//! divided: their decoder has a thread of its own.
//!
//! Memory is bounded: a window of zstd by [`ZSTD_WINDOW_LOG`], the tables and
//! dictionary of xz by [`XZ_MEMORY`], a block of lzop as lzop bounds it; the
//! others have blocks of some megabytes at most. What comes out is not
//! bounded here: whoever reads stops reading, as [`Bounded`](super::Bounded) does.
//!
//! **Crates looked at.** xz: `liblzma` is the reference code, built with it
//! so that no system library counts; the only one here with a limit on memory
//! that also decodes blocks in parallel. `lzma-rust2` is Rust alone but slower; `xz2` is no
//! longer kept. bzip2: `bzip2-rs` decodes blocks in parallel, but rests since
//! 2021; `bzip2` is kept, so the blocks are found here. lz4: `lz4_flex`; `lz4` binds C for the same. lzop: no crate
//! reads its container. For LZO1X `minilzo-rs` and `lzo1x` are GPL;
//! `lzokay-native` rests since 2023; `lzokay` does the same as `lzo` and adds
//! `zerocopy`, which it uses to compress; `lzo` is 200 lines without a
//! dependency or `unsafe`.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::num::NonZeroUsize;

use liblzma::stream::{Action, MtStreamBuilder, Status};

use super::bzip2::Blocks;
use super::frames::Frame;
use super::lzop::Lzop;
use super::parallel::Parallel;
use super::source::Source;
use super::{carry, failure};
use crate::error::Error;
use crate::units::{StreamOffset, index};

/// The largest window of zstd that is decoded, as a power of two: 128 MiB,
/// what the `zstd` command decodes without being told to.
pub const ZSTD_WINDOW_LOG: u32 = 27;
/// Bytes that decoding xz and lzma may take: `xz -9` needs 65 MiB.
pub const XZ_MEMORY: u64 = 256 << 20;
/// Bytes that decoding blocks of xz side by side may take. What needs more is
/// decoded by one thread.
const XZ_THREADS_MEMORY: u64 = 40 << 20;

/// Bytes that are unpacked in one go. Decoders tell of damage in place of what the
/// same call has unpacked before it: so little is all that damage takes with it.
pub(super) const GO_LEN: usize = 64 << 10;

/// What an [`ErrorKind::Wrapper`](crate::ErrorKind::Wrapper) is about that
/// comes only after all of the data: bytes of another kind follow it.
pub const BEHIND_DATA: &str = "bytes behind compressed data";

/// How something is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Compression {
    /// RFC 1952, as `gzip` writes.
    Gzip,
    /// As `bzip2` writes.
    Bzip2,
    /// As `xz` writes.
    Xz,
    /// The format before xz, as `lzma` and `xz --format=lzma` write.
    Lzma,
    /// RFC 8878, as `zstd` writes.
    Zstd,
    /// LZ4 frames, as `lz4` writes. Its legacy frames are not known.
    Lz4,
    /// As `lzop` writes.
    Lzop,
}

impl Compression {
    /// What begins with `prefix`, of which 13 bytes suffice, but where skippable
    /// frames come first: those can be of zstd and of lz4, so it is zstd unless the
    /// prefix shows more.
    pub fn detect(prefix: &[u8]) -> Option<Self> {
        use Compression::*;
        let frames =
            std::iter::successors(Some(prefix), |at| at.get(index(8 + u64::from(skippable(at)?))?..));
        let behind = frames.last().unwrap_or_default();
        if skippable(prefix).is_some() {
            return Some(if Lz4.starts(behind) { Lz4 } else { Zstd });
        }
        [Gzip, Bzip2, Xz, Zstd, Lz4, Lzop, Lzma].into_iter().find(|kind| kind.starts(prefix))
    }

    /// Whether a member can begin with these bytes.
    fn starts(self, prefix: &[u8]) -> bool {
        match self {
            Self::Gzip => prefix.starts_with(b"\x1f\x8b\x08"),
            Self::Bzip2 => prefix.starts_with(b"BZh") && matches!(prefix.get(3), Some(b'1'..=b'9')),
            Self::Xz => prefix.starts_with(b"\xfd7zXZ\0"),
            Self::Lzma => starts_lzma(prefix),
            Self::Zstd => prefix.starts_with(b"\x28\xb5\x2f\xfd"),
            Self::Lz4 => prefix.starts_with(b"\x04\x22\x4d\x18"),
            Self::Lzop => prefix.starts_with(&super::lzop::MAGIC),
        }
    }

    /// Whether skippable frames can stand between members.
    fn can_skip(self) -> bool {
        matches!(self, Self::Zstd | Self::Lz4)
    }

    /// The command that makes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzop => "lzop",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a file can be `.lzma`: the properties that every encoder writes,
/// a dictionary as they make them, and a length that is unknown or sane.
fn starts_lzma(prefix: &[u8]) -> bool {
    let Some(header) = prefix.first_chunk::<13>() else { return false };
    let [0x5d, d0, d1, d2, d3, len @ ..] = *header else { return false };
    let dictionary = u32::from_le_bytes([d0, d1, d2, d3]);
    let len = u64::from_le_bytes(len);
    let is_usual = dictionary >= 4096 && (dictionary.is_power_of_two() || dictionary.count_ones() == 2);
    is_usual && (len == u64::MAX || len < 1 << 40)
}

/// The bytes behind the head of a skippable frame, if this is one.
fn skippable(prefix: &[u8]) -> Option<u32> {
    let [m0, m1, m2, m3, l0, l1, l2, l3] = *prefix.first_chunk::<8>()?;
    let magic = u32::from_le_bytes([m0, m1, m2, m3]);
    (magic & !0xf == 0x184d_2a50).then(|| u32::from_le_bytes([l0, l1, l2, l3]))
}

/// What `input` is when unpacked, read from the start. `at` is where `input`
/// begins in the layer outside, for messages.
///
/// Errors of its reads carry an [`Error`]: see [`error_of`](super::error_of).
pub fn decoder<'a>(
    compression: Compression,
    input: impl Read + Send + 'a,
    at: StreamOffset,
) -> Box<dyn Read + Send + 'a> {
    let source = Source::new(input, at.0);
    match compression {
        Compression::Gzip => Box::new(Members::<_, flate2::bufread::GzDecoder<_>>::new(compression, source)),
        Compression::Bzip2 => {
            Box::new(Parallel::<_, Blocks<_>>::new(compression, Members::new(compression, source)))
        }
        Compression::Xz => Box::new(Members::<_, Xz<_, false>>::new(compression, source)),
        Compression::Lzma => Box::new(Members::<_, Xz<_, true>>::new(compression, source)),
        Compression::Zstd => {
            Box::new(Parallel::<_, Frame<_>>::new(compression, Members::new(compression, source)))
        }
        Compression::Lz4 => Box::new(Members::<_, Lz4<_>>::new(compression, source)),
        Compression::Lzop => Box::new(Members::<_, Lzop<_>>::new(compression, source)),
    }
}

/// The decoder of one member, frame or stream of a format.
pub(super) trait Member<R>: Sized {
    /// A decoder for what begins at `source`.
    fn begin(source: Source<R>) -> io::Result<Self>;
    /// What it reads from.
    fn source(&self) -> &Source<R>;
    /// What it reads from, which stands behind the member once that has ended.
    fn end(self) -> Source<R>;
}

/// All members of an input, one after the other.
pub(super) struct Members<R, M> {
    compression: Compression,
    state: State<R, M>,
}

enum State<R, M> {
    /// Before the first member.
    Before(Source<R>),
    Inside(M),
    /// Behind a member.
    Behind(Source<R>),
    Over,
    Failed,
}

impl<R: Read, M: Member<R>> Members<R, M> {
    pub(super) fn new(compression: Compression, source: Source<R>) -> Self {
        Self { compression, state: State::Before(source) }
    }

    /// Goes through the members until `work` gets something of one; nothing at
    /// the end. What fails stays so: no step goes on behind an error.
    pub(super) fn step<T>(
        &mut self,
        mut work: impl FnMut(&mut M) -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Failed) {
                State::Before(source) => self.next(source, true)?,
                State::Behind(source) => self.next(source, false)?,
                State::Inside(mut member) => match work(&mut member) {
                    Ok(None) => State::Behind(member.end()),
                    Ok(done) => {
                        self.state = State::Inside(member);
                        return Ok(done);
                    }
                    Err(error) => return Err(explain(self.compression, member.source().offset(), error)),
                },
                State::Over => {
                    self.state = State::Over;
                    return Ok(None);
                }
                State::Failed => return Err(io::Error::other("the decoder failed before")),
            };
        }
    }

    /// Goes into the next member, or ends.
    fn next(&self, mut source: Source<R>, is_first: bool) -> io::Result<State<R, M>> {
        let zeros = if is_first { 0 } else { source.skip_zeros()? };
        let at = source.offset();
        let head = source.peek(13)?;
        if head.is_empty() && !is_first {
            return Ok(State::Over);
        }
        let may_follow = match self.compression {
            // Its decoder takes padding between streams by fours.
            Compression::Xz => zeros % 4 == 0,
            Compression::Lzma => is_first,
            _ => zeros == 0,
        };
        if may_follow && self.compression.starts(head) {
            return M::begin(source).map(State::Inside);
        }
        match skippable(head).filter(|_| may_follow && self.compression.can_skip()) {
            Some(len) => self.skip(source, 8 + u64::from(len)),
            None => Err(carry(io::ErrorKind::InvalidData, self.stray(at, head, is_first))),
        }
    }

    /// Leaves a skippable frame of `len` bytes behind.
    fn skip(&self, mut source: Source<R>, len: u64) -> io::Result<State<R, M>> {
        let at = source.offset();
        let skipped = io::copy(&mut source.by_ref().take(len), &mut io::sink())?;
        if skipped < len {
            let met = format!("the end of the input after {skipped:#x} bytes");
            let error = failure(at, "skippable frame", met, format!("{len:#x} bytes"), CUT);
            return Err(carry(io::ErrorKind::UnexpectedEof, error));
        }
        Ok(State::Behind(source))
    }

    /// Bytes where a member should begin.
    fn stray(&self, at: u64, head: &[u8], is_first: bool) -> Error {
        let met = if head.is_empty() { "the end of the input".to_owned() } else { hex(head) };
        let name = self.compression.name();
        if is_first {
            failure(at, "compressed data", met, format!("what begins {name} data"), CUT)
        } else {
            let expected = format!("the end, zeros, or more {name} data");
            let hint = "something was written behind the compressed data; cut it off there if all before it is whole";
            failure(at, BEHIND_DATA, met, expected, hint)
        }
    }
}

/// Says of a decoder's failure where it was.
pub(super) fn explain(compression: Compression, at: u64, error: io::Error) -> io::Error {
    // A layer below has said it already, or the system failed.
    if error.get_ref().is_some_and(|inner| inner.is::<Error>()) || error.raw_os_error().is_some() {
        return error;
    }
    let kind = error.kind();
    let hint = if kind == io::ErrorKind::UnexpectedEof { CUT } else { DAMAGED };
    let expected = format!("{} data", compression.name());
    carry(kind, failure(at, "compressed data", error.to_string(), expected, hint))
}

const CUT: &str = "the file is shorter than what was written to it: an interrupted save, a full disk or a partial copy; what is before this place can still be unpacked";
pub(super) const DAMAGED: &str = "the compressed data is damaged or needs more memory than is allowed: unpack it with its own command first";

impl<R: Read, M: Member<R> + Read> Read for Members<R, M> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let go = into.len().min(GO_LEN);
        let into = into.get_mut(..go).unwrap_or_default();
        let read = self.step(|member| member.read(into).map(|read| Some(read).filter(|read| *read > 0)))?;
        Ok(read.unwrap_or(0))
    }
}

fn hex(bytes: &[u8]) -> String {
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.join(" ")
}

impl<R: Read> Member<R> for flate2::bufread::GzDecoder<Source<R>> {
    fn begin(source: Source<R>) -> io::Result<Self> {
        Ok(Self::new(source))
    }
    fn source(&self) -> &Source<R> {
        self.get_ref()
    }
    fn end(self) -> Source<R> {
        self.into_inner()
    }
}

/// One xz stream, or a `.lzma` file.
struct Xz<R, const IS_LZMA: bool> {
    source: Source<R>,
    stream: liblzma::stream::Stream,
    is_over: bool,
    /// What the decoder failed with behind the bytes that it gave last.
    failure: Option<liblzma::stream::Error>,
}

impl<R: Read, const IS_LZMA: bool> Read for Xz<R, IS_LZMA> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // The decoder with threads may take nothing once, to have a block's end.
        let mut is_idle = false;
        while !self.is_over {
            if let Some(failure) = self.failure.take() {
                return Err(failure.into());
            }
            let packed = self.source.fill_buf()?;
            let is_all = packed.is_empty();
            let action = if is_all { Action::Finish } else { Action::Run };
            let before = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.process(packed, into, action);
            let consumed = index(self.stream.total_in() - before.0).unwrap_or(0);
            let read = index(self.stream.total_out() - before.1).unwrap_or(0);
            self.source.consume(consumed);
            if read > 0 {
                // What comes before a failure counts.
                self.is_over = matches!(status, Ok(Status::StreamEnd));
                self.failure = status.err();
                return Ok(read);
            }
            self.is_over = status? == Status::StreamEnd;
            match (is_all || is_idle) && consumed == 0 && !self.is_over {
                true if is_all => return Err(io::ErrorKind::UnexpectedEof.into()),
                true => return Err(io::Error::new(io::ErrorKind::InvalidData, "corrupt xz stream")),
                false => is_idle = consumed == 0,
            }
        }
        Ok(0)
    }
}

impl<R: Read, const IS_LZMA: bool> Member<R> for Xz<R, IS_LZMA> {
    fn begin(source: Source<R>) -> io::Result<Self> {
        let stream = if IS_LZMA {
            liblzma::stream::Stream::new_lzma_decoder(XZ_MEMORY)?
        } else {
            let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            MtStreamBuilder::new()
                .threads(u32::try_from(threads).unwrap_or(u32::MAX))
                .memlimit_threading(XZ_THREADS_MEMORY)
                .memlimit_stop(XZ_MEMORY)
                .decoder()?
        };
        Ok(Self { source, stream, is_over: false, failure: None })
    }
    fn source(&self) -> &Source<R> {
        &self.source
    }
    fn end(self) -> Source<R> {
        self.source
    }
}

/// One lz4 frame.
struct Lz4<R: Read>(lz4_flex::frame::FrameDecoder<Whole<Source<R>>>);

/// An input that may not end: lz4_flex takes the end of its input, wherever
/// between blocks, for the end of a frame, and would hide that one is cut. It
/// does so by the error's kind, which a layer outside that is cut has too.
struct Whole<S>(S);

impl<S: Read> Read for Whole<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let end = || io::Error::new(io::ErrorKind::InvalidData, "the end of the input");
        match self.0.read(into) {
            Ok(0) if !into.is_empty() => Err(end()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(error
                .into_inner()
                .map_or_else(end, |inner| io::Error::new(io::ErrorKind::InvalidData, inner))),
            result => result,
        }
    }
}

impl<R: Read> Read for Lz4<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl<R: Read> Member<R> for Lz4<R> {
    fn begin(source: Source<R>) -> io::Result<Self> {
        Ok(Self(lz4_flex::frame::FrameDecoder::new(Whole(source))))
    }
    fn source(&self) -> &Source<R> {
        &self.0.get_ref().0
    }
    fn end(self) -> Source<R> {
        self.0.into_inner().0
    }
}
