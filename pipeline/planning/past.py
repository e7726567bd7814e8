"""What the answers of a job were like so far: how long, and how much of them came from the prompt cache. Edge: SQL."""

import statistics
from typing import NamedTuple

from pipeline.sink.read import newest_lengths
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Connection
from pipeline.state.jobs import JobRecord
from pipeline.state.spending import usage_of_job

PAST_ANSWERS = 10_000  # of the newest ones, at most


class Past(NamedTuple):
    """What this job's answers were like. low, mean: output tokens that a tenth stayed within, and of all.

    rate: see `read_rate`; cached: of all input tokens the share that requests have in the prompt cache.
    """

    answers: int
    low: float
    mean: float
    rate: float | None
    cached: float = 0.0


def read_rate(usage: dict[str, int]) -> float | None:
    """Of the tokens that requests have in the prompt cache, the share that was read from it; None if there are none."""
    read, written = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    return read / (read + written) if read + written else None


def cached_share(usage: dict[str, int]) -> float:
    """Of all input tokens, the share that was read from the prompt cache or written to it."""
    cached = usage.get("cache_read_tokens", 0) + usage.get("cache_write_tokens", 0)
    return cached / (usage.get("input_tokens", 0) + cached) if cached else 0.0


def past(conn: Connection, job: JobRecord, sink: ResultsTable, recipe: str) -> Past | None:
    """This job's past answers, those of this recipe if there are any; None if there are none at all."""
    usage = usage_of_job(conn, job.id)
    for only in (recipe, None):
        tokens = sorted(newest_lengths(conn, sink, only, limit=PAST_ANSWERS))
        if tokens:
            low, mean = float(tokens[len(tokens) // 10]), statistics.mean(tokens)
            return Past(answers=len(tokens), low=low, mean=mean, rate=read_rate(usage), cached=cached_share(usage))
    return None
