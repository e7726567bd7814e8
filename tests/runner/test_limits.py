"""A run stays within its budget and its limits of requests in flight, and stops when too many rows fail."""

from typing import Any

import pytest
from sqlalchemy import func, select

from pipeline.errors import InputError
from pipeline.money import budget
from pipeline.money.budget import Budget, tokens_per_byte
from pipeline.money.prices import PriceList
from pipeline.state.tables import batches, sendings
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


def spent(world: World) -> float:
    """Return the cost of all answers, by the usage that the API reported."""
    with world.database.read() as conn:
        return float(conn.scalar(select(func.sum(batches.c.cost_usd))) or 0.0)


def most_in_flight(world: World, job: Any) -> int:
    """Run the job to its end and return the highest number of requests in flight."""
    most = 0

    def look(event: str, facts: dict[str, Any]) -> None:
        nonlocal most
        if event in ("submitted", "waiting", "ended"):
            with world.database.read() as conn:
                there = batches.c.state.in_(["submitting", "in_progress", "canceling"])
                most = max(most, int(conn.scalar(select(func.sum(batches.c.requests)).where(there)) or 0))

    world.on_event = look
    world.run(job)
    return most


def reserved_for_all(world: World) -> float:
    """Return the money that one sending of all rows would reserve."""
    world.run(world.job(name="measure", sink={"table": "measured"}, limits={"max_cost_usd": 1_000}))
    with world.database.read() as conn:
        return float(conn.scalar(select(sendings.c.reserved_usd)) or 0.0)


def test_a_budget_that_suffices_changes_nothing(world: World) -> None:
    finished = world.run(world.job(limits={"max_cost_usd": 1}))

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 5})
    with world.database.read() as conn:
        reserved, settled = conn.execute(select(sendings.c.reserved_usd, sendings.c.settled_usd)).one()
    assert 0 < settled < reserved
    assert settled == pytest.approx(spent(world))


def test_a_run_stops_before_its_budget_is_exceeded_and_continues_when_the_budget_is_raised(world: World) -> None:
    world.rows(texts(40))
    limit = reserved_for_all(world) / 12
    small = world.job(limits={"max_cost_usd": limit, "max_batch_requests": 10})
    accepted_before = world.accepted()

    stopped = world.run(small)
    accepted = world.accepted() - accepted_before
    again = world.run(small)
    enough = world.run(world.job(limits={"max_cost_usd": 10, "max_batch_requests": 10}))

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "budget", 3)
    assert 0 < accepted < 40
    assert stopped.cost_usd <= limit
    assert (again.reason, again.run_id) == ("budget", stopped.run_id)
    assert world.accepted() == accepted_before + 40
    assert (enough.state, enough.run_id, enough.rows) == ("finished", stopped.run_id, {"succeeded": 40})


def test_a_batch_beyond_the_budget_waits_for_money_and_is_then_packed_smaller(world: World) -> None:
    world.rows(texts(40))
    limit = reserved_for_all(world) / 2

    finished = world.run(world.job(limits={"max_cost_usd": limit}))

    with world.database.read() as conn:
        collected = select(batches.c.requests).where(batches.c.state == "collected", batches.c.id > 1)
        sizes = list(conn.scalars(collected.order_by(batches.c.id)))
    assert sizes[0] == pytest.approx(20, abs=2)
    assert len(sizes) > 1
    assert finished.cost_usd <= limit


@pytest.mark.parametrize("detach", [False, True], ids=["to the end", "detached"])
def test_a_budget_too_small_for_one_request_ends_the_run_at_once(world: World, detach: bool) -> None:
    stopped = world.run(world.job(limits={"max_cost_usd": 1e-6, "max_batch_requests": 2}), detach=detach)

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "budget", 3)
    assert (world.accepted(), set(world.batch_states())) == (0, {"dropped"})


def test_a_batch_whose_create_has_no_response_stays_reserved(world: World) -> None:
    world.rows(texts(40))
    limit = reserved_for_all(world) * 0.6
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    job = world.job(limits={"max_cost_usd": limit, "max_batch_requests": 20})

    world.run(job, detach=True)

    assert world.told("held_back")[-1]["problem"].startswith("waits for money")
    assert world.batch_states()[1:] == ["submitting", "planned"]


