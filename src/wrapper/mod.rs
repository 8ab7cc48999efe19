//! What a stream can be wrapped in, and how to open it.
//!
//! Streams seldom lie about bare. Layers are told apart by their first bytes
//! and can stand inside each other:
//!
//! ```text
//! "QEVM"                      a stream
//! "LibvirtQemudSave"          a libvirt save image, which may compress its stream    libvirt
//! "QFI\xfb"                   a qcow2 image with internal snapshots                  qcow2
//! 1f 8b, "BZh", "\xfd7zXZ" …  something compressed as a whole                        compression
//! ```
//!
//! `virsh dump` writes a bare stream, or one compressed as a whole if
//! `dump_image_format` says so; `virsh dump --memory-only` writes an ELF or
//! kdump file, which is no migration stream. A Proxmox VE state volume is a
//! bare stream, with whatever the volume held before behind its end.
//!
//! [`detect`] names the outermost layer of some bytes; opening it gives bytes
//! again. A qcow2 image is read at random, so it cannot be read inside
//! something compressed: that has to be unpacked to a file first.
//!
//! ```
//! # fn main() -> ramlift::Result<()> {
//! use std::io::Read;
//! use ramlift::StreamOffset;
//! use ramlift::wrapper::{Layer, compression, detect, libvirt::SaveImage};
//!
//! # let unpack = std::fs::File::open("tests/data/libvirt-12.8-gzip.zst").unwrap();
//! # let mut unpack = compression::decoder(compression::Compression::Zstd, unpack, StreamOffset(0));
//! # let mut file = Vec::new();
//! # unpack.read_to_end(&mut file).unwrap();
//! assert_eq!(detect(&file).to_string(), "libvirt save v2, gzip");
//! let mut rest = file.as_slice();
//! let image = SaveImage::read(&mut rest)?;
//! let at = StreamOffset(image.stream_offset());
//! let mut stream = image.open(rest, at);
//! let mut magic = [0; 4];
//! stream.read_exact(&mut magic).unwrap();
//! assert_eq!(detect(&magic), Layer::Stream);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind};
use crate::idstr::Idstr;
use crate::units::StreamOffset;

mod bounded;
mod bzip2;
pub mod compression;
mod frames;
pub mod libvirt;
mod lzop;
mod parallel;
pub mod qcow2;
mod source;

pub use bounded::Bounded;
use compression::Compression;

/// Bytes that [`detect`] needs to see all there is to see.
pub const PREFIX_LEN: usize = libvirt::HEADER_LEN;

/// One layer of what a stream is wrapped in, from the outside in.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Layer {
    /// A bare stream: nothing more to open.
    Stream,
    /// A libvirt save image. Its stream may be compressed, which is part of
    /// this layer.
    Libvirt {
        /// The version its header gives.
        version: u32,
        /// What the stream behind the header is.
        format: libvirt::Format,
        /// Whether libvirt never finished it.
        interrupted: bool,
    },
    /// A qcow2 image.
    Qcow2 {
        /// The snapshot chosen; [`detect`] chooses none.
        snapshot: Option<Idstr>,
    },
    /// Something compressed as a whole.
    Compressed(Compression),
    /// A file of a known kind that holds no stream.
    NotAStream(&'static str),
    /// Bytes that nothing here begins with.
    Unknown,
}

/// Names the outermost layer of a file by its first bytes, of which
/// [`PREFIX_LEN`] suffice. Fewer, if the file has no more, give what they can.
pub fn detect(prefix: &[u8]) -> Layer {
    const KNOWN: [(&[u8], &str); 6] = [
        (b"\x7fELF", "an ELF file: perhaps a core by dump-guest-memory or `virsh dump --memory-only`"),
        (b"KDUMP", "a kdump file, as `virsh dump --memory-only` writes"),
        (b"makedumpfile", "a flattened kdump file, as `virsh dump --memory-only` writes"),
        (b"\x11\x22\x33\x44", "one channel of a multifd migration"),
        (b"QCPR", "a QEMU CPR state file, which holds no RAM"),
        (b"EMiL", "a LiME memory image"),
    ];
    if prefix.starts_with(b"QEVM") {
        Layer::Stream
    } else if let Some(layer) = libvirt::detect(prefix) {
        layer
    } else if prefix.starts_with(&qcow2::MAGIC) {
        Layer::Qcow2 { snapshot: None }
    } else if let Some(compression) = Compression::detect(prefix) {
        Layer::Compressed(compression)
    } else if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| prefix.starts_with(magic)) {
        Layer::NotAStream(what)
    } else {
        Layer::Unknown
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream => f.write_str("QEVM"),
            Self::Libvirt { version, format, interrupted } => {
                f.write_str(if *interrupted { "interrupted libvirt save" } else { "libvirt save" })?;
                write!(f, " v{version}")?;
                match format {
                    libvirt::Format::Raw => Ok(()),
                    format => write!(f, ", {format}"),
                }
            }
            Self::Qcow2 { snapshot: Some(name) } => write!(f, "qcow2 snapshot \"{name}\""),
            Self::Qcow2 { snapshot: None } => f.write_str("qcow2"),
            Self::Compressed(compression) => compression.fmt(f),
            Self::NotAStream(what) => f.write_str(what),
            Self::Unknown => f.write_str("bytes of no known kind"),
        }
    }
}

/// The layers of a file from the outside in: `gzip → libvirt save v2 → QEVM`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Chain(pub Vec<Layer>);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, layer) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" → ")?;
            }
            layer.fmt(f)?;
        }
        Ok(())
    }
}

/// The [`Error`] that a read of a layer failed with, or the system's, met on
/// the file `path`.
///
/// Readers of this module fail with [`std::io::Error`]s that carry an
/// [`Error`], with its offset and hint, if it was the layer that failed.
pub fn error_of(error: io::Error, path: impl AsRef<Path>) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| Error::io(path.as_ref(), error))
}

/// An I/O error that carries `error`.
fn carry(kind: io::ErrorKind, error: Error) -> io::Error {
    io::Error::new(kind, error)
}

/// A failure of a layer at `at`.
fn failure(
    at: u64,
    what: &'static str,
    met: impl Into<String>,
    expected: impl Into<String>,
    hint: &'static str,
) -> Error {
    let kind = ErrorKind::Wrapper { what, met: met.into(), expected: expected.into(), hint };
    Error::at(StreamOffset(at), kind)
}
