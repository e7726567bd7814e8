"""The worst-case cost of requests, and how much of a budget is left. Pure.

Money is reserved when a batch is sent, and settled when its results are stored. Reserved for each request: max_tokens
of output, and its bytes times a bound of tokens per byte, at the highest price that its input can have.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.answer.outcome import first_server_tool
from pipeline.errors import InputError
from pipeline.job import templates
from pipeline.job.model import Job
from pipeline.money.measures import CERTAIN_TOKENS_PER_BYTE
from pipeline.money.prices import PriceList, Rate, context_window, geography_factor

SMALL_PROMPT = 100_000  # tokens; up to this size no model of the price list charges the higher price for long prompts
QUANTILE_99 = 2.33  # standard deviations
#: Share of the budget that is worth a batch; with less left, a run would send ever smaller batches for days.
MINIMUM_SHARE = 0.05


@dataclass(frozen=True)
class Bound:
    """The highest cost of a request, in US dollars: fixed + byte * its bytes * tokens per byte."""

    fixed: float  #: the price of max_tokens of output, and of attachments whose tokens its bytes do not show
    byte: float  #: the price of one byte of input, if every byte were a token

    @classmethod
    def of(
        cls,
        params: Mapping[str, Any],
        listed: PriceList,
        *,
        caches: bool | None = None,
        attachment_tokens: int = 0,
        small: bool = False,
    ) -> "Bound | None":
        """Return the bound of a request with these params; None if its model has no known price.

        caches: whether the request writes to the prompt cache; None: search the params for cache_control.
        attachment_tokens: the largest number of tokens of its attachments. small: whether `is_small` is true of it.
        """
        known = listed.of(params["model"])
        if known is None:
            return None
        if caches is None:
            caches = b"cache_control" in orjson.dumps(params)
        byte = max(_dearest(rate, small=small) for rate in known.input_rates(caches=caches))
        factor = geography_factor(params)
        fixed = params["max_tokens"] * _dearest(known.output, small=small) + attachment_tokens * byte
        return cls(factor * fixed, factor * byte)


def _dearest(rate: Rate, *, small: bool) -> float:
    """Return the highest price of one token; some models charge more if the prompt is long. small: it is short."""
    return rate.of(SMALL_PROMPT) if small else rate.highest


def is_small(size: int, attachment_tokens: int) -> bool:
    """Return whether a request is certain to have the price of a short prompt.

    size: its bytes, each at most one token. attachment_tokens: the largest number of tokens of its attachments.
    """
    return size + attachment_tokens <= SMALL_PROMPT


COMPACTION = "compact_20260112"  # the edit of context_management that summarizes a conversation


def compacts(params: Mapping[str, Any]) -> bool:
    """Return whether requests with these params may summarize their conversation, which is billed apart."""
    return any(edit.get("type") == COMPACTION for edit in context_edits(params))


def context_edits(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the edits of context_management; entries that are not mappings are left out."""
    management = params.get("context_management")
    edits = management.get("edits") if isinstance(management, Mapping) else None
    return [edit for edit in edits if isinstance(edit, Mapping)] if isinstance(edits, list) else []


def require_bound(job: Job, monthly_usd: float | None = None) -> None:
    """Raise InputError if there is a budget, of the run or of the month, that cannot be kept.

    A budget needs a known price of each model, and no tools that run at the API. monthly_usd None: no monthly budget.
    """
    if job.limits.max_cost_usd is None and monthly_usd is None:
        return
    which = "limits.max_cost_usd" if job.limits.max_cost_usd is not None else "BATCH_MONTHLY_BUDGET_USD"
    model = job.request.model
    for name in [*([] if templates.is_template(model) else [model]), *job.retry.change.other_models]:
        if PriceList(job.prices).of(name) is None:
            raise InputError(
                f"{which}: no batch price is known for {name}, so no budget can be kept; "
                "leave the limit out, give its price under prices, or choose a model with a price"
            )
    unbounded = first_server_tool(job.request.params)
    if unbounded:
        raise InputError(
            f"{which}: request.params.tools: {unbounded} runs at the API, with fees of its own and "
            "input of any size, so no budget can be kept; leave out the limit or the tool"
        )
    if compacts(job.request.params):
        raise InputError(
            f"{which}: request.params.context_management: {COMPACTION} writes summaries of any length, which are "
            "billed, so no budget can be kept; leave out the limit or the edit"
        )


IMAGE_TOKENS = 5_000  # more than any image has; source: platform.claude.com/docs/en/build-with-claude/vision


def attachment_tokens(params: Mapping[str, Any]) -> int:
    """Return the largest number of tokens of the images and documents in a request; 0 without any.

    Their bytes in the request do not show how many tokens they have. A request with a document that is not plain text
    counts as the whole context window of its model.
    """
    tokens = 0
    for message in params["messages"]:
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block.get("type") == "document" and block["source"].get("type") != "text":
                return context_window(params["model"])
            tokens += IMAGE_TOKENS * (block.get("type") == "image")
    return tokens


def tokens_per_byte(samples: Sequence[tuple[int, int]]) -> float:
    """Return the 99% upper bound of tokens per byte of input, at most CERTAIN_TOKENS_PER_BYTE.

    samples: (tokens, bytes) of counted requests; fewer than two that are not empty give CERTAIN_TOKENS_PER_BYTE.
    """
    ratios = [tokens / size for tokens, size in samples if size]
    if len(ratios) < 2:
        return CERTAIN_TOKENS_PER_BYTE
    return min(CERTAIN_TOKENS_PER_BYTE, max(*ratios, statistics.mean(ratios) + QUANTILE_99 * statistics.stdev(ratios)))


@dataclass(frozen=True)
class Budget:
    """A budget and the money that counts against it, in US dollars."""

    limit: float
    settled: float  #: the cost of stored results
    reserved: float  #: the worst-case cost of batches that were sent and have no stored results

    @property
    def left(self) -> float:
        """Return the money that may still be reserved; negative if the budget was exceeded."""
        return self.limit - self.settled - self.reserved

    def fits(self, cost: float, requests: int) -> int:
        """Return how many requests of a batch fit into the money that is left. cost: the worst case of all of them.

        0: less than MINIMUM_SHARE of the budget is left, too little for a batch.
        """
        if cost <= self.left:
            return requests
        return 0 if self.left < MINIMUM_SHARE * self.limit else int(requests * self.left / cost)
