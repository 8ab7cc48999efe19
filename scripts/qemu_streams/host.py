"""Where QEMU runs: its binaries, its root directory, and what they offer."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import process
from .rows import Row


@dataclass(frozen=True)
class Offer:
    """What one binary has."""

    version: tuple[int, ...]
    machines: frozenset[str]
    capabilities: frozenset[str]
    parameters: frozenset[str]


@dataclass(frozen=True)
class Host:
    """A directory of qemu-system-* binaries, below a root directory."""

    prefix: str = ""  # empty: search the usual places
    root: Path = Path("/")

    def path(self, binary: str) -> str:
        """Path of a binary as seen inside the root."""
        program = f"qemu-system-{binary}"
        if self.prefix:
            return os.path.join(self.prefix, program)
        if self.root != Path("/"):
            return os.path.join("/usr/bin", program)
        return shutil.which(program) or program

    def enter(self, directory: Path) -> None:
        """Goes to `directory`, with the root changed. For a new process only."""
        if self.root != Path("/"):
            os.chroot(self.root)
            directory = Path("/") / directory.relative_to(self.root)
        os.chdir(directory)

    def work_directory(self) -> tempfile.TemporaryDirectory:
        """A temporary directory that QEMU can see."""
        within = None if self.root == Path("/") else self.root / "tmp"
        return tempfile.TemporaryDirectory(prefix="qemu-streams-", dir=within)

    @cache
    def offer(self, binary: str) -> Offer | None:
        """What the binary has, or None if there is no such binary."""
        program = self.path(binary)
        if not os.access(self.root / program.lstrip("/"), os.X_OK):
            return None
        nothing = ["-machine", "none", "-nodefaults", "-display", "none"]
        with self.work_directory() as directory:
            with process.start(self, binary, nothing, Path(directory)) as qemu:
                machines = qemu.execute("query-machines")
                capabilities = qemu.execute("query-migrate-capabilities")
                parameters = qemu.execute("query-migrate-parameters")
        names = [machine["name"] for machine in machines]
        names += [machine["alias"] for machine in machines if "alias" in machine]
        known = frozenset(entry["capability"] for entry in capabilities)
        return Offer(qemu.version, frozenset(names), known, frozenset(parameters))

    def missing(self, row: Row) -> str:
        """What the row needs and QEMU here does not have; empty if nothing."""
        offer = self.offer(row.board.binary)
        if offer is None:
            return f"no qemu-system-{row.board.binary}"
        if row.machine_type not in offer.machines:
            return f"no machine {row.machine_type}"
        if offer.version < row.board.since:
            return "needs QEMU " + ".".join(map(str, row.board.since))
        if row.until and offer.version >= row.until:
            return "gone since QEMU " + ".".join(map(str, row.until))
        unknown = [name for name in row.capabilities if name not in offer.capabilities]
        if unknown:
            return f"no capability {unknown[0]}"
        unknown = [name for name, _ in row.parameters if name not in offer.parameters]
        return f"no parameter {unknown[0]}" if unknown else ""
