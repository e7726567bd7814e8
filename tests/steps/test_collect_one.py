"""Collecting in parts that other processes do: what has ended, one batch at a time, and how far it has come."""

import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from pipeline.driver.environment import Environment
from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.state import leases
from pipeline.state.tables import batches, jobs
from pipeline.steps.collect_one import Left, collect_one, ended_batches, left_of
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True

PATIENCE = 60.0


def small(world: World, **changes: Any) -> Job:
    return world.job(limits={"max_batch_requests": 2}, **changes)


def other(world: World) -> Job:
    return small(world, name="other", sink={"table": "others"}, request={"prompt": "Otherwise: {{ text }}"})


def sent(world: World, *jobs: Job) -> None:
    """Submit these jobs, and let the API end all their batches."""
    for job in jobs:
        world.run(job, detach=True)
    world.clock.advance(61)


def results_fetched(world: World) -> int:
    return len([call for call in world.emulator.log() if call["path"].endswith("/results")])


def where_downloads_begin_with(world: World, begin: Callable[[], None]) -> Environment:
    """Our side of the world, where `begin` is called before results are asked for."""

    class Noticing(httpx2.BaseTransport):
        def __init__(self) -> None:
            self.inner = world.emulator.transport()

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path.endswith("/results"):
                begin()
            return self.inner.handle_request(request)

    return world.where(Noticing())


def test_what_has_ended_is_listed_over_all_jobs(world: World) -> None:
    sent(world, small(world), other(world))

    listed = ended_batches(world.where())

    assert listed == [*(("summaries", number) for number in (1, 2, 3)), *(("other", number) for number in (4, 5, 6))]
    assert world.batch_states() == ["ended"] * 6
    assert results_fetched(world) == 0


def test_of_one_job_only_what_is_asked_for_is_listed(world: World) -> None:
    sent(world, small(world), other(world))

    assert ended_batches(world.where(), "other") == [("other", number) for number in (4, 5, 6)]
    assert ended_batches(world.where(), "nobodys") == []


def test_what_still_runs_and_what_is_collected_is_not_listed(world: World) -> None:
    sent(world, small(world))
    world.sweep()
    world.run(other(world), detach=True)

    assert ended_batches(world.where()) == []


def test_without_anything_to_do_the_api_is_not_asked(world: World) -> None:
    world.run(small(world))
    calls = len(list(world.emulator.log()))

    assert ended_batches(world.where()) == []
    assert len(list(world.emulator.log())) == calls


def test_a_job_that_cannot_be_asked_after_is_left_out(world: World) -> None:
    sent(world, small(world), other(world))
    world.emulator.add_fault(on="list", do="lag", seconds=1_000)  # so each is asked after alone
    with world.database.read() as conn:
        first = conn.scalar(select(batches.c.api_id).where(batches.c.id == 1))
    world.emulator.add_fault(on="retrieve", do="drop_before", match=first)

    listed = ended_batches(world.where())

    assert {job for job, _ in listed} == {"other"}
    assert world.batch_states()[3:] == ["ended"] * 3


def test_a_job_whose_spool_is_another_one_is_left_out_and_named_by_the_sweep(world: World) -> None:
    sent(world, small(world), other(world))
    with world.database.write() as conn:
        conn.execute(update(jobs).where(jobs.c.name == "summaries").values(spool_id="of another folder"))

    listed = ended_batches(world.where())
    swept = dict(world.sweep())

    assert {job for job, _ in listed} == {"other"}
    assert "is not the one that job summaries has used" in str(swept["summaries"])
    assert swept["other"] is None


def test_one_batch_is_collected_and_no_other(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())

    collect_one(world.where(), "summaries", 2)

    assert world.batch_states() == ["ended", "collected", "ended"]
    assert world.statuses() == {"r2": "succeeded", "r3": "succeeded"}
    assert results_fetched(world) == 1


def test_the_sweep_after_it_does_the_rest_and_ends_the_run(world: World) -> None:
    sent(world, small(world))
    for job, batch in ended_batches(world.where()):
        collect_one(world.where(), job, batch)
    before = world.told("finished")

    assert world.sweep() == [("summaries", None)]
    assert (len(before), len(world.told("finished"))) == (0, 1)
    assert set(world.statuses().values()) == {"succeeded"}
    assert results_fetched(world) == 3
    assert world.sent_twice() == []


