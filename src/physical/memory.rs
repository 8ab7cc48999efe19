//! Reading guest-physical memory.

use crate::error::Result;
use crate::physical::Layout;
use crate::ram::{Page, Ram};
use crate::units::{BlockOffset, PhysicalAddress, index};

/// The guest's physical memory, to be read at any address.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalMemory<'r, 'a> {
    ram: &'r Ram<'a>,
    layout: &'r Layout,
}

impl<'r, 'a> PhysicalMemory<'r, 'a> {
    /// The memory that `layout` makes of `ram`.
    pub fn new(ram: &'r Ram<'a>, layout: &'r Layout) -> Self {
        Self { ram, layout }
    }

    /// The RAM that is read.
    pub fn ram(&self) -> &'r Ram<'a> {
        self.ram
    }

    /// Where it is.
    pub fn layout(&self) -> &'r Layout {
        self.layout
    }

    /// Reads from `at` on, over the borders of regions that follow each other.
    /// Gives how many bytes were there before the first address that is no
    /// RAM, or whose page the stream does not hold.
    ///
    /// # Errors
    /// As [`Ram::page`].
    pub fn read(&self, at: PhysicalAddress, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = at.checked_add(done as u64) else { break };
            match self.read_in_page(at, rest)? {
                0 => break,
                len => done += len,
            }
        }
        Ok(done)
    }

    fn read_in_page(&self, at: PhysicalAddress, into: &mut [u8]) -> Result<usize> {
        let Some((block, offset, left)) = self.layout.find(at) else { return Ok(0) };
        let page_len = self.ram.page_size().bytes();
        let skipped = offset.0 % page_len;
        let len = (page_len - skipped).min(left).min(into.len() as u64);
        let page = self.ram.page(block, BlockOffset(offset.0 - skipped))?;
        let (Some(len), Some(skipped)) = (index(len), index(skipped)) else { return Ok(0) };
        let Some(into) = into.get_mut(..len) else { return Ok(0) };
        match page {
            Page::Absent => return Ok(0),
            Page::Fill(byte) => into.fill(byte),
            Page::Data(data) => {
                // The last page of a block may be shorter than a page.
                let Some(bytes) = data.get(skipped..skipped + len) else { return Ok(0) };
                into.copy_from_slice(bytes);
            }
        }
        Ok(len)
    }
}
