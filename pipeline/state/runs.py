"""The runs of jobs: created, joined, planned and ended. Edge: SQL."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    func,
    insert,
    or_,
    select,
    update,
)

from pipeline.errors import RunEnded
from pipeline.job.endpoint import Endpoint
from pipeline.state.conditions import IS_RETRY, UNFINISHED, WAITS_FOR_SOURCE, WAITS_WITHOUT_SOURCE, inserted_id
from pipeline.state.files import mark_files_done
from pipeline.state.rows import stand_if_retry_is_over
from pipeline.state.tables import batches, requests, runs
from pipeline.state.tallies import add_up, as_people_see, run_counts
from pipeline.states import OPEN_BATCHES, BatchState, Gate, RowState, RunReason, RunState


@dataclass(frozen=True)
class RunRecord:
    """A run as the database has it; the fields are those of the table.

    job: the job as the version that began the run stored it. The properties below read single fields of it, and return
    the default where that version stored none; driver.job_of_run.stored_job reads the whole of it.
    """

    id: int
    job_id: int
    vars: dict[str, Any]
    retry: dict[str, Any] | None
    job: dict[str, Any]
    recipe: str
    state: str  # not RunState: the public API returns it, and its repr is seen in notebooks
    reason: str | None
    planned_at: datetime | None
    vanished: int
    counts: dict[str, int] | None
    created_at: datetime
    ended_at: datetime | None
    announced_at: datetime | None
    tokens_per_byte: float | None
    gate: Gate | None
    estimate: dict[str, Any] | None
    no_canary: bool

    @property
    def max_cost_usd(self) -> float | None:
        """The run's budget in US dollars; None without one."""
        limit: float | None = self._section("limits").get("max_cost_usd")
        return limit

    @property
    def max_failed(self) -> float:
        """The share of the run's rows that may fail."""
        return float(self._section("limits").get("max_failed", 0.0))

    @property
    def deletes_remote(self) -> bool:
        """Whether batches and files are deleted at the API once they are not needed any more."""
        return bool(self._section("privacy").get("delete_remote"))

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of the API that the run uses."""
        return Endpoint.of(self._section("api"))

    @property
    def model(self) -> str:
        """The model that the run's requests name; empty when they name none."""
        return str(self._section("request").get("model") or "")

    @property
    def max_tokens(self) -> int | None:
        """The max_tokens of the run's requests; None where a template over the row's columns gives it."""
        tokens = self._section("request").get("max_tokens")
        return tokens if isinstance(tokens, int) else None

    def _section(self, name: str) -> dict[str, Any]:
        section = self.job.get(name)
        return section if isinstance(section, dict) else {}


_RUN_COLUMNS = [runs.c[name] for name in RunRecord.__dataclass_fields__]


def _run_of(row: Row[Any]) -> RunRecord:
    return RunRecord(**{**row._mapping, "gate": None if row.gate is None else Gate(row.gate)})


def runs_where(conn: Connection, *which: ColumnElement[bool]) -> list[RunRecord]:
    """Return the runs for which all of these conditions hold, oldest first."""
    return [_run_of(row) for row in conn.execute(select(*_RUN_COLUMNS).where(*which).order_by(runs.c.id)).all()]


def get_run(conn: Connection, run_id: int) -> RunRecord:
    """Return one run."""
    return _run_of(conn.execute(select(*_RUN_COLUMNS).where(runs.c.id == run_id)).one())


def runs_of_job(conn: Connection, job_id: int) -> list[RunRecord]:
    """Return all runs of a job, oldest first."""
    return runs_where(conn, runs.c.job_id == job_id)


def open_runs(conn: Connection, job_id: int | None = None) -> list[RunRecord]:
    """Return the open runs of a job, oldest first. job_id None: of all jobs."""
    is_open = runs.c.state == RunState.OPEN
    return runs_where(conn, is_open) if job_id is None else runs_where(conn, is_open, runs.c.job_id == job_id)


def unended_runs(conn: Connection) -> list[RunRecord]:
    """Return the runs of all jobs that are open or have an open batch, oldest first.

    Batches of a run that stopped early are still at the API for a while.
    """
    with_batches = select(batches.c.run_id).where(batches.c.state.in_(OPEN_BATCHES))
    return runs_where(conn, or_(runs.c.state == RunState.OPEN, runs.c.id.in_(with_batches)))


def newest_run(conn: Connection) -> int:
    """Return the number of the newest run of all jobs; 0 if there is none."""
    return conn.scalar(select(func.max(runs.c.id))) or 0


