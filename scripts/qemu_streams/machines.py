"""The table of guests whose physical memory is compared: where a board has RAM."""

from dataclasses import dataclass

GIB = 1 << 10  # in MiB
LONG_MODE = (("cr4", 0x20), ("efer", 0x100), ("cr0", 0x80000011))


@dataclass(frozen=True)
class Machine:
    """A guest. Its RAM is in files, whose names are those of the backends."""

    name: str
    binary: str
    machine: str
    mib: int
    ram_id: str = ""  # the board's name of its RAM; empty: nodes
    nodes: tuple[int, ...] = ()  # MiB of each NUMA node
    dimm: int = 0  # MiB plugged in
    virtio_mem: int = 0  # MiB
    options: tuple[str, ...] = ()
    boots: float = 0  # seconds that firmware runs
    mode: tuple[tuple[str, int], ...] = ()  # registers set before the others
    blank: bool = False  # firmware of nothing, for streams that others may have

    @property
    def machine_type(self) -> str:
        return self.machine.split(",", maxsplit=1)[0]


def _pcs() -> list[Machine]:
    sizes = (("512M", 512), ("3.25G", 3328), ("3.5G", 3584), ("5G", 5120))
    rows = []
    for name, mib in sizes:
        rows.append(Machine(f"pc-{name}", "x86_64", "pc", mib, "pc.ram", boots=2))
        rows.append(Machine(f"q35-{name}", "x86_64", "q35", mib, "pc.ram", boots=2))
    return rows


def _versions() -> list[Machine]:
    """Types of several ages, those that a QEMU has."""
    types = (
        "pc-i440fx-1.7", "pc-i440fx-2.0", "pc-i440fx-2.4", "pc-i440fx-2.12",
        "pc-i440fx-4.0", "pc-i440fx-7.2", "pc-i440fx-10.0", "pc-i440fx-11.0",
        "pc-q35-2.4", "pc-q35-4.0", "pc-q35-7.0", "pc-q35-7.2", "pc-q35-10.0",
    )  # fmt: skip
    return [
        Machine(kind, "x86_64", kind, 4608, "pc.ram", mode=LONG_MODE) for kind in types
    ]


MACHINES = [
    *_pcs(),
    *_versions(),
    Machine("pc-below-2G", "x86_64", "pc,max-ram-below-4g=2G", 4608, "pc.ram"),
    Machine("q35-below-1G", "x86_64", "q35,max-ram-below-4g=1G", 4608, "pc.ram"),
    Machine("q35-below-3G", "x86_64", "q35,max-ram-below-4g=3G", 4608, "pc.ram"),
    Machine("pc-numa", "x86_64", "pc", 4608, nodes=(3 * GIB, 512, GIB)),
    Machine("q35-numa", "x86_64", "q35", 4608, nodes=(GIB, 3 * GIB, 512)),
    Machine("q35-dimm", "x86_64", "q35", 512, "pc.ram", dimm=256),
    Machine("pc-dimm", "x86_64", "pc", 4608, "pc.ram", dimm=256),
    Machine("q35-virtio-mem", "x86_64", "q35", 512, "pc.ram", virtio_mem=256),
    Machine("q35-no-vga", "x86_64", "q35", 512, "pc.ram", boots=2),
    Machine(
        "pc-vga", "x86_64", "pc", 512, "pc.ram", boots=2, options=("-device", "VGA")
    ),
    Machine("microvm-512M", "x86_64", "microvm", 512, "microvm.ram", boots=1),
    Machine("microvm-4.5G", "x86_64", "microvm", 4608, "microvm.ram"),
    Machine("isapc", "i386", "isapc", 512, "pc.ram"),
    Machine("pc-i386", "i386", "pc", 512, "pc.ram"),
    Machine(
        "virt-aarch64", "aarch64", "virt", 1536, "mach-virt.ram",
        options=("-cpu", "cortex-a57", "-smp", "2"),
    ),
    Machine(
        "virt-aarch64-max", "aarch64", "virt,virtualization=on,secure=on", 256,
        "mach-virt.ram", options=("-cpu", "max"),
    ),
    Machine(
        "virt-aarch64-numa", "aarch64", "virt", 1024, nodes=(256, 768),
        options=("-cpu", "cortex-a57"),
    ),
    Machine(
        "virt-aarch64-dimm", "aarch64", "virt", 512, "mach-virt.ram", dimm=256, blank=True,
        options=("-cpu", "cortex-a57"),
    ),
    Machine(
        "virt-aarch64-virtio-mem", "aarch64", "virt", 512, "mach-virt.ram",
        virtio_mem=256, options=("-cpu", "cortex-a57"),
    ),
    Machine(
        "virt-arm", "arm", "virt", 512, "mach-virt.ram", options=("-cpu", "cortex-a15")
    ),
    Machine("virt-riscv64", "riscv64", "virt", 1536, "riscv_virt_board.ram"),
    Machine(
        "virt-riscv64-numa", "riscv64", "virt", 1024, nodes=(256, 768),
        options=("-smp", "2"),
    ),
    Machine("pseries", "ppc64", "pseries", 1536, "ppc_spapr.ram"),
    Machine("pseries-numa", "ppc64", "pseries", 1024, nodes=(512, 512)),
    Machine("pseries-dimm", "ppc64", "pseries", 512, "ppc_spapr.ram", dimm=256),
    Machine("powernv", "ppc64", "powernv9", 2048, "pnv.ram"),
    Machine("s390x", "s390x", "s390-ccw-virtio", 1536, "s390.ram"),
    Machine("s390x-5G", "s390x", "s390-ccw-virtio", 5120, "s390.ram"),
    Machine("virt-loongarch64", "loongarch64", "virt", 2048, "loongarch.ram"),
    # Small ones, as the tests have them.
    Machine(
        "small-x86_64", "x86_64", "pc", 16, "pc.ram", blank=True, mode=LONG_MODE,
        options=("-smp", "2"),
    ),
    Machine("small-i386", "x86_64", "q35", 16, "pc.ram", blank=True),
    Machine(
        "small-aarch64", "aarch64", "virt", 16, "mach-virt.ram",
        options=("-cpu", "cortex-a57", "-smp", "2"),
    ),
    Machine(
        "small-arm", "arm", "virt", 16, "mach-virt.ram", options=("-cpu", "cortex-a15")
    ),
    Machine("small-ppc64", "ppc64", "pseries", 256, "ppc_spapr.ram"),
    Machine("small-riscv64", "riscv64", "virt", 16, "riscv_virt_board.ram", blank=True),
    Machine("small-s390x", "s390x", "s390-ccw-virtio", 16, "s390.ram"),
    Machine("malta", "mips64el", "malta", 2048, "mips_malta.ram"),
    Machine("malta-256M", "mipsel", "malta", 256, "mips_malta.ram"),
]  # fmt: skip
