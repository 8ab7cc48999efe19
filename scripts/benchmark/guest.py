"""Streams that a real QEMU makes, and that QEMU loading them.

No guest runs: memory is a file, filled before, and QEMU stays stopped.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from qemu_streams import command, process, scenario
from qemu_streams.host import Host
from qemu_streams.process import Deadline
from qemu_streams.rows import Board, Row

from . import BenchError, streams
from .measure import Run

BINARY = "x86_64"
PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios")
POLL_SECONDS = 0.002
DEVICES_RAM = 8 << 20

# All of memory random.
RANDOM = Row("random", Board(BINARY, "pc", "pc.ram"))

# Next to no memory, and many devices.
DEVICES = Row(
    "devices",
    Board(BINARY, "q35", "pc.ram"),
    options=(
        "-smp", "32",
        "-device", "ich9-usb-ehci1,id=ehci", "-device", "usb-tablet,bus=ehci.0",
        "-device", "qemu-xhci", "-device", "nec-usb-xhci",
        "-device", "e1000", "-device", "e1000e", "-device", "rtl8139",
        "-device", "virtio-net-pci", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-device", "lsi53c895a", "-device", "megasas", "-device", "ich9-ahci", "-device", "sdhci-pci",
    ),
)  # fmt: skip


def require(prefix: str) -> Host:
    """Where QEMU is. Installs it from the system's packages if there is none."""
    host = Host(prefix)
    if not prefix and not shutil.which(f"qemu-system-{BINARY}"):
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-qy", "--no-install-recommends", *PACKAGES]
        subprocess.run([*sudo, "apt-get", "update", "-q"], check=True)
        subprocess.run([*sudo, *install], check=True, env=environment)
    if host.offer(BINARY) is None:
        raise BenchError(f"no qemu-system-{BINARY} here")
    return host


def version(host: Host) -> str:
    return ".".join(map(str, host.offer(BINARY).version))


def random_memory(host: Host, size: int, directory: Path) -> tuple[Path, Path]:
    """The stream of a guest whose memory is random, and its memory."""
    image = directory / command.backend_file(RANDOM.main_backends()[0])
    streams.random_file(image, size)
    return migrated(host, RANDOM, size, directory), image


def many_devices(host: Host, directory: Path) -> Path:
    """A stream of many devices, and next to no memory."""
    memory = directory / command.backend_file(DEVICES.main_backends()[0])
    memory.touch()
    os.truncate(memory, DEVICES_RAM)
    return migrated(host, DEVICES, DEVICES_RAM, directory)


def migrated(host: Host, row: Row, size: int, directory: Path) -> Path:
    with process.start(host, BINARY, command.arguments(row, size), directory) as qemu:
        scenario.prepare(row, size, qemu, directory, None)
        scenario.migrate(row, size, qemu)
        qemu.quit()
    return scenario.collect(directory)[0]


def load(host: Host, size: int, stream: Path, place: Path) -> Run:
    """QEMU loads the stream: from its start until the load is complete."""
    begin = time.perf_counter()
    arguments = command.arguments(RANDOM, size, incoming=True)
    with process.start(host, BINARY, arguments, place) as qemu, open(stream, "rb") as file:
        if qemu.version >= scenario.FILE_URI_SINCE:
            uri = f"file:{stream}"
        else:
            qemu.give_file("stream", file)
            uri = "fd:stream"
        ready = time.perf_counter()
        qemu.execute("migrate-incoming", uri=uri)
        wait_until_loaded(qemu)
        end = time.perf_counter()
        check_loaded(qemu.pid, size)
    return Run(end - begin, parts={"the load alone": end - ready})


def check_loaded(pid: int, size: int) -> None:
    """Fails unless all of the guest's memory has been written to."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))
    if resident < size:
        raise BenchError("QEMU says that it has loaded its stream, and has too little memory for it")


def wait_until_loaded(qemu: process.Qemu) -> None:
    deadline = Deadline(scenario.WAIT_SECONDS, POLL_SECONDS)
    while (status := qemu.execute("query-migrate").get("status")) != "completed":
        if status == "failed":
            raise BenchError("QEMU does not load its own stream")
        deadline.poll("the stream to be loaded")
