"""How good are the answers of a job, by its gold? Edge: files, SQL."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.quality.figures import Figures, Share, figures
from pipeline.quality.gold import check_table, read_gold, store_gold
from pipeline.quality.judges import Judge, figure, opens_at, passes
from pipeline.quality.tally import JUDGED, Tally
from pipeline.sink.columns import ResultColumns
from pipeline.sink.pairs import Pairs
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord


@dataclass(frozen=True)
class Evaluation:
    """The figures of a job's answers.

    gold_rows: all rows with gold; without_answer: those of them that have no outcome; None if it was not counted.
    random: whether the rows with gold are a random sample: only then the accuracy is that of the job.
    """

    job: str
    gold_rows: int
    without_answer: int | None
    random: bool
    figures: Figures


@dataclass(frozen=True)
class Judged:
    """An accuracy that was compared with a minimum.

    figure: what the judge compares with the minimum; opens_at: how many rows have to be right, None if all are too few.
    """

    minimum: float
    judge: Judge
    figure: float
    passed: bool
    opens_at: int | None


def evaluate(
    database: Database, job_record: JobRecord, job: Job, *, where: str | None = None, by: Sequence[str] = ()
) -> Evaluation:
    """Read the job's gold anew, store it, and return the figures of the answers that have gold.

    job_record: the job in the database; job: as its file declares it now. where: a SQL predicate over the results
    table; by: columns of it, by whose values the rows are counted apart. Raises InputError if the job has no gold, no
    row has gold, or no row with gold has an answer.
    """
    sink = ResultsTable.of(job_record)
    gold = read_gold(job, ResultColumns.from_stored(job_record.columns))
    if gold is None or job.gold is None:
        raise InputError(
            f"job {job.name} has no gold; name the columns with the right answers in its file, as in "
            "gold: {columns: {label: true_label}}"
        )
    if not gold.found.with_gold:
        raise InputError(f"gold.columns: none of {gold.found.rows:,} rows has gold; fill in the right answers of some")
    with database.read() as conn:
        check_table(conn, sink, gold)
    pairs = Pairs(database, sink, store_gold(database, sink, gold), where=where, by=by)
    empty_is_null = job.gold.empty == "null"
    shared = pairs.shared_requests(JUDGED)
    tally = Tally(gold.columns, pairs.layout, empty_is_null=empty_is_null, shared=shared, by=by)
    for page in pairs.pages():
        tally.add(page)
    if not tally.rows:
        meet = "" if where is None else " and meets --where"
        raise InputError(f"no row of job {job.name} has gold and an answer{meet}; run the job first")
    without = pairs.without_answer() if where is None else None
    return Evaluation(job.name, gold.found.with_gold, without, job.gold.random, figures(tally))


def judged(evaluation: Evaluation, minimum: float, judge: Judge) -> Judged:
    """Return whether the accuracy reaches a minimum. Raises InputError if the rows with gold were chosen."""
    if not evaluation.random:
        raise InputError(
            "--min-accuracy: the rows with gold were chosen (gold.random: false), so their accuracy says nothing about "
            "the other rows; give gold for a random sample"
        )
    return judged_share(evaluation.figures.accuracy, minimum, judge)


def judged_share(share: Share, minimum: float, judge: Judge) -> Judged:
    """Return whether a share of at least one row reaches a minimum."""
    right = (share.value or 0.0) * share.requests
    found = figure(right, share.requests, judge)
    assert found is not None
    return Judged(
        minimum, judge, found, passes(right, share.requests, minimum, judge), opens_at(share.requests, minimum, judge)
    )
