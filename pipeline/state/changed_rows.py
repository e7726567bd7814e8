"""Which rows of two jobs have answers to different source values? Edge: SQL."""

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
