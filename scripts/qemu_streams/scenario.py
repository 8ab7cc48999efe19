"""What is done with a QEMU from its start until its stream is complete."""

import mmap
from pathlib import Path

from . import StreamError, capture, command, firmware, virtio
from .process import Deadline, Qemu
from .rows import Row

STREAM = "stream"
PARTIAL = "stream.part"
FILE_URI_SINCE = (8, 2)

WAIT_SECONDS = 120
GUEST_ROUNDS = 3  # rounds of the guest before anything else happens
LIVE_PASSES = 4  # passes over RAM before bandwidth is raised
UNLIMITED = 1 << 40  # bytes per second
# Bandwidth of a live migration, in RAM sizes per second: before and after it is
# raised. Even then it has a limit, because QEMU looks at a new downtime limit up
# to 100 ms later and goes on with its passes until then.
LOW, RAISED = 1.5, 8
# That of a migration that is killed in its first pass.
KILLED = 0.4
# What multifd compression leaves of this guest's pages. QEMU's limit is on what goes
# out; 7.2 reckons with what goes into compression.
COMPRESSED = 1 / 128
COMPRESSED_LIMIT_SINCE = (8, 0)
NEVER_MS, ALWAYS_MS = 1, 60_000  # downtime limits


def prepare(
    row: Row, size: int, qemu: Qemu, directory: Path, qtest: virtio.QTest | None
) -> dict:
    """Takes the row to where its migration can begin; returns what was done."""
    made = {}
    if row.board.firmware or row.board.program:
        qemu.execute("cont")
        _wait_for_guest(row, size, qemu, directory)
    set_capabilities(row, qemu)
    if row.scenario in ("paused", "snapshot", "killed"):
        qemu.execute("stop")
    if row.scenario == "paused":
        _set_up(row, qemu)
        if qtest:
            is_legacy = row.virtio.startswith("legacy-")
            kind = row.virtio.removeprefix("legacy-")
            made["virtio"] = virtio.set_up(kind, qtest, row.board.mmio, is_legacy)
        if row.failing_disk:
            virtio.submit_read(qtest)
            _wait_for_failure(row, qemu)
    return made


