"""What does a trial need of its job in the database? Edge: SQL, the spool.

The job is stored before its trial, also if it was never run, so that `evaluate` and `compare` find its table and gold.
If we die between both, the next command stores the trial.
"""

from pathlib import Path

from pipeline.driver.environment import Environment
from pipeline.planning.trial import Sampled
from pipeline.quality.gold import check_table
from pipeline.runner.register import known_to_database, register
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import JobRecord


def check_trial(conn: Connection, database: Database, trial: Sampled) -> JobRecord | None:
    """Return the job of a trial; None if the database does not know it. Raises as `register_job_of` would."""
    job_record, sink = known_to_database(conn, database, trial.job, trial.columns)
    if trial.gold is not None:
        check_table(conn, sink, trial.gold)
    return job_record


def register_job_of(where: Environment, trial: Sampled, file: Path | None) -> None:
    """Store the job of a trial, make its results table, and store its gold. file: as for `register`."""
    _, sink = register(where, trial.job, trial.columns, file)
    if trial.gold is not None:
        trial.gold.store(where.database, sink)
