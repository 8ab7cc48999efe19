//! Numbers that must not be confused: places in the stream, places in a RAM
//! block, and the size of a target page.
//!
//! A [`StreamOffset`] says where in the input something is; a [`BlockOffset`]
//! says where in a RAM block a page belongs. Neither is a guest-physical
//! address: that is a [`PhysicalAddress`], which only a
//! [`Layout`](crate::physical::Layout) makes of a place in a block. There is
//! no `+` on them: sums are checked, by name.

use std::fmt;

/// A place in the input, in bytes from its first byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct StreamOffset(pub u64);

/// A place in a RAM block, in bytes from the block's first byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockOffset(pub u64);

/// A place in the guest's physical address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PhysicalAddress(pub u64);

/// The position of a RAM block in the stream's block list, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockId(pub usize);

impl StreamOffset {
    /// This place moved on by `len` bytes; `None` past 2⁶⁴.
    pub fn checked_add(self, len: u64) -> Option<Self> {
        self.0.checked_add(len).map(Self)
    }
}

impl BlockOffset {
    /// This place moved on by `len` bytes; `None` past 2⁶⁴.
    pub fn checked_add(self, len: u64) -> Option<Self> {
        self.0.checked_add(len).map(Self)
    }
}

impl PhysicalAddress {
    /// This place moved on by `len` bytes; `None` past 2⁶⁴.
    pub fn checked_add(self, len: u64) -> Option<Self> {
        self.0.checked_add(len).map(Self)
    }
}

impl fmt::Display for PhysicalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for StreamOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for BlockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The size of a target page in bytes: a power of two from 256 to 65536.
///
/// QEMU's `TARGET_PAGE_SIZE`, which is the guest architecture's, not the
/// host's. 256 is avr before QEMU 10.2; 65536 bounds what any target uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TargetPageSize(u32);

impl TargetPageSize {
    /// 4 KiB: x86, ppc, s390x, riscv and most others.
    pub const KIB_4: Self = Self(12);

    /// The page size of `1 << bits` bytes; `None` outside 8 to 16.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (8..=16).contains(&bits).then_some(Self(bits))
    }

    /// The page size of `bytes` bytes; `None` unless a power of two in range.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        if !bytes.is_power_of_two() {
            return None;
        }
        Self::from_bits(bytes.trailing_zeros())
    }

    /// The exponent: QEMU's `target_page_bits`.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.0
    }

    /// The number of the page that holds `offset`.
    pub fn page_of(self, offset: BlockOffset) -> u64 {
        offset.0 >> self.0
    }

    /// Where page number `page` begins; `None` past 2⁶⁴.
    pub fn offset_of(self, page: u64) -> Option<BlockOffset> {
        page.checked_mul(self.bytes()).map(BlockOffset)
    }

    /// How many pages hold `len` bytes, the last one perhaps in part.
    pub fn pages_in(self, len: u64) -> u64 {
        len.div_ceil(self.bytes())
    }
}

impl fmt::Display for TargetPageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

/// `value` as an index into memory, if this machine can address it.
///
/// The one place where a number of the stream becomes a `usize`.
pub(crate) fn index(value: u64) -> Option<usize> {
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_powers_of_two_from_256_to_64_kib() {
        assert_eq!(TargetPageSize::from_bytes(4096), Some(TargetPageSize::KIB_4));
        for bad in [0, 1, 128, 4095, 131_072, u64::MAX, 1 << 63] {
            assert_eq!(TargetPageSize::from_bytes(bad), None, "{bad}");
        }
        assert_eq!(TargetPageSize::from_bytes(256).map(TargetPageSize::bits), Some(8));
        assert_eq!(TargetPageSize::from_bytes(65_536).map(TargetPageSize::bits), Some(16));
    }

    #[test]
    fn a_block_of_one_and_a_half_pages_has_two() {
        assert_eq!(TargetPageSize::KIB_4.pages_in(6144), 2);
        assert_eq!(TargetPageSize::KIB_4.pages_in(u64::MAX), 1 << 52);
        assert_eq!(TargetPageSize::KIB_4.offset_of(1 << 60), None);
    }
}
