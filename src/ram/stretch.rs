//! Stretches: the pages of a stream that goes by, window by window.
//!
//! What cannot be gone back to has to be taken as it comes. Each window's
//! records are indexed by themselves, so that a page sent twice in it is taken
//! once; then whoever wants the pages takes them, all at once and in any order.

use std::ops::Range;

use crate::error::Result;
use crate::ram::Ram;
use crate::ram::index::IndexBuilder;
use crate::units::{BlockId, BlockOffset};

/// Takes the pages of a stream that goes by.
pub trait PageTaker {
    /// Hears what blocks there are, before the first page. `ram` has no pages
    /// yet.
    ///
    /// # Errors
    /// Whatever keeps it from taking pages: it ends the walk.
    fn begin(&mut self, ram: &Ram<'_>) -> Result<()>;

    /// Takes the pages of a stretch. What it has of a page is newer than what
    /// any stretch before had.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn take(&mut self, stretch: &Stretch<'_, '_>) -> Result<()>;
}

/// Takes no pages.
impl PageTaker for () {
    fn begin(&mut self, _: &Ram<'_>) -> Result<()> {
        Ok(())
    }

    fn take(&mut self, _: &Stretch<'_, '_>) -> Result<()> {
        Ok(())
    }
}

/// A stretch of a stream that goes by.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'s, 'w> {
    pub(crate) ram: &'s Ram<'w>,
    pub(crate) earlier: &'s [IndexBuilder],
}

impl<'s, 'w> Stretch<'s, 'w> {
    /// Its pages: those of other stretches are absent.
    pub fn ram(&self) -> &'s Ram<'w> {
        self.ram
    }

    /// Whether a page may be other than zero by what came before.
    pub(crate) fn was_data(&self, block: BlockId, offset: BlockOffset) -> bool {
        let page = self.ram.page_size().page_of(offset);
        self.earlier.get(block.0).is_some_and(|earlier| earlier.is_data(page))
    }

    /// Whether anything came before of the pages in a range of bytes.
    pub(crate) fn had_any(&self, block: BlockId, range: Range<BlockOffset>) -> bool {
        let size = self.ram.page_size();
        let pages = size.page_of(range.start)..size.pages_in(range.end.0);
        self.earlier.get(block.0).is_some_and(|earlier| earlier.has_any(&pages))
    }
}
