//! Bytes that can be gone back in, and searches in them that take time for
//! what is there: a hole is passed over, whatever its length.
//!
//! A hole reads as zeros, so what is found is what would be found in zeros.
//! Searches go over the bytes window by window. Only where a window is nothing but
//! zeros are [`Holes`] asked for, and what is looked for may reach over the end
//! of one by all but its last byte.

use std::ops::Range;

use memchr::memmem;

use crate::cursor::Cursor;
use crate::holes::Holes;
use crate::input::Input;
use crate::units::{StreamOffset, index};

/// Bytes that are compared with zero at a time.
const PIECE_LEN: usize = 64;

/// A stream in memory, and what is known of where it has holes.
///
/// Made from a slice, of whose holes nothing is known, from an [`Input`], whose
/// file knows them, or [with a list](Self::with_data) of what is no hole. A file
/// of terabytes that are holes is then read as fast as what is in it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bytes<'a> {
    slice: &'a [u8],
    /// Where in the stream they begin, which is how `holes` counts.
    start: u64,
    holes: Holes<'a>,
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(slice: &'a [u8]) -> Self {
        Self { slice, start: 0, holes: Holes::Unknown }
    }
}

impl<'a> From<&'a Vec<u8>> for Bytes<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Bytes<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl<'a> From<&'a Input> for Bytes<'a> {
    fn from(input: &'a Input) -> Self {
        Self { slice: input.bytes(), start: 0, holes: input.holes() }
    }
}

impl<'a> Bytes<'a> {
    /// `slice`, of which all is zero but for the ranges of `data`: they ascend,
    /// and none touches the next. Where that is not so, what is found is wrong.
    pub fn with_data(slice: &'a [u8], data: &'a [Range<u64>]) -> Self {
        Self { slice, start: 0, holes: Holes::Listed(data) }
    }

    /// All that is before the end of the input, from `cursor` on.
    pub(crate) fn behind(cursor: Cursor<'a>, holes: Holes<'a>) -> Self {
        Self { slice: cursor.rest(), start: cursor.offset().0, holes }
    }

