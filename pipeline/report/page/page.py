"""Gather what the page of a job shows, and make it. Edge: SQL, files.

Nothing in it depends on the time, so the same database gives the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

from pipeline.answer.outcome import output_columns
from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.quality.compare import EXTRAS, compare
from pipeline.quality.evaluate import Evaluation, stored_evaluation, stored_gold
from pipeline.quality.gold_columns import declared_values
from pipeline.report.errors import error_facts
from pipeline.report.money import budget_facts
from pipeline.report.next_command import next_command
from pipeline.report.page.answers import answers
from pipeline.report.page.failures import Failures, failures
from pipeline.report.page.head import Standing, least_accuracy, segments, shown_words, tiles, verdict
from pipeline.report.page.quality import quality
from pipeline.report.page.render import render
from pipeline.report.page.samples import Samples, sample_groups, samples
from pipeline.report.page.sides import comparison_view
from pipeline.report.page.words import minute
from pipeline.report.page.work import batches_of, money_of, tokens_of
from pipeline.report.status import is_open, status_facts
from pipeline.sink.profile import Group, Profile
from pipeline.sink.table import ResultsTable
from pipeline.state.batch_facts import batch_times
from pipeline.state.database import Connection, Database
from pipeline.state.jobs import JobRecord
from pipeline.state.runs import RunRecord, run_cost, run_rows, runs_of_job
from pipeline.states import RunState

MOST_BYTES = 1_000_000
#: Characters of each text in a sample that are tried in turn, until the page is smaller than MOST_BYTES.
LENGTHS = (2_000, 1_000, 500, 200, 80, 0)


@dataclass(frozen=True)
class Wanted:
    """What a page shows.

    run_id: only this run; None: the whole job. sides: that are compared, the base first; () for no comparison. rows:
    samples for each status and label. texts: whether it holds keys and texts of rows and answers.
    """

    run_id: int | None = None
    sides: Sequence[str] = ()
    rows: int = 5
    texts: bool = True


def report_page(
    database: Database, job_record: JobRecord, job: Job, wanted: Wanted, command: Callable[..., str]
) -> str:
    """Return the page of a job as HTML, smaller than MOST_BYTES.

    job: as its file declares it now, or as its last run stored it. command: makes a line for the shell of the words of
    a command. Raises InputError for a run that the job does not have, and for sides that cannot be compared.
    """
    facts = _Facts(database, job_record, job, wanted, command)
    page = facts.page()
    shown = facts.samples()
    page["sample_problem"] = "" if shown is None else shown.problem
    for longest in LENGTHS:
        html = render({**page, "samples": None if shown is None else sample_groups(shown, longest)})
        if len(html.encode()) < MOST_BYTES:
            return html
    return render({**page, "samples": None})


class _Facts:
    """Reads what a page shows."""

    def __init__(
        self, database: Database, job_record: JobRecord, job: Job, wanted: Wanted, command: Callable[..., str]
    ) -> None:
        self._database, self._record, self._job, self._wanted = database, job_record, job, wanted
        self._command = command
        self._sink = ResultsTable.of(job_record)
        self._profile = Profile(database, self._sink, wanted.run_id)
        self._groups = self._profile.groups()
        with database.read() as conn:
            runs = runs_of_job(conn, job_record.id)
            self._runs = [(run, run_cost(conn, run.id)) for run in runs if wanted.run_id in (None, run.id)]
        if wanted.run_id is not None and not self._runs:
            known = ", ".join(str(run.id) for run in runs[-10:]) or "none"
            raise InputError(f"job {job_record.name} has no run {wanted.run_id} (its runs: {known})")
        self._run = self._runs[-1][0] if self._runs else None
        has = self._sink.columns.output
        named = [name for name in output_columns(job) if name in has and name not in EXTRAS]
        self._kinds = {name: has[name] for name in named} or {"text": "text"}
        self._declared = {name: v for name, v in declared_values(job).items() if name in self._kinds}

    def page(self) -> dict[str, Any]:
        """Return all facts but the samples."""
        wanted, groups = self._wanted, self._groups
        found = None if not wanted.sides else compare(self._database, self._record, self._job, wanted.sides)
        evaluation = self._evaluation()
        judged = least_accuracy(self._job, evaluation)
        with self._database.read() as conn:
            standing, next_words = self._standing(conn)
            budget = None if self._run is None else budget_facts(conn, self._run)
            times = batch_times(conn, self._record.id, wanted.run_id)
            failed = self._failures(conn, standing)
        return {
            "title": self._title(),
            "meta": self._meta(groups),
            "verdict": verdict(standing, evaluation, judged, budget, self._command(*next_words)),
            "tiles": tiles(standing, evaluation, judged, has_gold=self._job.gold is not None),
            "segments": segments(standing.rows),
            "failures": failed,
            "quality": None if evaluation is None else quality(evaluation, self._declared, texts=wanted.texts),
            "least": None if judged is None else judged.minimum,
            "comparison": None if found is None else comparison_view(found, self._declared, texts=wanted.texts),
            "answers": answers(self._profile, self._kinds, self._declared, texts=wanted.texts) if groups else None,
            "money": money_of(self._runs, groups, cached_for_an_hour=self._job.request.cache == "1h"),
            "tokens": tokens_of(self._profile, groups, None if self._run is None else self._run.max_tokens),
            "batches": batches_of(times, groups),
            "is_open": standing.is_open,
            "has_texts": wanted.texts,
            "version": metadata.version("batch-pipeline"),
        }

    def samples(self) -> Samples | None:
        """Return the samples; None if the page shows none."""
        if not self._wanted.texts or not self._wanted.rows:
            return None
        booleans = [name for name, kind in self._kinds.items() if kind == "boolean"]
        column = next(iter([*self._declared, *booleans]), None)
        gold = stored_gold(self._database, self._record, self._job)
        return samples(self._database, self._profile, self._job, self._groups, column, gold, self._wanted.rows)

    def _evaluation(self) -> Evaluation | None:
        where = None if self._wanted.run_id is None else f"run_id = {self._wanted.run_id:d}"
        return stored_evaluation(self._database, self._record, self._job, where=where)

    def _standing(self, conn: Connection) -> tuple[Standing, list[str]]:
        """Return how the rows stand, and the words of the next command."""
        status = status_facts(conn, self._record, self._record.created_at)
        run, one = self._run, self._wanted.run_id is not None
        opened = bool(status["open_runs"]) or is_open(status["batches"])
        rows: Mapping[str, int] = status["rows"]
        cost = float(status["cost_usd"])
        if one and run is not None:
            opened, rows, cost = run.state == RunState.OPEN, run_rows(conn, run), self._runs[0][1]
        unpriced = sum(group.rows - group.priced for group in self._groups if group.model is not None)
        standing = Standing(run, opened, rows, cost, _expected(self._runs), unpriced)
        return standing, shown_words(next_command(status, self._record.name), texts=self._wanted.texts)

    def _failures(self, conn: Connection, standing: Standing) -> Failures | None:
        if not standing.failed:
            return None
        causes = error_facts(conn, self._record, self._sink, self._record.name, self._wanted.run_id)
        return failures(causes, standing.failed, self._command, texts=self._wanted.texts)

    def _title(self) -> str:
        return self._record.name if self._wanted.run_id is None else f"{self._record.name}, run {self._wanted.run_id}"

    def _meta(self, groups: Sequence[Group]) -> list[tuple[str, str]]:
        """Return what the answers are of: model, table, runs, and how new they are."""
        models = sorted({group.model for group in groups if group.model})
        models = models or ([self._run.model] if self._run is not None and self._run.model else [])
        newest: list[datetime] = [group.newest for group in groups]
        newest += [run.ended_at or run.created_at for run, _ in self._runs]
        runs = [str(run.id) for run, _ in self._runs]
        of_runs = "" if not runs else runs[0] if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
        variables = {} if self._run is None else self._run.vars
        found = [
            ("model", ", ".join(models)),
            ("table", self._record.results_table),
            ("run" if len(runs) == 1 else "runs", of_runs),
            ("as of", minute(max(newest)) if newest else ""),
            *((name, str(value)) for name, value in variables.items()),
        ]
        return [(name, value) for name, value in found if value]


def _expected(runs: Sequence[tuple[RunRecord, float]]) -> dict[str, float | None] | None:
    """Return the estimated cost of these runs together; None if one that has cost something has no estimate."""
    sums: dict[str, float | None] = {"low": 0.0, "expected": 0.0, "worst": 0.0}
    any_ = False
    for run, cost in runs:
        usd = (run.estimate or {}).get("cost_usd")
        if usd is None:
            if cost:
                return None
            continue
        any_ = True
        for name, before in sums.items():
            sums[name] = None if before is None or usd[name] is None else before + usd[name]
    return sums if any_ else None
