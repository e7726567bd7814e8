"""What a sending may cost at most, and whether a run's budget allows it. Pure.

Money is reserved when a batch is sent and settled when its results are in: max_tokens of output for each request, and
its bytes times a bound of tokens per byte, at the dearest price that its input can have.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from pipeline.answer.outcome import first_server_tool
from pipeline.errors import InputError
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.money.prices import PriceList, Rate, context_window, place_factor

CERTAIN_TOKENS_PER_BYTE = 1.0  # no tokenizer makes more than one token of one byte
SMALL_PROMPT = 100_000  # tokens: up to here no model of the price list costs more for a long prompt
QUANTILE_99 = 2.33  # standard deviations
LEAST_SHARE = (
    0.05  # of the budget: for less no batch is packed smaller, or a run would creep towards its limit for days
)


@dataclass(frozen=True)
class Bound:
    """What a request may cost at most, in US dollars."""

    fixed: float  #: its whole max_tokens, and what it names that is not in its bytes
    byte: float  #: a byte of its input, if each were a token

    @classmethod
    def of(
        cls,
        params: Mapping[str, Any],
        listed: PriceList,
        *,
        caches: bool | None = None,
        elsewhere: int = 0,
        small: bool = False,
    ) -> "Bound | None":
        """The bound of requests with these params; None when their model has no known price.

        caches: whether it writes to the prompt cache; None: that is looked for. elsewhere: tokens at most of files that
        it only names; small: whether its bytes and these tokens are at most SMALL_PROMPT.
        """
        known = listed.of(params["model"])
        if known is None:
            return None
        if caches is None:
            caches = b"cache_control" in orjson.dumps(params)
        byte = max(_dearest(rate, small=small) for rate in known.input_rates(caches=caches))
        factor = place_factor(params)
        fixed = params["max_tokens"] * _dearest(known.output, small=small) + elsewhere * byte
        return cls(factor * fixed, factor * byte)


def _dearest(rate: Rate, *, small: bool) -> float:
    """The price of a token that a request may have at most; some models cost more when the prompt is long."""
    return rate.of(SMALL_PROMPT) if small else rate.dearest


def is_small(size: int, elsewhere: int) -> bool:
    """Whether a request of so many bytes has the price of a short prompt: no byte is more than one token."""
    return size + elsewhere <= SMALL_PROMPT


def require_bound(job: Job, monthly_usd: float | None = None) -> None:
    """Raises InputError when there is a budget, of the run or of the month, that could not be kept."""
    if job.limits.max_cost_usd is None and monthly_usd is None:
        return
    which = "limits.max_cost_usd" if job.limits.max_cost_usd is not None else "BATCH_MONTHLY_BUDGET_USD"
    model = job.request.model
    others = [job.retry.change.refused.model] if job.retry.change.refused else []
    for name in [*([] if templates.is_template(model) else [model]), *others]:
        if PriceList(job.prices).of(name) is None:
            raise InputError(
                f"{which}: no batch price is known for {name}, so no budget can be kept; "
                "leave the limit out, give its price under prices, or choose a model with a price"
            )
    unbounded = first_server_tool(job.request.params)
    if unbounded:
        raise InputError(
            f"{which}: request.params.tools: {unbounded} runs at the API, with fees of its own and "
            "with input that nothing bounds, so no budget can be kept; leave the limit out, or the tool"
        )


IMAGE_TOKENS = 5_000  # more than any image is; source: platform.claude.com/docs/en/build-with-claude/vision


def elsewhere(params: Mapping[str, Any]) -> int:
    """Tokens at most of what a request shows the model apart from text: its bytes say nothing of them.

    A document may have as many as the model can read at all.
    """
    found = 0
    for message in params["messages"]:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block.get("type") == "document" and block["source"].get("type") != "text":
                return context_window(params["model"])
            found += IMAGE_TOKENS * (block.get("type") == "image")
    return found


def tokens_per_byte(samples: Sequence[tuple[int, int]]) -> float:
    """At most how many tokens a byte of input comes to: the 99% bound of samples (tokens, bytes) of requests."""
    ratios = [tokens / size for tokens, size in samples if size]
    if len(ratios) < 2:
        return CERTAIN_TOKENS_PER_BYTE
    return min(CERTAIN_TOKENS_PER_BYTE, max(*ratios, statistics.mean(ratios) + QUANTILE_99 * statistics.stdev(ratios)))


def month_of(now: datetime) -> datetime:
    """When the calendar month of this time began, in UTC: what BATCH_MONTHLY_BUDGET_USD counts by."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True)
class Budget:
    """How a run's money stands, in US dollars."""

    limit: float
    settled: float
    reserved: float

    @property
    def left(self) -> float:
        """What may still be reserved."""
        return self.limit - self.settled - self.reserved

    def fits(self, cost: float, requests: int) -> int:
        """How many of a batch's requests fit into what is left, if all may cost `cost`; 0: not worth a batch."""
        if cost <= self.left:
            return requests
        return 0 if self.left < LEAST_SHARE * self.limit else int(requests * self.left / cost)
