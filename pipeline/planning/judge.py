"""What becomes of each row of a source, judged chunk by chunk against what the database knows. Edge: SQL.

Rows whose keys, row_hashes and kept values are the same as in the database, and which have their answer, are told from
the others in bulk. Only the others are judged one by one.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import polars as pl

from pipeline.job.model import Job
from pipeline.planning.job_source import JobSource
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.selection import Selection
from pipeline.planning.verdict import Verdict, retry_verdict, verdict
from pipeline.source.rows import Chunk
from pipeline.state.rows import KnownRow
from pipeline.state.segments import NOWHERE, OLDER, UNSETTLED, Segment, texts
from pipeline.states import RowState

_NO_ROWS: Mapping[Verdict, int] = MappingProxyType({})


@dataclass(frozen=True)
class Scope:
    """What one command plans. refresh: also rows that succeeded with an older recipe; retry: only these rows."""

    job: Job
    recipe: str
    refresh: bool = False
    retry: Selection | None = None


class JudgedRow(NamedTuple):
    """One row. row_hash: empty when it was not wanted; known: as the database has it, None for a new one."""

    verdict: Verdict
    row_hash: bytes
    known: KnownRow | None


class Judged(NamedTuple):
    """What becomes of the rows of a chunk."""

    places: Sequence[int]  #: of the rows that were judged one by one
    rows: Sequence[JudgedRow]  #: these rows
    settled: Mapping[Verdict, int] = _NO_ROWS  #: verdicts of the others: nothing is to be done with them
    hashes: Sequence[bytes] = ()  #: row_hashes of all rows; () when nothing is known of any and none was wanted
    keeps: Sequence[str | None] = ()  #: kept values of all rows; () like `hashes`
    settled_numbers: Sequence[int] = ()  #: of all rows, 0 for those in `places`; () when not all of them are known

    def numbers(self, new: Sequence[int]) -> list[int]:
        """Return all rows' numbers in the database; [] when not all of them are known.

        new: the numbers that the new rows were given, in their order.
        """
        numbers, given = list(self.settled_numbers), iter(new)
        if numbers:
            for i, row in zip(self.places, self.rows, strict=True):
                numbers[i] = next(given) if row.known is None else row.known.id
        return numbers

    def is_settled(self) -> bool:
        """Return whether nothing is to be done with any row."""
        rows = zip(self.places, self.rows, strict=True)
        return bool(self.hashes) and all(is_settled(row.verdict, row.known, self.keeps[i]) for i, row in rows)


def is_settled(kind: Verdict, known: KnownRow | None, keep: str | None) -> bool:
    """Return whether nothing is to be done with a row. keep: its kept values today."""
    if known is None or kind not in (Verdict.KEPT, Verdict.KEPT_OLDER):
        return False
    return known.keep == keep and known.changed_hash is None and known.state not in _ON_ITS_WAY


_ON_ITS_WAY = (RowState.PENDING, RowState.IN_FLIGHT)


class _Compared(NamedTuple):
    """The rows of a chunk compared in bulk with a segment of the database; fields as those of `Judged`.

    unsettled: places of the rows that are left to be judged one by one.
    """

    unsettled: Sequence[int]
    settled: Mapping[Verdict, int]
    hashes: Sequence[bytes]
    settled_numbers: Sequence[int]


class Judge:
    """Judges the rows of a source, chunk by chunk, for one pass of a planning."""

    def __init__(
        self,
        scope: Scope,
        source: JobSource,
        known_rows: KnownRows,
        *,
        run_id: int | None = None,
        unsent: Container[int] = frozenset(),
        hashes_all: bool = True,
    ) -> None:
        """Read which retries are not finished.

        run_id: the run that plans, or in the quote the open one that it is going to join; None: a new one. unsent:
        batches that are planned and not sent. hashes_all: whether the row_hash is wanted also of new rows.
        """
        self._scope, self._source, self._known_rows = scope, source, known_rows
        self._run_id, self._unsent, self._hashes_all = run_id, unsent, hashes_all
        self._retries = known_rows.other_retries(scope.job.vars, scope.retry)

    def chunk(self, chunk: Chunk, key_column: pl.Series) -> Judged:
        """Judge the rows of a chunk. key_column: their keys."""
        if self._known_rows.is_empty and not self._hashes_all:
            return self._all_new(chunk.frame.height)
        keys, keeps = key_column.to_list(), self._source.keeps(chunk)
        bulk = self._compared(chunk, keys, keeps)
        asked = keys if len(bulk.unsettled) == len(keys) else [keys[i] for i in bulk.unsettled]
        known = self._known_rows(asked) if asked else {}
        if not (bulk.hashes or known or self._hashes_all):
            return self._all_new(len(keys))
        hashes = bulk.hashes or self._source.hashes(chunk)
        of_rows = hashes if len(asked) == len(keys) else [hashes[i] for i in bulk.unsettled]
        if self._scope.retry is not None:
            rows = self._chosen(self._scope.retry, asked, of_rows, known)
        elif known:
            older = self._source.older_hashes(chunk)
            rows = self._one_by_one(asked, of_rows, [older[i] for i in bulk.unsettled], known)
        else:
            rows = [JudgedRow(Verdict.NEW, row_hash, None) for row_hash in of_rows]
        return Judged(bulk.unsettled, rows, bulk.settled, hashes, keeps, bulk.settled_numbers)

    def verdict(self, known: KnownRow | None, row_hash: bytes, older: bytes | None) -> Verdict:
        """Return what becomes of a source row. known: as the database has it; older: see JobSource.older_hashes."""
        recipe = self._scope.recipe
        if known is not None and older is not None:
            hashes = (known.row_hash, known.outcome_hash)
            if older in hashes and row_hash not in hashes:
                row_hash = older  # the row has not changed; what was made of it has
                recipe = "" if known.outcome in (None, RowState.SUCCEEDED, RowState.INVALID) else recipe
        facts = (known, row_hash, recipe, self._scope.job)
        return verdict(*facts, refresh=self._scope.refresh, unsent=self._unsent, retries=self._retries)

    def _all_new(self, rows: int) -> Judged:
        """Of so many rows of which nothing is known."""
        kind = Verdict.NEW if self._scope.retry is None else Verdict.OTHER
        return Judged(range(rows), [JudgedRow(kind, b"", None)] * rows)

    def _one_by_one(
        self,
        keys: Sequence[str],
        hashes: Sequence[bytes],
        older: Sequence[bytes | None],
        known: Mapping[str, KnownRow],
    ) -> list[JudgedRow]:
        judged = []
        for key, row_hash, older_hash in zip(keys, hashes, older, strict=True):
            row = known.get(key)
            judged.append(JudgedRow(self.verdict(row, row_hash, older_hash), row_hash, row))
        return judged

    def _chosen(
        self, retry: Selection, keys: Sequence[str], hashes: Sequence[bytes], known: Mapping[str, KnownRow]
    ) -> list[JudgedRow]:
        """The rows of a retry: those that a person wants sent again, and the others."""
        wanted = self._known_rows.wanted(retry, known)
        judged = []
        for key, row_hash in zip(keys, hashes, strict=True):
            row = known.get(key)
            kind = retry_verdict(
                row, wanted=key in wanted, run_id=self._run_id, unsent=self._unsent, retries=self._retries
            )
            judged.append(JudgedRow(kind, row_hash, row))
        return judged

    def _compared(self, chunk: Chunk, keys: Sequence[str], keeps: Sequence[str | None]) -> _Compared:
        """Compare the rows in bulk with the segment of the database that begins like the chunk, if there is one."""
        segment = NOWHERE
        if self._scope.retry is None:
            for key in keys[:2]:  # the first may be a new one
                segment = segment if segment.rows else self._beginning_with(key, len(keys))
        if not segment.rows:
            return _Compared(range(len(keys)), _NO_ROWS, (), [0] * len(keys))
        unsettled = UNSETTLED + OLDER if self._scope.refresh else UNSETTLED
        return _compare(segment, keys, self._source.hashes(chunk), keeps, unsettled)

    def _beginning_with(self, key: str, rows: int) -> Segment:
        return self._known_rows.beginning_with(key, rows, self._scope.recipe)


def _compare(
    segment: Segment, keys: Sequence[str], hashes: Sequence[bytes], keeps: Sequence[str | None], unsettled: bytes
) -> _Compared:
    """Tell the settled rows of a chunk from the others. unsettled: marks of states in the segment that are not."""
    places: Sequence[int | None] = range(len(keys))  # of each row in the segment; None: it is not there
    if segment.is_of(keys, hashes, keeps):
        marked = any(mark in segment.states for mark in unsettled)
        left = [i for i, state in enumerate(segment.states) if state in unsettled] if marked else []
    else:
        place = {key: i for i, key in enumerate(texts(segment.keys))}
        places = [place.get(key) for key in keys]
        known_keeps = texts(segment.keeps)
        left = [
            i
            for i, j in enumerate(places)
            if j is None
            or segment.states[j] in unsettled
            or segment.hashes[16 * j : 16 * j + 16] != hashes[i]
            or known_keeps[j] != (keeps[i] or "")
        ]
    older = 0
    if OLDER in segment.states:
        at = set(range(len(keys))).difference(left)
        older = sum(j is not None and segment.states[j] == OLDER[0] for j in map(places.__getitem__, at))
    kept = len(keys) - len(left) - older
    settled = Counter({kind: n for kind, n in ((Verdict.KEPT, kept), (Verdict.KEPT_OLDER, older)) if n})
    numbers = [0 if j is None else segment.first + j for j in places] if segment.is_dense else []
    return _Compared(left, settled, hashes, numbers)
