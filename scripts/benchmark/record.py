"""The machine, and the report: what was measured, all of it, and what holds."""

import datetime
import hashlib
import os
import platform
import statistics
import subprocess
from pathlib import Path

from . import guest
from .goals import GOALS, Goal
from .rows import Result, Table
from .session import PROJECT, Session

RECORDS = PROJECT / "benches" / "record"
REPORTING = Path("/sys/module/page_reporting/parameters")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def machine(work: Path) -> list[str]:
    """What the machine is, before anything is measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    return [
        f"CPU: {cpu()}, {len(os.sched_getaffinity(0))} cores",
        f"memory: {memory:.1f} GiB, {available() >> 10} MiB of it available at the start",
        f"kernel: {platform.system()} {platform.release()}",
        f"file system: {file_system(work)}",
        f"transparent huge pages: {HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else 'none'}",
        f"page_reporting at the start: {page_reporting()}",
        f"load at the start: {load}",
    ]


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def available() -> int:
    """KiB of memory that could be had."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def file_system(path: Path) -> str:
    """Type of the file system that a directory is on, and its options."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        own, _, behind = line.partition(" - ")
        if own.split()[2] == wanted:
            return f"{behind.split()[0]} ({own.split()[5]})"
    return "unknown"


def page_reporting() -> str:
    """What the kernel gives back to the host of a virtual machine, if it does."""
    if not REPORTING.exists():
        return "none"
    return ", ".join(f"{path.name} {path.read_text().strip()}" for path in sorted(REPORTING.iterdir()))


def versions(session: Session) -> list[str]:
    """What was measured. Only what was used has been installed or fetched."""
    used = session.__dict__
    lines = [f"ramlift: {first_line(session.ramlift, '--version')}, {session.provenance}"]
    if session.against:
        lines.append(f"other build: {first_line(session.against, '--version')}")
    if "host" in used:
        lines.append(f"QEMU: {guest.version(session.host)}")
    lines.append(f"cp: {first_line('cp', '--version')}")
    lines.append(f"Python: {platform.python_version()}")
    if "script" in used:
        lines.append(f"script: {session.script.name}, {digest(session.script)}")
    return lines


def commit() -> str:
    """The commit that is built, and whether files were changed since."""
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=, with changes"]
    return f"commit {first_line(*command)}"


def first_line(*command) -> str:
    """What a command says of itself; no reason to give up if it does not."""
    try:
        done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return "".join(done.stdout.splitlines()[:1]) or "unknown"


def digest(path: Path) -> str:
    return "SHA-256 " + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def of_row(result: Result, is_short: bool) -> str:
    """One row as text: its tables, its figures, its notes."""
    lines = [f"## {result.number}. {result.title}", ""]
    for table in result.tables:
        lines += [*of_table(table), ""]
    lines += [f"- {figure}" for figure in figures(result, is_short)]
    lines += [f"- {note}" for note in result.notes]
    lines += [f"- skipped: {reason}" for reason in result.skipped]
    lines += [f"- FAILED: {result.failed}"] if result.failed else []
    return "\n".join(lines) + "\n"


def of_table(table: Table) -> list[str]:
    lines = [
        f"{table.caption}:",
        "",
        "| | median | min | max | max / min | CPU | each, in order |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, values in table.values.items():
        least, most = min(values), max(values)
        shown = [table.form(each) for each in (statistics.median(values), least, most)]
        spread = f"{most / least:.2f}" if least > 0 else "-"
        # The unit is beside the median.
        each = " ".join(table.form(value).split(" ")[0] for value in values)
        cpu = table.form(table.cpu[name]) if name in table.cpu else "-"
        lines.append(f"| {name} | {' | '.join(shown)} | {spread} | {cpu} | {each} |")
    return lines


def figures(result: Result, is_short: bool) -> list[str]:
    return [
        f"{goal.what}: {goal.form(result.figures[goal.key])} {verdict(goal, result, is_short)}"
        for goal in GOALS
        if goal.key in result.figures
    ]


def verdict(goal: Goal, result: Result, is_short: bool) -> str:
    bound = goal.bound(is_short)
    if bound is None:
        return "(not judged)"
    holds = bound.holds(result.figures[goal.key])
    return f"({bound.shown(goal.form)}: {'holds' if holds else 'DOES NOT HOLD'})"


def missed(results: list[Result], is_short: bool) -> list[str]:
    """Figures that are not what they shall be."""
    return [
        f"row {goal.key}: {goal.what} is {goal.form(result.figures[goal.key])}, "
        f"and shall be {bound.shown(goal.form)}"
        for result in results
        for goal in GOALS
        if goal.key in result.figures
        and (bound := goal.bound(is_short))
        and not bound.holds(result.figures[goal.key])
    ]


def summary(results: list[Result], is_short: bool) -> str:
    """The table of all figures."""
    lines = [
        f"| row | figure | measured | {'limit' if is_short else 'goal'} | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        if result.failed:
            lines.append(f"| {result.number} | {result.title} | | | FAILED |")
        for goal in GOALS:
            if goal.key not in result.figures:
                continue
            value, bound = result.figures[goal.key], goal.bound(is_short)
            limit = bound.shown(goal.form) if bound else "-"
            said = "-" if bound is None else "holds" if bound.holds(value) else "**missed**"
            lines.append(f"| {goal.key} | {goal.what} | {goal.form(value)} | {limit} | {said} |")
        lines += [f"| {result.number} | {result.title} | | | skipped: {why} |" for why in result.skipped]
    return "\n".join(lines) + "\n"


def keep(text: str) -> Path:
    """Adds a report to the records of this day."""
    today = datetime.date.today().isoformat()
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{today}.md"
    with open(path, "a") as file:
        file.write(f"# {today}\n\n{text}\n")
    return path
