"""A follower does what is due until no run is open, and waits for the first run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from pipeline.errors import InputError, Interrupted
from pipeline.job.model import Job
from pipeline.planning.trial import Trial
from pipeline.runner.follow import Followed, follow
from pipeline.runner.options import Options
from pipeline.runner.trial import run_trial
from pipeline.state.batches import batches_by_state
from pipeline.state.holders import holder
from pipeline.state.tables import batches, leases, runs
from pipeline.steps.cancel import cancel
from tests.conftest import World, event_line, texts
from tests.driver.test_listing import Counting

POSTGRESQL_IS_LONG = True


def at_first(world: World, moment: str, then: Callable[[], object]) -> None:
    """Do something at the next event of this name, once."""

    def look(event: str, facts: dict[str, Any]) -> None:
        if event == moment:
            world.on_event = None
            then()

    world.on_event = look


def ended(followed: Followed) -> list[tuple[int, str, str | None]]:
    return [(end.run_id, end.state, end.reason) for end in followed.ends]


def others(world: World, **changes: Any) -> Job:
    return world.job(name="others", sink={"table": "others"}, **changes)


FINISHED = [(1, "finished", None)]


# -- what is followed ------------------------------------------------------------------------------------------------


def test_a_detached_run_is_followed_to_its_end(world: World) -> None:
    world.run(world.job(limits={"max_batch_requests": 2}), detach=True)

    followed = follow(world.where())

    assert (ended(followed), followed.problems, followed.exit_code) == (FINISHED, {}, 0)
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.sent_twice() == []
    assert world.told("no_run_open") == []


def test_the_trials_of_a_job_are_followed_with_it(world: World) -> None:
    run_trial(world.job(), Trial("t"), world.where(), Options(detach=True))

    followed = follow(world.where(), "summaries")

    assert [(end.job, end.state) for end in followed.ends] == [("summaries:t", "finished")]
    assert set(world.statuses("summaries:t").values()) == {"succeeded"}


def test_rows_that_must_be_sent_again_are_sent_again(world: World) -> None:
    world.emulator.add_fault(on="item", do="expire", times=2)
    world.run(world.job(), detach=True)

    followed = follow(world.where())

    assert followed.exit_code == 0
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.accepted() == 7


def test_the_runs_of_all_jobs_are_followed_unless_one_is_named(world: World) -> None:
    world.run(world.job(), detach=True)
    world.run(others(world), detach=True)

    one = follow(world.where(), "others")
    both = follow(world.where())

    assert [(end.job, end.state) for end in one.ends] == [("others", "finished")]
    assert [(end.job, end.state) for end in both.ends] == [("summaries", "finished")]


def test_a_run_that_begins_and_ends_meanwhile_is_followed_too(world: World) -> None:
    world.run(world.job(), detach=True)
    at_first(world, "waiting", lambda: world.run(others(world)))

    followed = follow(world.where())

    assert [end.job for end in followed.ends] == ["summaries", "others"]


def test_a_follower_polls_as_often_as_a_run(world: World) -> None:
    world.run(world.job(), detach=True)
    counting = Counting(world)
    where = replace(world.where(), connect=world.where(counting).connect)

    follow(where)

    assert len(world.told("waiting")) > 10  # looks at the database
    assert counting.calls == {"retrieve": 2}  # 30 s and 60 s after the batch was sent


# -- waiting for the first run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False], ids=["an open run", "a run that ends before it is seen"])
@pytest.mark.parametrize("name", [None, "summaries"], ids=["any job", "a job that the database does not know"])
def test_a_follower_waits_for_the_first_run_and_tells_so_once(world: World, name: str | None, detach: bool) -> None:
    where = world.where()

    def begin_later(event: str, facts: dict[str, Any]) -> None:
        if event == "no_run_open":
            waits = where.stop.wait

            def waits_then_runs(seconds: float) -> None:
                where.stop.wait = waits  # type: ignore[method-assign]
                waits(seconds)
                world.run(world.job(), detach=detach)

            where.stop.wait = waits_then_runs  # type: ignore[method-assign]

    world.on_event = begin_later
    followed = follow(where, name)

    assert (ended(followed), followed.exit_code) == (FINISHED, 0)
    assert len(world.told("no_run_open")) == 1
    assert world.accepted() == 5


def test_runs_that_have_ended_before_are_not_followed(world: World) -> None:
    world.run(world.job())
    at_first(world, "no_run_open", lambda: world.run(others(world), detach=True))

    followed = follow(world.where())

    assert [(end.run_id, end.job) for end in followed.ends] == [(2, "others")]


def test_a_follower_that_waits_can_be_stopped(world: World) -> None:
    where = world.where()
    at_first(world, "no_run_open", where.stop.event.set)

    with pytest.raises(Interrupted):
        follow(where)


def test_the_line_about_waiting_names_the_job(world: World) -> None:
    def line(job: str | None) -> str:
        return event_line("no_run_open", {} if job is None else {"job": job})

    assert line(None).startswith("waiting: no run is open yet; ")
    assert line("notes").startswith("waiting: no run of notes is open yet; ")


# -- other drivers ---------------------------------------------------------------------------------------------------


def test_two_followers_at_once_share_the_work_and_end_alike(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="Text number 1 ", times=1)
    world.run(world.job(limits={"max_batch_requests": 2}), detach=True)
    second: list[Followed] = []
    at_first(world, "ended", lambda: second.append(follow(world.where())))

    first = follow(world.where())

    assert (ended(first), first.exit_code) == (FINISHED, 1)
    assert [(ended(other), other.exit_code) for other in second] == [(FINISHED, 1)]
    assert len(world.told("finished")) == 1
    assert world.sent_twice() == []


def test_a_run_that_died_while_it_planned_is_waited_for_and_told_once(world: World) -> None:
    job = world.job(limits={"max_batch_requests": 2})
    world.dies_at(job, "planned", nth=3)
    told: list[str] = []

    def look(event: str, facts: dict[str, Any]) -> None:
        if event == "awaits_planning":
            told.append(event_line(event, facts))
        if event == "waiting" and told:
            world.on_event = None
            assert world.batch_states() == ["collected"] * 3  # all that was planned is done, and the run is open
            world.run(job, detach=True)

    world.on_event = look
    followed = follow(world.where())

    assert (ended(followed), followed.exit_code) == (FINISHED, 0)
    assert told == [
        "run 1 of summaries waits for its source to be read, and no process reads it now; "
        "`batch-pipeline status summaries` says how to continue it"
    ]
    assert len(world.told("awaits_planning")) == 1
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_run_that_is_being_planned_is_waited_for_in_silence(world: World) -> None:
    world.run(world.job(limits={"max_batch_requests": 2}), detach=True)
    job = others(world, limits={"max_batch_requests": 2})
    seen: list[object] = []

    def beside() -> None:
        """Follow the first job while a driver of this test plans the second one."""
        seen.append(follow(world.where(), "summaries").exit_code)

    at_first(world, "planned", beside)
    world.run(job, detach=True)

    assert seen == [0]
    assert world.told("awaits_planning") == []


def test_the_batches_of_a_driver_that_died_are_free_at_the_next_look(world: World) -> None:
    world.run(world.job(), detach=True)
    with world.database.write() as conn:
        dead = {**holder(), "started": "1"}  # another process with our id, long ago
        lease = {"resource": "driver dead", "token": 1, "holder": dead, "expires_at": world.clock().replace(year=2100)}
        conn.execute(leases.insert().values(**lease))

    def claim_all() -> None:
        with world.database.write() as conn:
            conn.execute(update(batches).values(claimed_by="driver dead", claim=batches.c.claim + 1))

    at_first(world, "waiting", claim_all)
    started = world.clock()
    followed = follow(world.where())

    assert ended(followed) == FINISHED
    assert (world.clock() - started).total_seconds() < 120


# -- how it ends -----------------------------------------------------------------------------------------------------


def test_the_exit_code_is_that_of_the_worst_run(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="Text number 1 ", times=1)
    world.run(world.job(), detach=True)
    at_first(world, "waiting", lambda: world.run(others(world, limits={"max_cost_usd": 0.000001})))

    followed = follow(world.where())

    assert ended(followed) == [(1, "finished", None), (2, "incomplete", "budget")]
    assert [end.exit_code for end in followed.ends] == [1, 3]
    assert followed.exit_code == 3


def test_what_a_canceled_run_has_at_the_api_is_still_collected(world: World) -> None:
    world.rows(texts(20))
    world.run(world.job(), detach=True)
    at_first(world, "waiting", lambda: cancel(world.where(), world.known()))

    followed = follow(world.where())

    assert (ended(followed), followed.exit_code) == ([(1, "incomplete", "canceled")], 3)
    assert set(world.states().values()) == {"succeeded", "canceled"}
    with world.database.read() as conn:
        assert batches_by_state(conn, 1) == {"collected": 1}


def test_an_api_that_does_not_answer_for_a_while_is_waited_for(world: World) -> None:
    world.run(world.job(), detach=True)
    world.emulator.add_fault(on="retrieve", do="drop_before", times=4)

    followed = follow(world.where())

    assert (ended(followed), followed.exit_code) == (FINISHED, 0)
    assert [told["wait"] for told in world.told("unreachable")] == [5, 10, 20, 40]


def test_a_job_whose_api_stays_unreachable_is_given_up_and_the_same_command_continues(world: World) -> None:
    world.run(world.job(), detach=True)
    world.emulator.add_fault(on="retrieve", do="drop_before")
    world.with_settings(timeout=100.0)

    given_up = follow(world.where())
    world.emulator.clear_faults()
    again = follow(world.where())

    assert (ended(given_up), given_up.exit_code) == ([], 3)
    assert list(given_up.problems) == ["summaries"]
    assert "no answer from http://emulator" in given_up.problems["summaries"]
    assert (ended(again), again.exit_code) == (FINISHED, 0)


def test_a_job_with_a_problem_does_not_keep_others_from_being_followed(world: World) -> None:
    world.run(world.job(), detach=True)
    world.run(others(world), detach=True)
    with world.database.write() as conn:  # as if a version with other job files had begun the run
        conn.execute(update(runs).where(runs.c.id == 1).values(job={"name": "summaries"}))

    followed = follow(world.where())

    assert [(end.job, end.state) for end in followed.ends] == [("others", "finished")]
    assert "run 1 was stored with a job that this version cannot read" in followed.problems["summaries"]
    assert followed.exit_code == 3
    [warned] = world.told("warning")
    assert warned["warning"].startswith("job summaries is not followed any more: run 1 was stored")


def test_an_address_that_does_not_answer_the_first_call_is_wrong_input(world: World) -> None:
    world.run(world.job(), detach=True)
    world.emulator.add_fault(on="list", do="drop_before")

    with pytest.raises(InputError, match="no answer from http://emulator"):
        follow(world.where())
