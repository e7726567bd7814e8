"""Opens the gate of a run when what went first has come back, or ends the run.

The gate is in the state database, not in a process. If we die between collecting and opening, the next pass of any
driver finds the gate with nothing left to wait for, and decides.
"""

from datetime import timedelta

from pipeline.driver.driver import Driver
from pipeline.events.runs import CanaryFailed, GateOpened
from pipeline.job.model import Canary, Job
from pipeline.planning.drop import stop_run
from pipeline.state.gates import first_sent_at, gate_batches, open_gate, outcomes_of, waits_for_gate
from pipeline.state.runs import get_run
from pipeline.states import CLOSED_BATCHES, OUTCOMES, Gate, RowState, RunReason

LONGEST_WAIT = timedelta(hours=2)  # for the primer, which only makes the others cheaper


def evaluate(driver: Driver, run_id: int, job: Job) -> None:
    """Open the gate of a run when what went first has come back, or end the run when that went wrong."""
    with driver.reading() as conn:
        gate = get_run(conn, run_id).gate
        if gate is None:
            return
        ahead = gate_batches(conn, run_id, gate)
        if not ahead or waits_for_gate(conn, run_id, gate):
            return
        back = all(batch.state in CLOSED_BATCHES for batch in ahead)
        numbers = [batch.id for batch in ahead]
        rows, sent_at = outcomes_of(conn, numbers), first_sent_at(conn, numbers)
    if gate == Gate.PRIMER:
        if back or (sent_at is not None and driver.api.now() - sent_at > LONGEST_WAIT):
            _open(driver, run_id, gate)
        return
    answered = sum(rows.get(state, 0) for state in OUTCOMES)
    if not back or not answered:
        return
    failed = answered - rows.get(RowState.SUCCEEDED, 0)
    if failed > share_that_may_fail(job) * answered:
        driver.tell(CanaryFailed(run=run_id, failed=failed, rows=answered))
        stop_run(driver, run_id, RunReason.CANARY)
    else:
        _open(driver, run_id, gate, failed=failed, rows=answered)


def share_that_may_fail(job: Job) -> float:
    """The share of the first rows that may fail. Pure."""
    return job.canary.max_failed if isinstance(job.canary, Canary) else Canary().max_failed


def _open(driver: Driver, run_id: int, gate: str, failed: int | None = None, rows: int | None = None) -> None:
    with driver.database.write() as conn:
        opened = open_gate(conn, run_id, gate, driver.now())
    if opened:
        driver.tell(GateOpened(run=run_id, gate=gate, failed=failed, rows=rows))
