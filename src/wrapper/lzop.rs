//! The container of `lzop`.
//!
//! ```text
//! 89 "LZO" 00 0d 0a 1a 0a
//! be16 version   be16 lib_version   be16 version_needed     the last one from 0x0940 on
//! u8 method  u8 level  be32 flags  [be32 filter]            level from 0x0940 on
//! be32 mode  be32 mtime_low  be32 mtime_high                mtime_high from 0x0940 on
//! u8 length, name   be32 checksum of all since the magic
//! [be32 length, extra field, be32 checksum of both]
//! { be32 len  be32 stored_len  checksums  data }            a block, at most 64 MiB; lzop writes 256 KiB
//! be32 0                                                    the end; another file may follow
//! ```
//!
//! A block's checksums are those that the flags name: of its `len` bytes
//! unpacked, adler32 then crc32; then, if `stored_len` is less, of the
//! `stored_len` packed ones. A block that did not shrink is stored as it is.
//! Every checksum is verified. Methods 1 to 3 are LZO1X, in one format;
//! filters and split files, which no libvirt writes, are refused.
//!
//! Source followed: lzop 1.04 `src/lzop.c`, `src/conf.h`.

use std::io::{self, Read};

use super::compression::Member;
use super::source::Source;
use super::{carry, failure};
use crate::error::Error;

/// What every file begins with.
pub(super) const MAGIC: [u8; 9] = *b"\x89LZO\0\r\n\x1a\n";
/// The version whose files this reads, and those before.
const LZOP_VERSION: u16 = 0x1040;
/// From this version on the header has three fields more.
const WIDE_HEADER: u16 = 0x0940;
/// lzop's `MAX_BLOCK_SIZE`.
const BLOCK_LEN_MAX: u32 = 64 << 20;
/// Bytes that LZO1X makes of one at most, with room: a run's length grows by
/// 255 for each byte.
const RATIO_MAX: u32 = 512;
/// Bytes of the extra field, which no lzop writes.
const EXTRA_LEN_MAX: u32 = 1 << 20;

const F_ADLER32_D: u32 = 0x1;
const F_ADLER32_C: u32 = 0x2;
const F_H_EXTRA_FIELD: u32 = 0x40;
const F_CRC32_D: u32 = 0x100;
const F_CRC32_C: u32 = 0x200;
const F_MULTIPART: u32 = 0x400;
const F_H_FILTER: u32 = 0x800;
const F_H_CRC32: u32 = 0x1000;

const DAMAGED: &str = "the compressed data is damaged: try another copy, or `lzop -dc --ignore-warn`";
const UNKNOWN: &str = "unpack it with `lzop -dc` first";

/// A decoder of one file's blocks.
pub(super) struct Lzop<R> {
    source: Source<R>,
    flags: u32,
    /// The block that is being handed out.
    block: Vec<u8>,
    /// Bytes of it that were.
    taken: usize,
    is_over: bool,
}

/// Reads fields and keeps their bytes for the checksum.
struct Fields<'a, R> {
    source: &'a mut Source<R>,
    read: Vec<u8>,
}

impl<R: Read> Fields<'_, R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.read.extend(bytes);
        Ok(bytes)
    }

    fn u8(&mut self) -> io::Result<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn be16(&mut self) -> io::Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn be32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads the checksum of all fields so far and compares it.
    fn verify(&mut self, flags: u32) -> io::Result<()> {
        let at = self.source.offset();
        let computed = if flags & F_H_CRC32 != 0 { crc32(&self.read) } else { adler32(&self.read) };
        let met = self.be32()?;
        compare(at, "lzop header, checksum", met, computed)
    }
}

impl<R: Read> Member<R> for Lzop<R> {
    fn begin(mut source: Source<R>) -> io::Result<Self> {
        source.read_exact(&mut [0; MAGIC.len()])?;
        let flags = read_header(&mut source).map_err(|error| cut(source.offset(), error))?;
        Ok(Self { source, flags, block: Vec::new(), taken: 0, is_over: false })
    }

    fn source(&self) -> &Source<R> {
        &self.source
    }

    fn end(self) -> Source<R> {
        self.source
    }
}

impl<R: Read> Read for Lzop<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.block.len() && !self.is_over {
            self.taken = 0;
            self.block.clear();
            self.next_block().map_err(|error| cut(self.source.offset(), error))?;
        }
        let read = self.block.get(self.taken..).unwrap_or_default().read(into)?;
        self.taken += read;
        Ok(read)
    }
}

