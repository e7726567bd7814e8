"""Tests of BATCH_MONTHLY_BUDGET_USD, which all jobs and drivers of a database share."""

import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from pipeline.answer.outcome import ResultReader
from pipeline.driver.driver import Stop
from pipeline.driver.settings import Settings
from pipeline.errors import InputError, Stopped
from pipeline.job.model import Job
from pipeline.money.measures import month_of
from pipeline.money.prices import PriceList
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run
from pipeline.state.tables import runs, sendings
from tests.conftest import TurnedClock, World, texts

POSTGRESQL_IS_LONG = True

PATIENCE = 120.0
SMALL = {"max_batch_requests": 10}


@pytest.fixture(autouse=True)
def a_month_has_just_begun(world: World) -> None:
    next_month(world)


def next_month(world: World) -> None:
    """Advance the clock to one hour after the end of the current month."""
    now = world.clock()
    begins = month_of(month_of(now) + timedelta(days=32))
    world.clock.advance((begins - now).total_seconds() + 3600)


def numbered(world: World, number: int = 0, **changes: Any) -> Job:
    """Return one of several jobs that ask different questions about the same rows."""
    changes = {"limits": SMALL, **changes}
    request = {"prompt": f"Question {number}: {{{{ text }}}}", **changes.pop("request", {})}
    return world.job(name=f"job_{number}", sink={"table": f"answers_{number}"}, request=request, **changes)


def results(world: World) -> list[dict[str, Any]]:
    """Return all results that the API has produced this month."""
    world.emulator.wait_idle()
    files = (world.emulator.data / "batches").glob("*/results")
    return [orjson.loads(line) for file in files for line in file.read_bytes().split(b"\n")]


def bill(world: World, work: Job) -> float:
    """Return what the API charges for all requests that it accepted this month, in US dollars."""
    world.clock.advance(60)
    reader, listed = ResultReader(work), PriceList()
    return sum(listed.cost(reader.outcome(line)) or 0.0 for line in results(world))


def full_price(world: World, rows: int = 40, jobs: int = 1) -> float:
    """Run the jobs once and return their cost in US dollars; then advance the clock until the API has archived them."""
    world.rows(texts(rows))
    measured = [world.run(numbered(world, 100 + number)) for number in range(jobs)]
    next_month(world)
    next_month(world)
    return sum(finished.cost_usd for finished in measured)


def test_a_monthly_budget_that_suffices_changes_nothing(world: World) -> None:
    world.with_settings(monthly_budget=1.0)

    finished = world.run(numbered(world))

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 5})
    with world.database.read() as conn:
        reserved, settled = conn.execute(select(sendings.c.reserved_usd, sendings.c.settled_usd)).one()
    assert 0 < settled < reserved


def test_a_run_stops_before_the_monthly_budget_is_exceeded_and_continues_when_it_is_raised(world: World) -> None:
    limit = 0.6 * full_price(world)
    accepted = world.accepted()
    world.with_settings(monthly_budget=limit)

    stopped = world.run(numbered(world))
    spent = bill(world, numbered(world))
    again = world.run(numbered(world))
    world.with_settings(monthly_budget=10.0)
    finished = world.run(numbered(world))

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "budget", 3)
    assert (again.reason, again.run_id) == ("budget", stopped.run_id)
    assert 0 < stopped.rows["succeeded"] < 40
    assert stopped.rows == {"succeeded": stopped.rows["succeeded"], "pending": 40 - stopped.rows["succeeded"]}
    assert 0.3 * limit < spent <= limit
    assert (finished.state, finished.rows) == ("finished", {"succeeded": 40})
    assert (world.accepted(), world.sent_twice()) == (accepted + 40, [])


def test_all_jobs_of_a_database_share_the_monthly_budget(world: World) -> None:
    limit = 0.6 * full_price(world, 20, jobs=3)
    world.with_settings(monthly_budget=limit)

    first, second, third = (world.run(numbered(world, number)) for number in range(3))

    assert (first.state, first.rows) == ("finished", {"succeeded": 20})
    assert (second.reason, third.reason) == ("budget", "budget")
    assert second.rows["pending"] > 0
    assert third.rows["pending"] > 0
    assert bill(world, numbered(world)) <= limit


