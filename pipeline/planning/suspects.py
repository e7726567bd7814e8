"""Which rows of a source may have the same request as another row? Edge: files."""

from typing import Self

import polars as pl

from pipeline.request.packing import MOST_SHARING
from pipeline.source.duplicates import Distinct, repeated

MOST_BITS = 24  # of a hash that choose a place in `Suspects`: 16.8 million places, 2 MB
FEWEST_BITS = 10
PLACES_OF_SUSPECT = 64  # one of 64 other rows is then a suspect by mistake


class Suspects:
    """The rows whose source values equal those of another row, by their hashes.

    It has a fixed size, and takes a few other rows for suspects by mistake. That costs a little time and nothing else:
    whether two requests are equal is decided by their sent_hashes.
    """

    def __init__(self, places: pl.Series | None = None) -> None:
        """places: a Boolean for each value of the lowest bits of a hash; None: there are no suspects."""
        self._places = places

    def __bool__(self) -> bool:
        return self._places is not None

    def marks(self, hashes: pl.Series) -> list[bool]:
        """Return for each row whether it is a suspect. hashes: of the rows."""
        if self._places is None:
            return [False] * hashes.len()
        return self._places.gather(hashes & (self._places.len() - 1)).to_list()


class EqualRows:
    """Collects hashes of the source values of rows, on disk when there are many. To be used in a `with` block."""

    def __init__(self) -> None:
        self._hashes = Distinct()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hashes.__exit__()

    def add(self, hashes: pl.Series) -> None:
        """Add rows by the hashes of their source values."""
        self._hashes.add(hashes)

    def found(self) -> tuple[int, Suspects]:
        """Return how many requests the rows need if equal rows share theirs, and which rows are suspects."""
        requests, count = 0, 0
        places: pl.Series | None = None
        for part in self._hashes.parts():
            again = repeated(part)
            if not again.len():
                requests += part.len()
                continue
            places = pl.repeat(False, 1 << MOST_BITS, dtype=pl.Boolean, eager=True) if places is None else places
            places = places.scatter(again & ((1 << MOST_BITS) - 1), True)
            count += again.len()
            of_each = part.rle().struct.field("len")
            requests += int(((of_each + (MOST_SHARING - 1)) // MOST_SHARING).sum())
        return requests, Suspects(None if places is None else _folded(places, PLACES_OF_SUSPECT * count))


def _folded(places: pl.Series, least: int) -> pl.Series:
    """Return the places in a shorter series, of `least` places or more if it has as many."""
    while places.len() >= 2 * least and places.len() > 1 << FEWEST_BITS:
        half = places.len() // 2
        places = places.head(half) | places.tail(half)
    return places
