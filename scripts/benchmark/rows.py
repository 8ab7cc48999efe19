"""The rows of the table: what is measured against what.

A row fills a `Result`: a table with every repeat, figures that are judged by
goals.py, and notes. What each needs is made by the session when it is asked for.
"""

import collections
import mmap
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import BenchError, guest, measure, streams
from .goals import mebibytes
from .measure import Contestant, Run
from .session import EXTRACT, IMAGE, OTHER, OUT, Session, image_equals, image_is
from .streams import PAGE

MIB = 1 << 20
GIB = 1 << 30
DENSE_RECORDS = 1 << 21
ZERO_RECORD = struct.Struct(">QB")
WORST_PAGES = 1 << 18
HUGE = 100 * GIB
HUGE_DATA = 256 * MIB
MEMORY_ROUNDS = 3
# 4 GiB to 1 TiB of guest memory.
GROWTH_PAGES = (1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28)
SWEEPS = 64
INFO = ("info",)


def milliseconds(value: float) -> str:
    return f"{value * 1e3:.1f} ms"


def seconds(value: float) -> str:
    return f"{value:.3f} s"


@dataclass
class Table:
    """Values by what they are of, in the order in which they were measured."""

    caption: str
    form: Callable[[float], str]
    values: dict[str, list[float]]
    cpu: dict[str, float] = field(default_factory=dict)  # medians, for some of them


@dataclass
class Result:
    """What a row gave."""

    number: int
    title: str
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)  # by the goal's key
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: str = ""

    def times(self, caption: str, runs: dict[str, list[Run]], form=seconds) -> dict[str, float]:
        """Keeps the times of runs; gives their medians."""
        values = {name: [run.seconds for run in some] for name, some in runs.items()}
        for name, some in runs.items():
            for part in some[0].parts:
                values[f"{name}, {part}"] = [run.parts[part] for run in some]
        medians = self.table(caption, values, form)
        self.tables[-1].cpu = cpu_medians(runs)
        for name in medians:
            if other := medians.get(name + OTHER):
                self.notes.append(f"{name}: {medians[name] / other:.3f} of the other build's median")
        return medians

    def table(self, caption: str, values: dict[str, list[float]], form) -> dict[str, float]:
        self.tables.append(Table(caption, form, values))
        return {name: statistics.median(some) for name, some in values.items()}


