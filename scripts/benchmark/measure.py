"""One run of a command, several commands in turn, and the page cache between."""

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import BenchError

CHUNK = 8 << 20
WARM_TRIES = 5
CGROUP = Path("/sys/fs/cgroup")
PROT_READ, MAP_SHARED = 1, 1


@dataclass(frozen=True)
class Run:
    """What one run took."""

    seconds: float
    cpu: float = 0.0  # seconds of all threads, in the kernel and outside
    io: dict[str, int] = field(default_factory=dict)  # as /proc/PID/io has it
    anonymous: int = 0  # bytes of memory at the peak, if watched
    parts: dict[str, float] = field(default_factory=dict)  # further seconds


@dataclass(frozen=True)
class Contestant:
    """Something to time. `run` gets an empty directory to write to."""

    name: str
    run: Callable[[Path], Run]
    inputs: tuple[Path, ...] = ()  # files to have in the page cache
    check: Callable[[Path], None] | None = None  # of what the first run wrote


def alternate(contestants: Iterable[Contestant], rounds: int, work: Path) -> dict[str, list[Run]]:
    """Runs each in turn, `rounds` times; gives the runs of each.

    A round before, which is not kept, warms up and is checked. What a run wrote is
    deleted, and what others left dirty is written back, outside of the time.
    """
    contestants = list(contestants)
    runs: dict[str, list[Run]] = {each.name: [] for each in contestants}
    for nth in range(rounds + 1):
        for each in contestants:
            with empty_directory(work) as place:
                for path in each.inputs:
                    warm(path)
                os.sync()
                run = each.run(place)
                if nth > 0:
                    runs[each.name].append(run)
                elif each.check:
                    each.check(place)
    return runs


@contextmanager
def empty_directory(work: Path):
    place = work / "place"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def run(
    command: list,
    place: Path,
    *,
    output: Path | None = None,
    cores: int | None = None,
    group: "Group | None" = None,
    watched: bool = False,
) -> Run:
    """Runs a command in `place`; it fails if the command does.

    `output` takes what it prints; `cores` bounds the cores and threads it has,
    `group` the memory; `watched` looks at its memory all the time, which takes a core.
    """
    environment = os.environ | ({"RAYON_NUM_THREADS": str(cores)} if cores else {})
    with (
        open(output or os.devnull, "wb") as stdout,
        tempfile.TemporaryFile() as stderr,
        on_cores(cores),
    ):
        begin = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=group.enter if group else None,
        )
        anonymous = watch(process.pid) if watched else 0
        # The process stays for a moment, so that its counters can be read.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - begin
        io = counters(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip().splitlines()[-3:]
            name = Path(str(command[0])).name
            raise BenchError(f"{name} ends with {process.returncode}: {' / '.join(said)}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, io, anonymous)


def counters(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def watch(pid: int) -> int:
    """Looks at a process' anonymous memory until it ends: the most that was seen.

    It is looked at some ten thousand times a second; on a machine that does other
    things too, a short peak can go unseen.
    """
    peak, page = 0, os.sysconf("SC_PAGE_SIZE")
    with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            _, resident, shared, *_ = map(int, os.pread(statm.fileno(), 256, 0).split())
            peak = max(peak, resident - shared)
    return peak * page


@contextmanager
def on_cores(count: int | None):
    """Leaves only so many cores to this process and those that it starts."""
    before = os.sched_getaffinity(0)
    if count:
        os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def warm(path: Path) -> None:
    """Has the whole file in the page cache."""
    for _ in range(WARM_TRIES):
        missing = path.stat().st_size - cached(path)
        if missing <= 0:
            return
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass
    raise BenchError(f"the page cache does not keep {missing} bytes of {path.name}: too little memory")


def cool(path: Path) -> None:
    """Has nothing of the file in the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(path: Path) -> int:
    """Bytes of the file that are in the page cache, in whole pages."""
    size, page = path.stat().st_size, os.sysconf("SC_PAGE_SIZE")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    is_there = (ctypes.c_ubyte * (-(-size // page)))()
    with open(path, "rb") as file:
        start = libc.mmap(None, size, PROT_READ, MAP_SHARED, file.fileno(), 0)
    if start == ctypes.c_void_p(-1).value:
        raise BenchError(f"{path.name} cannot be mapped: {os.strerror(ctypes.get_errno())}")
    failed = libc.mincore(start, size, is_there)
    libc.munmap(start, size)
    if failed:
        raise BenchError(f"mincore: {os.strerror(ctypes.get_errno())}")
    # Only the lowest bit says something, and Linux sets no other.
    return bytes(is_there).count(1) * page


class NoGroupError(BenchError):
    """There is no way to limit memory here."""


class Group:
    """A cgroup of its own with a limit of memory, page cache included."""

    def __init__(self, limit: int):
        self._path, limit_file = self._made()
        try:
            (self._path / limit_file).write_text(str(limit))
        except OSError as error:
            self.close()
            raise NoGroupError(f"no memory limit by cgroup here: {error.strerror}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._path.rmdir()

    def enter(self) -> None:
        """Moves this process, a new one, into the group."""
        (self._path / "cgroup.procs").write_text(str(os.getpid()))

    @staticmethod
    def _made() -> tuple[Path, str]:
        """A new group below or beside this process' own, and the file with its limit."""
        for place, limit_file in Group._places():
            for parent in (place, place.parent):
                path = parent / f"ramlift-bench-{os.getpid()}"
                try:
                    path.mkdir()
                except OSError:
                    continue
                if (path / limit_file).exists():
                    return path, limit_file
                path.rmdir()
        raise NoGroupError("no cgroup here that a group with a memory limit can be made in")

    @staticmethod
    def _places() -> Iterator[tuple[Path, str]]:
        """Groups of this process that may limit memory, by either version of cgroups."""
        for line in open("/proc/self/cgroup"):
            _, controllers, group = line.rstrip("\n").split(":", 2)
            if controllers == "":
                yield CGROUP / group.lstrip("/"), "memory.max"
            elif controllers == "memory":
                yield CGROUP / "memory" / group.lstrip("/"), "memory.limit_in_bytes"
