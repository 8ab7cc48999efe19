//! The layout of guest-physical memory.
//!
//! A board's RAM is one row of bytes, of one block or of one for each NUMA
//! node. The board's rule cuts the row and says where the parts are: [`x86`]
//! for PCs, [`boards`] for those that have it in one place. What was plugged in
//! later is told by [`blocks`]. Places given by hand come first: nothing is put
//! where they are.

mod blocks;
mod boards;
mod domain;
mod draft;
mod virtio_mem;
mod x86;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use boards::Board;
use draft::Draft;
use x86::Pc;

use crate::arch::Architecture;
use crate::error::{Error, ErrorKind, Result};
use crate::idstr::Idstr;
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

impl fmt::Display for MapHint {
    /// As it is given: `IDSTR@ADDRESS[+OFFSET:LENGTH]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", Idstr::from(self.idstr.as_slice()), self.address)?;
        match &self.part {
            Some(part) => write!(f, "+{}:{:#x}", part.start, part.end.0.saturating_sub(part.start.0)),
            None => Ok(()),
        }
    }
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
    /// its blocks, and the state of its devices. Of a board that is not known
    /// it has what is given by hand.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] if a place given
    /// by hand cannot be.
    pub fn derive(stream: &Stream<'_>, hints: &LayoutHints) -> Result<Self> {
        let Some(ram) = stream.ram() else { return Ok(Self::default()) };
        let machine = stream.configuration().map(|configuration| configuration.machine.to_string());
        let machine = machine.as_deref();
        let mut draft = Draft::new(ram, hints)?;
        if machine.is_none() {
            let text = "the stream has no machine type; the board is told by its devices and RAM blocks";
            draft.assume(Assumption { text: text.into(), option: Some("--map") });
        }
        let has = |idstr: &str| ram.find(idstr.as_bytes()).is_some();
        if let Some(pc) = Pc::of(machine, stream) {
            let told = x86::told_to_firmware(stream).and_then(|(below, above)| below.checked_add(above));
            draft.set_main(blocks::main(ram, pc.ram_id(), told));
            x86::place(pc, machine, stream, &mut draft);
        } else if let Some(board) = Board::of(machine, Architecture::of(stream), has) {
            draft.set_main(blocks::main(ram, board.ram_id.as_bytes(), None));
            board.place(&mut draft);
        } else {
            let shown = machine.unwrap_or("of this stream");
            let text = format!("nothing: the memory of the machine {shown} is not known");
            draft.assume(Assumption { text: text.into(), option: Some("--map") });
        }
        blocks::place_plugged(stream, ram, &mut draft);
        Ok(draft.finish(|block| ram.block(block).and_then(|block| blocks::reason(&block.idstr))))
    }

    /// A layout of these regions.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] if one is empty,
    /// or not behind the one before.
    pub fn from_regions(regions: Vec<Region>) -> Result<Self> {
        let mut end = PhysicalAddress(0);
        for region in &regions {
            if region.range.start < end || region.range.end <= region.range.start {
                let met = format!("{} to {}", region.range.start, region.range.end);
                let expected = format!("one that begins at {end} or behind it, and is not empty");
                return Err(Error::new(ErrorKind::Malformed { what: "region of memory", met, expected }));
            }
            end = region.range.end;
        }
        Ok(Self { regions, ..Self::default() })
    }

    /// Bytes of RAM that are in the layout.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| sum.saturating_add(region.bytes()))
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
