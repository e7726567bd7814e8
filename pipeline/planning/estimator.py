"""Estimate what a run will cost (low, expected, worst case), with the assumptions behind it. Pure.

`run` and `estimate` show the same estimate. It is also stored with the run, so that the end of the run can compare it
with the real cost.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from functools import reduce

from pipeline.answer import retry_change
from pipeline.answer.continuing import goes_on
from pipeline.answer.outcome import Outcome
from pipeline.answer.retry_change import AnyChange
from pipeline.api import capabilities
from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.money import budget
from pipeline.money.prices import PriceList, context_window
from pipeline.planning.estimate import Cached, Counted, Estimate, Money
from pipeline.planning.past import Past
from pipeline.planning.quote import Quote
from pipeline.planning.sample import SEPARATORS, Counts, Sample, changed_sample
from pipeline.request.breakpoints import cached_prefix
from pipeline.states import RowState

CERTAINTY = 1.96  # standard errors in either direction: the interval holds the mean 95 times out of 100
GUESS = 0.25  # how far a count by bytes may be off, in either direction
GUESS_OF_FILES = 0.6  # the same for requests with images or documents, whose bytes do not tell their tokens
MOST_DOUBT = 0.75  # the largest error that an estimate shows, as a share of the mean


def estimate(job: Job, quote: Quote, *, counts: Counts, before: Past | None, queue: int) -> Estimate:
    """Return the estimate for the rows that a quote would send.

    counts: the API's counts of this recipe; its sample is empty if the API was not asked. before: the job's past
    answers; None: there are none. queue: how many requests may be at the API at a time.
    """
    asked = (sample if sample.change is None else changed_sample(sample, sample.change) for sample in quote.samples)
    samples = [sample._replace(tokens=sample.tokens * counts.factor) for sample in asked]
    counted = _counted(samples, counts, quote.requests, GUESS_OF_FILES if job.request.attachments else GUESS)
    cached = _cached(job, quote, counts.prefix, before)
    priced = _Priced(job, quote.listed, counts, counted, None if goes_on(job) else before)
    unpriced = next((model for model in _models(job, quote) if quote.listed.of(model) is None), None)
    low = 1.0 if before is None else before.low
    expected = None if before is None else before.mean
    return Estimate(
        rows=quote.to_send,
        requests=quote.requests,
        batches=quote.batches if quote.to_send else 0,
        size_bytes=round(quote.requests * (quote.mean_bytes + SEPARATORS)),
        models=quote.models,
        input_tokens=counted,
        output_tokens=(low, expected, quote.max_tokens),
        cached=cached,
        money=priced.money(samples, quote.requests) if samples and unpriced is None else None,
        unpriced=unpriced,
        rounds=math.ceil(quote.requests / queue),
        queue=queue,
        assumes=list(_assumptions(job, quote, counted, before, cached)),
    )


def _models(job: Job, quote: Quote) -> list[str]:
    """Return the models that may be asked, including those that `retry.change` names."""
    return [*quote.models, *job.retry.change.other_models] if quote.models else []


def _counted(samples: Sequence[Sample], counts: Counts, requests: int, guess: float) -> Counted:
    """Return the mean number of tokens of a request, and how far it may be off.

    The API has counted a few requests, which gives the ratio of counted to guessed tokens. A larger sample gives the
    mean of the guesses. Each has an error, and the two are combined. requests: how many the sample stands for; guess:
    the error, as a share of the mean, if the API has counted nothing.
    """
    if not samples:
        return Counted(0.0, 0.0, len(counts.sample))
    tokens = [sample.tokens for sample in samples]
    off = [pair.tokens - counts.factor * pair.guess for pair in counts.sample]
    mean = statistics.mean(tokens)
    of_sample, of_counts = _error(tokens, requests), _error(off, requests)
    error = math.hypot(of_sample, of_counts) if counts.sample else of_sample + guess * mean
    return Counted(mean, min(error, MOST_DOUBT * mean), len(counts.sample))


def _error(values: Sequence[float], population: int) -> float:
    """Return how far the mean of the values may be off, in either direction.

    population: how many values there are in all. Return 0 if the values are all of them, or fewer than two.
    """
    if not 1 < len(values) < population:
        return 0.0
    return CERTAINTY * statistics.stdev(values) / math.sqrt(len(values)) * math.sqrt(1 - len(values) / population)


def _cached(job: Job, quote: Quote, prefix_tokens: int, before: Past | None) -> Cached | None:
    prefix = cached_prefix(job)
    if prefix is None or not quote.models:
        return None
    least = max(capabilities.cache_minimum(model) for model in quote.models)
    rate = 1.0 - 1.0 / max(1, quote.requests)
    if before is not None and before.rate is not None:
        rate = before.rate
    return Cached(prefix_tokens if prefix_tokens >= least else 0, prefix.ttl, rate)


class _Priced:
    """Computes what requests cost, from what is known of their tokens, the cache and past answers."""

    def __init__(self, job: Job, listed: PriceList, counts: Counts, counted: Counted, before: Past | None) -> None:
        """before: None if past answers do not tell what a row will cost."""
        self._job, self._listed, self._prefix, self._before = job, listed, counts.prefix, before
        self._rounds = job.rounds.max if goes_on(job) else 1
        results = len(job.rounds.tools) * job.rounds.max_output_bytes  # of one answer, which calls each tool once
        self._result_tokens = results * counts.tokens_per_byte
        self._doubt = counted.error / counted.mean if counted.mean else 0.0
        self._doubt_of_prefix = self._doubt if counted.sampled else GUESS
        change = job.retry.change
        self._growing = [each for each in (change.truncated, change.unparsable) if each is not None]
        self._refused = [] if change.refused is None else change.refused.models
        self._fallbacks = [model for each in (change.errored, change.expired) if each for model in each.models]
        cached = cached_prefix(job)
        self._ttl = None if cached is None else cached.ttl

    def money(self, samples: Sequence[Sample], requests: int) -> Money:
        """Return the cost of this number of requests, if they are like the samples."""

        def total(costs: Iterator[float]) -> float:
            return requests * statistics.mean(costs)

        best = 1.0 - 1.0 / max(1, requests)  # one request writes the shared prefix, all others read it
        expected = None
        if self._before is not None:
            expected = total(self._expected(sample, self._before, best) for sample in samples)
        low = total(self._low(sample, best) for sample in samples)
        return Money(low, expected, total(self._worst(sample) for sample in samples))

    def _low(self, sample: Sample, best: float) -> float:
        tokens = (1 - self._doubt) * sample.tokens
        covered = self._covered(sample, tokens, (1 - self._doubt) * self._prefix)
        return self._cost(sample, tokens, covered, best, 1.0 if self._before is None else self._before.low)

    def _expected(self, sample: Sample, before: Past, best: float) -> float:
        covered = self._covered(sample, sample.tokens, self._prefix)
        if sample.marked is not None:
            covered = before.cached * sample.tokens
        return self._cost(sample, sample.tokens, covered, best if before.rate is None else before.rate, before.mean)

    def _worst(self, sample: Sample) -> float:
        """Return the worst-case cost of a row: of all its rounds, each of which reads all that was said before."""
        cost, window = self._worst_of_round(sample), context_window(sample.model)
        models = [sample.model, *self._refused, *self._fallbacks]
        for _ in range(self._rounds - 1):
            asked = reduce(changed_sample, self._growing * (self._job.retry.max_attempts - 1), sample)
            read = max(sample.tokens, min(window, asked.tokens + asked.max_tokens + self._result_tokens))
            sample = asked._replace(tokens=read, marked=self._job.request.cache or sample.marked)
            cost += max(self._worst_of_round(sample._replace(model=model)) for model in models)
        return cost

    def _worst_of_round(self, sample: Sample) -> float:
        """Return the worst-case cost of a round: no cache reads, answers of max_tokens, and every change switched on.

        Errored and expired requests are not billed, so their fallbacks add no attempts, but they may be dearer.
        """
        asked = sample._replace(tokens=(1 + self._doubt) * sample.tokens)
        cost = self._worst_of_models(asked, [sample.model, *self._fallbacks])
        most = self._job.retry.max_attempts + max(0, len(self._refused) - 1)
        for attempt in range(most - 1):
            again = reduce(changed_sample, self._growing, asked)  # the worst case: all of the changes at once
            if again == asked and attempt >= len(self._refused):
                break
            asked = again  # the model may or may not have been changed by then
            cost += self._worst_of_models(asked, [sample.model, *self._refused, *self._fallbacks])
        return cost

    def _worst_of_models(self, sample: Sample, models: Sequence[str]) -> float:
        """Return the worst-case cost of a request to the dearest of these models."""
        return max(self._worst_of_one(sample._replace(model=model)) for model in dict.fromkeys(models))

    def _worst_of_one(self, sample: Sample) -> float:
        covered = self._covered(sample, sample.tokens, (1 + self._doubt_of_prefix) * self._prefix)
        return self._cost(sample, sample.tokens, covered, 0.0, float(sample.max_tokens))

    def _covered(self, sample: Sample, tokens: float, prefix: float) -> float:
        """Return how many tokens the prompt cache may hold; 0 if that is less than the model caches.

        These are all tokens if the request has cache_control after the shared prefix, and that prefix otherwise.
        """
        wanted = tokens if sample.marked is not None else prefix
        return wanted if wanted >= capabilities.cache_minimum(sample.model) else 0.0

    def _cost(self, sample: Sample, tokens: float, covered: float, read: float, output: float) -> float:
        """Return the cost of one request in US dollars. covered: cached tokens; read: their share that is read."""
        prices = self._listed.of(sample.model)
        assert prices is not None
        covered = min(covered, tokens)
        reads = round(covered * read)
        writes = round(covered) - reads
        usage = Outcome(
            RowState.SUCCEEDED,
            model=sample.model,
            input_tokens=max(0, round(tokens) - reads - writes),
            output_tokens=min(round(output), sample.max_tokens),
            cache_read_tokens=reads,
            cache_write_tokens=writes,
            cache_write_1h_tokens=writes if "1h" in (sample.marked, self._ttl) else 0,
            in_the_us=self._job.request.params.get("inference_geo") == "us",
        )
        return prices.cost(usage)


def _most_billed(job: Job) -> int:
    """Return how often a row may be sent and billed."""
    return retry_change.most_attempts(job.retry, RowState.REFUSED)


def _switched_on(job: Job) -> list[AnyChange]:
    """Return the changes after answers, which are billed."""
    change = job.retry.change
    return [each for each in (change.truncated, change.refused, change.unparsable) if each is not None]


def _assumptions(job: Job, quote: Quote, counted: Counted, before: Past | None, cached: Cached | None) -> Iterator[str]:
    yield "batch prices, half of the list prices; errored and expired requests are not billed"
    if _switched_on(job):
        yield f"at worst every row is sent {_most_billed(job)} times, with all changes of retry.change"
    if goes_on(job):
        results = (
            ", and each answer calls every tool once, with results of max_output_bytes" if job.rounds.tools else ""
        )
        yield f"at worst every row has {job.rounds.max} rounds{results}; what it costs as a rule is not estimated"
    if job.retry.change.errored or job.retry.change.expired:
        yield "at worst the dearest model of retry.change answers; errored and expired requests before it cost nothing"
    yield counted_by(job, counted)
    if before is not None:
        yield f"output by {before.answers:,} past answers of this job; low: a tenth of them had at most so many tokens"
    elif isinstance(job.canary, Canary) and job.canary.applies_to(quote.to_send):
        yield f"output: nothing is known before the canary, the first {job.canary.rows} rows, is collected"
    else:
        yield "output: nothing is known before the first rows are answered; try `run --limit 20`"
    if cached is not None and not cached.tokens:
        yield "the shared prefix is too short for the prompt cache, so nothing is cached"
    elif cached is not None:
        measured = before is not None and before.rate is not None
        how = "as in this job's runs so far" if measured else "if the first row writes it and all others read it"
        yield f"{cached.rate:.1%} of the shared prefix read from the cache, {how}; at worst all rows write it"
    if any(sample.marked is not None for sample in quote.samples):
        yield "cache_control after the shared prefix: at worst all input is written to the cache, at best read from it"
    if "tools" in job.request.params:
        yield "fees and input tokens of tools that the API runs are not included"
    if budget.compacts(job.request.params):
        yield "what the summaries of long conversations read and write (compact_20260112) is not included"


def counted_by(job: Job, counted: Counted) -> str:
    """Return a sentence that says how the input was counted."""
    if counted.sampled:
        return f"input by the API's token counts of {counted.sampled} rows of a random sample"
    off = GUESS_OF_FILES if job.request.attachments else GUESS
    return (
        f"input by the bytes of a random sample, 3.5 bytes a token, give or take {off:.0%}: the API has not counted it"
    )
