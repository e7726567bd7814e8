"""How many tokens the API counts in a sample of a recipe's requests. It is asked once. Edge: HTTP, SQL.

The count is stored with the job. If we die between asking and storing, the next command asks again.
"""

from datetime import datetime
from itertools import takewhile
from typing import NamedTuple

from sqlalchemy import Connection, insert, select

from pipeline import budget, checks
from pipeline.api import Api
from pipeline.job import Job
from pipeline.quote import Quote
from pipeline.tables import token_counts

COUNTED = 20  # sampled requests that the API counts


class Pair(NamedTuple):
    """One request. guess: tokens by its bytes; size: bytes, with all files in it; tokens: by the API's count."""

    guess: float
    size: int
    tokens: int


class Counts(NamedTuple):
    """What the API counted. sample: empty when it was not asked; prefix: tokens that all requests share, 0: none."""

    sample: tuple[Pair, ...]
    prefix: int

    @property
    def factor(self) -> float:
        """Tokens by the API's count for each token guessed by bytes; 1 when nothing was counted."""
        guessed = sum(pair.guess for pair in self.sample)
        return sum(pair.tokens for pair in self.sample) / guessed if guessed else 1.0

    @property
    def tokens_per_byte(self) -> float:
        """At most how many tokens a byte of these requests comes to; see budget.tokens_per_byte."""
        return budget.tokens_per_byte([(pair.tokens, pair.size) for pair in self.sample])


def ask(job: Job, quote: Quote, api: Api) -> Counts:
    """Have the API count some of the sampled requests, which is free. Raises Stopped."""
    prefix = checks.shared_tokens(job, quote, api)
    kept = takewhile(lambda sample: sample.params is not None, quote.samples[:COUNTED])
    pairs = [
        Pair(sample.tokens, len(sample.params), api.count_tokens(sample.params, job.request.betas))
        for sample in kept
        if sample.params is not None
    ]
    return Counts(tuple(pairs), prefix)


def by_bytes(job: Job, quote: Quote) -> Counts:
    """What can be said without the API."""
    return Counts((), checks.shared_tokens(job, quote, None))


def stored(conn: Connection, job_id: int, recipe: str) -> Counts | None:
    """What the API counted for this recipe of the job before; None if it was not asked."""
    here = (token_counts.c.job_id == job_id, token_counts.c.recipe == recipe)
    row = conn.execute(select(token_counts).where(*here)).one_or_none()
    return None if row is None else Counts(tuple(Pair(*pair) for pair in row.sample), row.prefix)


def store(conn: Connection, job_id: int, recipe: str, counts: Counts, now: datetime) -> None:
    """Note what the API counted, unless that is known or it counted nothing. In a transaction that writes alone."""
    if counts.sample and stored(conn, job_id, recipe) is None:
        values = {"sample": [list(pair) for pair in counts.sample], "prefix": counts.prefix, "counted_at": now}
        conn.execute(insert(token_counts).values(job_id=job_id, recipe=recipe, **values))
