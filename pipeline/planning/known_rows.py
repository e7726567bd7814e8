"""Look up source rows in the state database, chunk by chunk. Edge: SQL."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.planning.selection import Selection
from pipeline.sink.matching import matching_keys
from pipeline.sink.table import ResultsTable
from pipeline.state import segments, settled
from pipeline.state.database import Database
from pipeline.state.jobs import name_of
from pipeline.state.leases import last_token, planning_of
from pipeline.state.rows import KnownRow, has_rows, known_rows
from pipeline.state.runs import unfinished_retries
from pipeline.state.segments import NOWHERE, Segment, SegmentDigest


class KnownRows:
    """Looks up the rows of one job in the database. While the job has no rows, it makes no query."""

    def __init__(self, database: Database | None, job_id: int | None, sink: ResultsTable | None = None) -> None:
        """job_id: None if the database does not know the job yet; sink: the results table, which a retry needs."""
        self._database, self._job_id, self._sink = database, None, sink
        if database is not None and job_id is not None:
            with database.read() as conn:
                self._job_id = job_id if has_rows(conn, job_id) else None

    @property
    def is_empty(self) -> bool:
        """Return whether the job has no rows yet."""
        return self._job_id is None

    def beginning_with(self, key: str, rows: int, recipe: str) -> Segment:
        """Return up to `rows` known rows in their order, from this key on; NOWHERE: there are none. recipe: today's."""
        if self._database is None or self._job_id is None:
            return NOWHERE
        with self._database.read() as conn:
            return segments.beginning_with(conn, self._job_id, key, rows, recipe=recipe)

    def notes(self, source: bytes) -> list[SegmentDigest]:
        """Return the segments that were stored for a source file. source: its fingerprint; []: none are stored."""
        if self._database is None or self._job_id is None:
            return []
        with self._database.read() as conn:
            return segments.notes_of(conn, self._job_id, source)

    def noted(self, note: SegmentDigest, recipe: str) -> Segment:
        """Return the rows of a stored segment as the database has them now. recipe: today's."""
        assert self._database is not None
        assert self._job_id is not None
        with self._database.read() as conn:
            return segments.segment_from(conn, self._job_id, note.first, note.last, note.rows, recipe=recipe)

    def settled(self, source: bytes) -> int | None:
        """Return how many rows a source has, all of which are known to have succeeded; None: compare them.

        source: as for `settled.settled_rows`.
        """
        if self._database is None or self._job_id is None:
            return None
        with self._database.read() as conn:
            return settled.settled_rows(conn, self._job_id, source)

    def planning_token(self) -> int:
        """Return the token of the newest lease on the planning of the job; 0: there was none."""
        if self._database is None or self._job_id is None:
            return 0
        with self._database.read() as conn:
            return last_token(conn, planning_of(name_of(conn, self._job_id)))

    def other_retries(self, variables: Mapping[str, Any], retry: Selection | None) -> frozenset[int]:
        """Return the unfinished retries except the one that this command continues. retry: None for a plain run."""
        if self._database is None or self._job_id is None:
            return frozenset()
        with self._database.read() as conn:
            found = unfinished_retries(conn, self._job_id)
        ours = None if retry is None else (dict(variables), retry.facts())
        return frozenset(run.id for run in found if (run.vars, run.retry) != ours)

    def __call__(self, keys: Sequence[str]) -> Mapping[str, KnownRow]:
        """Return the known rows by key; keys that the database does not know are left out."""
        if self._database is None or self._job_id is None:
            return {}
        with self._database.read() as conn:
            return known_rows(conn, self._job_id, keys)

    def wanted(self, retry: Selection, known: Mapping[str, KnownRow]) -> set[str]:
        """Return the keys of the known rows that this retry selects."""
        keys = [key for key, row in known.items() if retry.wants(row)]
        if not keys or not retry.conditions:
            return set(keys)
        assert self._database is not None
        assert self._sink is not None
        with self._database.read() as conn:
            return matching_keys(conn, self._sink, retry.conditions, keys)
