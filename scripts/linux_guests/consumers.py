"""Debuggers and analysts' tools, and what each must find in our files.

Each check is given a guest and has it extracted as its tool wants it. It returns
a few words on what was found, and raises GuestError if that is not all.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import GuestError
from .initramfs import HOSTNAME, SLEEPERS

SECONDS = 600
PACKAGES = ("drgn", "volatility3", "leechcorepyc", "pyelftools")
PROGRAMS = {"crash": "crash", "makedumpfile": "makedumpfile", "gdb-multiarch": "gdb-multiarch"}
HERE = Path(__file__).resolve().parent


class NotForThis(Exception):
    """The tool does not read such guests, whoever wrote the file; with the reason."""


@dataclass(frozen=True)
class Tools:
    """What the checks run: ours, and the consumers."""

    ramlift: Path
    work: Path
    crash_root: Path  # where crash is newer than the system's, or /

    def install(self) -> None:
        """Installs what is missing, through the clients of package registries."""
        missing = [package for name, package in PROGRAMS.items() if not shutil.which(name)]
        if missing:
            command = ["apt-get", "install", "-qy", "--no-install-recommends", *missing]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.work.mkdir(parents=True, exist_ok=True)
        if not self._venv.exists():
            subprocess.run(["python3", "-m", "venv", self._venv], check=True)
            pip = self._venv / "bin/pip"
            subprocess.run([pip, "install", "-q", *PACKAGES], check=True)

    @property
    def _venv(self) -> Path:
        return self.work / "venv"

    def python(self, name: str) -> str:
        """A program of the Python environment."""
        return str(self._venv / "bin" / name)


@dataclass(frozen=True)
class Guest:
    """A guest, and where its files are."""

    name: str
    entry: dict
    stream: Path

    @property
    def is_x86(self) -> bool:
        return self.entry["architecture"] == "amd64"

    @property
    def vmlinux(self) -> str:
        return self.entry["vmlinux"]

    @property
    def qemu_dump(self) -> Path:
        """QEMU's own dump of guest-physical memory, of the same instant."""
        return self.stream.with_suffix(".qemu.elf")

    def extract(self, tools: Tools, form: str, *options: str) -> Path:
        """Has guest-physical memory written; each file is made once."""
        name = ".".join([self.stream.parent.name, self.name, *options, form]).replace("--", "")
        path = tools.work / name
        if not path.exists():
            command = ["extract", "-q", "--format", form, *options, "-o", path, self.stream]
            run([tools.ramlift, *command])
        return path

    def info(self, tools: Tools) -> dict:
        """What we say of the guest."""
        return json.loads(run([tools.ramlift, "info", "--json", self.stream]))["guest"]["linux"]


def run(command: list, text: str = "", **options) -> str:
    """Runs a program, and returns what it prints."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            **options,
        )
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{words[0]} takes more than {SECONDS} s") from error
    if done.returncode != 0:
        raise GuestError(f"{words[0]} ended with {done.returncode}: {done.stdout[-400:]}")
    return done.stdout


def require(holds: bool, what: str, said: str) -> None:
    if not holds:
        raise GuestError(f"{what}: {said[-400:]}")


def info(guest: Guest, tools: Tools) -> str:
    """Our own words on the guest."""
    linux = guest.info(tools)
    require(linux is not None, "no kernel found", "")
    said = json.dumps(linux)
    require(linux["release"] == guest.entry["release"], "another release", said)
    require(linux["nodename"] == HOSTNAME, "another host", said)
    require(f"Linux version {linux['release']} " in (linux["banner"] or ""), "no banner", said)
    require(linux["vmcoreinfo"]["confirmed_by"] == "kernel", "not confirmed", said)
    if guest.is_x86 or not guest.entry["kaslr"]:
        require(bool(linux["kaslr_offset"]) == guest.entry["kaslr"], "KASLR", said)
    return f"KASLR offset {linux['kaslr_offset']:#x}"


def cores(guest: Guest, tools: Tools) -> dict:
    """What readers of the kernel's dumps open: an ELF core, and compressed dumps."""
    compressed = {f"kdump {name}": ("kdump", "--compress", name) for name in ("zlib", "zstd")}
    forms = {"elf": ("elf",)} | compressed
    return {name: guest.extract(tools, *form) for name, form in forms.items()}


