"""Give each source row a verdict, chunk by chunk, by comparing it with the database. Edge: SQL.

Most rows of a later run are settled: key, row_hash and kept values are the same as in the database, and the row has its
answer. Settled rows are found in bulk; only the remaining rows are judged one by one.
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
    """What one command plans.

    refresh: also send rows that succeeded with an older recipe; retry: only send these rows; None: a plain run.
    """

    job: Job
    recipe: str
    refresh: bool = False
    retry: Selection | None = None


class JudgedRow(NamedTuple):
    """One judged row. known: the row in the database; None: it is new.

    row_hash: empty if it was not computed, or if the whole chunk is new and `Judged.hashes` has it.
    """

    verdict: Verdict
    row_hash: bytes
    known: KnownRow | None


class Judged(NamedTuple):
    """The verdicts on the rows of a chunk."""

    places: Sequence[int]  #: indexes in the chunk of the rows that were judged one by one
    rows: Sequence[JudgedRow]  #: these rows, in the order of `places`
    settled: Mapping[Verdict, int] = _NO_ROWS  #: number of the other rows by verdict; they are settled
    hashes: Sequence[bytes] = ()  #: row_hashes of all rows; (): no row is known, and no hash was asked for
    keeps: Sequence[str | None] = ()  #: kept values of all rows; (): as for `hashes`
    settled_numbers: Sequence[int] = ()  #: of all rows, 0 for those in `places`; (): some numbers are unknown
    all_new: bool = False  #: whether all rows are new and are sent

    def numbers(self, new: Sequence[int]) -> list[int]:
        """Return the numbers of all rows in the database; [] if some are unknown.

        new: the numbers that the new rows got, in the order of the rows.
        """
        numbers, given = list(self.settled_numbers), iter(new)
        if numbers:
            for i, row in zip(self.places, self.rows, strict=True):
                numbers[i] = next(given) if row.known is None else row.known.id
        return numbers

    def is_settled(self) -> bool:
        """Return whether all rows of the chunk are settled."""
        rows = zip(self.places, self.rows, strict=True)
        return bool(self.hashes) and all(is_settled(row.verdict, row.known, self.keeps[i]) for i, row in rows)


def is_settled(kind: Verdict, known: KnownRow | None, keep: str | None) -> bool:
    """Return whether a row needs no sending and no change in the database. keep: its current kept values."""
    if known is None or kind not in (Verdict.KEPT, Verdict.KEPT_OLDER):
        return False
    return known.keep == keep and known.changed_hash is None and known.state not in _ON_ITS_WAY


_ON_ITS_WAY = (RowState.PENDING, RowState.IN_FLIGHT)


class _Compared(NamedTuple):
    """The result of comparing a chunk in bulk with a segment of the database. The fields are those of `Judged`.

    unsettled: indexes of the rows that have to be judged one by one.
    """

    unsettled: Sequence[int]
    settled: Mapping[Verdict, int]
    hashes: Sequence[bytes]
    settled_numbers: Sequence[int]


class Judge:
    """Judges the rows of a source, chunk by chunk, in one pass of a planning."""

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
        """Read which other retries of the job are unfinished.

        run_id: the run that is planned, or in a quote the run that the command will continue; None: a new run.
        unsent: batches that are planned and not sent. hashes_all: whether new rows need a row_hash, too.
        """
        self._scope, self._source, self._known_rows = scope, source, known_rows
        self._run_id, self._unsent, self._hashes_all = run_id, unsent, hashes_all
        self._retries = known_rows.other_retries(scope.job.vars, scope.retry)

    def chunk(self, chunk: Chunk, key_column: pl.Series) -> Judged:
        """Return the verdicts on the rows of a chunk. key_column: the key of each row."""
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
        elif len(asked) == len(keys):
            return self._all_new(len(keys), hashes, keeps)
        else:
            rows = [JudgedRow(Verdict.NEW, row_hash, None) for row_hash in of_rows]
        return Judged(bulk.unsettled, rows, bulk.settled, hashes, keeps, bulk.settled_numbers)

    def verdict(self, known: KnownRow | None, row_hash: bytes, older: bytes | None) -> Verdict:
        """Return the verdict on one source row in a plain run.

        known: the row in the database; None: it is new; older: see `JobSource.older_hashes`.
        """
        recipe = self._scope.recipe
        if known is not None and older is not None:
            hashes = (known.row_hash, known.outcome_hash)
            if older in hashes and row_hash not in hashes:
                row_hash = older  # the row is unchanged; only the way it is hashed has changed
                recipe = "" if known.outcome in (None, RowState.SUCCEEDED, RowState.INVALID) else recipe
        facts = (known, row_hash, recipe, self._scope.job)
        return verdict(*facts, refresh=self._scope.refresh, unsent=self._unsent, retries=self._retries)

    def _all_new(self, rows: int, hashes: Sequence[bytes] = (), keeps: Sequence[str | None] = ()) -> Judged:
        """Return the verdicts on this number of rows if the database knows none of them."""
        all_new = self._scope.retry is None
        new = JudgedRow(Verdict.NEW if all_new else Verdict.OTHER, b"", None)
        numbers = [0] * len(hashes)
        return Judged(range(rows), [new] * rows, hashes=hashes, keeps=keeps, settled_numbers=numbers, all_new=all_new)

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
        """Return the verdicts of a retry, which sends only the rows that a person has selected."""
        wanted = self._known_rows.wanted(retry, known)
        judged = []
        for key, row_hash in zip(keys, hashes, strict=True):
            row = known.get(key)
            kind = retry_verdict(
                row, row_hash, wanted=key in wanted, run_id=self._run_id, unsent=self._unsent, retries=self._retries
            )
            judged.append(JudgedRow(kind, row_hash, row))
        return judged

    def _compared(self, chunk: Chunk, keys: Sequence[str], keeps: Sequence[str | None]) -> _Compared:
        """Compare the rows in bulk with the segment of the database that begins with the same key as the chunk.

        If there is no such segment, or in a retry, all rows are unsettled.
        """
        segment = NOWHERE
        if self._scope.retry is None:
            for key in keys[:2]:  # the first row may be new
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
    """Find the settled rows of a chunk. unsettled: the marks in `segment.states` that mean: not settled."""
    places: Sequence[int | None] = range(len(keys))  # index of each row in the segment; None: not there
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
