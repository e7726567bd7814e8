"""The prices of models and the cost of answers. All prices come from the library genai-prices or the job file. Pure."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.answer.outcome import Outcome
from pipeline.job.model import Price

BYTES_PER_TOKEN = 3.5  # of English prose, for a quote before tokens are counted; actual costs come from the usage
#: The factor on prices for inference in the US alone. Source: platform.claude.com/docs/en/about-claude/pricing
US_INFERENCE = 1.1
_DATED = re.compile(r"-\d{8}$")  # the API's answers name a model with its date


@dataclass(frozen=True)
class Rate:
    """The price of one token in US dollars, which may rise with the size of the prompt.

    steps: (tokens, price), from the smallest up: the price of each token if the prompt has more than so many tokens.
    """

    base: float
    steps: tuple[tuple[int, float], ...] = ()

    def of(self, prompt_tokens: int) -> float:
        """Return the price of one token in a request whose prompt has so many tokens, cached ones included."""
        price = self.base
        for above, stepped in self.steps:
            if prompt_tokens > above:
                price = stepped
        return price

    @property
    def highest(self) -> float:
        """Return the highest price of one token, whatever the size of the prompt."""
        return max(self.base, *(price for _, price in self.steps)) if self.steps else self.base

    def discounted(self, share: float) -> "Rate":
        """Return the rate less this share of it. share: from 0 to 1."""
        return Rate(self.base * (1 - share), tuple((above, price * (1 - share)) for above, price in self.steps))


@dataclass(frozen=True)
class Prices:
    """The prices of one model in US dollars: a Rate for each kind of token, and the price of one web search."""

    input: Rate
    output: Rate
    cache_read: Rate
    cache_write: Rate
    cache_write_1h: Rate
    web_search: float = 0.0

    @functools.cached_property
    def flat_rates(self) -> tuple[float, float] | None:
        """The price of one token of input and of one of output; None if they depend on the size of the prompt."""
        return None if self.input.steps or self.output.steps else (self.input.base, self.output.base)

    def cost(self, outcome: Outcome) -> float:
        """Return the cost of one answer in US dollars, from its usage."""
        if (
            self.flat_rates
            and not outcome.cache_read_tokens
            and not outcome.cache_write_tokens
            and not outcome.in_the_us
        ):
            cost = outcome.input_tokens * self.input.base + outcome.output_tokens * self.output.base
            return cost + outcome.web_searches * self.web_search
        prompt = outcome.input_tokens + outcome.cache_read_tokens + outcome.cache_write_tokens
        cost = outcome.input_tokens * self.input.of(prompt) + outcome.output_tokens * self.output.of(prompt)
        if prompt != outcome.input_tokens:
            five_minutes = outcome.cache_write_tokens - outcome.cache_write_1h_tokens
            cost += outcome.cache_read_tokens * self.cache_read.of(prompt)
            cost += five_minutes * self.cache_write.of(prompt)
            cost += outcome.cache_write_1h_tokens * self.cache_write_1h.of(prompt)
        if outcome.in_the_us:
            cost *= US_INFERENCE
        return cost + outcome.web_searches * self.web_search

    def input_rates(self, *, caches: bool) -> list[Rate]:
        """Return the rates that a token of input may have. caches: whether the request writes to the prompt cache."""
        return [self.input, self.cache_write, self.cache_write_1h] if caches else [self.input]


def geography_factor(params: Mapping[str, Any]) -> float:
    """Return the factor on prices for the place of inference that the params ask for: above 1 for the US alone."""
    return US_INFERENCE if params.get("inference_geo") == "us" else 1.0


class PriceList:
    """The prices of models: those of genai-prices, replaced by a job's own prices where it gives some."""

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        """own: the job file's prices, by model; None or empty: the list's prices alone."""
        self._own = dict(own or {})
        self._prices: dict[str, Prices | None] = {}

    def of(self, model: str) -> Prices | None:
        """Return the batch prices of a model; None if they are not known. model: its API name, dated or not."""
        if model not in self._prices:
            own = self._own.get(model) or self._own.get(_DATED.sub("", model))
            listed = prices_of(model)
            self._prices[model] = listed if own is None else _overridden(listed, own)
        return self._prices[model]

    def cost(self, outcome: Outcome) -> float | None:
        """Return the cost of one outcome in US dollars.

        0.0: nothing is billed, because no model answered. None: the model has no known price.
        """
        if outcome.model is None:
            return 0.0
        known = self.of(outcome.model)
        return None if known is None else known.cost(outcome)


