"""Equal requests of a run are sent once, also when they are in different batches."""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import func, select, update

from pipeline.driver.driver import Driver
from pipeline.driver.job_of_run import JobOfRun
from pipeline.planning.selection import Selection
from pipeline.runner.verify import verify
from pipeline.state.tables import accounts, batches, requests, shared
from pipeline.steps.cancel import cancel
from pipeline.steps.collect import collect_due
from pipeline.steps.poll import poll_due
from pipeline.steps.submit import submit_due
from tests.conftest import World

ONE_AT_A_TIME = {"max_batch_requests": 1}
SMALL = {"max_batch_requests": 10}


def of_texts(texts: Sequence[str]) -> list[dict[str, object]]:
    """Return a row for each text, with its number as a note."""
    return [{"id": f"r{i}", "text": text, "note": str(i)} for i, text in enumerate(texts)]


def equal(rows: int, distinct: int) -> list[dict[str, object]]:
    """Return rows with so many distinct texts, which come one after the other and then again."""
    return of_texts([f"Text number {i % distinct}." for i in range(rows)])


def rows_of_requests(world: World) -> Counter[tuple[int, int]]:
    """Return how many rows each request has, by batch and position, for rows that are in no later batch."""
    with world.database.read() as conn:
        places = conn.execute(select(requests.c.batch_id, requests.c.n)).tuples()
        return Counter((batch, n) for batch, n in places)


def in_between(world: World, *steps: Callable[[Driver], object], times: int = 1000) -> None:
    """Let another driver take these steps each time that a batch is planned. The API has processed all by then."""
    left = iter(range(times))

    def look(event: str, facts: dict[str, Any]) -> None:
        if event != "planned" or next(left, None) is None:
            return
        world.on_event = None
        with contextlib.ExitStack() as stack:
            driver = world.driver(stack)
            submit_due(driver)
            world.clock.advance(60)
            for step in steps:
                step(driver)
        world.on_event = look

    world.on_event = look


def collect(driver: Driver) -> None:
    collect_due(driver, JobOfRun(driver))


def test_equal_requests_are_sent_once_across_small_batches(world: World) -> None:
    world.rows(equal(400, 40))

    finished = world.run(world.job(limits=SMALL))

    assert world.accepted() == finished.quote.requests == 40
    assert (finished.state, finished.rows) == ("finished", {"succeeded": 400})
    answers = world.answers().values()
    assert sum(answer["cost_usd"] > 0 for answer in answers) == 40
    assert sum(answer["cost_usd"] for answer in answers) == pytest.approx(finished.cost_usd)
    assert {answer["attempts"] for answer in answers} == {1}
    assert set(rows_of_requests(world).values()) == {10}
    assert verify(world.database, world.known()).holds


def test_rows_copy_the_answer_if_an_equal_row_has_succeeded(world: World) -> None:
    world.rows(equal(40, 4))
    world.rows(equal(80, 4)[40:], "later.csv")
    in_between(world, poll_due, collect)
    paths = [str(world.folder / name) for name in ("rows.csv", "later.csv")]
    sections = {
        "source": {"path": paths, "keep": ["note"]},
        "output": {"labels": ["a", "b"]},
        "sink": {"history": True},
    }

    finished = world.run(world.job(**sections, limits=ONE_AT_A_TIME))

    assert (world.accepted(), finished.rows) == (4, {"succeeded": 80})
    answers = world.answers()
    first, copy = answers["r1"], answers["r77"]
    assert copy["note"] == "77"
    same = (
        "label",
        "text",
        "status",
        "model",
        "stop_reason",
        "message_id",
        "custom_id",
        "batch_id",
        "recipe",
        "attempts",
    )
    assert {name: copy[name] for name in same} == {name: first[name] for name in same}
    assert (copy["cost_usd"], copy["input_tokens"], copy["output_tokens"]) == (0.0, 0, 0)
    assert sum(answer["cost_usd"] for answer in answers.values()) == pytest.approx(finished.cost_usd)
    assert verify(world.database, world.known()).holds


def test_no_row_joins_a_batch_that_has_ended_and_the_row_waits_until_that_is_collected(world: World) -> None:
    world.rows(of_texts(["a", "b", "a", "c", "a", "b"]))
    in_between(world, poll_due)

    finished = world.run(world.job(limits=ONE_AT_A_TIME))

    assert finished.rows == {"succeeded": 6}
    assert world.accepted() == 3
    assert world.answers()["r2"]["cost_usd"] == 0
    with world.database.read() as conn:
        assert [*conn.execute(select(batches.c.requests, batches.c.rows)).tuples()] == [(1, 1)] * 3
    assert verify(world.database, world.known()).holds


def test_a_row_that_waited_for_a_failure_is_sent(world: World) -> None:
    world.rows(of_texts(["a", "b", "a", "c"]))
    world.emulator.add_fault(on="item", do="refuse", match="Summarize: a", times=1)
    in_between(world, poll_due)

    finished = world.run(world.job(limits=ONE_AT_A_TIME))

    assert finished.rows == {"succeeded": 3, "refused": 1}
    assert world.accepted() == 4


