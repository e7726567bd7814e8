"""`preview`: send a few rows of a job live."""

from typing import Annotated

import typer

from pipeline.cli.opening import find_job_file, load_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, VarOption, YesOption, takes
from pipeline.cli.terminal import confirmed, put_json, say, say_next
from pipeline.errors import InputError


@takes(*EVERYWHERE)
def preview(
    job: JobArgument,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, max=100, help="Number of rows.")] = 3,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="The row with this key. Separate the values of several key columns by commas."),
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Rows from the whole source instead of its first ones.")
    ] = False,
    var: VarOption = None,
    yes: YesOption = False,
    *,
    shared: SharedOptions,
) -> None:
    """Send a few rows through the realtime API, at full price, and show the answers live. Stores nothing.

    The requests are the same as in a batch.
    """
    if key and (sample or len(key) > 100):
        raise InputError("--key names the rows: leave --sample out" if sample else "--key: give at most 100 keys")
    from rich.console import Console

    from pipeline.api.realtime import async_client
    from pipeline.cli import preview_rows as live
    from pipeline.driver import environment
    from pipeline.planning.plan import Plan
    from pipeline.planning.preview import pick
    from pipeline.request.check import check_params

    loaded = load_job(find_job_file(job, shared), var)
    check_params(loaded)
    picked = pick(Plan(loaded), rows, keys=key or (), sample=sample)
    for line in picked.problem_lines():
        say(line)
    say(f"preview  {live.announcement(picked, loaded)}")
    if not confirmed(yes=yes, ask=not shared.as_json):
        raise typer.Exit(0)
    with environment.reaching(loaded.api.endpoint, emulated=shared.emulator) as reached:
        client = async_client(reached)
        if shared.as_json:
            code = live.tell(client, picked, loaded, lambda facts: put_json({"event": "preview", **facts}))
        else:
            code = live.show(client, picked, loaded, Console(highlight=False, soft_wrap=True))
    say_next("run", job)
    raise typer.Exit(code)
