//! What a salvage has to say of a damaged stream: which of its bytes are in
//! no result, and which pages may not be what the guest had.

use std::fmt;

use crate::units::{BlockId, BlockOffset, StreamOffset};

/// Bytes of a stream that could not be made sense of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Where they begin.
    pub offset: StreamOffset,
    /// How many they are. 0: the input ends where the stream should go on.
    pub len: u64,
    /// Why they are lost.
    pub why: String,
    /// The section that they are inside of, as far as one is known.
    pub section: Option<String>,
    /// Whether page records can have been among them.
    pub is_in_ram: bool,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lost: {} bytes", self.len)?;
        if let Some(section) = &self.section {
            write!(f, " in {section}")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// A page whose record is whole, but stands where damage may have begun; or
/// pages in a row that are there, but that nothing says are the guest's, or this
/// block's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoubtfulPage {
    /// Whose page.
    pub block: BlockId,
    /// Which page, or the first.
    pub offset: BlockOffset,
    /// How many in a row.
    pub pages: u64,
    /// Where its bytes begin.
    pub payload: StreamOffset,
}
