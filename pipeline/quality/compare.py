"""How do the answers of sides to the same rows differ, and which are better by the gold of the job? Edge: SQL."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.answer.outcome import answer_schema, output_columns
from pipeline.errors import InputError
from pipeline.job.json_values import dump
from pipeline.job.model import Job
from pipeline.quality.evaluate import record_of, results_of, trials_by_name
from pipeline.quality.figures import Share
from pipeline.quality.gold import check_table, read_gold
from pipeline.quality.gold_lookup import GoldLookup
from pipeline.quality.pair_tally import ColumnPairs, Pair, PairTally
from pipeline.quality.review_gold import ReviewLookup, read_reviews
from pipeline.quality.statistics import Z_ONE_SIDED, Interval, holm, paired_difference, pairs_needed, sign_test
from pipeline.sink.columns import ResultColumns
from pipeline.sink.sides import Key, Side, SideAnswer, parquet_side, table_side
from pipeline.sink.table import ResultsTable
from pipeline.sink.trials import changed_since_trial
from pipeline.state.changed_rows import changed_between
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import JobRecord
from pipeline.state.runs import last_run

EXTRAS = frozenset({"thinking", "citations", "tool_use", "server_tool_use", "message"})
#: Is called with each row whose answers differ: the name of the other side, the columns that are compared, the pair.
Differing = Callable[[str, Sequence[str], Pair], None]


@dataclass(frozen=True)
class GoldComparison:
    """Base and another side by the gold of the rows that both have answered.

    accuracies: of the base and of the other side. only_base, only_other: where just one is right, each pair of requests
    once, of `requests`. difference: the interval of the other's accuracy minus the base's. p: of the exact test, and
    adjusted for the number of sides. loss: the largest loss of the other side that 95% confidence leaves, from 0 on;
    needed: pairs that would show the difference; None: no number would.
    """

    accuracies: tuple[Share, Share]
    only_base: int
    only_other: int
    requests: int
    difference: Interval
    p: float
    p_adjusted: float
    loss: float
    needed: int | None


@dataclass(frozen=True)
class SideComparison:
    """Base and another side.

    total_rows, total_usd: of all answers of the other side. checked: whether rows that changed between both were left
    out. gold: None if no pair has gold, or if it is not known of all pairs which answer is right: the others are no
    sample of them.
    """

    name: str
    tally: PairTally
    total_rows: int
    total_usd: float | None
    checked: bool
    gold: GoldComparison | None


@dataclass(frozen=True)
class Comparison:
    """What the command `compare` finds. total_rows, total_usd: of all answers of the base.

    changes: for each side that is a trial of the job, what it asks otherwise.
    chosen: whether the rows with gold were chosen, so that figures by gold hold for these rows only.
    """

    base: str
    total_rows: int
    total_usd: float | None
    sides: list[SideComparison]
    changes: Mapping[str, Mapping[str, Any]]
    chosen: bool


def compare(
    database: Database,
    job_record: JobRecord,
    job: Job,
    names: Sequence[str],
    differing: Differing = lambda *_: None,
) -> Comparison:
    """Compare the first side with each other one, row by row.

    names: `current`, job:NAME, the name of a trial, or the path of a Parquet file. Raises InputError for an unknown
    side, and if no row is answered by both.
    """
    columns, sides = sides_of(database, job_record, job, names)
    gold = _gold(database, job_record, job, list(columns), names)
    base, *others = sides
    rows, usd = base.totals()
    found = [_compared(database, job_record, columns, base, other, gold, differing) for other in others]
    adjusted = holm([p for _, _, p in found])
    compared = [
        _side_comparison(side, tally, checked, p, p_adjusted)
        for side, (tally, checked, p), p_adjusted in zip(others, found, adjusted, strict=True)
    ]
    return Comparison(
        base.name, rows, usd, compared, changes_of(database, job_record, names), gold is not None and not gold.is_random
    )


def changes_of(database: Database, job_record: JobRecord, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return for each side that is a trial of the job what it asks otherwise."""
    trials = trials_by_name(database, job_record)
    return {name: each.trial.changes for name, each in trials.items() if name in names and each.trial is not None}


