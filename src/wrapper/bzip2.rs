//! Streams of bzip2, cut into their blocks.
//!
//! ```text
//! "BZh" level                      level: '1' to '9', blocks of as many 100 kB
//! 48 bits 0x314159265359           a block; from here on nothing is aligned
//!    32 bits CRC   1 bit randomised   24 bits origin
//!    16 bits, and 16 for each that is set: bytes in use
//!    3 bits groups, 2 to 6   15 bits selectors, from 1   selectors: each ones, fewer than groups, and a zero
//!    …
//! 48 bits 0x177245385090           the end   32 bits CRC of all, zeros up to a byte
//! ```
//!
//! No length says where a block ends. So the next magic is looked for, bit by
//! bit, and counts if a block's header follows, or a CRC that goes with those of
//! the blocks before: no chance makes bits inside of a block look so. A block is
//! made a stream of its own, and unpacked as such.
//!
//! Source followed: bzip2 1.0.8 `decompress.c`.

use std::io::{self, BufRead, Cursor, Read};

use super::compression::{DAMAGED, Member};
use super::parallel::{Cut, Divisible, Piece};
use super::source::Source;
use super::{carry, failure};

const BLOCK: u64 = 0x3141_5926_5359;
const END: u64 = 0x1772_4538_5090;
const MAGIC_BITS: usize = 48;
const CRC_BITS: usize = 32;
/// Bits that are looked at to tell a block's header: all up to some selectors.
const HEADER_BITS: usize = 1024;
/// Bytes of a packed block, at most: 900 000 symbols of 20 bits, and their tables.
/// No encoder makes one of more than 1 MB.
const BLOCK_LEN_MAX: usize = 5 << 19;
/// Bytes that are looked through first for a block's end.
const WINDOW_LEN: usize = 128 << 10;

/// A stream of bzip2.
pub(super) struct Blocks<R> {
    source: Source<R>,
    /// Times 100 kB: the length of blocks.
    level: u8,
    /// Bits of the next byte that are done with.
    bit: usize,
    /// The CRC of all blocks so far.
    crc: u32,
    is_over: bool,
}

impl<R: Read> Member<R> for Blocks<R> {
    fn begin(mut source: Source<R>) -> io::Result<Self> {
        let mut head = [0; 4];
        source.read_exact(&mut head)?;
        let [_, _, _, level] = head;
        Ok(Self { source, level: level - b'0', bit: 0, crc: 0, is_over: false })
    }

    fn source(&self) -> &Source<R> {
        &self.source
    }

    fn end(self) -> Source<R> {
        self.source
    }
}

impl<R: Read> Divisible<R> for Blocks<R> {
    fn cut(&mut self, _: Option<&mut [u8]>) -> io::Result<Option<Cut>> {
        if self.is_over {
            return Ok(None);
        }
        let head = self.source.peek((MAGIC_BITS + CRC_BITS).div_ceil(8) + 1)?;
        let crc = bits(head, self.bit + MAGIC_BITS, CRC_BITS).and_then(|crc| u32::try_from(crc).ok());
        match (bits(head, self.bit, MAGIC_BITS), crc) {
            (Some(BLOCK), Some(crc)) => self.block(crc).map(|piece| Some(Cut::Piece(piece))),
            (Some(END), Some(crc)) => self.finish(crc).map(|()| None),
            (None, _) | (Some(BLOCK | END), None) => Err(io::ErrorKind::UnexpectedEof.into()),
            (Some(met), _) => Err(self.damaged("bzip2 block, magic", met, BLOCK)),
        }
    }
}