def migrate(row: Row, size: int, qemu: Qemu) -> dict:
    """Takes the row to the end of its migration; returns QEMU's figures of it.

    The guest is stopped from then on: what its RAM holds is what the stream says,
    unless the stream is a background snapshot.
    """
    match row.scenario:
        case "paused":
            _set_limits(qemu, UNLIMITED, ALWAYS_MS)
            _migrate(row, qemu)
        case "live":
            _set_limits(qemu, int(size * LOW * _share_sent(row, qemu)), NEVER_MS)
            _migrate(row, qemu)
            _wait_for_passes(qemu)
            _set_limits(qemu, size * RAISED, ALWAYS_MS)
        case "postcopy":
            _set_limits(qemu, int(size * LOW), NEVER_MS)
            _migrate(row, qemu)
            _wait_for_passes(qemu)
            qemu.execute("migrate-start-postcopy")
        case "killed":
            # The stream ends where QEMU was: there is no end to wait for.
            _set_limits(qemu, int(size * KILLED), NEVER_MS)
            _migrate(row, qemu)
            _wait_for_bytes(qemu, size // 8)
            figures = _status(qemu)
            qemu.kill()
            return figures
        case "snapshot":
            # QEMU first sends a page that the guest is about to write to. It sets no
            # limit to bandwidth then: the socket's other end does.
            _migrate(row, qemu)
            _wait_for_bytes(qemu, size // 16)
            qemu.execute("cont")
            return _wait_for_completion(qemu)
    return _wait_for_end(qemu)


def collect(directory: Path) -> list[Path]:
    """The complete stream, once QEMU has ended."""
    deadline = Deadline(WAIT_SECONDS)
    while not (directory / STREAM).exists():
        deadline.poll("the stream to be written")
    return [directory / STREAM]


def _wait_for_guest(row: Row, size: int, qemu: Qemu, directory: Path) -> None:
    """Waits until the guest has filled RAM: its first page counts the rounds."""
    at = firmware.FILL_START + firmware.COUNTER
    deadline = Deadline(WAIT_SECONDS)
    # Zero before the fill, then the page's address, then the count.
    while True:
        count = _word(row, size, qemu, directory, at)
        if count != at and count >= GUEST_ROUNDS:
            return
        deadline.poll("the guest to fill its RAM")


def _word(row: Row, size: int, qemu: Qemu, directory: Path, at: int) -> int:
    """A word of the guest's main memory, from its file if it is in one."""
    if row.scenario == "snapshot":
        return int(qemu.monitor(f"xp /1wx {at:#x}").split()[-1], 16)
    first = row.main_backends()[0]
    length = row.backend_bytes(first, size)
    with open(directory / command.backend_file(first), "rb") as file:
        with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as ram:
            return int.from_bytes(ram[at : at + 4], "little")


def set_capabilities(row: Row, qemu: Qemu) -> None:
    """Sets the capabilities and parameters of the migration."""
    if row.capabilities:
        wanted = [{"capability": name, "state": True} for name in row.capabilities]
        qemu.execute("migrate-set-capabilities", capabilities=wanted)
    if row.parameters:
        qemu.execute("migrate-set-parameters", **dict(row.parameters))


def _set_up(row: Row, qemu: Qemu) -> None:
    for step in row.setup:
        if isinstance(step, str):
            said = qemu.monitor(step)
            if "rror" in said or "failed" in said:
                raise StreamError(f"{step}: {said.strip()}")
        else:
            name, arguments = step
            qemu.execute(name, **arguments)


def _wait_for_failure(row: Row, qemu: Qemu) -> None:
    deadline = Deadline(WAIT_SECONDS)
    while True:
        drives = qemu.execute("query-block")
        drive = next(each for each in drives if each["device"] == row.failing_disk)
        if drive["io-status"] == "failed":
            return
        deadline.poll("the request to fail")


def _set_limits(qemu: Qemu, bandwidth: int, downtime_ms: int) -> None:
    limits = {"max-bandwidth": bandwidth, "downtime-limit": downtime_ms}
    qemu.execute("migrate-set-parameters", **limits)


def _migrate(row: Row, qemu: Qemu) -> None:
    if row.channels or (row.scenario in ("postcopy", "snapshot") and not row.mapped):
        uri = f"unix:{capture.SOCKET}"
    elif qemu.version >= FILE_URI_SINCE:
        uri = f"file:{STREAM}"
    else:
        # QEMU may say "completed" before cat has written all: the name says when.
        uri = f"exec:cat > {PARTIAL} && mv {PARTIAL} {STREAM}"
    qemu.execute("migrate", uri=uri, **dict(row.migrate))


def _share_sent(row: Row, qemu: Qemu) -> float:
    """The part of memory's size that counts towards the limit of bandwidth."""
    compressed = "multifd-compression" in dict(row.parameters)
    counted = qemu.version >= COMPRESSED_LIMIT_SINCE
    return COMPRESSED if compressed and counted else 1


def _wait_for_passes(qemu: Qemu) -> None:
    deadline = Deadline(WAIT_SECONDS)
    while True:
        info = _status(qemu)
        passes = info.get("ram", {}).get("dirty-sync-count", 0)
        if passes >= LIVE_PASSES:
            return
        if info.get("status") == "completed":
            raise StreamError(f"the migration was over after {passes} passes")
        deadline.poll(f"pass {LIVE_PASSES}")


def _wait_for_bytes(qemu: Qemu, count: int) -> None:
    deadline = Deadline(WAIT_SECONDS)
    while _status(qemu).get("ram", {}).get("transferred", 0) < count:
        deadline.poll("the first pages")


def _wait_for_completion(qemu: Qemu) -> dict:
    deadline = Deadline(WAIT_SECONDS)
    while (info := _status(qemu)).get("status") != "completed":
        deadline.poll("the end of the migration")
    return info


def _wait_for_end(qemu: Qemu) -> dict:
    info = _wait_for_completion(qemu)
    deadline = Deadline(WAIT_SECONDS)
    # The guest stands still, but the run state may follow a moment later.
    while qemu.execute("query-status")["running"]:
        deadline.poll("the guest to stop")
    return info


def _status(qemu: Qemu) -> dict:
    info = qemu.execute("query-migrate")
    if "blocked-reasons" in info:
        raise StreamError(f"cannot migrate: {info['blocked-reasons']}")
    if info.get("status") in ("failed", "cancelled"):
        raise StreamError(f"migration failed: {info.get('error-desc', 'no reason')}")
    return info
