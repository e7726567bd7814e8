"""An estimate equals the bill for the usage that it assumes."""

from typing import Any

import pytest

from pipeline.job.model import Job
from pipeline.money.prices import PriceList
from pipeline.planning.counting import with_prefix
from pipeline.planning.estimate import Money
from pipeline.planning.estimator import estimate
from pipeline.planning.past import Past
from pipeline.planning.quote import Quote
from pipeline.planning.sample import Counts, Pair, Reservoir
from pipeline.planning.verdict import Verdict
from pipeline.request.build import Built

MODEL = "claude-sonnet-5"  # in a batch a million tokens cost: input 1, output 5, read 0.10, write 1.25, for an hour 2


def job(**fields: Any) -> Job:
    whole = {name: fields.pop(name) for name in ("prices", "canary", "retry") if name in fields}
    request = {"model": MODEL, "max_tokens": 1_000, "prompt": "{{ body }}", **fields}
    source = {"path": "a.csv", "key": "id"}
    return Job.model_validate({"name": "j", "source": source, "request": request, "sink": {"table": "t"}, **whole})


def quote(made: Job, rows: int, *sizes: int, max_tokens: int = 1_000, model: str = MODEL) -> Quote:
    """Return a quote for so many rows, whose sample has requests of these sizes in bytes."""
    made_of = Quote.of(made, PriceList(made.prices))
    made_of.rows[Verdict.NEW] = rows
    for slot, size in enumerate(sizes):
        params = b"x" * size
        made_of.put(slot, Built(params, model, max_tokens, 0, False), params)
    return made_of


def counted(of: Quote, *tokens: int, prefix: int = 0) -> Counts:
    """Return the API's token counts for the first requests of the quote's sample, one for each number."""
    pairs = [Pair(sample.tokens, sample.size, n) for sample, n in zip(of.samples, tokens, strict=False)]
    return Counts(tuple(pairs), prefix)


def money(made: Job, of: Quote, counts: list[int], *, prefix: int = 0, before: Past | None = None) -> Money:
    found = estimate(made, of, counts=counted(of, *counts, prefix=prefix), before=before, queue=200_000).money
    assert found is not None
    return found


def test_input_and_output_cost_what_a_batch_costs() -> None:
    made = job()

    said = money(made, quote(made, 1_000_000, 400, 400), [100, 100], before=Past(50, 20.0, 40.0, None))

    assert said == pytest.approx(Money(low=100 + 20 * 5, expected=100 + 40 * 5, worst=100 + 1_000 * 5))


def test_the_error_of_the_sample_makes_the_range_wider() -> None:
    made = job()

    of = quote(made, 1_000_000, 4, 4)
    said = estimate(made, of, counts=counted(of, 80, 120, prefix=0), before=None, queue=1)

    error = 1.96 * (800**0.5) / 2**0.5  # of the mean of 80 and 120
    assert said.input_tokens == pytest.approx((100, error, 2), rel=1e-3)
    assert said.money is not None
    assert said.money.worst == pytest.approx(100 + error + 5_000, rel=1e-2)


def test_an_estimate_from_all_rows_has_no_sampling_error() -> None:
    made = job()

    of = quote(made, 2, 4, 4)
    said = estimate(made, of, counts=counted(of, 80, 120, prefix=0), before=None, queue=1)

    assert said.input_tokens == (100, 0, 2)


def test_tokens_of_uncounted_rows_are_estimated_by_tokens_per_byte_of_counted_rows() -> None:
    made = job()

    of = quote(made, 10, 350, 700)
    said = estimate(made, of, counts=counted(of, 200, prefix=0), before=None, queue=1)

    assert said.input_tokens.mean == pytest.approx((200 + 400) / 2)


def test_an_estimate_without_a_count_may_be_wrong_by_a_quarter() -> None:
    made = job()

    of = quote(made, 10, 350, 350)
    said = estimate(made, of, counts=counted(of, prefix=0), before=None, queue=1)

    assert (said.input_tokens.mean, said.input_tokens.error) == pytest.approx((100, 25))
    assert any("give or take 25%" in assumption for assumption in said.assumes)


def test_at_best_rows_read_a_shared_prefix_and_at_worst_each_row_writes_it() -> None:
    made = job(system="Be brief.", cache="1h")

    said = money(made, quote(made, 1_000_000, 20_000), [5_000], prefix=4_000, before=Past(9, 10.0, 10.0, 0.9))

    assert said.low == pytest.approx(1_000 + 4_000 * 0.1 + 50, rel=1e-3)
    assert said.expected == pytest.approx(1_000 + 3_600 * 0.1 + 400 * 2 + 50, rel=1e-3)
    assert said.worst == pytest.approx(1_000 + 4_000 * 2 + 5_000, rel=1e-3)


