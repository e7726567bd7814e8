"""`status`: how far is a job?"""

from pipeline.cli.opening import open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, takes
from pipeline.cli.summary import print_status


@takes(*EVERYWHERE)
def status(
    job: JobArgument,
    *,
    shared: SharedOptions,
) -> None:
    """Show the status of a job: rows, batches, cost, and the next command."""
    with open_known_job(job, shared) as (database, job_record):
        print_status(database, job_record.name, shared, job=job)
