"""The moves of a batch, one function for each, only from the state that it expects. Edge: SQL."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    text,
    update,
)

from pipeline.errors import LostRace
from pipeline.reasons import HELD_BACK, Reason, in_words
from pipeline.request.packing import Packing
from pipeline.state.batches import BATCH_COLUMNS, Batch, batch_of, is_owned
from pipeline.state.bulk import Bulk
from pipeline.state.conditions import AT_ONCE, IS_RETRY, inserted_id
from pipeline.state.rows import stand_if_retry_is_over
from pipeline.state.tables import batches, requests, runs, sendings
from pipeline.state.tallies import moved
from pipeline.states import AT_THE_API, BATCH_MOVES, BatchState, RowState, SendingEnd


class Late(StrEnum):
    """What became of a batch that turned out to be at the API after its sending had been concluded absent."""

    ADOPTED = "adopted"  #: its rows had not been sent again: they wait for its results
    TWIN = "twin"  #: they had: both are paid


def record_late(conn: Connection, sending: int, api_id: str, *, now: datetime, shown: bool) -> Late | None:
    """A sending that was concluded absent was accepted after all.

    A batch that is planned again is adopted: planned -> in_progress; a driver that has claimed it loses at its intent.
    shown: by the listing, where it may be a later sending of the same body whose end is not known yet; else the API
    has answered this very sending. None when nothing is to be done.
    """
    number = conn.execute(select(sendings.c.batch_id).where(sendings.c.id == sending)).scalar_one()
    query = select(*BATCH_COLUMNS).where(batches.c.id == number).with_for_update(key_share=True)
    batch = batch_of(conn.execute(query).one())
    if is_owned(conn, api_id) or (shown and batch.state is BatchState.SUBMITTING):
        return None
    came = Late.ADOPTED if batch.state is BatchState.PLANNED else Late.TWIN
    end: dict[str, Any] = {"end": SendingEnd.ADOPTED, "problem": None}
    if came is Late.TWIN:
        end = {"end": SendingEnd.TWIN, "problem": twin_problem(api_id)}
    here = (sendings.c.id == sending, sendings.c.api_id.is_(None))
    if not conn.execute(update(sendings).where(*here).values(api_id=api_id, ended_at=now, **end)).rowcount:
        return None
    if came is Late.ADOPTED:
        mark_in_progress(conn, batch, api_id, due_at=now)
    return came


def twin_problem(api_id: str) -> str:
    """What is to be said of a batch that was sent twice."""
    return f"{api_id} was accepted, though the API's listing did not show it in time: paid twice"


def _move(conn: Connection, batch: Batch, to: BatchState, **values: Any) -> None:
    """Move one batch, only from the state we believe it is in, and let it go. Raises LostRace if it is not there.

    What was said of it in its old state is no longer so.
    """
    assert to in BATCH_MOVES[batch.state], f"{batch.state} -> {to} is no legal move"
    here = (batches.c.id == batch.id, batches.c.state == batch.state)
    values = {"claimed_by": None, "reason": None, "problem": None, **values}
    if conn.execute(update(batches).where(*here).values(state=to, **values)).rowcount != 1:
        raise LostRace(f"batch {batch.id} is no longer {batch.state}; the same command again goes on")


# Rows planned one after the other have consecutive numbers and positions: one statement claims them all.
_CLAIMED = (
    update(requests)
    .where(
        requests.c.id.between(bindparam("first"), bindparam("last")),
        requests.c.run_id == bindparam("run"),
        requests.c.state == text("'pending'"),
    )
    .values(
        state=text("'in_flight'"),
        batch_id=bindparam("batch"),
        n=requests.c.id - bindparam("offset"),
        body_id=bindparam("body"),
        body_n=requests.c.id - bindparam("offset_"),
    )
)
# The attempts of a retry start at 0 with the batch that it planned from the source, and not before: what was planned
# and is in no batch may still be left with its outcome. A row that has a body has been in such a batch.
_STARTED_BY_RETRY = case((requests.c.body_id.is_(None), -func.abs(requests.c.attempts)), else_=requests.c.attempts)
_CLAIM_PARAMETERS = ("first", "last", "offset", "offset_", "run", "batch", "body")
_CLAIM = Bulk(_CLAIMED, _CLAIM_PARAMETERS)
_CLAIM_FOR_RETRY = Bulk(_CLAIMED.values(attempts=_STARTED_BY_RETRY), _CLAIM_PARAMETERS)


class _Stretch(NamedTuple):
    """Rows whose numbers and positions count up together. offset: the number of each minus its position."""

    first: int
    last: int
    offset: int


def _consecutive(rows: Sequence[tuple[int, int]]) -> list[_Stretch]:
    """(row, n) pairs as few stretches, in their order."""
    starts = [i for i, (row, n) in enumerate(rows) if i == 0 or rows[i - 1] != (row - 1, n - 1)]
    ends = [*starts[1:], len(rows)]
    return [
        _Stretch(first=rows[start][0], last=rows[end - 1][0], offset=rows[start][0] - rows[start][1])
        for start, end in zip(starts, ends, strict=False)
    ]


def add_batch(
    conn: Connection,
    *,
    job_id: int,
    run_id: int,
    recipe: str,
    contents: Packing,
    digest: str,
    gate: str | None,
    now: datetime,
) -> int:
    """A new planned batch, and its rows pending -> in_flight. Raises LostRace when one of them is not free.

    The attempts of rows that a retry has planned start at 0. gate: of its run, that it opens; None for an ordinary
    batch.
    """
    created = conn.execute(
        insert(batches).values(
            job_id=job_id,
            run_id=run_id,
            state=BatchState.PLANNED,
            recipe=recipe,
            nonce=contents.nonce,
            digest=digest,
            size_bytes=contents.size,
            requests=contents.requests,
            rows=len(contents.rows),
            max_output_usd=None if contents.unpriced else contents.fixed_usd,
            max_input_usd=None if contents.unpriced else contents.byte_usd,
            gate=gate,
            cost_usd=0.0,
            downloads=0,
            wait_seconds=0.0,
            created_at=now,
            due_at=now,
        )
    )
    batch = inserted_id(created)
    stretches = _consecutive(contents.rows)
    claims = [(first, last, offset, offset, run_id, batch, batch) for first, last, offset in stretches]
    claim = _CLAIM_FOR_RETRY if conn.scalar(select(IS_RETRY).where(runs.c.id == run_id)) else _CLAIM
    if claim.execute(conn, claims) != len(contents.rows):
        raise LostRace("another driver planned some of these rows; the same command again goes on")
    moved(conn, run_id, RowState.PENDING, RowState.IN_FLIGHT, len(contents.rows))
    return batch


def drop_batch(conn: Connection, batch: Batch, reason: Reason, detail: str | None = None) -> None:
    """planned -> dropped: it is not going to be sent; its rows are pending again. Under the lease on planning.

    Rows of a retry that is over stand with their outcomes instead.
    """
    _move(conn, batch, BatchState.DROPPED, reason=reason, problem=detail)
    back = (
        update(requests)
        .where(requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
        .values(state=RowState.PENDING, batch_id=None, n=None)
    )
    moved(conn, batch.run_id, RowState.IN_FLIGHT, RowState.PENDING, conn.execute(back).rowcount)
    stand_if_retry_is_over(conn, batch.run_id)


def begin_sending(
    conn: Connection,
    batch: Batch,
    account_id: int,
    *,
    driver: str,
    started_at: datetime,
    deadline: datetime,
    due_at: datetime,
    reserved_usd: float | None,
) -> tuple[Batch, int]:
    """planned -> submitting, with the intent: from here on a create may reach the API. The batch stays claimed.

    driver: the sign of life of the one who sends; started_at, deadline: by the API's clock; reserved_usd: what it may
    cost at most. Returns the batch as it is now and the sending's number.
    """
    _move(conn, batch, BatchState.SUBMITTING, account_id=account_id, due_at=due_at, claimed_by=driver)
    values: dict[str, Any] = {"batch_id": batch.id, "account_id": account_id, "driver": driver}
    values |= {"started_at": started_at, "deadline": deadline, "reserved_usd": reserved_usd}
    sending = inserted_id(conn.execute(insert(sendings).values(**values)))
    return replace(batch, state=BatchState.SUBMITTING, account_id=account_id), sending


def record_api_id(conn: Connection, sending: int, api_id: str, request_id: str | None, now: datetime) -> Late | None:
    """The API accepted this sending. Recorded even by a driver that has lost its claim: the fact is a fact.

    Returns what became of it where another driver has concluded meanwhile that it was absent.
    """
    values = {"end": SendingEnd.ACCEPTED, "api_id": api_id, "request_id": request_id, "ended_at": now}
    open_end = or_(sendings.c.end.is_(None), sendings.c.end == SendingEnd.UNKNOWN)
    here = (sendings.c.id == sending, sendings.c.api_id.is_(None), open_end)
    if conn.execute(update(sendings).where(*here).values(**values)).rowcount:
        return None
    return record_late(conn, sending, api_id, now=now, shown=False)


def mark_in_progress(conn: Connection, batch: Batch, api_id: str, *, due_at: datetime) -> None:
    """submitting -> in_progress: the API has it under this id."""
    _move(conn, batch, BatchState.IN_PROGRESS, api_id=api_id, due_at=due_at, wait_seconds=0.0)


def mark_rejected(
    conn: Connection,
    batch: Batch,
    sending: int,
    problem: str,
    request_id: str | None,
    *,
    now: datetime,
    due_at: datetime,
) -> None:
    """submitting -> planned: proven that the API took nothing. due_at: not to be tried again before."""
    values = {"end": SendingEnd.REJECTED, "problem": problem, "request_id": request_id, "ended_at": now}
    conn.execute(update(sendings).where(sendings.c.id == sending).values(**values))
    _plan_again(conn, batch, due_at=due_at, problem=problem)


def _plan_again(conn: Connection, batch: Batch, *, due_at: datetime, **values: Any) -> None:
    """submitting -> planned; or -> in_progress where an earlier sending turned out to be at the API meanwhile."""
    late = (sendings.c.batch_id == batch.id, sendings.c.end == SendingEnd.TWIN)
    twin = conn.execute(select(sendings.c.id, sendings.c.api_id).where(*late).order_by(sendings.c.id).limit(1)).first()
    if twin is None:
        _move(conn, batch, BatchState.PLANNED, due_at=due_at, **values)
        return
    adopted = {"end": SendingEnd.ADOPTED, "problem": None}
    conn.execute(update(sendings).where(sendings.c.id == twin.id).values(**adopted))
    mark_in_progress(conn, batch, twin.api_id, due_at=due_at)


def mark_unknown(
    conn: Connection,
    batch: Batch,
    sending: int,
    reason: Reason,
    problem: str | None = None,
    *,
    grace_from: datetime,
    due_at: datetime,
) -> None:
    """Stays submitting: how the sending ended is to be found out. grace_from: by the API's clock."""
    values = {"end": SendingEnd.UNKNOWN, "problem": in_words(reason, problem), "grace_from": grace_from}
    conn.execute(update(sendings).where(sendings.c.id == sending, sendings.c.end.is_(None)).values(**values))
    postpone(conn, batch, due_at=due_at, reason=reason, problem=problem)