def test_a_new_month_starts_with_the_whole_budget(world: World) -> None:
    world.with_settings(monthly_budget=0.9 * full_price(world))
    stopped = world.run(numbered(world))

    next_month(world)
    finished = world.run(numbered(world))

    assert stopped.reason == "budget"
    assert (finished.state, finished.rows) == ("finished", {"succeeded": 40})
    assert world.sent_twice() == []


def test_a_batch_counts_in_the_month_it_was_sent_in_even_if_it_is_collected_in_the_next(
    world: World,
) -> None:
    limit = full_price(world)
    world.with_settings(monthly_budget=50 * limit)
    world.run(numbered(world), detach=True)
    next_month(world)
    world.with_settings(monthly_budget=2 * limit)

    world.sweep()
    finished = world.run(numbered(world, 1))

    assert finished.rows == {"succeeded": 40}


@pytest.mark.parametrize(
    ("of_run", "of_month"),
    [pytest.param(0.3, 0.8, id="the run's is smaller"), pytest.param(0.8, 0.3, id="the month's is smaller")],
)
def test_the_smaller_of_run_budget_and_monthly_budget_counts(world: World, of_run: float, of_month: float) -> None:
    price = full_price(world)
    world.with_settings(monthly_budget=of_month * price)
    work = numbered(world, limits={**SMALL, "max_cost_usd": of_run * price})

    stopped = world.run(work)

    assert (stopped.state, stopped.reason) == ("incomplete", "budget")
    assert 0.1 * price < bill(world, work) <= 0.3 * price
    assert stopped.cost_usd == pytest.approx(bill(world, work))


def test_a_batch_that_does_not_fit_is_packed_smaller(world: World) -> None:
    limit = 2 * full_price(world)
    world.with_settings(monthly_budget=limit)

    world.run(numbered(world, limits={}))

    sizes = [facts["requests"] for facts in world.told("submitted")][4:]
    assert 0 < sizes[0] < 40
    assert len(sizes) > 1


def test_a_monthly_budget_too_small_for_one_request_sends_nothing(world: World) -> None:
    world.with_settings(monthly_budget=1e-7)

    stopped = world.run(numbered(world), detach=True)

    assert (stopped.reason, stopped.rows, world.accepted()) == ("budget", {"pending": 5}, 0)


def test_failed_answers_count_against_the_monthly_budget(world: World) -> None:
    limit = 0.6 * full_price(world)
    world.emulator.add_fault(on="item", do="max_tokens", match="Question 0")
    world.with_settings(monthly_budget=limit)
    work = numbered(world, retry={"max_attempts": 9, "change": {"truncated": {"max_tokens": "2x"}}})

    stopped = world.run(work)

    assert stopped.reason == "budget"
    assert bill(world, work) <= limit


def test_a_canary_that_does_not_fit_the_budget_is_made_smaller_and_still_sent_first(world: World) -> None:
    price = full_price(world, 60)
    world.with_settings(monthly_budget=price)

    world.run(numbered(world, limits={}, canary={"rows": 6}))

    moves = [name for name, _ in world.events if name in ("submitted", "collected")][12:]
    sizes = [facts["requests"] for facts in world.told("submitted")][6:]
    assert moves[:3] == ["submitted", "collected", "submitted"]
    assert 0 < sizes[0] <= 6


def test_a_batch_whose_create_has_no_response_stays_reserved(world: World) -> None:
    limit = 3 * full_price(world)
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.with_settings(monthly_budget=limit)

    world.run(numbered(world, limits={"max_batch_requests": 20}), detach=True)

    assert "BATCH_MONTHLY_BUDGET_USD" in world.told("held_back")[-1]["problem"]
    assert sorted(world.batch_states()[4:]) in (["planned", "submitting"], ["dropped", "planned", "submitting"])


def test_sweeps_keep_to_the_monthly_budget_in_runs_that_began_without_one(world: World) -> None:
    limit = 0.6 * full_price(world)
    work = numbered(world, limits={"max_batch_requests": 5, "max_in_flight_requests": 5})
    world.run(work, detach=True)
    world.with_settings(monthly_budget=limit)

    for _ in range(12):
        world.clock.advance(61)
        world.sweep()

    assert bill(world, work) <= limit
    with world.database.read() as conn:
        assert conn.execute(select(runs.c.state, runs.c.reason).order_by(runs.c.id)).all()[-1] == (
            "incomplete",
            "budget",
        )


