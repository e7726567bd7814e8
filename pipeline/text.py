"""Money, counts, sizes and times as people read them. Pure."""

import math
from collections.abc import Mapping

from pipeline.states import BatchState, RowState


def money(usd: float | None) -> str:
    """US dollars for people: as many digits as matter."""
    if usd is None:
        return "unpriced"
    if usd and usd < 0.01:
        return f"${usd:.4f}"
    return f"${usd:,.2f}"


def count(n: int, what: str) -> str:
    """`1 row`, `2 rows`, `2 batches`."""
    plural = what + ("es" if what.endswith("ch") else "s")
    return f"{n:,} {what if n == 1 else plural}"


def counts_line(counts: Mapping[str, int]) -> str:
    """`500 rows: 498 succeeded, 2 errored`."""
    return f"{count(sum(counts.values()), 'row')}: {counted(counts) or 'nothing to do'}"


def counted(counts: Mapping[str, int]) -> str:
    """`498 succeeded, 2 errored`, of rows or batches by state, in the order of the states."""
    order = [RowState.PENDING, BatchState.PLANNED, *RowState, *BatchState]
    names = sorted(counts, key=lambda name: order.index(name) if name in order else len(order))
    return ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names if counts[name])


def later(wait: float) -> str:
    return f"; again in {math.ceil(wait)} s" if wait else ""


def size(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def duration(seconds: int) -> str:
    """`40 s`, `25 min`, `30 h`: in the unit that says enough."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if seconds >= 2 * u), (1, "s"))
    return f"{seconds // unit} {name}"
