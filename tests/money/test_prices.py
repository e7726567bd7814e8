"""The cost of an answer equals the batch price of genai-prices."""

import genai_prices
import pytest

from pipeline.answer.outcome import Outcome
from pipeline.money.prices import LISTED, Rate, prices_of
from pipeline.states import RowState

MODELS = [
    "claude-haiku-4-5",
    "claude-haiku-4-5-20251001",
    "claude-haiku-5-5",
    "claude-sonnet-4-5",
    "claude-sonnet-5",
    "claude-opus-4-5",
    "claude-opus-5",
    "claude-fable-5",
    "claude-3-5-haiku-20241022",
]
USAGES = {
    "nothing": (0, 0, 0, 0, 0),
    "one token": (1, 1, 0, 0, 0),
    "an ordinary answer": (812, 143, 0, 0, 0),
    "mostly read from the cache": (10, 143, 5_000, 0, 0),
    "written for five minutes": (10, 143, 0, 5_000, 0),
    "written for an hour": (10, 143, 0, 5_000, 5_000),
    "read, and written for both": (10, 143, 3_000, 5_000, 2_000),
    "one below the step": (99_999, 100, 0, 0, 0),
    "at the step": (100_000, 100, 0, 0, 0),
    "one above the step": (100_001, 100, 0, 0, 0),
    "at the step by cached tokens": (50_000, 100, 30_000, 20_000, 5_000),
    "above the step by one cached token": (50_000, 100, 30_001, 20_000, 5_000),
    "at the larger step": (200_000, 100, 0, 0, 0),
    "above the larger step": (200_001, 100, 0, 0, 0),
    "output does not count for the step": (10, 150_000, 0, 0, 0),
}


def outcome(model: str | None, usage: tuple[int, int, int, int, int]) -> Outcome:
    input_tokens, output_tokens, read, write, write_1h = usage
    return Outcome(
        RowState.SUCCEEDED,
        model=model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=write_1h,
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("usage", list(USAGES.values()), ids=list(USAGES))
def test_a_cost_equals_the_batch_price_of_genai_prices(model: str, usage: tuple[int, int, int, int, int]) -> None:
    input_tokens, output_tokens, read, write, write_1h = usage
    expected = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=input_tokens + read + write,  # the library includes cached tokens, the API counts them apart
            output_tokens=output_tokens,
            cache_read_tokens=read,
            cache_write_tokens=write,
            cache_write_1h_tokens=write_1h,
        ),
        model,
        provider_id="anthropic",
        price_context={"processing": "batch"},
    )

    cost = LISTED.cost(outcome(model, usage))

    assert cost == pytest.approx(float(expected.total_price), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-haiku-5-5", "claude-sonnet-5", "claude-opus-5"])
def test_a_batch_costs_half_of_a_live_call(model: str) -> None:
    live = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1_000, output_tokens=1_000), model, provider_id="anthropic"
    )

    cost = LISTED.cost(outcome(model, (1_000, 1_000, 0, 0, 0)))

    assert cost == pytest.approx(float(live.total_price) / 2)


def test_a_long_prompt_raises_the_price_of_the_whole_prompt_and_of_the_answer() -> None:
    prices = prices_of("claude-haiku-5-5")
    assert prices is not None

    below, above = (prices.cost(outcome(None, (n, 1_000, 0, 0, 0))) for n in (100_000, 100_001))

    assert above > 4 * below


@pytest.mark.parametrize("model", ["claude-of-next-century", "gpt-4o", ""])
def test_the_cost_of_a_model_without_a_known_price_is_none_not_zero(model: str) -> None:
    assert prices_of(model) is None
    assert LISTED.cost(outcome(model, (1_000, 1_000, 0, 0, 0))) is None


def test_an_outcome_without_an_answer_costs_nothing() -> None:
    assert LISTED.cost(Outcome(RowState.ERRORED, "api_error", "x")) == 0.0


@pytest.mark.parametrize(
    ("tokens", "price"), [(0, 1.0), (99, 1.0), (100, 1.0), (101, 2.0), (200, 2.0), (201, 3.0), (10_000, 3.0)], ids=str
)
def test_a_rate_rises_above_each_step(tokens: int, price: float) -> None:
    assert Rate(1.0, ((100, 2.0), (200, 3.0))).of(tokens) == price
