//! A part of a kernel's virtual memory, to be read at any of its addresses.

use std::ops::{ControlFlow, Range};

use super::paging::{Leaf, PageTables};
use crate::error::Result;
use crate::physical::PhysicalMemory;
use crate::units::{PhysicalAddress, index};

/// The pages that page tables have in a range of addresses.
#[derive(Debug)]
pub(super) struct AddressSpace<'m, 'r, 'a> {
    memory: &'m PhysicalMemory<'r, 'a>,
    /// What is mapped, by ascending address; what goes on in memory is one.
    leaves: Vec<Leaf>,
}

impl<'m, 'r, 'a> AddressSpace<'m, 'r, 'a> {
    /// What `tables` have `within` a range, which bounds how much this is.
    ///
    /// # Errors
    /// As [`PageTables::walk`].
    pub(super) fn of(tables: &PageTables<'m, 'r, 'a>, within: Range<u64>) -> Result<Self> {
        let mut leaves: Vec<Leaf> = Vec::new();
        tables.walk(within.clone(), |leaf| {
            let Some(leaf) = leaf.clip(&within) else { return ControlFlow::Continue(()) };
            match leaves.last_mut() {
                Some(last) if last.is_followed_by(&leaf) => last.len += leaf.len,
                _ => leaves.push(leaf),
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { memory: tables.memory(), leaves })
    }

    /// Where `at` is in memory, and how many bytes go on there.
    pub(super) fn translate(&self, at: u64) -> Option<(PhysicalAddress, u64)> {
        let behind = self.leaves.partition_point(|leaf| leaf.at <= at);
        let leaf = self.leaves.get(behind.checked_sub(1)?)?;
        let skipped = at - leaf.at;
        let left = leaf.len.checked_sub(skipped).filter(|left| *left > 0)?;
        Some((leaf.memory.checked_add(skipped)?, left))
    }

    /// Reads from `at` on. Gives how many bytes were there before the first
    /// that is not mapped, is no RAM or not in the stream.
    ///
    /// # Errors
    /// As [`PhysicalMemory::read`].
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let place = at.checked_add(done as u64).and_then(|at| self.translate(at));
            let Some((memory, left)) = place else { break };
            let len = index(left).map_or(rest.len(), |left| left.min(rest.len()));
            let Some(rest) = rest.get_mut(..len) else { break };
            let read = self.memory.read(memory, rest)?;
            done += read;
            if read < len {
                break;
            }
        }
        Ok(done)
    }

    /// The bytes from `at` on, if all of them are there.
    ///
    /// # Errors
    /// As [`PhysicalMemory::read`].
    pub(super) fn array<const N: usize>(&self, at: u64) -> Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        let read = self.read(at, &mut bytes)?;
        Ok((read == N).then_some(bytes))
    }

    /// The text that ends with a NUL, if it has at most `longest` bytes and all
    /// of them are printed.
    ///
    /// # Errors
    /// As [`PhysicalMemory::read`].
    pub(super) fn text(&self, at: u64, longest: usize) -> Result<Option<String>> {
        let mut bytes = vec![0; longest + 1];
        let read = self.read(at, &mut bytes)?;
        let text = bytes.get(..read).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        let is_text = text.len() < read && text.iter().all(|byte| *byte == b' ' || byte.is_ascii_graphic());
        Ok(is_text.then(|| String::from_utf8_lossy(text).into_owned()))
    }

    /// Where pages begin that are mapped, from that of `from` down.
    pub(super) fn pages_down(&self, from: u64) -> impl Iterator<Item = u64> {
        const PAGE: u64 = 4096;
        let leaves = self.leaves.iter().rev().filter(move |leaf| leaf.at <= from);
        leaves.flat_map(move |leaf| {
            let last = from.min(leaf.at + (leaf.len - 1)) / PAGE;
            (leaf.at / PAGE..=last).rev().map(|page| page * PAGE)
        })
    }
}
