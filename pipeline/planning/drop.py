"""Drop planned batches, finish a planning, and end a run early. Edge: SQL, files."""

from collections.abc import Container
from contextlib import suppress
from datetime import datetime
from typing import Any

from pipeline.driver.bodies import unneeded
from pipeline.driver.driver import Driver
from pipeline.errors import Busy, LostRace
from pipeline.events.batches import Dropped
from pipeline.events.runs import RunIncomplete
from pipeline.job.model import Job
from pipeline.planning.packer import First
from pipeline.planning.resend import send_again
from pipeline.planning.selection import Selection
from pipeline.reasons import Reason, in_words
from pipeline.spool.spool import KnownBody
from pipeline.state.batches import Batch, batches_in
from pipeline.state.claims import check_claim
from pipeline.state.conditions import soon
from pipeline.state.moves import drop_batch, postpone
from pipeline.state.rows import (
    forget_body,
    forget_rounds,
    remove_vanished,
    stand_if_retry_is_over,
    stand_vanished,
    take_over,
    waiting_for_nothing,
)
from pipeline.state.runs import end_run, forget_changed, mark_planned, open_runs, unfinished_retries
from pipeline.state.turns import carry_over_vanished
from pipeline.states import BatchState, RunReason, RunState


def drop_stale(
    driver: Driver, run_id: int, job: Job, recipe: str, stale: Container[int], retry: Selection | None = None
) -> None:
    """Drop the planned batches that must not be sent any more; call it before anything else is planned.

    These are: batches with a row that has changed since they were planned (`stale`, by number); batches of an older
    recipe that an earlier run of the same command (same vars, same retry) has planned; and batches whose body is
    missing or damaged. This run takes over the pending rows of those earlier runs. A batch that another driver is
    sending at this moment is not dropped.
    """
    facts = None if retry is None else retry.facts()
    with driver.reading() as conn:
        planned = batches_in(conn, driver.job_id, BatchState.PLANNED)
    damaged = driver.spool.damaged(KnownBody(batch.nonce, batch.digest, batch.size_bytes) for batch in planned)
    with driver.planning_transaction() as conn:
        unfinished = open_runs(conn, driver.job_id) + unfinished_retries(conn, driver.job_id)
        same_command = {r.id: r for r in unfinished if r.id != run_id and (r.vars, r.retry) == (job.vars, facts)}
        older = list(same_command.values())
        superseded = [run.id for run in older if run.recipe != recipe]
        for run in older:
            if run.planned_at is None:
                mark_planned(conn, run.id, vanished=0, now=driver.now())
    for batch in planned:
        if batch.nonce in damaged:
            _drop_unless_sent(driver, batch, Reason.BODY_GONE, body=False)
        elif batch.run_id in superseded:
            _drop_unless_sent(driver, batch, Reason.OLD_RECIPE)
        elif batch.id in stale:
            _drop_unless_sent(driver, batch, Reason.ROW_CHANGED)
    with driver.planning_transaction() as conn:
        take_over(conn, run_id, superseded)
    remove_unneeded(driver, job)


def remove_unneeded(driver: Driver, job: Job) -> None:
    """Remove from the spool the bodies of final batches that no row needs, unless the job keeps its spool."""
    if job.privacy.keep_spool:
        return
    free = unneeded(driver, job)
    if free:
        for nonce in driver.spool.bodies(driver.now()).keys() & free:
            driver.spool.remove(nonce)


def drop(
    driver: Driver, batch: Batch, reason: Reason, detail: str | None = None, *, body: bool = True, claimed: bool = False
) -> None:
    """Drop a planned batch, so that its rows are pending again. Call it under the lease on planning.

    body: whether the requests can still be read from its body. claimed: whether this driver has claimed the batch.
    Raises LostRace if another driver has claimed it.
    """
    with driver.planning_transaction() as conn:
        if claimed:
            check_claim(conn, batch)
        drop_batch(conn, batch, reason, detail)
        if not body:
            forget_body(conn, batch.id)
    driver.tell(Dropped(batch=batch.id, problem=in_words(reason, detail)))


def _drop_unless_sent(
    driver: Driver, batch: Batch, reason: Reason, detail: str | None = None, *, body: bool = True
) -> None:
    """Drop a planned batch that this driver has not claimed; do nothing if another driver is sending it."""
    with suppress(LostRace):
        drop(driver, batch, reason, detail, body=body)


