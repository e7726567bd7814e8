"""Which figures say how good answers are: shares with intervals, figures by class, confusions, slices? Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.quality import statistics
from pipeline.quality.compare_values import ANOTHER, FAILED, Verdict
from pipeline.quality.statistics import Estimate, Interval
from pipeline.quality.tally import ColumnTally, Key, Tally

CONFUSIONS = 10
LONGEST_VALUE = 40  # characters of a value in a sentence
FEW_ROWS = 30  # a slice of fewer rows says little


class Share(NamedTuple):
    """A share of rows. requests: how many requests answered these rows; the interval counts each request once."""

    right: int
    rows: int
    requests: int

    @property
    def value(self) -> float | None:
        """The share; None if there are no rows."""
        return self.right / self.rows if self.rows else None

    @property
    def interval(self) -> Interval | None:
        """The interval around the share; None if there are no rows."""
        return None if self.value is None else statistics.wilson(self.value * self.requests, self.requests)


@dataclass(frozen=True)
class ClassFigures:
    """The figures of one class. precision: of the answers with this class; recall: of the gold with this class."""

    value: Any
    precision: Share
    recall: Share
    f1: float | None
    f1_interval: Interval | None


class Confusion(NamedTuple):
    """Rows with this gold that have this other answer, FAILED if it failed. keys: of a few of them."""

    gold: Any
    answer: Any
    rows: int
    keys: list[Key]


@dataclass(frozen=True)
class ClassesFigures:
    """The figures of a column that chooses between classes.

    matrix: rows by gold and by answer, in the order of the classes; its last column counts the answers that failed.
    another: like a row of the matrix, rows of which is known only that their answer is wrong; [] if there are none.
    macro_f1, weighted_f1, kappa: None where they are not defined, or not known because of such rows.
    """

    classes: list[ClassFigures]
    matrix: list[list[int]]
    macro_f1: Estimate | None
    weighted_f1: float | None
    kappa: Estimate | None
    another: list[int] = field(default_factory=list)


class ValueFigures(NamedTuple):
    """The figures of one value of lists. both: rows whose answer and gold have it."""

    value: Any
    precision: Share
    recall: Share


@dataclass(frozen=True)
class ColumnFigures:
    """The figures of one output column. verdicts: rows by verdict; values: of lists, else empty."""

    name: str
    accuracy: Share
    verdicts: dict[str, int]
    classes: ClassesFigures | None
    values: list[ValueFigures]
    confusions: list[Confusion]


class Slice(NamedTuple):
    """The rows with one value in a column."""

    value: Any
    accuracy: Share


@dataclass(frozen=True)
class Figures:
    """How good the answers to rows with gold are.

    accuracy: rows that are right in all columns in which they have gold. statuses: rows with gold and an outcome, by
    status. cost_usd: of all these rows; None if a price is not known. slices: by column, the least certain to be good
    first.
    """

    accuracy: Share
    statuses: dict[str, int]
    cost_usd: float | None
    columns: list[ColumnFigures]
    slices: dict[str, list[Slice]]

    @property
    def cost_per_right_usd(self) -> float | None:
        """The cost of a right answer; None if no answer is right or a price is not known."""
        return self.cost_usd / self.accuracy.right if self.cost_usd is not None and self.accuracy.right else None


def confusions_in_words(found: Figures) -> tuple[str, ...]:
    """Return the three most frequent confusions, as `billing for bug (12)`: the answer for the gold."""
    every = sorted((one for column in found.columns for one in column.confusions), key=lambda one: -one.rows)
    return tuple(f"{_short(one.answer)} for {_short(one.gold)} ({one.rows:,})" for one in every[:3])


def _short(value: Any) -> str:
    return "null" if value is None else str(value)[:LONGEST_VALUE]


def figures(tally: Tally) -> Figures:
    """Return the figures of what was counted."""
    slices = {
        name: sorted((Slice(value, Share(n[1], n[0], n[2])) for value, n in found.items()), key=_upper_end)
        for name, found in tally.slices.items()
    }
    return Figures(
        accuracy=Share(tally.right, tally.rows, tally.requests),
        statuses=dict(tally.statuses),
        cost_usd=None if tally.unpriced else round(tally.cost_usd, 12),
        columns=[_column(column) for column in tally.columns],
        slices=slices,
    )


def _upper_end(one: Slice) -> tuple[float, str]:
    interval = one.accuracy.interval
    return (1.0 if interval is None else interval.high, str(one.value))


def _column(tally: ColumnTally) -> ColumnFigures:
    requests = sum(tally.requests.values()) if not tally.uncounted else tally.rows
    right = tally.verdicts[Verdict.RIGHT]
    return ColumnFigures(
        name=tally.column.name,
        accuracy=Share(right, tally.rows, requests),
        verdicts={kind.value: tally.verdicts[kind] for kind in Verdict},
        classes=_classes(tally),
        values=_values(tally),
        confusions=_confusions(tally),
    )


def _confusions(tally: ColumnTally) -> list[Confusion]:
    """Return the most frequent pairs of gold and another answer."""
    most = sorted(tally.examples, key=lambda pair: (-tally.pairs[pair], str(pair)))[:CONFUSIONS]
    return [Confusion(*pair, tally.pairs[pair], tally.examples[pair]) for pair in most]


def _values(tally: ColumnTally) -> list[ValueFigures]:
    """Return precision and recall of each value of lists, the most frequent in gold first."""
    found = sorted(tally.values.items(), key=lambda of: (-of[1][0] - of[1][2], str(of[0])))
    return [
        ValueFigures(value, Share(both, both + extra, both + extra), Share(both, both + lacking, both + lacking))
        for value, (both, extra, lacking) in found
    ]


def _classes(tally: ColumnTally) -> ClassesFigures | None:
    values = tally.classes
    if values is None:
        return None
    answers = [*values, FAILED]
    matrix = [[tally.pairs[gold, answer] for answer in answers] for gold in values]
    once = [[tally.requests[gold, answer] for answer in answers] for gold in values]
    rows, requests = sum(map(sum, matrix)), sum(map(sum, once))
    another = [tally.pairs[ANOTHER, answer] for answer in answers]
    another_once = [tally.requests[ANOTHER, answer] for answer in answers]
    known = not any(another)
    wrong = list(zip(another, another_once, strict=True))
    return ClassesFigures(
        classes=[_class(value, i, matrix, once, wrong[i]) for i, value in enumerate(values)],
        matrix=matrix,
        macro_f1=_of_requests(statistics.macro_f1(matrix), rows, requests) if known else None,
        weighted_f1=statistics.weighted_f1(matrix) if known else None,
        kappa=_of_requests(statistics.kappa(matrix), rows, requests) if known else None,
        another=[] if known else another,
    )


def _class(
    value: Any,
    i: int,
    matrix: Sequence[Sequence[int]],
    once: Sequence[Sequence[int]],
    wrong: tuple[int, int],
) -> ClassFigures:
    """Return the figures of the i-th class. wrong: rows and requests with this answer whose gold is ANOTHER."""
    right = matrix[i][i]
    of_gold, of_answers = sum(matrix[i]), sum(row[i] for row in matrix) + wrong[0]
    requests_gold, requests_answers = sum(once[i]), sum(row[i] for row in once) + wrong[1]
    either = of_gold + of_answers - right
    share = (requests_gold + requests_answers - once[i][i]) / either if either else 1.0
    counts = (right, of_answers - right, of_gold - right)
    return ClassFigures(
        value,
        precision=Share(right, of_answers, requests_answers),
        recall=Share(right, of_gold, requests_gold),
        f1=statistics.f1(*counts),
        f1_interval=statistics.f1_interval(*(share * count for count in counts)),
    )


def _of_requests(estimate: Estimate | None, rows: int, requests: int) -> Estimate | None:
    """Return an estimate over rows with the standard error of that number of requests."""
    if estimate is None or requests in (0, rows):
        return estimate
    wider = (rows / requests) ** 0.5
    half = wider * (estimate.interval.high - estimate.value)
    return Estimate(estimate.value, wider * estimate.se, Interval(estimate.value - half, estimate.value + half))