def sides_of(
    database: Database, job_record: JobRecord, job: Job, names: Sequence[str]
) -> tuple[dict[str, str], list[Side]]:
    """Return the columns by which answers are compared, from name to kind, and the sides of these names.

    names: see `compare`. Raises InputError for an unknown side, and for one that lacks a column.
    """
    sink = ResultsTable.of(job_record)
    columns = compared_columns(job, sink.columns)
    sides = [_side(database, job_record, sink, name, list(columns)) for name in names]
    for side in sides:
        missing = [name for name in columns if name not in side.has]
        if missing:
            raise InputError(f"{side.name} has no column {missing[0]!r}, which {names[0]} is compared by")
    return columns, sides


def differing_rows(
    database: Database, job_record: JobRecord, job: Job, names: tuple[str, str]
) -> dict[Key, tuple[SideAnswer, SideAnswer]]:
    """Return both answers of each row whose answers of two sides differ, by key, in the order of the keys.

    names: see `compare`. Raises InputError for an unknown side, and if no row is answered by both.
    """
    columns, (base, other) = sides_of(database, job_record, job, names)
    found: dict[Key, tuple[SideAnswer, SideAnswer]] = {}

    def keep(_: str, __: Sequence[str], pair: Pair) -> None:
        found[pair.key] = (pair.base, pair.other)

    _compared(database, job_record, columns, base, other, None, keep)
    return found


def compared_columns(job: Job, has: ResultColumns) -> dict[str, str]:
    """Return the columns by which answers are compared, from name to kind: those of the output, else the text."""
    if job.output.labels is None and answer_schema(job) is None:
        return {"text": "text"}
    wanted = {name: kind for name, kind in output_columns(job).items() if name not in EXTRAS}
    missing = [name for name in wanted if name not in has.output]
    if missing:
        raise InputError(f"the results table has no column {missing[0]!r} yet; run the job first")
    return wanted


def _side(database: Database, job_record: JobRecord, sink: ResultsTable, name: str, columns: list[str]) -> Side:
    """Return the side of a name. Raises InputError if there is none."""
    if not name.endswith(".parquet"):
        return table_side(name, database, results_of(database, job_record, name, ", a .parquet file"), columns)
    if not Path(name).exists():
        raise InputError(f"{name} does not exist; write answers to it with `export`")
    return parquet_side(name, sink.columns, columns)


def _gold(
    database: Database, job_record: JobRecord, job: Job, names: list[str], sides: Sequence[str]
) -> GoldLookup | ReviewLookup | None:
    """Read the job's gold again, and return it; None if the job has none. names: of the columns of the answers.

    sides: what is compared; see `read_reviews`.
    """
    sink = ResultsTable.of(job_record)
    if job.gold is not None and job.gold.reviews:
        trials = trials_by_name(database, job_record)
        compared = [trials[side] for side in sides if side in trials]
        return ReviewLookup(read_reviews(database, job_record, job, sides=compared), names)
    reader = read_gold(job, sink.columns)
    if reader is None:
        return None
    with database.read() as conn:
        check_table(conn, sink, reader)
    return GoldLookup(database, job, reader, reader.store(database, sink), names)


def _changed(database: Database, job_record: JobRecord, base: Side, other: Side) -> frozenset[str] | None:
    """Return the keys of rows whose source values differ between two sides, as JSON; None if that cannot be known.

    The hash of a row covers the columns that its request names. Jobs that name other columns have other hashes; the
    trials of a job have its hashes, whatever they ask.
    """
    names = [side.name for side in (base, other)]
    if names[0] == names[1]:
        return frozenset()
    if any(name.endswith(".parquet") for name in names):
        return None
    ours, theirs = (record_of(database, job_record, name) for name in names)
    with database.read() as conn:
        if ours.job_name != theirs.job_name and not _have_same_hashes(conn, ours, theirs):
            return None
        if ours.trial is None and theirs.trial is None:
            return changed_between(conn, ours.id, theirs.id)
    trial, against = (ours, theirs) if ours.trial is not None else (theirs, ours)
    return changed_since_trial(database, trial, against)


