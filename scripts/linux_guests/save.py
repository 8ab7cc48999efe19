"""One guest, from its boot to its files.

All of them are of one instant, at which the guest is stopped: the stream, QEMU's
own dump of guest-physical memory, its registers, and what is mapped where.
"""

import json
import shutil
from pathlib import Path

from qemu_streams import process
from qemu_streams.host import Host
from qemu_streams.process import Deadline, Qemu
from qemu_streams.scenario import FILE_URI_SINCE

from . import GuestError, initramfs
from .packages import Kernel
from .rows import Row

BOOT_SECONDS = 300
SAVE_SECONDS = 120
CONSOLE = "console.txt"
UNLIMITED = 1 << 40  # bytes per second


def save(row: Row, kernel: Kernel, host: Host, out: Path) -> dict:
    """Boots the guest, makes its files in `out`, and says what it is."""
    with host.work_directory() as name:
        directory = Path(name)
        shutil.copy(kernel.image, directory / "kernel")
        initramfs.write(kernel, directory / "initramfs")
        with process.start(host, row.binary, row.arguments(), directory) as qemu:
            _wait_until_ready(directory)
            qemu.execute("stop")
            _look(row, qemu, directory, out)
            _migrate(qemu, directory / "stream")
            version = ".".join(map(str, qemu.version))
            machine = qemu.execute("qom-get", path="/machine", property="type")
            qemu.quit()
        shutil.move(directory / "stream", out / f"{row.name}.qevm")
    return {
        "qemu": version,
        "machine": machine.removesuffix("-machine"),
        "architecture": row.architecture,
        "vcpus": row.vcpus,
        "kaslr": row.kaslr,
        "release": kernel.release,
        "vmlinux": str(kernel.vmlinux.resolve()),
        "hostname": initramfs.HOSTNAME,
        "command_line": " ".join([f"qemu-system-{row.binary}", *row.arguments()]),
    }


def _wait_until_ready(directory: Path) -> None:
    deadline = Deadline(BOOT_SECONDS, pause=0.2)
    console = directory / CONSOLE
    while True:
        said = console.read_text(errors="replace") if console.exists() else ""
        if initramfs.READY in said:
            return
        if "Kernel panic" in said:
            raise GuestError(f"the guest's kernel gave up: {said[-400:]}")
        deadline.poll("the guest to boot")


def _look(row: Row, qemu: Qemu, directory: Path, out: Path) -> None:
    dump = directory / "dump"
    qemu.execute("dump-guest-memory", paging=False, protocol=f"file:{_inside(dump)}")
    shutil.move(dump, out / f"{row.name}.qemu.elf")
    registers = qemu.monitor("info registers -a")
    (out / f"{row.name}.registers.txt").write_text(registers.replace("\r\n", "\n"))
    (out / f"{row.name}.mtree.txt").write_text(qemu.monitor("info mtree -f"))
    cpus = qemu.execute("query-cpus-fast")
    (out / f"{row.name}.cpus.json").write_text(json.dumps(cpus, indent=1))


def _inside(path: Path) -> str:
    """A file's name for QEMU, which runs in that directory."""
    return path.name


def _migrate(qemu: Qemu, path: Path) -> None:
    limits = {"max-bandwidth": UNLIMITED, "downtime-limit": 60_000}
    qemu.execute("migrate-set-parameters", **limits)
    if qemu.version >= FILE_URI_SINCE:
        qemu.execute("migrate", uri=f"file:{_inside(path)}")
    else:
        with open(path, "wb") as file:
            qemu.give_file("stream", file)
        qemu.execute("migrate", uri="fd:stream")
    deadline = Deadline(SAVE_SECONDS, pause=0.1)
    while (status := qemu.execute("query-migrate").get("status")) != "completed":
        if status == "failed":
            raise GuestError("the migration failed")
        deadline.poll("the migration to end")
