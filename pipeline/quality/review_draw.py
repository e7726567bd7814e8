"""Which answers are reviewed, and for how many others does each of them stand? Pure.

A sample is the answers with the smallest hashes of their keys, so that a sample of 200 is part of one of 400. Its lines
are in the order of these hashes: whoever reviews only the first ones has reviewed a sample, too.
"""

import heapq
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.escapes import inline
from pipeline.quality.review_values import Key, key_hash

LEAST = 2  # rows of each stratum: one alone does not show how much they differ
LONGEST_VALUE = 200  # characters of the value of a stratum in the name of a draw
SAMPLE = "sample"
_CELL = re.compile(r"(sample(?: by .*)?) \(([0-9.e+-]+) of all\)", re.DOTALL | re.ASCII)


class Draw(NamedTuple):
    """How a row was chosen. drawn: in words; weight: see sink.reviews.Review."""

    drawn: str
    weight: float | None

    @property
    def cell(self) -> str:
        """The text that stands for it in a sheet. A spreadsheet would write a number of its own in another way."""
        return self.drawn if self.weight is None else f"{self.drawn} ({self.weight:.8g} of all)"


def draw_of(cell: str) -> Draw:
    """Return the draw that a cell of a sheet names. What no sample has written is a row that was chosen."""
    found = _CELL.fullmatch(cell.strip())
    try:
        return Draw("chosen" if not cell.strip() else cell, None) if found is None else Draw(found[1], float(found[2]))
    except ValueError:
        return Draw(cell, None)


def design_of(drawn: str) -> str:
    """Return what draws of one sample have in common: `sample`, or `sample by label` for its strata."""
    return drawn.partition(": ")[0]


def sample(keys: Iterable[Key], size: int) -> list[Key]:
    """Return the keys with the smallest hashes, in their order. size: how many."""
    return heapq.nsmallest(size, keys, key=key_hash)


def strata_sample(rows: Iterable[tuple[Key, Any]], size: int, by: str) -> list[tuple[Key, Draw]]:
    """Return a sample with as many rows of each stratum as there are, up to an equal share of `size`.

    rows: all keys, each with the value by which the strata are told apart. Raises InputError if `size` is too small.
    """
    smallest: dict[Any, list[tuple[int, Key]]] = {}
    counts: dict[Any, int] = {}
    for key, value in rows:
        counts[value] = counts.get(value, 0) + 1
        heap = smallest.setdefault(value, [])
        rank = -int(key_hash(key), 16)  # heapq keeps the smallest at the front, and the largest is to be replaced
        if len(heap) < size:
            heapq.heappush(heap, (rank, key))
        elif rank > heap[0][0]:
            heapq.heapreplace(heap, (rank, key))
        if len(counts) * LEAST > size:
            raise InputError(
                f"--by {by}: the column has more than {size // LEAST:,} values, so that a sample of {size:,} has fewer "
                f"than {LEAST} rows of each; take a larger sample, or a column with fewer values"
            )
    total, shares = sum(counts.values()), _shares(counts, size)
    chosen = [
        (rank, key, Draw(f"{SAMPLE} by {by}: {_named(value)}", counts[value] / total))
        for value, heap in smallest.items()
        for rank, key in heapq.nlargest(shares[value], heap)
    ]
    return [(key, draw) for _, key, draw in sorted(chosen, key=lambda one: -one[0])]


def _shares(counts: dict[Any, int], size: int) -> dict[Any, int]:
    """Return how many rows of each stratum are drawn: equally many, where there are so many."""
    shares: dict[Any, int] = {}
    left = size
    for i, value in enumerate(sorted(counts, key=counts.__getitem__)):  # what a small stratum lacks, the others get
        shares[value] = min(counts[value], left // (len(counts) - i))
        left -= shares[value]
    return shares


def _named(value: Any) -> str:
    return "(null)" if value is None else inline(str(value))[:LONGEST_VALUE]
