//! A layout in the making: what is placed first stays.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::{Assumption, Layout, LayoutHints, MapHint, Region, Unplaced};
use crate::error::{Error, ErrorKind, Result};
use crate::ram::Ram;
use crate::units::{BlockId, BlockOffset, PhysicalAddress};

pub(super) struct Draft<'r> {
    ram: &'r Ram<'r>,
    hints: &'r LayoutHints,
    /// The blocks that are RAM of the board, in a row.
    main: Vec<BlockId>,
    /// The same, to be looked up: there can be 65,536.
    is_main: HashSet<BlockId>,
    /// Placed, by the first address, without overlaps.
    regions: BTreeMap<u64, Region>,
    /// Bytes of blocks that have a reason for having no place.
    left: Vec<(BlockId, Range<u64>, &'static str)>,
    /// Blocks that are RAM although they are called as a device's memory.
    plugged: HashSet<BlockId>,
    assumptions: Vec<Assumption>,
    device_memory: Option<u64>,
}

impl<'r> Draft<'r> {
    /// A draft that has what was given by hand.
    pub(super) fn new(ram: &'r Ram<'r>, hints: &'r LayoutHints) -> Result<Self> {
        let mut draft = Self {
            ram,
            hints,
            main: Vec::new(),
            is_main: HashSet::new(),
            regions: BTreeMap::new(),
            left: Vec::new(),
            plugged: HashSet::new(),
            assumptions: Vec::new(),
            device_memory: None,
        };
        hints.maps.iter().try_for_each(|map| draft.place_by_hand(map))?;
        Ok(draft)
    }