    /// The bytes.
    pub(crate) fn slice(&self) -> &'a [u8] {
        self.slice
    }

    pub(crate) fn holes(&self) -> Holes<'a> {
        self.holes
    }

    pub(crate) fn len(&self) -> usize {
        self.slice.len()
    }

    /// Bytes that are no hole, at most.
    pub(crate) fn data_len(&self) -> u64 {
        self.holes.data_len().min(self.len() as u64)
    }

    /// A cursor over what stands at or behind `at`; `None` behind the end.
    pub(crate) fn cursor(&self, at: StreamOffset) -> Option<Cursor<'a>> {
        let skipped = index(at.0.checked_sub(self.start)?)?;
        Some(Cursor::new(self.slice.get(skipped..)?, at))
    }

    /// Where in the stream a place is that counts from here.
    pub(crate) fn offset_of(&self, place: StreamOffset) -> Option<StreamOffset> {
        place.checked_add(self.start)
    }

    /// The bytes of a range, by their number; `None` if they are not all there.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<Self> {
        let start = self.start.checked_add(range.start as u64)?;
        Some(Self { slice: self.slice.get(range)?, start, holes: self.holes })
    }

    /// The first data at or behind byte `from`, by its number: what is before
    /// it is zero. `None` if there is no more.
    pub(crate) fn next_data(&self, from: usize) -> Option<Range<usize>> {
        let data = self.holes.next_data(self.start.checked_add(from as u64)?)?;
        let number = |at: u64| index(at.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.len());
        let data = number(data.start).max(from)..number(data.end);
        (!data.is_empty()).then_some(data)
    }

    /// Bytes that are holes. Looks at all data.
    pub(crate) fn hole_len(&self) -> u64 {
        let (mut behind, mut data_len) = (0, 0);
        while let Some(data) = self.next_data(behind) {
            data_len += data.len();
            behind = data.end;
        }
        (self.len() - data_len) as u64
    }

    /// The number of the first byte from `from` on that is not zero; of none,
    /// how many there are.
    pub(crate) fn zeros_end(&self, from: usize) -> usize {
        let patience = self.holes.patience();
        let (mut at, mut data_end) = (from, 0);
        loop {
            let Some(window) = self.window(at, patience).filter(|window| !window.is_empty()) else {
                return self.len();
            };
            if let Some(zeros) = first_other(window) {
                return at + zeros;
            }
            at = self.behind_hole(at + window.len(), &mut data_end);
        }
    }

    /// The number of each byte that is not zero, in order.
    pub(crate) fn others(self) -> impl Iterator<Item = usize> + use<'a> {
        let mut behind = 0;
        std::iter::from_fn(move || {
            let at = self.zeros_end(behind);
            behind = at + 1;
            (at < self.len()).then_some(at)
        })
    }

    /// Whether all bytes are zero.
    pub(crate) fn is_zero(&self) -> bool {
        self.zeros_end(0) == self.len()
    }

    /// The number behind the last byte that is not zero.
    pub(crate) fn zeros_start(&self) -> usize {
        let patience = self.holes.patience();
        let mut end = self.len();
        while end > 0 {
            let start = end.saturating_sub(patience);
            let window = self.slice.get(start..end).unwrap_or_default();
            if let Some(last) = last_other(window) {
                return start + last + 1;
            }
            end = self.before_hole(start);
        }
        0
    }

    /// Each place of `needle`, by the number of its first byte, in order. It is
    /// not all zeros.
    pub(crate) fn places<'n>(self, needle: &'n [u8]) -> impl Iterator<Item = usize> + use<'a, 'n> {
        let finder = memmem::Finder::new(needle);
        let patience = self.holes.patience();
        let overlap = needle.len().saturating_sub(1);
        let (mut at, mut data_end) = (0, 0);
        std::iter::from_fn(move || {
            loop {
                let window = self.window(at, patience + overlap)?;
                if let Some(found) = finder.find(window) {
                    at += found + 1;
                    return Some(at - 1);
                }
                if window.len() < patience + overlap {
                    return None;
                }
                at += patience;
                if is_zero(window) {
                    at = at.max(self.behind_hole(at, &mut data_end).saturating_sub(overlap));
                }
            }
        })
    }

    /// The last place of `needle`, by the number of its first byte.
    pub(crate) fn last_place(&self, needle: &[u8]) -> Option<usize> {
        let finder = memmem::FinderRev::new(needle);
        let overlap = needle.len().saturating_sub(1);
        let mut end = self.len();
        loop {
            let start = end.saturating_sub(self.holes.patience() + overlap);
            let window = self.slice.get(start..end)?;
            if let Some(found) = finder.rfind(window) {
                return Some(start + found);
            }
            let before = if is_zero(window) { self.before_hole(start) } else { start };
            if before == 0 {
                return None;
            }
            end = before + overlap;
        }
    }

    /// Up to `len` bytes from `at` on.
    fn window(&self, at: usize, len: usize) -> Option<&'a [u8]> {
        let rest = self.slice.get(at..)?;
        Some(rest.get(..len).unwrap_or(rest))
    }

    /// Where to go on at `at`, as there are zeros before it: behind them, if they
    /// are a hole. Up to `data_end` it is known that there is none.
    fn behind_hole(&self, at: usize, data_end: &mut usize) -> usize {
        if at < *data_end {
            return at;
        }
        let data = self.next_data(at).unwrap_or(self.len()..usize::MAX);
        *data_end = data.end;
        data.start
    }

    /// Where to go on backward from `at`, as there are zeros behind it.
    fn before_hole(&self, at: usize) -> usize {
        let end = self.holes.data_end(self.start.saturating_add(at as u64));
        index(end.saturating_sub(self.start)).unwrap_or(at).min(at)
    }
}

/// Whether all bytes are zero. Pages that are not show it in their first few
/// bytes, nearly always.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(PIECE_LEN).all(is_zero_piece)
}

