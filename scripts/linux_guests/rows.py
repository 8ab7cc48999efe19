"""The table: one row is one guest."""

from dataclasses import dataclass, replace

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """A guest: its board, its memory, and what its kernel is told."""

    name: str
    binary: str  # what follows qemu-system-
    architecture: str  # Debian's name of it
    machine: str
    console: str
    mebibytes: int
    options: tuple[str, ...] = ()
    kaslr: bool = True
    vcpus: int = 2

    def arguments(self) -> list[str]:
        """QEMU's arguments, without the program and the QMP connection."""
        words = [f"console={self.console}", "panic=-1", *([] if self.kaslr else ["nokaslr"])]
        return [
            "-machine", self.machine,
            "-accel", "tcg",
            "-smp", str(self.vcpus),
            "-m", f"{self.mebibytes}M",
            "-nodefaults", "-no-user-config", "-no-reboot",
            "-display", "none",
            "-serial", "file:console.txt",
            "-kernel", "kernel",
            "-initrd", "initramfs",
            "-append", " ".join(words),
            *self.options,
        ]  # fmt: skip


# All that QEMU can do but for page tables of five levels, which not every reader
# of dumps knows: they have a row of their own.
Q35 = Row("q35", "x86_64", "amd64", "q35", "ttyS0", 512, ("-cpu", "max,la57=off"))
LA57 = replace(Q35, name="q35-la57", options=("-cpu", "max"))
PC = replace(Q35, name="pc", machine="pc", options=("-cpu", "qemu64"))
VIRT = Row("virt", "aarch64", "arm64", "virt", "ttyAMA0", 512, ("-cpu", "cortex-a57"))


def _large(row: Row) -> Row:
    return replace(row, name=f"{row.name}-large", mebibytes=4608)


def _fixed(row: Row) -> Row:
    return replace(row, name=f"{row.name}-nokaslr", kaslr=False)


def _told(row: Row) -> Row:
    options = (*row.options, "-device", "vmcoreinfo")
    return replace(row, name=f"{row.name}-vmcoreinfo", options=options)


ROWS = [
    Q35,
    PC,
    VIRT,
    LA57,
    _large(Q35),
    _large(PC),
    _large(VIRT),
    _fixed(Q35),
    _fixed(_large(PC)),
    _fixed(VIRT),
    _told(_large(Q35)),
    _told(_fixed(PC)),
    _told(VIRT),
]