def test_rows_that_are_sent_again_are_paid_from_the_same_budget(world: World) -> None:
    world.rows(texts(20))
    whole = reserved_for_all(world)
    world.emulator.add_fault(on="item", do="error", error_type="api_error")

    stopped = world.run(world.job(limits={"max_cost_usd": whole * 1.01}, retry={"max_attempts": 20}))

    assert stopped.rows == {"errored": 20}  # errors are not billed, so nothing of the budget is used up
    with world.database.read() as conn:
        settled = conn.scalar(select(func.sum(sendings.c.settled_usd)).where(sendings.c.batch_id > 1))
    assert settled == 0.0


def test_a_budget_for_conversations_that_the_api_summarizes_is_refused(world: World) -> None:
    params = {"context_management": {"edits": [{"type": "compact_20260112"}]}}
    request = {"model": "claude-sonnet-5", "params": params, "betas": ["compact-2026-01-12"]}

    with pytest.raises(
        InputError, match="compact_20260112 writes summaries of any length, which are billed, so no budget"
    ):
        world.run(world.job(request=request, limits={"max_cost_usd": 5}))

    assert world.accepted() == 0


def test_a_budget_for_a_tool_that_runs_at_the_api_is_refused(world: World) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]

    with pytest.raises(InputError, match=r"max_cost_usd: request.params.tools: web_search_20250305 runs at the API"):
        world.run(world.job(request={"params": {"tools": tools}}, limits={"max_cost_usd": 1}))

    assert world.accepted() == 0


def test_a_budget_holds_for_tools_that_the_client_runs(world: World) -> None:
    tools = [{"name": "note", "input_schema": {"type": "object"}}, {"type": "bash_20250124", "name": "bash"}]

    finished = world.run(world.job(request={"params": {"tools": tools}}, limits={"max_cost_usd": 1}))

    assert finished.state == "finished"


def test_a_budget_for_a_model_without_a_price_is_refused(world: World) -> None:
    job = world.job(request={"model": "claude-of-tomorrow"}, limits={"max_cost_usd": 5})

    with pytest.raises(InputError, match=r"limits\.max_cost_usd: no batch price is known for claude-of-tomorrow"):
        world.run(job)

    assert world.accepted() == 0


def test_an_api_that_does_not_count_tokens_makes_us_reserve_more_not_less(world: World) -> None:
    world.emulator.add_fault(on="count_tokens", do="status", status=404, error_type="not_found_error")

    finished = world.run(world.job(limits={"max_cost_usd": 1}))

    assert finished.rows == {"succeeded": 5}
    assert world.told("not_counted")


@pytest.mark.parametrize(
    ("samples", "bound"),
    [
        pytest.param([], 1.0, id="nothing known: no byte is more than a token"),
        pytest.param([(25, 100)], 1.0, id="one sample proves nothing"),
        pytest.param([(25, 100), (25, 100)], 0.25, id="all alike"),
        pytest.param([(20, 100), (30, 100)], 0.25 + 2.33 * 0.0707107, id="above the dearest when they differ"),
        pytest.param([(10, 100), (90, 100)], 1.0, id="never above one"),
    ],
)
def test_tokens_per_byte_are_bounded_by_the_counted_samples(samples: list[tuple[int, int]], bound: float) -> None:
    assert tokens_per_byte(samples) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("left", "fits"),
    [
        pytest.param(10.0, 100, id="all of it"),
        pytest.param(5.0, 50, id="half"),
        pytest.param(0.4, 0, id="too little to be worth a batch"),
        pytest.param(-1.0, 0, id="overspent"),
    ],
)
def test_a_budget_knows_how_many_requests_of_a_batch_it_covers(left: float, fits: int) -> None:
    assert Budget(limit=10.0, settled=10.0 - left, reserved=0.0).fits(10.0, 100) == fits


def test_no_more_requests_of_a_job_are_in_flight_than_its_limit(world: World) -> None:
    world.rows(texts(12))

    most = most_in_flight(world, world.job(limits={"max_batch_requests": 2, "max_in_flight_requests": 5}))

    assert most == 4
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_batch_is_never_larger_than_what_may_be_in_flight(world: World) -> None:
    most = most_in_flight(world, world.job(limits={"max_in_flight_requests": 3}))

    assert most == 3


def test_planned_batches_are_packed_smaller_after_the_limit_was_lowered(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=1)
    world.run(world.job(), detach=True)
    world.emulator.clear_faults()

    most = most_in_flight(world, world.job(limits={"max_in_flight_requests": 2}))

    assert most == 2
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.accepted() == 5