def runs_after(conn: Connection, run_id: int) -> list[RunRecord]:
    """Return the runs of all jobs that are newer than this one, oldest first."""
    return runs_where(conn, runs.c.id > run_id)


def unfinished_retries(conn: Connection, job_id: int) -> list[RunRecord]:
    """Return the retries that the same command continues, oldest first. Other runs leave their pending rows to them."""
    return runs_where(conn, runs.c.job_id == job_id, IS_RETRY, UNFINISHED)


def last_run(conn: Connection, job_id: int) -> RunRecord | None:
    """Return the job's newest run; None if it has none."""
    query = select(*_RUN_COLUMNS).where(runs.c.job_id == job_id).order_by(runs.c.id.desc()).limit(1)
    row = conn.execute(query).one_or_none()
    return None if row is None else _run_of(row)


def join_run(
    conn: Connection,
    job_id: int,
    *,
    variables: dict[str, Any],
    job: dict[str, Any],
    recipe: str,
    retry: dict[str, Any] | None,
    now: datetime,
) -> int:
    """Return the job's open run with these vars and this recipe, updated to the current job; otherwise add a run.

    A run that stopped because of its budget is opened again and keeps its costs. retry: the rows that a person wants
    sent again, which make a run of their own; None: the whole source. Needs the lease on planning.
    """
    joined_run = run_to_join(conn, job_id, variables=variables, recipe=recipe, retry=retry)
    open_again = {"state": RunState.OPEN, "reason": None, "ended_at": None, "counts": None, "planned_at": None}
    if joined_run is not None:
        joined = update(runs).where(runs.c.id == joined_run, UNFINISHED).values(job=job, **open_again)
        if conn.execute(joined).rowcount:
            return joined_run
    values = {"job_id": job_id, "vars": variables, "job": job, "recipe": recipe, "state": RunState.OPEN}
    created = conn.execute(insert(runs).values(created_at=now, vanished=0, retry=retry, **values))
    return inserted_id(created)


def run_to_join(
    conn: Connection, job_id: int, *, variables: dict[str, Any], recipe: str, retry: dict[str, Any] | None
) -> int | None:
    """Return the newest run that `join_run` would continue, open ones first; None if there is none."""
    of_recipe = reversed(runs_where(conn, runs.c.job_id == job_id, runs.c.recipe == recipe))
    alike = [run for run in of_recipe if run.vars == variables and run.retry == retry]
    last = next((run for run in alike if run.state == RunState.OPEN), alike[0] if alike else None)
    return last.id if last is not None and (last.state == RunState.OPEN or last.reason == RunReason.BUDGET) else None


def require_open(conn: Connection, run_id: int) -> RunRecord:
    """Return the run and keep it open until this transaction has ended. Raises RunEnded if it is not open."""
    query = select(*_RUN_COLUMNS).where(runs.c.id == run_id).with_for_update(read=True)
    run = _run_of(conn.execute(query).one())
    if run.state != RunState.OPEN:
        raise RunEnded(f"run {run_id} was ended by another driver ({run.reason or run.state})")
    return run


def mark_planned(conn: Connection, run_id: int, *, vanished: int, now: datetime) -> None:
    """Note that the run's planning has reached the end of the source. vanished: rows that are no longer in it."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(planned_at=now, vanished=runs.c.vanished + vanished))


def bound_tokens(conn: Connection, run_id: int, tokens_per_byte: float | None) -> None:
    """Note the run's bound of tokens per byte of input; None: the run has no budget."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(tokens_per_byte=tokens_per_byte))


def end_run(conn: Connection, run_id: int, state: RunState, *, reason: RunReason | None, now: datetime) -> bool:
    """open -> finished or incomplete, with the counts of rows. Return False if the run was not open.

    Pending rows of a retry return to their earlier outcomes, unless the same command continues the retry.
    """
    # announced_at: this end was not announced yet, even if an earlier end of the run was
    values: dict[str, Any] = {"state": state, "reason": reason, "ended_at": now, "announced_at": None}
    if state is RunState.FINISHED:  # rows of a run that stopped early may still be at the API
        values["counts"] = run_counts(conn, run_id)
    here = (runs.c.id == run_id, runs.c.state == RunState.OPEN)
    ended = bool(conn.execute(update(runs).where(*here).values(**values)).rowcount)
    if ended:
        stand_if_retry_is_over(conn, run_id)
        add_up(conn, run_id)
    return ended


def cancel_stopped_retries(conn: Connection, job_id: int) -> None:
    """Cancel the job's retries that stopped because of their budget; their pending rows return to their outcomes."""
    stopped = [run.id for run in unfinished_retries(conn, job_id) if run.state != RunState.OPEN]
    conn.execute(update(runs).where(runs.c.id.in_(stopped)).values(reason=RunReason.CANCELED))
    for run_id in stopped:
        stand_if_retry_is_over(conn, run_id)