    pub(super) fn hints(&self) -> &'r LayoutHints {
        self.hints
    }

    pub(super) fn assume(&mut self, assumption: Assumption) {
        self.assumptions.push(assumption);
    }

    /// Says which blocks are the board's RAM, in which order.
    pub(super) fn set_main(&mut self, main: Vec<BlockId>) {
        self.is_main = main.iter().copied().collect();
        self.main = main;
    }

    /// Says where memory begins that is plugged in, if the board has a place
    /// for it.
    pub(super) fn set_device_memory(&mut self, at: Option<u64>) {
        self.device_memory = at;
    }

    /// Where memory begins that is plugged in.
    pub(super) fn device_memory(&self) -> Option<u64> {
        self.device_memory
    }

    /// The length of the block of that name; 0 if there is none.
    pub(super) fn block_len_of(&self, idstr: &[u8]) -> u64 {
        self.ram.find(idstr).map_or(0, |block| self.block_len(block))
    }

    /// Whether a block is the board's RAM.
    pub(super) fn is_main(&self, block: BlockId) -> bool {
        self.is_main.contains(&block)
    }

    /// Whether a block has a place that was given by hand.
    pub(super) fn is_by_hand(&self, block: BlockId) -> bool {
        self.hints.maps.iter().any(|map| self.ram.find(&map.idstr) == Some(block))
    }

    fn block_len(&self, block: BlockId) -> u64 {
        self.ram.block(block).map_or(0, |block| block.used_length)
    }

    /// Bytes of the board's RAM.
    pub(super) fn main_len(&self) -> u64 {
        self.main.iter().fold(0, |sum: u64, block| sum.saturating_add(self.block_len(*block)))
    }

    /// Places a range of the board's RAM at `address`.
    pub(super) fn place_main(&mut self, range: Range<u64>, address: u64, derived: &'static str) {
        for (block, part, skipped) in self.main_parts(range) {
            if let Some(address) = address.checked_add(skipped) {
                self.place(block, part, PhysicalAddress(address), derived.into());
            }
        }
    }

    /// Says why a range of the board's RAM has no place.
    pub(super) fn leave_main(&mut self, range: Range<u64>, reason: &'static str) {
        for (block, part, _) in self.main_parts(range) {
            self.leave(block, part, reason);
        }
    }

    /// Says why bytes of a block have no place.
    pub(super) fn leave(&mut self, block: BlockId, part: Range<u64>, reason: &'static str) {
        self.left.push((block, part, reason));
    }

    /// Says that a block is RAM, whatever it is called: bytes of it that are neither
    /// placed nor left are missing.
    pub(super) fn expect(&mut self, block: BlockId) {
        self.plugged.insert(block);
    }

    /// The parts of blocks that a range of the board's RAM is, and how far
    /// into the range each begins.
    fn main_parts(&self, range: Range<u64>) -> Vec<(BlockId, Range<u64>, u64)> {
        let mut parts = Vec::new();
        let mut start = 0_u64;
        for block in &self.main {
            let end = start.saturating_add(self.block_len(*block));
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                parts.push((*block, from - start..to - start, from - range.start));
            }
            start = end;
        }
        parts
    }

    /// Places bytes of a block, but for those that have a place by hand, and
    /// for addresses that are taken.
    pub(super) fn place(
        &mut self,
        block: BlockId,
        part: Range<u64>,
        address: PhysicalAddress,
        derived: Cow<'static, str>,
    ) {
        let len = part.end.saturating_sub(part.start);
        let Some(end) = address.0.checked_add(len) else { return };
        let by_hand = self.hints.maps.iter().filter(|map| self.ram.find(&map.idstr) == Some(block));
        let offsets =
            by_hand.map(|map| map.part.as_ref().map_or(0..u64::MAX, |part| part.start.0..part.end.0));
        // Both as addresses: where the bytes would be, and where others are.
        let moved = offsets.map(|taken| {
            let at = |offset: u64| address.0.saturating_add(offset.saturating_sub(part.start));
            at(taken.start)..at(taken.end)
        });
        // Regions do not overlap: those in the way are neighbours. There can be
        // one for each of 65,536 blocks, which are placed one by one in any order.
        let before = self.regions.range(..address.0).next_back();
        let in_the_way = before.into_iter().chain(self.regions.range(address.0..end));
        let taken = in_the_way.map(|(_, region)| region.range.start.0..region.range.end.0);
        let holes: Vec<Range<u64>> = moved.chain(taken).collect();
        for free in without(address.0..end, holes) {
            let offset = BlockOffset(part.start + (free.start - address.0));
            let range = PhysicalAddress(free.start)..PhysicalAddress(free.end);
            self.insert(Region { range, block, offset, derived: derived.clone() });
        }
    }

    fn insert(&mut self, region: Region) {
        self.regions.insert(region.range.start.0, region);
    }

    fn place_by_hand(&mut self, map: &MapHint) -> Result<()> {
        let refused = |met: String, expected: String| {
            Err(Error::new(ErrorKind::Malformed { what: "place given for a RAM block", met, expected }))
        };
        let shown = map.to_string();
        let Some(block) = self.ram.find(&map.idstr) else {
            let known: Vec<String> =
                self.ram.blocks().take(20).map(|(_, block, _)| block.idstr.to_string()).collect();
            return refused(shown, format!("a RAM block of the stream: {}", known.join(", ")));
        };
        let len = self.block_len(block);
        let part = map.part.clone().map_or(0..len, |part| part.start.0..part.end.0);
        if part.start >= part.end || part.end > len {
            return refused(shown, format!("a part of its {len:#x} bytes"));
        }
        let page_len = self.ram.page_size().bytes();
        if !(map.address.0 | part.start).is_multiple_of(page_len) {
            return refused(shown, format!("an address and an offset that are multiples of {page_len:#x}"));
        }
        let Some(end) = map.address.checked_add(part.end - part.start) else {
            return refused(shown, "addresses below 2⁶⁴".to_owned());
        };
        let range = map.address..end;
        let is_free = |known: &Region| known.range.end <= range.start || range.end <= known.range.start;
        if !self.regions.values().all(is_free) {
            return refused(shown, "addresses that no other --map names".to_owned());
        }
        self.insert(Region {
            range,
            block,
            offset: BlockOffset(part.start),
            derived: "given by --map".into(),
        });
        Ok(())
    }

    /// The layout. What is not placed by now has no place.
    pub(super) fn finish(self, reason_of: impl Fn(BlockId) -> Option<&'static str>) -> Layout {
        let mut unplaced = Vec::new();
        let mut known: HashMap<BlockId, Vec<Range<u64>>> = HashMap::new();
        for region in self.regions.values() {
            let placed = region.offset.0..region.offset.0.saturating_add(region.bytes());
            known.entry(region.block).or_default().push(placed);
        }
        let mut left: HashMap<BlockId, Vec<(Range<u64>, &'static str)>> = HashMap::new();
        for (block, range, reason) in self.left {
            known.entry(block).or_default().push(range.clone());
            left.entry(block).or_default().push((range, reason));
        }
        for (id, block, _) in self.ram.blocks() {
            for (range, reason) in left.remove(&id).unwrap_or_default() {
                let range = BlockOffset(range.start)..BlockOffset(range.end);
                unplaced.push(Unplaced { block: id, range, reason: reason.into(), is_ram: false });
            }
            for range in without(0..block.used_length, known.remove(&id).unwrap_or_default()) {
                let reason = reason_of(id).filter(|_| !self.plugged.contains(&id));
                unplaced.push(Unplaced {
                    block: id,
                    range: BlockOffset(range.start)..BlockOffset(range.end),
                    reason: reason.unwrap_or("RAM, for all that is known, but nothing tells where").into(),
                    is_ram: reason.is_none(),
                });
            }
        }
        Layout { regions: self.regions.into_values().collect(), unplaced, assumptions: self.assumptions }
    }
}

/// What is left of a range without others, in any order.
pub(super) fn without(range: Range<u64>, mut holes: Vec<Range<u64>>) -> Vec<Range<u64>> {
    holes.sort_unstable_by_key(|hole| hole.start);
    let mut left = Vec::new();
    let mut from = range.start;
    for hole in holes.iter().filter(|hole| hole.start < hole.end) {
        if from < hole.start.min(range.end) {
            left.push(from..hole.start.min(range.end));
        }
        from = from.max(hole.end);
    }
    if from < range.end {
        left.push(from..range.end);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(holes: Vec<Range<u64>>, expected: &[Range<u64>]) {
        assert_eq!(without(10..20, holes), expected);
    }

    #[test]
    fn a_range_without_others() {
        check(vec![], std::slice::from_ref(&(10..20)));
        check(vec![15..16, 0..12, 19..30], &[12..15, 16..19]);
        check(vec![5..40, 8..9], &[]);
        check(vec![30..40, 12..12], std::slice::from_ref(&(10..20)));
    }
}
