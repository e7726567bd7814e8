"""`collect`: run one sweep over everything that is due."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.opening import folder_and_name, heavy_imports, open_database, open_environment
from pipeline.cli.options import EVERYWHERE, SharedOptions, takes
from pipeline.cli.summary import print_status, tell_earlier_ends
from pipeline.cli.terminal import put_json, say


@takes(*EVERYWHERE)
def collect(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="One job only. Default: all jobs of the database.")
    ] = None,
    *,
    shared: SharedOptions,
) -> None:
    """Run one sweep, for a scheduler: poll, collect, and submit what is due. Plans no new rows."""
    with heavy_imports():
        from pipeline.runner.sweep import sweep

    folder, name = (Path(), None) if job is None else folder_and_name(job)
    with (
        open_database(folder, shared, must_exist=True) as database,
        open_environment(database, shared, job=job or name) as environment,
    ):
        swept = sweep(environment, name)
        for swept_name, problem in swept:
            if shared.as_json:
                put_json({"event": "swept", "job": swept_name, "problem": problem})
            else:
                say(f"job      {swept_name}: " + (problem or "swept"))
        if not swept and not shared.as_json:
            say("nothing to do: no run is open")
        tell_earlier_ends(environment, name)
        if name is not None:
            print_status(database, name, shared, job=job or name)
    if any(problem for _, problem in swept):
        raise typer.Exit(3)
