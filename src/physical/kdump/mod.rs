//! Compressed dumps of kdump, as makedumpfile and QEMU write them: for crash,
//! drgn and makedumpfile. Not flattened.
//!
//! ```text
//! header                   one block
//! sub header, notes        to a multiple of the block
//! bitmap of RAM            a bit for each block from address 0 on, lowest bit first
//! bitmap of what is here   the same length
//! descriptors              24 bytes for each block that is here: offset, size, flags
//! a block of zeros         which all blocks of zeros have as their data
//! data                     each block compressed by itself, by ascending address
//! ```
//!
//! A block is a page of the guest's kernel, as its VMCOREINFO tells, else the
//! smallest that the processor has. A page that no record of the stream holds
//! is RAM that is not here: readers take it for one that was left out.
//!
//! Source followed: QEMU `dump/dump.c`, `include/sysemu/dump.h`; makedumpfile
//! `diskdump_mod.h`, `IMPLEMENTATION`; crash `diskdump.c`.

mod header;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::{Compress, FlushCompress, Status};

use crate::block_files::create_new;
use crate::error::{Error, ErrorKind, Result};
use crate::extract::WINDOW_LEN;
use crate::physical::packed::{self, Packed, Packer, WindowMemory};
use crate::physical::{Core, Layout, elf};
use crate::progress::Progress;
use crate::ram::Ram;
use crate::units::index;
use header::{Numbers, Sizes};

/// How blocks are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compression {
    /// By zlib, at its fastest: what every reader knows.
    Zlib,
    /// By zstd, at level 1: makedumpfile from 1.7.0, crash from 8.0.0 and
    /// libkdumpfile from 0.5.0 on, where they are built with it.
    Zstd,
}

impl Compression {
    /// Its bit in the header's status and in a descriptor's flags.
    fn flag(self) -> u32 {
        match self {
            Self::Zlib => 0x1,
            Self::Zstd => 0x20,
        }
    }
}

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 24;

/// The most blocks that are said to be RAM without being in the stream: 1 TiB of
/// 4 KiB each, 32 MiB of bitmap. A stream can name any number of them.
const ABSENT_BLOCKS: u64 = 1 << 28;

/// Where the data of a block stands, among that of its window; `None` if it is
/// zero. How long it is, and how it is compressed.
pub(super) struct Descriptor {
    place: Option<usize>,
    len: usize,
    flags: u32,
}

/// A compressed dump in the making.
#[derive(Debug)]
pub struct Kdump<'r, 'a> {
    ram: &'r Ram<'a>,
    layout: &'r Layout,
    compression: Compression,
    head: Vec<u8>,
    numbers: Numbers,
    sizes: Sizes,
    /// The blocks that are RAM, ascending.
    known: Vec<Range<u64>>,
    /// The blocks that are here, ascending, and how many stand before each range.
    here: Vec<Range<u64>>,
    before: Vec<u64>,
    windows: Vec<u64>,
}

impl<'r, 'a> Kdump<'r, 'a> {
    /// The dump of the memory that `layout` makes of `ram`, with the notes of
    /// `core`.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] if memory is at addresses that the format has no
    /// numbers for.
    pub fn new(ram: &'r Ram<'a>, layout: &'r Layout, core: &Core, compression: Compression) -> Result<Self> {
        let block_len = header::block_len(core);
        let present = packed::present(ram, layout);
        let here = blocks(present.iter().cloned(), block_len);
        let ranges = layout.regions().iter().map(|region| region.range.start.0..region.range.end.0);
        let ram_blocks = blocks(ranges, block_len);
        let known =
            if count(&ram_blocks) - count(&here) <= ABSENT_BLOCKS { ram_blocks } else { here.clone() };
        let end = known.last().map_or(0, |range| range.end);
        let mut before = Vec::with_capacity(here.len());
        let mut sum = 0;
        for range in &here {
            before.push(sum);
            sum += range.end - range.start;
        }
        let numbers = Numbers::of(core);
        let notes = elf::notes(core);
        let sizes = Sizes::new(block_len, numbers, notes.len() as u64, end, sum)?;
        let head = header::bytes(core, layout, numbers, &sizes, compression.flag(), &notes);
        let windows = packed::windows(&present);
        Ok(Self { ram, layout, compression, head, numbers, sizes, known, here, before, windows })
    }

    /// The bytes that [`write`](Self::write) counts.
    pub fn progress_len(&self) -> u64 {
        self.windows.len() as u64 * WINDOW_LEN
    }

