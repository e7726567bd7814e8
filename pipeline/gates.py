"""What a run sends first and waits for: the canary of a new recipe, and the row that fills the prompt cache.

The API looks at a request only while it works on its batch, so 100,000 wrong ones are known an hour later. The gate
stands in the state database, not in a process: whoever has collected what went first opens it, or ends the run. If we
die between the two, the next pass of any driver finds the gate with nothing left to wait for, and decides.
"""

from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row

from pipeline import store
from pipeline.driver import Driver
from pipeline.job import Canary, Job
from pipeline.repack import First, stop_run
from pipeline.states import CLOSED_BATCHES, OUTCOMES, Gate, RowState, RunReason

PRIMED_ROWS = 3  # a run that has fewer gains nothing by waiting for its first one
LONGEST_WAIT = timedelta(hours=2)  # for the primer, which only makes the others cheaper


def wanted(job: Job, *, rows: int, proven: bool, failed: bool, primes: bool) -> Gate | None:
    """What a run has to wait for. Pure.

    rows: how many it is going to send; proven: whether a row has succeeded with its recipe, or the run's canary is
    past; failed: whether a canary of the recipe has; primes: whether what its requests share is to be written to the
    prompt cache. A canary does that as well.
    """
    if isinstance(job.canary, Canary) and not proven and (failed or job.canary.is_for(rows)):
        return Gate.CANARY
    return Gate.PRIMER if primes and rows >= PRIMED_ROWS else None


class Standing(NamedTuple):
    """What is known of a run before it is planned. gate: that it waits behind; sent: whether anything of it was sent.

    passed: whether its canary was sent; proven, failed: see `wanted`; keeps_gate: see store.keeps_gate.
    """

    gate: str | None = None
    keeps_gate: bool = False
    no_canary: bool = False
    passed: bool = False
    proven: bool = False
    failed: bool = False
    sent: bool = False


def standing(conn: Connection, job_id: int, recipe: str, run: Row[Any] | None) -> Standing:
    """How the open run stands that the same command goes on with; None: it begins a new one."""
    proven, failed = store.has_succeeded(conn, job_id, recipe), store.canary_failed(conn, job_id, recipe)
    if run is None:
        return Standing(proven=proven, failed=failed)
    keeps = run.gate is not None and store.keeps_gate(conn, run.id, run.gate)
    passed = store.has_sent(conn, run.id, Gate.CANARY)  # and its gate is open: once for each run
    return Standing(run.gate, keeps, run.no_canary, passed, proven, failed, store.has_sent(conn, run.id))


def gate_of(job: Job, known: Standing, *, rows: int, canary: bool, primes: bool) -> Gate | None:
    """The gate that a run waits behind from now on. Pure.

    canary: whether this command allows one; rows, primes: see `wanted`.
    """
    allowed = canary and not known.no_canary and job.canary is not False
    if known.gate is not None and (known.gate == Gate.PRIMER or allowed):
        return Gate(known.gate)
    if known.gate is not None:  # it is opened
        return None
    return wanted(
        job,
        rows=rows,
        proven=not allowed or known.passed or known.proven,
        failed=known.failed,
        primes=primes and not known.sent,
    )


def first(job: Job, gate: str) -> First:
    """The batch that opens this gate. Pure."""
    canary = job.canary.rows if isinstance(job.canary, Canary) else 1
    return First(canary if gate == Gate.CANARY else 1, gate)


def look(driver: Driver, run_id: int, job: Job) -> None:
    """Open the gate of a run when what went first has come back, or end the run when that went wrong."""
    with driver.reading() as conn:
        gate = store.run(conn, run_id).gate
        if gate is None:
            return
        ahead = store.gate_batches(conn, run_id, gate)
        if not ahead or store.waits_for_gate(conn, run_id, gate):
            return
        back = all(batch.state in CLOSED_BATCHES for batch in ahead)
        numbers = [batch.id for batch in ahead]
        rows, sent_at = store.outcomes_of(conn, numbers), store.first_sent_at(conn, numbers)
    if gate == Gate.PRIMER:
        if back or (sent_at is not None and driver.api.now() - sent_at > LONGEST_WAIT):
            _open(driver, run_id, gate)
        return
    answered = sum(rows.get(state, 0) for state in OUTCOMES)
    if not back or not answered:
        return
    failed = answered - rows.get(RowState.SUCCEEDED, 0)
    if failed > allowed(job) * answered:
        driver.tell("canary_failed", run=run_id, failed=failed, rows=answered)
        stop_run(driver, run_id, RunReason.CANARY)
    else:
        _open(driver, run_id, gate, failed=failed, rows=answered)


def allowed(job: Job) -> float:
    """The share of the first rows that may fail. Pure."""
    return job.canary.max_failed if isinstance(job.canary, Canary) else Canary().max_failed


def _open(driver: Driver, run_id: int, gate: str, **facts: int) -> None:
    with driver.database.write() as conn:
        opened = store.open_gate(conn, run_id, gate, driver.now())
    if opened:
        driver.tell("gate_opened", run=run_id, gate=gate, **facts)
