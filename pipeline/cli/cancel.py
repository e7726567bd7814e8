"""`cancel`: end the open runs of a job."""

from typing import Annotated

import typer

from pipeline.cli.opening import heavy_imports, open_environment, open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, takes
from pipeline.cli.terminal import say_next


@takes(*EVERYWHERE)
def cancel(
    job: JobArgument,
    abandon: Annotated[
        bool,
        typer.Option(
            "--abandon",
            help="Give up batches that another account sent, or that the API does not end. Their rows become lost.",
        ),
    ] = False,
    *,
    shared: SharedOptions,
) -> None:
    """End the open runs of a job for all drivers, and cancel its batches. Requests that succeeded are collected."""
    with heavy_imports():
        from pipeline.steps.cancel import cancel as cancel_job

    with (
        open_known_job(job, shared) as (database, job_record),
        open_environment(database, shared, job=job) as environment,
    ):
        canceled = cancel_job(environment, job_record, abandon=abandon)
    if canceled.open > canceled.foreign:
        say_next("collect", job)
    elif canceled.foreign:
        say_next("cancel", job, "--abandon")
    else:
        say_next("status", job)