impl<R: Read> Blocks<R> {
    /// Takes the block that begins here.
    fn block(&mut self, crc: u32) -> io::Result<Piece> {
        let at = self.source.offset();
        self.crc = self.crc.rotate_left(1) ^ crc;
        let end = self.find_end()?;
        let len = end.map_or(BLOCK_LEN_MAX, |end| end.div_ceil(8));
        let bytes = self.source.peek(len)?;
        let until = end.unwrap_or(bytes.len() * 8);
        let packed = alone(bytes, self.level, self.bit..until, end.map(|_| crc));
        let done = until / 8;
        self.bit = until % 8;
        self.source.consume(done);
        let memory = packed.len() + usize::from(self.level) * 400_000;
        let decoder = Box::new(bzip2::bufread::BzDecoder::new(Cursor::new(packed)));
        Ok(Piece { at, decoder, output_len: usize::from(self.level) * 100_000, memory })
    }

    /// Where the block that begins here ends, in bits of what comes next.
    fn find_end(&mut self) -> io::Result<Option<usize>> {
        let (mut from, mut len) = (self.bit + MAGIC_BITS, WINDOW_LEN);
        loop {
            let crc = self.crc;
            let bytes = self.source.peek(len)?;
            let is_all = bytes.len() < len || len >= BLOCK_LEN_MAX;
            // What begins near the end shows only with what follows.
            let to = if is_all { usize::MAX } else { bytes.len() * 8 - HEADER_BITS };
            while let Some(at) = find_magic(bytes, from).filter(|at| *at < to) {
                if is_head(bytes, at, crc) {
                    return Ok(Some(at));
                }
                from = at + 1;
            }
            if is_all {
                return Ok(None);
            }
            from = from.max(to);
            len = (len * 2).min(BLOCK_LEN_MAX);
        }
    }

    /// Takes the end of the stream.
    fn finish(&mut self, crc: u32) -> io::Result<()> {
        if crc != self.crc {
            return Err(self.damaged("bzip2 stream, checksum", crc.into(), self.crc.into()));
        }
        self.source.consume((self.bit + MAGIC_BITS + CRC_BITS).div_ceil(8));
        self.is_over = true;
        Ok(())
    }

    fn damaged(&self, what: &'static str, met: u64, expected: u64) -> io::Error {
        let (met, expected) = (format!("{met:#x}"), format!("{expected:#x}"));
        carry(io::ErrorKind::InvalidData, failure(self.source.offset(), what, met, expected, DAMAGED))
    }
}

/// A block as a stream of its own. One whose end is not known has none.
fn alone(bytes: &[u8], level: u8, block: std::ops::Range<usize>, crc: Option<u32>) -> Vec<u8> {
    let mut stream = Vec::with_capacity((block.end - block.start) / 8 + 32);
    stream.extend_from_slice(b"BZh");
    stream.push(b'0' + level);
    let (from, shift) = (bytes.get(block.start / 8..).unwrap_or_default(), block.start % 8);
    let whole = (block.end - block.start) / 8;
    let behind = from.iter().skip(1).chain(std::iter::once(&0));
    let shifted = from.iter().zip(behind).map(|(byte, next)| {
        let pair = u16::from_be_bytes([*byte, *next]) << shift;
        pair.to_be_bytes()[0]
    });
    stream.extend(shifted.take(whole));
    let mut tail_bits = (block.end - block.start) % 8;
    let mut tail = u128::from(bits(bytes, block.end - tail_bits, tail_bits).unwrap_or(0));
    if let Some(crc) = crc {
        tail = (tail << MAGIC_BITS | u128::from(END)) << CRC_BITS | u128::from(crc);
        tail_bits += MAGIC_BITS + CRC_BITS;
    }
    let aligned = tail.rotate_right(u32::try_from(tail_bits).unwrap_or(0));
    stream.extend(aligned.to_be_bytes().iter().take(tail_bits.div_ceil(8)));
    stream
}

/// `count` bits from bit `at` on, up to 56 of them, if they are there.
fn bits(bytes: &[u8], at: usize, count: usize) -> Option<u64> {
    let end = at.checked_add(count)?.div_ceil(8);
    let those = bytes.get(at / 8..end)?;
    let word = those.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let behind = those.len() * 8 - at % 8 - count;
    Some(word >> behind & ((1 << count) - 1))
}

