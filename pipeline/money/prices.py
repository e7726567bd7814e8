"""What answers cost at batch prices. The prices come from the library genai-prices, never from here."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.answer.outcome import Outcome
from pipeline.job.model import Price

BYTES_PER_TOKEN = 3.5  # of English prose, for a quote made before anything is counted; the bill comes from the usage
#: What inference in the US alone costs more. Source: platform.claude.com/docs/en/about-claude/pricing
US_INFERENCE = 1.1
_DATED = re.compile(r"-\d{8}$")  # the API answers with a model's dated name


@dataclass(frozen=True)
class Rate:
    """US dollars of one token, which may step up with the size of the prompt. steps: (above so many tokens, price)."""

    base: float
    steps: tuple[tuple[int, float], ...] = ()

    def of(self, prompt_tokens: int) -> float:
        """The price of one token in a request whose prompt, cached parts included, has so many tokens."""
        price = self.base
        for above, stepped in self.steps:
            if prompt_tokens > above:
                price = stepped
        return price

    @property
    def dearest(self) -> float:
        """The price of one token in the largest request."""
        return max(self.base, *(price for _, price in self.steps)) if self.steps else self.base

    def lowered(self, share: float) -> "Rate":
        """The rate with this share taken off."""
        return Rate(self.base * (1 - share), tuple((above, price * (1 - share)) for above, price in self.steps))


@dataclass(frozen=True)
class Prices:
    """US dollars a token of one model, in a batch; and of one web search, which is the same everywhere."""

    input: Rate
    output: Rate
    cache_read: Rate
    cache_write: Rate
    cache_write_1h: Rate
    web_search: float = 0.0

    def cost(self, outcome: Outcome) -> float:
        """US dollars of one answer, by its usage."""
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
        """The prices that a token of input may have. caches: whether requests write to the prompt cache."""
        return [self.input, self.cache_write, self.cache_write_1h] if caches else [self.input]


def place_factor(params: Mapping[str, Any]) -> float:
    """What the place of inference that these params ask for makes of a price."""
    return US_INFERENCE if params.get("inference_geo") == "us" else 1.0


class PriceList:
    """The prices of models: the list's, and a job's own over them."""

    def __init__(self, own: Mapping[str, Price] | None = None) -> None:
        """own: by model, as the job file has them."""
        self._own = dict(own or {})
        self._found: dict[str, Prices | None] = {}

    def of(self, model: str) -> Prices | None:
        """The batch prices of a model by its API name; None when they are not known."""
        if model not in self._found:
            own = self._own.get(model) or self._own.get(_DATED.sub("", model))
            listed = prices_of(model)
            self._found[model] = listed if own is None else _over(listed, own)
        return self._found[model]

    def cost(self, outcome: Outcome) -> float | None:
        """US dollars of one outcome: 0.0 where nothing is billed, None where the model has no known price."""
        if outcome.model is None:
            return 0.0
        known = self.of(outcome.model)
        return None if known is None else known.cost(outcome)


LISTED = PriceList()


def _over(listed: Prices | None, own: Price) -> Prices | None:
    """A job's own prices over those of the list; what neither has of the cache costs what input costs."""
    rates: dict[str, Any] = {
        name: Rate(value / 1e6) for name in Price.RATES if (value := getattr(own, name)) is not None
    }
    if listed is None:
        if "input" not in rates or "output" not in rates:
            return None
        return Prices(**{name: rates.get(name, rates["input"]) for name in Price.RATES})
    if own.discount is not None:
        lowered: dict[str, Any] = {name: getattr(listed, name).lowered(own.discount) for name in Price.RATES}
        listed = replace(listed, **lowered)
    return replace(listed, **rates)


@functools.cache
def prices_of(model: str, *, batch: bool = True) -> Prices | None:
    """The list's prices of a model by its API name, in a batch or in live calls; None when they are not known."""
    found = _found(model, batch)
    if found is None:
        return None
    price = found.model_price
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
    """How many tokens a prompt of this model has at most, as far as is known: else as the largest models have."""
    found = _found(model, batch=True)
    return LARGEST_CONTEXT if found is None or found.model.context_window is None else int(found.model.context_window)


LARGEST_CONTEXT = 1_000_000


@functools.cache
def context_windows() -> Mapping[str, int]:
    """The context window of each model of the list that has a batch price, by its API name."""
    from genai_prices.data import providers

    anthropic = next(provider for provider in providers if provider.id == "anthropic")
    known = {model.id: model.context_window for model in anthropic.models}
    return {name: window for name, window in known.items() if window is not None and prices_of(name) is not None}


@functools.cache
def _found(model: str, batch: bool) -> Any:
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
    """A price of genai-prices, which is for a million tokens and may have steps."""
    if price is None:
        return Rate(0.0)
    if not hasattr(price, "tiers"):
        return Rate(float(price) / 1e6)
    return Rate(float(price.base) / 1e6, tuple((tier.start, float(tier.price) / 1e6) for tier in price.tiers))
