"""Which rows of two jobs have answers to different source values? Edge: SQL."""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from pipeline.state.tables import requests


def changed_between(conn: Connection, job_id: int, other_id: int) -> frozenset[str]:
    """Return the keys, as JSON, of rows that both jobs have answered for different source values (row_hash)."""
    ours, theirs = requests.alias("ours"), requests.alias("theirs")
    same = (ours.c.key == theirs.c.key) & (theirs.c.job_id == other_id)
    query = (
        select(ours.c.key)
        .join(theirs, same)
        .where(ours.c.job_id == job_id, ours.c.outcome_hash != theirs.c.outcome_hash)
    )
    return frozenset(conn.scalars(query))


def answered_hashes(conn: Connection, job_id: int, keys: Sequence[str]) -> dict[str, bytes]:
    """Return the row_hash that the answer of each of these rows is for, by key. keys: JSON, some hundreds at most."""
    columns = (requests.c.key, requests.c.outcome_hash)
    answered = (requests.c.job_id == job_id, requests.c.key.in_(keys), requests.c.outcome_hash.is_not(None))
    return dict(conn.execute(select(*columns).where(*answered)).tuples().all())
