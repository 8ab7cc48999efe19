"""The table: one row is one stream."""

from dataclasses import dataclass, replace

MIB = 1 << 20

# By how much the memory that a guest writes to during its migration is smaller
# than a whole number of MiB. Blocks of a multiple of 64 pages take a fast path in
# QEMU (cpu_physical_memory_sync_dirty_bitmap) that is not right under software
# emulation: in 7.2 it does not reset the vCPU's TLB, so that later writes to a page
# that stays in the TLB are neither noticed nor sent, and the stream differs from
# the guest. 10.0 and 11.1 do reset it, but at the offset in the block instead of
# the address: right for the first block only, an assertion for a larger second one.
LIVE_SHORTFALL = 8 << 10

# Every row finds this file in its directory: a small raw disk image.
DISK = "disk.img"
# And this one: its length is no multiple of 1 MiB, and it ends with zeros.
SHORT_DISK = "short.img"

# How a memory backend names its RAM block: by its id, or by the canonical path
# that machine types up to 4.0 use by default.
PLAIN_ID = "x-use-canonical-path-for-ramblock-id=off"
CANONICAL_PATH = "x-use-canonical-path-for-ramblock-id=on"


@dataclass(frozen=True)
class Board:
    """A machine, and how its RAM gets its content.

    A board with `firmware` runs the guest of firmware.py, one with `program` one of
    programs.py; others are never started. But for the first, a pattern is put into
    the file behind its main memory or, if the board takes no backend (`ram_id`
    empty), loaded at `load_address`.
    """

    binary: str  # what follows qemu-system-
    machine: str
    ram_id: str = ""
    firmware: bool = False
    program: str = ""  # a guest of programs.py, by its name
    ram_bytes: int = 0  # for boards that do not accept any size
    load_address: int = 0
    load_bytes: int = 0
    options: tuple[str, ...] = ()
    since: tuple[int, ...] = ()  # first QEMU version that can migrate it
    mmio: range = range(0)  # where its virtio-mmio transports are
    unstable: tuple[str, ...] = ()  # RAM blocks that change while the guest is stopped


@dataclass(frozen=True)
class Backend:
    """A memory backend with a file of its own."""

    id: str
    share: float = 1.0  # of the RAM size asked for
    naming: str = PLAIN_ID


@dataclass(frozen=True)
class Row:
    """One stream. Empty fields take what the board says."""

    name: str
    board: Board
    scenario: str = "paused"
    machine: str = ""
    machine_options: str = ""
    options: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    parameters: tuple[tuple[str, object], ...] = ()  # of the migration
    numa: tuple[Backend, ...] = ()  # main memory in nodes, in node order
    dimm: Backend | None = None
    naming: str = PLAIN_ID
    # Commands before the migration: of QMP, as pairs of name and arguments, or of
    # the human monitor, as text.
    setup: tuple[tuple[str, dict] | str, ...] = ()
    migrate: tuple[tuple[str, object], ...] = ()  # further arguments of `migrate`
    # How the virtio devices are reached that are set up over qtest: "pci", "mmio",
    # "legacy-mmio".
    virtio: str = ""
    # The drive, behind the first PCI device, that fails when it is read: a request
    # stays in flight.
    failing_disk: str = ""
    until: tuple[int, ...] = ()  # first QEMU version that cannot make it

    @property
    def machine_type(self) -> str:
        return self.machine or self.board.machine

    @property
    def channels(self) -> bool:
        """Whether the pages go through connections of their own."""
        return "multifd" in self.capabilities and not self.mapped

    @property
    def mapped(self) -> bool:
        """Whether each page has its place in the stream, which has to be a file."""
        return "mapped-ram" in self.capabilities

    def main_backends(self) -> tuple[Backend, ...]:
        """The backends that make up main memory, in order of address."""
        if self.numa or not self.board.ram_id:
            return self.numa
        return (Backend(self.board.ram_id, naming=self.naming),)

    def backends(self) -> tuple[Backend, ...]:
        """All backends, a DIMM last."""
        return self.main_backends() + ((self.dimm,) if self.dimm else ())

    def backend_bytes(self, backend: Backend, size: int) -> int:
        """Size of a backend if the RAM size asked for is `size`."""
        whole = int((self.board.ram_bytes or size) * backend.share) // MIB * MIB
        written = self.scenario not in ("paused", "killed") and backend is not self.dimm
        return whole - LIVE_SHORTFALL if written else whole

    def ram_bytes(self, size: int) -> int:
        """Size of main memory if the size asked for is `size`."""
        return sum(self.backend_bytes(each, size) for each in self.main_backends())


