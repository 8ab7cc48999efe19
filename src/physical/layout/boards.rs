//! Boards whose RAM is at one address.

use super::Assumption;
use super::draft::Draft;
use crate::arch::Architecture;

/// A board, or several with the same memory.
pub(super) struct Board {
    /// What their machine types begin with; none if the block's name says it.
    machine: &'static str,
    /// Which processors it has, where the name of its type does not tell it.
    architecture: Option<Architecture>,
    /// The name of the RAM block, if it was not given another.
    pub(super) ram_id: &'static str,
    /// The parts of RAM: how many bytes of it, and where. What is left then is
    /// under peripherals.
    parts: &'static [(u64, u64)],
    /// Where QEMU says it.
    source: &'static str,
}

const REST: u64 = u64::MAX;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// All that are known. What one block's name can mean is told by the machine
/// type, which stands before it.
const BOARDS: &[Board] = &[
    board("", "mach-virt.ram", &[(REST, 0x4000_0000)], "RAM of virt: hw/arm/virt.c"),
    board("sbsa-ref", "sbsa-ref.ram", &[(REST, 0x100_0000_0000)], "RAM of sbsa-ref: hw/arm/sbsa-ref.c"),
    board("raspi", "ram", &[(0x3f00_0000, 0)], "RAM of raspi: hw/arm/raspi.c"),
    board("", "ppc_spapr.ram", &[(REST, 0)], "RAM of pseries: hw/ppc/spapr.c"),
    board("", "pnv.ram", &[(REST, 0)], "RAM of powernv: hw/ppc/pnv.c"),
    board("", "s390.ram", &[(REST, 0)], "RAM of s390-ccw-virtio: hw/s390x/s390-virtio-ccw.c"),
    board("", "riscv_virt_board.ram", &[(REST, 0x8000_0000)], "RAM of virt: hw/riscv/virt.c"),
    board("", "riscv.sifive.u.ram", &[(REST, 0x8000_0000)], "RAM of sifive_u: hw/riscv/sifive_u.c"),
    board("", "riscv.spike.ram", &[(REST, 0x8000_0000)], "RAM of spike: hw/riscv/spike.c"),
    board("", "loongarch.ram", LOONGARCH_PARTS, "RAM of virt: hw/loongarch/virt.c"),
    board("", "mips_malta.ram", &[(256 * MIB, 0), (REST, 0x9000_0000)], "RAM of malta: hw/mips/malta.c"),
    board("", "m68k_virt.ram", &[(REST, 0)], "RAM of virt: hw/m68k/virt.c"),
    board("", "sun4u.ram", &[(REST, 0)], "RAM of sun4u: hw/sparc64/sun4u.c"),
    board("clipper", "ram", &[(REST, 0)], "RAM of clipper: hw/alpha/dp264.c"),
    board("hppa", "ram", &[(REST, 0)], "RAM of hppa: hw/hppa/machine.c"),
    // Types whose RAM block was given another name.
    board("pseries", "", &[(REST, 0)], "RAM of pseries: hw/ppc/spapr.c"),
    board("powernv", "", &[(REST, 0)], "RAM of powernv: hw/ppc/pnv.c"),
    board("s390-ccw-virtio", "", &[(REST, 0)], "RAM of s390-ccw-virtio: hw/s390x/s390-virtio-ccw.c"),
    virt(Architecture::Aarch64, &[(REST, 0x4000_0000)], "RAM of virt: hw/arm/virt.c"),
    virt(Architecture::Riscv64, &[(REST, 0x8000_0000)], "RAM of virt: hw/riscv/virt.c"),
    virt(Architecture::Loongarch64, LOONGARCH_PARTS, "RAM of virt: hw/loongarch/virt.c"),
];

const LOONGARCH_PARTS: &[(u64, u64)] = &[(256 * MIB, 0), (REST, 0x8000_0000)];

/// One of the boards that are called `virt`, by its processors.
const fn virt(architecture: Architecture, parts: &'static [(u64, u64)], source: &'static str) -> Board {
    Board { machine: "virt", architecture: Some(architecture), ram_id: "", parts, source }
}

const fn board(
    machine: &'static str,
    ram_id: &'static str,
    parts: &'static [(u64, u64)],
    source: &'static str,
) -> Board {
    Board { machine, architecture: None, ram_id, parts, source }
}

impl Board {
    /// The board of a machine type that has RAM blocks so called.
    pub(super) fn of(
        machine: Option<&str>,
        architecture: Option<Architecture>,
        has: impl Fn(&str) -> bool,
    ) -> Option<&'static Self> {
        BOARDS.iter().find(|board| {
            machine.unwrap_or_default().starts_with(board.machine)
                && (board.architecture.is_none() || board.architecture == architecture)
                && (board.ram_id.is_empty() || has(board.ram_id))
        })
    }

    /// Places RAM, which is `draft`'s row of main blocks.
    pub(super) fn place(&self, draft: &mut Draft<'_>) {
        if self.parts == LOONGARCH_PARTS && draft.main_len() > 256 * MIB {
            draft.assume(Assumption {
                text: "RAM above 256 MiB is at 0x80000000, as QEMU 10 has it; 7.2 had it at 0x90000000"
                    .into(),
                option: Some("--map"),
            });
        }
        let mut from: u64 = 0;
        for (len, address) in self.parts {
            let end = from.saturating_add(*len).min(draft.main_len());
            draft.place_main(from..end, *address, self.source);
            from = end;
        }
        // Where DIMMs are, if there are any: from the next GiB on.
        let has_window = ["mach-virt.ram", "ppc_spapr.ram"].contains(&self.ram_id)
            || self.machine == "pseries"
            || self.architecture == Some(Architecture::Aarch64);
        if let ([(_, address)], true) = (self.parts, has_window) {
            draft.set_device_memory(
                address.checked_add(draft.main_len()).and_then(|end| end.checked_next_multiple_of(GIB)),
            );
        }
        draft.leave_main(from..draft.main_len(), "under peripherals");
    }
}
