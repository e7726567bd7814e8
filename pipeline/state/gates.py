"""The gate of a run: set, opened, and what stands before it. Edge: SQL."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    Connection,
    func,
    or_,
    select,
    text,
    update,
)

from pipeline.reasons import BEHIND_GATE
from pipeline.state.batches import BATCH_COLUMNS, Batch, batch_of
from pipeline.state.conditions import MAY_HAVE_ARRIVED
from pipeline.state.tables import batches, requests, runs, sendings
from pipeline.states import OPEN_BATCHES, OUTCOMES, BatchState, Gate, RowState, RunReason


def set_gate(conn: Connection, run_id: int, gate: Gate | None) -> None:
    """What the run waits for from now on; None: nothing."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(gate=gate))


def note_no_canary(conn: Connection, run_id: int) -> None:
    """All rows of the run are sent at once, whoever goes on with it: a person said so."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(no_canary=True))


def open_gate(conn: Connection, run_id: int, gate: str, now: datetime) -> bool:
    """The rest of the run may be sent; False when the gate was open already."""
    here = (runs.c.id == run_id, runs.c.gate == gate)
    if not conn.execute(update(runs).where(*here).values(gate=None)).rowcount:
        return False
    behind = (batches.c.run_id == run_id, batches.c.state == BatchState.PLANNED, batches.c.due_at > now)
    waits = batches.c.reason.in_(list(BEHIND_GATE.values()))
    conn.execute(update(batches).where(*behind, waits).values(due_at=now, reason=None, problem=None))
    return True


def keeps_gate(conn: Connection, run_id: int, gate: str) -> bool:
    """Whether anything is there that opens this gate of the run: on its way, waiting to go again, or answered."""
    ahead = gate_batches(conn, run_id, gate)
    if any(batch.state in OPEN_BATCHES for batch in ahead) or waits_for_gate(conn, run_id, gate):
        return True
    return any(state in OUTCOMES for state in outcomes_of(conn, [batch.id for batch in ahead]))


def first_sent_at(conn: Connection, numbers: Sequence[int]) -> datetime | None:
    """When the first of these batches that came to the API, or may have, was sent, by its clock; None if none did."""
    query = select(func.min(sendings.c.started_at)).where(sendings.c.batch_id.in_(numbers), MAY_HAVE_ARRIVED)
    first: datetime | None = conn.scalar(query)
    return first


def gate_batches(conn: Connection, run_id: int, gate: str) -> list[Batch]:
    """The batches that open this gate of the run, but for dropped ones."""
    here = (batches.c.run_id == run_id, batches.c.gate == gate, batches.c.state != BatchState.DROPPED)
    return [batch_of(row) for row in conn.execute(select(*BATCH_COLUMNS).where(*here).order_by(batches.c.id))]


def waits_for_gate(conn: Connection, run_id: int, gate: str) -> bool:
    """Whether rows wait to be sent again in a batch that opens this gate of the run."""
    theirs = select(batches.c.id).where(batches.c.run_id == run_id, batches.c.gate == gate)
    waiting = (requests.c.run_id == run_id, requests.c.state == text("'pending'"), requests.c.body_id.in_(theirs))
    return conn.scalar(select(requests.c.id).where(*waiting).limit(1)) is not None


def outcomes_of(conn: Connection, numbers: Sequence[int]) -> dict[str, int]:
    """Rows that were sent in these batches last, by state."""
    query = select(requests.c.state, func.count()).where(requests.c.batch_id.in_(numbers)).group_by(requests.c.state)
    return dict(conn.execute(query).tuples().all())


def has_sent(conn: Connection, run_id: int, gate: Gate | None = None) -> bool:
    """Whether anything of the run, or of what opens this gate of it, has ever been sent, or may have been."""
    here = [batches.c.run_id == run_id, batches.c.account_id.is_not(None)]
    if gate is not None:
        here.append(batches.c.gate == gate)
    return conn.scalar(select(batches.c.id).where(*here).limit(1)) is not None


def canary_failed(conn: Connection, job_id: int, recipe: str) -> bool:
    """Whether a canary has ended a run with this recipe."""
    here = (runs.c.job_id == job_id, runs.c.recipe == recipe, runs.c.reason == RunReason.CANARY)
    return conn.scalar(select(runs.c.id).where(*here).limit(1)) is not None


def has_succeeded(conn: Connection, job_id: int, recipe: str) -> bool:
    """Whether a row has succeeded with this recipe, in a run that its canary did not end."""
    proven = or_(runs.c.reason.is_(None), runs.c.reason != RunReason.CANARY)
    query = (
        select(batches.c.outcomes)
        .join(runs, runs.c.id == batches.c.run_id)
        .where(batches.c.job_id == job_id, batches.c.recipe == recipe, batches.c.outcomes.is_not(None), proven)
    )
    return any((outcomes or {}).get(RowState.SUCCEEDED) for outcomes in conn.scalars(query))
