"""`run`: takes a job to its end."""

from typing import Annotated

import typer

from pipeline.cli.opening import (
    ask_after_quote,
    find_job_file,
    heavy_imports,
    load_job,
    open_database,
    open_environment,
    say_vars,
)
from pipeline.cli.options import EVERYWHERE, DetachOption, JobArgument, SharedOptions, VarOption, YesOption, takes
from pipeline.cli.summary import read_ending, tell_ending


@takes(*EVERYWHERE, "poll_seconds")
def run(
    job: JobArgument,
    var: VarOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the source.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also what an older recipe answered.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a run would send and cost; send nothing.")
    ] = False,
    detach: DetachOption = False,
    yes: YesOption = False,
    no_canary: Annotated[
        bool, typer.Option("--no-canary", help="Send all at once, also with a recipe that never succeeded before.")
    ] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Plan, submit, poll and collect until every row has an outcome. The same command again just continues.

    On a terminal it asks after the quote. Without one (cron, CI, a pipe) it goes on unasked: limits.max_cost_usd bounds
    what it may cost, and --dry-run only says it.
    """
    with heavy_imports():
        from pipeline.runner.options import Options
        from pipeline.runner.run import run as run_job
    path = find_job_file(job, shared)
    loaded = load_job(path, var)
    say_vars(loaded, shared)
    options = Options(
        limit=limit,
        refresh=refresh,
        detach=detach,
        dry_run=dry_run,
        canary=not no_canary,
        confirm=ask_after_quote(shared, yes=yes),
    )
    with open_database(path.parent, shared) as database:
        with open_environment(database, shared, job=job) as environment:
            finished = run_job(loaded, environment, options, file=path)
            ending = read_ending(environment, loaded, finished, job=job)
        tell_ending(database, loaded, ending, shared)
    raise typer.Exit(finished.exit_code)