def test_a_batch_that_another_living_driver_has_claimed_is_left_alone_until_that_driver_is_dead(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())
    with leases.sign_of_life(world.database, seconds=1_000, now=world.clock) as another:
        with world.database.write() as conn:
            conn.execute(update(batches).where(batches.c.id == 1).values(claimed_by=another.resource, claim=7))

        collect_one(world.where(), "summaries", 1)
        while_it_lived = world.batch_states()
        with world.database.read() as conn:
            claim = conn.execute(select(batches.c.claimed_by, batches.c.claim).where(batches.c.id == 1)).one()

    collect_one(world.where(), "summaries", 1)

    assert while_it_lived == ["ended"] * 3
    assert tuple(claim) == (another.resource, 7)
    assert world.batch_states() == ["collected", "ended", "ended"]


def test_two_that_collect_one_batch_at_once_collect_it_once(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())
    one_is_done = threading.Event()
    waited: list[bool] = []
    sides = [where_downloads_begin_with(world, lambda: waited.append(one_is_done.wait(PATIENCE))) for _ in range(2)]
    problems: list[BaseException] = []

    def collect(where: Environment) -> None:
        try:
            collect_one(where, "summaries", 1)
        except BaseException as exc:  # noqa: BLE001  # told by the test's own thread
            problems.append(exc)
        one_is_done.set()

    threads = [threading.Thread(target=collect, args=[where]) for where in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert problems == []
    assert waited == [True]  # one downloads, and goes on when the other has ended
    assert results_fetched(world) == 1
    assert [facts["batch"] for facts in world.told("collected")] == [1]
    assert world.batch_states() == ["collected", "ended", "ended"]


def test_one_that_was_suspended_while_another_collected_its_batch_changes_nothing(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())

    def sleep_until_another_has_done_it() -> None:
        world.clock.advance(world.settings.lease + 1)  # the sleeper's sign of life has run out
        collect_one(world.where(), "summaries", 1)

    collect_one(where_downloads_begin_with(world, sleep_until_another_has_done_it), "summaries", 1)

    assert [facts["batch"] for facts in world.told("taken_over")] == [1]
    assert [facts["batch"] for facts in world.told("collected")] == [1]
    assert world.statuses() == {"r0": "succeeded", "r1": "succeeded"}


def test_collecting_what_is_collected_already_does_nothing(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())
    collect_one(world.where(), "summaries", 1)
    before = world.answers()

    collect_one(world.where(), "summaries", 1)

    assert world.answers() == before
    assert results_fetched(world) == 1
    assert len(world.told("collected")) == 1


def test_a_batch_that_still_runs_and_one_that_does_not_exist_are_no_work(world: World) -> None:
    world.run(small(world), detach=True)

    for batch in (1, 99):
        collect_one(world.where(), "summaries", batch)

    assert world.batch_states() == ["in_progress"] * 3
    assert results_fetched(world) == 0


def test_a_batch_of_another_account_is_neither_listed_nor_asked_for(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())
    world.key = "test@other-team"

    listed = ended_batches(world.where())
    collect_one(world.where(), "summaries", 1)

    assert listed == []
    assert world.batch_states() == ["ended"] * 3
    assert results_fetched(world) == 0


def test_an_unknown_job_is_a_sentence(world: World) -> None:
    with pytest.raises(InputError, match=r"batches\.db knows no job 'nobodys'|test_.* knows no job 'nobodys'"):
        collect_one(world.where(), "nobodys", 1)


def test_what_is_left_is_told_apart_from_what_a_living_driver_has(world: World) -> None:
    world.rows(texts(6))
    sent(world, small(world))
    ended_batches(world.where())
    collect_one(world.where(), "summaries", 3)

    with leases.sign_of_life(world.database, seconds=1_000, now=leases.local_now) as another:
        with world.database.write() as conn:
            conn.execute(update(batches).where(batches.c.id == 1).values(claimed_by=another.resource))
        while_it_lived = left_of(world.database, {1, 3, 99})
    afterwards = left_of(world.database, {1, 2})

    assert while_it_lived == Left(waiting=frozenset({1}), held=frozenset({1}))
    assert afterwards == Left(waiting=frozenset({1, 2}), held=frozenset())
