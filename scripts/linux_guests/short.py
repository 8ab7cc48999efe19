"""Files of guest-physical memory, read back by readers of others, byte by byte.

What must be in them is known without ramlift: the manifest of tests/data has the
SHA-256 of each RAM block as QEMU held it, so the images of the blocks are held
against that first. `ramlift layout` then says where their bytes are.
"""

import ctypes.util
import hashlib
import importlib.util
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import GuestError
from .consumers import run

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "tests/data"
# Firmware shown over RAM; a PC without that; a board whose RAM is not at 0.
# LeechCore opens nothing that is shorter than 16 MiB.
STREAMS = ("q35-10.0-paused", "microvm-10.0", "aarch64-virt-10.0")
FORMS = ("elf", "lime", "raw", "avml")
# What is tried is what was tried before: no release of theirs fails ours.
PACKAGES = ("leechcorepyc==2.23.3", "pefile==2024.8.26", "volatility3==2.28.2")
# What the system has to have; volatility3 looks there for its snappy.
SYSTEM = {
    "libsnappy1v5": lambda: ctypes.util.find_library("snappy"),
    "python3-venv": lambda: importlib.util.find_spec("ensurepip"),
    "zstd": lambda: shutil.which("zstd"),
}


def check(ramlift: Path, work: Path) -> int:
    """Prints what was read by what, and tells by its result whether all is as it must be."""
    try:
        python = install(work)
        for name in STREAMS:
            with tempfile.TemporaryDirectory(dir=work) as place:
                memory(ramlift, name, Path(place))
                print(f"{name}: {run([python, HERE / 'readers.py', place]).strip()}", flush=True)
    except (GuestError, OSError, subprocess.CalledProcessError) as error:
        print(f"failed: {error}")
        return 1
    return 0


def install(work: Path) -> Path:
    """An environment with the readers."""
    work.mkdir(parents=True, exist_ok=True)
    missing = [package for package, is_there in SYSTEM.items() if not is_there()]
    if missing:
        sudo = ["sudo"] if shutil.which("sudo") else []
        run([*sudo, "apt-get", "update", "-q"])
        run([*sudo, "apt-get", "install", "-qy", "--no-install-recommends", *missing])
    venv = work / "readers"
    if not (venv / "done").exists():
        run(["python3", "-m", "venv", "--clear", venv])
        # Wheels alone: nothing is built here.
        run([venv / "bin/pip", "install", "-q", "--only-binary=:all:", *PACKAGES])
        (venv / "done").touch()
    return venv / "bin/python"


def memory(ramlift: Path, name: str, place: Path) -> None:
    """Has a stream extracted in each format, and puts what must be in them beside."""
    stream, blocks = place / "stream", place / "blocks"
    run(["zstd", "-dqf", "--long=27", DATA / f"{name}.zst", "-o", stream])
    run([ramlift, "extract", "-q", "-o", blocks, stream])
    images = {}
    for block in json.loads((blocks / "manifest.json").read_text())["blocks"]:
        images[block["idstr"]] = (blocks / block["file"]).read_bytes()
    for idstr, truth in json.loads((DATA / "manifest.json").read_text())[name]["blocks"].items():
        if hashlib.sha256(images[idstr]).hexdigest() != truth["sha256"]:
            raise GuestError(f"{name}: {idstr} is not what QEMU held")
    ranges = []
    with open(place / "truth", "wb") as out:
        for region in json.loads(run([ramlift, "layout", "--json", stream]))["regions"]:
            start, length = region["offset"], region["length"]
            out.write(images[region["idstr"]][start : start + length])
            ranges.append([region["address"], length])
    (place / "ranges.json").write_text(json.dumps(ranges))
    for form in FORMS:
        run([ramlift, "extract", "-q", "--format", form, "-o", place / f"memory.{form}", stream])
