"""Open the gate of a run when its canary or primer is done, or stop the run when its canary failed. Edge: SQL.

The gate is stored in the state database, not in a process. If we die after the canary is collected and before the gate
is opened, the next pass of any driver sees that the gate has nothing left to wait for, and decides.
"""

from datetime import timedelta

from pipeline.driver.driver import Driver
from pipeline.events.runs import CanaryFailed, GateOpened
from pipeline.job.model import Canary, Job
from pipeline.planning.drop import stop_run
from pipeline.state.gates import first_sent_at, gate_batches, open_gate, outcomes_of, waits_for_gate
from pipeline.state.runs import get_run
from pipeline.states import CLOSED_BATCHES, OUTCOMES, Gate, RowState, RunReason

LONGEST_WAIT = timedelta(hours=2)  # for the primer: it only makes the other requests cheaper


def evaluate(driver: Driver, run_id: int, job: Job) -> None:
    """Open the gate of a run when its canary or primer is done, or stop the run when too many canary rows failed.

    Do nothing when the run has no gate, or its gate still has to wait. A primer opens the gate even if it failed, and
    after LONGEST_WAIT even if it is not done.
    """
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
    """Return the share of canary rows that may fail, 0 to 1. Pure."""
    return job.canary.max_failed if isinstance(job.canary, Canary) else Canary().max_failed


def _open(driver: Driver, run_id: int, gate: str, failed: int | None = None, rows: int | None = None) -> None:
    with driver.database.write() as conn:
        opened = open_gate(conn, run_id, gate, driver.now())
    if opened:
        driver.tell(GateOpened(run=run_id, gate=gate, failed=failed, rows=rows))
