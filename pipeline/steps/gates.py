"""Open the gate of a run when its canary or primer is done, or stop the run when its canary failed. Edge: SQL.

The gate is stored in the state database, not in a process. If we die after the canary is collected and before the gate
is opened, the next pass of any driver sees that the gate has nothing left to wait for, and decides.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from pipeline.driver.driver import Driver
from pipeline.events.runs import CanaryFailed, CanaryMissed, GateOpened, Warned
from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.planning.drop import stop_run
from pipeline.quality.canary import judge_canary
from pipeline.quality.figures import confusions_in_words
from pipeline.state.gates import canaries_failed, first_sent_at, gate_batches, open_gate, outcomes_of, waits_for_gate
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
            _open(driver, GateOpened(run=run_id, gate=gate))
        return
    answered = sum(rows.get(state, 0) for state in OUTCOMES)
    if not back or not answered:
        return
    failed = answered - rows.get(RowState.SUCCEEDED, 0)
    if failed > share_that_may_fail(job) * answered:
        driver.tell(CanaryFailed(run=run_id, failed=failed, rows=answered))
        stop_run(driver, run_id, RunReason.CANARY)
        return
    share = _judged_by_gold(driver, run_id, job, [batch.api_id for batch in ahead if batch.api_id is not None])
    if share is False:
        stop_run(driver, run_id, RunReason.CANARY)
    else:
        right, judged = share or (None, None)
        _open(driver, GateOpened(run=run_id, gate=gate, failed=failed, rows=answered, right=right, judged=judged))


def _judged_by_gold(
    driver: Driver, run_id: int, job: Job, batches: Sequence[str]
) -> tuple[int, int] | Literal[False] | None:
    """Return right and judged answers of a canary that reaches canary.min_accuracy; False, and tell it, if it does not.

    batches: the API's ids of its batches. None if its accuracy does not matter, or, and tell it, if it has no gold.
    """
    canary = job.canary
    if not isinstance(canary, Canary) or canary.min_accuracy is None:
        return None
    found = judge_canary(driver.database, driver.sink, job, batches)
    if found is None:
        driver.tell(Warned(warning="canary.min_accuracy was not looked at: no answer of the canary has gold"))
        return None
    figures, judged = found
    accuracy = figures.accuracy
    if judged.passed:
        return accuracy.right, accuracy.rows
    with driver.reading() as conn:
        tries = canaries_failed(conn, driver.job_id) + 1
    driver.tell(
        CanaryMissed(
            run=run_id,
            right=accuracy.right,
            judged=accuracy.rows,
            min_accuracy=judged.minimum,
            judge=judged.judge,
            figure=judged.figure,
            opens_at=judged.opens_at,
            confused=confusions_in_words(figures),
            tries=tries,
        )
    )
    return False


def share_that_may_fail(job: Job) -> float:
    """Return the share of canary rows that may fail, 0 to 1. Pure."""
    return job.canary.max_failed if isinstance(job.canary, Canary) else Canary().max_failed


def _open(driver: Driver, opened: GateOpened) -> None:
    """Open the gate of a run, and tell it unless another driver has opened it."""
    with driver.database.write() as conn:
        is_new = open_gate(conn, opened.run, opened.gate, driver.now())
    if is_new:
        driver.tell(opened)