fn is_zero_piece(piece: &[u8]) -> bool {
    piece.iter().fold(0, |any, byte| any | byte) == 0
}

/// The number of the first byte that is not zero.
fn first_other(bytes: &[u8]) -> Option<usize> {
    let piece = bytes.chunks(PIECE_LEN).position(|piece| !is_zero_piece(piece))?;
    let start = piece * PIECE_LEN;
    Some(start + bytes.get(start..)?.iter().position(|byte| *byte != 0)?)
}

/// The number of the last.
fn last_other(bytes: &[u8]) -> Option<usize> {
    let pieces = bytes.rchunks(PIECE_LEN);
    let zeros: usize = pieces.take_while(|piece| is_zero_piece(piece)).map(<[u8]>::len).sum();
    bytes.get(..bytes.len() - zeros)?.iter().rposition(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes with long zeros, where data begins and ends, and what looks at them.
    fn bytes() -> impl Strategy<Value = (Vec<u8>, Vec<Range<u64>>)> {
        let piece = (1_usize..400, prop::collection::vec(prop::sample::select(vec![0_u8, 0, 1, 6]), 1..90));
        prop::collection::vec(piece, 0..6).prop_map(|pieces| {
            let (mut bytes, mut data) = (Vec::new(), Vec::new());
            for (zeros, piece) in pieces {
                bytes.resize(bytes.len() + zeros, 0);
                let start = bytes.len() as u64;
                bytes.extend(piece);
                data.push(start..bytes.len() as u64);
            }
            bytes.resize(bytes.len() + 300, 0);
            (bytes, data)
        })
    }

    fn needles() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0_u8, 1, 6]), 1..7)
    }

    proptest! {
        #[test]
        fn holes_change_nothing((bytes, data) in bytes(), needle in needles(), from in 0_usize..400) {
            let (holed, plain) = (Bytes::with_data(&bytes, &data), Bytes::from(&bytes));
            let from = from.min(bytes.len());
            let other = bytes[from..].iter().position(|byte| *byte != 0);
            prop_assert_eq!(holed.zeros_end(from), other.map_or(bytes.len(), |zeros| from + zeros));
            prop_assert_eq!(plain.zeros_end(from), holed.zeros_end(from));
            let part = holed.part(from..bytes.len()).unwrap();
            let last = bytes[from..].iter().rposition(|byte| *byte != 0);
            prop_assert_eq!(part.zeros_start(), last.map_or(0, |last| last + 1));
            let is_there = |at: &usize| bytes[from..].get(*at..*at + needle.len()) == Some(&needle[..]);
            let expected: Vec<usize> = (0..bytes.len() - from).filter(is_there).collect();
            prop_assert_eq!(part.last_place(&needle), expected.last().copied());
            if !is_zero(&needle) {
                prop_assert_eq!(part.places(&needle).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn a_file_tells_where_its_holes_are_whatever_is_mapped_of_it() {
        use std::os::unix::fs::FileExt;
        const END: u64 = 1 << 30;
        let file = tempfile::tempfile().unwrap();
        file.set_len(END).unwrap();
        for at in [0, 5 << 20, (900 << 20) + 77] {
            file.write_all_at(b"data", at).unwrap();
        }
        for start in [0, 1 << 20, 950 << 20] {
            let input = Input::of_range("sparse", &file, start..END).unwrap();
            let bytes = Bytes::from(&input);
            let places: Vec<u64> = bytes.places(b"data").map(|at| at as u64 + start).collect();
            let all = [0, 5 << 20, (900 << 20) + 77];
            let expected: Vec<u64> = all.into_iter().filter(|at| *at >= start).collect();
            assert_eq!(places, expected);
            assert_eq!(bytes.last_place(b"data").map(|at| at as u64 + start), expected.last().copied());
            let end = expected.last().map_or(0, |at| at + 4 - start);
            assert_eq!(bytes.zeros_start() as u64, end);
            assert!(bytes.data_len() <= 2 << 20, "{}", bytes.data_len());
        }
    }
}
