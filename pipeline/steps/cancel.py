"""End a job's open runs for all drivers, and cancel its batches at the API that have not ended. Edge: SQL, HTTP.

The first transaction ends the runs and marks the batches as to be canceled. From then on no driver plans or submits for
these runs. If we die on the line after it, the next driver that polls the batches cancels them. Results of requests
that had succeeded are collected. Rows that wait for a retry return to their earlier outcome, in the transaction that
ends the retry. If we die before the end of the runs is announced, the next `collect`, `run` or `cancel` announces it.
"""

import contextlib
from dataclasses import dataclass

from pipeline.driver.driver import Driver
from pipeline.driver.environment import Environment
from pipeline.errors import Busy, InputError, Stopped
from pipeline.events.runs import JobCanceled
from pipeline.planning.drop import drop_planned
from pipeline.state import ends
from pipeline.state.batches import batches_in
from pipeline.state.claims import to_abandon
from pipeline.state.jobs import JobRecord
from pipeline.state.moves import ask_to_cancel
from pipeline.state.runs import cancel_stopped_retries, end_run, open_runs
from pipeline.states import AT_THE_API, BatchState, RunReason, RunState
from pipeline.steps import lost
from pipeline.steps.poll import poll_due
from pipeline.steps.reconcile import reconcile_due

LONGEST_LOOK = 30.0  # seconds that a planner may take to notice that its run has ended
LOOK_SECONDS = 0.5
SENT = (BatchState.SUBMITTING, *AT_THE_API, BatchState.ENDED)


@dataclass(frozen=True)
class Canceled:
    """What `cancel` did.

    runs: how many runs it ended. open: how many sent batches are not collected yet: they are or may be at the API, or
    have just ended. foreign: how many of these another account has sent.
    """

    runs: int
    open: int
    foreign: int


def cancel(where: Environment, job: JobRecord, *, abandon: bool = False) -> Canceled:
    """End the job's open runs, drop its batches that are not sent yet, and cancel those at the API. Safe to call again.

    abandon: whether to give up the batches that another account has sent, or that the API has not ended in time: their
    rows are lost. Raises Busy when a planner does not notice in time that its run has ended, and Stopped when the API
    cannot be asked; in both cases the runs are ended already.
    """
    with where.database.write() as conn:
        ended = [run.id for run in open_runs(conn, job.id)]
        for run_id in ended:
            end_run(conn, run_id, RunState.INCOMPLETE, reason=RunReason.CANCELED, now=where.now())
        cancel_stopped_retries(conn, job.id)
        ask_to_cancel(conn, job.id)
    with contextlib.ExitStack() as stack:
        try:
            driving = stack.enter_context(where.driving(where.endpoint_of(job)))
        except (InputError, Stopped) as exc:
            raise Stopped(
                f"the runs of {job.name} have ended and send nothing more, but the API could not be asked to cancel "
                f"their batches: {exc}; run the same command again, or `collect`, to cancel them"
            ) from exc
        return _cancel(driving.driver(job), len(ended), abandon=abandon)


def _cancel(driver: Driver, runs: int, *, abandon: bool) -> Canceled:
    """Drop, give up or cancel the job's batches, when its runs have ended. runs: how many `cancel` ended."""
    _drop_when_nobody_plans(driver)
    if abandon:
        for batch in driver.claims(*SENT, only=to_abandon(driver.account_id)):
            with driver.lost_races(batch):
                ours = batch.account_id == driver.account_id
                why = "the API has not ended it in time" if ours else "it was sent by another account"
                lost.give_up(driver, batch, f"{why}, and given up by `cancel --abandon`")
    reconcile_due(driver)
    poll_due(driver)  # also cancels the batches that are marked as to be canceled
    with driver.reading() as conn:
        left = batches_in(conn, driver.job_id, *SENT)
    foreign = sum(batch.account_id != driver.account_id for batch in left)
    driver.tell(JobCanceled(runs=runs, open=len(left), foreign=foreign))
    _note_told(driver)
    return Canceled(runs, len(left), foreign)


def _note_told(driver: Driver) -> None:
    """Note that the end of the job's canceled runs is announced, also of runs that an earlier `cancel` ended."""
    with driver.reading() as conn:
        untold = ends.untold(conn, driver.job_id)
    canceled = {end.run_id: end.ended_at for end in untold if end.reason == RunReason.CANCELED}
    ends.note_told(driver.database, canceled, driver.now())


def _drop_when_nobody_plans(driver: Driver) -> None:
    """Drop the job's planned batches, as soon as no other driver plans the job.

    Raises Busy when another driver still plans after LONGEST_LOOK seconds.
    """
    waited = 0.0
    while True:
        try:
            with driver.planning():
                return drop_planned(driver, RunReason.CANCELED.value)
        except Busy as exc:
            if waited >= LONGEST_LOOK:
                raise Busy(f"{exc}; then run `cancel` again") from exc
            driver.stop.wait(LOOK_SECONDS)
            waited += LOOK_SECONDS