def _have_same_hashes(conn: Connection, *records: JobRecord) -> bool:
    """Return whether the requests of these jobs, or of the jobs of these trials, use the same columns."""
    named = []
    for record in records:
        of_job = record.id if record.trial_of is None else record.trial_of
        run = last_run(conn, of_job)
        named.append(None if run is None else _named_columns(run.job))
    return named[0] is not None and named[0] == named[1]


def _named_columns(stored: dict[str, Any]) -> frozenset[str] | None:
    """Return the columns that a stored job's requests name; None if that cannot be told, or any column may be named."""
    try:
        return Job.model_validate(stored).request.named_columns()
    except ValidationError:  # another version stored it
        return None


def _compared(
    database: Database,
    job_record: JobRecord,
    columns: dict[str, str],
    base: Side,
    other: Side,
    gold: GoldLookup | ReviewLookup | None,
    differing: Differing,
) -> tuple[PairTally, bool, float]:
    """Return the pairs of two sides, whether changed rows were left out, and the p of the difference by gold."""
    tally = PairTally({name: ColumnPairs(kind) for name, kind in columns.items()})
    changed = _changed(database, job_record, base, other)
    shared = base.shared_requests() | other.shared_requests()
    for page in base.pages():
        keys = list(page)
        theirs, truth = other.lookup(keys, base.order), {} if gold is None else gold.of(keys, base.order)
        pairs = []
        for key, ours in page.items():
            their = theirs.get(key)
            if their is None:
                tally.alone += 1
            elif changed and dump(list(key)) in changed:
                tally.changed += 1
            else:
                pair = Pair(key, ours, their, _right(gold, truth.get(key), ours, their))
                tally.undecided += pair.right is None and key in truth and pair.is_judged
                pairs.append(pair)
        for pair in tally.add(pairs, shared):
            differing(other.name, list(columns), pair)
    if not tally.pairs:
        raise InputError(f"{base.name} and {other.name} have no pair of answers in common")
    return tally, changed is not None, sign_test(tally.gold[True, False], tally.gold[False, True])


def _right(
    gold: GoldLookup | ReviewLookup | None, truth: tuple[object, ...] | None, base: SideAnswer, other: SideAnswer
) -> tuple[bool, bool] | None:
    if gold is None or truth is None:
        return None
    ours, theirs = gold.is_right(base, truth), gold.is_right(other, truth)
    return None if ours is None or theirs is None else (ours, theirs)


def _side_comparison(side: Side, tally: PairTally, checked: bool, p: float, p_adjusted: float) -> SideComparison:
    rows, usd = side.totals()
    return SideComparison(side.name, tally, rows, usd, checked, _by_gold(tally, p, p_adjusted))


def _by_gold(tally: PairTally, p: float, p_adjusted: float) -> GoldComparison | None:
    """Return the comparison by gold; None if no pair has gold, or if pairs are left out because of their answers."""
    if tally.undecided:
        return None
    n = sum(tally.gold.values())
    only_base, only_other = tally.gold[True, False], tally.gold[False, True]
    difference = paired_difference(only_other, only_base, n)
    bound = paired_difference(only_other, only_base, n, Z_ONE_SIDED)
    if difference is None or bound is None:
        return None
    base, other = (Share(right, tally.gold_rows, n) for right in tally.right)
    return GoldComparison(
        accuracies=(base, other),
        only_base=only_base,
        only_other=only_other,
        requests=n,
        difference=difference,
        p=p,
        p_adjusted=p_adjusted,
        loss=max(0.0, -bound.low),
        needed=pairs_needed((only_base + only_other) / n, (only_other - only_base) / n),
    )
