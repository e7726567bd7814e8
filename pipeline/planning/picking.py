"""Pick rows of a source for a person to look at: all in order, those of some keys, or a sample. Edge: SQL, files."""

import heapq
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl

from pipeline.errors import SourceError
from pipeline.planning.plan import Plan
from pipeline.planning.selection import spellings
from pipeline.source import duplicates, identity
from pipeline.source.rows import Chunk

SPARE = 20  # rows that are picked beyond a sample, because some rows may not be sendable


class Picked(NamedTuple):
    """The i-th row of a chunk. key: JSON, as in the state database; values: those of the read columns, by name."""

    chunk: Chunk
    i: int
    key: str
    values: dict[str, Any]


def all_rows(plan: Plan, columns: Sequence[str]) -> Iterator[Picked]:
    """Yield each row of the source, in its order. columns: the columns to read."""
    attached = plan.builder.columns.attachments
    for chunk in plan.source.rows.chunks(columns):
        keys = identity.keys(chunk.frame, plan.job.source.key)
        rows = zip(keys, identity.named_rows(chunk.frame, columns, as_bytes=attached), strict=True)
        yield from (Picked(chunk, i, key, values) for i, (key, values) in enumerate(rows))


def of_keys(plan: Plan, given: Sequence[str], columns: Sequence[str]) -> list[Picked]:
    """Return the rows with these keys, in the order of the keys. Raises SourceError if no row has one of the keys."""
    wanted = [set(spellings(key, len(plan.job.source.key))) for key in given]
    found = {row.key: row for row in _with_keys(plan, set().union(*wanted), columns, at_most=len(given))}
    picked = []
    for key, spelled in zip(given, wanted, strict=True):
        row = next((found[one] for one in spelled if one in found), None)
        if row is None:
            raise SourceError(f"--key {key}: no row of the source has this key")
        picked.append(row)
    return picked


def present(plan: Plan, keys: Collection[str], columns: Sequence[str]) -> Iterator[Picked]:
    """Yield the rows of the source that have one of these keys. keys: JSON, as in the state database.

    Each row holds its whole chunk: take from it what is needed, and drop it.
    """
    return _with_keys(plan, keys, columns, at_most=len(keys))


def sample(plan: Plan, n: int, columns: Sequence[str]) -> Iterator[Picked]:
    """Return a sample of the source: n + SPARE rows, or all if there are fewer.

    It depends on the keys alone, so the same rows in another order give the same sample.
    """
    lowest: list[tuple[int, str]] = []
    for chunk in plan.source.rows.chunks(plan.job.source.key):
        keys = identity.key_column(chunk.frame, plan.job.source.key)
        hashed = duplicates.hashes(identity.key_texts(keys)).to_list()
        lowest = heapq.nsmallest(n + SPARE, [*lowest, *zip(hashed, keys.to_list(), strict=True)])
    chosen = [key for _, key in lowest]
    found = {row.key: row for row in _with_keys(plan, set(chosen), columns, at_most=len(chosen))}
    return (found[key] for key in chosen if key in found)


def _with_keys(plan: Plan, keys: Collection[str], columns: Sequence[str], *, at_most: int) -> Iterator[Picked]:
    """Yield the rows with these keys. at_most: how many there can be; the reading stops when all are found."""
    left, attached = at_most, plan.builder.columns.attachments
    wanted = pl.Series(list(keys), dtype=pl.String)
    for chunk in plan.source.rows.chunks(columns):
        of_rows = identity.key_column(chunk.frame, plan.job.source.key)
        for i in of_rows.is_in(wanted.implode()).arg_true():
            [values] = identity.named_rows(chunk.frame[i : i + 1], columns, as_bytes=attached)
            yield Picked(chunk, i, of_rows[i], values)
            left -= 1
        if left <= 0:
            return
