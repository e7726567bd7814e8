"""Format money, counts, sizes and durations for people, and compare what people write. Pure."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence

from pipeline.states import BatchState, RowState


def money(usd: float | None) -> str:
    """Format US dollars: `$1,234.50`, or `$0.0012` below one cent; `unpriced` for None."""
    if usd is None:
        return "unpriced"
    if usd and usd < 0.01:
        return f"${usd:.4f}"
    return f"${usd:,.2f}"


def short_number(n: float) -> str:
    """Format a number for a narrow place: `950`, `12.5k`, `1.2M`, `0.25`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= unit * 0.9995:
            return f"{n / unit:.3g}{name}"
    return f"{n:.4g}"


def count(n: int, what: str) -> str:
    """Format a number with its noun: `1 row`, `2,000 rows`, `2 batches`. what: the noun in the singular."""
    plural = what + ("es" if what.endswith("ch") else "s")
    return f"{n:,} {what if n == 1 else plural}"


def folded(text: str) -> str:
    """Return a text in the form in which labels and names are compared: without case and outer blanks."""
    return text.strip().casefold()


def counts_line(counts: Mapping[str, int]) -> str:
    """Format rows by state with their sum: `500 rows: 498 succeeded, 2 errored`, or `0 rows: nothing to do`."""
    return f"{count(sum(counts.values()), 'row')}: {counted(counts) or 'nothing to do'}"


def counted(counts: Mapping[str, int]) -> str:
    """Format rows or batches by state, in the order of the states: `498 succeeded, 2 errored`. Zeros are left out."""
    order = [RowState.PENDING, BatchState.PLANNED, *RowState, *BatchState]
    names = sorted(counts, key=lambda name: order.index(name) if name in order else len(order))
    return ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names if counts[name])


def later(wait: float) -> str:
    """Return the end of a sentence about a retry after `wait` seconds, as `; again in 5 s`; empty if wait is 0."""
    return f"; again in {math.ceil(wait)} s" if wait else ""


def size(n: int) -> str:
    """Format a number of bytes: `12.3 kB`, `1.5 MB`."""
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def duration(seconds: int) -> str:
    """Format seconds in one unit, rounded down: `40 s`, `25 min` from 2 minutes on, `30 h` from 2 hours on."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if seconds >= 2 * u), (1, "s"))
    return f"{seconds // unit} {name}"


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = ()) -> Iterator[str]:
    """Yield the lines of a table whose columns fit their cells. right: the columns that are aligned to the right."""
    filled = [[*row, *[""] * (len(headings) - len(row))] for row in (headings, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*filled, strict=True)]
    for row in filled:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
