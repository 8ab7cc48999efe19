//! The guest's architecture, as far as a stream tells it.

use crate::stream::Stream;

/// An architecture that QEMU emulates, by what a core file of it needs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Architecture {
    /// 32-bit x86, saved by `qemu-system-i386`.
    I386,
    /// x86 of 64 bits, in whatever mode the guest is.
    X86_64,
    /// 32-bit Arm.
    Arm,
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit POWER, of either byte order.
    Ppc64,
    /// IBM Z.
    S390x,
    /// 64-bit RISC-V.
    Riscv64,
    /// 64-bit LoongArch.
    Loongarch64,
}

impl Architecture {
    /// Its number in an ELF header, `e_machine`.
    pub fn e_machine(self) -> u16 {
        match self {
            Self::I386 => 3,
            Self::X86_64 => 62,
            Self::Arm => 40,
            Self::Aarch64 => 183,
            Self::Ppc64 => 21,
            Self::S390x => 22,
            Self::Riscv64 => 243,
            Self::Loongarch64 => 258,
        }
    }

    /// Whether a core file of it is big-endian. POWER guests can be of either
    /// order; QEMU's own core files of those that run Linux are little-endian
    /// if the guest takes interrupts so.
    pub fn is_big_endian(self) -> bool {
        matches!(self, Self::S390x)
    }

    /// The architecture of a stream's guest, by its machine type, RAM blocks
    /// and `cpu` sections. `None` if it is none of these.
    pub fn of(stream: &Stream<'_>) -> Option<Self> {
        let ram = stream.ram()?;
        let has = |idstr: &[u8]| ram.find(idstr).is_some();
        match () {
            () if has(b"mach-virt.ram") => Some(Self::Aarch64),
            () if has(b"ppc_spapr.ram") => Some(Self::Ppc64),
            () if has(b"s390.ram") => Some(Self::S390x),
            () if has(b"riscv_virt_board.ram") => Some(Self::Riscv64),
            () if has(b"loongarch.ram") => Some(Self::Loongarch64),
            () if has(b"pc.ram") => Some(Self::X86_64),
            () => None,
        }
    }
}
