"""Which rows have changed since a trial asked them? Edge: SQL."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, select

from pipeline.job.json_values import dump
from pipeline.sink.columns import ROW_HASH
from pipeline.sink.keys import after, among
from pipeline.sink.matching import AT_ONCE
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.state.row_facts import answered_hashes

Hashes = dict[tuple[Any, ...], str]  # row_hash in hex by the values of the key


def changed_since_trial(database: Database, trial: JobRecord, other: JobRecord) -> frozenset[str]:
    """Return the keys, as JSON, of rows that a trial and another job or trial have asked with different source values.

    The row_hashes of both must be those of jobs whose requests use the same columns.
    """
    changed: set[str] = set()
    theirs = ResultsTable.of(other)
    for page in _hashes(database, ResultsTable.of(trial)):
        with database.read() as conn:
            found = _of_job(conn, other, list(page)) if other.trial is None else _of_trial(conn, theirs, list(page))
        changed |= {dump(list(key)) for key, ours in page.items() if found.get(key, ours) != ours}
    return frozenset(changed)


def _hashes(database: Database, sink: ResultsTable) -> Iterator[Hashes]:
    """Yield the row_hashes of a trial, in pages of at most AT_ONCE, ordered by key."""
    key = [sink.rows.c[name] for name in sink.columns.key]
    query = page = select(*key, sink.rows.c[ROW_HASH]).order_by(*key).limit(AT_ONCE)
    while True:
        with database.read() as conn:
            found = {tuple(row[:-1]): row[-1] for row in conn.execute(page).all()}
        if not found:
            return
        yield found
        page = query.where(after(key, next(reversed(found))))


def _of_trial(conn: Connection, sink: ResultsTable, keys: Sequence[tuple[Any, ...]]) -> Hashes:
    key = [sink.rows.c[name] for name in sink.columns.key]
    query = select(*key, sink.rows.c[ROW_HASH]).where(among(key, keys))
    return {tuple(row[:-1]): row[-1] for row in conn.execute(query).all()}


def _of_job(conn: Connection, job: JobRecord, keys: Sequence[tuple[Any, ...]]) -> Hashes:
    by_text = {dump(list(key)): key for key in keys}
    return {by_text[text]: found.hex() for text, found in answered_hashes(conn, job.id, list(by_text)).items()}
