"""One run of the bench: its options, its streams, and the commands to time."""

import filecmp
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qemu_streams.host import Host
from qemu_streams.script import fetch

from . import BenchError, guest, measure, streams
from .measure import Contestant, Run
from .streams import PAGE, Truth

PROJECT = Path(__file__).resolve().parent.parent.parent
GIB = 1 << 30
OUT = "out"
IMAGE = f"{OUT}/{streams.BLOCK.decode()}"
OTHER = ", other build"
EXTRACT = ("extract", "-o", OUT, "--quiet")

Check = Callable[[Path], None]


@dataclass
class Session:
    """What all rows share. Streams are made when a row first wants them."""

    work: Path
    ramlift: Path
    against: Path | None  # another build, to run in turn
    rounds: int
    size: int  # bytes of guest memory
    qemu_prefix: str
    given_script: Path | None
    provenance: str  # of the build that is measured

    @property
    def part(self) -> int:
        """Bytes of guest memory of the rows that do with less."""
        return min(self.size, GIB)

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @cached_property
    def host(self) -> Host:
        return guest.require(self.qemu_prefix)

    @cached_property
    def guest(self) -> tuple[Path, Path]:
        """QEMU's stream of a guest, and the guest's memory."""
        return guest.random_memory(self.host, self.size, self.directory("guest"))

    @cached_property
    def data(self) -> tuple[Path, Truth]:
        """A stream with all pages data."""
        path = self.work / "data.qevm"
        return path, streams.data(path, self.part // PAGE)

    @cached_property
    def image(self) -> Path:
        """A file as long as the images of the smaller streams, no page zero."""
        path = self.work / "image"
        self.data[1].write(path)
        return path

    @cached_property
    def script(self) -> Path:
        """QEMU's analyze-migration.py."""
        return self.given_script or fetch(self.directory("script"), None)

    @cached_property
    def inflate(self) -> Path:
        """The command that only inflates."""
        return built("--example", "inflate_pages")

    def directory(self, name: str) -> Path:
        path = self.work / name
        path.mkdir()
        return path

    def alternate(self, *contestants: list[Contestant]) -> dict[str, list[Run]]:
        together = [each for some in contestants for each in some]
        return measure.alternate(together, self.rounds, self.work)

    def extract(self, stream: Path, check: Check | None = None, name="extract") -> list[Contestant]:
        """`ramlift extract`, of both builds if there are two."""
        return self.ramlifts(name, [*EXTRACT, stream], stream, check=check)

    def ramlifts(
        self, name: str, arguments: list, *inputs: Path, check: Check | None = None, cores: int | None = None
    ) -> list[Contestant]:
        builds = {name: self.ramlift} | ({name + OTHER: self.against} if self.against else {})
        return [
            each
            for name, build in builds.items()
            for each in self.command(name, [build, *arguments], *inputs, check=check, cores=cores)
        ]

    def copy(self, image: Path) -> list[Contestant]:
        return self.command("cp", ["cp", "--sparse=never", image, OUT], image)

    def run_script(self, name: str, *arguments, inputs: tuple[Path, ...] = ()) -> list[Contestant]:
        return self.command(name, [sys.executable, self.script, *arguments], *inputs)

    @staticmethod
    def command(
        name: str, command: list, *inputs: Path, check: Check | None = None, cores: int | None = None
    ) -> list[Contestant]:
        run = lambda place: measure.run(command, place, cores=cores)
        return [Contestant(name, run, inputs, check)]


def built(*target: str) -> Path:
    """Builds a target of the project, and gives the program's path."""
    command = ["cargo", "build", "--release", "--locked", *target]
    command.append("--message-format=json-render-diagnostics")
    done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    messages = map(json.loads, done.stdout.splitlines())
    return next(Path(each["executable"]) for each in messages if each.get("executable"))


def image_is(truth: Truth) -> Check:
    """A check that the image extracted to a directory is right."""
    return lambda place: truth.check(place / IMAGE)


def image_equals(image: Path) -> Check:
    def check(place: Path) -> None:
        if not filecmp.cmp(image, place / IMAGE, shallow=False):
            raise BenchError("the image differs from the guest's memory")

    return check
