"""`run`: takes a job to its end."""

import contextlib
from typing import Annotated

import typer

from pipeline.cli.opening import (
    confirm_or_stop,
    environment_of,
    job_file,
    load_job,
    many_objects_that_stay,
    open_driver_of,
)
from pipeline.cli.options import (
    DatabaseOption,
    DebugOption,
    DetachOption,
    EmulatorOption,
    JobArgument,
    JsonOption,
    LogOption,
    PollOption,
    SpoolOption,
    VarOption,
    YesOption,
)
from pipeline.cli.summary import ended_run, report_run
from pipeline.cli.terminal import say


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
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    poll_seconds: PollOption = None,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Plan, submit, poll and collect until every row has an outcome. The same command again just continues.

    On a terminal it asks after the quote. Without one (cron, CI, a pipe) it goes on unasked: limits.max_cost_usd bounds
    what it may cost, and --dry-run only says it.
    """
    with many_objects_that_stay():
        from pipeline.runner.options import Options
        from pipeline.runner.run import run as run_job
    path = job_file(job, database, emulated=emulator)
    loaded = load_job(path, var)
    if loaded.vars and not as_json:
        say("vars     " + ", ".join(f"{name}={value}" for name, value in loaded.vars.items()))
    options = Options(
        limit=limit,
        refresh=refresh,
        detach=detach,
        dry_run=dry_run,
        canary=not no_canary,
        confirm=confirm_or_stop(yes=yes, ask=not as_json),
    )
    with contextlib.closing(open_driver_of(path.parent, database, emulated=emulator)) as opened:
        with environment_of(
            opened, spool, emulated=emulator, poll_seconds=poll_seconds, as_json=as_json, job=job
        ) as where:
            ended = ended_run(where, loaded, job, run_job(loaded, where, options, file=path))
        report_run(opened, loaded, ended, as_json=as_json)
    raise typer.Exit(ended.finished.exit_code)
