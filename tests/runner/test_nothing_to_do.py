"""A run that finds nothing to do needs neither the API nor a key; any other run connects to the API as ever."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from pipeline.api.client import Api
from pipeline.errors import InputError, JobError
from pipeline.job.model import Job
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run
from pipeline.state.runs import get_run
from tests.conftest import World, texts


def run_without_api(world: World, job: Job, options: Options | None = None) -> Finished:
    """Run the job where there is no key. Raises InputError as soon as the run needs the API."""

    def connect(_: object) -> Api:
        raise InputError("no API key")

    return run(job, replace(world.where(), connect=connect), options)


def test_a_run_with_nothing_to_do_needs_no_api_and_is_stored_as_finished(world: World) -> None:
    world.run(world.job())

    finished = run_without_api(world, world.job())

    assert (finished.run_id, finished.state, finished.exit_code, finished.rows) == (2, "finished", 0, {})
    with world.database.read() as conn:
        stored = get_run(conn, 2)
    assert stored.ended_at is not None
    assert stored.planned_at is not None
    assert world.run(world.job()).exit_code == 0


def test_a_dry_run_with_nothing_to_do_needs_no_api(world: World) -> None:
    world.run(world.job())

    assert run_without_api(world, world.job(), Options(dry_run=True)).state == "quoted"


def a_new_row(world: World) -> None:
    world.run(world.job())
    world.rows(texts(6))


def a_changed_kept_value(world: World) -> None:
    world.rows([{**row, "owner": "Ada"} for row in texts(5)])
    world.run(world.job(source={"keep": ["owner"]}))
    world.rows([{**row, "owner": "Grace"} for row in texts(5)])


def a_batch_at_the_api(world: World) -> None:
    world.run(world.job(), detach=True)


def a_vanished_row_without_outcome(world: World) -> None:
    world.run(world.job())
    world.rows(texts(6))
    refused = {"status": 429, "error_type": "rate_limit_error", "retry_after": 100}
    world.emulator.add_fault(on="create", do="status", times=1, **refused)
    world.run(world.job(), detach=True)
    world.rows(texts(5))


def an_older_recipe(world: World) -> None:
    world.run(world.job(request={"prompt": "Shorten: {{ text }}"}))


@pytest.mark.parametrize(
    "before", [a_new_row, a_changed_kept_value, a_batch_at_the_api, a_vanished_row_without_outcome, an_older_recipe]
)
def test_a_run_with_something_to_do_connects_to_the_api(world: World, before: Callable[[World], None]) -> None:
    before(world)
    job = world.job(source={"keep": ["owner"]}) if before is a_changed_kept_value else world.job()

    with pytest.raises(InputError, match="no API key"):
        run_without_api(world, job)

    assert world.run(job).exit_code == 0


def test_a_new_recipe_is_checked_also_when_all_rows_are_kept(world: World) -> None:
    world.run(world.job())

    with pytest.raises(JobError, match=r"request\.params"):
        world.run(world.job(request={"params": {"thinking": {"type": "sometimes"}}}))


@pytest.mark.parametrize("world", ["SQLite"], indirect=True)
def test_a_run_without_api_takes_the_time_of_this_machine(world: World) -> None:
    world.run(world.job())
    late = timedelta(hours=5)

    def now() -> datetime:
        return world.clock() + late

    def connect(_: object) -> Api:
        raise InputError("no API key")

    finished = run(world.job(), replace(world.where(), connect=connect, now=now))
    world.rows(texts(6))

    assert finished.ended_at is not None
    assert abs(finished.ended_at - now()) < timedelta(minutes=1)
    assert world.run(world.job()).rows == {"succeeded": 1}
