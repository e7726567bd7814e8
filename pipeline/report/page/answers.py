"""What does a page show of the answers: a bar for each label, numbers and lengths as histograms, nulls? Edge: SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

from pipeline.report.page.shapes import Bar, Histogram, bars, histogram, percent, scale
from pipeline.report.page.words import value_text
from pipeline.sink.profile import MOST_VALUES, Profile, Spread
from pipeline.text import count, short_number

MOST_COLUMNS = 12
FAR = 4.0  # standard deviations from the mean, beyond which a value does not stretch a histogram


@dataclass(frozen=True)
class ColumnAnswers:
    """The answers in one output column. figures: names and numbers; rest: what the bars leave out, in words."""

    name: str
    what: str
    bars: list[Bar]
    rest: str
    histogram: Histogram | None
    figures: list[tuple[str, str]]


@dataclass(frozen=True)
class Answers:
    """The answers by column. more: columns that are not shown."""

    columns: list[ColumnAnswers]
    more: int


def answers(
    profile: Profile, kinds: Mapping[str, str], declared: Mapping[str, Sequence[str]], *, texts: bool
) -> Answers:
    """Return the answers in these output columns.

    kinds: of the columns; declared: the only values that some of them can have. texts: whether the page may show texts
    of answers; without them, a column of texts that are not declared shows their lengths alone.
    """
    shown = dict(list(kinds.items())[:MOST_COLUMNS])
    spreads = profile.spreads(shown)
    columns = []
    for name, kind in shown.items():
        spread = spreads[name]
        is_few = name in declared or kind == "boolean"
        if not is_few and kind == "text" and texts and name != "text":
            is_few = profile.has_few_values(name)
        view = ColumnAnswers(name, "", [], "", None, _nulls(spread))
        columns.append(
            _values(profile, view, spread, declared.get(name)) if is_few else _sizes(profile, view, kind, spread)
        )
    return Answers(columns, len(kinds) - len(shown))


def _nulls(spread: Spread) -> list[tuple[str, str]]:
    total = spread.rows + spread.nulls
    return [("null", f"{spread.nulls:,} ({percent(spread.nulls / total)})")] if spread.nulls else []


def _values(profile: Profile, view: ColumnAnswers, spread: Spread, declared: Sequence[str] | None) -> ColumnAnswers:
    """Add a bar for each value: the declared ones, also those that no answer has, else the most frequent ones."""
    found = profile.values(view.name)
    seen = {value for value, _ in found}
    missing = [(value, 0) for value in declared or () if value not in seen]
    shown = [*found, *missing][:MOST_VALUES]
    drawn = bars([(value_text(value), rows) for value, rows in shown], spread.rows)
    rest = spread.rows - sum(rows for _, rows in found)
    return replace(view, what="values", bars=drawn, rest=f"{count(rest, 'row')} with other values" if rest else "")


def _sizes(profile: Profile, view: ColumnAnswers, kind: str, spread: Spread) -> ColumnAnswers:
    """Add a histogram of the numbers, or of the lengths of the texts, and their figures."""
    filled = ("values", f"{spread.rows:,}")
    if spread.mean is None or spread.deviation is None:
        between = [
            (name, _time(end)) for name, end in (("first", spread.low), ("last", spread.high)) if end is not None
        ]
        return replace(view, what={"json": "lists or objects"}.get(kind, ""), figures=[filled, *view.figures, *between])
    whole = kind != "number"
    low = max(float(spread.low), spread.mean - FAR * spread.deviation)
    high = min(float(spread.high), spread.mean + FAR * spread.deviation)
    on = scale(low, high, whole=whole)
    counts = profile.histogram(view.name, kind, on.low, on.width, on.bins)
    figures = [
        filled,
        *view.figures,
        ("least", _number(spread.low)),
        ("mean", _number(spread.mean)),
        ("most", _number(spread.high)),
    ]
    what = "characters" if kind == "text" else "numbers"
    if float(spread.high) >= on.end:
        what += f"; the last bar holds all from {short_number(on.end - on.width)} on"
    if float(spread.low) < on.low:
        what += f"; the first bar holds all below {short_number(on.low + on.width)}"
    return replace(view, what=what, histogram=histogram(on, counts), figures=figures)


def _number(value: float) -> str:
    """Return a number with as many digits as say something."""
    if isinstance(value, int) or abs(value) >= 100_000:
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.1f}".removesuffix(".0")


def _time(value: date | datetime) -> str:
    return value.isoformat().replace("T", " ")[:16]
