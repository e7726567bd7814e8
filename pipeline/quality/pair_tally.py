"""Count the pairs of answers that two sides gave to the same rows: which agree, which flip, which are right. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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

    def add(self, key: Key, base: Any, other: Any) -> bool:
        """Count a pair, and return whether both values agree. FAILED stands for the value of an answer that failed."""
        agree = base is other or verdict(self._equal, other, base) is Verdict.RIGHT
        if agree:
            self.agree += 1
        elif (base, other) in self.flips or len(self.flips) < MOST_PAIRS:
            self.flips[base, other] += 1
            kept = self.keys.setdefault((base, other), [])
            if len(kept) < EXAMPLES:
                kept.append(key)
        if self.kind in ("integer", "number") and type(base) in (int, float) and type(other) in (int, float):
            n, total, squares = self.numbers
            self.numbers = (n + 1, total + other - base, squares + (other - base) ** 2)
        elif isinstance(base, str) and isinstance(other, str):
            self.lengths = (self.lengths[0] + len(base), self.lengths[1] + len(other))
        return agree


@dataclass
class PairTally:
    """The pairs of the base and another side.

    pairs: rows that both sides have answered; requests: the same, with each pair of requests counted once. agree: pairs
    that agree in all columns. changed: rows whose source values have changed between both; alone, unanswered: rows that
    only the base has, and rows that one of both has not answered. statuses: pairs whose status differs. cost_usd,
    tokens: of the pairs, of both sides; a cost is None if it is not known. gold: pairs with gold by whether the base
    and the other side are right, each pair of requests once; right: rows that are right of both sides.
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
    _seen: set[tuple[str | None, str | None]] = field(default_factory=set)

    def add(
        self, key: Key, base: SideAnswer, other: SideAnswer, right: tuple[bool, bool] | None, *, shares: bool
    ) -> bool:
        """Count a row, and return whether both answers agree; True, too, if one of both is no answer.

        right: whether both are right; None: the row has no gold. shares: whether one answered several rows at once.
        """
        if base.status not in _JUDGED or other.status not in _JUDGED:
            self.unanswered += 1
            return True
        first = not shares or (base.request, other.request) not in self._seen
        if shares:
            self._seen.add((base.request, other.request))
        self.pairs += 1
        self.requests += first
        if base.status != other.status:
            self.statuses[base.status, other.status] += 1
        for i, of in enumerate((base, other)):
            cost = self.cost_usd[i]
            self.cost_usd[i] = None if cost is None or of.cost_usd is None else cost + of.cost_usd
            self.tokens[i] += of.output_tokens
        agree = [
            column.add(key, a, b)
            for column, a, b in zip(self.columns.values(), values_of(base), values_of(other), strict=True)
        ]
        self.agree += all(agree)
        if right is not None:
            self.gold_rows += 1
            self.right = [self.right[0] + right[0], self.right[1] + right[1]]
            self.gold[right] += first
        return all(agree)


def values_of(answer: SideAnswer) -> Sequence[Any]:
    """Return the values of an answer; FAILED for each if it did not succeed."""
    return answer.values if answer.status == RowState.SUCCEEDED else [FAILED] * len(answer.values)
