"""How does `compare` show how sides differ: as lines and tables for people, and as JSON? Pure."""

from collections.abc import Iterator
from typing import Any

from pipeline.escapes import inline
from pipeline.job import json_values
from pipeline.quality.compare import Comparison, GoldComparison, SideComparison
from pipeline.quality.compare_values import FAILED
from pipeline.quality.pair_tally import ColumnPairs
from pipeline.quality.statistics import mean_difference, wilson
from pipeline.report.evaluate import shown, table
from pipeline.source import identity
from pipeline.text import count, money

FLIPS = 10
SHOWN_P = 0.05  # a p below it shows a difference


# -- for programs ----------------------------------------------------------------------------------------------------


def comparison_facts(found: Comparison, max_drop: float | None) -> dict[str, Any]:
    """Return a comparison as JSON. max_drop: the loss that is allowed; None for no limit."""
    return {
        "base": found.base,
        "rows": found.total_rows,
        "cost_usd": found.total_usd,
        "gold_chosen": found.chosen,
        "sides": [_side_facts(side, max_drop) for side in found.sides],
    }


def _side_facts(side: SideComparison, max_drop: float | None) -> dict[str, Any]:
    tally = side.tally
    return {
        "side": side.name,
        "rows": side.total_rows,
        "cost_usd": side.total_usd,
        "pairs": tally.pairs,
        "requests": tally.requests,
        "only_in_base": tally.alone,
        "unanswered": tally.unanswered,
        "changed_since": tally.changed if side.checked else None,
        "agree": _share(tally.agree, tally.pairs, tally.requests),
        "statuses": [{"base": a, "side": b, "rows": n} for (a, b), n in tally.statuses.most_common()],
        "cost_per_row_usd": [None if cost is None else cost / tally.pairs for cost in tally.cost_usd],
        "output_tokens_per_row": [tokens / tally.pairs for tokens in tally.tokens],
        "columns": {name: _column_facts(column, tally.pairs) for name, column in tally.columns.items()},
        "gold": None if side.gold is None else _gold_facts(side.gold),
        "verdict": verdict_words(side),
        "passed": None if max_drop is None or side.gold is None else passes(side.gold, max_drop),
    }


def _share(k: int, n: int, requests: int) -> dict[str, Any]:
    interval = wilson(k / n * requests, requests) if n else None
    return {
        "rows": k,
        "value": k / n if n else None,
        "low": interval and interval.low,
        "high": interval and interval.high,
    }


def _column_facts(column: ColumnPairs, pairs: int) -> dict[str, Any]:
    difference = mean_difference(*column.numbers)
    return {
        "agree": column.agree,
        "flips": [
            {"base": _plain(a), "side": _plain(b), "rows": n, "keys": _keys(column, (a, b))}
            for (a, b), n in column.flips.most_common(FLIPS)
        ],
        "mean_difference": difference
        and {"value": difference.value, "low": difference.interval[0], "high": difference.interval[1]},
        "mean_characters": [n / pairs for n in column.lengths] if any(column.lengths) else None,
    }


def _gold_facts(gold: GoldComparison) -> dict[str, Any]:
    base, side = gold.accuracies
    return {
        "pairs": gold.requests,
        "base": {"right": base.right, "rows": base.rows, "value": base.value},
        "side": {"right": side.right, "rows": side.rows, "value": side.value},
        "only_base_right": gold.only_base,
        "only_side_right": gold.only_other,
        "difference": {"low": gold.difference.low, "high": gold.difference.high},
        "p": gold.p,
        "p_holm": gold.p_adjusted,
        "largest_loss": gold.loss,
        "pairs_needed": gold.needed,
    }


def _plain(value: Any) -> Any:
    return "(failed)" if value is FAILED else value


def _keys(column: ColumnPairs, flip: tuple[Any, Any]) -> list[str]:
    return [identity.shown(json_values.dump(list(key))) for key in column.keys.get(flip, ())]


def passes(gold: GoldComparison, max_drop: float) -> bool:
    """Return whether a larger loss than this is excluded, with 95% confidence."""
    return gold.loss <= max_drop + 1e-12


# -- for people ------------------------------------------------------------------------------------------------------


def comparison_lines(found: Comparison, max_drop: float | None) -> Iterator[str]:
    """Yield a comparison as lines and tables. Texts of the model and keys stand in them as they are, on one line."""
    yield f"base     {inline(found.base)}: {count(found.total_rows, 'row')}, {money(found.total_usd)} in all"
    for side in found.sides:
        yield ""
        yield from _side_lines(side, max_drop)
    if found.chosen:
        yield ""
        yield "the rows with gold were chosen: figures by gold hold for these rows, and not for the others"
    if len(found.sides) > 1:
        yield ""
        yield "the best of several sides on the same rows usually looks 1 to 2 points too good"


