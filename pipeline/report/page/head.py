"""What does a page say first: the verdict, the next command, four figures, and how the rows stand? Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.quality.evaluate import ENOUGH, Evaluation
from pipeline.quality.judged import Judged, judged_share
from pipeline.report.evaluate import judged_words
from pipeline.report.money import stopped_line
from pipeline.report.page.shapes import Dot, dot, dot_of, percent
from pipeline.state.runs import RunRecord
from pipeline.states import OUTCOMES, BatchState, RowState, RunState, failed_rows
from pipeline.text import count, money


@dataclass(frozen=True)
class Verdict:
    """The first sentence of a page. tone: good, bad or open; command: what to do next."""

    tone: str
    headline: str
    details: list[str]
    command: str


@dataclass(frozen=True)
class Tile:
    """One of the four figures. dot: of the accuracy, with the least one that is asked for, if one is."""

    name: str
    figure: str
    notes: list[str]
    tone: str = ""
    dot: Dot | None = None
    least: float | None = None


@dataclass(frozen=True)
class Segment:
    """A part of the stacked bar of statuses. state: of the rows, a class of the style sheet."""

    state: str
    name: str
    number: str
    share: str
    width: float


@dataclass(frozen=True)
class Standing:
    """How the rows of a job, or of one run, stand.

    run: that the page is about, or the job's last one; None before the first. rows: by state. expected: the cost before
    sending, see estimate.Money; None if it is not known. unpriced: answers whose cost is not known.
    """

    run: RunRecord | None
    is_open: bool
    rows: Mapping[str, int]
    cost_usd: float
    expected: Mapping[str, float | None] | None
    unpriced: int

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self.rows.values())

    @property
    def answered(self) -> int:
        """Rows that succeeded."""
        return self.rows.get(RowState.SUCCEEDED, 0)

    @property
    def failed(self) -> int:
        """Rows with another outcome."""
        return failed_rows(self.rows)


def least_accuracy(job: Job, evaluation: Evaluation | None) -> Judged | None:
    """Return whether the accuracy reaches that of the job's canary; None if none is asked for, or none is known."""
    canary = job.canary
    if not isinstance(canary, Canary) or canary.min_accuracy is None or evaluation is None or not evaluation.random:
        return None
    return judged_share(evaluation.figures.accuracy, canary.min_accuracy, canary.judge)


def verdict(
    standing: Standing, evaluation: Evaluation | None, judged: Judged | None, budget: Any, command: str
) -> Verdict:
    """Return the verdict. budget: of the run, see money.budget_facts; command: the next one."""
    details = []
    run = standing.run
    stopped = None if run is None else stopped_line(run.reason, budget, retry=run.retry is not None)
    if stopped is not None and not standing.is_open:
        details.append(stopped[:1].upper() + stopped[1:] + ".")
    if evaluation is not None:
        details.append(_accuracy_words(evaluation))
    if judged is not None and evaluation is not None:
        words = judged_words(judged, evaluation.figures.accuracy)
        details.append(f"The minimum of the canary: {words}.")
    missed = judged is not None and not judged.passed
    tone = "open" if standing.is_open else "bad" if standing.failed or stopped or missed else "good"
    return Verdict(tone, _headline(standing), details, command)


def shown_words(words: list[str], *, texts: bool) -> list[str]:
    """Return the words of the next command as a page may show them.

    texts: whether it may show keys and texts. The command that goes on with a retry may quote some: without texts,
    `status` stands in its place, which names that command.
    """
    return words if texts or not {"--key", "--where"} & set(words) else ["status", words[1]]


def _headline(standing: Standing) -> str:
    total, answered, failed = standing.total, standing.answered, standing.failed
    rows = count(total, "row")
    if not total:
        return "Nothing was to be sent" if standing.run is not None and not standing.is_open else "No row was sent yet"
    if standing.is_open:
        return f"So far {answered:,} of {rows} {'is' if answered == 1 else 'are'} answered" + _failed(failed)
    if standing.run is not None and standing.run.state == RunState.INCOMPLETE:
        return f"Stopped early: {answered:,} of {rows} {'is' if answered == 1 else 'are'} answered" + _failed(failed)
    if answered == total:
        return "The row is answered" if total == 1 else f"All {rows} are answered"
    return f"{answered:,} of {rows} {'is' if answered == 1 else 'are'} answered" + _failed(failed)


