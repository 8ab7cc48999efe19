"""Reads files of guest-physical memory by the layers of volatility3 and by LeechCore.

Runs in the environment that has these. Of the directory that it is given, `truth`
has the bytes of the ranges of `ranges.json`, one behind the other. Ends with an
error at the first byte that is another.
"""

import json
import sys
from pathlib import Path

import leechcorepyc
from volatility3.framework import contexts
from volatility3.framework.layers import avml, elf, lime, physical

LAYERS = {
    "elf": elf.Elf64Layer,
    "lime": lime.LimeLayer,
    "avml": avml.AVMLLayer,
    "raw": None,
}
PIECE = 1 << 20


def main() -> None:
    place = Path(sys.argv[1])
    ranges = json.loads((place / "ranges.json").read_text())
    truth = (place / "truth").read_bytes()
    readers = {f"volatility3 {form}": layer(place / f"memory.{form}") for form in LAYERS}
    # Of the formats of these it knows ELF cores and raw memory.
    for form in ("elf", "raw"):
        readers[f"LeechCore {form}"] = leechcore(place / f"memory.{form}")
    for name, read in readers.items():
        done = 0
        for start, length in ranges:
            for at in range(0, length, PIECE):
                count = min(PIECE, length - at)
                if read(start + at, count) != truth[done : done + count]:
                    sys.exit(f"{name}: other bytes from {start + at:#x} on")
                done += count
    if done != len(truth):
        sys.exit("the ranges are not those of the truth")
    print(f"{done} bytes in {len(ranges)} ranges, by {', '.join(readers)}")


def layer(path: Path):
    context = contexts.Context()
    form = path.suffix[1:]
    context.config["file.location"] = path.as_uri()
    layer = physical.FileLayer(context, "file", "file")
    if LAYERS[form]:
        context.add_layer(layer)
        context.config["memory.base_layer"] = "file"
        layer = LAYERS[form](context, "memory", "memory")
    # What AVML leaves out is zero.
    return lambda at, count: layer.read(at, count, pad=form == "avml")


def leechcore(path: Path):
    core = leechcorepyc.LeechCore(f"file://{path}")
    return core.read


if __name__ == "__main__":
    main()
