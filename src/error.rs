//! What can go wrong, and where.

use std::fmt;
use std::path::PathBuf;

use crate::units::StreamOffset;

/// Result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: what was met, where, and what was expected.
///
/// One pointer wide, so that hot paths pay nothing for it. The text says the
/// place first: `section 3 "ram" at 0x1f3a: page flags 0x83, no known meaning
/// for 0x80`.
pub struct Error(Box<Inner>);

struct Inner {
    at: Option<StreamOffset>,
    place: Option<String>,
    kind: ErrorKind,
}

/// The kinds of failure, with what was met and what bounds it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input ends inside something.
    #[error("the input ends here: {needed} bytes needed, {available} left")]
    Truncated {
        /// Bytes that the thing being read takes.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// The input does not begin like a stream.
    #[error("not a QEMU migration stream: begins with {met}, expected \"QEVM\"{}",
        looks_like.as_ref().map(|what| format!("; this looks like {what}")).unwrap_or_default())]
    NotAStream {
        /// The first bytes, as hex.
        met: String,
        /// What the first bytes are known for.
        looks_like: Option<String>,
    },
    /// A version that this reader does not know.
    #[error("{what} version {met}, expected {expected}")]
    Version {
        /// Whose version.
        what: &'static str,
        /// The version met.
        met: u32,
        /// The version this reader knows.
        expected: u32,
    },
    /// A byte that begins no record.
    #[error("record type {met:#04x}, which no QEMU writes here")]
    RecordType {
        /// The byte.
        met: u8,
    },
    /// A section is not followed by its own footer.
    #[error("the section does not end with its footer 7e {expected:08x}: met {met}")]
    Footer {
        /// The section's id.
        expected: u32,
        /// The bytes met, as hex.
        met: String,
    },
    /// Sections of one id in an order that QEMU never writes.
    #[error("{what}")]
    SectionOrder {
        /// What is out of order.
        what: &'static str,
    },
    /// A number is larger than anything meaningful.
    #[error("{what}: {met}, expected at most {bound}")]
    Limit {
        /// What the number counts.
        what: &'static str,
        /// The number met.
        met: u64,
        /// The bound.
        bound: u64,
    },
    /// Bytes that do not follow the format.
    #[error("{what}: met {met}, expected {expected}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What was met.
        met: String,
        /// What the format has here.
        expected: String,
    },
    /// Flags of a RAM record that make no sense.
    #[error("page flags {flags:#x}, {why}")]
    RamFlags {
        /// The flags met.
        flags: u64,
        /// What is wrong with them.
        why: String,
    },
    /// A page that does not lie inside its block.
    #[error("page {offset:#x} of RAM block \"{idstr}\", which is {used_length:#x} bytes long")]
    PageOutside {
        /// The page's offset in the block.
        offset: u64,
        /// The block's name, escaped.
        idstr: String,
        /// The block's length in bytes.
        used_length: u64,
    },
    /// Something that QEMU writes and this version does not read.
    #[error("{feature} is not read by this version")]
    Unsupported {
        /// QEMU's name for it.
        feature: String,
    },
    /// The file is a part of what a migration wrote.
    #[error("{why}")]
    Part {
        /// How that shows.
        why: String,
    },
    /// Something that only a file gives, which can be gone back to.
    #[error("{what}, and the stream is read as it goes by")]
    GoneBy {
        /// What would have to be gone back to.
        what: &'static str,
    },
    /// More than is kept in memory of a stream that is read as it goes by.
    #[error("{what}: {met}, and at most {bound} are kept of a stream that is read as it goes by")]
    TooMuchToKeep {
        /// What the number counts.
        what: &'static str,
        /// The number met.
        met: u64,
        /// The bound.
        bound: u64,
    },
    /// With mapped-ram: nothing says which pages of a block are in the stream.
    #[error(
        "the bitmap of RAM block \"{idstr}\" was never written: the ram section has no END, as in a background snapshot"
    )]
    BitmapUnwritten {
        /// The block's name.
        idstr: String,
    },
    /// A device and its description disagree.
    #[error("{why}")]
    Device {
        /// What does not fit.
        why: String,
    },
    /// What a stream is wrapped in is damaged, or of a kind that is refused.
    #[error("{what}: met {met}, expected {expected}")]
    Wrapper {
        /// What was being read.
        what: &'static str,
        /// What was met.
        met: String,
        /// What the format has here.
        expected: String,
        /// What the user can try.
        hint: &'static str,
    },
    /// The machine failed.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// A failure with no place in the stream.
    pub fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { at: None, place: None, kind }))
    }

    /// A failure at a place in the stream.
    pub fn at(at: StreamOffset, kind: ErrorKind) -> Self {
        Self(Box::new(Inner { at: Some(at), place: None, kind }))
    }

    /// A failure of the system on the file `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io { path: path.into(), source })
    }

    /// The same failure, said to be inside `place` (a section, a field).
    ///
    /// Places add up from the inside out: `section 4 "cpu", field env.cr`.
    #[must_use]
    pub fn inside(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(match self.0.place.take() {
            Some(inner) => format!("{place}, {inner}"),
            None => place.to_string(),
        });
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Where in the stream, if it has a place there.
    pub fn offset(&self) -> Option<StreamOffset> {
        self.0.at
    }

    /// Whether the input is cut or damaged, as far as one can tell: what
    /// [`Stream::salvage`](crate::Stream::salvage) is for.
    pub fn is_damage(&self) -> bool {
        !matches!(
            self.0.kind,
            ErrorKind::NotAStream { .. }
                | ErrorKind::Unsupported { .. }
                | ErrorKind::GoneBy { .. }
                | ErrorKind::TooMuchToKeep { .. }
                | ErrorKind::Io { .. }
        )
    }

    /// Whether it is a failure of the system on the file `path`.
    pub fn is_of_file(&self, path: &std::path::Path) -> bool {
        matches!(&self.0.kind, ErrorKind::Io { path: failed, .. } if failed == path)
    }

    /// What the user can try, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match &self.0.kind {
            ErrorKind::Truncated { .. } => {
                "the file is shorter than the stream that was written to it: an interrupted save, a full disk or a partial copy"
            }
            ErrorKind::NotAStream { looks_like: Some(_), .. } => {
                "the command and `ramlift::wrapper` find streams in save images, snapshots and compressed files; a core or a kdump file holds none"
            }
            ErrorKind::NotAStream { .. } => {
                "give what `migrate file:…`, `savevm`, `virsh save`, `virsh dump` or a Proxmox snapshot wrote; `--offset` if the stream begins further on"
            }
            ErrorKind::Part { .. } => {
                "the pages went through other connections: give what was captured of each with `--channel FILE`, once for each; without them this is a guest with empty memory"
            }
            ErrorKind::GoneBy { .. } => "write it to a file first, and give that",
            ErrorKind::TooMuchToKeep { .. } => {
                "unpack it to a file first, and give that: what can be gone back in has no such bound"
            }
            ErrorKind::Wrapper { hint, .. } => hint,
            ErrorKind::RecordType { .. } | ErrorKind::Footer { .. } | ErrorKind::RamFlags { .. } => {
                "the stream is damaged here, or what stands before it was written by a QEMU this version does not know"
            }
            ErrorKind::Unsupported { .. } => {
                "a newer ramlift may read it; QEMU itself can: start the same machine with -incoming, stop it, and migrate it to a file without that capability"
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            f.write_str(place)?;
            if let Some(at) = self.0.at {
                write!(f, " at {at}")?;
            }
            f.write_str(": ")?;
        } else if let Some(at) = self.0.at {
            write!(f, "at {at}: ")?;
        }
        self.0.kind.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.kind)
    }
}
