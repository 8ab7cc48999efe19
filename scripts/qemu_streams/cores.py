"""ELF core files of guest-physical memory: reading and comparing them."""

import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

PT_LOAD, PT_NOTE = 1, 4
CHUNK = 16 << 20

# Where QEMU 7.2 has the process id in the byte order of the machine it runs on, or
# none.
HOST_ORDER = {(machine, "CORE", 1): range(32, 36) for machine in (21, 22)}

FLAT_RANGE = re.compile(
    r"^\s+(?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}) \(prio -?\d+, (?P<kind>[^)]*)\): "
    r"(?P<region>.*?)(?: @(?P<offset>[0-9a-f]{16}))?(?: KVM)?$"
)


@dataclass(frozen=True)
class Region:
    """A range of addresses and the memory region that answers there."""

    start: int
    end: int  # behind it
    kind: str
    name: str


def regions(mtree: str) -> list[Region]:
    """The system's address space, as `info mtree -f` has it."""
    found: dict[str, list[Region]] = {}
    spaces = []
    for line in mtree.splitlines():
        if line.startswith("FlatView"):
            spaces = []
        elif line.startswith(" AS "):
            spaces.append(line.split('"')[1])
        elif match := FLAT_RANGE.match(line):
            region = Region(
                int(match["start"], 16), int(match["end"], 16) + 1, match["kind"], match["region"]
            )
            for space in spaces:
                found.setdefault(space, []).append(region)
    return found["memory"]


class Core:
    """A core file: its ranges of memory and its notes."""

    def __init__(self, path: Path):
        self._file = open(path, "rb")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        ident = self._map[:16]
        self._order = "<" if ident[5] == 1 else ">"
        is_64 = ident[4] == 2
        self.machine = self._read("H", 18)[0]
        if is_64:
            (at,), size, count = self._read("Q", 32), *self._read("HH", 54)
        else:
            (at,), size, count = self._read("I", 28), *self._read("HH", 42)
        headers = []
        for number in range(count):
            if is_64:
                kind, _, offset, _, address, length = self._read("IIQQQQ", at + number * size)
            else:
                kind, offset, _, address, length = self._read("IIIII", at + number * size)
            headers.append((kind, offset, address, length))
        self.loads = sorted((a, n, o) for kind, o, a, n in headers if kind == PT_LOAD)
        self._notes = next((o, n) for kind, o, _, n in headers if kind == PT_NOTE)
        self.notes = list(self._each_note())

    def _read(self, form: str, at: int) -> tuple:
        return struct.unpack_from(self._order + form, self._map, at)

    def note_bytes(self) -> bytes:
        """The notes as they stand in the file."""
        at, length = self._notes
        return self._map[at : at + length]

    def _each_note(self):
        at, length = self._notes
        end = at + length
        while at + 12 <= end:
            name, desc, kind = self._read("III", at)
            at += 12
            text = self._map[at : at + name].rstrip(b"\0").decode()
            at += (name + 3) // 4 * 4
            yield text, kind, self._map[at : at + desc]
            at += (desc + 3) // 4 * 4

    def memory_bytes(self) -> int:
        return sum(length for _, length, _ in self.loads)

    def read(self, address: int, length: int) -> bytes | None:
        """Memory, if all of it is in one range."""
        for start, count, offset in self.loads:
            if start <= address and address + length <= start + count:
                at = offset + address - start
                return self._map[at : at + length]
        return None

    def holes(self, address: int, length: int) -> int:
        """How many bytes from `address` on are a hole of the file."""
        for start, count, offset in self.loads:
            if start <= address < start + count:
                at = offset + address - start
                try:
                    data = os.lseek(self._file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    return length
                return min(data - at, length)
        return 0


def _pieces(core: Core, other: Core):
    """What both can be read by, in pieces: the ranges of `core`, cut where those of
    `other` begin or end."""
    edges = sorted({edge for start, length, _ in other.loads for edge in (start, start + length)})
    for start, length, _ in core.loads:
        inside = [edge for edge in edges if start < edge < start + length]
        cuts = [start, *inside, start + length]
        for first, last in zip(cuts, cuts[1:], strict=False):
            for at in range(first, last, CHUNK):
                yield at, min(CHUNK, last - at)


def compare_memory(ours: Core, theirs: Core, known: list[Region]) -> list[str]:
    """What of our memory differs from QEMU's, and what of QEMU's RAM we lack."""
    differences = []
    for at, length in _pieces(ours, theirs):
        data, other = ours.read(at, length), theirs.read(at, length)
        if other is None:
            differences.append(f"{at:#x}, {length:#x} bytes: not in QEMU's dump")
        elif data != other:
            first = next(i for i in range(length) if data[i] != other[i])
            differences.append(f"{at + first:#x}: {data[first:][:16]} for {other[first:][:16]}")
    for at, length in _pieces(theirs, ours):
        if ours.read(at, 1) is None:
            names = {each.name for each in known if each.start < at + length and at < each.end and each.kind == "ram"}
            # Video memory and flash can be written too.
            names = {name for name in names if not re.search(r"vga|vram|flash|ramfb|rom|bios|homer", name)}
            if names:
                differences.append(f"{at:#x}, {length:#x} bytes: in QEMU's dump alone: {', '.join(sorted(names))}")
    return differences


def compare_regions(ours: Core, known: list[Region], backends: set[str]) -> list[str]:
    """What of our ranges differs from where QEMU has the RAM, for targets that it
    does not dump."""
    theirs = [(each.start, each.end) for each in known if each.name in backends]
    differences = []
    for start, length, _ in ours.loads:
        inside = [min(end, start + length) - max(first, start) for first, end in theirs]
        if sum(part for part in inside if part > 0) != length:
            differences.append(f"{start:#x}, {length:#x} bytes: not RAM in QEMU")
    mine = [(start, start + length) for start, length, _ in ours.loads]
    for start, end in theirs:
        inside = [min(end, last) - max(first, start) for first, last in mine]
        if sum(part for part in inside if part > 0) != end - start:
            differences.append(f"{start:#x} to {end:#x}: RAM in QEMU alone")
    return differences


def compare_notes(ours: Core, theirs: Core) -> list[str]:
    """How our notes differ from QEMU's."""
    if ours.machine != theirs.machine:
        return [f"machine {ours.machine} for {theirs.machine}"]
    mine = [note for note in ours.notes if note[0] != "VMCOREINFO"]
    others = [note for note in theirs.notes if note[0] != "VMCOREINFO"]
    if [note[:2] for note in mine] != [note[:2] for note in others]:
        return [f"notes {[note[:2] for note in mine]} for {[note[:2] for note in others]}"]
    differences = []
    for (name, kind, desc), (_, _, other) in zip(mine, others, strict=True):
        skipped = HOST_ORDER.get((ours.machine, name, kind), ())
        wrong = [at for at in range(max(len(desc), len(other))) if desc[at : at + 1] != other[at : at + 1] and at not in skipped]
        if wrong:
            at = wrong[0] // 8 * 8
            differences.append(
                f"note {name} {kind:#x} of {len(desc)} for {len(other)} bytes, at {at}: {desc[at : at + 8].hex()} for {other[at : at + 8].hex()}; {len(wrong)} bytes differ"
            )
    return differences