PC = Board("x86_64", "pc", "pc.ram", firmware=True)
Q35 = replace(PC, machine="q35")
MICROVM = replace(
    PC,
    machine="microvm",
    ram_id="microvm.ram",
    mmio=range(0xFEB00000, 0xFEB03000, 0x200),
)

AARCH64 = Board(
    "aarch64",
    "virt",
    "mach-virt.ram",
    mmio=range(0xA000000, 0xA004000, 0x200),
)
RISCV64 = Board("riscv64", "virt", "riscv_virt_board.ram", options=("-bios", "none"))
S390X = Board("s390x", "s390-ccw-virtio", "s390.ram")
# Main memory in units of 256 MiB.
PSERIES = Board("ppc64", "pseries", "ppc_spapr.ram", ram_bytes=256 * MIB)
S390X_PROGRAM = replace(S390X, program="s390x")
PSERIES_PROGRAM = replace(PSERIES, program="ppc64")
LOONGARCH64 = Board(
    "loongarch64", "virt", "loongarch.ram", ram_bytes=1024 * MIB, since=(10, 0)
)

# Target pages of 1 KiB.
VERSATILE = Board(
    "arm",
    "versatilepb",
    "versatile.ram",
    options=("-audiodev", "none,id=mute", "-global", "pl041.audiodev=mute"),
)
MPS2 = Board("arm", "mps2-an385", "mps.ram", ram_bytes=16 * MIB)
# Target pages of 256 bytes up to 10.0, so that page offsets reach into the bits of
# the flags; 1 KiB in 11.1, which has a block sram-as-io that lies on QEMU's heap.
AVR = Board("avr", "arduino-uno", load_bytes=24 << 10, unstable=("sram-as-io",))
# Target pages of 8 KiB and, the last, 16 KiB. Of these QEMU 7.2 dies by SIGFPE as
# soon as it migrates: it divides by host page size / target page size. 10.0 does
# not; versions between were not tried.
CLIPPER = Board("alpha", "clipper", "ram", since=(10, 0))
OR1K = Board(
    "or1k", "or1k-sim", load_bytes=4 * MIB, options=("-m", "16M"), since=(10, 0)
)
TRICORE = Board(
    "tricore",
    "tricore_testboard",
    load_address=0xA1000000,
    load_bytes=2 * MIB,
    since=(10, 0),
)

# The second node is the larger one: blocks come in order of size, so that their
# order in the stream is not that of their addresses.
NODES = (Backend("n0", 0.25), Backend("n1", 0.75))

# Network cards without their option ROM, which would be others' code in the stream.
VIRTIO = (
    "-netdev", "user,id=net0",
    "-device", "virtio-net-pci,netdev=net0,romfile=",
    "-drive", f"if=none,id=disk0,format=raw,file={DISK}",
    "-device", "virtio-blk-pci,drive=disk0",
    "-device", "virtio-rng-pci",
    "-device", "virtio-balloon-pci",
)  # fmt: skip
VIRTIO_CCW = (
    "-drive", f"if=none,id=disk0,format=raw,file={DISK}",
    "-device", "virtio-blk-ccw,drive=disk0",
    "-device", "virtio-rng-ccw",
)  # fmt: skip
# Every device that is in all QEMUs and needs nothing of the host. One has packed
# rings.
VIRTIO_ALL = (
    *VIRTIO,
    "-device", "virtio-scsi-pci,id=scsi0,packed=on",
    "-drive", f"if=none,id=disk2,format=raw,file={SHORT_DISK}",
    "-device", "scsi-hd,bus=scsi0.0,drive=disk2",
    "-device", "virtio-serial-pci",
    "-device", "virtio-gpu-pci,xres=64,yres=32",
    "-device", "virtio-keyboard-pci",
)  # fmt: skip
VIRTIO_EXPRESS = (
    "-drive", f"if=none,id=disk0,format=raw,file={DISK}",
    "-device", "pcie-root-port,id=port0,chassis=1",
    "-device", "virtio-blk-pci,drive=disk0,bus=port0,num-queues=2",
    "-device", "pcie-root-port,id=port1,chassis=2",
    "-device", "virtio-net-pci,bus=port1,romfile=",
)  # fmt: skip
VIRTIO_MMIO = (
    "-drive", f"if=none,id=disk0,format=raw,file={DISK}",
    "-device", "virtio-blk-device,drive=disk0",
    "-device", "virtio-net-device",
    "-device", "virtio-rng-device",
)  # fmt: skip
FAILING_DISK = (
    "-drive", "if=none,id=disk0,format=raw,file.driver=blkdebug"
    f",file.image.driver=file,file.image.filename={DISK}"
    ",file.inject-error.0.event=read_aio,file.inject-error.0.errno=5",
    "-device", "virtio-blk-pci,drive=disk0,num-queues=2,rerror=stop",
)  # fmt: skip
MODERN_MMIO = ("-global", "virtio-mmio.force-legacy=false")
USB = (
    "-device", "piix3-usb-uhci,id=uhci",
    "-device", "usb-tablet,bus=uhci.0",
    "-device", "qemu-xhci,id=xhci",
    "-device", "usb-kbd,bus=xhci.0",
    "-drive", f"if=none,id=stick,format=raw,file={DISK}",
    "-device", "usb-storage,bus=xhci.0,drive=stick",
)  # fmt: skip
# Its section stands before the pages. No driver plugs memory in, so it has none.
VIRTIO_MEM = (
    "-m", "maxmem=4G",
    "-object", "memory-backend-ram,id=vm0,size=32M",
    "-device", "virtio-mem-pci,id=mem0,memdev=vm0,requested-size=8M",
)  # fmt: skip
SLIRP = ("-netdev", "user,id=net0", "-device", "e1000,netdev=net0,romfile=")
BLOCK = (
    "-drive", f"if=none,id=disk0,format=raw,node-name=node0,file={DISK}",
    "-device", "virtio-blk-pci,drive=disk0",
    "-drive", f"if=none,id=disk1,format=raw,node-name=node1,file={SHORT_DISK}",
    "-device", "virtio-blk-pci,drive=disk1",
)  # fmt: skip


