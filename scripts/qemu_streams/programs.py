"""Small guests of machines other than x86, put together byte by byte.

Each does one thing that shows in the stream, writes DONE at DONE_AT, and waits for
ever in a loop.
"""

import struct

DONE_AT = 0x100000  # as the x86 guest counts its rounds there
DONE = 3

# s390x: `-bios` loads a page at START and starts it there.
START = 0x9000
SCHIB, ORB, CCWS, DATA = 0x9300, 0x9400, 0x9500, 0x9800
KEYS_START, KEYS_END = 0x200000, 0x210000  # pages that get keys
RINGS_START = 0x2C000  # zeros: see command.pattern
SUBCHANNELS = 2

CHAIN, SUPPRESS_LENGTH = 0x40, 0x20
CMD_VDEV_RESET, CMD_SET_VIRTIO_REV = 0x33, 0x83
CMD_WRITE_FEAT, CMD_WRITE_STATUS = 0x11, 0x31
CMD_SET_VQ, CMD_SET_IND, CMD_SET_CONF_IND = 0x13, 0x43, 0x53
RING_FEATURES = 1 << 29 | 1 << 28  # event index, indirect descriptors
QUEUE_NUM = 8


def s390x() -> bytes:
    """Sets storage keys, and sets up the first virtio devices there are.

    Page n from KEYS_START on gets the key (n & 15) << 4. The first queue of each
    device has its rings at `s390x_rings`.
    """
    image = bytearray(DATA - START)
    data = bytearray()
    code = [_keys()]
    for number in range(SUBCHANNELS):
        ccws = CCWS + number * 0x100
        channel_program = _channel_program(number, data)
        at = ccws - START
        image[at : at + len(channel_program)] = channel_program
        orb = ORB + number * 0x20
        at = orb - START
        image[at : at + 12] = struct.pack(">IHBBI", 0, 0x0080, 0xFF, 0, ccws)
        code.append(_start_subchannel(number, orb))
    code.append(_load(3, DONE) + _load(4, DONE_AT) + bytes.fromhex("4230 4000"))  # stc
    code.append(bytes.fromhex("a7f4 0000"))  # j .
    program = b"".join(code)
    image[: len(program)] = program
    return bytes(image + data)


def s390x_rings(number: int) -> tuple[int, int, int]:
    """Addresses of descriptors, available and used ring of a device's queue."""
    at = RINGS_START + number * 0x1000
    return at, at + 0x400, at + 0x800


def s390x_indicators(number: int) -> tuple[int, int]:
    """Addresses of the indicators of a device's queues and of its config."""
    return RINGS_START + number * 0x1000 + 0xC00, RINGS_START + number * 0x1000 + 0xC08


def _load(register: int, value: int) -> bytes:
    return bytes((0xC0, register << 4 | 0xF)) + struct.pack(">I", value)  # llilf


def _keys() -> bytes:
    return b"".join(
        (
            _load(2, KEYS_START),
            _load(3, KEYS_END),
            bytes.fromhex("b904 0042"),  # lgr r4, r2
            bytes.fromhex("eb44 0008 000c"),  # srlg r4, r4, 8   ; n << 4
            bytes.fromhex("a547 00f0"),  # nill r4, 0xf0
            bytes.fromhex("b22b 0042"),  # sske r4, r2
            bytes.fromhex("a72b 1000"),  # aghi r2, 4096
            bytes.fromhex("b921 0023"),  # clgr r2, r3
            bytes.fromhex("a744 fff3"),  # jl the lgr, 26 bytes back
        )
    )


def _start_subchannel(number: int, orb: int) -> bytes:
    return b"".join(
        (
            _load(1, 0x10000 | number),
            _load(5, SCHIB),
            _load(6, orb),
            bytes.fromhex("b234 5000"),  # stsch 0(r5)
            bytes.fromhex("9680 5005"),  # oi 5(r5), 0x80   ; enabled
            bytes.fromhex("b232 5000"),  # msch 0(r5)
            bytes.fromhex("b233 6000"),  # ssch 0(r6)
        )
    )


def _channel_program(number: int, data: bytearray) -> bytes:
    desc, avail, used = s390x_rings(number)
    indicators, config_indicators = s390x_indicators(number)
    steps = (
        (CMD_SET_VIRTIO_REV, struct.pack(">HH", 1, 0)),
        (CMD_VDEV_RESET, b""),
        (CMD_WRITE_STATUS, b"\x01"),
        (CMD_WRITE_STATUS, b"\x03"),
        (CMD_WRITE_FEAT, struct.pack("<IB", RING_FEATURES, 0)),
        (CMD_WRITE_FEAT, struct.pack("<IB", 1, 1)),
        (CMD_WRITE_STATUS, b"\x0b"),
        (CMD_SET_VQ, struct.pack(">QIHHQQ", desc, 0, 0, QUEUE_NUM, avail, used)),
        (CMD_SET_IND, struct.pack(">Q", indicators)),
        (CMD_SET_CONF_IND, struct.pack(">Q", config_indicators)),
        (CMD_WRITE_STATUS, b"\x0f"),
    )
    ccws = b""
    for nth, (command, payload) in enumerate(steps):
        flags = SUPPRESS_LENGTH | (CHAIN if nth + 1 < len(steps) else 0)
        address = DATA + len(data)
        ccws += struct.pack(">BBHI", command, flags, len(payload), address)
        data += payload + bytes(-len(payload) % 8)
    return ccws


# ppc64: `-bios` loads the image at 0, and the machine starts it at ENTRY.
ENTRY = 0x100
H_ENTER = 8
H_EXACT = 1 << 39
# Entries that the guest puts into its hash page table: number, and both words.
HASH_ENTRIES = tuple(
    (index, 0x1234_5000_0000 | index << 12 | 1, 0x200000 + (index << 12) | 0x10)
    for index in (0, 1, 2, 7, 8, 300, 4000)
)


def ppc64() -> bytes:
    """Enters HASH_ENTRIES into the hash page table."""
    code = b""
    for index, first, second in HASH_ENTRIES:
        values = ((3, H_ENTER), (4, H_EXACT), (5, index), (6, first), (7, second))
        code += b"".join(_load_ppc(register, value) for register, value in values)
        code += struct.pack(">I", 0x44000022)  # sc 1
    code += _load_ppc(9, DONE_AT) + _load_ppc(8, DONE)
    code += struct.pack(">2I", 0x99090000, 0x48000000)  # stb r8, 0(r9); b .
    return bytes(ENTRY) + code


def _load_ppc(register: int, value: int) -> bytes:
    parts = [value >> shift & 0xFFFF for shift in (48, 32, 16, 0)]
    r = register
    return struct.pack(
        ">5I",
        0x3C000000 | r << 21 | parts[0],  # lis r, part
        0x60000000 | r << 21 | r << 16 | parts[1],  # ori r, r, part
        0x780007C6 | r << 21 | r << 16,  # sldi r, r, 32
        0x64000000 | r << 21 | r << 16 | parts[2],  # oris r, r, part
        0x60000000 | r << 21 | r << 16 | parts[3],  # ori r, r, part
    )
