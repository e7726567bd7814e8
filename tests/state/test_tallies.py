"""How many rows are in each state, kept as they change: it holds after each step what a count of all rows says.

The random schedules hold the same after each of their steps (tests/proofs/simulation/rules.py).
"""

from collections import Counter

from sqlalchemy import func, select

from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.state.jobs import job_named
from pipeline.state.tables import requests, tallies
from pipeline.state.tallies import job_counts
from tests.conftest import World, texts


def kept(world: World) -> Counter[tuple[int, str]]:
    with world.database.read() as conn:
        query = select(tallies.c.run_id, tallies.c.state, func.sum(tallies.c.rows)).group_by(
            tallies.c.run_id, tallies.c.state
        )
        return +Counter({(run_id, state): int(rows) for run_id, state, rows in conn.execute(query)})


def counted(world: World) -> Counter[tuple[int, str]]:
    with world.database.read() as conn:
        return Counter((row[0], row[1]) for row in conn.execute(select(requests.c.run_id, requests.c.state)))


def test_the_tally_follows_rows_that_are_planned_answered_changed_and_removed(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="api_error", match="number 1", times=1)
    world.rows([*texts(7), {"id": "empty", "text": ""}])
    job = world.job(limits={"max_batch_requests": 3}, source={"nulls": "invalid"})

    run(job, world.where(), Options(detach=True))
    detached = kept(world), counted(world)
    world.run(job)
    finished = kept(world), counted(world)
    world.rows([{"id": "r0", "text": "Another one."}, *texts(6)[1:]])
    world.run(job)
    changed = kept(world), counted(world)

    assert detached[0] == detached[1]
    assert finished[0] == finished[1]
    assert changed[0] == changed[1]
    assert len(changed[0]) > 1


def test_a_run_that_ends_sums_its_tally(world: World) -> None:
    world.rows(texts(9))
    finished = world.run(world.job(limits={"max_batch_requests": 2}))

    with world.database.read() as conn:
        terms = conn.execute(select(tallies.c.state, tallies.c.rows)).all()
        row = job_named(conn, "summaries")
        assert row is not None
        assert job_counts(conn, row.id) == finished.rows == {"succeeded": 9}
    assert [tuple(term) for term in terms] == [("succeeded", 9)]
