"""Split one planning among processes, one file of the source each, under one lease. Edge: SQL, HTTP, files.

A shard carries only names and numbers: the process that plans it opens the state database and the spool itself. Each of
its transactions checks the lease of the driver that plans: if that driver dies and another one takes over the lease,
its shards can write nothing more. If the process of a shard dies, the rows that it has already put into batches are in
flight, and the driver plans the remaining rows of the file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.driver.environment import Environment
from pipeline.driver.job_of_run import stored_job
from pipeline.errors import SourceError
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.packer import First
from pipeline.planning.plan import Plan
from pipeline.planning.suspects import Suspects
from pipeline.planning.unchanged import Covered
from pipeline.state.jobs import job_named
from pipeline.state.leases import Lease
from pipeline.state.runs import get_run


@dataclass(frozen=True)
class Shard:
    """One part of a planning: one file (or the query) of a job's source, for one run.

    lease, token: the lease on the job's planning; first: the first batch, if it differs from the rest. suspects: rows
    that may share a request, by hashes that only processes of one machine compute alike.
    """

    job: str
    run_id: int
    path: str
    refresh: bool
    lease: str
    token: int
    first: First | None = None
    suspects: Suspects = field(default_factory=Suspects)


@dataclass(frozen=True)
class Planned:
    """A shard that is planned, with the batches that the run waits for; see `moves.Awaited` and `unchanged.Covered`."""

    part: Shard
    awaited: frozenset[int]
    plan_again_after: frozenset[int]
    covered: Covered | None


#: A function that has shards planned by other processes and returns those that were planned completely. About once a
#: second it calls the function that it is given, which submits the batches planned so far, and which raises when the
#: driver is asked to stop.
ShardRunner = Callable[[list[Shard], Callable[[], None]], list[Planned]]


def shards(plan: Plan, job: str, run_id: int, lease: Lease, first: First | None = None) -> list[Shard]:
    """Return the shards of a planning, one for each file. first: the first batch of the first shard, if it differs."""
    held = (lease.resource, lease.token)
    paths = [one.path for one in plan.source.inputs]
    return [
        Shard(job, run_id, path, plan.refresh, *held, None if i else first, plan.suspects)
        for i, path in enumerate(paths)
    ]


def plan_shard(where: Environment, part: Shard) -> Planned:
    """Plan one shard: render, pack and spool its rows.

    Raises LostRace if another driver holds the lease by now, and SourceError if the file is not on this machine.
    """
    with where.database.read() as conn:
        job_record = job_named(conn, part.job)
        job = stored_job(get_run(conn, part.run_id))
    assert job_record is not None
    plan = Plan(job, refresh=part.refresh)
    plan.suspects = part.suspects
    inputs = [one for one in plan.source.inputs if one.path == part.path]
    if not inputs:
        raise SourceError(f"source.path: {part.path} does not exist on this machine; put the source on a shared path")
    with where.driving(job.api.endpoint, lazily=where.api_now is not None) as driving:
        driver = driving.driver(job_record)
        lookup = KnownRows(where.database, driver.job_id, driver.sink)
        with driver.planning_for(part.lease, part.token):
            for _ in plan.batches(driver, part.run_id, lookup, inputs, part.first):
                driver.check()
    return Planned(part, frozenset(plan.awaited.batches), frozenset(plan.awaited.plan_again_after), plan.covered)
