"""`estimate`: what a run would do and cost."""

import sys
from typing import Annotated

import typer

from pipeline.cli.opening import job_file, load_job, quoted
from pipeline.cli.options import (
    DatabaseOption,
    DebugOption,
    EmulatorOption,
    JobArgument,
    JsonOption,
    LogOption,
    SpoolOption,
    VarOption,
)
from pipeline.cli.terminal import put, put_json, say, say_next


def estimate(
    job: JobArgument,
    var: VarOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the source.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Also what an older recipe answered.")] = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What a run would send, how many tokens and how much money that takes, and how long. Sends nothing."""
    from pipeline.planning.plan import Plan
    from pipeline.report.quote import estimate_lines, quote_facts
    from pipeline.request.check import check_params

    path = job_file(job, database, emulated=emulator)
    loaded = load_job(path, var)
    check_params(loaded)
    plan = Plan(loaded, limit=limit, refresh=refresh)
    quote, warnings = quoted(plan, path, database, emulated=emulator)
    if as_json:
        put_json({"event": "estimate", "job": loaded.name, "warnings": warnings, **quote_facts(quote)})
    else:
        for line in estimate_lines(quote):
            put(line)
        sys.stdout.flush()
        for warning in warnings:
            say(f"warning  {warning}")
    say_next("run", str(path))