def bitmap(node: str, name: str, granularity: int) -> tuple[str, dict]:
    """The command that adds a dirty bitmap to a block node."""
    arguments = {"node": node, "name": name, "granularity": granularity}
    return ("block-dirty-bitmap-add", arguments)


# Bitmaps of several granularities; one is empty, one is disabled and misses the
# last write.
BITMAPS = (
    bitmap("node0", "fine", 512),
    bitmap("node0", "coarse", 65536),
    'qemu-io disk0 "write -P 0x11 0x3000 0x1200"',
    ("block-dirty-bitmap-disable", {"node": "node0", "name": "coarse"}),
    'qemu-io disk0 "write -P 0x22 0x80000 0x10000"',
    bitmap("node0", "empty", 4096),
    bitmap("node1", "fine", 1024),
    'qemu-io disk1 "write -P 0x33 0 0x400"',
)
UUID = ("-uuid", "5c1f0a52-93d1-4f0e-8a3b-2f6d7e904b11")



def multifd(name: str, scenario: str, channels: int, **parameters) -> Row:
    """A row whose pages go through `channels` connections."""
    every = {"multifd-channels": channels} | {
        key.replace("_", "-"): value for key, value in parameters.items()
    }
    return Row(
        name, PC, scenario, capabilities=("multifd",), parameters=tuple(every.items())
    )


ZLIB, ZSTD = ({"multifd_compression": method} for method in ("zlib", "zstd"))
LEGACY, MULTIFD = ({"zero_page_detection": where} for where in ("legacy", "multifd"))