def test_all_jobs_of_the_database_share_the_in_flight_limit_and_take_turns(world: World) -> None:
    world.with_settings(max_in_flight=4)
    world.rows(texts(12))
    one = world.job(limits={"max_batch_requests": 2})
    other = world.job(
        name="other",
        sink={"table": "others"},
        request={"prompt": "Otherwise: {{ text }}"},
        limits={"max_batch_requests": 2},
    )
    world.run(one, detach=True)
    world.run(other, detach=True)
    seen: list[set[int]] = []

    for _ in range(30):
        with world.database.read() as conn:
            there = conn.execute(select(batches.c.job_id, batches.c.requests).where(batches.c.state == "in_progress"))
            flying = [(job, requests) for job, requests in there]
        assert sum(requests for _, requests in flying) <= 4
        seen.append({job for job, _ in flying})
        world.clock.advance(60)
        world.sweep()

    assert {1, 2} in seen
    assert world.accepted() == 24
    assert set(world.statuses("other").values()) == {"succeeded"}


def test_a_run_waits_for_a_full_queue_at_the_api(world: World) -> None:
    world.emulator.settings.queue_limit = 3

    finished = world.run(world.job(limits={"max_batch_requests": 2}))

    assert finished.rows == {"succeeded": 5}
    assert world.accepted() == 5


def test_a_run_whose_rows_mostly_fail_stops_sending_after_a_thousand(world: World) -> None:
    world.rows(texts(2_500))
    world.emulator.add_fault(on="item", do="refuse")
    limits = {"max_batch_requests": 500, "max_in_flight_requests": 500}

    stopped = world.run(world.job(limits=limits))

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "failures", 3)
    assert world.accepted() == 1_000
    assert stopped.rows == {"refused": 1_000, "pending": 1_500}


def test_a_run_with_no_more_failures_than_its_job_allows_is_not_stopped(world: World) -> None:
    world.rows(texts(1_200))
    world.emulator.add_fault(on="item", do="refuse")

    finished = world.run(world.job(limits={"max_failed": 1, "max_batch_requests": 600}))

    assert (finished.state, finished.exit_code) == ("finished", 0)


def test_collected_batches_are_deleted_at_the_api_when_the_job_says_so(world: World) -> None:
    world.emulator.add_fault(on="delete", do="status", status=529, error_type="overloaded_error", times=1)

    finished = world.run(world.job(privacy={"delete_remote": True}, limits={"max_batch_requests": 3}))
    world.clock.advance(60)
    world.sweep()

    assert finished.rows == {"succeeded": 5}
    assert len(world.told("not_deleted")) == 1
    assert len(world.told("deleted")) == 2
    assert [call for call in world.emulator.log() if call["method"] == "GET" and call["status"] == 404] == []
    assert world.sweep() == []


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "removed"])
def test_bodies_are_kept_when_the_job_says_so(world: World, keep: bool) -> None:
    world.run(world.job(privacy={"keep_spool": keep}))
    world.run(world.job(privacy={"keep_spool": keep}))

    assert bool(list((world.folder / "spool" / "summaries").glob("*.json"))) == keep


def test_replaced_answers_move_to_the_history(world: World) -> None:
    job = world.job(sink={"table": "answers", "history": True})
    world.run(job)
    rows = texts(5)
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)

    world.run(job)

    with world.database.read() as conn:
        table = "answers_history" if world.database.default_schema is None else "public.answers_history"
        [old] = conn.exec_driver_sql(f"SELECT id, text, replaced_at FROM {table}").all()
    assert old.id == "r2"
    assert "number 2" in old.text
    assert old.replaced_at is not None
    assert "Something else" in world.answers()["r2"]["text"]


@pytest.mark.parametrize(("size", "price"), [(100_000, 0.25), (100_001, 1.25)])
def test_money_for_a_short_prompt_is_reserved_at_the_price_of_short_prompts(size: int, price: float) -> None:
    """From 100,000 tokens of a prompt on, Haiku 5.5 costs five times as much."""
    small = budget.is_small(size, 0)

    bound = budget.Bound.of({"model": "claude-haiku-5-5", "max_tokens": 1_000_000}, PriceList(), small=small)

    assert bound is not None
    assert bound.fixed == pytest.approx(price)
    assert bound.byte == pytest.approx(price / 5e6)
