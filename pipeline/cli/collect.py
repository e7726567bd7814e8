"""`collect`: one pass over everything that is due."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.opening import environment_of, job_and_folder, many_objects_that_stay, open_driver_of
from pipeline.cli.options import DatabaseOption, DebugOption, EmulatorOption, JsonOption, LogOption, SpoolOption
from pipeline.cli.summary import print_status, tell_ends
from pipeline.cli.terminal import put_json, say


def collect(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="One job only. Default: all jobs of the database.")
    ] = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """One sweep, for a scheduler: poll, collect, and submit what became due. Plans no new rows."""
    with many_objects_that_stay():
        from pipeline.runner.sweep import sweep

    folder, name = (Path(), None) if job is None else job_and_folder(job)
    with (
        contextlib.closing(open_driver_of(folder, database, emulated=emulator, must_exist=True)) as opened,
        environment_of(opened, spool, emulated=emulator, poll_seconds=None, as_json=as_json, job=job) as where,
    ):
        swept = sweep(where, name)
        for swept_name, problem in swept:
            if as_json:
                put_json({"event": "swept", "job": swept_name, "problem": problem})
            else:
                say(f"job      {swept_name}: " + (problem or "swept"))
        if not swept and not as_json:
            say("nothing to do: no run is open")
        tell_ends(where, name)
        if name is not None:
            print_status(opened, name, as_json=as_json, job=job)
    if any(problem for _, problem in swept):
        raise typer.Exit(3)