ROWS = (
    # x86: one pass, and several.
    Row("pc-paused", PC),
    Row("pc-live", PC, "live"),
    Row("pc-vga", PC, options=("-vga", "std")),
    Row("q35-paused", Q35),
    Row("q35-live", Q35, "live", options=("-smp", "2")),
    Row("microvm-paused", MICROVM),
    Row("microvm-live", MICROVM, "live"),
    # What the stream has besides RAM and devices.
    Row("pc-no-vmdesc", PC, machine_options="suppress-vmdesc=on"),
    Row("pc-validate-uuid", PC, options=UUID, capabilities=("validate-uuid",)),
    Row("pc-machine-2.2", PC, machine="pc-i440fx-2.2"),
    Row("pc-machine-2.3", PC, machine="pc-i440fx-2.3"),
    Row("pc-machine-2.3-live", PC, "live", machine="pc-i440fx-2.3"),
    Row("pc-machine-2.4", PC, machine="pc-i440fx-2.4"),
    Row("pc-machine-6.0", PC, machine="pc-i440fx-6.0"),
    # Other names of main memory, and several blocks of it.
    Row("pc-canonical-path", PC, naming=CANONICAL_PATH),
    Row("pc-numa", PC, numa=NODES),
    Row("pc-numa-live", PC, "live", numa=NODES),
    Row("pc-dimm", PC, dimm=Backend("dimm0", 0.5)),
    Row("q35-dimm-live", Q35, "live", dimm=Backend("dimm0", 2.0)),
    # Devices.
    Row("pc-smp", PC, options=("-smp", "4")),
    Row("pc-virtio", PC, options=VIRTIO),
    Row("q35-virtio-live", Q35, "live", options=VIRTIO),
    Row("pc-virtio-set-up", PC, options=VIRTIO_ALL, virtio="pci"),
    Row(
        "pc-virtio-in-flight",
        PC,
        options=FAILING_DISK,
        virtio="pci",
        failing_disk="disk0",
    ),
    Row("q35-virtio-set-up", Q35, options=VIRTIO_EXPRESS, virtio="pci"),
    Row(
        "microvm-virtio-set-up",
        MICROVM,
        options=(*VIRTIO_MMIO, *MODERN_MMIO),
        virtio="mmio",
    ),
    Row("aarch64-virtio-set-up", AARCH64, options=VIRTIO_MMIO, virtio="legacy-mmio"),
    Row("pc-usb", PC, options=USB),
    Row("pc-virtio-mem", PC, options=VIRTIO_MEM),
    # Block devices.
    Row(
        "pc-dirty-bitmaps",
        PC,
        options=BLOCK,
        capabilities=("dirty-bitmaps",),
        setup=BITMAPS,
    ),
    Row(
        "pc-block",
        PC,
        options=BLOCK,
        capabilities=("zero-blocks",),
        setup=('qemu-io disk1 "write -P 0x33 0 0x400"',),
        migrate=(("blk", True),),
        until=(9, 1),
    ),
    Row("pc-slirp", PC, options=SLIRP),
    # Other encodings of RAM.
    Row("pc-xbzrle", PC, "live", capabilities=("xbzrle",)),
    Row("pc-compress", PC, capabilities=("compress",)),
    Row("pc-compress-live", PC, "live", capabilities=("compress",)),
    Row("pc-mapped-ram", PC, capabilities=("mapped-ram",)),
    Row("pc-mapped-ram-live", PC, "live", capabilities=("mapped-ram",)),
    Row("pc-mapped-ram-multifd", PC, capabilities=("mapped-ram", "multifd")),
    # Without bitmaps: QEMU writes them last, and for a background snapshot never.
    Row("pc-mapped-ram-killed", PC, "killed", capabilities=("mapped-ram",)),
    Row(
        "pc-mapped-ram-snapshot",
        PC,
        "snapshot",
        capabilities=("mapped-ram", "background-snapshot"),
    ),
    Row("pc-ignore-shared", PC, capabilities=("x-ignore-shared",)),
    # Taken in by another QEMU, which runs before it has all pages.
    Row("pc-postcopy", PC, "postcopy", capabilities=("postcopy-ram",)),
    # Of the instant at which it begins, taken while the guest goes on.
    Row("pc-snapshot", PC, "snapshot", capabilities=("background-snapshot",)),
    # Pages in channels of their own.
    multifd("pc-multifd", "paused", 2),
    multifd("pc-multifd-live", "live", 4),
    multifd("pc-multifd-zlib", "paused", 3, **ZLIB),
    multifd("pc-multifd-zlib-live", "live", 2, **ZLIB),
    multifd("pc-multifd-zstd", "paused", 3, **ZSTD),
    multifd("pc-multifd-zstd-live", "live", 2, **ZSTD),
    # Zero pages in the main channel, as all QEMUs before 9.0 send them, or in packets.
    multifd("pc-multifd-legacy", "paused", 2, **LEGACY),
    multifd("pc-multifd-legacy-live", "live", 3, **LEGACY),
    multifd("pc-multifd-zero-live", "live", 2, **MULTIFD),
    multifd("pc-multifd-zlib-legacy-live", "live", 2, **ZLIB, **LEGACY),
    # Channels in step at each section, not at each pass: machine types up to 8.0.
    replace(
        multifd("pc-multifd-machine-7.2", "paused", 2),
        machine="pc-i440fx-7.2",
    ),
    replace(
        multifd("pc-multifd-machine-7.2-live", "live", 3, **LEGACY),
        machine="pc-i440fx-7.2",
    ),
    replace(
        multifd("pc-multifd-machine-7.2-zstd-live", "live", 2, **ZSTD),
        machine="pc-i440fx-7.2",
    ),
    # Other targets.
    Row("aarch64-virt", AARCH64, options=("-smp", "2")),
    Row("aarch64-gicv3", AARCH64, machine_options="gic-version=3"),
    Row("riscv64-virt", RISCV64),
    Row("ppc64-pseries", PSERIES),
    Row("ppc64-pseries-htab", PSERIES_PROGRAM),
    Row("s390x-ccw", S390X, options=VIRTIO_CCW),
    Row("s390x-keys", S390X_PROGRAM, options=VIRTIO_CCW),
    Row("loongarch64-virt", LOONGARCH64),
    # Other page sizes.
    Row("arm-versatilepb", VERSATILE),
    Row("arm-mps2", MPS2),
    Row("avr-uno", AVR),
    Row("alpha-clipper", CLIPPER),
    Row("or1k-sim", OR1K),
    Row("tricore-testboard", TRICORE),
)
