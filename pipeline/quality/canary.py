"""Are the answers of a canary right often enough, by the gold of its rows? Edge: SQL."""

from collections.abc import Sequence

from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.quality.figures import Figures, figures
from pipeline.quality.gold import gold_table
from pipeline.quality.gold_columns import GoldColumn, gold_columns
from pipeline.quality.judged import Judged, judged_share
from pipeline.quality.measure import tallied
from pipeline.quality.review_gold import reviewed_sample
from pipeline.sink.gold import GoldTable
from pipeline.sink.pairs import Pairs
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import known_job


def judge_canary(
    database: Database, sink: ResultsTable, job: Job, batches: Sequence[str]
) -> tuple[Figures, Judged] | None:
    """Return the figures of the answers of these batches and whether they reach canary.min_accuracy.

    batches: the API's ids of the canary's batches. None if none of their answers has gold.
    """
    canary, gold = job.canary, job.gold
    assert isinstance(canary, Canary)
    assert canary.min_accuracy is not None
    if gold is None:
        return None
    columns = gold_columns(job, gold)
    table = _gold_table(database, sink, job, columns)
    if table is None:
        return None
    tally = tallied(Pairs(database, sink, table, batches=batches), gold, columns)
    if not tally.rows:
        return None
    found = figures(tally)
    return found, judged_share(found.accuracy, canary.min_accuracy, canary.judge)


def _gold_table(database: Database, sink: ResultsTable, job: Job, columns: Sequence[GoldColumn]) -> GoldTable | None:
    """Return the stored gold; by reviews, store it first: without rows whose values have changed since. None: none."""
    if job.gold is not None and job.gold.reviews:
        reviewed = reviewed_sample(database, known_job(database, job.name), job, clear=False)
        return None if reviewed is None else reviewed.store(database, sink)
    table = gold_table(sink, columns)
    with database.read() as conn:
        return table if table.is_made(conn) else None