def mark_adopted(conn: Connection, batch: Batch, sending: int, api_id: str, *, now: datetime) -> None:
    """submitting -> in_progress: a batch at the API proved to be this sending."""
    values = {"end": SendingEnd.ADOPTED, "api_id": api_id, "ended_at": now}
    conn.execute(update(sendings).where(sendings.c.id == sending).values(**values))
    mark_in_progress(conn, batch, api_id, due_at=now)


def mark_absent(conn: Connection, batch: Batch, sending: int, *, now: datetime) -> bool:
    """submitting -> planned: a listing after the grace time does not show it.

    False when its driver woke and recorded the API's answer since the listing was read: then it is left as it is.
    """
    unknown = (sendings.c.id == sending, sendings.c.end == SendingEnd.UNKNOWN)
    if not conn.execute(update(sendings).where(*unknown).values(end=SendingEnd.ABSENT, ended_at=now)).rowcount:
        return False
    _plan_again(conn, batch, due_at=now, reason=Reason.ABSENT)
    return True


def postpone(
    conn: Connection,
    batch: Batch,
    *,
    due_at: datetime,
    wait: float = 0.0,
    reason: Reason | None = None,
    problem: str | None = None,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Release the batch until due_at. wait: seconds of the last wait, from which the next one grows.

    reason, problem: why it waits, and what else is known of that; also: columns that change with it.
    """
    values: dict[str, Any] = dict(also or {})
    values |= {"due_at": due_at, "wait_seconds": wait, "reason": reason, "problem": problem, "claimed_by": None}
    conn.execute(update(batches).where(batches.c.id == batch.id).values(**values))


class Again(NamedTuple):
    """A batch that is at work at the API, when it is asked after again, and after how many seconds that is."""

    batch: Batch
    due_at: datetime
    wait: float


def postpone_running(conn: Connection, running: Sequence[Again]) -> None:
    """As `postpone`, of many batches that we have claimed and the API knows; not of one that another driver has now."""
    here = (batches.c.id == bindparam("batch"), batches.c.claim == bindparam("claim_"))
    values: dict[str, Any] = {"due_at": bindparam("due"), "wait_seconds": bindparam("wait")}
    answered = {"reason": None, "problem": None, "claimed_by": None, "not_found": 0, "not_found_at": None}
    conn.execute(
        update(batches).where(*here).values(**values, **answered),
        [{"batch": b.id, "claim_": b.claim, "due": due_at, "wait": wait} for b, due_at, wait in running],
    )


def hold_back(
    conn: Connection, job_id: int, why: Reason, *, now: datetime, due_at: datetime, behind: int | None = None
) -> None:
    """The job's planned batches that are due wait until due_at, or until a batch ends.

    behind: of this run only, but for those that open its gate.
    """
    due = [batches.c.job_id == job_id, batches.c.state == BatchState.PLANNED, batches.c.due_at <= now]
    if behind is not None:
        due += [batches.c.run_id == behind, batches.c.gate.is_(None)]
    conn.execute(update(batches).where(*due).values(due_at=due_at, reason=why, problem=None, claimed_by=None))


def wake_held_back(conn: Connection, now: datetime) -> None:
    """A batch has ended, of whatever job: those that wait for room or money may try again."""
    waiting = (batches.c.state == BatchState.PLANNED, batches.c.reason.in_(HELD_BACK), batches.c.due_at > now)
    conn.execute(update(batches).where(*waiting).values(due_at=now))


def mark_canceling(conn: Connection, batch: Batch, *, now: datetime, due_at: datetime) -> None:
    """in_progress -> canceling: somebody asked the API to cancel it."""
    _move(conn, batch, BatchState.CANCELING, due_at=due_at, canceling_at=now)


def mark_ended(
    conn: Connection, batch: Batch, counts: Mapping[str, int], *, ended_at: datetime, due_at: datetime
) -> None:
    """in_progress or canceling -> ended: results can be fetched."""
    assert batch.state in AT_THE_API
    values = {"counts": dict(counts), "ended_at": ended_at, "due_at": due_at, "wait_seconds": 0.0}
    _move(conn, batch, BatchState.ENDED, **values, not_found=0, not_found_at=None)


def count_download(conn: Connection, batch: Batch, *, now: datetime, due_at: datetime, problem: str) -> None:
    """The results were not complete: fetch them again at due_at."""
    downloaded = {"downloads": batch.downloads + 1, "downloaded_at": batch.downloaded_at or now}
    postpone(conn, batch, due_at=due_at, problem=problem, also=downloaded)


def collected_so_far(conn: Connection, batch: Batch) -> tuple[dict[str, int], float]:
    """Rows of the batch by outcome, and US dollars of what was answered, as far as it has been collected."""
    row = conn.execute(select(batches.c.outcomes, batches.c.cost_usd).where(batches.c.id == batch.id)).one()
    return dict(row.outcomes or {}), round(float(row.cost_usd), 12)


def mark_collected(conn: Connection, batch: Batch, *, delete_remote: bool, now: datetime) -> None:
    """ended -> collected: every row of it has its outcome. Raises LostRace while one is still in flight.

    delete_remote: it is to be deleted at the API.
    """
    _refuse_in_flight(conn, batch)
    values = {"delete_remote": delete_remote, "due_at": now, "collected_at": now}
    _move(conn, batch, BatchState.COLLECTED, **values)


def mark_lost(conn: Connection, batch: Batch, why: str, *, due_at: datetime) -> None:
    """submitting to ended -> lost: its rows have their outcome. due_at: when it is asked after again."""
    _refuse_in_flight(conn, batch)
    _move(conn, batch, BatchState.LOST, problem=why, due_at=due_at, not_found=0, not_found_at=None)


def mark_found_again(conn: Connection, batch: Batch, api_id: str, *, now: datetime) -> int:
    """lost -> in_progress: the API knows it after all. How many rows wait for it again: those not sent since."""
    values = {"api_id": api_id, "due_at": now, "wait_seconds": 0.0, "downloads": 0}
    outcomes = dict(conn.scalar(select(batches.c.outcomes).where(batches.c.id == batch.id)) or {})
    outcomes.pop(RowState.LOST, None)
    _move(conn, batch, BatchState.IN_PROGRESS, **values, downloaded_at=None, outcomes=outcomes)
    unknown = (sendings.c.batch_id == batch.id, sendings.c.end == SendingEnd.UNKNOWN)
    conn.execute(update(sendings).where(*unknown).values(end=SendingEnd.ADOPTED, api_id=api_id, ended_at=now))
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.LOST)
    again = {"state": RowState.IN_FLIGHT, "attempts": requests.c.attempts - 1}
    waiting = conn.execute(update(requests).where(*here).values(**again)).rowcount
    return moved(conn, batch.run_id, RowState.LOST, RowState.IN_FLIGHT, waiting)


def mark_deleted(conn: Connection, batch: Batch) -> None:
    """It is no longer at the API."""
    conn.execute(update(batches).where(batches.c.id == batch.id).values(delete_remote=False, claimed_by=None))


def ask_to_cancel(conn: Connection, job_id: int) -> int:
    """All batches of the job that are at the API, or may be, are to be canceled there, at once; how many those are."""
    there = (BatchState.SUBMITTING, *AT_THE_API, BatchState.ENDED)
    here = (batches.c.job_id == job_id, batches.c.state.in_(there))
    return conn.execute(update(batches).where(*here).values(cancel=True, due_at=AT_ONCE)).rowcount


def _refuse_in_flight(conn: Connection, batch: Batch) -> None:
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
    left = conn.scalar(select(func.count()).select_from(requests).where(*here))
    if left:
        raise LostRace(f"batch {batch.id} still has {left} rows in flight; the same command again goes on")
