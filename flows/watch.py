"""Show the work of a flow in Prefect: log, artifacts and events. Edge: SQL, HTTP.

All of this may fail; the flow's work continues.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

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

from flows.artifacts import artifact_key, batch_table, escaped, quoted, quoted_lines, results_link, summary_text
from flows.reports import written_report
from flows.standing import Standing, standing
from pipeline.events.batches import BatchEnded, Collected, Planned, Submitted, Watching
from pipeline.events.event import Event
from pipeline.events.runs import PlannedElsewhere, RunEnded, Waiting
from pipeline.planning.quote import Quote, Quoted
from pipeline.state import ends
from pipeline.state.database import Database, Url
from pipeline.state.jobs import job_named, with_trials
from pipeline.state.runs import last_run
from pipeline.state.tallies import run_counts
from pipeline.states import OUTCOMES, RunState

NOT_LOGGED = (Watching, PlannedElsewhere, RunEnded)  # two are repeated with each look; the flow's state tells ends
BETWEEN_UPDATES = 5.0  # seconds, at least, between two updates of the progress
SERVER_AWAY = 60.0  # seconds for which nothing is shown after Prefect's server did not answer

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Watch:
    """Writes the events of drivers to the flow's log, and keeps the facts for artifacts and states.

    Drivers send events from several threads. Only the thread that made this object updates artifacts and sends events
    to Prefect.
    """

    def __init__(self, database: Database) -> None:
        self.quote: Quote | None = None
        self.reasons: list[str] = []  #: why rows that a person may have wanted are not sent again
        self.moved: set[str] = set()  #: names of the jobs in which something has changed
        self._database = database
        self._waiting: object = None
        self._logger = run_logger()
        self._thread = threading.get_ident()
        self._progress: dict[str, Any] = {}
        self._next_update = 0.0

    def tell(self, event: Event) -> None:
        """Log one event of a driver, and update what Prefect shows of it."""
        if isinstance(event, Waiting | Planned | Submitted | Collected) and event.job is not None:
            self._move_progress(event.job)
        waiting = event.progress if isinstance(event, Waiting) else None
        if waiting is not None and waiting == self._waiting:  # a wait without a change is logged once
            return
        self._waiting = waiting
        if isinstance(event, Quoted):
            self.quote = event.quote
        if event.changes_job and event.job is not None:
            self.moved.add(event.job)
        if isinstance(event, BatchEnded):
            of_batch = {name: event.facts()[name] for name in ("job", "batch", "requests", "succeeded")}
            self._emit("batch.ended", f"batch.{event.job}.{event.batch}", of_batch)
        self._log(event)

    def untold(self, job: str | None) -> list[Standing]:
        """Return the runs that ended in this sweep or before and are not announced yet, those of trials too.

        job: None for all jobs.
        """
        with self._database.read() as conn:
            of_job = () if job is None else (each.id for each in with_trials(conn, job))
            return [standing(conn, end.run_id) for end in ends.untold(conn, *of_job)]

    def announce(self, runs: Iterable[Standing]) -> None:
        """Emit an event for each run that has ended. If two flows announce the same end, the server keeps one event.

        Call this last, before the flow returns the state that tells these ends. When Prefect has that state,
        `note_told` notes that the ends were announced.
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
            ends.note_told(self._database, told, datetime.now(UTC))  # without a hook: the caller gets the state
        else:
            _told[run_id] = (self._database.url, told)

    def of(self, run_id: int) -> Standing:
        """Return how the run with this number stands now."""
        with self._database.read() as conn:
            return standing(conn, run_id)

    def quote_lines(self) -> list[str]:
        """Return the lines of the quote; empty if there is no quote."""
        return [] if self.quote is None else quoted_lines(self.quote)

    def show_quote(self, job: str) -> None:
        """Show the quote of a job as an artifact, when nothing was sent. Nothing is shown if there is no quote."""
        if self.quote is not None:
            text = f"# {escaped(job)}: what it would send\n\n{quoted(self.quote, self.reasons)}\n"
            show_in_prefect(
                create_markdown_artifact, text, key=artifact_key("quote", job), description=f"Quote of {job}"
            )

    def show(self, jobs: Iterable[str]) -> None:
        """Show artifacts of these jobs: progress, batches, a summary, links to the answers and the report if there are.

        A job without a run has no artifacts.
        """
        for name in jobs:
            with self._database.read() as conn:
                job_record = job_named(conn, name)
                last = None if job_record is None else last_run(conn, job_record.id)
                if job_record is None or last is None:
                    continue
                run = standing(conn, last.id)
                table = batch_table(conn, job_record.id)
                summary = summary_text(self._database, conn, job_record, run)
            if self.quote is not None:
                summary += f"\n## Quote before sending\n\n{quoted(self.quote, self.reasons)}\n"
            self._next_update = 0.0
            self._move_progress(name)
            show_in_prefect(
                create_table_artifact, table, key=artifact_key("batches", name), description=f"Batches of {name}"
            )
            show_in_prefect(create_markdown_artifact, summary, key=artifact_key("summary", name), description=run.title)
            link = results_link(job_record.results_table)
            if link is not None:
                show_in_prefect(
                    create_link_artifact,
                    link,
                    key=artifact_key("answers", name),
                    link_text=f"Answers: {job_record.results_table}",
                )
            report = None if last.ended_at is None else written_report(self._database, job_record, last)
            if report is not None:
                show_in_prefect(
                    create_link_artifact, report, key=artifact_key("report", name), link_text=f"Report: {run.title}"
                )

    def _log(self, event: Event) -> None:
        if isinstance(event, NOT_LOGGED):
            return
        lines = quoted_lines(event.quote) if isinstance(event, Quoted) else [event.line()]
        job = "" if event.job is None else f"{event.job}: "
        for line in lines:
            self._logger.log(max(logging.INFO, event.level), "%s", job + line)

    def _emit(self, what: str, resource: str, payload: dict[str, Any], identity: uuid.UUID | None = None) -> None:
        of = {"prefect.resource.id": f"batch-pipeline.{resource}", "prefect.resource.name": payload["job"]}
        show_in_prefect(emit_event, event=f"batch-pipeline.{what}", resource=of, payload=payload, id=identity)

    def _move_progress(self, job: str) -> None:
        if threading.get_ident() != self._thread or time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + BETWEEN_UPDATES
        with self._database.read() as conn:
            job_record = job_named(conn, job)
            last = None if job_record is None else last_run(conn, job_record.id)
            rows = {} if last is None else last.counts or run_counts(conn, last.id)
        done = sum(rows.get(state, 0) for state in OUTCOMES)
        percent = round(100.0 * done / (sum(rows.values()) or 1), 1) if rows else 0.0
        if self._progress.get(job) is not None:
            show_in_prefect(update_progress_artifact, self._progress[job], progress=percent)
        else:
            about = f"Rows of {job} with an outcome"
            key = artifact_key("progress", job)
            self._progress[job] = show_in_prefect(create_progress_artifact, percent, key=key, description=about)