def test_a_model_without_a_price_is_refused(world: World) -> None:
    world.with_settings(monthly_budget=5.0)

    with pytest.raises(InputError, match="BATCH_MONTHLY_BUDGET_USD: no batch price is known for claude-of-tomorrow"):
        world.run(numbered(world, request={"model": "claude-of-tomorrow"}))

    assert world.accepted() == 0


def test_a_model_for_refused_rows_without_a_price_is_refused(world: World) -> None:
    world.with_settings(monthly_budget=5.0)

    with pytest.raises(InputError, match="no batch price is known for claude-of-tomorrow"):
        world.run(numbered(world, retry={"change": {"refused": {"model": "claude-of-tomorrow"}}}))


def test_a_row_whose_model_has_no_price_is_not_sent(world: World) -> None:
    world.rows([{**row, "model": "claude-haiku-4-5"} for row in texts(3)] + [{"id": "x", "text": "X.", "model": "m"}])
    world.with_settings(monthly_budget=5.0)

    with pytest.raises((InputError, Stopped)):
        world.run(numbered(world, request={"model": "{{ model }}"}))

    assert world.accepted() == 0


def test_the_job_s_own_prices_count(world: World) -> None:
    price = full_price(world)
    accepted = world.accepted()
    world.with_settings(monthly_budget=price)
    dear = {"claude-haiku-4-5": {"input": 100.0, "output": 500.0}}

    world.run(numbered(world, prices=dear))

    assert world.accepted() - accepted < 10


def test_a_tool_that_runs_at_the_api_is_refused(world: World) -> None:
    world.with_settings(monthly_budget=5.0)
    tools = [{"type": "web_search_20250305", "name": "web_search"}]

    with pytest.raises(InputError, match=r"BATCH_MONTHLY_BUDGET_USD: request\.params\.tools: web_search_20250305 runs"):
        world.run(numbered(world, request={"params": {"tools": tools}}))


@pytest.mark.parametrize("text", ["much", "-1", "0", "nan", "inf", "1e999", "$5"])
def test_a_monthly_budget_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BATCH_MONTHLY_BUDGET_USD", text)

    with pytest.raises(InputError, match=r"BATCH_MONTHLY_BUDGET_USD=.*: this must be a number of US dollars"):
        Settings.from_environment()


@pytest.mark.parametrize(("text", "limit"), [("12.50", 12.5), ("", None)])
def test_the_monthly_budget_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, limit: float | None
) -> None:
    monkeypatch.setenv("BATCH_MONTHLY_BUDGET_USD", text)

    assert Settings.from_environment().monthly_budget == limit


# -- many drivers ----------------------------------------------------------------------------------------------------

ALONE = threading.Lock()


@dataclass
class SharedStop(Stop):
    """A Stop whose waits advance the shared clock a little instead of sleeping."""

    clock: TurnedClock | None = None

    def wait(self, seconds: float) -> None:
        assert self.clock is not None
        super().wait(0.002)
        with ALONE:
            self.clock.advance(max(0.01, min(seconds, 5.0)))


def all_at_once(world: World, works: list[Job]) -> list[Finished]:
    """Run all jobs at the same time, each by a driver in its own thread."""
    finished: list[Finished] = []
    problems: list[BaseException] = []

    def drive(work: Job) -> None:
        try:
            where = replace(world.where(), stop=SharedStop(clock=world.clock))
            finished.append(run(work, where, Options()))
        except BaseException as exc:  # noqa: BLE001  # raised again in the test's own thread
            problems.append(exc)

    threads = [threading.Thread(target=drive, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert problems == []
    assert len(finished) == len(works)
    return finished


@pytest.mark.long
def test_ten_drivers_at_once_do_not_exceed_the_monthly_budget(world: World) -> None:
    jobs = 3  # three or four drivers of each
    limit = 0.6 * full_price(world, 20, jobs)
    accepted = world.accepted()
    world.with_settings(monthly_budget=limit, lease=1e8)
    works = [numbered(world, number % jobs) for number in range(10)]

    stopped = all_at_once(world, works)
    spent, sent = bill(world, numbered(world)), world.accepted() - accepted
    world.with_settings(monthly_budget=10.0)
    all_at_once(world, works)

    assert 0 < spent <= limit
    assert 0 < sent < 20 * jobs
    assert "budget" in {each.reason for each in stopped}
    assert {status for number in range(jobs) for status in world.statuses(f"job_{number}").values()} == {"succeeded"}
    assert (world.accepted() - accepted, world.sent_twice()) == (20 * jobs, [])
