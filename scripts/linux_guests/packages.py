"""Packages of Debian's archive, downloaded and unpacked, never installed.

Those of a foreign architecture come by way of package lists of their own, so
that nothing of the system's changes.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import GuestError

BUSYBOX = "busybox-static"


@dataclass(frozen=True)
class Kernel:
    """A kernel, unpacked below `root`."""

    architecture: str  # Debian's name of it
    root: Path

    @property
    def image(self) -> Path:
        """What boots."""
        return self._only("boot/vmlinuz-*")

    @property
    def release(self) -> str:
        """What `uname -r` says."""
        return self.image.name.removeprefix("vmlinuz-")

    @property
    def vmlinux(self) -> Path:
        """The kernel with its debug symbols."""
        return self._only("usr/lib/debug/boot/vmlinux-*")

    @property
    def busybox(self) -> Path:
        """A shell and its tools, in one file without libraries."""
        return self._only("*bin/busybox")

    def module(self, name: str) -> Path:
        """A module of the kernel."""
        return self._only(f"lib/modules/*/kernel/**/{name}.ko*")

    def _only(self, pattern: str) -> Path:
        found = sorted(path for path in self.root.glob(pattern) if path.is_file())
        if not found:
            raise GuestError(f"{self.root}: no {pattern}")
        return found[0]


def kernel(architecture: str, work: Path) -> Kernel:
    """The archive's kernel for clouds, with busybox and debug symbols.

    That kernel has few modules, so that its symbols are a third of the others'.
    """
    unpacked = Kernel(architecture, work / f"kernel-{architecture}")
    if unpacked.root.exists():
        return unpacked
    apt = _Apt(architecture, work / f"apt-{architecture}")
    image = apt.dependency(f"linux-image-cloud-{architecture}")
    part = work / f"kernel-{architecture}.part"
    part.mkdir(parents=True, exist_ok=True)
    for package in (image, f"{image}-dbg", BUSYBOX):
        subprocess.run(["dpkg-deb", "-x", apt.download(package), part], check=True)
    part.rename(unpacked.root)
    return unpacked


class _Apt:
    """The archive's packages of one architecture."""

    def __init__(self, architecture: str, work: Path):
        self._work = work
        self._architecture = architecture
        for name in ("lists/partial", "cache/archives/partial", "parts"):
            (work / name).mkdir(parents=True, exist_ok=True)
        (work / "status").touch()
        (work / "sources.list").write_text("".join(sorted(_source_lines())))
        self._run("update")

    def dependency(self, package: str) -> str:
        """The kernel image that a package without content stands for."""
        shown = self._run("--no-all-versions", "show", package, tool="apt-cache")
        found = re.search(r"^Depends: (linux-image-\S+)", shown, re.MULTILINE)
        if not found:
            raise GuestError(f"{package} depends on no kernel")
        return found[1]

    def download(self, package: str) -> Path:
        """Downloads a package."""
        self._run("download", package)
        return next(self._work.glob(f"{package}_*.deb"))

    def _run(self, *arguments: str, tool: str = "apt-get") -> str:
        options = {
            "APT::Architecture": self._architecture,
            "APT::Architectures::": self._architecture,
            "Dir::Etc::SourceList": self._work / "sources.list",
            "Dir::Etc::SourceParts": self._work / "parts",
            "Dir::State::Lists": self._work / "lists",
            "Dir::State::Status": self._work / "status",
            "Dir::Cache": self._work / "cache",
            "APT::Sandbox::User": "",
        }
        command = [tool, "-qq", *(f"-o{key}={value}" for key, value in options.items())]
        done = subprocess.run(
            [*command, *arguments], cwd=self._work, check=True, capture_output=True, text=True
        )
        return done.stdout


def _source_lines() -> set[str]:
    """Lines of sources.list, from the system's own sources of Debian."""
    form = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Identifier: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = (line.removeprefix("Debian ") for line in listed.splitlines() if line.startswith("Debian "))
    return {f"deb {line}\n" for line in lines}
