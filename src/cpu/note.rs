//! What core files tell of vCPUs, as QEMU's `dump-guest-memory` writes it.
//!
//! ```text
//! of each vCPU   CORE NT_PRSTATUS, further sets of registers
//! of each vCPU   QEMU, x86 alone: segments and control registers
//! ```
//!
//! As in QEMU 10: 7.2 had the process id in the byte order of the machine it
//! runs on (IBM Z), or none (POWER).
//!
//! Source followed: QEMU `dump/dump.c` (`write_elf64_notes`),
//! `target/*/arch_dump.c`.

use super::{Vcpu, arm, loongarch, ppc64, riscv, s390x, x86};
use crate::arch::Architecture;
use crate::physical::Note;

/// Kinds of notes, as Linux's `elf.h` names them.
pub(super) mod nt {
    pub(in crate::cpu) const PRSTATUS: u32 = 1;
    pub(in crate::cpu) const PRFPREG: u32 = 2;
}

/// What a core file's header says of the guest's processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreKind {
    /// What they are taken for: x86-64 outside of long mode is i386.
    pub architecture: Architecture,
    /// The byte order of the guest's kernel, which that of the file is.
    pub is_big_endian: bool,
}

/// What QEMU takes the processors for, by the first: its mode on x86, how it
/// takes interrupts on POWER, how EL1 has data on Arm, user mode on RISC-V.
pub fn core_kind(vcpus: &[Vcpu]) -> Option<CoreKind> {
    let first = vcpus.first()?;
    let (architecture, is_big_endian) = match first.architecture {
        Architecture::X86_64 | Architecture::I386 if x86::is_long_mode(first) => {
            (Architecture::X86_64, false)
        }
        Architecture::X86_64 | Architecture::I386 => (Architecture::I386, false),
        Architecture::Aarch64 | Architecture::Arm => (first.architecture, arm::is_big_endian(first)),
        Architecture::Ppc64 => (first.architecture, ppc64::is_big_endian(first)),
        Architecture::Riscv64 => (first.architecture, riscv::is_big_endian(first)),
        architecture => (architecture, architecture.is_big_endian()),
    };
    Some(CoreKind { architecture, is_big_endian })
}

/// The notes of all vCPUs, in QEMU's order.
pub fn notes(vcpus: &[Vcpu]) -> Vec<Note> {
    let Some(kind) = core_kind(vcpus) else { return Vec::new() };
    let of_kind = |vcpu: &Vcpu| match kind.architecture {
        Architecture::X86_64 => vec![x86::prstatus_64(vcpu)],
        Architecture::I386 => vec![x86::prstatus_32(vcpu)],
        Architecture::Aarch64 => arm::notes_64(vcpu, kind.is_big_endian),
        Architecture::Arm => arm::notes_32(vcpu, kind.is_big_endian),
        Architecture::Ppc64 => ppc64::notes(vcpu, kind.is_big_endian),
        Architecture::S390x => s390x::notes(vcpu),
        Architecture::Riscv64 => riscv::notes(vcpu, kind.is_big_endian),
        Architecture::Loongarch64 => loongarch::notes(vcpu),
    };
    let status = vcpus.iter().flat_map(of_kind);
    let is_x86 = matches!(kind.architecture, Architecture::X86_64 | Architecture::I386);
    status.chain(vcpus.iter().filter(|_| is_x86).map(x86::qemu_note)).collect()
}

/// What a note says, in the making: numbers in the guest's byte order.
pub(super) struct Desc {
    bytes: Vec<u8>,
    is_big_endian: bool,
}

impl Desc {
    pub(super) fn new(is_big_endian: bool) -> Self {
        Self { bytes: Vec::new(), is_big_endian }
    }

    /// The begin of `NT_PRSTATUS` of 64-bit processors, up to the registers. As
    /// process id it has the vCPU's index and one.
    pub(super) fn prstatus_64(vcpu: &Vcpu, is_big_endian: bool) -> Self {
        let mut desc = Self::new(is_big_endian);
        desc.zeros(32);
        desc.word_32(process_id(vcpu));
        desc.zeros(76);
        desc
    }

    /// The same of 32-bit processors.
    pub(super) fn prstatus_32(vcpu: &Vcpu, is_big_endian: bool) -> Self {
        let mut desc = Self::new(is_big_endian);
        desc.zeros(24);
        desc.word_32(process_id(vcpu));
        desc.zeros(44);
        desc
    }

    pub(super) fn word_64(&mut self, word: u64) {
        self.bytes.extend(if self.is_big_endian { word.to_be_bytes() } else { word.to_le_bytes() });
    }

    /// The low 32 bits.
    pub(super) fn word_32(&mut self, word: u64) {
        let bytes = word.to_le_bytes();
        let low = bytes.iter().take(4);
        match self.is_big_endian {
            true => self.bytes.extend(low.rev()),
            false => self.bytes.extend(low),
        }
    }

    /// The low 16 bits, and 16 of nothing.
    pub(super) fn selector(&mut self, word: u64) {
        self.word_32(word & 0xffff);
    }

    /// 128 bits; words are lowest first.
    pub(super) fn word_128(&mut self, [low, high]: [u64; 2]) {
        let words = if self.is_big_endian { [high, low] } else { [low, high] };
        words.into_iter().for_each(|word| self.word_64(word));
    }

    /// Registers of 64 bits by name, 0 for one that is not there.
    pub(super) fn registers<N: AsRef<str>>(&mut self, vcpu: &Vcpu, names: impl IntoIterator<Item = N>) {
        names.into_iter().for_each(|name| self.word_64(vcpu.get(name.as_ref())));
    }

    pub(super) fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    pub(super) fn note(self, name: &'static str, kind: u32) -> Note {
        Note { name, kind, desc: self.bytes }
    }
}

fn process_id(vcpu: &Vcpu) -> u64 {
    u64::from(vcpu.index) + 1
}
