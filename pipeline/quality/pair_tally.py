"""Count the pairs of answers that two sides gave to the same rows: which agree, which flip, which are right. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

from pipeline.quality.compare_values import FAILED, Verdict, comparer, verdict
from pipeline.quality.tally import EXAMPLES, JUDGED, MOST_PAIRS
from pipeline.sink.sides import Key, SideAnswer
from pipeline.states import RowState

_JUDGED = frozenset(JUDGED)


@dataclass
class ColumnPairs:
    """The pairs in one column. flips: rows by both values if they differ; keys: of a few of them.

    numbers: how many pairs of numbers there are, the sum of their differences and that of the squares of these.
    lengths: the sums of the characters of texts.
    """

    kind: str
    agree: int = 0
    flips: Counter[tuple[Any, Any]] = field(default_factory=Counter)
    keys: dict[tuple[Any, Any], list[Key]] = field(default_factory=dict)
    numbers: tuple[int, float, float] = (0, 0.0, 0.0)
    lengths: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self._equal = comparer(self.kind, "exact")

    def add(self, base: Any, other: Any, rows: int) -> bool:
        """Count rows with this pair of values, and return whether both agree. FAILED stands for one that failed."""
        agree = base is other or verdict(self._equal, other, base) is Verdict.RIGHT
        if agree:
            self.agree += rows
        elif (base, other) in self.flips or len(self.flips) < MOST_PAIRS:
            self.flips[base, other] += rows
        if self.kind in ("integer", "number") and type(base) in (int, float) and type(other) in (int, float):
            n, total, squares = self.numbers
            difference = other - base
            self.numbers = (n + rows, total + rows * difference, squares + rows * difference**2)
        elif isinstance(base, str) and isinstance(other, str):
            self.lengths = (self.lengths[0] + rows * len(base), self.lengths[1] + rows * len(other))
        return agree

    def keep_example(self, key: Key, base: Any, other: Any) -> None:
        """Keep the key of a row if few of its flip are kept."""
        if (base, other) in self.flips:
            kept = self.keys.setdefault((base, other), [])
            if len(kept) < EXAMPLES:
                kept.append(key)


@dataclass
class PairTally:
    """The pairs of the base and another side.

    pairs: rows that both sides have answered; requests: the same, with each pair of requests counted once. agree: pairs
    that agree in all columns. changed: rows whose source values have changed between both; alone, unanswered: rows that
    only the base has, and rows that one of both has not answered. statuses: pairs whose status differs. cost_usd,
    tokens: of the pairs, of both sides; a cost is None if it is not known. gold: pairs with gold by whether the base
    and the other side are right, each pair of requests once; right: rows that are right of both sides. undecided: rows
    of whose reviews it is not known whether both answers are right.
    """

    columns: dict[str, ColumnPairs]
    pairs: int = 0
    requests: int = 0
    agree: int = 0
    changed: int = 0
    alone: int = 0
    unanswered: int = 0
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    cost_usd: list[float | None] = field(default_factory=lambda: [0.0, 0.0])
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    gold: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    gold_rows: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])
    undecided: int = 0
    _seen: set[tuple[str | None, str | None]] = field(default_factory=set)

    def add(self, page: Sequence["Pair"], shared: frozenset[str]) -> list["Pair"]:
        """Count rows, and return the pairs whose answers differ. shared: the requests that answered several rows."""
        pairs = [pair for pair in page if pair.is_judged]
        self.unanswered += len(page) - len(pairs)
        first = self._first(pairs, shared)
        alike = [pair.alike for pair in pairs]
        counted = Counter(alike)
        once = counted if first is None else Counter(compress(alike, first))
        self.pairs += len(pairs)
        self.requests += once.total()
        self._add_costs(pairs)
        agree = {each: self._add_alike(each, rows, once[each]) for each, rows in counted.items()}
        if all(agree.values()):
            return []
        differing = [pair for pair, each in zip(pairs, alike, strict=True) if not agree[each]]
        for pair in differing:
            for column, a, b in zip(self.columns.values(), values_of(pair.base), values_of(pair.other), strict=True):
                column.keep_example(pair.key, a, b)
        return differing

    def _first(self, pairs: Sequence["Pair"], shared: frozenset[str]) -> list[bool] | None:
        """Return whether each pair is the first of its two requests; None if all are."""
        if not shared:
            return None
        first = []
        for pair in pairs:
            requests = (pair.base.request, pair.other.request)
            first.append(requests not in self._seen)
            if not shared.isdisjoint(requests):
                self._seen.add(requests)
        return first

    def _add_costs(self, pairs: Sequence["Pair"]) -> None:
        for i, answers in enumerate(([pair.base for pair in pairs], [pair.other for pair in pairs])):
            costs = [answer.cost_usd for answer in answers]
            before = self.cost_usd[i]
            self.cost_usd[i] = None if before is None or None in costs else before + sum(filter(None, costs))
            self.tokens[i] += sum(answer.output_tokens for answer in answers)

    def _add_alike(self, alike: "Alike", rows: int, requests: int) -> bool:
        """Count rows that are alike, and return whether both answers agree. requests: with each pair counted once."""
        base, other, right = alike
        if base[0] != other[0]:
            self.statuses[base[0], other[0]] += rows
        agree = True
        for column, a, b in zip(self.columns.values(), _values(*base), _values(*other), strict=True):
            agree &= column.add(a, b, rows)
        self.agree += rows if agree else 0
        if right is not None:
            self.gold_rows += rows
            self.right = [self.right[0] + rows * right[0], self.right[1] + rows * right[1]]
            self.gold[right] += requests
        return agree


StatusAndValues = tuple[str, tuple[Any, ...]]
#: What rows have in common that are counted together: status and values of both sides, and whether both are right.
Alike = tuple[StatusAndValues, StatusAndValues, tuple[bool, bool] | None]


class Pair(NamedTuple):
    """A row that both sides have. right: whether both answers are right; None: it has no gold."""

    key: Key
    base: SideAnswer
    other: SideAnswer
    right: tuple[bool, bool] | None

    @property
    def is_judged(self) -> bool:
        """Whether both sides have answered."""
        return self.base.status in _JUDGED and self.other.status in _JUDGED

    @property
    def alike(self) -> Alike:
        """What the row has in common with others that are counted together with it."""
        return (self.base.status, self.base.values), (self.other.status, self.other.values), self.right


def values_of(answer: SideAnswer) -> Sequence[Any]:
    """Return the values of an answer; FAILED for each if it did not succeed."""
    return _values(answer.status, answer.values)


def _values(status: str, values: tuple[Any, ...]) -> Sequence[Any]:
    return values if status == RowState.SUCCEEDED else [FAILED] * len(values)