def cpu_medians(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Seconds that all threads had a core, which other load hardly changes."""
    medians = {name: statistics.median(run.cpu for run in some) for name, some in runs.items()}
    return {name: seconds for name, seconds in medians.items() if seconds}


def against_cp(session: Session, result: Result) -> None:
    stream, image = session.guest
    runs = session.alternate(session.extract(stream, image_equals(image)), session.copy(image))
    medians = result.times(f"QEMU's stream, {size_of(image)} of random memory", runs)
    cpu = cpu_medians(runs)
    result.figures["1"] = medians["extract"] / medians["cp"]
    result.figures["1 least"] = min(result.figures["1"], cpu["extract"] / cpu["cp"])
    result.figures["1 written"] = written(runs["extract"], image.stat().st_size)


def against_qemu(session: Session, result: Result) -> None:
    stream, image = session.guest
    load = lambda place: guest.load(session.host, session.size, stream, place)
    loading = [Contestant("QEMU", load, (stream,))]
    runs = session.alternate(session.extract(stream, image_equals(image)), loading)
    medians = result.times(f"QEMU's stream, {size_of(image)} of random memory", runs)
    result.figures["2"] = medians["extract"] / medians["QEMU"]


def against_script(session: Session, result: Result) -> None:
    stream, truth = session.data
    script = session.run_script("script", "-f", stream, "-x", inputs=(stream,))
    runs = session.alternate(session.extract(stream, image_is(truth)), script)
    medians = result.times(f"{mebibytes(session.part)} of data pages, one pass", runs)
    result.figures["3"] = medians["script"] / medians["extract"]
    cpu = cpu_medians(runs)
    result.figures["3 CPU"] = cpu["script"] / cpu["extract"]


def zeros_and_passes(session: Session, result: Result) -> None:
    most_written, allocated = [], []
    for key, write in (("half", streams.half), ("passes", streams.passes)):
        stream = session.work / f"{key}.qevm"
        truth = write(stream, session.part // PAGE)
        needed, blocks = truth.data_bytes(), []

        def check(place: Path) -> None:
            truth.check(place / IMAGE)
            blocks.append((place / IMAGE).stat().st_blocks * 512)

        runs = session.alternate(session.extract(stream, check), session.copy(session.image))
        medians = result.times(f"{key}, {mebibytes(needed)} of pages that are not zero", runs)
        result.figures[f"4 {key}"] = medians["extract"] / medians["cp"]
        most_written.append(written(runs["extract"], needed))
        allocated.append(blocks[0] / needed)
        stream.unlink()
    result.figures |= {"4 written": max(most_written), "4 holes": max(allocated)}


def written(runs: list[Run], needed: int) -> float:
    """The most bytes that a run has written, for each that it had to."""
    ratios = [run.io["wchar"] / needed for run in runs]
    if min(ratios) < 1:
        raise BenchError("less was written than there is: not by calls that the kernel counts")
    return max(ratios)


def encodings(session: Session, result: Result) -> None:
    stream, truth = session.data
    contestants = [session.extract(stream, image_is(truth), "data pages")]
    deflated, made = session.work / "deflated", [session.work / "deflated"]
    compress = lambda path, page_count: streams.compressed(path, deflated, page_count)
    for name, write in (("mapped-ram", streams.mapped), ("xbzrle", streams.xbzrle), ("compressed", compress)):
        made.append(session.work / f"{name}.qevm")
        truth = write(made[-1], session.part // PAGE)
        contestants.append(session.extract(made[-1], image_is(truth), name))
    contestants.append([Contestant("inflate", lambda place: inflate(session.inflate, deflated, place), (deflated,))])
    runs = session.alternate(*contestants)
    medians = result.times(f"{mebibytes(session.part)} of guest memory each", runs)
    result.figures["5 mapped-ram"] = medians["mapped-ram"] / medians["data pages"]
    result.figures["5 xbzrle"] = medians["xbzrle"] / medians["data pages"]
    result.figures["5 compressed"] = medians["compressed"] / (medians["inflate"] + medians["data pages"])
    result.notes.append(f"compressed: {medians['compressed'] / medians['inflate']:.2f} of inflating alone")
    for path in made:
        path.unlink()


def inflate(program: Path, deflated: Path, place: Path) -> Run:
    """The pages inflated and nothing else; the program takes the time itself."""
    measure.run([program, deflated], place, output=place / OUT)
    return Run(float((place / OUT).read_text()))


def index(session: Session, result: Result) -> None:
    stream, truth = session.data
    dense = session.work / "dense.qevm"
    streams.fills(dense, DENSE_RECORDS, [range(DENSE_RECORDS)])
    contestants = [
        session.ramlifts("info, one core", ["info", stream], stream, cores=1),
        session.ramlifts("info, two cores", ["info", stream], stream, cores=2),
        session.ramlifts("start alone", ["--version"], cores=1),
        [Contestant("touch", lambda _: touch(stream, PAGE + 8), (stream,))],
        session.ramlifts("info, zero pages, one core", ["info", dense], dense, cores=1),
        [Contestant("unpack", lambda _: unpack(dense), (dense,))],
    ]
    if session.cores < 2:
        del contestants[1]
        result.skipped.append("two cores: there is one")
    runs = session.alternate(*contestants)
    caption = f"{truth.page_count} records of data pages, {DENSE_RECORDS} of zero pages; in the page cache, not mapped"
    medians = result.times(caption, runs, milliseconds)
    start, nanosecond = medians["start alone"], 1e-9 * truth.page_count
    cpu = cpu_medians(runs)
    result.figures["6 one"] = medians["info, one core"] / nanosecond
    if session.cores >= 2:
        result.figures["6 two"] = medians["info, two cores"] / nanosecond
    result.figures["6 touch"] = (cpu["info, one core"] - cpu["start alone"]) / cpu["touch"]
    result.figures["6 dense"] = (cpu["info, zero pages, one core"] - cpu["start alone"]) / cpu["unpack"]
    result.notes.append(f"the start of the process is {start / nanosecond:.1f} ns of each record")
    dense.unlink()


def touch(path: Path, stride: int) -> Run:
    """Maps a file and looks at one byte each `stride`: what an index cannot do without."""
    return over_map(path, lambda mapped: mapped[::stride])


def unpack(path: Path) -> Run:
    """Unpacks as many records of zero pages as Python does it fastest, and keeps none."""

    def look(mapped: mmap.mmap) -> None:
        with memoryview(mapped) as view, view[: len(view) // ZERO_RECORD.size * ZERO_RECORD.size] as records:
            collections.deque(ZERO_RECORD.iter_unpack(records), maxlen=0)

    return over_map(path, look)


def over_map(path: Path, look: Callable[[mmap.mmap], object]) -> Run:
    with measure.on_cores(1), open(path, "rb") as file:
        begin, cpu = time.perf_counter(), time.process_time()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            look(mapped)
        return Run(time.perf_counter() - begin, time.process_time() - cpu)


def cold(session: Session, result: Result) -> None:
    stream, _ = session.data
    size, limit = stream.stat().st_size, max(session.part // 4, 64 * MIB)
    command = [session.ramlift, *EXTRACT, stream]

    def read(group: measure.Group | None) -> list[float]:
        runs = [cold_run(session, command, stream, group) for _ in range(MEMORY_ROUNDS)]
        result.times("extract, nothing in the page cache", {"extract": runs})
        return [run.io["read_bytes"] for run in runs]

    try:
        with measure.Group(limit) as group:
            result.notes.append(f"memory limited to {mebibytes(limit)}, the page cache included")
            values = read(group)
        result.figures["7"] = max(values) / size
    except measure.NoGroupError as reason:
        result.skipped.append(f"not judged, with all memory instead of too little: {reason}")
        values = read(None)
    result.table(f"read from disk, of {mebibytes(size)}", {"extract": values}, mebibytes)
    if min(values) < size * 0.98:
        raise BenchError("less was read than there is: the page cache was not empty")


def cold_run(session: Session, command: list, stream: Path, group=None) -> Run:
    with measure.empty_directory(session.work) as place:
        measure.cool(stream)
        return measure.run(command, place, group=group)


def memory(session: Session, result: Result) -> None:
    stream, _ = session.guest
    ascending = peaks(session, stream)
    result.figures["8 ascending"] = max(ascending)
    measured = {"QEMU's stream": ascending} | worst_order(session, result) | claims(session, result)
    result.table("peak of anonymous memory", measured, mebibytes)


def worst_order(session: Session, result: Result) -> dict[str, list[float]]:
    """Orders in which no two records make one extent, beside the same pages in order."""
    count, data_count = max(session.size // PAGE, WORST_PAGES), session.part // PAGE
    zeros = lambda *orders: lambda path: streams.fills(path, count, orders)
    writers = {
        "zero pages, ascending": zeros(range(count)),
        "zero pages, descending": zeros(range(count - 1, -1, -1)),
        "zero pages, twice ascending": zeros(range(count), range(count)),
        "zero pages, twice random": zeros(streams.shuffled(count, 1), streams.shuffled(count, 2)),
        "data pages, ascending": lambda path: streams.data(path, data_count),
        "data pages, random": lambda path: streams.scattered(path, data_count),
    }
    measured, stream = {}, session.work / "order.qevm"
    for name, write in writers.items():
        write(stream)
        # Zero pages need no buffers; with data pages, their number varies.
        measured[name] = peaks(session, stream, EXTRACT if name.startswith("zero") else INFO)
    stream.unlink()
    names, per_page = list(measured), []
    for base, worst, pages in zip(names[::2], names[1::2], (count, count, data_count), strict=True):
        more = (max(measured[worst]) - max(measured[base])) / pages
        per_page.append(more)
        result.notes.append(f"{worst}: {more:.1f} bytes a page more than {base}")
    result.figures["8 worst"] = max(per_page)
    return measured


def claims(session: Session, result: Result) -> dict[str, list[float]]:
    """The same few pages, of blocks that say they are small and large."""
    measured, stream = {}, session.work / "claim.qevm"
    for name, claimed in {"1 GiB claimed": GIB, "1 TiB claimed": 1024 * GIB}.items():
        streams.claim(stream, claimed // PAGE, 16)
        measured[name] = peaks(session, stream)
    stream.unlink()
    small, large = (max(values) for values in measured.values())
    result.figures["8 claimed"] = max(large - small, 0)
    return measured


def peaks(session: Session, stream: Path, arguments: tuple[str, ...] = EXTRACT) -> list[float]:
    """Peaks of memory while a stream is read."""
    command = [session.ramlift, *arguments, stream]
    measured = []
    for _ in range(MEMORY_ROUNDS):
        with measure.empty_directory(session.work) as place:
            measured.append(measure.run(command, place, watched=True).anonymous)
    return measured


def huge(session: Session, result: Result) -> None:
    stream, size = session.work / "huge.qevm", HUGE
    streams.sparse_mapped(stream, size // PAGE, HUGE_DATA // PAGE)
    runs, looked_at = [], []
    for _ in range(session.rounds):
        runs.append(cold_run(session, [session.ramlift, "state", stream], stream))
        looked_at.append(measure.cached(stream))
    stream.unlink()
    caption = f"mapped-ram of {size / GIB:.0f} GiB, {mebibytes(HUGE_DATA)} of it data, the others holes; cold"
    result.times(caption, {"state": runs}, milliseconds)
    read = [run.io["read_bytes"] for run in runs]
    looks = {"read from disk": read, "in the page cache afterwards, holes too": looked_at}
    result.table("bytes", looks, mebibytes)
    result.figures["9"] = max(looked_at)


def devices(session: Session, result: Result) -> None:
    stream = guest.many_devices(session.host, session.directory("devices"))
    runs = session.alternate(
        session.ramlifts("state", ["state", stream], stream),
        session.run_script("script", "-f", stream, "-d", "state", inputs=(stream,)),
        session.ramlifts("start of ramlift", ["--version"]),
        session.run_script("start of the script", "--help"),
    )
    medians = result.times(f"QEMU's stream of many devices, {size_of(stream)}", runs, milliseconds)
    result.figures["10"] = medians["script"] / medians["state"]
    script = medians["script"] - medians["start of the script"]
    state = medians["state"] - medians["start of ramlift"]
    result.notes.append(f"less start: {script * 1e3:.1f} ms and {state * 1e3:.1f} ms, {script / state:.1f} times")


def growth(session: Session, result: Result) -> None:
    """How time and memory go with pages, passes and their order."""
    stream, least = session.work / "growth.qevm", GROWTH_PAGES[0]
    shapes = {f"{count * PAGE / GIB:.0f} GiB": (count, 1, 1) for count in GROWTH_PAGES}
    shapes |= {f"{least * PAGE / GIB:.0f} GiB, {passes} passes": (least, passes, 1) for passes in (2, 4, 8)}
    shapes |= {f"{count * PAGE / GIB:.0f} GiB, in no order": (count, 1, SWEEPS) for count in GROWTH_PAGES[:3]}
    times, anonymous = {}, {}
    for name, (count, passes, sweeps) in shapes.items():
        streams.swept(stream, count, passes, sweeps)
        info = session.ramlifts("info", ["info", stream], stream)
        times[name] = [run.seconds for run in session.alternate(info)["info"]]
        anonymous[name] = peaks(session, stream, INFO)
        seconds_a_record = statistics.median(times[name]) / (count * passes)
        bytes_a_page = statistics.median(anonymous[name]) / count
        result.notes.append(f"{name}: {seconds_a_record * 1e9:.1f} ns a record, {bytes_a_page:.2f} bytes a page")
    stream.unlink()
    result.table("info, zero pages alone", times, seconds)
    result.table("peak of anonymous memory", anonymous, mebibytes)
    result.figures["11"] = max(statistics.median(anonymous[name]) / shapes[name][0] for name in shapes)


def size_of(path: Path) -> str:
    return mebibytes(path.stat().st_size)


@dataclass(frozen=True)
class Row:
    title: str
    measure: Callable[[Session, Result], None]


ROWS = {
    1: Row("extract against cp", against_cp),
    2: Row("extract against QEMU loading", against_qemu),
    3: Row("extract against QEMU's script", against_script),
    4: Row("zero pages, and pages sent again", zeros_and_passes),
    5: Row("other encodings against data pages", encodings),
    6: Row("the index pass", index),
    7: Row("each byte read once", cold),
    8: Row("anonymous memory", memory),
    9: Row("state of a huge stream", huge),
    10: Row("state against QEMU's script", devices),
    11: Row("growth with the guest", growth),
}

SHORT_ROWS = (1, 3, 6, 8)
