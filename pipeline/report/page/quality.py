"""What does a page show of the accuracy: by class, as a table of confusions, and the largest of them? Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.quality.evaluate import Evaluation
from pipeline.quality.figures import ClassesFigures, ColumnFigures, Confusion
from pipeline.quality.tally import JUDGED
from pipeline.report.evaluate import largest_classes, summed_matrix
from pipeline.report.page.shapes import NOTHING, Cell, Dot, Heat, dot
from pipeline.report.page.words import key_text, value_text
from pipeline.text import counted


@dataclass(frozen=True)
class ClassLine:
    """One class. n: rows with it in gold."""

    name: str
    n: str
    recall: Dot
    precision: Dot
    f1: str


@dataclass(frozen=True)
class ConfusionLine:
    """Rows with this gold and this other answer. keys: of a few; empty if the page holds none."""

    gold: str
    answer: str
    rows: str
    keys: list[str]


@dataclass(frozen=True)
class ColumnQuality:
    """The accuracy in one output column. verdicts: names and numbers; more: classes that are not shown."""

    name: str
    accuracy: Dot
    right: str
    verdicts: list[tuple[str, str]]
    classes: list[ClassLine]
    more: int
    heat: Heat | None
    confusions: list[ConfusionLine]


@dataclass(frozen=True)
class Quality:
    """The accuracy of a job.

    random: whether the rows with gold are a random sample. without: rows with gold that have no answer, in words; empty
    if there are none. requests: how many of them count in the intervals; empty if all do.
    """

    columns: list[ColumnQuality]
    random: bool
    without: str
    requests: str


def quality(evaluation: Evaluation, declared: Collection[str], *, texts: bool) -> Quality:
    """Return what a page shows. declared: the columns with declared values; texts: whether it may show keys and texts.

    Without texts, the values of other columns than those of `declared` are left out.
    """
    found = evaluation.figures
    judged = {status: n for status, n in found.statuses.items() if status not in JUDGED}
    parts = [counted(judged)] if judged else []
    if evaluation.without_answer:
        parts.append(f"{evaluation.without_answer:,} not sent yet or not in the source")
    share = found.accuracy
    requests = f"{share.requests:,} requests count in the intervals" if share.requests != share.rows else ""
    columns = [_column(column, values=texts or column.name in declared, keys=texts) for column in found.columns]
    return Quality(columns, evaluation.random, ", ".join(parts), requests)


def _column(column: ColumnFigures, *, values: bool, keys: bool) -> ColumnQuality:
    classes = column.classes if values else None
    shown = [] if classes is None else largest_classes(classes)
    lines = [] if classes is None else [_class_line(classes, i) for i in shown]
    verdicts = [(kind, f"{n:,}") for kind, n in column.verdicts.items() if n or kind in ("right", "wrong")]
    return ColumnQuality(
        name=column.name,
        accuracy=dot(column.accuracy),
        right=f"{column.accuracy.right:,} of {column.accuracy.rows:,}",
        verdicts=verdicts,
        classes=lines,
        more=0 if classes is None else len(classes.classes) - len(lines),
        heat=None if classes is None else _heat(classes),
        confusions=[_confusion(one, keys=keys) for one in column.confusions] if values else [],
    )


def _class_line(classes: ClassesFigures, i: int) -> ClassLine:
    of = classes.classes[i]
    f1 = NOTHING if of.f1 is None else f"{of.f1:.2f}"
    return ClassLine(value_text(of.value), f"{of.recall.rows:,}", dot(of.recall), dot(of.precision), f1)


def _heat(classes: ClassesFigures) -> Heat:
    """Return the confusion table: gold by rows, and recall at the end of each. Other classes are summed up."""
    found = summed_matrix(classes, value_text)
    rows = []
    for name, of_row, cells in zip(found.names, found.places[:-1], found.cells, strict=True):
        total = sum(cells) or 1
        is_one = len(of_row) == 1  # in the rest, one class may be taken for another
        right = dot(classes.classes[of_row[0]].recall) if is_one else Dot(NOTHING, "", None)
        drawn = [
            Cell(f"{n:,}" if n else "", n / total, is_one and of_row == column)
            for n, column in zip(cells, found.places, strict=True)
        ]
        rows.append((name, drawn, right))
    return Heat([*found.names, "(failed)"], rows)


def _confusion(one: Confusion, *, keys: bool) -> ConfusionLine:
    named = [key_text(key) for key in one.keys] if keys else []
    return ConfusionLine(value_text(one.gold), value_text(one.answer), f"{one.rows:,}", named)
