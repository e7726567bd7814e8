"""How good are the answers of a side, by the reviews of a job's answers? Edge: SQL.

Only rows that were drawn at random stand for the others. Those of a sample by strata are weighed by the share that each
stratum has of all answers. Rows that were chosen are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.quality.compare_values import FAILED, UNKNOWN
from pipeline.quality.figures import Figures, Share, Slice, figures
from pipeline.quality.review_gold import ReviewedGold
from pipeline.quality.statistics import Weighted, weighted_share
from pipeline.quality.tally import JUDGED, Tally
from pipeline.sink.pairs import Layout, Pairs
from pipeline.states import RowState

_STRATUM = "\0stratum"  # the name of the slices by stratum; no column has it


@dataclass(frozen=True)
class Stratum:
    """A stratum of the sample. weight: its share of all answers. accuracy: of its reviewed rows."""

    name: str
    weight: float
    accuracy: Share


@dataclass(frozen=True)
class ReviewFigures:
    """How good answers are by reviews.

    figures: of the rows of the sample, or, if `is_random` is False, of the chosen ones. weighted: the accuracy of all
    answers by a sample with strata; None for other samples. covered: the share of all answers in the strata that have
    reviewed rows. chosen: the accuracy of rows outside of the sample; None if there are none. undecided: rows of which
    the reviews do not tell whether this answer is right; unsure, changed: see ReviewedGold.
    """

    figures: Figures
    is_random: bool
    weighted: Weighted | None
    covered: float
    strata: list[Stratum]
    chosen: Share | None
    undecided: int
    unsure: int
    changed: int


def review_figures(pairs: Pairs, gold: ReviewedGold, *, where: str | None, by: Sequence[str]) -> ReviewFigures | None:
    """Return the figures of the answers that have gold; None if there are none.

    pairs: the answers with the stored gold. where: as `pairs` has it; a predicate changes what strata weigh.
    """
    counter = _Counter(pairs.layout, gold, pairs.shared_requests(JUDGED), by)
    for page in pairs.pages():
        counter.add(page)
    drawn, chosen = counter.drawn, counter.chosen
    strata = _strata(drawn, gold)
    # rows that are left out because of their answer are no longer left out at random, nor are strata cut by a predicate
    is_random = bool(drawn.rows) and not counter.undecided and not (where and strata)
    if not drawn.rows and not chosen.rows:
        return None
    shown = drawn if is_random or not chosen.rows else chosen
    beside = chosen if shown is drawn else drawn
    return ReviewFigures(
        figures=_without_strata(figures(shown)),
        is_random=is_random,
        weighted=_weighted(strata) if is_random and strata else None,
        covered=sum(one.weight for one in strata) if strata else 1.0,
        strata=strata,
        chosen=Share(beside.right, beside.rows, beside.requests) if beside.rows else None,
        undecided=counter.undecided,
        unsure=gold.unsure,
        changed=gold.changed,
    )


class _Counter:
    """Counts rows of the sample and chosen ones apart. undecided: of the sample."""

    def __init__(self, layout: Layout, gold: ReviewedGold, shared: frozenset[str], by: Sequence[str]) -> None:
        self._gold, self._layout = gold, layout
        after = layout.by.stop  # the stratum becomes the last of the columns by which rows are counted apart
        wider = layout._replace(
            by=slice(layout.by.start, after + 1),
            answers=slice(layout.answers.start + 1, layout.answers.stop + 1),
            gold=slice(layout.gold.start + 1, layout.gold.stop + 1),
        )
        self.drawn, self.chosen = (
            Tally(gold.columns, wider, empty_is_null=True, shared=shared, by=[*by, _STRATUM]) for _ in range(2)
        )
        self.undecided = 0

    def add(self, page: Sequence[Sequence[Any]]) -> None:
        """Count the rows of a page."""
        drawn, chosen = list[Sequence[Any]](), list[Sequence[Any]]()
        for row in page:
            key = tuple(row[self._layout.key])
            if key not in self._gold.rows:  # another process has stored newer gold meanwhile
                continue
            is_drawn = self._gold.is_drawn(key)
            resolved = self._resolved(key, row)
            if resolved is not None:
                (drawn if is_drawn else chosen).append(resolved)
            elif is_drawn:
                self.undecided += 1
        for tally, rows in ((self.drawn, drawn), (self.chosen, chosen)):
            if rows:
                tally.add(rows)

    def _resolved(self, key: tuple[Any, ...], row: Sequence[Any]) -> Sequence[Any] | None:
        """Return a row with its stratum, and with the gold for its answer; None if nothing is known of the answer."""
        at = self._layout
        answers = row[at.answers]
        judged = row[at.status] in JUDGED
        failed = row[at.status] != RowState.SUCCEEDED
        gold = self._gold.resolved(key, [FAILED] * len(answers) if failed else answers)
        if judged and all(value is UNKNOWN for value in gold):
            return None
        after = at.by.stop
        return (*row[:after], self._gold.rows[key].draw.drawn, *row[after : at.answers.stop], *gold)


def _strata(tally: Tally, gold: ReviewedGold) -> list[Stratum]:
    """Return the strata of a sample by strata; [] for any other sample."""
    if not gold.weights:
        return []
    return [
        Stratum(name, gold.weights[name], Share(right, rows, requests))
        for name, (rows, right, requests) in sorted(tally.slices[_STRATUM].items())
    ]


def _weighted(strata: Sequence[Stratum]) -> Weighted:
    total = sum(one.weight for one in strata)
    requests = [one.accuracy.requests for one in strata]
    right = [(one.accuracy.value or 0.0) * one.accuracy.requests for one in strata]
    return weighted_share([one.weight / total for one in strata], right, requests)


def _without_strata(found: Figures) -> Figures:
    slices: dict[str, list[Slice]] = {name: one for name, one in found.slices.items() if name != _STRATUM}
    return Figures(found.accuracy, found.statuses, found.cost_usd, found.columns, slices)