def _side_lines(side: SideComparison, max_drop: float | None) -> Iterator[str]:
    tally = side.tally
    yield f"side     {inline(side.name)}: {count(side.total_rows, 'row')}, {money(side.total_usd)} in all"
    yield f"pairs    {tally.pairs:,}{left_out(side)}"
    interval = wilson(tally.agree / tally.pairs * tally.requests, tally.requests)
    ends = "" if interval is None else f" ({interval.low:.1%} to {interval.high:.1%})"
    yield f"agree    {tally.agree:,} of {tally.pairs:,}: {tally.agree / tally.pairs:.1%}{ends}"
    if tally.statuses:
        changes = ", ".join(f"{a} -> {b} {n:,}" for (a, b), n in tally.statuses.most_common())
        yield f"status   {changes}"
    costs = [None if cost is None else cost / tally.pairs * 1_000 for cost in tally.cost_usd]
    yield f"cost     per 1,000 rows {money(costs[0])} -> {money(costs[1])}"
    tokens = [n / tally.pairs for n in tally.tokens]
    yield f"tokens   of output per row {tokens[0]:,.1f} -> {tokens[1]:,.1f}"
    for name, column in tally.columns.items():
        yield from _column_lines(name, column, tally.pairs)
    if side.gold is not None:
        yield from _gold_lines(side.gold)
        if max_drop is not None:
            passed = "is excluded" if passes(side.gold, max_drop) else "is not excluded"
            yield f"max drop a loss of more than {max_drop:.1%} {passed}: up to {side.gold.loss:.1%} is possible"
    yield f"verdict  {verdict_words(side)}"
    yield from _flips_tables(side)


def left_out(side: SideComparison) -> str:
    """Return which rows are no pairs, as `; left out: 12 changed since`; empty if all are."""
    tally = side.tally
    parts = [
        (tally.changed, "changed since"),
        (tally.unanswered, "without an answer on one side"),
        (tally.alone, "only in the base"),
    ]
    named = [f"{n:,} {what}" for n, what in parts if n]
    named += [] if side.checked else ["not known which rows have changed since"]
    return f"; left out: {', '.join(named)}" if named else ""


def _column_lines(name: str, column: ColumnPairs, pairs: int) -> Iterator[str]:
    difference = mean_difference(*column.numbers)
    if difference is not None:
        low, high = difference.interval
        yield f"mean     {shown(name)} differs by {difference.value:,.4g} ({low:,.4g} to {high:,.4g})"
    if name == "text" and any(column.lengths):
        before, after = (n / pairs for n in column.lengths)
        yield f"text     {column.agree:,} of {pairs:,} equal; characters per row {before:,.0f} -> {after:,.0f}"


def _gold_lines(gold: GoldComparison) -> Iterator[str]:
    base, side = gold.accuracies
    low, high = gold.difference
    yield (
        f"right    {base.right:,} -> {side.right:,} of {base.rows:,} with gold: "
        f"{(side.value or 0.0) - (base.value or 0.0):+.1%} ({low:+.1%} to {high:+.1%})"
    )
    holm = f", {gold.p_adjusted:.4f} for all sides" if gold.p_adjusted != gold.p else ""
    yield f"only one is right: base {gold.only_base:,}, side {gold.only_other:,}; p = {gold.p:.4f}{holm}"


def is_better(side: SideComparison) -> bool:
    """Return whether a side is shown to be better than the base."""
    return side.gold is not None and side.gold.p_adjusted < SHOWN_P and side.gold.only_other > side.gold.only_base


def is_worse(side: SideComparison) -> bool:
    """Return whether a side is shown to be worse than the base."""
    return side.gold is not None and side.gold.p_adjusted < SHOWN_P and side.gold.only_other < side.gold.only_base


def verdict_words(side: SideComparison) -> str:
    """Return in one sentence whether a side is better than the base."""
    gold, name = side.gold, inline(side.name)
    if gold is None:
        return "without gold it is not known which side is better"
    if is_better(side) or is_worse(side):
        return f"{name} is {'better' if is_better(side) else 'worse'} than the base"
    needed = "" if gold.needed is None else f"; {gold.needed:,} pairs would show this difference"
    return f"no difference is shown; a loss of more than {gold.loss:.1%} is excluded{needed}"


def _flips_tables(side: SideComparison) -> Iterator[str]:
    for name, column in side.tally.columns.items():
        if column.flips and name != "text":
            rows = [
                [shown(_plain(a)), shown(_plain(b)), f"{n:,}", ", ".join(map(inline, _keys(column, (a, b))))]
                for (a, b), n in column.flips.most_common(FLIPS)
            ]
            yield ""
            yield from table([f"{shown(name)}: BASE", "SIDE", "ROWS", "EXAMPLES"], rows, right=range(2, 3))
