//! Frames of zstd: small ones are pieces, others are read as they come.
//!
//! ```text
//! 28 b5 2f fd   u8 descriptor   [u8 window]   [dictionary, content size]   blocks   [checksum]
//! ```
//!
//! `zstd` writes one frame, however many threads it has; `pzstd`, tools that
//! pack with an index, and `cat` of several files write many.

use std::io::{self, Cursor, Read};
use std::ops::RangeInclusive;

use super::compression::{Member, ZSTD_WINDOW_LOG};
use super::parallel::{Cut, Divisible, Piece};
use super::source::Source;

/// Bytes of a frame that is a piece: fewer are not worth a thread, more are not
/// held in memory.
const PIECE_LEN: RangeInclusive<usize> = 16 << 10..=4 << 20;
/// The window of such a frame, at most, as a power of two.
const PIECE_WINDOW_LOG: u32 = 21;
/// Bytes that may wait to be read of what it unpacks to.
const OUTPUT_LEN: usize = 8 << 20;
/// Bytes that are looked at first for a frame's end.
const FIRST_LEN: usize = 128 << 10;

/// One frame.
pub(super) struct Frame<R: Read> {
    decoder: zstd::Decoder<'static, Source<R>>,
    /// How long it is, if it can be taken as a whole and was not yet.
    whole_len: Option<usize>,
    is_over: bool,
}

impl<R: Read> Member<R> for Frame<R> {
    fn begin(mut source: Source<R>) -> io::Result<Self> {
        let whole_len = whole_len(&mut source)?;
        let decoder = decoder(source, ZSTD_WINDOW_LOG)?;
        Ok(Self { decoder, whole_len, is_over: false })
    }

    fn source(&self) -> &Source<R> {
        self.decoder.get_ref()
    }

    fn end(self) -> Source<R> {
        self.decoder.finish()
    }
}

impl<R: Read> Divisible<R> for Frame<R> {
    fn cut(&mut self, into: Option<&mut [u8]>) -> io::Result<Option<Cut>> {
        if self.is_over {
            return Ok(None);
        }
        if let Some(len) = self.whole_len.take() {
            self.is_over = true;
            return self.piece(len).map(|piece| Some(Cut::Piece(piece)));
        }
        let Some(into) = into else { return Ok(Some(Cut::Wait)) };
        Ok(match self.decoder.read(into)? {
            0 => None,
            len => Some(Cut::Read(len)),
        })
    }
}

impl<R: Read> Frame<R> {
    /// Takes all of a frame of `len` bytes.
    fn piece(&mut self, len: usize) -> io::Result<Piece> {
        let source = self.decoder.get_mut();
        let at = source.offset();
        let mut packed = vec![0; len];
        source.read_exact(&mut packed)?;
        let content_len = zstd::zstd_safe::get_frame_content_size(&packed).ok().flatten();
        let output_len = content_len.and_then(|len| usize::try_from(len).ok()).unwrap_or(OUTPUT_LEN);
        let memory = len + (1 << PIECE_WINDOW_LOG);
        let decoder = Box::new(decoder(Cursor::new(packed), PIECE_WINDOW_LOG)?);
        Ok(Piece { at, decoder, output_len: output_len.min(OUTPUT_LEN), memory })
    }
}

fn decoder<S: io::BufRead>(source: S, window_log: u32) -> io::Result<zstd::Decoder<'static, S>> {
    let mut decoder = zstd::Decoder::with_buffer(source)?.single_frame();
    decoder.window_log_max(window_log)?;
    Ok(decoder)
}

/// The length of the frame that begins here, if it is short and needs little.
fn whole_len<R: Read>(source: &mut Source<R>) -> io::Result<Option<usize>> {
    let mut len = FIRST_LEN;
    loop {
        let head = source.peek(len)?;
        if !has_small_window(head) {
            return Ok(None);
        }
        match zstd::zstd_safe::find_frame_compressed_size(head) {
            Ok(len) => return Ok(Some(len).filter(|len| PIECE_LEN.contains(len))),
            _ if head.len() < len || len >= *PIECE_LEN.end() => return Ok(None),
            _ => len *= 2,
        }
    }
}

/// Whether a frame's header asks for no more than a piece may have.
fn has_small_window(head: &[u8]) -> bool {
    const SINGLE_SEGMENT: u8 = 0x20;
    match head.get(4..6) {
        // The content is the window.
        Some([descriptor, _]) if descriptor & SINGLE_SEGMENT != 0 => {
            let content_len = zstd::zstd_safe::get_frame_content_size(head).ok().flatten();
            content_len.is_some_and(|len| len <= 1 << PIECE_WINDOW_LOG)
        }
        // An exponent from 10 on, and eighths of that.
        Some([_, window]) => 10 + u32::from(window >> 3) + u32::from(window & 7 != 0) <= PIECE_WINDOW_LOG,
        _ => false,
    }
}