def test_the_rows_of_a_shared_request_that_fails_are_sent_again_together(world: World) -> None:
    world.rows(equal(100, 20))
    world.emulator.add_fault(on="item", do="error", error_type="api_error", match="number 7", times=1, per="params")

    finished = world.run(world.job(limits=SMALL))

    assert finished.rows == {"succeeded": 100}
    assert world.accepted() == 21
    attempts = Counter(answer["attempts"] for answer in world.answers().values())
    assert attempts == {1: 95, 2: 5}
    assert world.sent_twice() == []


def test_a_row_does_not_copy_a_failure_but_is_sent(world: World) -> None:
    world.rows(of_texts(["a", "b"]))
    world.rows(of_texts(["", "", "a", "c"])[2:], "later.csv")
    world.emulator.add_fault(on="item", do="refuse", match="Summarize: a", times=1)
    in_between(world, poll_due, collect)

    finished = world.run(world.job(source={"path": str(world.folder / "*.csv")}, limits=ONE_AT_A_TIME))

    assert finished.rows == {"succeeded": 3, "refused": 1}
    assert world.accepted() == 4


@pytest.mark.parametrize("limits", [SMALL, {}], ids=["small batches", "one batch"])
def test_at_most_a_thousand_rows_share_a_request(world: World, limits: dict[str, int]) -> None:
    world.rows(equal(2_500, 1))

    finished = world.run(world.job(limits=limits))

    assert world.accepted() == finished.quote.requests == 3
    assert sorted(rows_of_requests(world).values()) == [500, 1_000, 1_000]
    assert finished.rows == {"succeeded": 2_500}


def test_a_run_that_died_shares_its_requests_when_it_continues(world: World) -> None:
    world.rows(equal(400, 40))
    world.dies_at(world.job(limits=SMALL), "planned", nth=2)

    finished = world.run(world.job(limits=SMALL))

    assert (world.accepted(), finished.rows) == (40, {"succeeded": 400})


def test_known_rows_share_requests_when_all_are_sent_again(world: World) -> None:
    world.rows(equal(100, 20))
    world.run(world.job(limits=SMALL))
    in_between(world, poll_due, collect, times=1)  # so that some copy their answer and the others join

    refreshed = world.run(world.job(limits=SMALL, request={"max_tokens": 90}), refresh=True)

    assert refreshed.rows == {"succeeded": 100}
    assert world.accepted() == 40
    assert {answer["run_id"] for answer in world.answers().values()} == {refreshed.run_id}
    assert {answer["attempts"] for answer in world.answers().values()} == {1}
    assert verify(world.database, world.known()).holds


def test_each_row_of_a_shared_request_is_canceled_and_retried_for_itself(world: World) -> None:
    world.rows(equal(30, 3))
    job = world.job(limits=ONE_AT_A_TIME)
    world.run(job, detach=True)
    cancel(world.where(), world.known())
    for _ in range(3):
        world.clock.advance(60)
        world.sweep()
    assert Counter(world.statuses().values()).keys() <= {"canceled", "succeeded"}
    before = world.accepted()

    again = world.run(job, retry=Selection(keys=("r0", "r3"), statuses=("canceled", "succeeded")))

    assert again.rows == {"succeeded": 2}
    assert world.accepted() == before + 1  # equal requests of one batch still share


def test_each_row_of_a_lost_request_is_lost(world: World) -> None:
    world.rows(equal(30, 3))
    world.emulator.add_fault(on="results", do="missing_lines", share=1.0)

    finished = world.run(world.job(limits=ONE_AT_A_TIME))

    assert finished.rows == {"lost": 30}
    assert world.accepted() == 3


def test_no_row_joins_a_batch_of_another_account(world: World) -> None:
    world.rows(equal(4, 2))
    job = world.job(limits=ONE_AT_A_TIME)

    def other(event: str, facts: dict[str, Any]) -> None:
        if event == "planned" and facts["batch"] == 1:
            with world.database.write() as conn:
                theirs = {"base_url": "http://elsewhere", "organization": "o", "workspace": "w", "emulated": True}
                conn.execute(accounts.insert().values(id=77, **theirs))
                sent = {"account_id": 77, "state": "in_progress", "api_id": "msgbatch_of_theirs"}
                conn.execute(update(batches).where(batches.c.id == 1).values(**sent))

    world.on_event = other
    world.run(job, detach=True)

    assert 1 not in {batch for (batch, _), rows in rows_of_requests(world).items() if rows > 1}


def notes(world: World) -> int:
    with world.database.read() as conn:
        return conn.scalar(select(func.count()).select_from(shared)) or 0


def test_a_source_without_equal_rows_notes_no_shared_request(world: World) -> None:
    world.run(world.job(limits={"max_batch_requests": 2}), detach=True)

    assert notes(world) == 0


def test_the_notes_of_shared_requests_are_removed_when_the_run_has_finished(world: World) -> None:
    world.rows(equal(20, 5))
    world.run(world.job(limits=SMALL), detach=True)
    assert notes(world) == 5

    world.clock.advance(60)
    world.sweep()

    assert notes(world) == 0


def test_a_canary_counts_requests(world: World) -> None:
    """Two requests in the canary: that of many rows succeeds, that of one row fails."""
    world.rows(of_texts(["bad", *["good"] * 9, *["other"] * 10]))
    world.emulator.add_fault(on="item", do="refuse", match="Summarize: bad")

    stopped = world.run(world.job(canary={"rows": 2, "max_failed": 0.2}))

    assert (stopped.reason, world.accepted()) == ("canary", 2)
    assert world.told("canary_failed")[0]["failed"] == 1
