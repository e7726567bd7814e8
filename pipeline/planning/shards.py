"""One planning done by several processes, a file of the source each, under the one lease of the driver that plans.

Nothing but names and numbers goes to a part: whoever plans it opens the state database and the spool by itself. Each of
its transactions checks the lease: when the driver that holds it dies, its parts can write nothing more. If the process
of a part dies, the rows that it had put into batches are in flight, and the driver plans what is left of the file.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.driver.environment import Environment
from pipeline.driver.job_of_run import stored_job
from pipeline.errors import SourceError
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.packer import First
from pipeline.planning.plan import Plan
from pipeline.state.jobs import job_named
from pipeline.state.leases import Lease
from pipeline.state.runs import get_run


@dataclass(frozen=True)
class Shard:
    """What is to be planned: one file (or the query), for a run of a job. lease, token: of the job's planning.

    first: when its first batch is another than the rest.
    """

    job: str
    run_id: int
    path: str
    refresh: bool
    lease: str
    token: int
    first: First | None = None


@dataclass(frozen=True)
class Planned:
    """A part that is done, with the batches that its rows wait in; see `Plan`."""

    part: Shard
    awaited: frozenset[int]
    plan_again_after: frozenset[int]


#: Has parts planned somewhere, and returns those that came to their end. Each second or so it calls what it is given:
#: what has been planned meanwhile is submitted then. That raises when the driver is asked to stop.
ShardRunner = Callable[[list[Shard], Callable[[], None]], list[Planned]]


def shards(plan: Plan, job: str, run_id: int, lease: Lease, first: First | None = None) -> list[Shard]:
    """The parts of a planning: one for each file of the source. first: see `Plan.batches`."""
    held = (lease.resource, lease.token)
    paths = [one.path for one in plan.source.inputs]
    return [Shard(job, run_id, path, plan.refresh, *held, None if i else first) for i, path in enumerate(paths)]


def plan_shard(where: Environment, part: Shard) -> Planned:
    """Plan one part: render, pack and spool its rows. Raises LostRace when the lease is somebody else's by now."""
    with where.database.read() as conn:
        row = job_named(conn, part.job)
        job = stored_job(get_run(conn, part.run_id))
    assert row is not None
    plan = Plan(job, refresh=part.refresh)
    inputs = [one for one in plan.source.inputs if one.path == part.path]
    if not inputs:
        raise SourceError(f"source.path: {part.path} is not there on this machine; put the source on a shared path")
    with where.driving(job.api.client) as driving:
        driver = driving.driver(row)
        lookup = KnownRows(where.database, driver.job_id, driver.sink)
        with driver.planning_for(part.lease, part.token):
            for _ in plan.batches(driver, part.run_id, lookup, inputs, part.first):
                driver.check()
    return Planned(part, frozenset(plan.awaited.batches), frozenset(plan.awaited.plan_again_after))