def test_the_users_own_breakpoint_in_the_shared_prefix_costs_what_request_cache_costs() -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    own, by_cache = job(system=system), job(system="Be brief.", cache="1h")

    costs = [money(made, quote(made, 1_000_000, 20_000), [5_000], prefix=4_000) for made in (own, by_cache)]

    assert costs[0] == costs[1]


def test_stored_counts_of_a_version_that_measured_no_such_prefix_are_completed() -> None:
    system = [{"type": "text", "text": "Be brief." * 1000, "cache_control": {"type": "ephemeral"}}]
    made = job(system=system)
    of = quote(made, 1, 400)

    completed = with_prefix(Counts((), 0), made, of)

    assert completed.prefix > 2_000
    assert with_prefix(Counts((), 7), made, of).prefix == 7
    assert with_prefix(Counts((), 0), job(), of).prefix == 0


def test_writing_a_cache_of_five_minutes_costs_less() -> None:
    made = job(system="Be brief.", cache="5m")

    assert money(made, quote(made, 1_000_000, 20_000), [5_000], prefix=4_000).worst == pytest.approx(
        1_000 + 4_000 * 1.25 + 5_000
    )


def test_a_prefix_too_short_for_the_cache_has_the_normal_price() -> None:
    made = job(system="Be brief.", cache="1h")

    of = quote(made, 1_000_000, 4_000)
    said = estimate(made, of, counts=counted(of, 1_000, prefix=1_023), before=None, queue=1)

    assert said.cached is not None
    assert said.cached.tokens == 0
    assert said.money is not None
    assert said.money.worst == pytest.approx(1_000 + 5_000)


def test_a_long_prompt_has_the_higher_price_for_all_its_tokens() -> None:
    made = job(model="claude-haiku-5-5")  # 0.05 and 0.25 up to 100,000 tokens, 0.25 and 1.25 above

    short, long = (
        money(made, quote(made, 1_000, 9, model="claude-haiku-5-5"), [tokens]).worst for tokens in (100_000, 100_001)
    )

    assert short == pytest.approx((100_000 * 0.05 + 1_000 * 0.25) / 1_000)
    assert long == pytest.approx((100_001 * 0.25 + 1_000 * 1.25) / 1_000)


@pytest.mark.parametrize(
    ("own", "worst"),
    [
        pytest.param({"discount": 0.1}, 0.9 * 5_100, id="a discount"),
        pytest.param({"output": 4.0}, 100 + 4_000, id="another price of output"),
        pytest.param({"input": 2.0, "discount": 0.5}, 200 + 2_500, id="a price and a discount on the rest"),
    ],
)
def test_prices_that_the_job_gives_are_used(own: dict[str, float], worst: float) -> None:
    made = job(prices={MODEL: own})

    assert money(made, quote(made, 1_000_000, 400), [100]).worst == pytest.approx(worst)


def test_a_new_model_has_the_price_that_the_job_gives_it() -> None:
    new = "claude-of-next-year"
    unpriced = quote(job(model=new), 1_000_000, 400, model=new)
    made = job(model=new, prices={new: {"input": 1.0, "output": 2.0}})

    assert estimate(job(model=new), unpriced, counts=Counts((), 0), before=None, queue=1).unpriced == new
    assert money(made, quote(made, 1_000_000, 400, model=new), [100]).worst == pytest.approx(100 + 2_000)


def test_inference_only_in_the_us_costs_a_tenth_more() -> None:
    made = job(params={"inference_geo": "us"})

    assert money(made, quote(made, 1_000_000, 400), [100]).worst == pytest.approx(1.1 * 5_100)


def test_the_expected_answer_is_never_longer_than_max_tokens() -> None:
    made = job(max_tokens=30)
    of = quote(made, 1_000_000, 400, max_tokens=30)

    assert money(made, of, [100], before=Past(9, 50.0, 90.0, None)) == pytest.approx(Money(250, 250, 250))


def test_the_estimate_counts_how_often_the_queue_of_the_api_is_filled() -> None:
    made = job()

    of = quote(made, 450_000, 400)
    said = estimate(made, of, counts=counted(of, prefix=0), before=None, queue=200_000)

    assert (said.rounds, said.hours) == (3, (3, 72))


