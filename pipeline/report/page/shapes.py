"""What do the plots of a page draw? Places and sizes as shares from 0 to 1, with their numbers as text. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.quality.figures import Share
from pipeline.quality.statistics import Interval
from pipeline.text import short_number

NOTHING = "\N{EN DASH}"
MOST_BINS = 12


def percent(share: float | None) -> str:
    """Return `26.1%`; a dash for None. A share that is not all, or not nothing, is not rounded to that."""
    if share is None:
        return NOTHING
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def ends(interval: Interval | None) -> str:
    """Return `20.5% to 32.6%`; empty for None."""
    return "" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}"


@dataclass(frozen=True)
class Bar:
    """A bar with its name and numbers. width: of the longest bar. tone: a class of the style sheet, never a text."""

    name: str
    number: str
    share: str
    width: float
    tone: str = ""


def bars(values: Sequence[tuple[str, int]], total: int, tones: Sequence[str] = ()) -> list[Bar]:
    """Return a bar for each name with its number of rows. total: all rows, for the shares; tones: by bar."""
    most = max((rows for _, rows in values), default=0) or 1
    return [
        Bar(name, f"{rows:,}", percent(rows / total if total else None), rows / most, tones[i] if tones else "")
        for i, (name, rows) in enumerate(values)
    ]


class Mark(NamedTuple):
    """A line across a plot. at: its place from 0 to 1."""

    at: float
    name: str


@dataclass(frozen=True)
class Bin:
    """A bin of a histogram. height: of the highest one; name: the range of its values."""

    name: str
    number: str
    height: float
    over: bool = False


@dataclass(frozen=True)
class Histogram:
    """Numbers by size. ticks: names of the edges between the bins, with their places; mark: None for none."""

    bins: list[Bin]
    ticks: list[Mark]
    mark: Mark | None = None


class Scale(NamedTuple):
    """The bins of a histogram: so many of one width, from `low` on. single: each is for one integer."""

    low: float
    width: float
    bins: int
    single: bool = False

    @property
    def end(self) -> float:
        """The upper end of the last bin."""
        return self.low + self.width * self.bins


def scale(low: float, high: float, *, whole: bool) -> Scale:
    """Return bins with round edges that cover the values from low to high, MOST_BINS at most.

    whole: whether the values are integers, which need no bin narrower than 1.
    """
    span = max(high - low, 1 if whole else 1e-9 * max(1.0, abs(high)))
    rough = span / (MOST_BINS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
    if whole:
        width = max(1.0, math.ceil(width))
    first = math.floor(low / width) * width  # rounded, so it may be a little more than `low`
    bins = max(1, math.floor((high - first) / width + 1e-9) + 1)
    return Scale(first, width, min(MOST_BINS + 1, bins), whole and width == 1)


def histogram(on: Scale, counts: Sequence[int], *, mark: tuple[float, str] | None = None) -> Histogram:
    """Return a histogram. counts: of the bins. mark: a value, and the name of the line at it; None for none."""
    most = max(counts, default=0) or 1
    edges = [on.low + on.width * i for i in range(on.bins + 1)]
    limit = math.inf if mark is None else mark[0]
    bins = [
        Bin(
            short_number(edges[i]) if on.single else f"{short_number(edges[i])} to {short_number(edges[i + 1])}",
            short_number(n) if n else "",
            n / most,
            edges[i] >= limit - 1e-9 * on.width,
        )
        for i, n in enumerate(counts)
    ]
    every = math.ceil(on.bins / 6)
    named = edges[:-1] if on.single else edges
    middle = 0.5 if on.single else 0.0
    ticks = [Mark((i + middle) / on.bins, short_number(edge)) for i, edge in enumerate(named) if i % every == 0]
    place = None if mark is None else (mark[0] - on.low) / (on.width * on.bins)
    line = None if mark is None or place is None or not 0 <= place <= 1 else Mark(place, mark[1])
    return Histogram(bins, ticks, line)


@dataclass(frozen=True)
class Dot:
    """A value with its interval on a scale from 0 to 1. text: its numbers; at: None if there is no value."""

    text: str
    range: str
    at: float | None
    low: float = 0.0
    high: float = 0.0


def dot(share: Share) -> Dot:
    """Return a share with its interval."""
    interval = share.interval
    if share.value is None or interval is None:
        return Dot(NOTHING, "", None)
    return dot_of(share.value, interval)


def dot_of(value: float, interval: Interval) -> Dot:
    """Return a value between 0 and 1 with its interval."""
    return Dot(percent(value), ends(interval), value, interval.low, interval.high)


def dot_around_zero(value: float, interval: Interval, most: float) -> Dot:
    """Return a difference with its interval, on a scale from -most to most, whose middle is 0."""

    def place(at: float) -> float:
        return min(1.0, max(0.0, (at / most + 1) / 2))

    text = f"{100 * value:+.1f} points"
    return Dot(text, f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}", place(value), *map(place, interval))


class Cell(NamedTuple):
    """A cell of a heat table. heat: from 0 to 1, of its row; right: whether it counts right answers."""

    number: str
    heat: float
    right: bool


@dataclass(frozen=True)
class Heat:
    """A table whose cells are coloured by their share of the row. rows: name, cells, and the dot at the end."""

    columns: list[str]
    rows: list[tuple[str, list[Cell], Dot]]


@dataclass(frozen=True)
class Band:
    """A range with a likely value in it and the actual one, on a scale from 0 to 1."""

    low: float
    high: float
    expected: float | None
    actual: float


def band(low: float, expected: float | None, high: float, actual: float) -> Band:
    """Return a band on a scale from 0 to the largest of its values."""
    most = max(high, actual) * 1.04 or 1.0
    return Band(low / most, high / most, None if expected is None else expected / most, actual / most)
