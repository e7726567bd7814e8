"""`status`: how a job stands."""

from pipeline.cli.opening import known_job
from pipeline.cli.options import (
    DatabaseOption,
    DebugOption,
    EmulatorOption,
    JobArgument,
    JsonOption,
    LogOption,
    SpoolOption,
)
from pipeline.cli.summary import print_status


def status(
    job: JobArgument,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """How a job stands: rows, batches, money, and what to do next."""
    with known_job(job, database, emulated=emulator) as (opened, row):
        print_status(opened, row.name, as_json=as_json, job=job)
