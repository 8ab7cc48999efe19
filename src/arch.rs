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
    /// What QEMU calls it, as in `qemu-system-…`.
    pub fn name(self) -> &'static str {
        match self {
            Self::I386 => "i386",
            Self::X86_64 => "x86_64",
            Self::Arm => "arm",
            Self::Aarch64 => "aarch64",
            Self::Ppc64 => "ppc64",
            Self::S390x => "s390x",
            Self::Riscv64 => "riscv64",
            Self::Loongarch64 => "loongarch64",
        }
    }

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

    /// Whether it is big-endian and nothing else. Guests of some others can be
    /// of either order: [`core_kind`](crate::cpu::core_kind) knows.
    pub fn is_big_endian(self) -> bool {
        matches!(self, Self::S390x)
    }

    /// The architecture of a stream's guest, by what describes its `cpu`
    /// sections, or without a description by its RAM blocks. `None` if it is
    /// none of these. A stream is x86-64 or 64-bit Arm as long as nothing says
    /// that its QEMU or its processor has 32 bits: see [`crate::cpu`].
    pub fn of(stream: &Stream<'_>) -> Option<Self> {
        Self::of_description(stream).or_else(|| Self::of_blocks(stream))
    }

    /// By fields that one target alone has.
    fn of_description(stream: &Stream<'_>) -> Option<Self> {
        const FIELDS: [(&str, Architecture); 6] = [
            ("env.segs", Architecture::X86_64),
            ("env.xregs", Architecture::Aarch64),
            ("env.crf", Architecture::Ppc64),
            ("env.psw.mask", Architecture::S390x),
            ("env.mhartid", Architecture::Riscv64),
            ("env.CSR_CRMD", Architecture::Loongarch64),
        ];
        let of_cpu = stream.devices().filter(|device| device.section.handler.idstr == "cpu");
        let fields = &of_cpu.filter_map(|device| device.desc).next()?.vmsd.fields;
        let find = |name: &str| fields.iter().find(|field| field.name == name);
        let (_, architecture) = FIELDS.iter().find(|(name, _)| find(name).is_some())?;
        // Those of 32 bits have other names elsewhere.
        let is_known = match architecture {
            Self::Ppc64 | Self::Riscv64 => find("env.gpr").is_some_and(|field| field.size == 8),
            _ => true,
        };
        is_known.then_some(*architecture)
    }

    fn of_blocks(stream: &Stream<'_>) -> Option<Self> {
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
