"""How many tokens the API counts in a sample of a recipe's requests. It is asked once. Edge: HTTP, SQL.

The count is stored with the job. If we die between asking and storing, the next command asks again.
"""

from datetime import datetime
from itertools import takewhile

from pipeline.api.client import Api
from pipeline.job.model import Job
from pipeline.planning.model_checks import shared_tokens
from pipeline.planning.quote import Quote
from pipeline.planning.sample import Counts, Pair
from pipeline.state.database import Connection
from pipeline.state.token_counts import TokenCounts, store_counts, stored_counts

COUNTED = 20  # sampled requests that the API counts


def ask(job: Job, quote: Quote, api: Api) -> Counts:
    """Have the API count some of the sampled requests, which is free. Raises Stopped."""
    prefix = shared_tokens(job, quote, api)
    kept = takewhile(lambda sample: sample.params is not None, quote.samples[:COUNTED])
    pairs = [
        Pair(sample.tokens, len(sample.params), api.count_tokens(sample.params, job.request.betas))
        for sample in kept
        if sample.params is not None
    ]
    return Counts(tuple(pairs), prefix)


def by_bytes(job: Job, quote: Quote) -> Counts:
    """What can be said without the API."""
    return Counts((), shared_tokens(job, quote, None))


def stored(conn: Connection, job_id: int, recipe: str) -> Counts | None:
    """What the API counted for this recipe of the job before; None if it was not asked."""
    found = stored_counts(conn, job_id, recipe)
    return None if found is None else Counts(tuple(Pair(*pair) for pair in found.sample), found.prefix)


def store(conn: Connection, job_id: int, recipe: str, counts: Counts, now: datetime) -> None:
    """Note what the API counted, unless that is known or it counted nothing. In a transaction that writes alone."""
    if counts.sample:
        store_counts(conn, job_id, recipe, TokenCounts([list(pair) for pair in counts.sample], counts.prefix), now)
