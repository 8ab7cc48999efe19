//! The kernel's page tables, for the virtual addresses of memory.
//!
//! ```text
//! root ─► table of 512 (4 KiB pages) ─► table … ─► a page, or a block of 2 MiB, 1 GiB
//! ```
//!
//! An entry of x86-64 is present by bit 0, and a large page by bit 7; the
//! lowest level has pages. One of aarch64 is there by bit 0, and by bit 1 a
//! table or, on the lowest level, a page; without it, a block.
//!
//! Source followed: Intel SDM volume 3, 4.5; Arm ARM D8.3; Linux
//! `Documentation/arch/x86/x86_64/mm.rst`, `Documentation/arch/arm64/memory.rst`.

use std::ops::{ControlFlow, Range};

use super::linux::Linux;
use crate::error::{Error, ErrorKind, Result};
use crate::physical::{PhysicalMemory, VirtualRange};
use crate::units::{PhysicalAddress, index};
use crate::wire::limit;

/// Bits of an entry that are an address, page offsets included.
const ADDRESS: u64 = 0x000f_ffff_ffff_ffff;
const ADDRESS_AARCH64: u64 = 0x0000_ffff_ffff_ffff;

/// Where a Linux kernel of x86-64 has its image: from `__START_KERNEL_map` on,
/// as much as it reserves there at most.
pub(super) const KERNEL_MAP: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;

/// What of the kernel's addresses there is beside its image: all of memory,
/// in a row (`page_offset_base`, `PAGE_OFFSET`). A kernel puts it at a multiple
/// of this.
const LINEAR_ALIGN: u64 = 1 << 21;

/// How entries are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entries {
    X86_64,
    Aarch64,
}

/// Page tables of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageTables<'m, 'r, 'a> {
    memory: &'m PhysicalMemory<'r, 'a>,
    entries: Entries,
    root: PhysicalAddress,
    /// Bits of an address that a page takes.
    page_bits: u32,
    /// Bits of an address that are looked at.
    address_bits: u32,
}

/// A page or a block, and where it is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leaf {
    pub(super) at: u64,
    pub(super) memory: PhysicalAddress,
    pub(super) len: u64,
}

impl Leaf {
    /// What of it is in a range of addresses.
    pub(super) fn clip(&self, within: &Range<u64>) -> Option<Self> {
        let skipped = within.start.saturating_sub(self.at);
        let memory = self.memory.checked_add(skipped)?;
        let at = self.at.checked_add(skipped)?;
        let len = self.len.checked_sub(skipped)?.min(within.end.checked_sub(at)?);
        (len > 0).then_some(Self { at, memory, len })
    }

    /// Whether `next` goes on where it ends, in both.
    pub(super) fn is_followed_by(&self, next: &Self) -> bool {
        self.at.checked_add(self.len) == Some(next.at)
            && self.memory.checked_add(self.len) == Some(next.memory)
    }
}

/// The virtual addresses that the kernel has for memory: those of its image,
/// and those of all memory in a row.
///
/// # Errors
/// [`ErrorKind::Unsupported`] of a kernel other than of x86-64 or aarch64, or
/// one that nothing confirms; [`ErrorKind::Limit`] if its tables are too many;
/// others as [`PhysicalMemory::read`].
pub fn kernel_ranges(memory: &PhysicalMemory<'_, '_>, linux: &Linux) -> Result<Vec<VirtualRange>> {
    let unsupported = |feature: &str| Error::new(ErrorKind::Unsupported { feature: feature.to_owned() });
    let Some(image_offset) = linux.image_offset() else {
        return Err(unsupported("virtual addresses of a kernel that is not where its VMCOREINFO says"));
    };
    let Some(tables) = PageTables::of_kernel(memory, linux, image_offset) else {
        return Err(unsupported("virtual addresses of a kernel other than of x86-64 or aarch64"));
    };
    let mut ranges = tables.ranges(tables.image(linux), image_offset)?;
    if let Some(offset) = tables.linear_offset(linux)? {
        let end = memory.layout().regions().last().map_or(0, |region| region.range.end.0);
        ranges.extend(tables.ranges(offset..offset.saturating_add(end), offset)?);
    }
    ranges.sort_by_key(|range| range.start);
    Ok(ranges)
}