def crash(guest: Guest, tools: Tools) -> str:
    """Processes, and what each CPU was doing, with no option but the two files."""
    if not guest.is_x86:
        raise NotForThis("the package reads guests of its own architecture")
    return same({name: crash_of(core, guest, tools) for name, core in cores(guest, tools).items()})


def crash_of(core: Path, guest: Guest, tools: Tools) -> str:
    vmlinux = Path(guest.vmlinux)
    root = tools.crash_root
    enter = []
    if root != Path("/"):
        place = root / "tmp/consumers"
        place.mkdir(exist_ok=True)
        for path in (core, vmlinux):
            if not (place / path.name).exists():
                run(["cp", "--sparse=always", path, place / path.name])
        enter = ["chroot", root]
        core, vmlinux = (Path("/tmp/consumers") / path.name for path in (core, vmlinux))
    try:
        said = run([*enter, "crash", "-s", vmlinux, core], "ps\nbt -a\nquit\n")
    finally:
        if enter:
            (root / str(core).lstrip("/")).unlink()
    processes = re.findall(r"^>?\s+\d+\s+\d+\s+\d+\s+[0-9a-f]{16}\s.*\s(\S+)$", said, re.MULTILINE)
    sleepers = processes.count("busybox")
    require(sleepers >= SLEEPERS, f"{sleepers} of {SLEEPERS} processes of the guest", said)
    stacks = re.findall(r"^PID: \d+ .*CPU: (\d+)", said, re.MULTILINE)
    require(len(stacks) == guest.entry["vcpus"], "backtraces of other CPUs", said)
    failed = "invalid" in said or "read of stack" in said
    require(not failed, "backtraces", said)
    return f"{len(processes)} processes, {len(stacks)} CPUs"


def same(seen: dict) -> str:
    """What was found in each file, which has to be the same."""
    found = set(seen.values())
    require(len(found) == 1, "not the same in each file", json.dumps(seen))
    return f"{found.pop()} ({', '.join(seen)})"


DRGN = """
from drgn.helpers.linux import for_each_task
names = [task.comm.string_().decode() for task in for_each_task(prog)]
print(prog["init_uts_ns"].name.nodename.string_().decode(), names.count("busybox"), len(names))
"""


def drgn(guest: Guest, tools: Tools) -> str:
    """Tasks, with no option but the two files."""
    script = tools.work / "tasks.py"
    script.write_text(DRGN)
    seen = {}
    for name, core in cores(guest, tools).items():
        said = run([tools.python("drgn"), "-q", "-c", core, "-s", guest.vmlinux, script])
        found = re.search(rf"^{HOSTNAME} (\d+) (\d+)$", said, re.MULTILINE)
        require(bool(found) and int(found[1]) >= SLEEPERS, f"{name}: other tasks", said)
        seen[name] = f"{found[2]} tasks"
    return same(seen)


def gdb(guest: Guest, tools: Tools) -> str:
    """The kernel's name by its symbol, through virtual addresses."""
    core = guest.extract(tools, "elf", "--vaddr")
    offset = guest.info(tools)["kaslr_offset"]
    steps = [f"core-file {core}", f"symbol-file -o {offset:#x} {guest.vmlinux}"]
    # The second is only in the memory that the kernel has in a row.
    steps += ["output init_uts_ns.name.nodename", "echo \\n"]
    steps += ["output init_task.tasks.next != 0 && *(char*)init_task.tasks.next != 0"]
    steps += ["echo \\n", "info threads"]
    words = [word for step in steps for word in ("-ex", step)]
    said = run(["gdb-multiarch", "-nx", "-batch", *words])
    require(f'"{HOSTNAME}"' in said, "no name", said)
    require("Cannot access memory" not in said, "memory is missing", said)
    threads = len(re.findall(r"^[* ] \d+ ", said, re.MULTILINE))
    require(threads == guest.entry["vcpus"], "other threads", said)
    return f"init_uts_ns, {threads} threads"