def _failed(rows: int) -> str:
    return f", {rows:,} failed" if rows else ""


def _accuracy_dot(evaluation: Evaluation) -> Dot:
    """Return the accuracy: of a sample with strata that of all answers, by the shares of the strata."""
    weighted = None if evaluation.reviews is None else evaluation.reviews.weighted
    return dot(evaluation.figures.accuracy) if weighted is None else dot_of(weighted.share, weighted.interval)


def _accuracy_words(evaluation: Evaluation) -> str:
    share, found = evaluation.figures.accuracy, _accuracy_dot(evaluation)
    rows = f"{share.right:,} of {share.rows:,} answers to rows with gold are right"
    if not evaluation.random:
        return f"{rows}: {found.text} ({found.range}). These rows were chosen, so this is not the accuracy of the job."
    reviews = evaluation.reviews
    if reviews is None or reviews.weighted is None:
        return f"{rows}: {found.text} ({found.range})."
    of = "" if reviews.covered >= ENOUGH else f"{percent(reviews.covered)} of "
    return f"{rows}; weighed by strata, of {of}all answers {found.text} ({found.range})."


def tiles(standing: Standing, evaluation: Evaluation | None, judged: Judged | None, *, has_gold: bool) -> list[Tile]:
    """Return the four figures: answered, failed, cost, accuracy. has_gold: whether the job declares gold."""
    total, so_far = standing.total, ["so far"] if standing.is_open else []
    unpriced = [f"without {count(standing.unpriced, 'answer')} of unknown price"] if standing.unpriced else []
    share = None if not total else standing.answered / total
    failed = None if not total else standing.failed / total
    return [
        Tile("Answered", f"{standing.answered:,}", [f"{percent(share)} of {count(total, 'row')}", *so_far]),
        Tile("Failed", f"{standing.failed:,}", [f"{percent(failed)} of {count(total, 'row')}", *so_far],
             tone="bad" if standing.failed else ""),
        Tile("Cost", money(standing.cost_usd), [*unpriced, *_expected(standing.expected), *so_far]),
        _accuracy_tile(evaluation, judged, has_gold=has_gold),
    ]  # fmt: skip


def _expected(expected: Mapping[str, float | None] | None) -> list[str]:
    if expected is None or expected["low"] is None:
        return ["no estimate was made"]
    between = f"{money(expected['low'])} to {money(expected['worst'])}"
    if expected["expected"] is None:
        return [f"estimated {between}"]
    return [f"expected {money(expected['expected'])}", f"possible {between}"]


def _accuracy_tile(evaluation: Evaluation | None, judged: Judged | None, *, has_gold: bool) -> Tile:
    if evaluation is None:
        note = "no row with gold has an answer, or none was read: run evaluate" if has_gold else "the job has no gold"
        return Tile("Accuracy", "\N{EN DASH}", [note])
    found = _accuracy_dot(evaluation)
    name = "Accuracy" if evaluation.random else "Right of chosen rows"
    notes = [found.range, f"{evaluation.figures.accuracy.rows:,} rows with gold"]
    tone = "" if judged is None else "good" if judged.passed else "bad"
    return Tile(name, found.text, notes, tone, found, None if judged is None else judged.minimum)


def segments(rows: Mapping[str, int]) -> list[Segment]:
    """Return the parts of the stacked bar of statuses, in the order of the statuses."""
    order = [*OUTCOMES, RowState.IN_FLIGHT, BatchState.PLANNED, RowState.PENDING]
    total = sum(rows.values())
    return [
        Segment(
            state=state.value.replace("_", "-"),
            name=state.value.replace("_", " "),
            number=f"{rows[state.value]:,}",
            share=percent(rows[state.value] / total),
            width=rows[state.value] / total,
        )
        for state in order
        if rows.get(state.value)
    ]
