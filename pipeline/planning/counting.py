"""Ask the API how many tokens a sample of a recipe's requests has, and store its counts. Edge: HTTP, SQL.

The API is asked once for each recipe of a job. If we die after it has answered and before the counts are stored, the
next command asks again.
"""

from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING

from pipeline.job.model import Job
from pipeline.planning.model_checks import shared_tokens
from pipeline.planning.quote import Quote
from pipeline.planning.sample import Counts, Pair
from pipeline.state.database import Connection
from pipeline.state.token_counts import TokenCounts, store_counts, stored_counts

if TYPE_CHECKING:
    from pipeline.api.client import Api

COUNTED = 20  # sampled requests that the API counts


def ask(job: Job, quote: Quote, api: "Api") -> Counts:
    """Return the API's counts of up to COUNTED sampled requests and of the shared prefix. Counting is free.

    A sample whose params were not kept ends the list. Raises Stopped if the API gives no count.
    """
    prefix = shared_tokens(job, quote, api)
    kept = takewhile(lambda sample: sample.params is not None, quote.samples[:COUNTED])
    pairs = [
        Pair(sample.tokens, len(sample.params), api.count_tokens(sample.params, job.request.betas))
        for sample in kept
        if sample.params is not None
    ]
    return Counts(tuple(pairs), prefix)


def by_bytes(job: Job, quote: Quote) -> Counts:
    """Return counts made without the API: an empty sample, and the length of the shared prefix by its bytes."""
    return Counts((), shared_tokens(job, quote, None))


def with_prefix(counts: Counts, job: Job, quote: Quote) -> Counts:
    """Return stored counts with the length of the shared prefix by its bytes if they have none.

    An older version counted a prefix only for `request.cache`, and not for the user's own breakpoints.
    """
    return counts if counts.prefix else counts._replace(prefix=shared_tokens(job, quote, None))


def stored(conn: Connection, job_id: int, recipe: str) -> Counts | None:
    """Return the stored counts of this recipe of the job; None if the API has not counted it yet."""
    found = stored_counts(conn, job_id, recipe)
    return None if found is None else Counts(tuple(Pair(*pair) for pair in found.sample), found.prefix)


def store(conn: Connection, job_id: int, recipe: str, counts: Counts, now: datetime) -> None:
    """Store the API's counts unless they are stored already or the sample is empty. Call it as the only writer."""
    if counts.sample:
        store_counts(conn, job_id, recipe, TokenCounts([list(pair) for pair in counts.sample], counts.prefix), now)
