"""What gold do the reviews of a job's answers give, and for which rows does it stand? Edge: SQL.

A review is about one answer. Of a value that was judged right it is known that this value is right; of a wrong one that
was not corrected, only that this value is wrong: gold for another answer it is not. Of a free text, other texts may be
right as well. So gold is resolved for each answer that it is compared with.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from pipeline.errors import InputError, JobError
from pipeline.job.json_values import dump
from pipeline.job.model import Job
from pipeline.quality.compare_values import ANOTHER, FAILED, UNKNOWN, Verdict, comparer, verdict
from pipeline.quality.gold import gold_table, replace_gold
from pipeline.quality.gold_columns import GoldColumn, gold_columns
from pipeline.quality.gold_values import Misread
from pipeline.quality.pair_tally import values_of
from pipeline.quality.review_draw import SAMPLE, Draw, design_of
from pipeline.quality.review_values import Key, ReviewColumn, missing_columns, review_columns
from pipeline.sink.gold import GoldTable
from pipeline.sink.reviews import Review, ReviewsTable
from pipeline.sink.sides import SideAnswer
from pipeline.sink.table import ResultsTable
from pipeline.sink.trials import changed_since_trial
from pipeline.source.rows import Chunk
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.state.row_facts import answered_hashes

PAGE = 5_000  # rows that one transaction writes


class Known(NamedTuple):
    """What a review tells of a value. right: whether `value` is right; only: whether no other value is."""

    value: Any
    right: bool
    only: bool


@dataclass(frozen=True)
class ReviewedRow:
    """What is known of a row. of: for each gold column; None if nothing is. draw: how the row was chosen."""

    of: tuple[Known | None, ...]
    draw: Draw

    @property
    def tells_what_is_right(self) -> bool:
        """Whether any other answer to the row can be judged by what is known."""
        return all(one is None or (one.right and one.only and one.value is not FAILED) for one in self.of)


class ReviewedGold:
    """The gold that the reviews of a job give.

    columns: all columns that people review; equal: for each, the function that compares its values. rows: by key.
    unsure: rows of which nothing is known because a person was not sure; changed: those whose source values have
    changed since. design: of the sample, see review_draw.design_of; None if no row was drawn at random. weights: of the
    draws of its strata; {} without strata.
    """

    def __init__(
        self,
        job: Job,
        columns: Sequence[ReviewColumn],
        reviews: Sequence[Review],
        changed: int,
        hashes: Mapping[Key, bytes],
    ) -> None:
        """reviews: of which later ones replace earlier ones. changed: rows whose reviews are not among them.

        hashes: the row_hash of the answer of each reviewed row.
        Raises JobError for a match of a column that is not reviewed, or that cannot be compared in this way.
        """
        assert job.gold is not None
        for name in job.gold.match:
            if name not in {column.name for column in columns}:
                raise JobError(f"gold.match: {name!r} is no column of the output that is reviewed")
        self.columns: list[GoldColumn] = gold_columns(job, job.gold)
        self.changed, self._hashes = changed, hashes
        self.equal = [comparer(column.kind, column.match) for column in self.columns]
        rows = _rows(columns, reviews)
        self.rows = {key: row for key, row in rows.items() if any(row.of)}
        self.unsure = len(rows) - len(self.rows)
        drawn = [row.draw for row in self.rows.values() if row.draw.weight is not None]
        designs = Counter(design_of(draw.drawn) for draw in drawn)
        self.design = (
            max(designs, key=lambda one: (designs[one], one == SAMPLE)) if designs and job.gold.random else None
        )
        found = {draw.drawn: draw.weight or 0.0 for draw in drawn if design_of(draw.drawn) == self.design}
        self.weights = {} if self.design == SAMPLE else found

    def is_drawn(self, key: Key) -> bool:
        """Return whether a row belongs to the sample, and so stands for others."""
        draw = self.rows[key].draw
        return draw.weight is not None and design_of(draw.drawn) == self.design

    def resolved(self, key: Key, answers: Sequence[Any]) -> list[Any]:
        """Return the gold of a row for an answer: a value for each column, or ANOTHER or UNKNOWN.

        answers: a value for each column, FAILED for each if the answer failed.
        """
        of = self.rows[key].of
        return [_resolved(*one) for one in zip(of, answers, self.equal, strict=True)]

    @property
    def source_columns(self) -> list[str]:
        """Empty: the source holds no gold."""
        return []

    def having(self, _: Chunk, keys: pl.Series, sink: ResultsTable) -> list[bool]:
        """Return whether the rows with these keys (JSON) were reviewed. sink: for the types of its key."""
        return [sink.key_values(key) in self.rows for key in keys]

    def holds_for(self, key: str, row_hash: bytes, sink: ResultsTable) -> bool:
        """Return whether a row (its key as JSON) has the source values that its reviewed answer was about."""
        return self._hashes.get(sink.key_values(key)) == row_hash

    def sample(self) -> "ReviewedGold":
        """Return the gold of the rows of the sample alone by which any other answer can be judged."""
        alone = copy.copy(self)
        alone.rows = {key: row for key, row in self.rows.items() if self.is_drawn(key) and row.tells_what_is_right}
        return alone

    def without(self, keys: Collection[str]) -> "ReviewedGold":
        """Return the gold of the other rows than those with these keys (JSON), whose source values have changed."""
        left = copy.copy(self)
        left.rows = {key: row for key, row in self.rows.items() if dump(list(key)) not in keys}
        left.changed += len(self.rows) - len(left.rows)
        return left

    def require_clear_sample(self) -> None:
        """Raise InputError if the rows are no plain sample, or do not tell what is right for each row of it."""
        if self.design != SAMPLE:
            raise InputError(
                "canary.min_accuracy: the reviewed rows are no plain random sample of all answers, so their accuracy "
                "says nothing about the other rows; review a sample that `review JOB export FILE --sample N` draws, or "
                "send all rows with `run --no-canary`"
            )
        drawn = [row for key, row in self.rows.items() if self.is_drawn(key)]
        unclear = sum(not row.tells_what_is_right for row in drawn)
        if unclear:
            raise InputError(
                f"canary.min_accuracy: of {unclear:,} of {len(drawn):,} rows of the reviewed sample it is not "
                "known which other answer would be right; fill in the right ones in column new (for free text there is "
                "no such answer), or send all rows with `run --no-canary`"
            )

    def is_right(self, key: Key, answers: Sequence[Any]) -> bool | None:
        """Return whether an answer is right in all columns that were reviewed; None if that is not known.

        answers: as for `resolved`.
        """
        columns = zip(self.rows[key].of, answers, self.resolved(key, answers), self.equal, strict=True)
        found: list[bool | None] = [
            None if gold is UNKNOWN else verdict(equal, answer, gold) is Verdict.RIGHT
            for known, answer, gold, equal in columns
            if known is not None
        ]
        return False if False in found else None if None in found else True

    def store(self, database: Database, sink: ResultsTable) -> GoldTable:
        """Store the gold in the gold table, and return the table; what is no value is null there."""
        table = gold_table(sink, self.columns)
        replace_gold(database, table, self._pages())
        return table

    def _pages(self) -> Iterator[list[tuple[Any, ...]]]:
        rows = [(*key, *[one.value if one and one.right else None for one in row.of]) for key, row in self.rows.items()]
        yield from (rows[start : start + PAGE] for start in range(0, len(rows), PAGE))


def reviewed_sample(database: Database, job_record: JobRecord | None, job: Job, *, clear: bool) -> ReviewedGold | None:
    """Return the gold by which answers to come can be judged, see `ReviewedGold.sample`; None if there is none yet.

    job_record: None: the job has never run. clear: whether to raise InputError, as `require_clear_sample` does.
    """
    if job_record is None or job.gold is None:
        return None
    if missing_columns(job, ResultsTable.of(job_record).columns):  # the next run makes them
        return None
    gold = _reviewed(database, job_record, job)
    if gold.rows and clear:
        gold.require_clear_sample()
    return gold.sample() if gold.rows else None


def read_reviews(
    database: Database, job_record: JobRecord, job: Job, *, sides: Iterable[JobRecord] = ()
) -> ReviewedGold:
    """Return the gold that the reviews of a job give. Raises InputError if there are none.

    sides: whose answers are judged by it. A trial may have asked rows whose source values have changed since the
    reviewed answers; for all sides, such rows have no gold.
    """
    gold = _reviewed(database, job_record, job)
    if not gold.rows:
        raise InputError(
            f"gold: job {job.name} has no reviews that say what is right; write a sheet with "
            f"`batch-pipeline review {job.name} export FILE.xlsx --sample 100`, fill it in and import it"
        )
    for side in sides:
        if side.trial is not None:
            gold = gold.without(changed_since_trial(database, side, job_record))
    return gold


def _reviewed(database: Database, job_record: JobRecord, job: Job) -> ReviewedGold:
    sink = ResultsTable.of(job_record)
    columns = review_columns(job, sink.columns)
    names, table = {column.name for column in columns}, ReviewsTable(sink)
    with database.read() as conn:
        found = [one for one in table.all(conn) if one.column in names] if table.is_made(conn) else []
        hashes = answered_hashes(conn, job_record.id, [dump(list(key)) for key in {one.key for one in found}])
    present = {one.key: hashes.get(dump(list(one.key)), b"") for one in found}
    reviews = [one for one in found if one.row_hash in (None, present[one.key].hex())]
    changed = len({one.key for one in found} - {one.key for one in reviews})
    return ReviewedGold(job, columns, reviews, changed, present)


def _rows(columns: Sequence[ReviewColumn], reviews: Sequence[Review]) -> dict[Key, ReviewedRow]:
    places = {column.name: i for i, column in enumerate(columns)}
    known: dict[Key, list[Known | None]] = {}
    draws: dict[Key, Draw] = {}
    for review in reviews:
        place = places[review.column]
        known.setdefault(review.key, [None] * len(columns))[place] = _known(columns[place], review)
        draw, before = Draw(review.drawn, review.weight), draws.get(review.key)
        if before is None or draw.weight is not None:  # a row of a sample stays one when it is chosen again
            draws[review.key] = draw
    return {key: ReviewedRow(tuple(of), draws[key]) for key, of in known.items()}


def _known(column: ReviewColumn, review: Review) -> Known | None:
    """Return what a review tells; None if the person was not sure, or if the column has held other values since."""
    if review.verdict == "unsure":
        return None
    try:
        answer = FAILED if review.answer is None else column.value(review.answer)
        if review.verdict == "right":
            return Known(answer, right=True, only=not column.is_free_text)
        if review.new is None or column.is_free_text:
            return Known(answer, right=False, only=False)
        return Known(column.value(review.new), right=True, only=True)
    except Misread:  # the schema said another type when it was reviewed
        return None


def _resolved(known: Known | None, answer: Any, equal: Callable[[Any, Any], bool]) -> Any:
    if known is None:
        return UNKNOWN
    if answer is FAILED:
        return ANOTHER
    if known.right and known.only:
        return known.value
    if known.value is FAILED:
        return UNKNOWN
    value = known.value
    same = answer is value if answer is None or value is None else equal(answer, value)
    if not same:
        return UNKNOWN
    return answer if known.right else ANOTHER


class ReviewLookup:
    """The gold that reviews give, to judge single answers with, as GoldLookup does."""

    def __init__(self, gold: ReviewedGold, names: Sequence[str]) -> None:
        """names: the columns of the answers that are judged, in their order; all columns with gold are among them."""
        self._gold = gold
        self._places = [names.index(column.name) for column in gold.columns]

    @property
    def is_random(self) -> bool:
        """Whether the rows with gold are a plain random sample: figures of pairs are not weighed by strata."""
        return self._gold.design == SAMPLE

    def of(self, keys: Sequence[Key], _order: str) -> dict[Key, Key]:
        """Return which of these rows have gold: those of a plain sample, or all if there is none."""
        rows = self._gold.rows
        return {key: key for key in keys if key in rows and (not self.is_random or self._gold.is_drawn(key))}

    def is_right(self, answer: SideAnswer, key: Key) -> bool | None:
        """Return whether an answer is right in all columns that were reviewed; None if that is not known."""
        values = values_of(answer)
        return self._gold.is_right(key, [values[place] for place in self._places])
