"""The gate of a run, and the batches that open it: its canary or its primer. Edge: SQL."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    Connection,
    func,
    or_,
    select,
    update,
)

from pipeline.reasons import BEHIND_GATE
from pipeline.state.batches import BATCH_COLUMNS, Batch, batch_of
from pipeline.state.conditions import MAY_HAVE_ARRIVED, WAITING, WAITS_FOR_ROUND, WAITS_IN_SPOOL
from pipeline.state.tables import batches, requests, runs, sendings, turns
from pipeline.states import OPEN_BATCHES, OUTCOMES, BatchState, Gate, RowState, RunReason


def set_gate(conn: Connection, run_id: int, gate: Gate | None) -> None:
    """Set what the run waits for; None: nothing, so that all its batches may be sent."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(gate=gate))


def note_no_canary(conn: Connection, run_id: int) -> None:
    """Note that a person wants all rows of the run sent at once, for each driver that continues the run."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(no_canary=True))


def open_gate(conn: Connection, run_id: int, gate: str, now: datetime) -> bool:
    """Open the gate, so that the remaining batches of the run may be sent. Return False if it was open already."""
    here = (runs.c.id == run_id, runs.c.gate == gate)
    if not conn.execute(update(runs).where(*here).values(gate=None)).rowcount:
        return False
    behind = (batches.c.run_id == run_id, batches.c.state == BatchState.PLANNED, batches.c.due_at > now)
    waits = batches.c.reason.in_(list(BEHIND_GATE.values()))
    conn.execute(update(batches).where(*behind, waits).values(due_at=now, reason=None, problem=None))
    return True


def keeps_gate(conn: Connection, run_id: int, gate: str) -> bool:
    """Return whether the run has anything that opens this gate: an open batch, rows to send again, or outcomes."""
    ahead = gate_batches(conn, run_id, gate)
    if any(batch.state in OPEN_BATCHES for batch in ahead) or waits_for_gate(conn, run_id, gate):
        return True
    return any(state in OUTCOMES for state in outcomes_of(conn, [batch.id for batch in ahead]))


def first_sent_at(conn: Connection, numbers: Sequence[int]) -> datetime | None:
    """Return when the first of these batches that may have reached the API was sent, by its clock; None: none did."""
    query = select(func.min(sendings.c.started_at)).where(sendings.c.batch_id.in_(numbers), MAY_HAVE_ARRIVED)
    first: datetime | None = conn.scalar(query)
    return first


def gate_batches(conn: Connection, run_id: int, gate: str) -> list[Batch]:
    """Return the batches that open this gate of the run, without dropped ones, oldest first."""
    here = (batches.c.run_id == run_id, batches.c.gate == gate, batches.c.state != BatchState.DROPPED)
    return [batch_of(row) for row in conn.execute(select(*BATCH_COLUMNS).where(*here).order_by(batches.c.id))]


def waits_for_gate(conn: Connection, run_id: int, gate: str) -> bool:
    """Return whether rows of a batch that opens this gate are pending, to be sent again or in another round."""
    theirs = select(batches.c.id).where(batches.c.run_id == run_id, batches.c.gate == gate)
    again = WAITS_IN_SPOOL & requests.c.body_id.in_(theirs)
    of_gate = (turns.c.request_id == requests.c.id, turns.c.round == requests.c.round - 1, turns.c.gate == gate)
    goes_on = WAITS_FOR_ROUND & select(turns.c.request_id).where(*of_gate).exists()
    waiting = (requests.c.run_id == run_id, WAITING, or_(again, goes_on))
    return conn.scalar(select(requests.c.id).where(*waiting).limit(1)) is not None


def outcomes_of(conn: Connection, numbers: Sequence[int]) -> dict[str, int]:
    """Return the number of requests of these batches by the state of their rows, which have been in no later batch."""
    columns = (requests.c.state, requests.c.batch_id, requests.c.n)
    of_requests = select(*columns).where(requests.c.batch_id.in_(numbers)).distinct().subquery()
    query = select(of_requests.c.state, func.count()).group_by(of_requests.c.state)
    return dict(conn.execute(query).tuples().all())


def has_sent(conn: Connection, run_id: int, gate: Gate | None = None) -> bool:
    """Return whether a batch of the run has been sent, or may have been. gate: only batches that open it; None: any."""
    here = [batches.c.run_id == run_id, batches.c.account_id.is_not(None)]
    if gate is not None:
        here.append(batches.c.gate == gate)
    return conn.scalar(select(batches.c.id).where(*here).limit(1)) is not None


def canary_failed(conn: Connection, job_id: int, recipe: str) -> bool:
    """Return whether a run with this recipe was ended because its canary failed."""
    here = (runs.c.job_id == job_id, runs.c.recipe == recipe, runs.c.reason == RunReason.CANARY)
    return conn.scalar(select(runs.c.id).where(*here).limit(1)) is not None


def canaries_failed(conn: Connection, job_id: int) -> int:
    """Return how many runs of the job were ended because their canary failed."""
    here = (runs.c.job_id == job_id, runs.c.reason == RunReason.CANARY)
    return conn.scalar(select(func.count()).select_from(runs).where(*here)) or 0


def has_succeeded(conn: Connection, job_id: int, recipe: str) -> bool:
    """Return whether a row has succeeded with this recipe in a run that was not ended by its canary."""
    proven = or_(runs.c.reason.is_(None), runs.c.reason != RunReason.CANARY)
    query = (
        select(batches.c.outcomes)
        .join(runs, runs.c.id == batches.c.run_id)
        .where(batches.c.job_id == job_id, batches.c.recipe == recipe, batches.c.outcomes.is_not(None), proven)
    )
    return any((outcomes or {}).get(RowState.SUCCEEDED) for outcomes in conn.scalars(query))