def makedumpfile(guest: Guest, tools: Tools) -> str:
    """Takes the file, filters it, and finds the kernel's log."""
    if not guest.is_x86:
        raise NotForThis("the package reads guests of its own architecture")
    seen = {}
    for name, core in cores(guest, tools).items():
        if name == "kdump zstd" and not re.search(r"zstd\s+enabled", run(["makedumpfile", "-v"])):
            continue
        out, log = tools.work / "filtered", tools.work / "log"
        run(["makedumpfile", "-f", "-l", "-d", "31", core, out])
        run(["makedumpfile", "-f", "--dump-dmesg", core, log])
        require("Linux version " in log.read_text(errors="replace"), f"{name}: no log", "")
        seen[name] = f"{out.stat().st_size >> 20} MiB filtered"
    return same(seen)


def volatility(guest: Guest, tools: Tools) -> str:
    """Banners and processes in each format."""
    symbols = tools.work / "symbols"
    made = symbols / "linux" / f"{guest.entry['release']}.json"
    if guest.is_x86 and not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        run([tools.python("python"), HERE / "symbols.py", guest.vmlinux, made])
    found = []
    for form in ("elf", "lime", "raw"):
        # Its cache of symbols is one for all runs of a user: ours has its own.
        cache = tools.work / "cache"
        cache.mkdir(exist_ok=True)
        command = [tools.python("vol"), "-q", "--cache-path", cache]
        command += ["-s", symbols, "-f", guest.extract(tools, form)]
        said = run([*command, "banners"])
        require(f"Linux version {guest.entry['release']} " in said, f"{form}: no banner", said)
        if guest.is_x86 and "la57" not in guest.name:
            said = run([*command, "linux.pslist"])
            count = len(re.findall(r"\sbusybox\s", said))
            require(count >= SLEEPERS, f"{form}: other processes", said)
            found.append(str(len(re.findall(r"^0x", said, re.MULTILINE))))
    return f"{', '.join(found)} processes" if found else "banners"


LEECHCORE = """
import struct, sys, leechcorepyc
core = leechcorepyc.LeechCore("file://" + sys.argv[1])
ours, truth = open(sys.argv[1], "rb"), open(sys.argv[2], "rb")
count = 0
def loads(file):
    head = file.read(64)
    (place,), (count,) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<H", head, 56)
    file.seek(place)
    heads = [struct.unpack("<IIQQQQQQ", file.read(56)) for _ in range(count)]
    return [(head[4], head[2], head[5]) for head in heads if head[0] == 1]
truths = loads(truth)
for start, _, length in loads(ours):
    for at in range(start + (1 << 20), start + length - 4096, max(4096, length // 512 & ~4095)):
        where = next(((a, o) for a, o, n in truths if a <= at < a + n), None)
        truth.seek(where[1] + at - where[0])
        if core.read(at, 4096) != truth.read(4096):
            sys.exit(f"other bytes at {at:#x}")
        count += 1
print(count, len(core.memmap))
"""


def leechcore(guest: Guest, tools: Tools) -> str:
    """MemProcFS's reader has the bytes that QEMU's own dump has."""
    script = tools.work / "leechcore.py"
    script.write_text(LEECHCORE)
    core = guest.extract(tools, "elf")
    said = run([tools.python("python"), script, core, guest.qemu_dump])
    count, ranges = said.split()[-2:]
    return f"{ranges} ranges, {count} pages"


CHECKS = {
    "info": info,
    "crash": crash,
    "drgn": drgn,
    "gdb": gdb,
    "makedumpfile": makedumpfile,
    "volatility3": volatility,
    "LeechCore": leechcore,
}
