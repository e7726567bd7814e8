"""`run`: run a job until every row has an outcome."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import (
    ask_after_quote,
    default_folder,
    find_job_file,
    heavy_imports,
    load_job,
    open_database,
    open_environment,
    say_vars,
)
from pipeline.cli.options import EVERYWHERE, DetachOption, JobArgument, SharedOptions, VarOption, YesOption, takes
from pipeline.cli.summary import read_ending, tell_ending

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.runner.processes import PlannerProcesses
    from pipeline.state.database import Database


@takes(*EVERYWHERE, "poll_seconds")
def run(
    job: JobArgument,
    var: VarOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the source.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also rows that succeeded with an older recipe.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what a run would send and cost. Sends nothing.")
    ] = False,
    detach: DetachOption = False,
    yes: YesOption = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Processes that work on this run. Default: limits.processes, else 2 for a large source."
        ),
    ] = None,
    no_canary: Annotated[
        bool, typer.Option("--no-canary", help="Send all rows at once, even with a recipe that has never succeeded.")
    ] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Plan, submit, poll and collect until every row has an outcome. The same command again continues.

    On a terminal it asks for confirmation after the quote. Without one (cron, CI, a pipe) it does not ask:
    limits.max_cost_usd bounds the cost, and --dry-run shows the quote only.
    """
    from pipeline.runner.processes import PlannerProcesses

    path = find_job_file(job, shared)
    loaded = load_job(path, var)
    say_vars(loaded, shared)
    with PlannerProcesses() as planners, open_database(default_folder(job), shared) as database:
        if limit is None and not dry_run:
            _begin_ahead(loaded, processes, planners, database)
        with heavy_imports():
            from pipeline.runner.options import Options
            from pipeline.runner.run import run as run_job
        options = Options(
            limit=limit,
            refresh=refresh,
            detach=detach,
            dry_run=dry_run,
            canary=not no_canary,
            processes=processes,
            planners=planners,
            confirm=ask_after_quote(shared, yes=yes),
        )
        with open_environment(database, shared, job=job) as environment:
            finished = run_job(loaded, environment, options, file=path)
            ending = read_ending(environment, loaded, finished, job=job)
        tell_ending(database, ending, shared)
    raise typer.Exit(finished.exit_code)


def _begin_ahead(job: "Job", processes: int | None, planners: "PlannerProcesses", database: "Database") -> None:
    """Begin what the run is likely to need, while this process imports what it needs itself.

    That is a planner, or to read the source if nothing of the job is open: such a run may find that nothing is to do,
    and needs no planner before it knows.
    """
    from datetime import UTC, datetime

    from pipeline.runner.processes import LARGE_BYTES, how_many, size_of_local_file
    from pipeline.state.jobs import job_named
    from pipeline.state.rows import is_at_rest
    from pipeline.storage import digests

    size = size_of_local_file(job)
    has_planners = how_many(job, processes, size) > 1
    if not has_planners and size <= LARGE_BYTES:
        return
    with database.read() as conn:
        known = job_named(conn, job.name)
        at_rest = known is not None and is_at_rest(conn, known.id, now=datetime.now(UTC))
    if not at_rest and has_planners:
        planners.at_least(1)
    elif at_rest and size > LARGE_BYTES:
        digests.begin(*job.source.path or ())
