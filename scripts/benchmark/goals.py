"""The table of what shall hold, by row.

`full` is the goal. `short` is the limit of the short form, which runs at small
sizes on machines that do other things too: loose enough for their noise, tight
enough that doing the row's work twice fails. So it judges what other load hardly
changes: CPU time, of all threads, and memory. None: the figure is given, and not
judged.
"""

from collections.abc import Callable
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Bound:
    """A limit from above, or from below."""

    limit: float
    is_lowest: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.is_lowest else value <= self.limit

    def shown(self, form: Callable[[float], str]) -> str:
        return f"{'>=' if self.is_lowest else '<='} {form(self.limit)}"


def at_most(limit: float) -> Bound:
    return Bound(limit)


def at_least(limit: float) -> Bound:
    return Bound(limit, is_lowest=True)


@dataclass(frozen=True)
class Goal:
    """One figure of a row, and what it shall be."""

    key: str  # the number of the row, and a word if it has several figures
    what: str
    form: Callable[[float], str]
    full: Bound | None
    short: Bound | None = None

    def bound(self, is_short: bool) -> Bound | None:
        return self.short if is_short else self.full


def ratio(value: float) -> str:
    return f"{value:.2f}"


def thousandths(value: float) -> str:
    return f"{value:.3f}"


def nanoseconds(value: float) -> str:
    return f"{value:.0f} ns"


def mebibytes(value: float) -> str:
    return f"{value / MIB:.1f} MiB"


def per_page(value: float) -> str:
    return f"{value:.1f} bytes"


GOALS = (
    # key, what, form, the goal, the limit of the short form
    Goal("1", "extract / cp", ratio, at_most(0.55)),
    # With other load two threads win nothing; without, they wait for each other, which
    # takes CPU time. Work done twice shows in both.
    Goal("1 least", "the same, or by CPU time if less", ratio, None, at_most(2.5)),
    Goal("1 written", "bytes written / bytes of pages", ratio, at_most(1.1), at_most(1.1)),
    Goal("2", "extract / QEMU loading", ratio, at_most(0.6)),
    Goal("3", "script / extract", ratio, at_least(15)),
    Goal("3 CPU", "CPU time: script / extract", ratio, None, at_least(4)),
    Goal("4 half", "half zero: extract / cp", ratio, at_most(0.5)),
    Goal("4 passes", "three passes: extract / cp", ratio, at_most(0.75)),
    Goal("4 written", "bytes written / bytes of pages", ratio, at_most(1.1)),
    Goal("4 holes", "bytes allocated / bytes of pages", ratio, at_most(1.1)),
    Goal("5 mapped-ram", "mapped-ram / data pages", ratio, at_most(0.8)),
    Goal("5 xbzrle", "XBZRLE / data pages", ratio, at_most(1.5)),
    Goal("5 compressed", "compressed / (inflate + data pages)", ratio, at_most(1.1)),
    Goal("6 one", "info, a record, one core", nanoseconds, at_most(130)),
    Goal("6 two", "info, a record, two cores", nanoseconds, at_most(75)),
    Goal("6 touch", "CPU time: info / touching each page", ratio, None),
    Goal("6 dense", "CPU time: info / unpacking zero pages", thousandths, None, at_most(0.042)),
    Goal("7", "bytes read / bytes of the stream", ratio, at_most(1.02)),
    Goal("8 ascending", "anonymous memory, ascending", mebibytes, at_most(64 * MIB), at_most(64 * MIB)),
    Goal("8 worst", "memory a page, worst order", per_page, at_most(24), at_most(24)),
    Goal("8 claimed", "memory more if more is claimed", mebibytes, at_most(MIB), at_most(MIB)),
    Goal("9", "bytes looked at", mebibytes, at_most(64 * MIB)),
    Goal("10", "script / state", ratio, at_least(20)),
    Goal("11", "memory a page, guests up to 1 TiB", per_page, at_most(24)),
)