impl<R: Read> Lzop<R> {
    /// Reads a block into `block`, or the end.
    fn next_block(&mut self) -> io::Result<()> {
        let at = self.source.offset();
        let len = be32(&mut self.source)?;
        if len == 0 {
            self.is_over = true;
            return Ok(());
        }
        let stored_len = be32(&mut self.source)?;
        check_lens(at, len, stored_len)?;
        let mut sums =
            |wanted: u32| if self.flags & wanted != 0 { be32(&mut self.source).map(Some) } else { Ok(None) };
        let unpacked_sums = (sums(F_ADLER32_D)?, sums(F_CRC32_D)?);
        let is_packed = stored_len < len;
        let packed_sums = if is_packed { (sums(F_ADLER32_C)?, sums(F_CRC32_C)?) } else { (None, None) };

        let mut stored = Vec::new();
        self.source.by_ref().take(stored_len.into()).read_to_end(&mut stored)?;
        if stored.len() as u64 != u64::from(stored_len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        verify(at, "lzop block, checksum of its packed bytes", packed_sums, &stored)?;
        self.block = if is_packed { unpack(at, &stored, len)? } else { stored };
        verify(at, "lzop block, checksum of its bytes", unpacked_sums, &self.block)
    }
}

/// Reads what follows the magic, up to the first block. Gives the flags.
fn read_header<R: Read>(source: &mut Source<R>) -> io::Result<u32> {
    let at = source.offset();
    let mut fields = Fields { source, read: Vec::new() };
    let version = fields.be16()?;
    fields.be16()?;
    let is_wide = version >= WIDE_HEADER;
    let needed = if is_wide { fields.be16()? } else { version };
    if version < 0x0900 || needed > LZOP_VERSION {
        let met = format!("{version:#x}, which needs {needed:#x}");
        return Err(invalid(failure(
            at,
            "lzop header, version",
            met,
            format!("up to {LZOP_VERSION:#x}"),
            UNKNOWN,
        )));
    }
    let method = fields.u8()?;
    if is_wide {
        fields.u8()?;
    }
    let flags = fields.be32()?;
    check_method(at, method, flags)?;
    for _ in 0..if is_wide { 3 } else { 2 } {
        fields.be32()?;
    }
    for _ in 0..fields.u8()? {
        fields.u8()?;
    }
    fields.verify(flags)?;
    if flags & F_H_EXTRA_FIELD != 0 {
        read_extra(source, flags)?;
    }
    Ok(flags)
}

/// Reads the extra field, which means nothing to lzop either.
fn read_extra<R: Read>(source: &mut Source<R>, flags: u32) -> io::Result<()> {
    let at = source.offset();
    let mut fields = Fields { source, read: Vec::new() };
    let len = fields.be32()?;
    if len > EXTRA_LEN_MAX {
        let expected = format!("at most {EXTRA_LEN_MAX:#x}");
        return Err(invalid(failure(at, "lzop extra field, length", format!("{len:#x}"), expected, DAMAGED)));
    }
    for _ in 0..len {
        fields.u8()?;
    }
    fields.verify(flags)
}

fn check_method(at: u64, method: u8, flags: u32) -> io::Result<()> {
    if !(1..=3).contains(&method) {
        let expected = "1, 2 or 3: LZO1X";
        return Err(invalid(failure(at, "lzop header, method", method.to_string(), expected, UNKNOWN)));
    }
    let refused = flags & (F_H_FILTER | F_MULTIPART);
    if refused != 0 {
        let expected = "neither a filter (0x800) nor parts (0x400)";
        return Err(invalid(failure(at, "lzop header, flags", format!("{flags:#x}"), expected, UNKNOWN)));
    }
    Ok(())
}

fn check_lens(at: u64, len: u32, stored_len: u32) -> io::Result<()> {
    let bad = |what, met: u32, expected: String| {
        Err(invalid(failure(at, what, format!("{met:#x}"), expected, DAMAGED)))
    };
    if len > BLOCK_LEN_MAX {
        bad("lzop block, length", len, format!("at most {BLOCK_LEN_MAX:#x}"))
    } else if stored_len == 0 || stored_len > len {
        bad("lzop block, stored length", stored_len, format!("1 to {len:#x}"))
    } else if len / RATIO_MAX > stored_len {
        bad("lzop block, length", len, format!("what {stored_len:#x} packed bytes can give"))
    } else {
        Ok(())
    }
}

fn unpack(at: u64, stored: &[u8], len: u32) -> io::Result<Vec<u8>> {
    // At most `RATIO_MAX` times what was read, and 64 MiB.
    let mut block = vec![0; len as usize];
    let met = match lzo::decompress_into(stored, &mut block) {
        Ok(met) if met == block.len() => return Ok(block),
        Ok(met) => format!("{met:#x} bytes"),
        Err(error) => error.to_string(),
    };
    Err(invalid(failure(at, "lzop block, unpacked", met, format!("{len:#x} bytes"), DAMAGED)))
}

fn verify(at: u64, what: &'static str, sums: (Option<u32>, Option<u32>), bytes: &[u8]) -> io::Result<()> {
    sums.0.map_or(Ok(()), |met| compare(at, what, met, adler32(bytes)))?;
    sums.1.map_or(Ok(()), |met| compare(at, what, met, crc32(bytes)))
}

fn compare(at: u64, what: &'static str, met: u32, computed: u32) -> io::Result<()> {
    if met == computed {
        return Ok(());
    }
    Err(invalid(failure(at, what, format!("{met:08x}"), format!("{computed:08x}"), DAMAGED)))
}

fn adler32(bytes: &[u8]) -> u32 {
    adler2::adler32_slice(bytes)
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn be32(source: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    source.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn invalid(error: Error) -> io::Error {
    carry(io::ErrorKind::InvalidData, error)
}

/// Says where the input ended, if that is what failed.
fn cut(at: u64, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::UnexpectedEof
        || error.get_ref().is_some_and(|inner| inner.is::<Error>())
    {
        return error;
    }
    let hint =
        "the file is shorter than what was written to it: an interrupted save, a full disk or a partial copy";
    carry(
        io::ErrorKind::UnexpectedEof,
        failure(at, "lzop data", "the end of the input", "its end mark", hint),
    )
}
