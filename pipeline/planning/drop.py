"""Takes planned batches back, and ends a plan or a run. Edge: SQL."""

from collections.abc import Container
from contextlib import suppress
from datetime import datetime
from typing import Any

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
    remove_vanished,
    stand_if_retry_is_over,
    stand_vanished,
    take_over,
    unneeded_bodies,
    waiting_for_nothing,
)
from pipeline.state.runs import end_run, forget_changed, mark_planned, open_runs, unfinished_retries
from pipeline.states import BatchState, RunReason, RunState


def drop_stale(
    driver: Driver, run_id: int, job: Job, recipe: str, stale: Container[int], retry: Selection | None = None
) -> None:
    """Drop the batches not sent yet that must not be sent as they are; call it before anything else is planned.

    Those are batches with a row that has changed since (stale), batches of an older recipe that the same command (with
    these vars, and this retry) has planned, whose waiting rows this run takes over, and batches whose body is damaged.
    One that another driver is just sending stays.
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
    """Remove the bodies of final batches that no waiting row needs, unless the job wants to keep them."""
    if job.privacy.keep_spool:
        return
    with driver.reading() as conn:
        unneeded = unneeded_bodies(conn, driver.job_id)
    if unneeded:
        for nonce in driver.spool.bodies(driver.now()).keys() & unneeded:
            driver.spool.remove(nonce)


def drop(
    driver: Driver, batch: Batch, reason: Reason, detail: str | None = None, *, body: bool = True, claimed: bool = False
) -> None:
    """Drop a planned batch; its rows wait. Under the lease on planning. Raises LostRace when another driver has it.

    body: whether the requests can still be read from its body. claimed: whether this driver has claimed the batch.
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
    """Drop a planned batch that this driver has not claimed; it stays when another driver is just sending it."""
    with suppress(LostRace):
        drop(driver, batch, reason, detail, body=body)


def drop_claimed(driver: Driver, batch: Batch, reason: Reason, detail: str | None = None, *, body: bool = True) -> bool:
    """Drop a planned batch that we have claimed. False while a driver plans the job: the batch is due a second later.

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


LOOK_AFTER_PLANNING = 1.0  # seconds until a batch that may not be dropped while a driver plans is tried again


def drop_planned(driver: Driver, why: str | None, run_ids: Container[int] | None = None) -> None:
    """Drop the planned batches of the job, or of some runs, which have ended. Under the lease on planning.

    Their rows wait again. why: the reason for which the runs ended, where it is known.
    """
    with driver.reading() as conn:
        planned = batches_in(conn, driver.job_id, BatchState.PLANNED)
    for batch in planned:
        if run_ids is None or batch.run_id in run_ids:
            _drop_unless_sent(driver, batch, Reason.RUN_ENDED, why)


def finish_planning(
    driver: Driver, run_id: int, variables: dict[str, Any], *, whole: bool, retry: bool = False, now: datetime
) -> int:
    """The planning has come to its end: note it, and remove rows that vanished from the source; how many.

    whole: whether it has looked at all of the source. retry: whether it was of a retry, over all of the source: its
    rows that vanished stand with their outcomes.
    """
    with driver.planning_transaction(run_id) as conn:
        if retry:
            stand_vanished(conn, run_id)
        vanished = remove_vanished(conn, run_id, variables) if whole else 0
        forget_changed(conn, run_id)
        mark_planned(conn, run_id, vanished=vanished, now=now)
    return vanished


def pack_smaller(driver: Driver, batch: Batch, job: Job, first: First, why: Reason) -> None:
    """Put the rows of a planned batch that we have claimed into this first one, and the rest into others.

    If we die in between, its rows wait, and are packed as ever by whoever comes next.
    """
    if drop_claimed(driver, batch, why):
        with suppress(Busy), driver.planning():
            for _ in send_again(driver, job, batch.run_id, batch.recipe, first=first):
                driver.stop.check()


def stop_run(driver: Driver, run_id: int, reason: RunReason) -> bool:
    """End a run before its end: what it has not sent yet is not sent. False while somebody plans the job."""
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
    """Drop the batches that came back from being sent when their run had been ended. Under the lease on planning.

    And let rows stand that came to wait for a retry just when it was ended.
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