def end_if_done(conn: Connection, run_id: int, now: datetime) -> bool:
    """open -> finished, if the run is planned to the end of the source and has no work left. Return whether it is."""
    query = select(*_RUN_COLUMNS).where(runs.c.id == run_id).with_for_update(key_share=True)
    run = _run_of(conn.execute(query).one())
    if run.planned_at is None or has_work(conn, run_id) or rows_for_planning(conn, run_id):
        return False
    ended = end_run(conn, run_id, RunState.FINISHED, reason=None, now=now)
    if ended and run.deletes_remote:
        mark_files_done(conn, run.job_id)
    return ended


class Collecting(NamedTuple):
    """A batch of which some rows have their outcome and others do not yet."""

    batch: int
    rows: int
    answered: int


def partly_collected(conn: Connection, job_id: int) -> list[Collecting]:
    """Return the job's batches whose results are partly stored: the rest is being stored or downloaded again."""
    ended = select(batches.c.id, batches.c.rows).where(batches.c.job_id == job_id, batches.c.state == BatchState.ENDED)
    found: list[Collecting] = []
    for batch, rows in conn.execute(ended.order_by(batches.c.id)).tuples().all():
        here = (requests.c.batch_id == batch, requests.c.state == RowState.IN_FLIGHT)
        waiting = conn.scalar(select(func.count()).select_from(requests).where(*here)) or 0
        if waiting < rows:
            found.append(Collecting(batch, rows, rows - waiting))
    return found


def run_rows(conn: Connection, run: RunRecord) -> dict[str, int]:
    """Return the run's rows by state as `as_people_see` does; for a run that has ended, those of its end."""
    if run.counts is not None:
        return dict(run.counts)
    return as_people_see(conn, run_counts(conn, run.id), batches.c.run_id == run.id)


def run_cost(conn: Connection, run_id: int) -> float:
    """Return the cost of all answers of the run in US dollars, including failed and repeated rows."""
    cost = conn.scalar(select(func.coalesce(func.sum(batches.c.cost_usd), 0.0)).where(batches.c.run_id == run_id))
    return round(float(cost or 0), 12)


def has_work(conn: Connection, run_id: int) -> bool:
    """Return whether the run has an open batch, or a pending row that is sent from the spool or in another round."""
    flying = select(batches.c.id).where(batches.c.run_id == run_id, batches.c.state.in_(OPEN_BATCHES))
    waiting = (requests.c.run_id == run_id, WAITS_WITHOUT_SOURCE)
    # in one statement, so that a row that moves from pending to in_flight is seen in one of the two
    return bool(conn.scalar(select(or_(flying.exists(), select(requests.c.id).where(*waiting).exists()))))


def rows_for_planning(conn: Connection, run_id: int) -> int:
    """Return how many rows of the run need the source: those never spooled, or changed since they were sent."""
    unspooled = (requests.c.run_id == run_id, WAITS_FOR_SOURCE)
    back = requests.c.state != RowState.IN_FLIGHT
    changed = (requests.c.run_id == run_id, requests.c.changed_hash.is_not(None), back)
    counts = [conn.scalar(select(func.count()).select_from(requests).where(*some)) for some in (unspooled, changed)]
    return sum(count or 0 for count in counts)


def vanished_rows(conn: Connection, job_id: int) -> int:
    """Return how many rows of the job left the source before they had an answer."""
    return int(conn.scalar(select(func.sum(runs.c.vanished)).where(runs.c.job_id == job_id)) or 0)


def forget_changed(conn: Connection, run_id: int) -> None:
    """Remove the marks of changed rows after planning: rows that still have one are no longer in the source."""
    marked = (requests.c.run_id == run_id, requests.c.changed_hash.is_not(None))
    back = requests.c.state.not_in([RowState.PENDING, RowState.IN_FLIGHT])
    conn.execute(update(requests).where(*marked, back).values(changed_hash=None))


def run_outcomes(conn: Connection, run_id: int) -> Counter[str]:
    """Return the number of rows by collected outcome, over all batches of the run."""
    total: Counter[str] = Counter()
    for outcomes in conn.scalars(select(batches.c.outcomes).where(batches.c.run_id == run_id)):
        total.update(outcomes or {})
    return total


def save_estimate(conn: Connection, run_id: int, facts: Mapping[str, Any]) -> None:
    """Note the estimate of the run's cost from its start."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(estimate=dict(facts)))
