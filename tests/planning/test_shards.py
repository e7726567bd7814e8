"""Planning is shared by file among drivers, which are threads here."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from pipeline.errors import LostRace, SourceError
from pipeline.job.model import Job
from pipeline.planning.shards import Planned, Shard, ShardRunner, plan_shard
from pipeline.state import leases
from pipeline.state.database import Database
from tests.conftest import World

POSTGRESQL_IS_LONG = True


def files(world: World, number: int = 3, rows: int = 4) -> Job:
    """Return a job over several files."""
    for file in range(number):
        world.rows([{"id": f"f{file}r{i}", "text": f"Row {i} of file {file}."} for i in range(rows)], f"part{file}.csv")
    return world.job(source={"path": str(world.folder / "part*.csv")}, limits={"max_batch_requests": 3})


def in_threads(world: World, *, fails: tuple[int, ...] = ()) -> ShardRunner:
    """Return a function that plans all shards at once, each with its own connection, except those in `fails`."""

    def plan(part: Shard) -> Planned:
        with closing(Database(world.database.url.render_as_string(hide_password=False))) as database:
            return plan_shard(replace(world.where(), database=database), part)

    def share(parts: list[Shard], meanwhile: Callable[[], None]) -> list[Planned]:
        with ThreadPoolExecutor() as pool:
            futures = [pool.submit(plan, part) for n, part in enumerate(parts) if n not in fails]
            meanwhile()
            return [future.result() for future in futures]

    return share


def test_other_processes_plan_the_files_of_a_source(world: World) -> None:
    finished = world.run(files(world), share=in_threads(world))

    assert finished.rows == {"succeeded": 12}
    assert (world.accepted(), world.sent_twice()) == (12, [])
    assert len(world.batch_states()) == 6  # two of each file
    assert not world.told("planned_elsewhere")


def test_the_driver_plans_a_shard_that_failed_elsewhere(world: World) -> None:
    finished = world.run(files(world), share=in_threads(world, fails=(1,)))

    assert finished.rows == {"succeeded": 12}
    assert (world.accepted(), world.sent_twice()) == (12, [])
    assert world.told("planned_elsewhere")[0]["problem"] == "1 of 3 files were not planned by the other processes"


def test_a_shard_can_write_nothing_after_its_driver_has_ended(world: World) -> None:
    kept: list[Shard] = []

    def share(parts: list[Shard], meanwhile: Callable[[], None]) -> list[Planned]:
        kept.extend(parts)
        return []

    finished = world.run(files(world), share=share)
    for part in kept:
        with pytest.raises(LostRace):
            plan_shard(world.where(), part)

    assert finished.rows == {"succeeded": 12}
    assert world.accepted() == 12


def test_a_run_with_shards_waits_for_rows_in_flight_in_another_run(world: World) -> None:
    job = files(world)
    world.run(job, detach=True)
    world.rows([{"id": f"f0r{i}", "text": f"Changed {i}."} for i in range(4)], "part0.csv")

    finished = world.run(job, share=in_threads(world))

    assert set(world.statuses().values()) == {"succeeded"}
    assert (world.accepted(), finished.state) == (16, "finished")


@pytest.mark.parametrize("options", [{"limit": 5}, {"dry_run": True}], ids=["limit", "dry run"])
def test_a_run_that_plans_only_some_rows_is_not_shared(world: World, options: dict[str, int]) -> None:
    def share(parts: list[Shard], meanwhile: Callable[[], None]) -> list[Planned]:
        raise AssertionError("nobody asked for it")

    world.run(files(world), share=share, **options)

    assert world.accepted() == options.get("limit", 0)


def test_a_source_of_one_file_is_not_shared(world: World) -> None:
    def share(parts: list[Shard], meanwhile: Callable[[], None]) -> list[Planned]:
        raise AssertionError("nobody asked for it")

    assert world.run(world.job(), share=share).rows == {"succeeded": 5}


def test_a_file_missing_on_another_machine_is_reported(world: World) -> None:
    job = files(world)
    world.run(job, detach=True)
    with leases.hold(world.database, "planning summaries", seconds=60, now=world.clock) as lease:
        part = Shard("summaries", 1, "/elsewhere/part0.csv", False, lease.resource, lease.token)

        with pytest.raises(SourceError, match=r"/elsewhere/part0.csv does not exist on this machine; .* shared path"):
            plan_shard(world.where(), part)
