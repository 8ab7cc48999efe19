//! libvirt save images: what `virsh save` and `virsh managedsave` write.
//!
//! ```text
//!  0  "LibvirtQemudSave"     or "LibvirtQemudPart" until the save is complete
//! 16  u32 version            2; 1 long ago
//! 20  u32 data_len           bytes between this header and the stream
//! 24  u32 was_running
//! 28  u32 format             version 1: not compressed, whatever stands here
//! 32  u32 cookieOffset       0: no cookie
//! 36  u32 unused[14]
//! 92  domain XML, NUL        } data_len bytes: the XML can be edited in
//!     cookie XML, NUL        } place, so there are some 64 KiB of zeros
//!     zeros                  }
//!     the stream             compressed alone; header and XML never are
//! ```
//!
//! Numbers are in the byte order of the host that wrote them; libvirt takes
//! them for swapped if the version is too large otherwise, and so does this.
//! Version 3 was never released: it is read as 2, and the format decides. A
//! `sparse` stream is QEMU's mapped-ram, with offsets from the start of the
//! *file*. Older helpers for O_DIRECT left zeros behind the stream.
//!
//! Source followed: libvirt `src/qemu/qemu_saveimage.c`.

use std::fmt;
use std::io::{self, Read};

use super::compression::{Compression, decoder};
use super::{Layer, error_of, failure};
use crate::error::{Error, ErrorKind, Result};
use crate::units::StreamOffset;

/// Bytes of the header, up to the domain XML.
pub const HEADER_LEN: usize = 92;
/// libvirt's `QEMU_SAVE_MAGIC`.
const QEMU_SAVE_MAGIC: &[u8; 16] = b"LibvirtQemudSave";
/// libvirt's `QEMU_SAVE_PARTIAL`: the magic until the last byte is written.
const QEMU_SAVE_PARTIAL: &[u8; 16] = b"LibvirtQemudPart";
/// The highest version that is read.
const VERSION_MAX: u32 = 3;
/// Bytes of XML, cookie and zeros. Real ones have about 70 KiB; guests with
/// hundreds of devices some hundreds. They are held in memory.
const DATA_LEN_MAX: u32 = 64 << 20;

/// The byte order of the host that wrote a save image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByteOrder {
    /// x86, ARM and most others.
    Little,
    /// s390x and older ppc64.
    Big,
}

/// What the stream of a save image is: libvirt's `virQEMUSaveFormat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The stream as it is.
    Raw,
    /// The stream, compressed as a whole.
    Compressed(Compression),
    /// QEMU's mapped-ram. Since libvirt 11.2.
    Sparse,
}

impl Format {
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Raw,
            1 => Self::Compressed(Compression::Gzip),
            2 => Self::Compressed(Compression::Bzip2),
            3 => Self::Compressed(Compression::Xz),
            4 => Self::Compressed(Compression::Lzop),
            5 => Self::Compressed(Compression::Zstd),
            6 => Self::Sparse,
            _ => return None,
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Compressed(compression) => compression.fmt(f),
            Self::Sparse => f.write_str("sparse"),
        }
    }
}

/// What stands before the stream of a save image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaveImage {
    /// The version of the header: 1 to 3.
    pub version: u32,
    /// The byte order of the host that wrote it.
    pub byte_order: ByteOrder,
    /// Whether libvirt never finished it: the stream is cut, or at least
    /// nobody said that it is whole.
    pub interrupted: bool,
    /// Whether the guest ran, and is to run again, when it was saved.
    pub was_running: bool,
    /// What the stream is.
    pub format: Format,
    /// The domain XML, without its NUL. Not checked to be XML.
    pub xml: Vec<u8>,
    /// libvirt's own state of the domain, as XML, without its NUL.
    pub cookie: Option<Vec<u8>>,
    data_len: u32,
}

/// The numbers of a header, checked as far as they can be alone.
struct Header {
    version: u32,
    byte_order: ByteOrder,
    interrupted: bool,
    data_len: u32,
    was_running: u32,
    format: Format,
    cookie_offset: u32,
}

