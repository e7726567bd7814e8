"""`verify`: proof that a job is complete."""

import sys
from typing import Annotated

import typer

from pipeline.cli.opening import known_job, load_as_last
from pipeline.cli.options import (
    DatabaseOption,
    DebugOption,
    EmulatorOption,
    JobArgument,
    JsonOption,
    LastVarOption,
    LogOption,
    SpoolOption,
)
from pipeline.cli.summary import next_by_status
from pipeline.cli.terminal import put, put_json, say_next


def verify(
    job: JobArgument,
    source: Annotated[
        bool, typer.Option("--source", help="Also that each row of the whole source has an outcome as it is now.")
    ] = False,
    var: LastVarOption = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Prove that a job is complete: states, answers and the API's counts agree. Exit 1 with the keys that do not."""
    from pipeline.report.verify import verify_facts, verify_lines
    from pipeline.runner import verify as proof

    with known_job(job, database, emulated=emulator) as (opened, row):
        found = proof.verify(opened, row)
        if source:
            loaded, _ = load_as_last(opened, row, job, var)
            proof.verify_source(opened, row, loaded, found)
        next_words = next_by_status(opened, row.name, job)
    if as_json:
        for of, problem in found.shown:
            put_json({"event": "problem", "of": of, "problem": problem})
        put_json({"event": "verify", "job": row.name, **verify_facts(found)})
    else:
        for line in verify_lines(found):
            put(line)
        sys.stdout.flush()
    if found.holds:
        say_next("export", job)
        return
    if found.unplanned:
        say_next("run", job)
    else:
        say_next(*(next_words if found.waiting else ["status", job]))
    raise typer.Exit(1)
