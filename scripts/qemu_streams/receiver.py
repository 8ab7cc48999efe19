"""What takes the stream: a file, sockets of our own, or another QEMU."""

from contextlib import contextmanager
from pathlib import Path

from . import StreamError, capture, command, process, scenario, truth
from .host import Host
from .process import Deadline, Qemu
from .rows import Row

DESTINATION = "destination"


@contextmanager
def receive(row: Row, size: int, host: Host, directory: Path):
    """The row's receiver, for the length of a with block.

    Its `collect`, given the manifest's entry so far, has the stream and then its
    channels, once the QEMU that sends them has ended.
    """
    if row.scenario == "postcopy":
        with _destination(row, size, host, directory) as destination:
            yield destination
    elif row.channels or (row.scenario == "snapshot" and not row.mapped):
        pace = size if row.scenario == "snapshot" else None
        with capture.listen(directory, pace) as listener:
            yield listener
    else:
        yield _File(directory)


class _File:
    def __init__(self, directory: Path):
        self._directory = directory

    def collect(self, entry: dict) -> list[Path]:
        return scenario.collect(self._directory)


class _Destination:
    """A QEMU that has taken in the migration, and stands still."""

    def __init__(self, row: Row, size: int, directory: Path, qemu: Qemu):
        self._row, self._size, self._directory, self._qemu = row, size, directory, qemu
        place = directory / DESTINATION
        self._relay = capture.Relay(
            directory, place / capture.INCOMING, directory / scenario.STREAM
        )

    def collect(self, entry: dict) -> list[Path]:
        self._relay.finish()
        deadline = Deadline(scenario.WAIT_SECONDS)
        while self._qemu.execute("query-migrate").get("status") != "completed":
            deadline.poll("the destination to have taken in everything")
        place = self._directory / DESTINATION
        arrived = truth.of_physical_memory(self._row, self._size, self._qemu, place)
        if arrived != {key: entry.get(key) for key in arrived}:
            raise StreamError("the destination's memory is not that of the source")
        return scenario.collect(self._directory)


@contextmanager
def _destination(row: Row, size: int, host: Host, directory: Path):
    place = directory / DESTINATION
    place.mkdir()
    command.write_files(row, size, place)
    arguments = command.arguments(row, size, incoming=True)
    with process.start(host, row.board.binary, arguments, place) as qemu:
        scenario.set_capabilities(row, qemu)
        qemu.execute("migrate-incoming", uri=f"unix:{capture.INCOMING}")
        yield _Destination(row, size, directory, qemu)