/// Where the next magic begins, of a block or of the end, at bit `from` or later.
fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let mut word: u64 = 0;
    for (index, byte) in bytes.iter().enumerate().skip(from / 8) {
        word = word << 8 | u64::from(*byte);
        if !IS_INSIDE.get((word >> 16) as usize & 0xff).is_some_and(|is_inside| *is_inside) {
            continue;
        }
        for behind in (0..8).rev() {
            if matches!(word >> behind & ((1 << MAGIC_BITS) - 1), BLOCK | END) {
                // A magic begins with zeros, as the word does at first.
                let start = ((index + 1) * 8).checked_sub(behind + MAGIC_BITS);
                if start.is_some_and(|start| start >= from) {
                    return start;
                }
            }
        }
    }
    None
}

/// The bytes that stand in a magic, however it is shifted: the third last, or
/// the one that has most of it.
#[expect(clippy::indexing_slicing, reason = "by a byte, and when this is compiled")]
static IS_INSIDE: [bool; 256] = {
    let mut is_inside = [false; 256];
    let mut shift = 0;
    while shift < 8 {
        is_inside[((BLOCK << shift) >> 16) as usize & 0xff] = true;
        is_inside[((END << shift) >> 16) as usize & 0xff] = true;
        shift += 1;
    }
    is_inside
};

/// Whether what begins with a magic at bit `at` is a block, or the end of blocks
/// with this CRC.
fn is_head(bytes: &[u8], at: usize, crc: u32) -> bool {
    let behind = at + MAGIC_BITS;
    if bits(bytes, at, MAGIC_BITS) == Some(END) {
        return bits(bytes, behind, CRC_BITS).is_none_or(|met| met == u64::from(crc));
    }
    // What is cut inside of its header is a block too.
    has_block_header(bytes, behind + CRC_BITS).unwrap_or(true)
}

/// Whether a block's header can be this, behind its CRC.
fn has_block_header(bytes: &[u8], at: usize) -> Option<bool> {
    let mut at = at;
    let mut next = |count| {
        at += count;
        bits(bytes, at - count, count)
    };
    next(1)?;
    if next(24)? > 900_000 {
        return Some(false);
    }
    let used = next(16)?;
    for _ in 0..used.count_ones() {
        next(16)?;
    }
    let (groups, selectors) = (next(3)?, next(15)?);
    if used == 0 || !(2..=6).contains(&groups) || selectors == 0 {
        return Some(false);
    }
    for _ in 0..selectors.min(100) {
        let mut ones = 0;
        while next(1)? == 1 {
            ones += 1;
            if ones == groups {
                return Some(false);
            }
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_found_wherever_they_begin() {
        for shift in 0..8 {
            for magic in [BLOCK, END] {
                let word = (u128::from(magic) << 40 | 0xa5) << shift;
                let bytes = word.to_be_bytes();
                let at = 128 - 40 - MAGIC_BITS - shift;
                assert_eq!(bits(&bytes, at, MAGIC_BITS), Some(magic));
                assert_eq!(find_magic(&bytes, 3), Some(at));
                assert_eq!(find_magic(&bytes, at), Some(at));
                assert_eq!(find_magic(&bytes, at + 1), None);
            }
        }
        assert_eq!(bits(&[0xff], 5, 4), None);
    }

    #[test]
    fn a_block_alone_has_its_bits_and_an_end() {
        let bytes: Vec<u8> = (0..40_u8).map(|n| n.wrapping_mul(0x9d)).collect();
        for start in 0..16 {
            for end in start + 40..start + 60 {
                let stream = alone(&bytes, 9, start..end, Some(0x1234_5678));
                for bit in start..end {
                    assert_eq!(bits(&stream, 32 + bit - start, 1), bits(&bytes, bit, 1));
                }
                let behind = 32 + end - start;
                assert_eq!(bits(&stream, behind, MAGIC_BITS), Some(END));
                assert_eq!(bits(&stream, behind + MAGIC_BITS, CRC_BITS), Some(0x1234_5678));
                assert_eq!(stream.len(), (behind + MAGIC_BITS + CRC_BITS).div_ceil(8));
            }
        }
    }
}
