"""The guest's programs: busybox, and an init that says when it is ready.

One process runs without end, some sleep, so that vCPUs and processes have
something to show.
"""

import stat
from pathlib import Path

from .packages import Kernel

READY = "guest is ready"
HOSTNAME = "saved-guest"
SLEEPERS = 3

INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox hostname {HOSTNAME}
/bin/busybox insmod /qemu_fw_cfg.ko
for each in $(/bin/busybox seq {SLEEPERS}); do
    /bin/busybox sleep 1000000 &
done
(while :; do :; done) &
/bin/busybox sleep 2
echo "{READY}"
exec /bin/busybox sleep 1000000
"""


def write(kernel: Kernel, path: Path) -> None:
    """Writes the archive, as `cpio -H newc` does."""
    archive = bytearray()
    _add(archive, "bin", stat.S_IFDIR | 0o755)
    _add(archive, "dev", stat.S_IFDIR | 0o755)
    _add(archive, "dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    _add(archive, "bin/busybox", stat.S_IFREG | 0o755, kernel.busybox.read_bytes())
    # For the vmcoreinfo device: this module tells QEMU where the note is.
    module = kernel.module("qemu_fw_cfg").read_bytes()
    _add(archive, "qemu_fw_cfg.ko", stat.S_IFREG | 0o644, module)
    _add(archive, "init", stat.S_IFREG | 0o755, INIT.encode())
    _add(archive, "TRAILER!!!", 0)
    path.write_bytes(archive)


def _add(
    archive: bytearray,
    name: str,
    mode: int,
    data: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> None:
    number = len(archive) + 1
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = "070701" + "".join(f"{field:08x}" for field in fields)
    for part in (head.encode() + name.encode() + b"\0", data):
        archive += part
        archive += bytes(-len(archive) % 4)
