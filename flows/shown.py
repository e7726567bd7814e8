"""What a person sees of a flow in Prefect: log, states, artifacts, events. All of it may fail; the work goes on."""

import contextlib
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import orjson
from prefect import Flow
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from sqlalchemy import URL, Connection, Row, func, select

from pipeline import ends, log, report, store
from pipeline.database import Database
from pipeline.ends import exit_code, failed_rows
from pipeline.quote import Quote
from pipeline.reasons import in_words
from pipeline.sink import Sink
from pipeline.states import OUTCOMES, RunState
from pipeline.tables import batches

LINK = "BATCH_RESULTS_URL"  # of a page that shows a results table, as `https://bi.example.com/tables/{table}`
MOST_BATCHES = 100  # that a table shows: a browser renders them all
NOT_LOGGED = ("watching", "planned_elsewhere", "run_ended")  # looks of a driver that waits; what the state tells
BETWEEN_UPDATES = 5.0  # seconds between two moves of the progress at least
SERVER_AWAY = 60.0  # seconds that nothing is shown after Prefect's server did not answer

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


# -- how a run stands ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How a run stands. title: job and day; rows: by state; sent: batches, and the rows in them.

    estimate: US dollars that were estimated when it began, see estimate.Money; None when a price is not known.
    """

    run_id: int
    job: str
    title: str
    state: str
    reason: str | None
    rows: dict[str, int]
    sent: tuple[int, int]
    cost_usd: float
    estimate: Mapping[str, float | None] | None
    max_failed: float
    budget: dict[str, float | None] | None
    ended_at: datetime | None

    @property
    def is_well(self) -> bool:
        """Whether it goes on, or ended as it should."""
        return self.state == RunState.OPEN or exit_code(self.state, self.rows, self.max_failed) == 0

    @property
    def sentence(self) -> str:
        """How it ended, or where it is, and the way on."""
        if self.state == RunState.INCOMPLETE:
            return f"{self.title}: {report.stopped_line(self.reason, self.budget)}"
        if not self.is_well:
            failed = f"{failed_rows(self.rows):,} of {report.count(sum(self.rows.values()), 'row')} failed"
            return f"{self.title}: {failed}; batch-pipeline errors {self.job}"
        return f"{self.title}: {report.counts_line(self.rows)}, {report.money(self.cost_usd)}"

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON."""
        facts = {"job": self.job, "run_id": self.run_id, "title": self.title, "state": self.state}
        return {**facts, "reason": self.reason, "rows": self.rows, "cost_usd": self.cost_usd}


def standing(conn: Connection, run_id: int) -> Standing:
    """How a run of the database stands."""
    run = store.run(conn, run_id)
    name = str(run.job["name"])
    of_run = (batches.c.run_id == run_id, batches.c.state != "dropped")
    sent = batches.c.api_id.is_not(None) | (batches.c.state == "submitting")
    number, rows_sent = conn.execute(
        select(
            func.count().filter(sent),
            func.sum(batches.c.rows).filter(sent),
        ).where(*of_run)
    ).one()
    return Standing(
        run_id=run_id,
        job=name,
        title=title(name, run.vars, run.created_at.date()),
        state=run.state,
        reason=run.reason,
        rows=store.run_rows(conn, run),
        sent=(number, int(rows_sent or 0)),
        cost_usd=store.run_cost(conn, run_id),
        estimate=(run.estimate or {}).get("cost_usd"),
        max_failed=float(run.job["limits"]["max_failed"]),
        budget=report.budget_facts(conn, run),
        ended_at=run.ended_at,
    )


def title(job: str, variables: Mapping[str, Any], day: date) -> str:
    """`ticket_triage 2026-11-20`: the job, and the days that its vars name, else the day of the run."""
    days = [value for value in variables.values() if isinstance(value, str) and _is_day(value)]
    return " ".join([job, *(days or [day.isoformat()])])


def _is_day(value: str) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None


# -- states ----------------------------------------------------------------------------------------------------------


def run_state(run: Standing, bad: list[Standing]) -> State[dict[str, Any]]:
    """The state of a flow that has taken one run as far as it was asked to. bad: others that ended badly meanwhile."""
    if bad or not run.is_well:
        return _failed([*([] if run.is_well else [run]), *bad])
    if run.state != RunState.OPEN:
        return Completed(message=run.sentence, data=run.facts)
    said = f"Submitted {report.count(run.sent[0], 'batch')}, {report.count(run.sent[1], 'row')}"
    waiting = sum(run.rows.values()) - run.sent[1]
    if waiting > 0:  # for room at the API, for money, or for a batch that was not accepted
        said += f"; {report.count(waiting, 'row')} still to be sent"
    message = f"{said}; collect_results takes {run.title} to its end"
    return Completed(name="Submitted", message=message, data=run.facts)


