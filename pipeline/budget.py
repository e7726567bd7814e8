"""What a sending may cost at most, and whether a run's budget allows it. Pure.

Money is reserved when a batch is sent and settled when its results are in: max_tokens of output for each request, and
its bytes times a bound of tokens per byte, at the dearest price that its input can have.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline import pricing
from pipeline.errors import InputError
from pipeline.job import Job

CERTAIN_TOKENS_PER_BYTE = 1.0  # no tokenizer makes more than one token of one byte
QUANTILE_99 = 2.33  # standard deviations
CLIENT_TOOLS = ("bash_", "computer_", "memory_", "text_editor_")  # typed, yet run by the client
LEAST_SHARE = (
    0.05  # of the budget: for less no batch is packed smaller, or a run would creep towards its limit for days
)


@dataclass(frozen=True)
class Bound:
    """What a request may cost at most, in US dollars."""

    output: float  #: its whole max_tokens
    byte: float  #: a byte of its input, if each were a token

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Bound | None":
        """The bound of requests with these params; None when their model has no known price."""
        known = pricing.prices(params["model"])
        if known is None:
            return None
        rates = [known.input]
        if b"cache_control" in orjson.dumps(params):
            rates += [known.cache_write, known.cache_write_1h]
        return cls(params["max_tokens"] * known.output.dearest, max(rate.dearest for rate in rates))


def require_bound(job: Job) -> None:
    """Raises InputError when the job has a budget that could not be kept."""
    if job.limits.max_cost_usd is None:
        return
    if pricing.prices(job.request.model) is None:
        raise InputError(
            f"limits.max_cost_usd: no batch price is known for {job.request.model}, so no budget can be kept; "
            "leave the limit out, or choose a model with a price"
        )
    unbounded = _run_by_the_api(job.request.params)
    if unbounded:
        raise InputError(
            f"limits.max_cost_usd: request.params.tools: {unbounded} runs at the API, with fees of its own and "
            "with input that nothing bounds, so no budget can be kept; leave the limit out, or the tool"
        )


def _run_by_the_api(params: Mapping[str, Any]) -> str | None:
    """The first tool in the params that the API runs by itself; None when answers only ask for tools to be run."""
    tools = params.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = str(tool.get("type", "custom")) if isinstance(tool, dict) else "custom"
        if kind != "custom" and not kind.startswith(CLIENT_TOOLS):
            return kind
    return None


def tokens_per_byte(samples: Sequence[tuple[int, int]]) -> float:
    """At most how many tokens a byte of input comes to: the 99% bound of samples (tokens, bytes) of requests."""
    ratios = [tokens / size for tokens, size in samples if size]
    if len(ratios) < 2:
        return CERTAIN_TOKENS_PER_BYTE
    return min(CERTAIN_TOKENS_PER_BYTE, max(*ratios, statistics.mean(ratios) + QUANTILE_99 * statistics.stdev(ratios)))


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
