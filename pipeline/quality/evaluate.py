"""How good are the answers of a job, by its gold? Edge: files, SQL."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.quality.figures import Figures, figures
from pipeline.quality.gold import check_table, read_gold, store_gold
from pipeline.quality.gold_columns import gold_columns
from pipeline.quality.judged import Judged, judged_share
from pipeline.quality.judges import Judge
from pipeline.quality.measure import tallied
from pipeline.sink.columns import ResultColumns
from pipeline.sink.gold import GoldTable
from pipeline.sink.pairs import Pairs
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord, known_job


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


def evaluate(
    database: Database,
    job_record: JobRecord,
    job: Job,
    *,
    side: str = "current",
    where: str | None = None,
    by: Sequence[str] = (),
) -> Evaluation:
    """Read the job's gold again, store it, and return the figures of the answers that have gold.

    job_record: the job in the database; job: as its file declares it now. side: whose answers: `current` or job:NAME.
    where: a SQL predicate over their results table; by: columns of it, by whose values the rows are counted apart.
    Raises InputError if the job has no gold, no row has gold, or no row with gold has an answer.
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
    answers = results_of(database, sink, side)
    pairs = Pairs(database, answers, store_gold(database, sink, gold), where=where, by=by)
    tally = tallied(pairs, job.gold, gold.columns, by)
    if not tally.rows:
        meet = "" if where is None else " and meets --where"
        raise InputError(f"no row of job {job.name} has gold and an answer{meet}; run the job first")
    without = pairs.without_answer() if where is None else None
    return Evaluation(job.name, gold.found.with_gold, without, job.gold.random, figures(tally))


def stored_gold(database: Database, job_record: JobRecord, job: Job) -> GoldTable | None:
    """Return the job's gold as it was stored last; None if the job has none, or none was stored with these columns."""
    if job.gold is None:
        return None
    columns, sink = gold_columns(job, job.gold), ResultsTable.of(job_record)
    table = GoldTable(sink, {column.name: column.kind for column in columns})
    if any(column.name not in sink.table.c for column in columns):
        return None
    with database.read() as conn:
        return table if table.is_made(conn) else None


def stored_evaluation(
    database: Database, job_record: JobRecord, job: Job, *, where: str | None = None
) -> Evaluation | None:
    """Return the figures of the job's answers by `stored_gold`, which is not read again.

    job, where: as for `evaluate`. None without stored gold, and if no row with gold has an answer.
    """
    table = stored_gold(database, job_record, job)
    if table is None or job.gold is None:
        return None
    with database.read() as conn:
        gold_rows = table.count(conn)
    pairs = Pairs(database, ResultsTable.of(job_record), table, where=where)
    tally = tallied(pairs, job.gold, gold_columns(job, job.gold))
    if not tally.rows:
        return None
    without = pairs.without_answer() if where is None else None
    return Evaluation(job.name, gold_rows, without, job.gold.random, figures(tally))


def results_of(database: Database, sink: ResultsTable, side: str) -> ResultsTable:
    """Return the results table of a side: `sink` for `current`, that of another job for job:NAME.

    Raises InputError for any other name, for an unknown job, and for a job with another key.
    """
    if side == "current":
        return sink
    if not side.startswith("job:"):
        raise InputError(f"unknown side {side!r}: write current or job:NAME")
    other = ResultsTable.of(known_job(database, side.removeprefix("job:")))
    if list(other.columns.key) != list(sink.columns.key):
        raise InputError(f"{side} has the key {', '.join(other.columns.key)}, not {', '.join(sink.columns.key)}")
    return other


def judged(evaluation: Evaluation, minimum: float, judge: Judge) -> Judged:
    """Return whether the accuracy reaches a minimum. Raises InputError if the rows with gold were chosen."""
    if not evaluation.random:
        raise InputError(
            "--min-accuracy: the rows with gold were chosen (gold.random: false), so their accuracy says nothing about "
            "the other rows; give gold for a random sample"
        )
    return judged_share(evaluation.figures.accuracy, minimum, judge)
