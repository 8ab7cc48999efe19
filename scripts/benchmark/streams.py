"""Synthetic streams of one RAM block, each with the truth about its image.

What a page holds follows from the seed, its number and the pass that sent it,
so the same call writes the same bytes, and no image is kept to compare with.
The constants of the wire stand here as QEMU's sources have them
(`migration/ram.c`, `migration/savevm.c`).
"""

import os
import random
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import BenchError

PAGE = 4096
BLOCK = b"pc.ram"

START, PART, END, FOOTER = 0x01, 0x02, 0x03, 0x7E
EOF, VMDESCRIPTION, CONFIGURATION, SUBSECTION = 0x00, 0x06, 0x07, 0x05
FILL, MEM_SIZE, DATA, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
XBZRLE, COMPRESS_PAGE = 0x40, 0x100

SEED = 7
POOL = 8 << 20  # random bytes that pages are cut from
PATTERNS = 2048  # compressed pages that differ
# A pass of deltas sends this many runs a page, of this many bytes.
RUNS, RUN = 16, 8
LONGEST_RUN = 64  # pages, of a run of data or of zeros
BUFFER = 4 << 20
# Where QEMU puts the pages of a mapped-ram block.
MAPPED_ALIGN = 1 << 20


@dataclass(frozen=True)
class Truth:
    """What the image of the block must be: each page, None for zeros."""

    page_count: int
    page: Callable[[int], bytes | None]

    def data_bytes(self) -> int:
        """Bytes of the pages that are not zero."""
        return sum(self.page(number) is not None for number in range(self.page_count)) * PAGE

    def write(self, path: Path) -> None:
        """Writes the image, zeros and all."""
        with open(path, "wb", buffering=BUFFER) as file:
            for number in range(self.page_count):
                file.write(self.page(number) or bytes(PAGE))

    def check(self, path: Path) -> None:
        """Fails unless the file is the image."""
        if path.stat().st_size != self.page_count * PAGE:
            raise BenchError(f"{path.name} has another length than its block")
        with open(path, "rb", buffering=BUFFER) as file:
            for number in range(self.page_count):
                if file.read(PAGE) != (self.page(number) or bytes(PAGE)):
                    raise BenchError(f"{path.name}: page {number:#x} is wrong")


class Content:
    """Pages of random bytes: no two alike, none zero."""

    def __init__(self):
        self._pool = random.Random(SEED).randbytes(POOL + PAGE)

    def page(self, number: int, nth_pass: int = 0) -> bytes:
        tag = (nth_pass << 48 | number) + 1
        at = stirred(tag) % POOL
        return tag.to_bytes(8, "big") + self._pool[at : at + PAGE - 8]


