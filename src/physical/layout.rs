//! The layout of guest-physical memory.

use std::borrow::Cow;
use std::ops::Range;

use crate::stream::Stream;
use crate::units::{BlockId, BlockOffset, PhysicalAddress};

/// A range of guest-physical addresses where RAM of one block is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// The addresses. Never empty.
    pub range: Range<PhysicalAddress>,
    /// The block whose bytes are there.
    pub block: BlockId,
    /// Where in the block they begin.
    pub offset: BlockOffset,
    /// How that is known: the rule, in words for a person.
    pub derived: Cow<'static, str>,
}

impl Region {
    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end.0 - self.range.start.0
    }
}

/// A block, or a part of one, that has no place in the layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unplaced {
    /// The block.
    pub block: BlockId,
    /// The bytes of it, by offset.
    pub range: Range<BlockOffset>,
    /// Why: it is no guest RAM (a ROM, video memory), or its place is unknown.
    pub reason: Cow<'static, str>,
    /// Whether it is guest RAM for all that is known, so that something is
    /// missing from the layout.
    pub is_ram: bool,
}

/// What was taken as given, because the stream does not tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assumption {
    /// What was assumed, and what it would change if it is wrong.
    pub text: Cow<'static, str>,
    /// The option that gives it, such as `--below-4g`.
    pub option: Option<&'static str>,
}

/// What is known of a guest beside its stream.
#[derive(Clone, Default, Debug)]
pub struct LayoutHints {
    /// The length of RAM below 4 GiB (x86: `max-ram-below-4g` as it came out).
    pub below_4g: Option<u64>,
    /// Places given by hand. They replace what would be derived for the bytes
    /// that they name and the addresses that they take.
    pub maps: Vec<MapHint>,
    /// The domain XML of a libvirt save image.
    pub domain_xml: Option<Vec<u8>>,
}

/// A place given by hand: `--map IDSTR@ADDRESS[+OFFSET:LENGTH]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapHint {
    /// The block's name.
    pub idstr: Vec<u8>,
    /// Where its bytes are.
    pub address: PhysicalAddress,
    /// Which bytes of it; all if `None`.
    pub part: Option<Range<BlockOffset>>,
}

/// Where guest RAM is in the guest-physical address space.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Layout {
    regions: Vec<Region>,
    unplaced: Vec<Unplaced>,
    assumptions: Vec<Assumption>,
}

impl Layout {
    /// Derives the layout of a stream from its machine type, the lengths of
    /// its blocks, and the state of its devices.
    pub fn derive(_stream: &Stream<'_>, _hints: &LayoutHints) -> crate::Result<Self> {
        Ok(Self::default())
    }

    /// The regions, by ascending address. They do not overlap.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The blocks that have no place, and why.
    pub fn unplaced(&self) -> &[Unplaced] {
        &self.unplaced
    }

    /// What was assumed.
    pub fn assumptions(&self) -> &[Assumption] {
        &self.assumptions
    }

    /// Where an address is in RAM, and how many bytes there are from it on in
    /// the same region.
    pub fn find(&self, at: PhysicalAddress) -> Option<(BlockId, BlockOffset, u64)> {
        let behind = self.regions.partition_point(|region| region.range.start <= at);
        let region = self.regions.get(behind.checked_sub(1)?)?;
        let left = region.range.end.0.checked_sub(at.0).filter(|left| *left > 0)?;
        let skipped = at.0 - region.range.start.0;
        Some((region.block, region.offset.checked_add(skipped)?, left))
    }
}
