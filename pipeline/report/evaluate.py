"""How does `evaluate` show how good answers are: as tables for people, and as JSON? Pure."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.escapes import inline
from pipeline.job import json_values
from pipeline.quality.compare_values import ANOTHER, Mark
from pipeline.quality.evaluate import ENOUGH, Evaluation
from pipeline.quality.figures import FEW_ROWS, ClassesFigures, ColumnFigures, Confusion, Share, Slice
from pipeline.quality.judged import Judged
from pipeline.quality.review_figures import ReviewFigures
from pipeline.quality.statistics import Estimate, Interval, Weighted
from pipeline.quality.tally import JUDGED
from pipeline.source import identity
from pipeline.states import RowState
from pipeline.text import count, counted, money

MOST_CLASSES = 20  # that a table shows
MOST_SLICES = 20
LONGEST_VALUE = 40  # characters of a value in a table
NOTHING = "-"


# -- for programs ------------------------------------------------------------------------------------------------------


def evaluation_facts(evaluation: Evaluation, judged: Judged | None) -> dict[str, Any]:
    """Return the figures as JSON. `accuracy` is None if the rows were chosen: then `chosen` has their figures."""
    found = evaluation.figures
    share = _share_facts(found.accuracy)
    weighted = None if evaluation.reviews is None else evaluation.reviews.weighted
    return {
        "job": evaluation.job,
        "gold_rows": evaluation.gold_rows,
        "answered": found.statuses.get(RowState.SUCCEEDED, 0),
        "failed": sum(found.statuses.get(status, 0) for status in JUDGED[1:]),
        "without_answer": {status: n for status, n in found.statuses.items() if status not in JUDGED},
        "not_asked": evaluation.without_answer,
        "accuracy": (share if weighted is None else share | _weighted_facts(weighted)) if evaluation.random else None,
        "chosen": _chosen_facts(evaluation),
        "cost_usd": found.cost_usd,
        "cost_per_right_usd": found.cost_per_right_usd,
        "columns": [_column_facts(column) for column in found.columns],
        "slices": {name: [_slice_facts(one) for one in slices] for name, slices in found.slices.items()},
        "minimum": None if judged is None else judged_facts(judged),
        **({} if evaluation.reviews is None else {"reviews": _review_facts(evaluation.reviews)}),
    }


def _weighted_facts(found: Weighted) -> dict[str, Any]:
    return {"value": found.share, "n_effective": found.n_effective, **_ends(found.interval)}


def _chosen_facts(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the accuracy of rows that do not stand for others; None if there are none."""
    if not evaluation.random:
        return _share_facts(evaluation.figures.accuracy)
    beside = None if evaluation.reviews is None else evaluation.reviews.chosen
    return None if beside is None else _share_facts(beside)


def _review_facts(found: ReviewFigures) -> dict[str, Any]:
    return {
        "strata": [{"stratum": one.name, "weight": one.weight, **_share_facts(one.accuracy)} for one in found.strata],
        "covered": found.covered,
        "undecided": found.undecided,
        "unsure": found.unsure,
        "changed_since": found.changed,
    }


def judged_facts(judged: Judged) -> dict[str, Any]:
    """Return the comparison with a minimum as JSON."""
    return {
        "min_accuracy": judged.minimum,
        "judge": judged.judge,
        "figure": judged.figure,
        "passed": judged.passed,
        "opens_at": judged.opens_at,
    }


def _share_facts(share: Share) -> dict[str, Any]:
    numbers = {"right": share.right, "rows": share.rows, "requests": share.requests, "value": share.value}
    return {**numbers, **_ends(share.interval)}


def _ends(interval: Interval | None) -> dict[str, float | None]:
    return {"low": interval and interval.low, "high": interval and interval.high}


