"""What answers cost at batch prices. The prices come from the library genai-prices, never from here."""

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.results import Outcome

BYTES_PER_TOKEN = 3.5  # of English prose, for a quote made before anything is counted; the bill comes from the usage


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


@dataclass(frozen=True)
class Prices:
    """US dollars a token of one model, in a batch."""

    input: Rate
    output: Rate
    cache_read: Rate
    cache_write: Rate
    cache_write_1h: Rate

    def cost(self, outcome: Outcome) -> float:
        """US dollars of one answer, by its usage."""
        prompt = outcome.input_tokens + outcome.cache_read_tokens + outcome.cache_write_tokens
        cost = outcome.input_tokens * self.input.of(prompt) + outcome.output_tokens * self.output.of(prompt)
        if prompt != outcome.input_tokens:
            five_minutes = outcome.cache_write_tokens - outcome.cache_write_1h_tokens
            cost += outcome.cache_read_tokens * self.cache_read.of(prompt)
            cost += five_minutes * self.cache_write.of(prompt)
            cost += outcome.cache_write_1h_tokens * self.cache_write_1h.of(prompt)
        return cost


@functools.cache
def prices(model: str) -> Prices | None:
    """The batch prices of a model by its API name; None when they are not known."""
    import genai_prices

    try:
        found = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1),
            model,
            provider_id="anthropic",
            price_context={"processing": "batch"},
        ).model_price
    except LookupError:
        return None
    plain = _rate(found.input_mtok)
    return Prices(
        input=plain,
        output=_rate(found.output_mtok),
        cache_read=_rate(found.cache_read_mtok) if found.cache_read_mtok is not None else plain,
        cache_write=_rate(found.cache_write_mtok) if found.cache_write_mtok is not None else plain,
        cache_write_1h=_rate(found.cache_write_1h_mtok) if found.cache_write_1h_mtok is not None else plain,
    )


def cost(outcome: Outcome) -> float | None:
    """US dollars of one outcome: 0.0 where nothing is billed, None where the model has no known price."""
    if outcome.model is None:
        return 0.0
    known = prices(outcome.model)
    return None if known is None else known.cost(outcome)


def _rate(price: Any) -> Rate:
    """A price of genai-prices, which is for a million tokens and may have steps."""
    if price is None:
        return Rate(0.0)
    if not hasattr(price, "tiers"):
        return Rate(float(price) / 1e6)
    return Rate(float(price.base) / 1e6, tuple((tier.start, float(tier.price) / 1e6) for tier in price.tiers))
