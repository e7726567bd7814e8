"""Other processes collect: they list the ended batches, collect one at a time, and ask which are left."""

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
    """Return the world's Environment, whose transport calls `begin` before each request for results."""

    class Noticing(httpx2.BaseTransport):
        def __init__(self) -> None:
            self.inner = world.emulator.transport()

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path.endswith("/results"):
                begin()
            return self.inner.handle_request(request)

    return world.where(Noticing())


def test_ended_batches_of_all_jobs_are_listed(world: World) -> None:
    sent(world, small(world), other(world))

    listed = ended_batches(world.where())

    assert listed == [*(("summaries", number) for number in (1, 2, 3)), *(("other", number) for number in (4, 5, 6))]
    assert world.batch_states() == ["ended"] * 6
    assert results_fetched(world) == 0


def test_only_ended_batches_of_the_requested_job_are_listed(world: World) -> None:
    sent(world, small(world), other(world))

    assert ended_batches(world.where(), "other") == [("other", number) for number in (4, 5, 6)]
    assert ended_batches(world.where(), "nobodys") == []


def test_running_and_collected_batches_are_not_listed(world: World) -> None:
    sent(world, small(world))
    world.sweep()
    world.run(other(world), detach=True)

    assert ended_batches(world.where()) == []


def test_the_api_is_not_called_when_there_is_nothing_to_do(world: World) -> None:
    world.run(small(world))
    calls = len(list(world.emulator.log()))

    assert ended_batches(world.where()) == []
    assert len(list(world.emulator.log())) == calls


def test_a_job_whose_batches_cannot_be_retrieved_is_left_out(world: World) -> None:
    sent(world, small(world), other(world))
    world.emulator.add_fault(on="list", do="lag", seconds=1_000)  # so each is asked after alone
    with world.database.read() as conn:
        first = conn.scalar(select(batches.c.api_id).where(batches.c.id == 1))
    world.emulator.add_fault(on="retrieve", do="drop_before", match=first)

    listed = ended_batches(world.where())

    assert {job for job, _ in listed} == {"other"}
    assert world.batch_states()[3:] == ["ended"] * 3


def test_a_job_with_a_different_spool_is_left_out_and_the_sweep_names_it(world: World) -> None:
    sent(world, small(world), other(world))
    with world.database.write() as conn:
        conn.execute(update(jobs).where(jobs.c.name == "summaries").values(spool_id="of another folder"))

    listed = ended_batches(world.where())
    swept = dict(world.sweep())

    assert {job for job, _ in listed} == {"other"}
    assert "is not the one that job summaries has used" in str(swept["summaries"])
    assert swept["other"] is None


def test_collect_one_collects_its_batch_and_no_other(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())

    collect_one(world.where(), "summaries", 2)

    assert world.batch_states() == ["ended", "collected", "ended"]
    assert world.statuses() == {"r2": "succeeded", "r3": "succeeded"}
    assert results_fetched(world) == 1


def test_the_next_sweep_collects_the_remaining_batches_and_ends_the_run(world: World) -> None:
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


def test_two_drivers_that_collect_one_batch_at_the_same_time_store_it_once(world: World) -> None:
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


def test_a_driver_suspended_while_another_collected_its_batch_changes_nothing(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())

    def sleep_until_another_has_done_it() -> None:
        world.clock.advance(world.settings.lease + 1)  # the sleeper's sign of life has run out
        collect_one(world.where(), "summaries", 1)

    collect_one(where_downloads_begin_with(world, sleep_until_another_has_done_it), "summaries", 1)

    assert [facts["batch"] for facts in world.told("taken_over")] == [1]
    assert [facts["batch"] for facts in world.told("collected")] == [1]
    assert world.statuses() == {"r0": "succeeded", "r1": "succeeded"}


def test_collecting_a_collected_batch_does_nothing(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())
    collect_one(world.where(), "summaries", 1)
    before = world.answers()

    collect_one(world.where(), "summaries", 1)

    assert world.answers() == before
    assert results_fetched(world) == 1
    assert len(world.told("collected")) == 1


def test_collecting_a_running_or_unknown_batch_does_nothing(world: World) -> None:
    world.run(small(world), detach=True)

    for batch in (1, 99):
        collect_one(world.where(), "summaries", batch)

    assert world.batch_states() == ["in_progress"] * 3
    assert results_fetched(world) == 0


def test_a_batch_of_another_account_is_neither_listed_nor_retrieved(world: World) -> None:
    sent(world, small(world))
    ended_batches(world.where())
    world.key = "test@other-team"

    listed = ended_batches(world.where())
    collect_one(world.where(), "summaries", 1)

    assert listed == []
    assert world.batch_states() == ["ended"] * 3
    assert results_fetched(world) == 0


def test_an_unknown_job_is_refused_with_a_sentence(world: World) -> None:
    with pytest.raises(InputError, match=r"batches\.db knows no job 'nobodys'|test_.* knows no job 'nobodys'"):
        collect_one(world.where(), "nobodys", 1)


def test_batches_that_still_wait_and_batches_of_a_living_driver_are_told_apart(world: World) -> None:
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
