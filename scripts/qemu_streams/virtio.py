"""Sets up virtio devices as a driver does, from outside of the guest.

Over QEMU's qtest channel, which reads and writes ports and memory of the stopped
machine. Each device found gets its features, queues and status; the rings lie in
memory that is zero, so that no request is waiting. What was set up is returned, to
be compared with what the stream holds.
"""

import socket

VENDOR = 0x1AF4
STATUS_DRIVER_OK = 0x0F  # ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK
LEGACY_DRIVER_OK = 0x07
RING_INDIRECT_DESC, RING_EVENT_IDX = 1 << 28, 1 << 29
VERSION_1, RING_PACKED = 1 << 32, 1 << 34
QUEUE_NUM = 8  # what every device has at least
QUEUES = 2  # set up of each device at most
RINGS_START = 0x20000  # below what the guest's firmware writes to
RING_BYTES = 0x1000

WINDOW = 0xE0000000  # where BARs are put
WINDOW_BYTES = 0x4000
BRIDGE_WINDOW = 0xE0100000
MMIO_STRIDE = 0x200


class QTest:
    """The channel."""

    def __init__(self, channel: socket.socket):
        self._channel = channel
        self._lines = channel.makefile("rb")

    def command(self, *words) -> int:
        text = " ".join(hex(word) if isinstance(word, int) else word for word in words)
        self._channel.sendall(text.encode() + b"\n")
        reply = self._lines.readline().split()
        if not reply or reply[0] != b"OK":
            raise ValueError(f"qtest: {text}: {reply}")
        return int(reply[1], 16) if len(reply) > 1 else 0

    def config_read(self, device: tuple[int, int], register: int) -> int:
        self._select(device, register)
        return self.command("inl", 0xCFC)

    def config_write(self, device: tuple[int, int], register: int, value: int) -> None:
        self._select(device, register)
        self.command("outl", 0xCFC, value)

    def _select(self, device: tuple[int, int], register: int) -> None:
        bus, slot = device
        self.command("outl", 0xCF8, 1 << 31 | bus << 16 | slot << 11 | register)


def set_up(kind: str, qtest: QTest, bases: range, is_legacy: bool) -> list[dict]:
    """Sets up all devices of a machine."""
    if kind == "pci":
        return _set_up_pci(qtest)
    return _set_up_mmio(qtest, bases, is_legacy)


def submit_read(qtest: QTest) -> None:
    """Asks the first PCI device, which is a disk, for its first sector."""
    header, data, status = 0x30000, 0x31000, 0x32000
    chain = ((header, 16, 1, 1), (data, 512, 3, 2), (status, 1, 2, 0))
    for nth, (address, length, flags, following) in enumerate(chain):
        at = RINGS_START + 16 * nth
        qtest.command("writeq", at, address)
        qtest.command("writel", at + 8, length)
        qtest.command("writel", at + 12, following << 16 | flags)
    available = RINGS_START + 0x400
    qtest.command("writel", available, 1 << 16)  # one entry, which is descriptor 0
    qtest.command("writew", WINDOW + 0x3000, 0)  # notify


class _Rings:
    """Gives out memory."""

    def __init__(self):
        self._next = RINGS_START

    def take(self) -> tuple[int, int, int]:
        at = self._next
        self._next += RING_BYTES
        return at, at + 0x400, at + 0x800


def _set_up_pci(qtest: QTest) -> list[dict]:
    rings, done = _Rings(), []
    devices = [(0, slot) for slot in range(32)]
    window, bus = WINDOW, 0
    for device in devices:
        if qtest.config_read(device, 0x0C) >> 16 & 0x7F == 1:
            # A bridge: its bus is looked at behind those before.
            bus += 1
            _open_bridge(qtest, device, bus)
            devices.append((bus, 0))
        identity = qtest.config_read(device, 0)
        if identity & 0xFFFF != VENDOR or not 0x1000 <= identity >> 16 < 0x1080:
            continue
        base = _bridge_window(device[0]) if device[0] else window
        window += WINDOW_BYTES
        qtest.config_write(device, 0x20, base)
        qtest.config_write(device, 0x24, 0)
        qtest.config_write(device, 0x04, 0x6)  # memory, bus master
        entry = _set_up_modern_pci(qtest, base, rings)
        bus_number, slot = device
        done.append({"bus": bus_number, "slot": slot} | entry)
    return done