    /// Bytes that it takes at least, whatever memory holds: all but the data of
    /// blocks. For each block that is in the stream, zero or not, it is more than 24.
    pub fn fixed_len(&self) -> u64 {
        let bitmaps = [&self.known, &self.here].map(|ranges| count(ranges) / 8);
        let descriptors = count(&self.here).saturating_mul(DESCRIPTOR);
        let bitmaps = bitmaps.iter().fold(descriptors, |sum, len| sum.saturating_add(*len));
        bitmaps.saturating_add(self.head.len() as u64).saturating_add(self.sizes.block_len)
    }

    /// Bytes of the file before the data of blocks, holes included.
    pub fn data_offset(&self) -> u64 {
        self.sizes.data_at().saturating_add(self.sizes.block_len)
    }

    /// Writes the file, new, at `path`, on all threads of the current rayon
    /// pool. The same file comes of any number of them.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the file exists, or cannot be made or written; others
    /// for pages that cannot be decoded.
    pub fn write(&self, path: &Path, progress: &Progress) -> Result<()> {
        let fail = |source| Error::io(path, source);
        let file = create_new(path).map_err(fail)?;
        file.write_all_at(&self.head, 0).map_err(fail)?;
        write_bitmap(&file, self.sizes.bitmap_at(0), &self.known).map_err(fail)?;
        write_bitmap(&file, self.sizes.bitmap_at(1), &self.here).map_err(fail)?;
        let zeros = vec![0; index(self.sizes.block_len).unwrap_or(0)];
        file.write_all_at(&zeros, self.sizes.data_at()).map_err(fail)?;
        let at = self.data_offset();
        packed::write(self.ram, self.layout, &self.windows, self, (&file, path), at, progress).map(drop)
    }

    /// The blocks of a window that are here, and the number of the first
    /// descriptor.
    fn blocks_of(&self, window: u64) -> (Vec<Range<u64>>, u64) {
        let window = packed::addresses(window);
        let (start, end) = (window.start / self.sizes.block_len, window.end / self.sizes.block_len);
        let first = self.here.partition_point(|range| range.end <= start);
        let range = self.here.get(first).zip(self.before.get(first));
        let number = range.map_or(0, |(range, before)| before + start.max(range.start) - range.start);
        let within = self.here.iter().skip(first).take_while(|range| range.start < end);
        (within.map(|range| range.start.max(start)..range.end.min(end)).collect(), number)
    }
}

/// The blocks in which any of these addresses is, ascending.
fn blocks(ranges: impl Iterator<Item = Range<u64>>, block_len: u64) -> Vec<Range<u64>> {
    let mut blocks = Vec::new();
    for range in ranges {
        packed::push_range(&mut blocks, range.start / block_len..range.end.div_ceil(block_len));
    }
    blocks
}

fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Writes a bitmap of these bits, the lowest of a byte first. What is left out
/// is zero.
fn write_bitmap(file: &File, at: u64, ranges: &[Range<u64>]) -> io::Result<()> {
    /// Bytes that are written at a time.
    const PIECE: u64 = 64 << 10;
    const BITS: u64 = PIECE * 8;
    let mut piece = vec![0_u8; index(PIECE).unwrap_or(0)];
    let mut number = 0;
    for range in ranges {
        let mut bit = range.start;
        while bit < range.end {
            if bit / BITS != number {
                file.write_all_at(&piece, at.saturating_add(number * PIECE))?;
                piece.fill(0);
                number = bit / BITS;
            }
            let end = range.end.min((number + 1) * BITS);
            set_bits(&mut piece, bit % BITS..end - number * BITS);
            bit = end;
        }
    }
    // No more than the last bit needs: descriptors may follow it.
    let used = piece.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    file.write_all_at(piece.get(..used).unwrap_or_default(), at.saturating_add(number * PIECE))
}

fn set_bits(bytes: &mut [u8], bits: Range<u64>) {
    let mut bit = bits.start;
    while bit < bits.end {
        let (Some(byte), left) = (index(bit / 8), bits.end - bit) else { return };
        if bit.is_multiple_of(8) && left >= 8 {
            let whole = index(left / 8).and_then(|count| bytes.get_mut(byte..byte + count));
            whole.unwrap_or_default().fill(0xff);
            bit += left / 8 * 8;
        } else {
            if let Some(byte) = bytes.get_mut(byte) {
                *byte |= 1 << (bit % 8);
            }
            bit += 1;
        }
    }
}

