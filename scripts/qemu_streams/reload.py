"""Loading a stream back into the QEMU that made it: the other way to its truth."""

from pathlib import Path

from . import StreamError, command, process, scenario, truth
from .host import Host
from .process import Deadline
from .rows import Row

PLACE = "reloaded"


def can(row: Row) -> bool:
    """Whether all of the row's memory is in one stream that QEMU loads."""
    has_all = not row.channels and "x-ignore-shared" not in row.capabilities
    return has_all and row.scenario in ("paused", "live")


def check(row: Row, size: int, host: Host, directory: Path, stream: Path, blocks: dict) -> None:
    """Fails unless a QEMU that loads `stream` has the memory that `blocks` tells."""
    place = directory / PLACE
    place.mkdir()
    command.write_files(row, size, place)
    (place / scenario.STREAM).hardlink_to(stream)
    arguments = [*command.arguments(row, size), "-incoming", "defer"]
    with process.start(host, row.board.binary, arguments, place) as qemu:
        scenario.set_capabilities(row, qemu)
        is_file = qemu.version >= scenario.FILE_URI_SINCE
        uri = f"file:{scenario.STREAM}" if is_file else f"exec:cat {scenario.STREAM}"
        qemu.execute("migrate-incoming", uri=uri)
        deadline = Deadline(scenario.WAIT_SECONDS)
        while (status := qemu.execute("query-migrate").get("status")) != "completed":
            if status == "failed":
                raise StreamError("QEMU does not load its own stream")
            deadline.poll("the stream to be loaded")
        loaded, _ = truth.of_blocks(row, qemu, place)
    differ = [name for name in blocks.keys() & loaded if blocks[name] != loaded[name]]
    if differ or not blocks.keys() & loaded:
        raise StreamError(f"loaded back, other memory: {', '.join(differ) or 'none'}")
