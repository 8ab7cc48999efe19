"""A row as a QEMU command line, and the files that line names.

All names are relative: QEMU is started in the directory of its files.
"""

import os
import struct
from pathlib import Path

from . import firmware, programs
from .rows import DISK, MIB, SHORT_DISK, Backend, Row

BIOS = "firmware.bin"
PROGRAM = "program.bin"
LOADED = "pattern.bin"
DISK_BYTES = MIB
SHORT_DATA_BYTES = 64 << 10
SHORT_DISK_BYTES = 2 * MIB + (192 << 10)
DIMM_MAX = "4G"


def backend_file(backend: Backend) -> str:
    """Name of the file behind a memory backend."""
    return f"{backend.id}.mem"


def write_files(row: Row, size: int, directory: Path) -> None:
    """Writes every file that the row's command line names."""
    (directory / DISK).write_bytes(pattern(DISK_BYTES))
    (directory / SHORT_DISK).write_bytes(pattern(SHORT_DATA_BYTES))
    os.truncate(directory / SHORT_DISK, SHORT_DISK_BYTES)
    for backend in row.backends():
        length = row.backend_bytes(backend, size)
        with open(directory / backend_file(backend), "wb") as file:
            if not row.board.firmware or backend is row.dimm:
                file.write(pattern(min(length, size)))
            file.truncate(length)
    if row.board.firmware:
        (directory / BIOS).write_bytes(firmware.image(row.ram_bytes(size)))
    if row.board.program:
        image = getattr(programs, row.board.program)()
        (directory / PROGRAM).write_bytes(image)
    if row.board.load_bytes:
        (directory / LOADED).write_bytes(pattern(row.board.load_bytes))


def pattern(length: int) -> bytes:
    """Bytes that do not repeat, but in 256 of them, with runs of zeros.

    Each word is the offset of its 256 bytes, so that the stream packs well. Of
    every 64 KiB, 16 KiB and 1 KiB are zero, so that pages of any size from 1 KiB
    to 16 KiB come as data, as zeros and as a mixture.
    """
    words = (struct.pack("<I", at) * 64 for at in range(0, length, 256))
    data = bytearray(b"".join(words)[:length])
    for at in range(0, length, 0x10000):
        for start, stop in ((0xA000, 0xA400), (0xC000, 0x10000)):
            first, last = min(at + start, length), min(at + stop, length)
            data[first:last] = bytes(last - first)
    return bytes(data)


def arguments(row: Row, size: int, incoming: bool = False) -> list[str]:
    """The row's QEMU arguments, without the program and the QMP connection.

    With `incoming`, those of a QEMU that takes in the migration of the first.
    """
    machine = [row.machine_type, row.machine_options]
    if row.board.ram_id and not row.numa:
        machine.append(f"memory-backend={row.board.ram_id}")
    return [
        "-machine", ",".join(filter(None, machine)),
        "-accel", "tcg",
        "-nodefaults", "-no-user-config",
        "-display", "none",
        "-S",
        *_memory(row, size, incoming or row.scenario == "snapshot"),
        *_content(row),
        *row.board.options,
        *row.options,
        *(["-incoming", "defer"] if incoming else []),
    ]  # fmt: skip


def _memory(row: Row, size: int, anonymous: bool) -> list[str]:
    """Memory in files, or none: QEMU must be able to wait for the pages of a guest
    that takes in postcopy, and for what the guest of a background snapshot writes to,
    and cannot with a file.
    """
    args = []
    if row.board.ram_id:
        hotplug = f",slots=1,maxmem={DIMM_MAX}" if row.dimm else ""
        args += ["-m", f"size={row.ram_bytes(size) >> 10}K{hotplug}"]
    for backend in row.backends():
        kibibytes = row.backend_bytes(backend, size) >> 10
        kind = "ram," if anonymous else "file,share=on,"
        path = "" if anonymous else f"mem-path={backend_file(backend)},"
        args += [
            "-object",
            f"memory-backend-{kind}id={backend.id},size={kibibytes}K,"
            f"{path}{backend.naming}",
        ]
    for node in row.numa:
        args += ["-numa", f"node,memdev={node.id}"]
    if row.dimm:
        args += ["-device", f"pc-dimm,id=slot0,memdev={row.dimm.id}"]
    return args


def _content(row: Row) -> list[str]:
    if row.board.firmware:
        return ["-bios", BIOS]
    if row.board.program:
        return ["-bios", PROGRAM]
    if row.board.load_bytes:
        address = row.board.load_address
        return ["-device", f"loader,file={LOADED},addr={address:#x},force-raw=on"]
    return []