def stirred(number: int) -> int:
    """Multiplying by an odd number stirs the bits enough to look random."""
    return (number * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 24


class Writer:
    """A stream being written: its block list, then passes, then its end."""

    def __init__(self, path: Path, page_count: int):
        self._file = open(path, "wb", buffering=BUFFER)
        self._is_first = True
        size = page_count * PAGE
        self._file.write(b"QEVM" + struct.pack(">I", 3) + section_start(size))
        self._file.write(entry(size) + body_end())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._file.write(ram_end() + description())
        self._file.close()

    def begin_pass(self) -> None:
        self._file.write(bytes([PART]) + struct.pack(">I", 1))
        self._is_first = True

    def end_pass(self) -> None:
        self._file.write(body_end())

    def data(self, number: int, page: bytes) -> None:
        self._record(number, DATA, page)

    def fill(self, number: int) -> None:
        self._record(number, FILL, b"\0")

    def fills(self, numbers: range) -> None:
        """Zero pages by the million: the bytes of all words are interleaved at once."""
        for at in range(0, len(numbers), 1 << 20):
            some = numbers[at : at + (1 << 20)]
            self.fill(some[0])
            first, flags = some.start + some.step, FILL | CONTINUE
            words = array("Q", range(first * PAGE | flags, some.stop * PAGE, some.step * PAGE))
            if sys.byteorder == "little":
                words.byteswap()
            words, records = words.tobytes(), bytearray(9 * len(words))
            for byte in range(8):
                records[byte::9] = words[byte::8]
            self._file.write(records)

    def xbzrle(self, number: int, delta: bytes) -> None:
        self._record(number, XBZRLE, b"\x01" + struct.pack(">H", len(delta)) + delta)

    def compressed(self, number: int, deflated: bytes) -> None:
        self._record(number, COMPRESS_PAGE, struct.pack(">I", len(deflated)) + deflated)

    def _record(self, number: int, flag: int, payload: bytes) -> None:
        if self._is_first:
            self._file.write(struct.pack(">Q", number * PAGE | flag) + named(BLOCK))
            self._is_first = False
        else:
            self._file.write(struct.pack(">Q", number * PAGE | flag | CONTINUE))
        self._file.write(payload)


def named(name: bytes) -> bytes:
    return bytes([len(name)]) + name


def section_start(size: int) -> bytes:
    head = bytes([START]) + struct.pack(">I", 1) + named(b"ram") + struct.pack(">II", 0, 4)
    return head + struct.pack(">Q", size | MEM_SIZE)


def entry(size: int) -> bytes:
    return named(BLOCK) + struct.pack(">Q", size)


def body_end() -> bytes:
    return struct.pack(">QBI", EOS, FOOTER, 1)


def ram_end() -> bytes:
    return bytes([END]) + struct.pack(">I", 1) + body_end()


def description() -> bytes:
    """The end of the stream. QEMU's script needs a description to read RAM."""
    text = b'{"page_size": %d, "devices": []}' % PAGE
    return bytes([EOF, VMDESCRIPTION]) + struct.pack(">I", len(text)) + text


def data(path: Path, page_count: int) -> Truth:
    """Every page data, one ascending pass."""
    return in_order(path, page_count, range(page_count))


def scattered(path: Path, page_count: int) -> Truth:
    """Every page data, one pass, in random order."""
    return in_order(path, page_count, shuffled(page_count))


def in_order(path: Path, page_count: int, order: Iterable[int]) -> Truth:
    content = Content()
    with Writer(path, page_count) as writer:
        writer.begin_pass()
        for number in order:
            writer.data(number, content.page(number))
        writer.end_pass()
    return Truth(page_count, content.page)


def shuffled(page_count: int, seed: int = SEED) -> list[int]:
    order = list(range(page_count))
    random.Random(seed).shuffle(order)
    return order


def half(path: Path, page_count: int) -> Truth:
    """Half of the pages zero, in runs of random lengths; one ascending pass."""
    content, is_data = Content(), bytearray()
    with Writer(path, page_count) as writer:
        writer.begin_pass()
        for number, kind in enumerate(random_runs(page_count)):
            is_data.append(kind)
            if kind:
                writer.data(number, content.page(number))
            else:
                writer.fill(number)
        writer.end_pass()
    return Truth(page_count, lambda number: content.page(number) if is_data[number] else None)


def random_runs(page_count: int) -> Iterator[bool]:
    """Whether each page is data, in turn for 1 to LONGEST_RUN pages."""
    dice, left, kind = random.Random(SEED), 0, False
    for _ in range(page_count):
        if left == 0:
            left, kind = dice.randint(1, LONGEST_RUN), not kind
        left -= 1
        yield kind


def passes(path: Path, page_count: int) -> Truth:
    """Three ascending passes: all pages, 30 % and 10 % of them again."""
    content, dice, latest = Content(), random.Random(SEED), bytearray(page_count)
    with Writer(path, page_count) as writer:
        for nth, share in enumerate((1.0, 0.3, 0.1)):
            writer.begin_pass()
            for number in some_pages(dice, page_count, share):
                writer.data(number, content.page(number, nth))
                latest[number] = nth
            writer.end_pass()
    return Truth(page_count, lambda number: content.page(number, latest[number]))


def some_pages(dice: random.Random, page_count: int, share: float) -> Iterator[int]:
    return (number for number in range(page_count) if dice.random() < share)


def xbzrle(path: Path, page_count: int) -> Truth:
    """All pages, then three passes with deltas of 30 % of them."""
    content, dice, sent = Content(), random.Random(SEED), array("B", bytes(page_count))
    with Writer(path, page_count) as writer:
        writer.begin_pass()
        for number in range(page_count):
            writer.data(number, content.page(number))
        writer.end_pass()
        for nth in (1, 2, 3):
            writer.begin_pass()
            for number in some_pages(dice, page_count, 0.3):
                writer.xbzrle(number, delta(number, nth))
                sent[number] |= 1 << nth
            writer.end_pass()
    return Truth(page_count, lambda number: with_deltas(content.page(number), number, sent[number]))


def changed(number: int, nth: int) -> bytes:
    """The bytes that the delta of a pass puts into a page, RUNS times."""
    return stirred(number << 4 | nth).to_bytes(RUN, "big")


def first_change(nth: int) -> int:
    """Where: passes change places that overlap by half."""
    return 64 + nth * RUN // 2


def delta(number: int, nth: int) -> bytes:
    """Pairs of bytes to keep and bytes to take, their lengths ULEB128."""
    stride, new = PAGE // RUNS, changed(number, nth)
    keep = stride - RUN
    again = bytes([keep & 0x7F | 0x80, keep >> 7, RUN]) + new
    return bytes([first_change(nth), RUN]) + new + again * (RUNS - 1)


def with_deltas(page: bytes, number: int, sent: int) -> bytes:
    if not sent:
        return page
    result, stride = bytearray(page), PAGE // RUNS
    for nth in (1, 2, 3):
        if sent >> nth & 1:
            for start in range(first_change(nth), PAGE, stride):
                result[start : start + RUN] = changed(number, nth)
    return bytes(result)


def compressed(path: Path, deflated_path: Path, page_count: int) -> Truth:
    """Every page compressed. The pages alone go to a file of their own.

    Of every 64 bytes 16 are random and the others one of 64 phrases, which leaves
    about 40 %; QEMU's level is 1. Pages repeat, far apart.
    """
    pages = compressible_pages()
    deflated = [zlib.compress(page, 1) for page in pages]
    with Writer(path, page_count) as writer, open(deflated_path, "wb", buffering=BUFFER) as alone:
        writer.begin_pass()
        for number in range(page_count):
            page = deflated[stirred(number) % PATTERNS]
            writer.compressed(number, page)
            alone.write(struct.pack(">I", len(page)) + page)
        writer.end_pass()
    return Truth(page_count, lambda number: pages[stirred(number) % PATTERNS])


def compressible_pages() -> list[bytes]:
    dice = random.Random(SEED)
    phrases = [dice.randbytes(48) for _ in range(64)]
    lines = [dice.randbytes(16) + dice.choice(phrases) for _ in range(PATTERNS * PAGE // 64)]
    text = b"".join(lines)
    return [text[at : at + PAGE] for at in range(0, len(text), PAGE)]


def mapped(path: Path, page_count: int) -> Truth:
    """mapped-ram, every page there."""
    content = Content()
    write_mapped(path, page_count, map(content.page, range(page_count)))
    return Truth(page_count, content.page)


def sparse_mapped(path: Path, page_count: int, real_count: int) -> None:
    """mapped-ram, every page said to be there: the first few on disk, holes behind."""
    content = Content()
    write_mapped(path, page_count, map(content.page, range(real_count)))


def write_mapped(path: Path, page_count: int, pages: Iterable[bytes]) -> None:
    size, bitmap_len = page_count * PAGE, -(-page_count // 64) * 8
    start = configuration() + section_start(size) + entry(size)
    bitmap_at = len(start) + 28
    pages_at = -(-(bitmap_at + bitmap_len) // MAPPED_ALIGN) * MAPPED_ALIGN
    with open(path, "wb", buffering=BUFFER) as file:
        file.write(start + struct.pack(">IQQQ", 1, PAGE, bitmap_at, pages_at))
        bits = (1 << page_count) - 1
        file.write(bits.to_bytes(bitmap_len, "little"))
        file.seek(pages_at)
        for page in pages:
            file.write(page)
        file.seek(pages_at + size)
        file.write(body_end() + ram_end() + description())


def configuration() -> bytes:
    """The header of a stream that says it is mapped-ram: only this tells."""
    machine, name = b"synth-1.0", b"configuration/capabilities"
    parts = [b"QEVM", struct.pack(">IBI", 3, CONFIGURATION, len(machine)), machine]
    parts += [bytes([SUBSECTION]), named(name), struct.pack(">II", 1, 1), named(b"mapped-ram")]
    return b"".join(parts)


def fills(path: Path, page_count: int, orders: Iterable[Iterable[int]]) -> Truth:
    """Zero pages alone, 9 bytes a record: as many passes as orders."""
    with Writer(path, page_count) as writer:
        for order in orders:
            writer.begin_pass()
            for number in order:
                writer.fill(number)
            writer.end_pass()
    return Truth(page_count, lambda _: None)


def swept(path: Path, page_count: int, passes: int = 1, sweeps: int = 1) -> None:
    """Zero pages alone, as many as a large guest has: `passes` over all of them,
    each in `sweeps` that go over every so many pages. With more than one, no two
    records are neighbours."""
    with Writer(path, page_count) as writer:
        for _ in range(passes):
            writer.begin_pass()
            for first in range(sweeps):
                writer.fills(range(first, page_count, sweeps))
            writer.end_pass()


def claim(path: Path, claimed_count: int, sent_count: int) -> Truth:
    """A block that says it has many pages, and sends few."""
    content = Content()
    with Writer(path, claimed_count) as writer:
        writer.begin_pass()
        for number in range(sent_count):
            writer.data(number, content.page(number))
        writer.end_pass()
    return Truth(claimed_count, lambda number: content.page(number) if number < sent_count else None)


def random_file(path: Path, size: int) -> None:
    """A file of random bytes."""
    Truth(size // PAGE, Content().page).write(path)


def check_all(work: Path, extract: Callable[[Path, Path], Path], page_count: int = 1024) -> list[str]:
    """Extracts a small stream of each kind and compares; gives their names.

    `extract` takes a stream and a directory to make, and gives the image's path.
    """
    writers = {
        "data": data,
        "scattered": scattered,
        "half": half,
        "passes": passes,
        "xbzrle": xbzrle,
        "compressed": lambda path, count: compressed(path, work / "deflated", count),
        "mapped": mapped,
        "fills": lambda path, count: fills(path, count, [shuffled(count), range(count)]),
        "claim": lambda path, count: claim(path, count, count // 8),
    }
    for name, write in writers.items():
        stream = work / f"{name}.qevm"
        truth = write(stream, page_count)
        truth.check(extract(stream, work / name))
        os.remove(stream)
    return list(writers)