def drop_claimed(driver: Driver, batch: Batch, reason: Reason, detail: str | None = None, *, body: bool = True) -> bool:
    """Drop a planned batch that we have claimed, and return True.

    Return False if a driver is planning the job: then the batch is not dropped, but postponed by LOOK_AFTER_PLANNING.
    body: whether the requests can still be read from its body.
    """
    try:
        with driver.planning():
            drop(driver, batch, reason, detail, body=body, claimed=True)
    except Busy:
        with driver.moving(batch) as conn:
            due_at = soon(driver.now(), LOOK_AFTER_PLANNING)
            postpone(conn, batch, due_at=due_at, reason=reason, problem=detail)
        return False
    return True


LOOK_AFTER_PLANNING = 1.0  # seconds until a batch that could not be dropped during a planning is due again


def drop_planned(driver: Driver, why: str | None, run_ids: Container[int] | None = None) -> None:
    """Drop the planned batches of runs that have ended, so that their rows are pending again.

    Call it under the lease on planning. why: why the runs ended; None: that is not known. run_ids: the runs; None: all
    runs of the job.
    """
    with driver.reading() as conn:
        planned = batches_in(conn, driver.job_id, BatchState.PLANNED)
    for batch in planned:
        if run_ids is None or batch.run_id in run_ids:
            _drop_unless_sent(driver, batch, Reason.RUN_ENDED, why)


def finish_planning(
    driver: Driver,
    run_id: int,
    variables: dict[str, Any],
    *,
    whole: bool,
    awaits: bool = False,
    retry: bool = False,
    now: datetime,
) -> int:
    """Mark a run as planned, and return how many of the job's rows have vanished from the source.

    whole: whether the planning has read all of the source; if not, it returns 0. awaits: whether it has seen rows in
    flight that the run waits for. retry: whether it was the planning of a retry and has read all of the source; then
    the retry's rows that have vanished return to their earlier outcomes.
    """
    with driver.planning_transaction(run_id) as conn:
        if retry:
            stand_vanished(conn, run_id)
        if whole and not awaits:
            forget_rounds(conn, run_id, variables)
        vanished = remove_vanished(conn, run_id, variables) if whole else 0
        if whole:
            carry_over_vanished(conn, run_id, variables)
        forget_changed(conn, run_id)
        mark_planned(conn, run_id, vanished=vanished, now=now)
    return vanished


def pack_smaller(driver: Driver, batch: Batch, job: Job, first: First, why: Reason) -> None:
    """Drop a planned batch that we have claimed, and pack its rows again into a smaller first batch and others.

    first: the limits of the first new batch. While another driver plans the job, the batch is only postponed. If we die
    after the drop and before the packing, the rows are pending, and the next driver packs them as usual.
    """
    if drop_claimed(driver, batch, why):
        with suppress(Busy), driver.planning():
            for _ in send_again(driver, job, batch.run_id, batch.recipe, first=first):
                driver.stop.check()


def stop_run(driver: Driver, run_id: int, reason: RunReason) -> bool:
    """End a run early as incomplete, drop its planned batches, and return True.

    Return False, with nothing changed, while a driver plans the job.
    """
    try:
        with driver.planning():
            with driver.planning_transaction() as conn:
                ended = end_run(conn, run_id, RunState.INCOMPLETE, reason=reason, now=driver.now())
            drop_planned(driver, reason.value, {run_id})
    except Busy:
        return False
    if ended:
        driver.tell_end(RunIncomplete(run=run_id, reason=reason))
    return True


def drop_of_ended_runs(driver: Driver) -> None:
    """Drop the planned batches that are left of ended runs. Call it under the lease on planning.

    A batch is left if another driver was sending it at the moment when its run ended. Rows of a retry that became
    pending at the moment when the retry ended return to their earlier outcomes.
    """
    with driver.reading() as conn:
        planned = batches_in(conn, driver.job_id, BatchState.PLANNED)
        ended = {batch.run_id for batch in planned} - {run.id for run in open_runs(conn, driver.job_id)}
        waited_for = waiting_for_nothing(conn, driver.job_id)
    if ended:
        drop_planned(driver, None, ended)
    if waited_for:
        with driver.planning_transaction() as conn:
            for run_id in waited_for:
                stand_if_retry_is_over(conn, run_id)