def sweep_state(swept: list[tuple[str, str | None]], ended: list[Standing]) -> State[list[dict[str, Any]]]:
    """The state of a sweep. swept: each job and why it could not be swept; ended: the runs whose end it tells."""
    facts = [run.facts for run in ended]
    bad = [run for run in ended if not run.is_well]
    problems = [f"{job} could not be swept: {problem}" for job, problem in swept if problem is not None]
    if bad or problems:
        return _failed(bad, problems)
    if not swept and not ended:
        return Completed(name="Nothing due", message="no run is open", data=facts)
    said = "; ".join(run.sentence for run in ended) or "no run ended"
    jobs = f"swept {', '.join(job for job, _ in swept)}: " if swept else ""
    return Completed(message=f"{jobs}{said}", data=facts)


def _failed(runs: list[Standing], problems: Iterable[str] = ()) -> State[Any]:
    reasons = {run.reason for run in runs}
    only = f"Incomplete ({reasons.pop()})" if len(reasons) == 1 and None not in reasons and not problems else "Failed"
    sentences = [*(run.sentence for run in runs), *problems]
    return Failed(name=only, message="; ".join(sentences))  # without data: Prefect takes that for an exception


# -- while it works --------------------------------------------------------------------------------------------------


class Watch:
    """Tells the run's log what drivers do, and remembers what artifacts and states are made of.

    Drivers tell from several threads; Prefect is spoken to from the one that made this.
    """

    def __init__(self, database: Database) -> None:
        self.quote: Quote | None = None
        self.reasons: list[str] = []  #: why rows that somebody may have meant are not sent again
        self.moved: set[str] = set()  #: jobs of which something has changed
        self._database = database
        self._waiting: object = None
        self._logger = run_logger()
        self._thread = threading.get_ident()
        self._progress: dict[str, Any] = {}
        self._next_update = 0.0

    def tell(self, event: str, **facts: Any) -> None:
        """One event of a driver."""
        if event in ("waiting", "planned", "submitted", "collected"):
            self._move_progress(facts["job"])
        if event == "waiting" and facts["progress"] == self._waiting:  # that it still waits for the same is said once
            return
        self._waiting = facts.get("progress")
        if event == "quote":
            self.quote = facts["quote"]
        elif event not in (*NOT_LOGGED, "waiting", "emulator", "warning", "unreachable"):
            self.moved.add(facts["job"])
        if event == "ended":
            of_batch = {name: facts[name] for name in ("batch", "requests", "succeeded")}
            self._emit("batch.ended", f"batch.{facts['job']}.{facts['batch']}", {"job": facts["job"], **of_batch})
        self._log(event, facts)

    def untold(self, job: str | None) -> list[Standing]:
        """The runs of a job, or of all jobs, that have ended without anybody being told, in this sweep or before."""
        with self._database.read() as conn:
            row = None if job is None else store.job_named(conn, job)
            return [standing(conn, end.run_id) for end in ends.untold(conn, None if row is None else row.id)]

    def announce(self, runs: Iterable[Standing]) -> None:
        """Emit an event for each run that has ended. Of one that two flows announce, the server sees one.

        The last thing before the flow returns the state that tells these ends: when Prefect has that state, `note_told`
        notes that they were told.
        """
        told: dict[int, datetime] = {}
        for run in runs:
            if run.ended_at is None:
                continue
            what = "job.finished" if run.state == RunState.FINISHED else "job.incomplete"
            identity = f"{self._database.shown} {run.run_id} {run.ended_at}"
            self._emit(what, f"job.{run.job}", run.facts, uuid.uuid5(uuid.NAMESPACE_URL, identity))
            told[run.run_id] = run.ended_at
        run_id = _run_with_hook()
        if run_id is None:
            ends.note_told(self._database, told, datetime.now(UTC))  # whoever has called the function is told by it
        else:
            _told[run_id] = (self._database.url, told)

    def of(self, run_id: int) -> Standing:
        """How that run stands now."""
        with self._database.read() as conn:
            return standing(conn, run_id)

    def quote_lines(self) -> list[str]:
        """The quote as text."""
        return [] if self.quote is None else _quote_lines(self.quote)

    def show_quote(self, job: str) -> None:
        """The quote of a job of which nothing was sent, as an artifact."""
        if self.quote is not None:
            text = f"# {escaped(job)}: what it would send\n\n{_quoted(self.quote, self.reasons)}\n"
            shown(create_markdown_artifact, text, key=_key("quote", job), description=f"Quote of {job}")

    def show(self, jobs: Iterable[str]) -> None:
        """Artifacts of these jobs: progress, batches, a summary, and a link to the answers if they have a page."""
        for name in jobs:
            with self._database.read() as conn:
                row = store.job_named(conn, name)
                last = None if row is None else store.last_run(conn, row.id)
                if row is None or last is None:
                    continue
                run = standing(conn, last.id)
                table = batch_table(conn, row.id)
                summary = summary_text(self._database, conn, row, run)
            if self.quote is not None:
                summary += f"\n## Said before it was sent\n\n{_quoted(self.quote, self.reasons)}\n"
            self._next_update = 0.0
            self._move_progress(name)
            shown(create_table_artifact, table, key=_key("batches", name), description=f"Batches of {name}")
            shown(create_markdown_artifact, summary, key=_key("summary", name), description=run.title)
            link = results_link(row.results_table)
            if link is not None:
                shown(create_link_artifact, link, key=_key("answers", name), link_text=f"Answers: {row.results_table}")

    def _log(self, event: str, facts: Mapping[str, Any]) -> None:
        if event in NOT_LOGGED:
            return
        lines = _quote_lines(facts["quote"]) if event == "quote" else [report.event_line(event, facts)]
        level = max(logging.INFO, log.LEVELS.get(event, logging.INFO))
        job = f"{facts['job']}: " if "job" in facts else ""
        for line in lines:
            self._logger.log(level, "%s", job + line)

    def _emit(self, what: str, resource: str, payload: dict[str, Any], identity: uuid.UUID | None = None) -> None:
        of = {"prefect.resource.id": f"batch-pipeline.{resource}", "prefect.resource.name": payload["job"]}
        shown(emit_event, event=f"batch-pipeline.{what}", resource=of, payload=payload, id=identity)

    def _move_progress(self, job: str) -> None:
        if threading.get_ident() != self._thread or time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + BETWEEN_UPDATES
        with self._database.read() as conn:
            row = store.job_named(conn, job)
            last = None if row is None else store.last_run(conn, row.id)
            rows = {} if last is None else last.counts or store.run_counts(conn, last.id)
        done = sum(rows.get(state, 0) for state in OUTCOMES)
        percent = round(100.0 * done / (sum(rows.values()) or 1), 1) if rows else 0.0
        if self._progress.get(job) is not None:
            shown(update_progress_artifact, self._progress[job], progress=percent)
        else:
            about = f"Rows of {job} with an outcome"
            key = _key("progress", job)
            self._progress[job] = shown(create_progress_artifact, percent, key=key, description=about)


