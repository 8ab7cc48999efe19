"""Whether our core file holds what QEMU's own dump of the same instant does.

Memory is compared range by range, registers by what `info registers` said. The
window of VGA and ROMs is left out, where QEMU's dump has what the devices show.
"""

import mmap
import re
import struct
from pathlib import Path

from . import GuestError
from .consumers import Guest, Tools, run

PIECE = 4 << 20
WINDOW = range(0xA0000, 0x100000)
PT_LOAD = 1


def compare(guest: Guest, tools: Tools) -> str:
    """Compares both, and says how much was equal."""
    bytes_, ranges = _memory(guest, tools)
    names = _registers(guest, tools)
    return f"{ranges} ranges, {bytes_ >> 20} MiB; {names} registers"


def _memory(guest: Guest, tools: Tools) -> tuple[int, int]:
    ours, truth = _Core(guest.extract(tools, "elf")), _Core(guest.qemu_dump)
    done = 0
    for start, _, length in ours.loads:
        for part in _without_window(guest, start, length):
            for at in range(part.start, part.stop, PIECE):
                count = min(PIECE, part.stop - at)
                if ours.read(at, count) != truth.read(at, count):
                    raise GuestError(f"memory differs in the {count} bytes from {at:#x} on")
                done += count
    return done, len(ours.loads)


def _without_window(guest: Guest, start: int, length: int) -> list[range]:
    stop = start + length
    if not guest.is_x86 or start >= WINDOW.stop:
        return [range(start, stop)]
    return [range(start, min(stop, WINDOW.start)), range(max(start, WINDOW.stop), stop)]


class _Core:
    """The memory in an ELF core file, by physical address."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (place,) = struct.unpack_from("<Q", self._bytes, 32)
        (count,) = struct.unpack_from("<H", self._bytes, 56)
        places = (place + 56 * nth for nth in range(count))
        heads = (struct.unpack_from("<IIQQQQQQ", self._bytes, place) for place in places)
        self.loads = [(head[4], head[2], head[5]) for head in heads if head[0] == PT_LOAD]

    def read(self, at: int, count: int) -> bytes:
        for start, offset, length in self.loads:
            if start <= at and at + count <= start + length:
                place = offset + at - start
                return self._bytes[place : place + count]
        raise GuestError(f"no range has the {count} bytes from {at:#x} on")


def _registers(guest: Guest, tools: Tools) -> int:
    """Each word that `info registers` printed must be in what we print."""
    said = guest.stream.with_suffix(".registers.txt").read_text()
    ours = run([tools.ramlift, "cpu", guest.stream])
    wanted, found = _named(said), _named(ours)
    missing = [pair for pair in wanted if pair not in found]
    if missing:
        raise GuestError(f"registers differ: {missing[:4]}")
    return len(wanted)


def _named(text: str) -> list[tuple[str, str, int]]:
    """Registers by vCPU and name. How many digits they have changes with QEMU."""
    cpu, named = "", []
    for line in text.splitlines():
        if head := re.match(r"CPU#(\d+)", line):
            cpu = head[1]
        pairs = re.findall(r"\b(\w+) *= *([0-9a-f]{8,})\b", line)
        named += [(cpu, name, int(value, 16)) for name, value in pairs]
    return named