#: For each flow run, by its id: the state database, and the ends that the flow's state tells, to be noted there.
_told: dict[uuid.UUID, tuple[Url, ends.Ended]] = {}


def note_told(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Note in the state database that the ends in a flow's state were announced. A hook, on success and on failure.

    Prefect calls it when it has the state. If the process dies before this note, or Prefect refuses the state, the next
    sweep announces these ends again.
    """
    url, told = _told.pop(flow_run.id, (None, {}))
    if url is not None and told:
        with contextlib.closing(Database(url.render_as_string(hide_password=False))) as database:
            ends.note_told(database, told, datetime.now(UTC))


def _run_with_hook() -> uuid.UUID | None:
    """Return the id of the present flow run if Prefect calls `note_told` at its end, else None."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        return None
    return context.flow_run.id if note_told in (context.flow.on_completion_hooks or ()) else None


_away_until = 0.0


def show_in_prefect(make: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call a function of Prefect that shows something, and return its result; None if it failed or was not called.

    An exception is logged, and the run's work continues. After a failure nothing is called for SERVER_AWAY seconds,
    because each call costs time while the server is away.
    """
    global _away_until
    if FlowRunContext.get() is None or time.monotonic() < _away_until:
        return None  # outside of a flow run, Prefect would start a server of its own for the call
    try:
        return make(*args, **named)
    except Exception as exc:  # noqa: BLE001  # only showing failed
        _away_until = time.monotonic() + SERVER_AWAY
        logging.getLogger("pipeline.flows").warning("not shown in Prefect: %s: %s", type(exc).__name__, exc)
        return None


def run_logger() -> Logger:
    """Return the log of the flow run, which all threads may write to; outside of a flow run, the library's own log."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("pipeline.flows")
