"""`collect`: run one sweep over everything that is due, or follow the runs until none is open."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.opening import (
    folder_and_name,
    heavy_imports,
    open_database,
    open_environment,
    refuse_unknown_name,
    wait_for_database,
)
from pipeline.cli.options import EVERYWHERE, SharedOptions, takes
from pipeline.cli.summary import next_words_by_status, print_status, tell_earlier_ends, tell_followed, tell_swept
from pipeline.cli.terminal import say, say_next


@takes(*EVERYWHERE, "poll_seconds")
def collect(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="One job only. Default: all jobs of the database.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Go on until no run is open, as `run` does. Waits for the first run."),
    ] = False,
    no_tools: Annotated[
        bool,
        typer.Option("--no-tools", help="Call no tools of rounds: rows that need them wait for another machine."),
    ] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Run one sweep, for a scheduler: poll, collect, and submit what is due. Plans no new rows.

    With --follow it goes on until no run is open, and ends with the exit code of the worst run.
    """
    folder, name = (Path(), None) if job is None else folder_and_name(job)
    work = _follow if follow else _sweep
    code = work(job, folder, name, shared, runs_tools=not no_tools)
    raise typer.Exit(code)


def _sweep(job: str | None, folder: Path, name: str | None, shared: SharedOptions, *, runs_tools: bool) -> int:
    """Run one sweep. Return the exit code. job, name: the job on the command line and its name; None: all jobs.

    runs_tools: whether the tools of jobs are called.
    """
    with heavy_imports():
        from pipeline.runner.sweep import sweep

    with (
        open_database(folder, shared, must_exist=True) as database,
        open_environment(database, shared, job=job or name) as environment,
    ):
        swept = sweep(replace(environment, runs_tools=runs_tools), name)
        for swept_name, problem in swept:
            tell_swept(swept_name, problem, as_json=shared.as_json)
        if not swept and not shared.as_json:
            say("nothing to do: no run is open")
        tell_earlier_ends(environment, name)
        if name is not None:
            print_status(database, name, shared, job=job or name)
    return 3 if any(problem for _, problem in swept) else 0


def _follow(job: str | None, folder: Path, name: str | None, shared: SharedOptions, *, runs_tools: bool) -> int:
    """Follow the runs until none is open. Return the exit code. The arguments are those of `_sweep`."""
    is_new = wait_for_database(folder, shared)
    with heavy_imports():
        from pipeline.runner.follow import follow

    with open_database(folder, shared) as database:
        if not is_new:
            refuse_unknown_name(database, job)
        with open_environment(database, shared, job=job or name) as environment:
            drives = replace(environment, runs_tools=runs_tools)
            followed = follow(drives, name, after_run=0 if is_new else None)
            earlier = tell_earlier_ends(environment, name, without=followed.run_ids)
        tell_followed(database, followed, shared)
        if name is not None:
            print_status(database, name, shared, job=job or name)
        for other in sorted(followed.jobs) if name is None and not shared.as_json else ():
            say_next(*next_words_by_status(database, other, job=other))
    return max([followed.exit_code, *(end.exit_code for end in earlier)])
