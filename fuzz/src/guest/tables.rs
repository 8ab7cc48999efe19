//! Page tables in a guest's memory, made and read by what the processors' manuals
//! say.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use ramlift::physical::PhysicalMemory;

use super::super::kernel::{Memory, PAGE};
use super::read;

/// Tables of 512 entries that are being made.
pub struct Tables {
    pub root: u64,
    /// Where the next table goes.
    next: u64,
    levels: u32,
    is_arm: bool,
    entries: BTreeMap<u64, u64>,
}

impl Tables {
    /// Tables that begin at `root`, the others behind it.
    pub fn new(root: u64, levels: u32, is_arm: bool) -> Self {
        Self { root, next: root + PAGE, levels, is_arm, entries: BTreeMap::new() }
    }

    /// Has `at` show memory at `to`, of pages of 4 KiB at `level` 0, of 2 MiB at 1 and
    /// of 1 GiB at 2.
    pub fn map(&mut self, at: u64, to: u64, level: u32) {
        let mut table = self.root;
        for above in (level + 1..self.levels).rev() {
            let slot = table + 8 * (at >> (12 + 9 * above) & 511);
            table = match self.entries.get(&slot) {
                Some(entry) => entry & 0x000f_ffff_ffff_f000,
                None => {
                    let new = self.next;
                    self.next += PAGE;
                    self.entries.insert(slot, new | 3);
                    new
                }
            };
        }
        let flags = match (self.is_arm, level) {
            (_, 0) => 0x703,
            (true, _) => 0x701,
            (false, _) => 0x83,
        };
        self.entries.insert(table + 8 * (at >> (12 + 9 * level) & 511), to | flags);
    }

    /// Changes entries as nobody would: circles, holes, what is beyond memory.
    pub fn change(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let slots: Vec<u64> = self.entries.keys().copied().collect();
        for _ in 0..u.int_in_range(1..=6)? {
            let slot = if u.ratio(2, 3)? {
                *u.choose(&slots)?
            } else {
                self.root + u.int_in_range(0..=(self.next - self.root) / 8)? * 8
            };
            let entry = match u.int_in_range(0..=5)? {
                0 => 0,
                1 => self.root | 3,
                2 => (slot & !0xfff) | 3,
                3 => (u.int_in_range(0..=0x4000)? * PAGE) | *u.choose(&[3, 1, 0x83, 0x81])?,
                4 => u64::MAX << u.int_in_range(0..=20)?,
                _ => u.arbitrary()?,
            };
            let count = *u.choose(&[1, 1, 2, 512])?;
            for nth in 0..count {
                let step = if u.is_empty() { 0 } else { nth * PAGE };
                self.entries.insert((slot + 8 * nth) & !7, entry.wrapping_add(step));
            }
        }
        Ok(())
    }

    /// Puts them into memory.
    pub fn put(&self, memory: Memory) -> Memory {
        self.entries.iter().fold(memory, |memory, (slot, entry)| memory.word(*slot, *entry))
    }
}

/// Where `at` is in memory, by tables of x86-64.
pub fn walk(memory: PhysicalMemory<'_, '_>, root: u64, at: u64, levels: u32) -> Option<u64> {
    walk_as(memory, root, at, levels, false)
}

/// The same, or by those of aarch64.
pub fn walk_as(memory: PhysicalMemory<'_, '_>, root: u64, at: u64, levels: u32, is_arm: bool) -> Option<u64> {
    let address = if is_arm { 0x0000_ffff_ffff_f000 } else { 0x000f_ffff_ffff_f000 };
    let mut table = root;
    for level in (0..levels).rev() {
        let bits = 12 + 9 * level;
        let entry = u64::from_le_bytes(read(memory, table + 8 * (at >> bits & 511))?);
        if entry & 1 == 0 {
            return None;
        }
        let is_leaf = level == 0 || if is_arm { entry & 2 == 0 } else { entry & 0x80 != 0 };
        if is_leaf {
            let low = (1 << bits) - 1;
            return Some((entry & address & !low) + (at & low));
        }
        table = entry & address;
    }
    None
}
