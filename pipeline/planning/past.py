"""Read how long a job's answers were so far, and how much its requests used the prompt cache. Edge: SQL."""

import statistics
from typing import NamedTuple

from pipeline.money.measures import cached_share, read_rate
from pipeline.sink.read import newest_lengths
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Connection
from pipeline.state.jobs import JobRecord
from pipeline.state.spending import usage_of_job

PAST_ANSWERS = 10_000  # the most answers that are read, newest first


class Past(NamedTuple):
    """What is known of a job's past answers.

    answers: how many were read; low: the output tokens that a tenth of them did not exceed; mean: their mean output
    tokens; rate: see `read_rate`; cached: see `cached_share`.
    """

    answers: int
    low: float
    mean: float
    rate: float | None
    cached: float = 0.0


def past(conn: Connection, job: JobRecord, sink: ResultsTable, recipe: str) -> Past | None:
    """Return what is known of the job's answers: of this recipe, else of all recipes; None if it has no answers."""
    usage = usage_of_job(conn, job.id)
    for only in (recipe, None):
        tokens = sorted(newest_lengths(conn, sink, only, limit=PAST_ANSWERS))
        if tokens:
            low, mean = float(tokens[len(tokens) // 10]), statistics.mean(tokens)
            return Past(answers=len(tokens), low=low, mean=mean, rate=read_rate(usage), cached=cached_share(usage))
    return None
