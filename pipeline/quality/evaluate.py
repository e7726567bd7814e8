"""How good are the answers of a job, by its gold? Edge: files, SQL."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.quality.figures import Figures, figures
from pipeline.quality.gold import check_table, gold_table, read_gold
from pipeline.quality.gold_columns import gold_columns
from pipeline.quality.judged import Judged, judged_count, judged_share
from pipeline.quality.judges import Judge
from pipeline.quality.measure import tallied
from pipeline.quality.review_figures import ReviewFigures, review_figures
from pipeline.quality.review_gold import read_reviews
from pipeline.sink.columns import ResultColumns
from pipeline.sink.gold import GoldTable
from pipeline.sink.pairs import Pairs
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import MOST_NAMED, JobRecord, known_job, trials_of

ENOUGH = 0.99  # the share of all answers from which on the strata with reviews are taken for all


@dataclass(frozen=True)
class Evaluation:
    """The figures of a job's answers.

    gold_rows: all rows with gold; without_answer: those of them that have no outcome; None if it was not counted.
    random: whether the rows with gold are a random sample: only then the accuracy is that of the job. reviews: further
    figures if gold is reviews.
    """

    job: str
    gold_rows: int
    without_answer: int | None
    random: bool
    figures: Figures
    reviews: ReviewFigures | None = None


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

    job_record: the job in the database; job: as its file declares it now. side: whose answers: `current`, job:NAME, or
    the name of a trial.
    where: a SQL predicate over their results table; by: columns of it, by whose values the rows are counted apart.
    Raises InputError if the job has no gold, no row has gold, or no row with gold has an answer.
    """
    sink = ResultsTable.of(job_record)
    if job.gold is not None and job.gold.reviews:
        return _by_reviews(database, job_record, job, side, where, by)
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
    answers = results_of(database, job_record, side)
    pairs = Pairs(database, answers, gold.store(database, sink), where=where, by=by)
    tally = tallied(pairs, job.gold, gold.columns, by)
    if not tally.rows:
        meet = "" if where is None else " and meets --where"
        of_what = f"job {job.name}" if side in ("current", f"job:{job.name}") else side
        raise InputError(
            f"no row of {of_what} has gold and an answer{meet}; run it first, or collect it if a run is open"
        )
    without = pairs.without_answer() if where is None and answers.trial is None else None
    return Evaluation(job.name, gold.found.with_gold, without, job.gold.random, figures(tally))


def _by_reviews(
    database: Database,
    job_record: JobRecord,
    job: Job,
    side: str,
    where: str | None,
    by: Sequence[str],
) -> Evaluation:
    """Return the figures of the answers that have gold by reviews. side, where, by: as for `evaluate`."""
    record = record_of(database, job_record, side)
    answers = _with_same_key(job_record, record, side)
    gold = read_reviews(database, job_record, job, sides=[record])
    pairs = Pairs(database, answers, gold.store(database, ResultsTable.of(job_record)), where=where, by=by)
    found = review_figures(pairs, gold, where=where, by=by)
    if found is None:
        raise InputError(
            f"gold: the {len(gold.rows):,} reviewed rows tell of no answer of this side whether it is right; review "
            "its answers, or fill in the right ones in column new"
        )
    without = pairs.without_answer() if where is None and answers.trial is None else None
    return Evaluation(job.name, len(gold.rows), without, found.is_random, found.figures, found)


def stored_gold(database: Database, job_record: JobRecord, job: Job) -> GoldTable | None:
    """Return the job's gold as it was stored last; None if the job has none, or none was stored with these columns."""
    if job.gold is None:
        return None
    columns, sink = gold_columns(job, job.gold), ResultsTable.of(job_record)
    table = gold_table(sink, columns)
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
    if job.gold is not None and job.gold.reviews:
        with contextlib.suppress(InputError):  # no review that tells whether an answer is right
            return _by_reviews(database, job_record, job, "current", where, ())
        return None
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


def record_of(database: Database, job_record: JobRecord, side: str, also: str = "") -> JobRecord:
    """Return the record of a side: of the job for `current`, of another one for job:NAME, else of a trial of the job.

    also: what else the caller takes as a side, for the message. Raises InputError for an unknown job or trial.
    """
    if side == "current":
        return job_record
    if side.startswith("job:"):
        return known_job(database, side.removeprefix("job:"))
    trials = trials_by_name(database, job_record)
    if side not in trials:
        names = ", ".join(list(trials)[-MOST_NAMED:]) or "none"
        raise InputError(
            f"unknown side {side!r}: write current, job:NAME{also}, or the name of a trial of job {job_record.name} "
            f"(it has: {names})"
        )
    return trials[side]


def trials_by_name(database: Database, job_record: JobRecord) -> dict[str, JobRecord]:
    """Return the trials of a job by their own names, oldest first."""
    with database.read() as conn:
        return {each.trial.name: each for each in trials_of(conn, job_record.id) if each.trial is not None}


def of_side(database: Database, job_record: JobRecord, sides: Sequence[str]) -> JobRecord:
    """Return the record whose vars name the source with the gold of these sides: the first trial, else the job."""
    trials = trials_by_name(database, job_record)
    return next((trials[side] for side in sides if side in trials), job_record)


def results_of(database: Database, job_record: JobRecord, side: str, also: str = "") -> ResultsTable:
    """Return the results table of a side, see `record_of`. Raises InputError also for a job with another key."""
    return _with_same_key(job_record, record_of(database, job_record, side, also), side)


def _with_same_key(job_record: JobRecord, record: JobRecord, side: str) -> ResultsTable:
    """Return the results table of a side's record. Raises InputError if its key is not that of the job."""
    sink, other = ResultsTable.of(job_record), ResultsTable.of(record)
    if list(other.columns.key) != list(sink.columns.key):
        raise InputError(f"{side} has the key {', '.join(other.columns.key)}, not {', '.join(sink.columns.key)}")
    return other


def judged(evaluation: Evaluation, minimum: float, judge: Judge) -> Judged:
    """Return whether the accuracy reaches a minimum. Raises InputError if the rows with gold do not stand for all."""
    found = evaluation.reviews
    if found is not None and found.undecided:
        raise InputError(
            f"--min-accuracy: for {found.undecided:,} reviewed rows it is not known whether this other answer is "
            "right; fill in the right answers in column new, or review the answers of this side"
        )
    if not evaluation.random and found is not None:
        raise InputError(
            "--min-accuracy: the reviewed rows are no random sample of all answers, so their accuracy says nothing "
            "about the other rows; review a sample that `review JOB export FILE --sample N` draws"
        )
    if not evaluation.random:
        raise InputError(
            "--min-accuracy: the rows with gold were chosen (gold.random: false), so their accuracy says nothing about "
            "the other rows; give gold for a random sample"
        )
    if found is None or found.weighted is None:
        return judged_share(evaluation.figures.accuracy, minimum, judge)
    if found.covered < ENOUGH:
        raise InputError(
            f"--min-accuracy: the reviewed rows stand for {found.covered:.1%} of all answers only; review rows of the "
            "strata that have none yet"
        )
    return judged_count(found.weighted.share * found.weighted.n_effective, found.weighted.n_effective, minimum, judge)
