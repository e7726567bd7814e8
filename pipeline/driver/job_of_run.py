"""The job of each run, as it was stored when the run began. Edge: SQL."""

from pipeline.driver.driver import Driver
from pipeline.job.load import stored_job
from pipeline.job.model import Job
from pipeline.state.runs import get_run


class JobOfRun:
    """The job of a run as the database has it: a job file that has changed since does not change what was asked."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._jobs: dict[int, Job] = {}

    def __call__(self, run_id: int) -> Job:
        """The job of this run."""
        if run_id not in self._jobs:
            with self._driver.reading() as conn:
                self._jobs[run_id] = stored_job(get_run(conn, run_id))
        return self._jobs[run_id]