LISTED = PriceList()


def _overridden(listed: Prices | None, own: Price) -> Prices | None:
    """Return the list's prices, replaced by those that the job gives.

    listed None: the list does not know the model. Then cache prices that the job leaves out are those of input; without
    the job's price of input or output, return None.
    """
    rates: dict[str, Any] = {
        name: Rate(value / 1e6) for name in Price.RATES if (value := getattr(own, name)) is not None
    }
    if listed is None:
        if "input" not in rates or "output" not in rates:
            return None
        return Prices(**{name: rates.get(name, rates["input"]) for name in Price.RATES})
    if own.discount is not None:
        reduced: dict[str, Any] = {name: getattr(listed, name).discounted(own.discount) for name in Price.RATES}
        listed = replace(listed, **reduced)
    return replace(listed, **rates)


@functools.cache
def prices_of(model: str, *, batch: bool = True) -> Prices | None:
    """Return the prices of a model in genai-prices; None if they are not known.

    model: its API name. batch: prices in a batch; False: prices of live calls. Cache prices that the library does not
    know are those of input.
    """
    listed = _listed_price(model, batch)
    if listed is None:
        return None
    price = listed.model_price
    plain = _rate(price.input_mtok)
    searches = getattr(price, "web_searches_kcount", None)
    return Prices(
        input=plain,
        output=_rate(price.output_mtok),
        cache_read=_rate(price.cache_read_mtok) if price.cache_read_mtok is not None else plain,
        cache_write=_rate(price.cache_write_mtok) if price.cache_write_mtok is not None else plain,
        cache_write_1h=_rate(price.cache_write_1h_mtok) if price.cache_write_1h_mtok is not None else plain,
        web_search=0.0 if searches is None else float(searches) / 1000,
    )


def context_window(model: str) -> int:
    """Return the context window of a model in tokens; LARGEST_CONTEXT if it is not known."""
    listed = _listed_price(model, batch=True)
    return (
        LARGEST_CONTEXT if listed is None or listed.model.context_window is None else int(listed.model.context_window)
    )


LARGEST_CONTEXT = 1_000_000


@functools.cache
def context_windows() -> Mapping[str, int]:
    """Return the context window in tokens of each model that has a batch price, by its API name."""
    from genai_prices.data import providers

    anthropic = next(provider for provider in providers if provider.id == "anthropic")
    known = {model.id: model.context_window for model in anthropic.models}
    return {name: window for name, window in known.items() if window is not None and prices_of(name) is not None}


@functools.cache
def _listed_price(model: str, batch: bool) -> Any:
    """Return what genai-prices calculates for one token of a model, with the model's data; None if it is unknown."""
    import genai_prices

    try:
        return genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1),
            model,
            provider_id="anthropic",
            price_context={"processing": "batch"} if batch else None,
        )
    except LookupError:
        return None


def _rate(price: Any) -> Rate:
    """Return a price of genai-prices, which is for a million tokens, as a Rate. price None: a Rate of 0."""
    if price is None:
        return Rate(0.0)
    if not hasattr(price, "tiers"):
        return Rate(float(price) / 1e6)
    return Rate(float(price.base) / 1e6, tuple((tier.start, float(tier.price) / 1e6) for tier in price.tiers))