impl SaveImage {
    /// Reads what stands before the stream from a file's first bytes.
    ///
    /// # Errors
    /// As [`SaveImage::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::read(&mut { bytes })
    }

    /// Takes what stands before the stream from `input`, up to the stream's
    /// first byte.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`] if it ends early, [`ErrorKind::Wrapper`] and
    /// [`ErrorKind::Limit`] for numbers that cannot be, and what `input` fails with.
    pub fn read(input: &mut impl Read) -> Result<Self> {
        let bytes = take(input, 0, HEADER_LEN as u64)?;
        let header = bytes.first_chunk().ok_or_else(|| cut(0, HEADER_LEN as u64, bytes.len()))?;
        let header = Header::parse(header)?;
        let data = take(input, HEADER_LEN as u64, header.data_len.into())?;
        let (xml, cookie) = match header.cookie_offset {
            0 => (data.as_slice(), None),
            split => match data.split_at_checked(split as usize) {
                Some((xml, cookie)) => (xml, Some(cookie)),
                None => return Err(header.bad_cookie()),
            },
        };
        Ok(Self {
            version: header.version,
            byte_order: header.byte_order,
            interrupted: header.interrupted,
            was_running: header.was_running != 0,
            format: header.format,
            xml: up_to_nul(xml).to_vec(),
            cookie: cookie.map(|cookie| up_to_nul(cookie).to_vec()),
            data_len: header.data_len,
        })
    }

    /// Where the stream begins in the file, compressed or not.
    pub fn stream_offset(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.data_len)
    }

    /// The stream, unpacked, of what [`SaveImage::read`] left of the input.
    /// `at` is where that begins, for messages.
    pub fn open<'a>(&self, rest: impl Read + Send + 'a, at: StreamOffset) -> Box<dyn Read + Send + 'a> {
        match self.format {
            Format::Compressed(compression) => decoder(compression, rest, at),
            Format::Raw | Format::Sparse => Box::new(rest),
        }
    }

    /// The layer, for a [`Chain`](super::Chain).
    pub fn layer(&self) -> Layer {
        Layer::Libvirt { version: self.version, format: self.format, interrupted: self.interrupted }
    }
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let interrupted = bytes.starts_with(QEMU_SAVE_PARTIAL);
        if !interrupted && !bytes.starts_with(QEMU_SAVE_MAGIC) {
            let met = bytes.get(..16).unwrap_or_default().escape_ascii();
            let hint = "this is no file by `virsh save`";
            let expected = "\"LibvirtQemudSave\"";
            return Err(failure(0, "libvirt save image", format!("\"{met}\""), expected, hint));
        }
        let byte_order = Self::byte_order(bytes)?;
        let word = |at| word(bytes, at, byte_order);
        let version = word(16);
        let header = Self {
            version,
            byte_order,
            interrupted,
            data_len: word(20),
            was_running: word(24),
            format: format(version, word(28))?,
            cookie_offset: word(32),
        };
        header.check()
    }

    /// The order in which the version is one.
    fn byte_order(bytes: &[u8; HEADER_LEN]) -> Result<ByteOrder> {
        let is_version = |order: &ByteOrder| (1..=VERSION_MAX).contains(&word(bytes, 16, *order));
        [ByteOrder::Little, ByteOrder::Big].into_iter().find(is_version).ok_or_else(|| {
            let met = word(bytes, 16, ByteOrder::Little);
            Error::at(
                StreamOffset(16),
                ErrorKind::Wrapper {
                    what: "libvirt save image, version",
                    met: format!("{met:#x}"),
                    expected: format!("1 to {VERSION_MAX}, in either byte order"),
                    hint: "a newer libvirt may have written it, or the header is damaged: `virsh restore --paused` and save it as raw",
                },
            )
        })
    }

    fn check(self) -> Result<Self> {
        let hint = "the header is damaged: if there is a second copy of the file, try that";
        if self.data_len == 0 {
            return Err(failure(
                20,
                "libvirt save image, data_len",
                "0",
                "the length of the domain XML",
                hint,
            ));
        }
        if self.data_len > DATA_LEN_MAX {
            let (met, bound) = (self.data_len.into(), DATA_LEN_MAX.into());
            let kind = ErrorKind::Limit { what: "libvirt save image, data_len", met, bound };
            return Err(Error::at(StreamOffset(20), kind));
        }
        if self.cookie_offset > self.data_len { Err(self.bad_cookie()) } else { Ok(self) }
    }

    fn bad_cookie(&self) -> Error {
        let met = format!("{:#x}", self.cookie_offset);
        let expected = format!("at most data_len, {:#x}", self.data_len);
        let hint = "the header is damaged: if there is a second copy of the file, try that";
        failure(32, "libvirt save image, cookieOffset", met, expected, hint)
    }
}

/// What the stream is. Version 1 has no compression, whatever the number.
fn format(version: u32, number: u32) -> Result<Format> {
    if version == 1 {
        return Ok(Format::Raw);
    }
    Format::of(number).ok_or_else(|| {
        let expected = "0 to 6: raw, gzip, bzip2, xz, lzop, zstd, sparse";
        let hint = "a newer libvirt may have written it: `virsh restore --paused` and save it as raw";
        failure(28, "libvirt save image, format", number.to_string(), expected, hint)
    })
}

/// The word at `at`, which lies in the header.
fn word(bytes: &[u8; HEADER_LEN], at: usize, order: ByteOrder) -> u32 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    match order {
        ByteOrder::Little => u32::from_le_bytes(word),
        ByteOrder::Big => u32::from_be_bytes(word),
    }
}

/// The next `len` bytes, which are at `at`. Memory follows what is there.
fn take(input: &mut impl Read, at: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = io::copy(&mut input.take(len), &mut bytes).map_err(|error| error_of(error, ""))?;
    if read < len { Err(cut(at, len, bytes.len())) } else { Ok(bytes) }
}

fn cut(at: u64, needed: u64, available: usize) -> Error {
    Error::at(StreamOffset(at), ErrorKind::Truncated { needed, available: available as u64 })
        .inside("libvirt save image")
}

fn up_to_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The layer that a file's first bytes are, if it is this one.
pub(super) fn detect(prefix: &[u8]) -> Option<Layer> {
    let interrupted = prefix.starts_with(QEMU_SAVE_PARTIAL);
    if !interrupted && !prefix.starts_with(QEMU_SAVE_MAGIC) {
        return None;
    }
    let header = prefix.first_chunk().and_then(|header| Header::parse(header).ok());
    Some(match header {
        Some(Header { version, format, .. }) => Layer::Libvirt { version, format, interrupted },
        // Damaged: `SaveImage::read` says how.
        None => Layer::Libvirt { version: 0, format: Format::Raw, interrupted },
    })
}
