"""Cancel sends nothing more of a job, cancels its batches at the API, and keeps the rows that had succeeded."""

from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select

from pipeline.errors import ApiUnreachable, Busy, Stopped
from pipeline.job.model import Job
from pipeline.planning.selection import Selection
from pipeline.runner.options import Finished
from pipeline.state import leases
from pipeline.state.jobs import job_named
from pipeline.state.tables import batches, runs, sendings
from pipeline.steps.cancel import Canceled, cancel
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True

BUSY = {"on": "create", "do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 100}


def cancel_job(world: World, *, abandon: bool = False) -> Canceled:
    """Cancel the job, as `batch-pipeline cancel` does."""
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    return cancel(world.where(), row, abandon=abandon)


def collect(world: World) -> None:
    """Sweep until the API has had time to end every batch."""
    for _ in range(4):
        world.clock.advance(61)
        world.sweep()


def small(world: World, **changes: Any) -> Job:
    return world.job(limits={"max_batch_requests": 2}, **changes)


def run_ends(world: World) -> list[tuple[str, str | None]]:
    with world.database.read() as conn:
        return [(row.state, row.reason) for row in conn.execute(select(runs).order_by(runs.c.id))]


def test_cancel_collects_rows_that_had_succeeded_and_cancels_the_others(world: World) -> None:
    world.rows(texts(20))
    world.run(world.job(), detach=True)

    done = cancel_job(world)
    collect(world)

    assert done == Canceled(runs=1, open=1, foreign=0)
    assert run_ends(world) == [("incomplete", "canceled")]
    assert set(world.statuses().values()) == {"succeeded", "canceled"}
    assert set(world.states().values()) == {"succeeded", "canceled"}
    assert world.accepted() == 20
    assert world.sweep() == []


def test_rows_that_were_not_sent_before_the_cancel_are_never_sent(world: World) -> None:
    world.emulator.add_fault(**BUSY)
    world.run(small(world), detach=True)
    world.emulator.clear_faults()

    done = cancel_job(world)
    world.clock.advance(200)
    world.sweep()

    assert done == Canceled(runs=1, open=0, foreign=0)
    assert set(world.batch_states()) == {"dropped"}
    assert set(world.states().values()) == {"pending"}
    assert world.accepted() == 0


def test_a_batch_whose_create_had_no_response_is_canceled_when_it_is_found(world: World) -> None:
    world.emulator.settings.canceled_share = 1
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.run(world.job(), detach=True)

    done = cancel_job(world)
    collect(world)

    assert done.open == 1
    assert set(world.statuses().values()) <= {"succeeded", "canceled"}
    assert world.batch_states() == ["collected"]
    assert world.accepted() == 5


def test_a_create_that_never_arrived_is_not_sent_again_once_it_is_canceled(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_before", times=1)
    world.run(world.job(), detach=True)

    cancel_job(world)
    collect(world)

    assert world.accepted() == 0
    assert set(world.states().values()) == {"pending"}
    assert world.batch_states() == ["dropped"]


@pytest.mark.parametrize("moment", ["planned", "submitting", "submitted", "waiting", "ended", "collected"])
def test_a_running_driver_ends_with_exit_code_3_when_its_run_is_canceled(world: World, moment: str) -> None:
    world.rows(texts(12))
    world.emulator.settings.canceled_share = 1

    def other(event: str, facts: dict[str, Any]) -> None:
        if event == moment:
            world.on_event = None
            with suppress(Busy):  # a planner goes on only when we come back
                cancel_job(world)

    world.on_event = other
    ended = world.run(world.job(limits={"max_batch_requests": 2, "max_in_flight_requests": 4}))
    accepted = world.accepted()
    collect(world)

    assert (ended.state, ended.reason, ended.exit_code) == ("incomplete", "canceled", 3)
    assert world.accepted() == accepted <= 4
    assert set(world.states().values()) <= {"succeeded", "canceled", "pending"}
    assert set(world.batch_states()) <= {"collected", "dropped"}


def test_after_a_cancel_a_run_sends_unsent_rows_and_a_retry_sends_canceled_rows(world: World) -> None:
    world.rows(texts(6))
    world.emulator.settings.canceled_share = 1
    job = world.job(limits={"max_batch_requests": 2, "max_in_flight_requests": 2})
    world.run(job, detach=True)
    cancel_job(world)
    collect(world)

    rest = world.run(job)
    canceled = [key for key, status in world.statuses().items() if status == "canceled"]
    again = world.run(job, retry=Selection(statuses=("canceled",)))

    assert rest.rows == {"succeeded": 4}
    assert len(canceled) == 2
    assert again.rows == {"succeeded": 2}
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.sent_twice() == []


def test_a_run_that_begins_while_batches_are_being_canceled_waits_for_them(world: World) -> None:
    world.emulator.settings.canceled_share = 1
    world.run(world.job(), detach=True)
    cancel_job(world)

    finished: Finished = world.run(world.job())

    assert finished.state == "finished"
    assert set(world.statuses().values()) == {"canceled"}
    assert world.accepted() == 5


def test_canceling_a_second_time_changes_nothing(world: World) -> None:
    world.run(world.job(), detach=True)
    cancel_job(world)

    again = cancel_job(world)
    collect(world)
    at_the_end = cancel_job(world)

    assert again == Canceled(runs=0, open=1, foreign=0)
    assert at_the_end == Canceled(runs=0, open=0, foreign=0)
    assert world.batch_states() == ["collected"]


def test_a_job_that_has_ended_has_nothing_to_cancel(world: World) -> None:
    world.run(world.job())

    done = cancel_job(world)

    assert done == Canceled(runs=0, open=0, foreign=0)
    assert run_ends(world) == [("finished", None)]
    assert set(world.statuses().values()) == {"succeeded"}


def test_cancel_ends_only_the_runs_of_its_own_job(world: World) -> None:
    other = world.job(name="other", sink={"table": "others"}, request={"prompt": "Otherwise: {{ text }}"})
    world.run(other, detach=True)
    world.run(world.job(), detach=True)

    cancel_job(world)
    collect(world)

    assert run_ends(world) == [("finished", None), ("incomplete", "canceled")]
    assert set(world.statuses("other").values()) == {"succeeded"}


def test_cancel_ends_the_runs_although_the_api_cannot_be_reached(world: World) -> None:
    world.rows(texts(12))
    world.emulator.settings.canceled_share = 1
    job = world.job(limits={"max_batch_requests": 2, "max_in_flight_requests": 4})
    world.run(job, detach=True)
    world.emulator.add_fault(on="list", do="drop_before")

    with pytest.raises(Stopped, match=r"the runs of summaries have ended.*run the same command again, or `collect`"):
        cancel_job(world)
    world.emulator.clear_faults()
    collect(world)

    assert run_ends(world) == [("incomplete", "canceled")]
    assert world.accepted() == 4
    assert set(world.states().values()) <= {"succeeded", "canceled", "pending"}
    assert set(world.batch_states()) <= {"collected", "dropped"}


def test_cancel_holds_although_the_api_fails_in_the_middle_of_it(world: World) -> None:
    world.emulator.settings.canceled_share = 1
    world.run(world.job(), detach=True)
    world.emulator.add_fault(on="cancel", do="drop_before")

    with pytest.raises(ApiUnreachable):
        cancel_job(world)
    world.emulator.clear_faults()
    world.clock.advance(31)
    world.sweep()
    collect(world)

    assert run_ends(world) == [("incomplete", "canceled")]
    assert world.batch_states() == ["collected"]
    assert "canceled" in world.statuses().values()


def test_cancel_leaves_a_batch_of_another_account_alone_unless_told_to_give_it_up(world: World) -> None:
    world.run(small(world), detach=True)
    world.key = "test@other-team"

    left = cancel_job(world)
    given_up = cancel_job(world, abandon=True)

    assert left == Canceled(runs=1, open=3, foreign=3)
    assert given_up == Canceled(runs=0, open=0, foreign=0)
    assert set(world.batch_states()) == {"lost"}
    assert set(world.statuses().values()) == {"lost"}
    assert all("given up by `cancel --abandon`" in str(a["error_message"]) for a in world.answers().values())


def test_a_batch_that_was_given_up_is_collected_when_its_account_is_used_again(world: World) -> None:
    world.run(world.job(), detach=True)
    world.key = "test@other-team"
    cancel_job(world, abandon=True)

    world.clock.advance(7 * 3600)
    world.sweep()  # of a driver that cannot ask after it, and does not put it off for the one that can
    world.key = "test"
    world.sweep()
    collect(world)

    assert set(world.statuses().values()) <= {"succeeded", "canceled"}
    assert set(world.states().values()) <= {"succeeded", "canceled"}
    assert world.batch_states() == ["collected"]


def test_cancel_names_the_driver_that_is_still_planning(world: World) -> None:
    world.run(world.job(), detach=True)

    with (
        leases.hold(world.database, "planning summaries", seconds=1_000, now=world.clock),
        pytest.raises(Busy, match=r"planning summaries: process \d+ on .* is doing this now"),
    ):
        cancel_job(world)

    assert run_ends(world) == [("incomplete", "canceled")]
    assert cancel_job(world).open == 1


def test_money_reserved_for_canceled_rows_is_released(world: World) -> None:
    world.emulator.settings.canceled_share = 1
    world.run(world.job(limits={"max_cost_usd": 1}), detach=True)

    cancel_job(world)
    collect(world)

    with world.database.read() as conn:
        [(settled, cost)] = conn.execute(
            select(sendings.c.settled_usd, batches.c.cost_usd).join(batches, batches.c.id == sendings.c.batch_id)
        )
    assert settled == pytest.approx(cost)
