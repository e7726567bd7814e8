"""`status`: how a job stands."""

from pipeline.cli.opening import open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, takes
from pipeline.cli.summary import print_status


@takes(*EVERYWHERE)
def status(
    job: JobArgument,
    *,
    shared: SharedOptions,
) -> None:
    """How a job stands: rows, batches, money, and what to do next."""
    with open_known_job(job, shared) as (database, row):
        print_status(database, row.name, shared, job=job)