/// A worker's compressor, and where it writes to.
pub(super) struct Compressor {
    kind: CompressorKind,
    buffer: Vec<u8>,
}

enum CompressorKind {
    Zlib(Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// What a block became; `None` if it did not get shorter.
    fn block(&mut self, block: &[u8]) -> Option<&[u8]> {
        let len = match &mut self.kind {
            CompressorKind::Zlib(zlib) => {
                zlib.reset();
                let status = zlib.compress(block, &mut self.buffer, FlushCompress::Finish).ok()?;
                // Another would be that the buffer is too short: it is as long as
                // the block.
                (status == Status::StreamEnd).then(|| index(zlib.total_out())).flatten()?
            }
            CompressorKind::Zstd(zstd) => zstd.compress_to_buffer(block, &mut self.buffer[..]).ok()?,
        };
        self.buffer.get(..len).filter(|packed| packed.len() < block.len())
    }
}

impl Packer for Kdump<'_, '_> {
    type Worker = Compressor;
    type Index = Vec<Descriptor>;

    fn worker(&self) -> Result<Compressor> {
        const LEVEL: i32 = 1;
        let kind = match self.compression {
            Compression::Zlib => CompressorKind::Zlib(Compress::new(flate2::Compression::fast(), true)),
            Compression::Zstd => {
                CompressorKind::Zstd(zstd::bulk::Compressor::new(LEVEL).map_err(|error| {
                    Error::new(ErrorKind::Unsupported { feature: format!("zstd at level {LEVEL}: {error}") })
                })?)
            }
        };
        Ok(Compressor { kind, buffer: vec![0; index(self.sizes.block_len).unwrap_or(0)] })
    }

    fn pack(
        &self,
        worker: &mut Compressor,
        window: u64,
        memory: &WindowMemory,
    ) -> Result<Packed<Vec<Descriptor>>> {
        let start = packed::addresses(window).start;
        let block_len = index(self.sizes.block_len).unwrap_or(0);
        let (blocks, _) = self.blocks_of(window);
        let mut packed = Packed { data: Vec::new(), index: Vec::new() };
        for block in blocks.into_iter().flatten() {
            let place = index(block * self.sizes.block_len - start).unwrap_or(0);
            let descriptor = match memory.data(place..place + block_len) {
                None => Descriptor { place: None, len: block_len, flags: 0 },
                Some(bytes) => {
                    let (data, flags) = match worker.block(bytes) {
                        Some(data) => (data, self.compression.flag()),
                        None => (bytes, 0),
                    };
                    let place = Some(packed.data.len());
                    packed.data.extend_from_slice(data);
                    Descriptor { place, len: data.len(), flags }
                }
            };
            packed.index.push(descriptor);
        }
        Ok(packed)
    }

    fn put(&self, file: &File, window: u64, at: u64, packed: Packed<Vec<Descriptor>>) -> io::Result<()> {
        file.write_all_at(&packed.data, at)?;
        let mut bytes = self.numbers.bytes();
        for Descriptor { place, len, flags } in packed.index {
            bytes.word_64(place.map_or(self.sizes.data_at(), |place| at.saturating_add(place as u64)));
            bytes.word_32(len as u64);
            bytes.word_32(flags.into());
            bytes.word_64(0);
        }
        let (_, first) = self.blocks_of(window);
        file.write_all_at(&bytes.into_vec(), self.sizes.descriptors_at().saturating_add(first * DESCRIPTOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ranges: &[Range<u64>]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bitmap");
        write_bitmap(&create_new(&path).unwrap(), 3, ranges).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let is_set = |bit: u64| {
            let byte = bytes.get(3 + index(bit / 8).unwrap()).copied().unwrap_or(0);
            byte >> (bit % 8) & 1 != 0
        };
        let end = ranges.last().map_or(0, |range| range.end) + 20;
        for bit in 0..end {
            assert_eq!(is_set(bit), ranges.iter().any(|range| range.contains(&bit)), "bit {bit}");
        }
    }

    #[test]
    fn a_bitmap_has_the_bits_of_its_ranges() {
        check(&[]);
        check(&[0..1, 3..4, 9..30, 31..32]);
        check(&[5..(64 << 13) + 9, (64 << 13) + 11..(64 << 13) + 12, (64 << 15) - 1..(64 << 15) + 1]);
    }
}
