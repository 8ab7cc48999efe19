"""The x86 guest: a 64 KiB BIOS image of our own, put together byte by byte.

It enters protected mode, fills two pages of three from 1 MiB up (every dword is
its page's address, so that the stream packs well; the third page stays zero) and
then runs rounds for ever:

* every fifth page gets the number of the round at offset COUNTER;
* every seventh page is rewritten as a whole, with zeros or with its address.
  Which of the two depends on page number and round, so that each of these pages
  changes between zero and data from round to round, half of them at a time.

A migration of several passes therefore meets pages that were zero and now hold
data, pages that held data and are now zero, and pages with one word changed.
"""

import struct

IMAGE_BYTES = 0x10000
SEGMENT_BASE = 0xF0000  # where the image is seen below 1 MiB
FILL_START = 0x100000
PAGE = 0x1000
COUNTER = 0  # offset in the page of the round number
TOGGLE_START = FILL_START + 3 * PAGE

GDT_OFFSET = 0x40
GDTR_OFFSET = 0x60
CODE32_OFFSET = 0x80
RESET_OFFSET = 0xFFF0

CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10
GDT = (
    0,
    0x00CF9A000000FFFF,  # flat 32-bit code
    0x00CF92000000FFFF,  # flat 32-bit data
)


def image(ram_bytes: int) -> bytes:
    """The BIOS image for a guest whose RAM ends at `ram_bytes`."""
    parts = {
        0: _real_mode(),
        GDT_OFFSET: struct.pack("<3Q", *GDT),
        GDTR_OFFSET: struct.pack("<HI", 8 * len(GDT) - 1, SEGMENT_BASE + GDT_OFFSET),
        CODE32_OFFSET: _protected_mode(ram_bytes),
        RESET_OFFSET: bytes.fromhex("ea 0000 00f0"),  # jmp f000:0000
    }
    rom = bytearray(b"\xff" * IMAGE_BYTES)
    for offset, part in parts.items():
        rom[offset : offset + len(part)] = part
    return bytes(rom)


def _real_mode() -> bytes:
    entry = struct.pack("<IH", SEGMENT_BASE + CODE32_OFFSET, CODE_SELECTOR)
    return b"".join(
        (
            b"\xfa",  # cli
            b"\xfc",  # cld
            b"\x2e\x66\x0f\x01\x16" + _u16(GDTR_OFFSET),  # lgdt cs:[GDTR]
            b"\x0f\x20\xc0",  # mov eax, cr0
            b"\x0c\x01",  # or al, 1
            b"\x0f\x22\xc0",  # mov cr0, eax
            b"\x66\xea" + entry,  # jmp CODE_SELECTOR:code32
        )
    )


def _protected_mode(ram_bytes: int) -> bytes:
    """The 32-bit code. A jump is its opcode and the label it goes to."""
    last_pair = ram_bytes - 2 * PAGE  # the highest place where two pages fit
    return _assemble(
        (
            b"\xb8" + _u32(DATA_SELECTOR),  # mov eax, DATA_SELECTOR
            b"\x8e\xd8",  # mov ds, eax
            b"\x8e\xc0",  # mov es, eax
            b"\x8e\xd0",  # mov ss, eax
            b"\xbf" + _u32(FILL_START),  # mov edi, FILL_START
            "fill_pair:",
            b"\xb9" + _u32(2 * PAGE // 4),  # mov ecx, dwords of two pages
            "fill_dword:",
            b"\x89\xf8",  # mov eax, edi
            b"\x25" + _u32(-PAGE & 0xFFFFFFFF),  # and eax, -PAGE
            b"\x89\x07",  # mov [edi], eax
            b"\x83\xc7\x04",  # add edi, 4
            (b"\xe2", "fill_dword"),  # loop fill_dword
            b"\x81\xc7" + _u32(PAGE),  # add edi, PAGE
            b"\x81\xff" + _u32(last_pair),  # cmp edi, last_pair
            (b"\x76", "fill_pair"),  # jbe fill_pair
            b"\x31\xed",  # xor ebp, ebp
            "round:",
            b"\x45",  # inc ebp
            b"\xbf" + _u32(FILL_START),  # mov edi, FILL_START
            "count:",
            b"\x89\x6f" + bytes((COUNTER,)),  # mov [edi + COUNTER], ebp
            b"\x81\xc7" + _u32(5 * PAGE),  # add edi, 5 * PAGE
            b"\x81\xff" + _u32(ram_bytes),  # cmp edi, ram_bytes
            (b"\x72", "count"),  # jb count
            b"\xbf" + _u32(TOGGLE_START),  # mov edi, TOGGLE_START
            "toggle:",
            b"\x89\xf8",  # mov eax, edi
            b"\xc1\xe8\x0c",  # shr eax, 12
            b"\x31\xe8",  # xor eax, ebp
            b"\x83\xe0\x01",  # and eax, 1
            b"\xf7\xd8",  # neg eax
            b"\x21\xf8",  # and eax, edi    ; zero, or the page's address
            b"\xb9" + _u32(PAGE // 4),  # mov ecx, dwords of a page
            b"\xf3\xab",  # rep stosd
            b"\x81\xc7" + _u32(6 * PAGE),  # add edi, 6 * PAGE
            b"\x81\xff" + _u32(ram_bytes),  # cmp edi, ram_bytes
            (b"\x72", "toggle"),  # jb toggle
            (b"\xeb", "round"),  # jmp round
        )
    )


def _assemble(lines) -> bytes:
    """Joins code, with the 8-bit displacements of jumps back to earlier labels."""
    code, labels = bytearray(), {}
    for line in lines:
        match line:
            case str():
                labels[line.removesuffix(":")] = len(code)
            case (opcode, target):
                after = len(code) + len(opcode) + 1
                code += opcode + struct.pack("<b", labels[target] - after)
            case _:
                code += line
    return bytes(code)


def _u16(value: int) -> bytes:
    return struct.pack("<H", value)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)