def _estimate_facts(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else {"value": estimate.value, "se": estimate.se, **_ends(estimate.interval)}


def _slice_facts(one: Slice) -> dict[str, Any]:
    return {"value": one.value, "few": one.accuracy.rows < FEW_ROWS, **_share_facts(one.accuracy)}


def _column_facts(column: ColumnFigures) -> dict[str, Any]:
    classes = column.classes
    return {
        "name": column.name,
        "accuracy": _share_facts(column.accuracy),
        **column.verdicts,
        **({} if classes is None else _classes_facts(classes)),
        "values": [
            {"value": of.value, "precision": _share_facts(of.precision), "recall": _share_facts(of.recall)}
            for of in column.values
        ],
        "confusions": [
            {"gold": _plain(of.gold), "answer": _plain(of.answer), "rows": of.rows, "keys": _keys(of)}
            for of in column.confusions
        ],
    }


def _classes_facts(classes: ClassesFigures) -> dict[str, Any]:
    return {
        "classes": [
            {
                "class": of.value,
                "n": of.recall.rows,
                "precision": _share_facts(of.precision),
                "recall": _share_facts(of.recall),
                "f1": {"value": of.f1, **_ends(of.f1_interval)},
            }
            for of in classes.classes
        ],
        "matrix": {
            "gold": [of.value for of in classes.classes],
            "answers": [*(of.value for of in classes.classes), "(failed)"],
            "rows": classes.matrix,
            **({"another": classes.another} if classes.another else {}),
        },
        "macro_f1": _estimate_facts(classes.macro_f1),
        "weighted_f1": classes.weighted_f1,
        "kappa": _estimate_facts(classes.kappa),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Mark) else value


def _keys(confusion: Confusion) -> list[str]:
    return [identity.shown(json_values.dump(list(key))) for key in confusion.keys]


# -- for people --------------------------------------------------------------------------------------------------------


def evaluation_lines(evaluation: Evaluation, judged: Judged | None) -> Iterator[str]:
    """Yield the figures as lines and tables. Texts of the model and keys stand in them as they are, on one line."""
    found = evaluation.figures
    yield f"gold     {_rows_line(evaluation)}"
    yield from _accuracy_lines(evaluation)
    yield f"cost     {money(found.cost_usd)}{_per_right(found.cost_per_right_usd)}"
    weighted = None if evaluation.reviews is None else evaluation.reviews.weighted
    if weighted is not None:
        yield "the tables below count reviewed rows as they are, without weights"
    if judged is not None:
        yield f"minimum  {judged_words(judged, found.accuracy, weighted)}"
    if len(found.columns) > 1 or any(
        column.verdicts["missing"] + column.verdicts["invented"] for column in found.columns
    ):
        yield ""
        yield from _columns_table(found.columns)
    for column in found.columns:
        yield from _column_tables(column)
    for name, slices in found.slices.items():
        yield ""
        yield from _slices_table(name, slices)


def _accuracy_lines(evaluation: Evaluation) -> Iterator[str]:
    found, reviews = evaluation.figures.accuracy, evaluation.reviews
    if not evaluation.random:
        yield f"chosen   {_share_words(found)}; not a random sample, so this is not the accuracy of the job"
    elif reviews is None or reviews.weighted is None:
        yield f"accuracy {_share_words(found)}"
    else:
        share, rows, interval = reviews.weighted
        yield (
            f"accuracy {share:.1%} of all answers {_range(interval)}: {found.right:,} of {found.rows:,} reviewed rows "
            f"are right, weighed by strata; as good as {rows:,.0f} rows drawn at random"
        )
        if reviews.covered < ENOUGH:
            yield f"warning  the reviewed rows stand for {reviews.covered:.1%} of all answers only"
    if reviews is None:
        return
    if evaluation.random and reviews.chosen is not None:
        yield f"chosen   {_share_words(reviews.chosen)}; not drawn at random, so not part of the accuracy"
    left_out = [
        (reviews.unsure, "of which a person was not sure"),
        (reviews.changed, "whose source values have changed since"),
        (reviews.undecided, "with another answer here, of which it is not known whether it is right"),
    ]
    if any(n for n, _ in left_out):
        yield "left out " + ", ".join(f"{count(n, 'row')} {what}" for n, what in left_out if n)


def _per_right(usd: float | None) -> str:
    """Return `, $0.00012 per right answer`, with two digits that are not zero; empty for None and for nothing."""
    if not usd:
        return ""
    digits = max(2, 1 - math.floor(math.log10(usd)))
    return f", ${usd:,.{digits}f} per right answer"


def _rows_line(evaluation: Evaluation) -> str:
    """Return `200 rows: 193 succeeded, 7 truncated; without an answer: 2 expired, 3 not sent yet`."""
    statuses = evaluation.figures.statuses
    judged = {status: n for status, n in statuses.items() if status in JUDGED}
    without = {status: n for status, n in statuses.items() if status not in JUDGED}
    parts = [counted(without)] if without else []
    if evaluation.without_answer:
        parts.append(f"{evaluation.without_answer:,} not sent yet or not in the source")
    line = f"{count(evaluation.gold_rows, 'row')} with gold: {counted(judged)}"
    return line + (f"; without an answer: {', '.join(parts)}" if parts else "")


def judged_words(judged: Judged, share: Share, weighted: Weighted | None = None) -> str:
    """Return one sentence on the minimum: whether it is reached, by which number, and at how many right rows it is.

    weighted: what was judged instead of the share; None: the share was.
    """
    shown = {
        "bound": f"at least {judged.figure:.1%} is shown",
        "point": f"{judged.figure:.1%} are right",
        "alarm": f"up to {judged.figure:.1%} is possible",
    }[judged.judge]
    end = "reached" if judged.passed else "missed"
    rows = f"{share.requests:,}" + (" requests" if share.requests != share.rows else "")
    if weighted is not None:
        rows = f"{int(weighted.n_effective):,} effective rows"
    opens = (
        f"no number of {rows} would reach it" if judged.opens_at is None else f"{judged.opens_at:,} of {rows} reach it"
    )
    return f"{judged.minimum:.1%} is {end}: {shown} ({judged.judge}); {opens}"


def _share_words(share: Share) -> str:
    requests = f"; {share.requests:,} requests count in the interval" if share.requests != share.rows else ""
    return f"{share.right:,} of {share.rows:,} right: {_percent(share.value)} {_range(share.interval)}{requests}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"({interval.low:.1%} to {interval.high:.1%})"


def _with_range(share: Share) -> str:
    return NOTHING if share.value is None else f"{_percent(share.value)} {_range(share.interval)}"


def shown(value: Any) -> str:
    """Return a value for a cell of a table: on one line, without anything that a terminal would act on, and short."""
    if value is None:
        return "(null)"
    text = inline(str(value))
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _columns_table(columns: Sequence[ColumnFigures]) -> Iterator[str]:
    rows = [
        [shown(of.name), *(f"{n:,}" for n in (of.accuracy.rows, *of.verdicts.values())), _with_range(of.accuracy)]
        for of in columns
    ]
    names = list(columns[0].verdicts)
    yield from table(["COLUMN", "ROWS", *(name.upper() for name in names), "ACCURACY"], rows, right=range(1, 6))


def _column_tables(column: ColumnFigures) -> Iterator[str]:
    name = shown(column.name)
    if column.classes is not None:
        yield ""
        yield from _classes_table(name, column.classes)
        yield ""
        yield from _matrix_table(name, column.classes)
    if column.values:
        rows = [
            [shown(of.value), f"{of.recall.rows:,}", _with_range(of.precision), _with_range(of.recall)]
            for of in column.values[:MOST_CLASSES]
        ]
        yield ""
        yield from table([f"{name}: VALUE", "GOLD", "PRECISION", "RECALL"], rows, right=range(1, 2))
    if column.confusions:
        rows = [
            [shown(of.gold), shown(of.answer), f"{of.rows:,}", ", ".join(map(inline, _keys(of)))]
            for of in column.confusions
        ]
        yield ""
        yield from table([f"{name}: GOLD", "ANSWER", "ROWS", "EXAMPLES"], rows, right=range(2, 3))


def largest_classes(classes: ClassesFigures) -> list[int]:
    """Return the places of the classes that a table shows: those with the most rows, in their own order."""
    rows = [of.recall.rows + of.precision.rows for of in classes.classes]
    most = sorted(range(len(rows)), key=lambda i: -rows[i])[:MOST_CLASSES]
    return sorted(most)


class SummedMatrix(NamedTuple):
    """A confusion matrix in which the classes beyond the largest are one, called "(rest)".

    names: of its classes. places: for each of its columns, the columns of the whole matrix that it sums up; the last
    one holds the answers that failed. cells: rows by gold and by answer.
    """

    names: list[str]
    places: list[list[int]]
    cells: list[list[int]]


def summed_matrix(classes: ClassesFigures, written: Callable[[Any], str]) -> SummedMatrix:
    """Return the confusion matrix with as many classes as a table shows. written: how a value is written."""
    largest = largest_classes(classes)
    rest = [i for i in range(len(classes.classes)) if i not in largest]
    lines = [*([i] for i in largest), *([rest] if rest else [])]
    places = [*lines, [len(classes.classes)]]
    names = [*(written(classes.classes[i].value) for i in largest), *(["(rest)"] if rest else [])]
    cells = [[sum(classes.matrix[i][j] for i in line for j in column) for column in places] for line in lines]
    return SummedMatrix(names, places, cells)


def _classes_table(name: str, classes: ClassesFigures) -> Iterator[str]:
    rows = []
    for i in largest_classes(classes):
        of = classes.classes[i]
        f1 = NOTHING if of.f1 is None else f"{of.f1:.3f} " + _decimals(of.f1_interval)
        rows.append([shown(of.value), f"{of.recall.rows:,}", _with_range(of.precision), _with_range(of.recall), f1])
    yield from table([f"{name}: CLASS", "GOLD", "PRECISION", "RECALL", "F1"], rows, right=range(1, 2))
    left = len(classes.classes) - len(rows)
    if left:
        yield f"and {left:,} more"


def _decimals(interval: Interval | None) -> str:
    return "" if interval is None else f"({interval.low:.3f} to {interval.high:.3f})"


def _matrix_table(name: str, classes: ClassesFigures) -> Iterator[str]:
    """Yield the confusion matrix. Classes beyond the largest ones are summed up in "(rest)"."""
    found = summed_matrix(classes, shown)
    lines = list(zip(found.names, found.cells, strict=True))
    if classes.another:
        lines.append((str(ANOTHER), [sum(classes.another[j] for j in column) for column in found.places]))
    rows = [[heading, *(f"{cell:,}" if cell else "." for cell in cells)] for heading, cells in lines]
    headings = [f"{name}: GOLD / ANSWER", *found.names, "(failed)"]
    yield from table(headings, rows, right=range(1, len(headings)))


def _slices_table(name: str, slices: Sequence[Slice]) -> Iterator[str]:
    rows = []
    for one in slices[:MOST_SLICES]:
        few = f"fewer than {FEW_ROWS} rows" if one.accuracy.rows < FEW_ROWS else ""
        rows.append([shown(one.value), f"{one.accuracy.rows:,}", _with_range(one.accuracy), few])
    yield from table([f"BY {shown(name)}", "ROWS", "ACCURACY", ""], rows, right=range(1, 2))
    if len(slices) > MOST_SLICES:
        yield f"and {len(slices) - MOST_SLICES:,} more"
    if any(one.accuracy.rows < FEW_ROWS for one in slices):
        yield "of many small slices, the worst looks bad by chance"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: range = range(0)) -> Iterator[str]:
    """Yield the lines of a table of plain text. right: the columns that are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for i, heading in enumerate(headings):
        drawn.add_column(Text(heading), justify="right" if i in right else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text, row))  # Text: no markup is read from it
    lines = io.StringIO()
    Console(file=lines, width=10_000, color_system=None, highlight=False, emoji=False).print(drawn)
    yield from (line.rstrip() for line in lines.getvalue().splitlines())