def _bridge_window(bus: int) -> int:
    return BRIDGE_WINDOW + (bus - 1) * 0x100000


def _open_bridge(qtest: QTest, device: tuple[int, int], bus: int) -> None:
    base = _bridge_window(bus)
    qtest.config_write(device, 0x18, bus << 16 | bus << 8)
    qtest.config_write(device, 0x20, base | base >> 16)
    # A window for the prefetchable BAR of the device too.
    qtest.config_write(device, 0x24, base | base >> 16)
    qtest.config_write(device, 0x04, 0x6)


def _set_up_modern_pci(qtest: QTest, base: int, rings: _Rings) -> dict:
    def word(register: int, value: int) -> None:
        qtest.command("writew", base + register, value)

    def long(register: int, value: int) -> None:
        qtest.command("writel", base + register, value)

    for status in (0, 1, 3):
        qtest.command("writeb", base + 20, status)
    offered = 0
    for half in (0, 1):
        long(0, half)
        offered |= qtest.command("readl", base + 4) << 32 * half
    features = offered & (RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1 | RING_PACKED)
    for half in (0, 1):
        long(8, half)
        long(12, features >> 32 * half & 0xFFFFFFFF)
    qtest.command("writeb", base + 20, 0x0B)
    count = qtest.command("readw", base + 18)
    queues = []
    for index in range(min(count, QUEUES)):
        desc, avail, used = rings.take()
        word(22, index)
        word(24, QUEUE_NUM)
        for register, address in ((32, desc), (40, avail), (48, used)):
            long(register, address)
            long(register + 4, 0)
        word(28, 1)
        queues.append({"num": QUEUE_NUM, "desc": desc, "avail": avail, "used": used})
    qtest.command("writeb", base + 20, STATUS_DRIVER_OK)
    status = qtest.command("readb", base + 20)
    return {"features": features, "status": status, "queues": queues}


def _set_up_mmio(qtest: QTest, bases: range, is_legacy: bool) -> list[dict]:
    rings, done = _Rings(), []
    for base in bases:
        if qtest.command("readl", base + 8) != 0:
            set_up_one = _set_up_legacy_mmio if is_legacy else _set_up_modern_mmio
            done.append({"base": base} | set_up_one(qtest, base, rings))
    return done


def _set_up_modern_mmio(qtest: QTest, base: int, rings: _Rings) -> dict:
    def long(register: int, value: int) -> None:
        qtest.command("writel", base + register, value)

    for status in (0, 1, 3):
        long(0x70, status)
    offered = 0
    for half in (0, 1):
        long(0x14, half)
        offered |= qtest.command("readl", base + 0x10) << 32 * half
    features = offered & (RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1)
    for half in (0, 1):
        long(0x24, half)
        long(0x20, features >> 32 * half & 0xFFFFFFFF)
    long(0x70, 0x0B)
    queues = []
    for index in range(QUEUES):
        long(0x30, index)
        if qtest.command("readl", base + 0x34) == 0:
            break
        desc, avail, used = rings.take()
        long(0x38, QUEUE_NUM)
        for register, address in ((0x80, desc), (0x90, avail), (0xA0, used)):
            long(register, address)
            long(register + 4, 0)
        long(0x44, 1)
        queues.append({"num": QUEUE_NUM, "desc": desc, "avail": avail, "used": used})
    long(0x70, STATUS_DRIVER_OK)
    status = qtest.command("readl", base + 0x70)
    return {"features": features, "status": status, "queues": queues}


def _set_up_legacy_mmio(qtest: QTest, base: int, rings: _Rings) -> dict:
    def long(register: int, value: int) -> None:
        qtest.command("writel", base + register, value)

    for status in (0, 1, 3):
        long(0x70, status)
    features = RING_EVENT_IDX
    long(0x24, 0)
    long(0x20, features)
    long(0x28, 4096)
    queues = []
    for index in range(QUEUES):
        long(0x30, index)
        if qtest.command("readl", base + 0x34) == 0:
            break
        desc = rings.take()[0]
        long(0x38, QUEUE_NUM)
        long(0x3C, 256)
        long(0x40, desc >> 12)
        # The other rings follow, so that nobody writes down where they are.
        queues.append({"num": QUEUE_NUM, "desc": desc})
    long(0x70, LEGACY_DRIVER_OK)
    status = qtest.command("readl", base + 0x70)
    return {"features": features, "status": status, "queues": queues}
