//! Ways into the guest's kernel: where vCPUs of x86-64 enter it, and the page
//! tables that they do so by.
//!
//! `LSTAR` is where `SYSCALL` goes, so it is in the running kernel's code, and
//! no other program's. The tables of `CR3` have that mapped, even if they are
//! those of a process.

use super::paging::PageTables;
use crate::arch::Architecture;
use crate::cpu::{self, Vcpu};
use crate::physical::PhysicalMemory;
use crate::stream::Stream;
use crate::units::PhysicalAddress;
use crate::wire::limit;

/// How a vCPU enters its kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KernelEntry {
    /// The virtual address of its code for system calls.
    pub(super) lstar: u64,
    /// Where its page tables are: `CR3`, which has flags.
    pub(super) cr3: u64,
    /// Bits of an address that these look at.
    address_bits: u32,
    /// The bases of `GS`: the present one, and that to be swapped with.
    pub(super) gs: [u64; 2],
}

/// The ways in whose `LSTAR` `is_asked` for. Each pair of `LSTAR` and `CR3` is
/// there once.
pub(super) fn entries(stream: &Stream<'_>, is_asked: impl Fn(u64) -> bool) -> Vec<KernelEntry> {
    let mut entries: Vec<KernelEntry> = Vec::new();
    for vcpu in &cpu::vcpus(stream).vcpus {
        let Some(entry) = KernelEntry::of(vcpu).filter(|entry| is_asked(entry.lstar)) else { continue };
        let is_there = |other: &KernelEntry| (other.lstar, other.cr3) == (entry.lstar, entry.cr3);
        if !entries.iter().any(is_there) && entries.len() < limit::KERNEL_ENTRIES {
            entries.push(entry);
        }
    }
    entries
}

impl KernelEntry {
    fn of(vcpu: &Vcpu) -> Option<Self> {
        /// `EFER.LMA`: in long mode.
        const LMA: u64 = 1 << 10;
        /// `CR4.LA57`: page tables of five levels.
        const LA57: u64 = 1 << 12;
        let is_long = vcpu.architecture == Architecture::X86_64 && vcpu.register("efer")? & LMA != 0;
        let address_bits = if vcpu.register("cr4")? & LA57 != 0 { 57 } else { 48 };
        let gs = [vcpu.register("gs.base")?, vcpu.register("kernelgsbase")?];
        let (lstar, cr3) = (vcpu.register("lstar")?, vcpu.register("cr3")?);
        is_long.then_some(Self { lstar, cr3, address_bits, gs })
    }

    /// Page tables of the kernel that begin at `root`.
    pub(super) fn tables<'m, 'r, 'a>(
        &self,
        memory: &'m PhysicalMemory<'r, 'a>,
        root: u64,
    ) -> PageTables<'m, 'r, 'a> {
        PageTables::x86_64(memory, PhysicalAddress(root), self.address_bits)
    }
}
