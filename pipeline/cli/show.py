"""`show`: what is known of one row."""

import contextlib
import sys
from typing import Annotated

import typer

from pipeline.cli.opening import job_as_far_as_known
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
from pipeline.cli.terminal import is_utf8, put, put_json, say_next


def show(
    job: JobArgument,
    key: Annotated[str, typer.Option("--key", help="Of the row; commas between several columns.")],
    var: LastVarOption = None,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """All that is known of one row: source values, the request as sent or as it would be, attempts, answers."""
    from pipeline.report.show import lines
    from pipeline.runner import show as shows

    with contextlib.ExitStack() as stack:
        opened, row, loaded = job_as_far_as_known(stack, job, database, var, emulated=emulator)
        shown = shows.show(loaded, key, opened, row, spool)
    if as_json:
        put_json({"event": "show", "job": loaded.name, **shown.facts()})
    else:
        for line in lines(shown, ascii_only=not is_utf8()):
            put(line)
        sys.stdout.flush()
    status = "succeeded" if shown.answer is None else str(shown.answer["status"])
    failed = status not in ("succeeded", "invalid")
    say_next(*(["retry", job, "--status", status, "--key", shown.key] if failed else ["status", job]))
