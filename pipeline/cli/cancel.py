"""`cancel`: ends the open runs of a job."""

import contextlib
from typing import Annotated

import typer

from pipeline.cli.opening import environment_of, job_and_folder, many_objects_that_stay, open_driver_of
from pipeline.cli.options import (
    DatabaseOption,
    DebugOption,
    EmulatorOption,
    JobArgument,
    JsonOption,
    LogOption,
    SpoolOption,
)
from pipeline.cli.terminal import say_next


def cancel(
    job: JobArgument,
    abandon: Annotated[
        bool,
        typer.Option(
            "--abandon",
            help="Give up batches that another account has sent, or that the API does not end: their rows are lost.",
        ),
    ] = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """End the open runs of a job for all drivers, and cancel its batches. What had succeeded is still collected."""
    with many_objects_that_stay():
        from pipeline.state.jobs import known_job
        from pipeline.steps.cancel import cancel as cancel_job

    folder, name = job_and_folder(job)
    with (
        contextlib.closing(open_driver_of(folder, database, emulated=emulator, must_exist=True)) as opened,
        environment_of(opened, spool, emulated=emulator, poll_seconds=None, as_json=as_json, job=job) as where,
    ):
        row = known_job(opened, name)
        canceled = cancel_job(where, row, abandon=abandon)
    if canceled.open > canceled.foreign:
        say_next("collect", job)
    elif canceled.foreign:
        say_next("cancel", job, "--abandon")
    else:
        say_next("status", job)
