"""What a run would cost, low, expected and at worst, and what that assumes. Pure, but for queries of what was."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from pipeline import capabilities
from pipeline.job import Canary, Job
from pipeline.outcomes import Outcome
from pipeline.quote import SEPARATORS, Quote, Sample
from pipeline.sink import Sink
from pipeline.states import RowState
from pipeline.tables import batches

PAST_ANSWERS = 10_000  # of the newest ones, at most
CERTAINTY = 1.96  # standard errors to either side hold the mean 95 times of 100
GUESS = 0.25  # how far a count by bytes may be off, to either side
GUESS_OF_FILES = 0.6  # the same of requests with images or documents, which their bytes say nothing of
MOST_DOUBT = 0.75

#: That a batch takes. Source: platform.claude.com/docs/en/build-with-claude/batch-processing
USUAL_HOURS, MOST_HOURS = 1, 24


class Past(NamedTuple):
    """What this job's answers were like. low, mean: output tokens that a tenth stayed within, and of all.

    rate: see `read_rate`.
    """

    answers: int
    low: float
    mean: float
    rate: float | None


def read_rate(usage: dict[str, int]) -> float | None:
    """Of the tokens that requests have in the prompt cache, the share that was read from it; None if there are none."""
    read, written = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    return read / (read + written) if read + written else None


def usage_of(conn: Connection, *where: Any) -> dict[str, int]:
    """Tokens by class of the collected batches for which this holds."""
    total: dict[str, int] = {}
    for usage in conn.scalars(select(batches.c.usage).where(*where, batches.c.usage.is_not(None))):
        for name, tokens in usage.items():
            total[name] = total.get(name, 0) + tokens
    return total


def past(conn: Connection, job: Row[Any], sink: Sink, recipe: str) -> Past | None:
    """This job's past answers, those of this recipe if there are any; None if there are none at all."""
    table = sink.table
    usage = usage_of(conn, batches.c.job_id == job.id)
    for only in ([table.c.recipe == recipe], []):
        newest = (
            select(table.c.output_tokens)
            .where(table.c.status == RowState.SUCCEEDED, table.c.output_tokens > 0, *only)
            .limit(PAST_ANSWERS)
        )
        tokens = sorted(conn.scalars(newest))
        if tokens:
            return Past(len(tokens), float(tokens[len(tokens) // 10]), statistics.mean(tokens), read_rate(usage))
    return None


class Counted(NamedTuple):
    """Input tokens of one request. error: of the mean, to either side; sampled: how many the API counted, 0: none."""

    mean: float
    error: float
    sampled: int


class Money(NamedTuple):
    """US dollars. expected: None when nothing is known of the answers yet."""

    low: float
    expected: float | None
    worst: float


class Cached(NamedTuple):
    """The prefix that all requests share. tokens: 0 when it is too short to be cached; rate: see `read_rate`."""

    tokens: int
    ttl: str
    rate: float


@dataclass(frozen=True)
class Estimate:
    """What a run would send and cost. money: None when a model has no known price."""

    requests: int
    batches: int
    size_bytes: int
    models: list[str]
    input_tokens: Counted
    output_tokens: tuple[float, float | None, int]  #: of one answer: low, expected, max_tokens
    cached: Cached | None
    money: Money | None
    rounds: int  #: how often the queue at the API is filled
    queue: int  #: requests that it takes
    assumes: list[str]

    @property
    def hours(self) -> tuple[int, int]:
        """How long it takes: usually, and at most."""
        return self.rounds * USUAL_HOURS, self.rounds * MOST_HOURS

    def facts(self) -> dict[str, Any]:
        """As JSON. Costs in US dollars."""
        low, expected, most = self.output_tokens
        return {
            "requests": self.requests,
            "batches": self.batches,
            "bytes": self.size_bytes,
            "models": self.models,
            "input_tokens": {
                "mean": round(self.input_tokens.mean, 1),
                "error": round(self.input_tokens.error, 1),
                "counted": self.input_tokens.sampled,
                "total": round(self.input_tokens.mean * self.requests),
            },
            "output_tokens": {"low": low, "expected": expected, "worst": most},
            "cache": None if self.cached is None else self.cached._asdict(),
            "cost_usd": None if self.money is None else self.money._asdict(),
            "hours": {"usual": self.hours[0], "most": self.hours[1], "rounds": self.rounds, "queue": self.queue},
            "assumes": self.assumes,
        }


def estimate(
    job: Job, quote: Quote, *, counts: Sequence[int], prefix_tokens: int, before: Past | None, queue: int
) -> Estimate:
    """The estimate for what the quote would send.

    counts: input tokens by the API's count of the first so many samples, none if it was not asked; prefix_tokens: of
    what all requests share, 0 without `cache`; queue: requests that may be at the API at a time.
    """
    samples = quote.samples
    tokens = _tokens(samples, counts)
    guess = GUESS_OF_FILES if job.request.attachments else GUESS
    counted = _counted(tokens, len(counts), quote.to_send, guess)
    cached = _cached(job, quote, prefix_tokens, before)
    expected = None if before is None else before.mean
    low = before.low if before is not None else 1.0
    money = None
    if samples and quote.unpriced is None:
        shared = 0 if cached is None else cached.tokens
        rate = 0.0 if cached is None else cached.rate
        doubt = counted.error / counted.mean if counted.mean else 0.0

        def cost(output: float | None, read: float, factor: float = 1.0) -> float:
            each = (
                _cost(quote, sample, factor * n, round(factor * shared), read, output, job)
                for sample, n in zip(samples, tokens, strict=True)
            )
            return quote.to_send * statistics.mean(each)

        best = 0.0 if cached is None else 1.0 - 1.0 / max(1, quote.to_send)  # one writes it, all others read it
        about = None if expected is None else cost(expected, rate)
        money = Money(cost(low, best, 1 - doubt), about, cost(None, 0.0, 1 + doubt))
    return Estimate(
        requests=quote.to_send,
        batches=quote.batches if quote.to_send else 0,
        size_bytes=round(quote.to_send * (quote.mean_bytes + SEPARATORS)),
        models=quote.models,
        input_tokens=counted,
        output_tokens=(low, expected, quote.max_tokens),
        cached=cached,
        money=money,
        rounds=math.ceil(quote.to_send / queue),
        queue=queue,
        assumes=list(_assumptions(job, quote.to_send, counted, before, cached)),
    )


def _tokens(samples: Sequence[Sample], counts: Sequence[int]) -> list[float]:
    """Input tokens of each sample: as counted, the others by what the counted ones say of a byte."""
    guessed = sum(sample.tokens for sample in samples[: len(counts)])
    factor = sum(counts) / guessed if counts and guessed else 1.0
    return [float(n) for n in counts] + [sample.tokens * factor for sample in samples[len(counts) :]]


def _counted(tokens: Sequence[float], sampled: int, rows: int, guess: float) -> Counted:
    """rows: that the sample is of; guess: how far its mean may be off when the API has not counted it."""
    if not tokens:
        return Counted(0.0, 0.0, sampled)
    mean, error = statistics.mean(tokens), 0.0
    if 1 < len(tokens) < rows:
        error = CERTAINTY * statistics.stdev(tokens) / math.sqrt(len(tokens)) * math.sqrt(1 - len(tokens) / rows)
    return Counted(mean, min(error if sampled else error + guess * mean, MOST_DOUBT * mean), sampled)


def _cached(job: Job, quote: Quote, prefix_tokens: int, before: Past | None) -> Cached | None:
    if job.request.cache is None or not quote.models:
        return None
    least = max(capabilities.cache_minimum(model) for model in quote.models)
    rate = 1.0 - 1.0 / max(1, quote.to_send)
    if before is not None and before.rate is not None:
        rate = before.rate
    return Cached(prefix_tokens if prefix_tokens >= least else 0, job.request.cache, rate)


def _cost(
    quote: Quote, sample: Sample, tokens: float, shared: int, read: float, output: float | None, job: Job
) -> float:
    """US dollars of one request. output: tokens, at most max_tokens; None: all of these."""
    prices = quote.listed.of(sample.model)
    assert prices is not None
    reads = round(shared * read)
    writes = shared - reads
    answer = sample.max_tokens if output is None else min(round(output), sample.max_tokens)
    usage = Outcome(
        RowState.SUCCEEDED,
        model=sample.model,
        input_tokens=max(0, round(tokens) - shared),
        output_tokens=answer,
        cache_read_tokens=reads,
        cache_write_tokens=writes,
        cache_write_1h_tokens=writes if job.request.cache == "1h" else 0,
        in_the_us=job.request.params.get("inference_geo") == "us",
    )
    return prices.cost(usage)


def _assumptions(job: Job, requests: int, counted: Counted, before: Past | None, cached: Cached | None) -> list[str]:
    found = ["batch prices, half of the list's; every row is asked once"]
    if job.retry.change != type(job.retry.change)():
        found.append("what retry.change sends again comes on top")
    if counted.sampled:
        found.append(f"input by the API's own count of {counted.sampled} rows of a random sample")
    else:
        off = GUESS_OF_FILES if job.request.attachments else GUESS
        found.append(
            f"input by the bytes of a random sample, 3.5 a token give or take {off:.0%}: the API was not asked"
        )
    if before is not None:
        found.append(f"output as {before.answers:,} past answers of this job took: low is what a tenth stayed within")
    elif isinstance(job.canary, Canary) and job.canary.is_for(requests):
        found.append(f"output: nothing is known before the canary, the first {job.canary.rows} rows, is back")
    else:
        found.append("output: nothing is known before the first rows are answered; try `run --limit 20`")
    if cached is not None and not cached.tokens:
        found.append("what the requests share is too short for the prompt cache, so nothing is cached")
    elif cached is not None:
        measured = before is not None and before.rate is not None
        how = "as in this job's runs so far" if measured else "if the row that goes first has written it for all others"
        found.append(f"{cached.rate:.1%} of the shared prefix read from the cache, {how}; at worst all rows write it")
    if "tools" in job.request.params:
        found.append("fees and input of tools that the API runs are not in it")
    return found
