"""What the state database knows of source rows, asked chunk by chunk. Edge: SQL."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.planning.selection import Selection
from pipeline.sink.matching import matching_keys
from pipeline.sink.table import ResultsTable
from pipeline.state import segments
from pipeline.state.database import Database
from pipeline.state.rows import KnownRow, has_rows, known_rows
from pipeline.state.runs import unfinished_retries
from pipeline.state.segments import NOWHERE, Segment, SegmentDigest


class KnownRows:
    """What the database knows of keys, asked chunk by chunk; without a query while the job has no rows."""

    def __init__(self, database: Database | None, job_id: int | None, sink: ResultsTable | None = None) -> None:
        """job_id: None for a job that the database does not know yet; sink: its results table, for a retry."""
        self._database, self._job_id, self._sink = database, None, sink
        if database is not None and job_id is not None:
            with database.read() as conn:
                self._job_id = job_id if has_rows(conn, job_id) else None

    @property
    def is_empty(self) -> bool:
        """Whether the job has no rows yet."""
        return self._job_id is None

    def beginning_with(self, key: str, rows: int, recipe: str) -> Segment:
        """So many known rows from this key on, in their order. recipe: today's."""
        if self._database is None or self._job_id is None:
            return NOWHERE
        with self._database.read() as conn:
            return segments.beginning_with(conn, self._job_id, key, rows, recipe=recipe)

    def notes(self, source: bytes) -> list[SegmentDigest]:
        """What was noted of the rows of a source file; see stretches.py."""
        if self._database is None or self._job_id is None:
            return []
        with self._database.read() as conn:
            return segments.notes_of(conn, self._job_id, source)

    def noted(self, note: SegmentDigest, recipe: str) -> Segment:
        """The rows that a note is about, as they are today. recipe: today's."""
        assert self._database is not None
        assert self._job_id is not None
        with self._database.read() as conn:
            return segments.segment_from(conn, self._job_id, note.first, note.last, note.rows, recipe=recipe)

    def other_retries(self, variables: Mapping[str, Any], retry: Selection | None) -> frozenset[int]:
        """Return the unfinished retries, without the one that this command continues. retry: None for a plain run."""
        if self._database is None or self._job_id is None:
            return frozenset()
        with self._database.read() as conn:
            found = unfinished_retries(conn, self._job_id)
        ours = None if retry is None else (dict(variables), retry.facts())
        return frozenset(run.id for run in found if (run.vars, run.retry) != ours)

    def __call__(self, keys: Sequence[str]) -> Mapping[str, KnownRow]:
        """Known rows by key."""
        if self._database is None or self._job_id is None:
            return {}
        with self._database.read() as conn:
            return known_rows(conn, self._job_id, keys)

    def wanted(self, retry: Selection, known: Mapping[str, KnownRow]) -> set[str]:
        """The keys of those rows that are to be sent again."""
        keys = [key for key, row in known.items() if retry.wants(row)]
        if not keys or not retry.conditions:
            return set(keys)
        assert self._database is not None
        assert self._sink is not None
        with self._database.read() as conn:
            return matching_keys(conn, self._sink, retry.conditions, keys)