#: By the id of a flow's run, the ends that its state tells, and the state database in which to note that.
_told: dict[uuid.UUID, tuple[URL, ends.Ended]] = {}


def note_told(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Note the ends that the state of a flow tells, once Prefect has it. A hook of the flow, on success and on failure.

    If we die on the line before, or the state is refused, the next sweep tells these ends again.
    """
    url, told = _told.pop(flow_run.id, (None, {}))
    if url is not None and told:
        with contextlib.closing(Database(url.render_as_string(hide_password=False))) as database:
            ends.note_told(database, told, datetime.now(UTC))


def _run_with_hook() -> uuid.UUID | None:
    """The id of the flow's run whose engine calls `note_told` in the end; None outside of such a run."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        return None
    return context.flow_run.id if note_told in (context.flow.on_completion_hooks or ()) else None


_away_until = 0.0


def shown(make: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call something of Prefect's that shows something, and return what it returns; None when it could not.

    Whatever it raises, the run's work goes on. After a failure nothing is tried for a while: a server that is away
    costs time with each call.
    """
    global _away_until
    if FlowRunContext.get() is None or time.monotonic() < _away_until:
        return None  # outside of a run Prefect would start a server of its own for it
    try:
        return make(*args, **named)
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is about showing
        _away_until = time.monotonic() + SERVER_AWAY
        logging.getLogger("pipeline.flows").warning("not shown in Prefect: %s: %s", type(exc).__name__, exc)
        return None


def run_logger() -> Logger:
    """The log of the flow's run, which all threads may write to; the library's one outside of a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("pipeline.flows")


# -- artifacts -------------------------------------------------------------------------------------------------------


def batch_table(conn: Connection, job_id: int) -> list[dict[str, Any]]:
    """The job's newest batches, open ones before all others: state, counts, cost and age."""
    is_open = batches.c.collected_at.is_(None) & (batches.c.state != "dropped")
    newest = select(batches).where(batches.c.job_id == job_id).order_by(is_open.desc(), batches.c.id.desc())
    now = datetime.now(UTC)
    return [
        {
            "batch": batch.id,
            "state": batch.state,
            "requests": batch.requests,
            "rows": batch.rows,
            "outcomes": ", ".join(f"{count:,} {outcome}" for outcome, count in sorted((batch.outcomes or {}).items())),
            "cost": report.money(batch.cost_usd),
            "age": _age((batch.collected_at or now) - batch.created_at),
            "api_id": batch.api_id or "",
            "problem": escaped(in_words(batch.reason, batch.problem) or ""),
        }
        for batch in conn.execute(newest.limit(MOST_BATCHES))
    ]


def _age(elapsed: Any) -> str:
    minutes = int(elapsed.total_seconds()) // 60
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def summary_text(database: Database, conn: Connection, job: Row[Any], run: Standing) -> str:
    """The summary of a run as Markdown; what models and rows have written is escaped."""
    reason = f" ({run.reason})" if run.reason else ""
    parts = [
        f"# {escaped(run.title)}",
        f"Run {run.run_id} is **{run.state}{reason}**. {escaped(run.sentence)}",
        _rows_table(run.rows),
        _money(run),
    ]
    causes = report.errors(conn, job, Sink.of(job), job.name)
    if causes:
        parts += ["## Failures by cause", "Of the whole job, not of this run alone.", *map(_cause, causes[:10])]
    name = job.results_table
    query = f"SELECT status, count(*), sum(cost_usd) FROM {name} WHERE run_id = {run.run_id} GROUP BY status"
    link = results_link(name)
    parts += ["## Answers", f"```sql\n{query};\n```", *([] if link is None else [f"[Table {escaped(name)}]({link})"])]
    return "\n\n".join(parts) + "\n"


def _quoted(quote: Quote, reasons: list[str]) -> str:
    said = "\n".join(["```", *_quote_lines(quote), "```"])
    return "\n\n".join([said, *(escaped(reason) for reason in reasons)])


def _quote_lines(quote: Quote) -> list[str]:
    """The quote, without the first problem found, which may be about a row's text."""
    return list(report.quote_lines(quote, problems=False))


def _rows_table(rows: Mapping[str, int]) -> str:
    if not rows:
        return "No row had to be sent."
    order = [state for state in ("pending", "planned", "in_flight", *OUTCOMES) if rows.get(state)]
    lines = [f"| {state.replace('_', ' ')} | {rows[state]:,} |" for state in order]
    return "\n".join(["| rows | |", "| --- | ---: |", *lines])


def _money(run: Standing) -> str:
    said = f"Money: {report.money(run.cost_usd)} so far."
    if run.estimate is not None:
        said += f" Estimated: {report.cost_range(run.estimate)}."
    return said if run.budget is None else f"{said} {report.budget_line(run.budget)}."


def _cause(cause: Mapping[str, Any]) -> str:
    what = f"{cause['status']} ({cause['error_type']})" if cause["error_type"] else cause["status"]
    keys = ", ".join(escaped(str(key)) for key in cause["keys"])
    flow, parameters = parameters_of(cause["command"])
    mends = orjson.dumps(parameters, option=orjson.OPT_INDENT_2).decode()
    said = f"**{report.count(cause['rows'], 'row')} {escaped(what)}**: {escaped(str(cause['error_message']))}"
    return f"{said}\n\nFor example {keys}. {escaped(cause['remedy'])}: `{flow}` with\n\n{_fenced(mends)}"


def parameters_of(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The flow that does what a command does, and its parameters. words: `retry JOB --status errored`, `run JOB`."""
    command, job, *options = words
    if command != "retry":
        return "run_job", {"job": job}
    names = {"--status": "status", "--error-type": "error_type", "--key": "key", "--set": "set"}
    found: dict[str, Any] = {"job": job}
    for option, value in zip(options[::2], options[1::2], strict=True):
        if option == "--where":
            found["where"] = value
        elif option in names:
            found.setdefault(names[option], []).append(value)
    return "reprocess_failed", found


def results_link(table: str) -> str | None:
    """The page that shows a results table, when the environment names one."""
    pattern = os.environ.get(LINK)
    return pattern.replace("{table}", table) if pattern else None


def escaped(text: str) -> str:
    """A text as Markdown that shows it as it is: no markup, no HTML, no image that a browser would fetch."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split())[:500])


def _fenced(code: str) -> str:
    """A block of code that nothing in it can end."""
    longest = max((len(ticks) for ticks in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}json\n{code}\n{fence}"


def _key(what: str, job: str) -> str:
    return re.sub("[^a-z0-9]+", "-", f"{what}-{job}".lower()).strip("-")
