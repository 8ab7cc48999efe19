//! Bodies with layouts of their own, which no description covers.
//!
//! Iterative handlers other than `ram`, and devices of the old style whose
//! bytes say where they end. Each is a file here, and a [`Layout`].
//!
//! A body is read piece by piece, by [`Pieces`]: the walk goes over them to
//! find the body's end, and whoever wants to know what it says goes over them
//! again. Nothing is kept in between.

mod block;
mod dirty_bitmap;
mod htab;
mod pbs_state;
mod piece;
mod skeys;
mod storage_attributes;
mod todclock;
mod vfio;

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::section::SectionType;
use crate::units::StreamOffset;
use crate::wire::limit;

pub use block::{BLOCK_LEN, BlockChunk, BlockDevice, BlockDevices};
pub use dirty_bitmap::{DirtyBitmap, DirtyBitmaps, DirtyRange};
pub use piece::{BitmapPiece, Content, Piece, Tod};

/// The handlers that have a layout of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    Htab,
    StorageAttributes,
    Skeys,
    Todclock,
    DirtyBitmap,
    Block,
    Vfio,
    PbsState,
}

/// The layout of a handler's bodies, if it has one of its own, and the
/// version of it that is read.
pub(crate) fn layout_of(idstr: &[u8]) -> Option<(Layout, u32)> {
    Some(match idstr {
        b"spapr/htab" => (Layout::Htab, htab::VERSION),
        b"s390-storage_attributes" => (Layout::StorageAttributes, storage_attributes::VERSION),
        b"s390-skeys" => (Layout::Skeys, skeys::VERSION),
        b"todclock" => (Layout::Todclock, todclock::VERSION),
        b"dirty-bitmap" => (Layout::DirtyBitmap, dirty_bitmap::VERSION),
        b"block" => (Layout::Block, block::VERSION),
        b"pbs-state" => (Layout::PbsState, pbs_state::VERSION),
        // Behind the device's place on its bus, if it has one.
        _ if idstr == b"vfio" || idstr.ends_with(b"/vfio") => (Layout::Vfio, vfio::VERSION),
        _ => return None,
    })
}

impl Layout {
    /// Whether it tells where the handler's bytes are, but not what they mean.
    pub(crate) fn is_opaque(self) -> bool {
        matches!(self, Self::Vfio | Self::PbsState)
    }

    /// Reads one body: moves the cursor from its begin to its end.
    pub(crate) fn read(self, kind: SectionType, cursor: &mut Cursor<'_>) -> Result<()> {
        let mut pieces = Pieces::new(self, kind, *cursor);
        let failure = pieces.find_map(Result::err);
        *cursor = pieces.cursor;
        failure.map_or(Ok(()), Err)
    }

    /// Reads what comes next of a body; `is_first` at its begin.
    fn step<'a>(self, kind: SectionType, is_first: bool, cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
        match self {
            Self::Htab => htab::step(kind, is_first, cursor),
            Self::StorageAttributes => storage_attributes::step(cursor),
            Self::Skeys => skeys::step(cursor),
            Self::Todclock => todclock::step(cursor),
            Self::DirtyBitmap => dirty_bitmap::step(cursor),
            Self::Block => block::step(cursor),
            Self::Vfio => vfio::step(kind, cursor),
            Self::PbsState => pbs_state::step(kind, cursor),
        }
    }
}

/// What reading on in a body gives.
enum Step<'a> {
    /// A piece; another step follows.
    Piece(Content<'a>),
    /// The body's last piece.
    Last(Content<'a>),
    /// The body's end.
    End,
}

/// The pieces of one body, in order. Ends after an error.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'a> {
    layout: Layout,
    kind: SectionType,
    cursor: Cursor<'a>,
    is_first: bool,
    is_over: bool,
}

impl<'a> Pieces<'a> {
    /// The pieces from `cursor` on.
    pub(crate) fn new(layout: Layout, kind: SectionType, cursor: Cursor<'a>) -> Self {
        Self { layout, kind, cursor, is_first: true, is_over: false }
    }

    /// The pieces of a body of the old style whose bytes are all of `body`;
    /// `None` if the layout does not fit them.
    pub(crate) fn of_device(idstr: &[u8], version_id: u32, body: Cursor<'a>) -> Option<Self> {
        let (layout, version) = layout_of(idstr)?;
        let mut end = body;
        let fits =
            version == version_id && layout.read(SectionType::Full, &mut end).is_ok() && end.remaining() == 0;
        fits.then_some(Self::new(layout, SectionType::Full, body))
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let offset = self.cursor.offset();
        let step = self.layout.step(self.kind, self.is_first, &mut self.cursor);
        self.is_first = false;
        self.is_over = !matches!(step, Ok(Step::Piece(_)));
        match step {
            Ok(Step::Piece(content) | Step::Last(content)) => Some(Ok(Piece { offset, content })),
            Ok(Step::End) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// The words of a body that lists bytes, one for each page of 4 KiB:
///
/// ```text
/// be64 address | counted   be64 count   count bytes
/// be64 done
/// be64 eos | error                                    ends the body
/// ```
struct PageBytes {
    /// What the words are called in messages, and what they can be.
    what: &'static str,
    expected: &'static str,
    eos: u64,
    counted: u64,
    error: u64,
    done: Option<u64>,
}

impl PageBytes {
    fn step<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Step<'a>> {
        const FLAGS: u64 = 0xfff;
        let at = cursor.offset();
        let word = cursor.be64()?;
        let flag = word & FLAGS;
        if flag == self.counted {
            let count = cursor.be64()?;
            let bytes = cursor.bytes(count)?;
            Ok(Step::Piece(Content::PageBytes { address: word & !FLAGS, bytes }))
        } else if flag == self.eos {
            Ok(Step::End)
        } else if flag == self.error {
            Ok(Step::Last(Content::SaveFailed))
        } else if Some(flag) == self.done {
            Ok(Step::Piece(Content::AllSent))
        } else {
            Err(unknown_flags(at, self.what, word, self.expected))
        }
    }
}

/// The failure of a word whose flags have no meaning.
fn unknown_flags(at: StreamOffset, what: &'static str, word: u64, expected: &str) -> Error {
    Error::at(at, ErrorKind::Malformed { what, met: format!("{word:#x}"), expected: expected.to_owned() })
}

/// Checks how many things of a name of their own there are.
fn check_count(what: &'static str, count: usize, at: StreamOffset) -> Result<()> {
    let (met, bound) = (count as u64, limit::NAMED as u64);
    if met <= bound { Ok(()) } else { Err(Error::at(at, ErrorKind::Limit { what, met, bound })) }
}

/// The failure of a section of a type that this handler never writes.
fn never_written(at: StreamOffset, kind: SectionType) -> Error {
    Error::at(at, ErrorKind::Unsupported { feature: format!("{kind} of this handler") })
}
