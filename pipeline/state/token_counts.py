"""How many tokens has the API counted in a sample of a recipe's requests? Edge: SQL."""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select

from pipeline.state.tables import token_counts


class TokenCounts(NamedTuple):
    """What the API counted. sample: for each request the fields of sample.Pair; prefix: tokens that all share."""

    sample: list[list[Any]]
    prefix: int


def stored_counts(conn: Connection, job_id: int, recipe: str) -> TokenCounts | None:
    """Return what the API counted for this recipe of the job; None if it was not asked."""
    here = (token_counts.c.job_id == job_id, token_counts.c.recipe == recipe)
    row = conn.execute(select(token_counts.c.sample, token_counts.c.prefix).where(*here)).one_or_none()
    return None if row is None else TokenCounts(*row)


def store_counts(conn: Connection, job_id: int, recipe: str, counts: TokenCounts, now: datetime) -> None:
    """Note what the API counted, unless that is known. In a transaction that writes alone."""
    if stored_counts(conn, job_id, recipe) is None:
        values = {**counts._asdict(), "counted_at": now}
        conn.execute(insert(token_counts).values(job_id=job_id, recipe=recipe, **values))