impl<'m, 'r, 'a> PageTables<'m, 'r, 'a> {
    /// Those of x86-64 that begin at `root`: `CR3`, flags and all.
    pub(super) fn x86_64(
        memory: &'m PhysicalMemory<'r, 'a>,
        root: PhysicalAddress,
        address_bits: u32,
    ) -> Self {
        let page_bits = 12;
        let root = PhysicalAddress(root.0 & ADDRESS & (u64::MAX << page_bits));
        Self { memory, entries: Entries::X86_64, root, page_bits, address_bits }
    }

    /// Where they begin, without flags.
    pub(super) fn root(&self) -> PhysicalAddress {
        self.root
    }

    /// The memory that they are in.
    pub(super) fn memory(&self) -> &'m PhysicalMemory<'r, 'a> {
        self.memory
    }

    /// How far `at` is from where it is in memory; wraps. `None` if it is not
    /// mapped.
    pub(super) fn offset(&self, at: u64) -> Result<Option<u64>> {
        let mut offset = None;
        self.walk(at..at.saturating_add(1), |leaf| {
            offset = Some(leaf.at.wrapping_sub(leaf.memory.0));
            ControlFlow::Break(())
        })?;
        Ok(offset)
    }

    /// Those of a kernel whose image is `image_offset` off its place in memory.
    fn of_kernel(memory: &'m PhysicalMemory<'r, 'a>, linux: &Linux, image_offset: u64) -> Option<Self> {
        let info = &linux.vmcoreinfo;
        let place = |symbol| Some(PhysicalAddress(info.symbol(symbol)?.wrapping_sub(image_offset)));
        if linux.phys_base().is_some() {
            let address_bits = if info.number("pgtable_l5_enabled") == Some(1) { 57 } else { 48 };
            let root = place("init_top_pgt").or_else(|| place("swapper_pg_dir"))?;
            return Some(Self::x86_64(memory, root, address_bits));
        }
        info.number("kimage_voffset")?;
        let page_bits = info.page_size()?.trailing_zeros();
        // What the processor can, or else what the kernel was made for.
        let configured = || info.number("VA_BITS");
        let bits =
            info.number("TCR_EL1_T1SZ").and_then(|size| 64_u64.checked_sub(size)).or_else(configured)?;
        let address_bits = u32::try_from(bits).ok().filter(|bits| (page_bits + 1..=52).contains(bits))?;
        let root = place("swapper_pg_dir")?;
        Some(Self { memory, entries: Entries::Aarch64, root, page_bits, address_bits })
    }

    /// Where the kernel's image may be.
    fn image(&self, linux: &Linux) -> Range<u64> {
        match self.entries {
            Entries::X86_64 => KERNEL_MAP,
            Entries::Aarch64 => {
                let start = linux.vmcoreinfo.symbol("_stext").unwrap_or(0) & !0x1f_ffff;
                start..start.saturating_add(limit::KERNEL_IMAGE_LEN)
            }
        }
    }

    /// How far the addresses of all memory in a row are from physical ones.
    fn linear_offset(&self, linux: &Linux) -> Result<Option<u64>> {
        // The first half of the kernel's addresses; up to Linux 5.3 the second
        // of aarch64.
        let half = 1 << (self.address_bits - 1);
        let first = 0_u64.wrapping_sub(2 * half);
        let starts = match self.entries {
            // Before it there are guards, and the LDT of a process.
            Entries::X86_64 if self.address_bits == 48 => [0xffff_8800_0000_0000, 0],
            Entries::X86_64 => [0xff10_0000_0000_0000, 0],
            Entries::Aarch64 => [first, first.wrapping_add(half)],
        };
        let Some(image) = linux.image_start() else { return Ok(None) };
        for start in starts.into_iter().filter(|start| *start != 0) {
            let mut offset = None;
            self.walk(start..start.saturating_add(half), |leaf| {
                offset = Some(leaf.at.wrapping_sub(leaf.memory.0));
                ControlFlow::Break(())
            })?;
            // It has the kernel's image once more.
            let is_other =
                |offset: &u64| offset.is_multiple_of(LINEAR_ALIGN) && linux.image_offset() != Some(*offset);
            if let Some(offset) = offset.filter(is_other) {
                let again = offset.wrapping_add(image.0);
                if !self.ranges(again..again.saturating_add(1), offset)?.is_empty() {
                    return Ok(Some(offset));
                }
            }
        }
        Ok(None)
    }

    /// What is mapped in a range of addresses at `offset` from where it is in
    /// memory. What goes on in both is one.
    pub(super) fn ranges(&self, within: Range<u64>, offset: u64) -> Result<Vec<VirtualRange>> {
        let mut ranges: Vec<VirtualRange> = Vec::new();
        self.walk(within, |leaf| {
            let Some(end) = leaf.memory.checked_add(leaf.len) else { return ControlFlow::Continue(()) };
            if leaf.at.wrapping_sub(leaf.memory.0) == offset {
                match ranges.last_mut() {
                    Some(last) if last.memory.end == leaf.memory => last.memory.end = end,
                    _ => ranges.push(VirtualRange { start: leaf.at, memory: leaf.memory..end }),
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(ranges)
    }

    /// Shows what is mapped in a range of addresses, in ascending order.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] if the tables are too many; others as
    /// [`PhysicalMemory::read`].
    pub(super) fn walk(
        &self,
        within: Range<u64>,
        mut visit: impl FnMut(Leaf) -> ControlFlow<()>,
    ) -> Result<()> {
        let levels = (self.address_bits - self.page_bits).div_ceil(self.page_bits - 3);
        let mut walk = Walk { tables: self, within, left: limit::PAGE_TABLES, visit: &mut visit };
        let high = u64::MAX << self.address_bits;
        walk.table(self.root, high, levels - 1).map(drop)
    }
}

/// A walk over page tables.
struct Walk<'w, 'm, 'r, 'a, V> {
    tables: &'w PageTables<'m, 'r, 'a>,
    within: Range<u64>,
    /// Tables that may still be read: they can lead to each other in circles.
    left: u64,
    visit: &'w mut V,
}

impl<V: FnMut(Leaf) -> ControlFlow<()>> Walk<'_, '_, '_, '_, V> {
    /// Goes through a table whose first entry is of the address `start`, with
    /// `level` levels below it.
    fn table(&mut self, at: PhysicalAddress, start: u64, level: u32) -> Result<ControlFlow<()>> {
        let Some(left) = self.left.checked_sub(1) else {
            let what = "page tables of the guest";
            let bound = limit::PAGE_TABLES;
            return Err(Error::new(ErrorKind::Limit { what, met: bound + 1, bound }));
        };
        self.left = left;
        let page_bits = self.tables.page_bits;
        let entry_bits = page_bits + level * (page_bits - 3);
        // The uppermost table may have fewer entries.
        let count = 1_u64 << (page_bits - 3).min(self.tables.address_bits.saturating_sub(entry_bits));
        let mut bytes = vec![0; index(8 * count).unwrap_or(0)];
        let read = self.tables.memory.read(at, &mut bytes)?;
        let words = bytes.get(..read).unwrap_or_default().chunks_exact(8);
        for (nth, word) in (0..count).zip(words) {
            let entry = word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            let first = start.wrapping_add(nth << entry_bits);
            let last = first | ((1 << entry_bits) - 1);
            let is_asked = last >= self.within.start && first < self.within.end;
            if !is_asked || entry & 1 == 0 {
                continue;
            }
            let flow = match self.tables.leaf(entry, level) {
                Some(memory) => (self.visit)(Leaf { at: first, memory, len: 1 << entry_bits }),
                None => self.table(self.tables.next(entry), first, level - 1)?,
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl PageTables<'_, '_, '_> {
    /// Where the page or block of an entry is in memory; `None` if it is of a
    /// table.
    fn leaf(&self, entry: u64, level: u32) -> Option<PhysicalAddress> {
        let is_leaf = match self.entries {
            Entries::X86_64 => level == 0 || entry & 1 << 7 != 0,
            Entries::Aarch64 => level == 0 || entry & 1 << 1 == 0,
        };
        let bits = self.page_bits + level * (self.page_bits - 3);
        is_leaf.then(|| PhysicalAddress(entry & self.address() & (u64::MAX << bits)))
    }

    /// Where the table of an entry is in memory.
    fn next(&self, entry: u64) -> PhysicalAddress {
        PhysicalAddress(entry & self.address() & (u64::MAX << self.page_bits))
    }

    fn address(&self) -> u64 {
        match self.entries {
            Entries::X86_64 => ADDRESS,
            Entries::Aarch64 => ADDRESS_AARCH64,
        }
    }
}
