"""Count the answers of rows with gold: right, wrong, by class, by slice, by request. Pure.

Pages of rows are counted column by column, by functions of Python's that are written in C: a million rows take seconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

from pipeline.errors import InputError
from pipeline.job.gold import Within
from pipeline.quality.compare_values import ANOTHER, FAILED, UNKNOWN, Mark, Verdict, comparer, values_in, verdict
from pipeline.quality.gold_columns import GoldColumn
from pipeline.sink.pairs import Layout
from pipeline.states import RowState
from pipeline.text import folded

#: An answer with one of these statuses is right or wrong. Rows with another status have no answer.
JUDGED = (RowState.SUCCEEDED, RowState.TRUNCATED, RowState.REFUSED, RowState.UNPARSABLE)
_JUDGED = frozenset(JUDGED)
MOST_PAIRS = 50_000  # different pairs of gold and answer of a column that are counted one by one
MOST_SLICES = 10_000
EXAMPLES = 3  # keys that are kept for each pair
MOST_CLASSES = 100  # of a column without declared values; with more values it has no classes

Key = tuple[Any, ...]
Pair = tuple[Any, Any]  # gold and answer; the answer is FAILED if it failed


class ColumnTally:
    """The answers in one output column."""

    def __init__(self, column: GoldColumn, *, empty_is_null: bool) -> None:
        """empty_is_null: whether empty gold means that the answer must be null; else that there is no gold."""
        self.column, self._empty_is_null = column, empty_is_null
        self._equal = comparer(column.kind, column.match)
        self._folds = column.match == "casefold"
        self.rows = 0
        self.verdicts: Counter[Verdict] = Counter()
        self.pairs: Counter[Pair] = Counter()  #: rows by gold and answer
        self.requests: Counter[Pair] = Counter()  #: the same, with each request counted once
        self.examples: dict[Pair, list[Key]] = {}  #: a few keys of each pair that is not right
        self.uncounted = 0  #: rows whose pairs were too many to be counted one by one
        self.values: dict[Any, list[int]] = {}  #: of lists: by value in both, only in answers, only in gold

    def add(
        self, answers: Sequence[Any], gold: Sequence[Any], keys: Sequence[Key], first: Sequence[bool] | None
    ) -> list[bool | None]:
        """Count rows, and return for each whether it is right here; None if it has no gold.

        first: whether a row is the first of its request; None if all are.
        """
        if self._folds:
            answers = [folded(a) if isinstance(a, str) else a for a in answers]
            gold = [folded(g) if isinstance(g, str) else g for g in gold]
        pairs = list(zip(gold, answers, strict=True))
        counted = Counter(pairs)
        verdicts: dict[Pair, Verdict | None] = {pair: self._verdict(*pair) for pair in counted}
        for pair, kind in verdicts.items():
            if kind is not None:
                self.rows += counted[pair]
                self.verdicts[kind] += counted[pair]
                self._count(pair, counted[pair])
                if self.column.match == "set" and pair[0] is not ANOTHER:
                    self._count_values(pair, counted[pair])
        if first is None:
            self._count_requests({pair: n for pair, n in counted.items() if verdicts[pair] is not None})
        else:
            self._count_requests(Counter(pair for pair in compress(pairs, first) if verdicts[pair] is not None))
        right: dict[Pair, bool | None] = {
            pair: None if kind is None else kind is Verdict.RIGHT for pair, kind in verdicts.items()
        }
        flags = list(map(right.__getitem__, pairs))
        self._keep_examples(pairs, keys, flags)
        return flags

    def _verdict(self, gold: Any, answer: Any) -> Verdict | None:
        if gold is UNKNOWN or (gold is None and not self._empty_is_null):
            return None
        return verdict(self._equal, answer, gold)

    def _count(self, pair: Pair, rows: int) -> None:
        if pair in self.pairs or len(self.pairs) < MOST_PAIRS:
            self.pairs[pair] += rows
        else:
            self.uncounted += rows

    def _count_requests(self, counted: Mapping[Pair, int]) -> None:
        for pair, n in counted.items():
            if pair in self.pairs:
                self.requests[pair] += n

    def _count_values(self, pair: Pair, rows: int) -> None:
        gold, answer = values_in(pair[0]), values_in(pair[1])
        for i, values in enumerate((gold & answer, answer - gold, gold - answer)):
            for value in values:
                if value in self.values or len(self.values) < MOST_CLASSES:
                    self.values.setdefault(value, [0, 0, 0])[i] += rows

    def _keep_examples(self, pairs: Sequence[Pair], keys: Sequence[Key], flags: Sequence[bool | None]) -> None:
        if False not in flags:
            return
        for pair, key, right in zip(pairs, keys, flags, strict=True):
            if right is False and pair in self.pairs:
                kept = self.examples.setdefault(pair, [])
                if len(kept) < EXAMPLES:
                    kept.append(key)

    @property
    def classes(self) -> list[Any] | None:
        """The values between which the answers choose, declared ones first; None if they are no classes."""
        column = self.column
        if column.kind not in ("text", "boolean", "integer") or self.uncounted or isinstance(column.match, Within):
            return None
        named = [] if column.declared is None else [folded(v) if self._folds else v for v in column.declared.values()]
        found = {value for pair in self.pairs for value in pair if not isinstance(value, Mark) and value not in named}
        if column.declared is None and len(found) > MOST_CLASSES:
            return None
        return [*named, *sorted(found, key=lambda value: (value is None, str(value)))]


class Tally:
    """The answers of rows with gold in all columns."""

    def __init__(
        self,
        columns: Sequence[GoldColumn],
        layout: Layout,
        *,
        empty_is_null: bool,
        shared: frozenset[str],
        by: Sequence[str] = (),
    ) -> None:
        """shared: the ids of requests that answered several rows; by: names of the columns for slices."""
        self.columns = [ColumnTally(column, empty_is_null=empty_is_null) for column in columns]
        self._layout, self._shared = layout, shared
        self._seen: set[str] = set()
        self.statuses: Counter[str] = Counter()  #: of all rows with gold that have an outcome
        self.rows = self.right = 0  #: rows that are right or wrong; those that are right in all columns with gold
        self.requests = 0  #: that answered these rows
        self.cost_usd = 0.0
        self.unpriced = False
        self.slices: dict[str, dict[Any, list[int]]] = {name: {} for name in by}  #: value to rows, right, requests

    def add(self, page: Sequence[Sequence[Any]]) -> None:
        """Count a page of rows. Raises InputError if a column has too many values for slices."""
        at = self._layout
        values = list(zip(*page, strict=True))
        self._add_costs(values[at.cost], values[at.status])
        statuses = Counter(values[at.status])
        self.statuses.update(statuses)
        if not statuses.keys() <= _JUDGED:
            page = [row for row in page if row[at.status] in _JUDGED]
            values = list(zip(*page, strict=True))
        if not page:
            return
        keys = list(zip(*values[at.key], strict=True))
        answers = _with_failed(values[at.answers], values[at.status])
        first = self._first(values[at.request])
        flags = [
            tally.add(of_column, gold, keys, first)
            for tally, of_column, gold in zip(self.columns, answers, values[at.gold], strict=True)
        ]
        right = flags[0] if len(flags) == 1 else [_all_right(of_row) for of_row in zip(*flags, strict=True)]
        self._add_rows(right, first)
        for name, of_slices in zip(self.slices, values[at.by], strict=True):
            self._add_slices(name, of_slices, right, first)

    def _add_costs(self, costs: Sequence[float | None], statuses: Sequence[str]) -> None:
        if None in costs:
            self.unpriced |= any(c is None and s in _JUDGED for c, s in zip(costs, statuses, strict=True))
            costs = [cost for cost in costs if cost is not None]
        self.cost_usd += sum(cost for cost in costs if cost)

    def _first(self, requests: Sequence[str | None]) -> list[bool] | None:
        """Return whether each row is the first of its request; None if all are."""
        if self._shared.isdisjoint(requests):
            return None
        first = []
        for request in requests:
            again = request in self._seen
            first.append(not again)
            if request in self._shared and not again:
                self._seen.add(str(request))
        return first

    def _add_rows(self, right: Sequence[bool | None], first: Sequence[bool] | None) -> None:
        counted = Counter(right)
        self.rows += counted[True] + counted[False]
        self.right += counted[True]
        once = counted if first is None else Counter(compress(right, first))
        self.requests += once[True] + once[False]

    def _add_slices(
        self, name: str, values: Sequence[Any], right: Sequence[bool | None], first: Sequence[bool] | None
    ) -> None:
        slices = self.slices[name]
        counted = Counter(zip(values, right, strict=True))
        for (value, is_right), n in counted.items():
            if is_right is not None:
                of_slice = slices.setdefault(value, [0, 0, 0])
                of_slice[0] += n
                of_slice[1] += n if is_right else 0
        once = counted if first is None else Counter(compress(zip(values, right, strict=True), first))
        for (value, is_right), n in once.items():
            if is_right is not None:
                slices[value][2] += n
        if len(slices) > MOST_SLICES:
            raise InputError(f"--by {name}: the column has more than {MOST_SLICES:,} values; choose one with fewer")


def _with_failed(answers: Sequence[Sequence[Any]], statuses: Sequence[str]) -> Sequence[Sequence[Any]]:
    """Return the answers of each column, with FAILED for rows that did not succeed."""
    if set(statuses) == {RowState.SUCCEEDED}:
        return answers
    succeeded = [status == RowState.SUCCEEDED for status in statuses]
    return [[a if good else FAILED for a, good in zip(column, succeeded, strict=True)] for column in answers]


def _all_right(flags: Sequence[bool | None]) -> bool | None:
    """Return whether a row is right in all columns with gold; None if none has gold."""
    if False in flags:
        return False
    return True if True in flags else None
