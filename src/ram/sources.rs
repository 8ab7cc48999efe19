//! Where pages are: in the stream itself, or in a file beside it.
//!
//! The index keeps one number for a page's place. The stream's own bytes have
//! their offset; those of another source have its number in the high bits.

use crate::bytes::Bytes;
use crate::units::{StreamOffset, index};

/// Bits of a place that are an offset in its source: 4 PiB.
const OFFSET_BITS: u32 = 52;

/// Sources there can be, the stream included.
const SOURCES: usize = 1 << (63 - OFFSET_BITS);

/// Behind all places of all sources.
pub(crate) const NOWHERE: StreamOffset = StreamOffset(1 << 63);

/// Whether a place is in the stream itself.
pub(crate) fn is_in_stream(at: StreamOffset) -> bool {
    at.0 >> OFFSET_BITS == 0
}

/// The bytes that pages are in.
#[derive(Clone, Debug)]
pub(crate) struct Sources<'a> {
    stream: Bytes<'a>,
    /// Where in the stream these bytes begin.
    start: u64,
    others: Vec<Bytes<'a>>,
}

impl<'a> Sources<'a> {
    pub(crate) fn new(stream: Bytes<'a>) -> Self {
        Self { stream, start: 0, others: Vec::new() }
    }

    /// Only a stretch of the stream, which begins at `start`.
    pub(crate) fn from_stretch(stream: &'a [u8], start: StreamOffset) -> Self {
        Self { stream: stream.into(), start: start.0, others: Vec::new() }
    }

    /// Adds a source. Gives the place of its first byte; `None` if it is too
    /// long or one too many.
    pub(crate) fn add(&mut self, bytes: Bytes<'a>) -> Option<StreamOffset> {
        if bytes.len() as u64 >> OFFSET_BITS != 0 || self.others.len() + 1 >= SOURCES {
            return None;
        }
        self.others.push(bytes);
        Some(StreamOffset((self.others.len() as u64) << OFFSET_BITS))
    }

    /// Whether a place is in the stream itself.
    pub(crate) fn is_stream(&self, at: StreamOffset) -> bool {
        at.0 >> OFFSET_BITS == 0
    }

    /// The bytes of a source from a place on.
    #[inline]
    pub(crate) fn from(&self, at: StreamOffset) -> Option<&'a [u8]> {
        let (source, offset) = self.place(at)?;
        source.slice().get(offset..)
    }

    /// The same, with what is known of their holes.
    pub(crate) fn bytes_from(&self, at: StreamOffset) -> Option<Bytes<'a>> {
        let (source, offset) = self.place(at)?;
        source.part(offset..source.len())
    }

    /// The source of a place, and where in it that is.
    #[inline]
    fn place(&self, at: StreamOffset) -> Option<(&Bytes<'a>, usize)> {
        let offset = at.0 & ((1 << OFFSET_BITS) - 1);
        let (source, start) = match index(at.0 >> OFFSET_BITS)? {
            0 => (&self.stream, self.start),
            nth => (self.others.get(nth - 1)?, 0),
        };
        Some((source, index(offset.checked_sub(start)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_has_no_bytes_before_its_own() {
        let sources = Sources::from_stretch(b"stretch", StreamOffset(100));
        assert_eq!(sources.from(StreamOffset(103)), Some(b"etch".as_slice()));
        assert_eq!(sources.from(StreamOffset(99)), None);
        assert_eq!(sources.from(StreamOffset(108)), None);
    }

    #[test]
    fn a_place_leads_to_its_source() {
        let mut sources = Sources::new(b"stream".into());
        let at = sources.add(b"other".into()).unwrap();
        assert_eq!(sources.from(StreamOffset(2)), Some(b"ream".as_slice()));
        assert_eq!(sources.from(at.checked_add(1).unwrap()), Some(b"ther".as_slice()));
        assert_eq!(sources.from(at.checked_add(6).unwrap()), None);
        assert_eq!(sources.from(StreamOffset(2 << OFFSET_BITS)), None);
        assert_eq!(sources.from(StreamOffset(u64::MAX)), None);
        assert_eq!(sources.from(NOWHERE), None);
        assert!(is_in_stream(StreamOffset(6)) && !is_in_stream(at) && !is_in_stream(NOWHERE));
    }
}
