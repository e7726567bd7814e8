"""Run a trial: ask some rows of a job otherwise than the job does, and store the answers apart. Edge: SQL, HTTP."""

from dataclasses import replace
from pathlib import Path

from pipeline.driver.environment import Environment
from pipeline.job.model import Job
from pipeline.planning.job_source import JobSource
from pipeline.planning.trial import Sampled, Trial
from pipeline.quality.gold import read_gold
from pipeline.quality.review_gold import read_reviews
from pipeline.request.build import RequestBuilder
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run
from pipeline.sink.columns import ResultColumns
from pipeline.sink.table import ResultsTable
from pipeline.state.jobs import known_job


def run_trial(
    job: Job, trial: Trial, where: Environment, options: Options | None = None, *, file: Path | None = None
) -> Finished:
    """Run a trial of a job until every row of its sample has an outcome. The same call again continues it.

    options, file, and what is raised: as for `run`. Raises InputError also for a trial that the job cannot have, and
    for one that was begun with other settings.
    """
    asked = trial.asked(job)
    columns = ResultColumns.of(job, JobSource(job, RequestBuilder(job)).kinds())
    gold = read_gold(job.model_copy(update={"request": asked.request}), columns)
    sink = ResultsTable(job.sink.table, columns, schema=where.database.default_schema)
    reviewed = None
    if trial.gold_only and job.gold is not None and job.gold.reviews:
        reviewed = read_reviews(where.database, known_job(where.database, job.name), job)
    keys = trial.keys(asked, gold or reviewed, sink)
    sampled = Sampled(trial.record(asked), job, columns, gold, keys)
    return run(asked, where, replace(options or Options(), trial=sampled), file=file)
