"""What does a page show of a comparison with other sides? Pure."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from pipeline.quality.compare import Comparison, GoldComparison, SideComparison
from pipeline.quality.figures import Share
from pipeline.quality.pair_tally import ColumnPairs
from pipeline.quality.statistics import mean_difference
from pipeline.report.compare import left_out, verdict_words
from pipeline.report.page.shapes import Dot, dot, dot_around_zero
from pipeline.report.page.words import key_text, value_text
from pipeline.sink.profile import FEW_VALUES, LONGEST_VALUE
from pipeline.text import count, money

FLIPS = 10
KEYS = 2


@dataclass(frozen=True)
class FlipLine:
    """Rows whose value is another one on the other side. keys: of a few; empty if the page holds none."""

    base: str
    side: str
    rows: str
    keys: list[str]


@dataclass(frozen=True)
class ByGold:
    """Both sides by gold. difference: of the accuracies, on a scale from -most to most points."""

    base: Dot
    side: Dot
    right: tuple[str, str]
    difference: Dot
    most: str
    p: str
    only: tuple[str, str]


@dataclass(frozen=True)
class SideView:
    """One side that is compared with the base. figures: names, and the values of the base and of the side."""

    name: str
    verdict: str
    pairs: str
    agree: Dot
    agree_rows: str
    figures: list[tuple[str, str, str]]
    notes: list[str]
    gold: ByGold | None
    flips: list[tuple[str, list[FlipLine]]]


@dataclass(frozen=True)
class ComparisonView:
    """A comparison. several: whether more than one side was compared with the base."""

    base: str
    sides: list[SideView]
    several: bool


def comparison_view(found: Comparison, declared: Collection[str], *, texts: bool) -> ComparisonView:
    """Return what a page shows of a comparison. declared, texts: as for `quality.quality`."""
    sides = [_side(found, side, declared, texts=texts) for side in found.sides]
    return ComparisonView(found.base, sides, len(sides) > 1)


def _side(found: Comparison, side: SideComparison, declared: Collection[str], *, texts: bool) -> SideView:
    tally = side.tally
    costs = [None if cost is None else cost / tally.pairs * 1_000 for cost in tally.cost_usd]
    tokens = [n / tally.pairs for n in tally.tokens]
    figures = [
        ("cost of 1,000 rows", money(costs[0]), money(costs[1])),
        ("output tokens of a row", f"{tokens[0]:,.1f}", f"{tokens[1]:,.1f}"),
        ("all answers", f"{found.total_rows:,}", f"{side.total_rows:,}"),
        ("cost of all answers", money(found.total_usd), money(side.total_usd)),
    ]
    return SideView(
        name=side.name,
        verdict=verdict_words(side),
        pairs=f"{count(tally.pairs, 'pair')}{left_out(side)}",
        agree=dot(Share(tally.agree, tally.pairs, tally.requests)),
        agree_rows=f"{tally.agree:,} of {tally.pairs:,}",
        figures=figures,
        notes=[
            *_status_notes(tally.statuses),
            *(note for name, column in tally.columns.items() for note in _notes(name, column, tally.pairs)),
        ],
        gold=None if side.gold is None else _by_gold(side.gold),
        flips=[
            (name, _flips(column, keys=texts))
            for name, column in tally.columns.items()
            if column.flips and (name in declared or column.kind == "boolean" or (texts and _chooses(column)))
        ],
    )


def _notes(name: str, column: ColumnPairs, pairs: int) -> list[str]:
    difference = mean_difference(*column.numbers)
    if difference is not None:
        low, high = difference.interval
        return [f"{name} differs by {difference.value:,.4g} in the mean ({low:,.4g} to {high:,.4g})"]
    if name == "text" and any(column.lengths):
        before, after = (f"{n / pairs:,.0f}" for n in column.lengths)
        characters = f"characters of a row {before} \N{RIGHTWARDS ARROW} {after}"
        return [f"{column.agree:,} of {pairs:,} texts are equal; {characters}"]
    return []


def _flips(column: ColumnPairs, *, keys: bool) -> list[FlipLine]:
    most = sorted(column.flips.items(), key=lambda flip: (-flip[1], str(flip[0])))[:FLIPS]
    return [
        FlipLine(
            value_text(a),
            value_text(b),
            f"{n:,}",
            [key_text(key) for key in column.keys.get((a, b), ())[:KEYS]] if keys else [],
        )
        for (a, b), n in most
    ]


def _chooses(column: ColumnPairs) -> bool:
    """Return whether a column of texts holds one of a few short ones, so that its flips say something."""
    texts = [text for pair in column.flips for text in pair if isinstance(text, str)]
    is_short = all(len(text) <= LONGEST_VALUE for text in texts)
    return column.kind == "text" and is_short and 0 < len(set(texts)) <= FEW_VALUES


def _status_notes(statuses: Counter[tuple[str, str]]) -> list[str]:
    changes = [f"{a} \N{RIGHTWARDS ARROW} {b} {n:,}" for (a, b), n in statuses.most_common()]
    return [f"status: {', '.join(changes)}"] if changes else []


def _by_gold(gold: GoldComparison) -> ByGold:
    base, side = gold.accuracies
    most = max(0.05, *(abs(end) for end in gold.difference)) * 1.1
    value = (side.value or 0.0) - (base.value or 0.0)
    holm = f" ({gold.p_adjusted:.4f} for all sides)" if gold.p_adjusted != gold.p else ""
    return ByGold(
        base=dot(base),
        side=dot(side),
        right=(f"{base.right:,} of {base.rows:,}", f"{side.right:,} of {side.rows:,}"),
        difference=dot_around_zero(value, gold.difference, most),
        most=f"{100 * most:.0f}",
        p=f"{gold.p:.4f}{holm}",
        only=(f"{gold.only_base:,}", f"{gold.only_other:,}"),
    )
