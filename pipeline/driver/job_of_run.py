"""Read the job of a run as it was stored when the run began. Edge: SQL."""

from pydantic import ValidationError

from pipeline.driver.driver import Driver
from pipeline.errors import DatabaseError
from pipeline.job.model import Job
from pipeline.job.refusals import field_of_error
from pipeline.state.runs import RunRecord, get_run


def stored_job(run: RunRecord) -> Job:
    """Return the job that was stored with a run. Raises DatabaseError if this version cannot read it."""
    try:
        return Job.model_validate(run.job)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(str(part) for part in field_of_error(first["loc"]))
        raise DatabaseError(
            f"run {run.id} was stored with a job that this version cannot read ({field}: {first['msg']}); use the "
            "version that started the run, or `cancel` it and run the job again"
        ) from exc


class JobOfRun:
    """Finds the stored job of each run. A job file that is edited later does not change a run that has begun."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._jobs: dict[int, Job] = {}

    def __call__(self, run_id: int) -> Job:
        """Return the job of this run. Raises DatabaseError if this version cannot read it."""
        if run_id not in self._jobs:
            with self._driver.reading() as conn:
                self._jobs[run_id] = stored_job(get_run(conn, run_id))
        return self._jobs[run_id]
