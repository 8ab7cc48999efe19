"""What the RAM of a stopped QEMU holds, read from outside of it.

Every RAM block with its length comes from `info ramblock`. Its content is read
from the first of these that there is:

1. the file behind its memory backend, which is a shared mapping;
2. the memory of the QEMU process, at the host address `info ramblock` prints
   (10.0 does, 7.2 does not);
3. the memory of the process, at the host address of a guest-physical address
   where the block is mapped (`info mtree -f` and `gpa2hva`).

What is left are the blocks of older QEMUs that the guest does not see at that
moment, such as fw_cfg blobs and unmapped video memory, and blocks that change by
themselves. For those only the length is known.

On x86, main memory is also saved by QEMU itself, as guest-physical memory; the
window of VGA and ROMs, where the guest sees other things than RAM, is left out.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from . import StreamError, command
from .process import Qemu
from .rows import Row

CHUNK = 1 << 20
WINDOW = (0xA0000, 0x100000)
PHYSICAL = "physical.bin"

RAM_BLOCK = re.compile(
    r"^\s*(?P<idstr>\S.*?)\s+\d+ [KMG]?i?B"
    r"\s+0x[0-9a-f]+\s+0x(?P<used>[0-9a-f]+)\s+0x[0-9a-f]+"
    r"(?:\s+0x(?P<address>[0-9a-f]+))?"
)
FLAT_RANGE = re.compile(
    r"^\s+(?P<start>[0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, [^)]*\): "
    r"(?P<region>.*?)(?: @(?P<offset>[0-9a-f]{16}))?(?: KVM)?$"
)
HOST_ADDRESS = re.compile(r" \((?P<region>.*)\) is 0x(?P<address>[0-9a-f]+)")


@dataclass(frozen=True)
class RamBlock:
    """A RAM block as `info ramblock` shows it."""

    idstr: str
    used_length: int
    address: int | None  # in the memory of the QEMU process


def of_blocks(row: Row, qemu: Qemu, directory: Path) -> tuple[dict, dict]:
    """Length and hash of each RAM block; and the lengths of those not readable."""
    blocks = _ram_blocks(qemu)
    addresses = _mapped_addresses(qemu)
    known, unknown = {}, {}
    for block in blocks:
        source = _source(block, row, qemu.pid, directory, addresses)
        if source is None:
            unknown[block.idstr] = block.used_length
            continue
        digest = _sha256(*source, block.used_length)
        known[block.idstr] = {"bytes": block.used_length, "sha256": digest}
    return known, unknown


def of_physical_memory(row: Row, size: int, qemu: Qemu, directory: Path) -> dict:
    """Length and hash of guest-physical memory around the window; x86 only."""
    length = row.ram_bytes(size)
    qemu.execute("pmemsave", val=0, size=length, filename=PHYSICAL)
    data = (directory / PHYSICAL).read_bytes()
    outside = hashlib.sha256(data[: WINDOW[0]])
    outside.update(data[WINDOW[1] :])
    start, stop = (f"{edge:#x}" for edge in WINDOW)
    key = f"guest_physical_outside_{start}_{stop}_sha256"
    return {"guest_physical_bytes": length, key: outside.hexdigest()}


def of_block_devices(row: Row, directory: Path) -> dict:
    """Length and hash of each disk of a row that sends their content."""
    if not dict(row.migrate).get("blk"):
        return {}
    disks = {"disk0": command.DISK, "disk1": command.SHORT_DISK}
    entries = {}
    for device, name in disks.items():
        length, digest = of_file(directory / name)
        entries[device] = {"bytes": length, "sha256": digest}
    return {"block_devices": entries}


def of_bitmaps(row: Row, qemu: Qemu) -> dict:
    """What QEMU says of each dirty bitmap, and its hash of the bits.

    The hash is over all words of the bitmap, 64 bits each in the host's order.
    """
    if "dirty-bitmaps" not in row.capabilities:
        return {}
    bitmaps = []
    # The stream names a node by the device it belongs to, if there is one.
    drives = [drive for drive in qemu.execute("query-block") if "inserted" in drive]
    devices = {drive["inserted"]["node-name"]: drive["device"] for drive in drives}
    for node in qemu.execute("query-named-block-nodes"):
        for bitmap in node.get("dirty-bitmaps", []):
            name = {"node": node["node-name"], "name": bitmap["name"]}
            digest = qemu.execute("x-debug-block-dirty-bitmap-sha256", **name)
            known = {key: bitmap[key] for key in ("granularity", "count", "recording")}
            length = node["image"]["virtual-size"]
            figures = {"node_bytes": length, "device": devices.get(node["node-name"])}
            bitmaps.append(name | known | digest | figures)
    return {"dirty_bitmaps": bitmaps}


def of_file(path: Path) -> tuple[int, str]:
    """Length and hash of a file."""
    length = path.stat().st_size
    return length, _sha256(path, 0, length)


def _ram_blocks(qemu: Qemu) -> list[RamBlock]:
    lines = qemu.monitor("info ramblock").splitlines()
    blocks = []
    for match in filter(None, map(RAM_BLOCK.match, lines)):
        address = match["address"] and int(match["address"], 16)
        blocks.append(RamBlock(match["idstr"], int(match["used"], 16), address))
    if not blocks:
        raise StreamError("info ramblock shows no block")
    return blocks


def _source(block, row, pid, directory, addresses) -> tuple[Path, int] | None:
    """The file to read a block from, and where it starts in there."""
    if block.idstr in row.board.unstable:
        return None
    for backend in row.backends():
        named = block.idstr in (backend.id, f"/objects/{backend.id}")
        if named and row.scenario != "snapshot":
            return directory / command.backend_file(backend), 0
    address = block.address or addresses.get(block.idstr.rsplit("/", 1)[-1])
    return (Path(f"/proc/{pid}/mem"), address) if address else None


def _mapped_addresses(qemu: Qemu) -> dict[str, int]:
    """Host address of the start of each region that is mapped, by its name.

    Left out are names that belong to more than one region.
    """
    found: dict[str, set[int]] = {}
    for line in qemu.monitor("info mtree -f").splitlines():
        match = FLAT_RANGE.match(line)
        if not match:
            continue
        answer = HOST_ADDRESS.search(qemu.monitor(f"gpa2hva 0x{match['start']}"))
        if answer and answer["region"] == match["region"]:
            offset = int(match["offset"] or "0", 16)
            start = int(answer["address"], 16) - offset
            found.setdefault(match["region"], set()).add(start)
    return {name: min(starts) for name, starts in found.items() if len(starts) == 1}


def _sha256(path: Path, start: int, length: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while length:
            data = file.read(min(length, CHUNK))
            if not data:
                raise StreamError(f"{path.name} ends {length} bytes early")
            digest.update(data)
            length -= len(data)
    return digest.hexdigest()