@pytest.mark.parametrize(
    ("fields", "rows", "said"),
    [
        pytest.param({}, 200, "before the canary, the first 20 rows, is collected", id="a canary"),
        pytest.param({}, 199, "try `run --limit 20`", id="too few rows for a canary"),
        pytest.param({"canary": False}, 200, "try `run --limit 20`", id="no canary"),
        pytest.param({"retry": {"change": {"truncated": {"max_tokens": "2x"}}}}, 9, "retry.change", id="changes"),
        pytest.param({"params": {"tools": []}}, 9, "tools that the API runs", id="tools"),
    ],
)
def test_an_estimate_names_its_assumptions(fields: dict[str, Any], rows: int, said: str) -> None:
    made = job(**fields)

    found = estimate(made, quote(made, rows, 400), counts=Counts((), 0), before=None, queue=1)

    assert any(said in assumption for assumption in found.assumes)


# -- the worst is the worst --------------------------------------------------------------------------------------------


def marked(made: Job, ttl: str = "5m") -> Quote:
    """Return a quote for a million rows whose requests have a block with the user's own cache_control."""
    made_of = Quote.of(made, PriceList(made.prices))
    made_of.rows[Verdict.NEW] = 1_000_000
    block = b'"cache_control":{"type":"ephemeral","ttl":"%b"}' % ttl.encode()
    made_of.put(0, Built(block + b"x" * 16_000, MODEL, 1_000, 0, True), b"x")
    return made_of


@pytest.mark.parametrize(("ttl", "write"), [("5m", 1.25), ("1h", 2.0)])
def test_tokens_under_the_users_own_cache_control_are_read_at_best_and_written_at_worst(ttl: str, write: float) -> None:
    made = job()

    said = money(made, marked(made, ttl), [4_000])

    assert said.worst == pytest.approx(4_000 * write + 5_000)
    assert said.low == pytest.approx(4_000 * 0.1 + 5, rel=1e-3)


def test_a_request_too_short_for_the_cache_is_not_written_to_it() -> None:
    made = job()

    assert money(made, marked(made), [1_000]).worst == pytest.approx(1_000 + 5_000)


def test_the_cached_share_of_the_input_is_taken_from_past_runs() -> None:
    made = job()

    said = money(made, marked(made), [4_000], before=Past(9, 10.0, 10.0, 0.5, cached=0.5))

    assert said.expected == pytest.approx(2_000 + 1_000 * 0.1 + 1_000 * 1.25 + 50)


@pytest.mark.parametrize(
    ("change", "worst"),
    [
        pytest.param({"truncated": {"max_tokens": "2x"}}, 3 * 100 + (1 + 2 + 4) * 5_000, id="longer answers"),
        pytest.param({"refused": {"model": "claude-opus-5"}}, 100 + 5_000 + 250 + 12_500, id="another model, once"),
        pytest.param(
            {"refused": {"model": ["claude-opus-5", "claude-sonnet-5"]}}, 5_100 + 2 * 12_750, id="two other models"
        ),
        pytest.param({"errored": {"model": "claude-opus-5"}}, 250 + 12_500, id="a fallback, which alone is billed"),
        pytest.param(
            {"errored": {"model": ["claude-opus-5"]}, "truncated": {"max_tokens": "2x"}},
            3 * 250 + (1 + 2 + 4) * 12_500,
            id="a fallback before each longer answer",
        ),
        pytest.param(
            {"unparsable": {"reask": True}}, 100 + 1_200 + 2_300 + 3 * 5_000, id="the answer goes back with the request"
        ),
    ],
)
def test_the_worst_case_makes_each_enabled_change_in_every_attempt(change: Any, worst: float) -> None:
    made = job(retry={"change": change})

    assert money(made, quote(made, 1_000_000, 400), [100]).worst == pytest.approx(worst, rel=1e-3)


def test_the_other_model_of_a_change_needs_a_price_too() -> None:
    made = job(retry={"change": {"refused": {"model": "claude-of-next-year"}}})

    said = estimate(made, quote(made, 9, 400), counts=Counts((), 0), before=None, queue=1)

    assert (said.money, said.unpriced) == (None, "claude-of-next-year")


# -- the sample --------------------------------------------------------------------------------------------------------


def test_each_row_is_equally_likely_in_the_sample_for_any_chunk_size() -> None:
    rows, size, times = 1_000, 20, 400
    counted = [0, 0]
    for seed in range(times):
        reservoir = Reservoir(size, seed)
        slots: dict[int, int] = {}
        for first in range(0, rows, 130):
            n = min(130, rows - first)
            slots |= {slot: first + index for index, slot in reservoir.take(n)}
        assert len(slots) == len(set(slots.values())) == size
        for row in slots.values():
            counted[row >= rows // 2] += 1

    assert counted[0] == pytest.approx(size * times / 2, rel=0.05)


def test_the_sample_of_a_short_source_is_the_whole_source() -> None:
    reservoir = Reservoir(20)

    assert reservoir.take(3) + reservoir.take(2) == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)]
