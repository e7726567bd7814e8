"""The moves of a batch: one function for each, which moves it only from the state that it expects. Edge: SQL."""

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
from pipeline.state.conditions import AT_ONCE, BACK, IS_RETRY, WAITS_FOR_SOURCE, inserted_id
from pipeline.state.new_rows import NewRows, Shared, insert_new_rows
from pipeline.state.rows import stand_if_retry_is_over
from pipeline.state.tables import batches, requests, runs, sendings
from pipeline.state.tallies import moved
from pipeline.states import AT_THE_API, BATCH_MOVES, BatchState, RowState, SendingEnd


class Late(StrEnum):
    """What happens to a batch that appears at the API after its sending was presumed absent."""

    ADOPTED = "adopted"  #: the batch had not been sent again; its rows wait for these results
    TWIN = "twin"  #: the batch had been sent again; both sendings are paid for


def record_late(conn: Connection, sending: int, api_id: str, *, now: datetime, shown: bool) -> Late | None:
    """Record that the API accepted a sending that was presumed absent. Return what happens to its batch.

    A batch that is planned is adopted: planned -> in_progress. A driver that has claimed it then gets LostRace when it
    commits its intent. shown: True: the listing shows the batch, which may also be a later sending of the same body
    whose end is not known yet. False: the API answered this sending. None: nothing was changed.
    """
    number = conn.execute(select(sendings.c.batch_id).where(sendings.c.id == sending)).scalar_one()
    query = select(*BATCH_COLUMNS).where(batches.c.id == number).with_for_update(key_share=True)
    batch = batch_of(conn.execute(query).one())
    if is_owned(conn, api_id) or (shown and batch.state is BatchState.SUBMITTING):
        return None
    late = Late.ADOPTED if batch.state is BatchState.PLANNED else Late.TWIN
    end: dict[str, Any] = {"end": SendingEnd.ADOPTED, "problem": None}
    if late is Late.TWIN:
        end = {"end": SendingEnd.TWIN, "problem": twin_problem(api_id)}
    here = (sendings.c.id == sending, sendings.c.api_id.is_(None))
    if not conn.execute(update(sendings).where(*here).values(api_id=api_id, ended_at=now, **end)).rowcount:
        return None
    if late is Late.ADOPTED:
        mark_in_progress(conn, batch, api_id, due_at=now)
    return late


def twin_problem(api_id: str) -> str:
    """Return the sentence about a batch that was sent twice."""
    return f"{api_id} was accepted, though the API's listing did not show it in time: paid twice"


def _move(conn: Connection, batch: Batch, to: BatchState, **values: Any) -> None:
    """Move one batch from the state that the caller believes it is in, and release it. Raises LostRace otherwise.

    Clears the reason and the problem of the old state.
    """
    assert to in BATCH_MOVES[batch.state], f"{batch.state} -> {to} is no legal move"
    here = (batches.c.id == batch.id, batches.c.state == batch.state)
    values = {"claimed_by": None, "reason": None, "problem": None, **values}
    if conn.execute(update(batches).where(*here).values(state=to, **values)).rowcount != 1:
        raise LostRace(f"batch {batch.id} is no longer {batch.state}; run the same command again to continue")


# Rows that were planned one after the other have consecutive numbers and positions, so one statement claims them all.
_CLAIMED = (
    update(requests)
    .where(
        requests.c.id.between(bindparam("first"), bindparam("last")),
        requests.c.run_id == bindparam("run"),
        requests.c.state == text("'pending'"),
    )
    .values(
        state=text("'in_flight'"),
        waits=text("NULL"),
        batch_id=bindparam("batch"),
        n=requests.c.id - bindparam("offset"),
        body_id=bindparam("body"),
        body_n=requests.c.id - bindparam("offset_"),
    )
)
# A retry counts attempts from 0 when it puts a row into a batch, and not when it plans the row: a planned row may still
# return to its earlier outcome. A row that does not wait for the source has been in a batch of the retry before.
_STARTED_BY_RETRY = case((WAITS_FOR_SOURCE, -func.abs(requests.c.attempts)), else_=requests.c.attempts)
_CLAIM_PARAMETERS = ("first", "last", "offset", "offset_", "run", "batch", "body")
_CLAIM = Bulk(_CLAIMED, _CLAIM_PARAMETERS)
_CLAIM_FOR_RETRY = Bulk(_CLAIMED.values(attempts=_STARTED_BY_RETRY), _CLAIM_PARAMETERS)


class _Stretch(NamedTuple):
    """Rows whose numbers and positions count up together. offset: the number of each minus its position."""

    first: int
    last: int
    offset: int


def _consecutive(rows: Sequence[tuple[int, int]]) -> list[_Stretch]:
    """Return (row, n) pairs as ranges in which both numbers grow by one."""
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
    known: Sequence[tuple[int, int]],
    new: NewRows,
    shared: Mapping[int, Shared],
    gate: str | None,
    now: datetime,
) -> tuple[int, list[int]]:
    """Add a planned batch, insert its new rows, and move its known rows pending -> in_flight.

    Returns the batch's number, and the numbers of the new rows. known: (number, position) of each row that the
    database knows; new: the other rows, and rows that are invalid, or that share a request of an earlier batch, which
    are named by `shared`, see `insert_new_rows`. gate: the gate of the run that the batch opens;
    None: an ordinary batch. In the run of a retry, the attempts of the rows start at 0.

    Raises LostRace if a known row is not pending in this run, and KeyKnown if the database has the key of a new row.
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
            rows=contents.rows,
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
    claim_rows(conn, known, run_id, batch)
    to = {"job_id": job_id, "run_id": run_id}
    return batch, insert_new_rows(conn, new, **to, recipe=recipe, batch=batch, shared=shared)


def claim_rows(conn: Connection, known: Sequence[tuple[int, int]], run_id: int, batch: int) -> None:
    """Move known rows pending -> in_flight in this batch. known: (number, position) of each row.

    Raises LostRace if a row is not pending in this run.
    """
    if not known:
        return
    stretches = _consecutive(known)
    claims = [(first, last, offset, offset, run_id, batch, batch) for first, last, offset in stretches]
    claim = _CLAIM_FOR_RETRY if conn.scalar(select(IS_RETRY).where(runs.c.id == run_id)) else _CLAIM
    if claim.execute(conn, claims) != len(known):
        raise LostRace("another driver planned some of these rows; run the same command again to continue")
    moved(conn, run_id, RowState.PENDING, RowState.IN_FLIGHT, len(known))


def drop_batch(conn: Connection, batch: Batch, reason: Reason, detail: str | None = None) -> None:
    """planned -> dropped: the batch will not be sent, and its rows are pending again. Needs the lease on planning.

    Rows of a retry that has ended return to their earlier outcomes instead.
    """
    _move(conn, batch, BatchState.DROPPED, reason=reason, problem=detail)
    back = (
        update(requests).where(requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT).values(**BACK)
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
    """planned -> submitting: store the intent, after which a create call may reach the API. The batch stays claimed.

    driver: the sign of life of the driver that sends. started_at, deadline: by the API's clock. reserved_usd: the
    worst-case cost; None: there is no budget. Returns the moved batch and the number of the sending.
    """
    _move(conn, batch, BatchState.SUBMITTING, account_id=account_id, due_at=due_at, claimed_by=driver)
    values: dict[str, Any] = {"batch_id": batch.id, "account_id": account_id, "driver": driver}
    values |= {"started_at": started_at, "deadline": deadline, "reserved_usd": reserved_usd}
    sending = inserted_id(conn.execute(insert(sendings).values(**values)))
    return replace(batch, state=BatchState.SUBMITTING, account_id=account_id), sending


def record_api_id(conn: Connection, sending: int, api_id: str, request_id: str | None, now: datetime) -> Late | None:
    """Record that the API accepted this sending. A driver that has lost its claim records it too, because it is true.

    Returns what happens to the batch if another driver has presumed the sending absent in the meantime; otherwise None.
    """
    values = {"end": SendingEnd.ACCEPTED, "api_id": api_id, "request_id": request_id, "ended_at": now}
    open_end = or_(sendings.c.end.is_(None), sendings.c.end == SendingEnd.UNKNOWN)
    here = (sendings.c.id == sending, sendings.c.api_id.is_(None), open_end)
    if conn.execute(update(sendings).where(*here).values(**values)).rowcount:
        return None
    return record_late(conn, sending, api_id, now=now, shown=False)


def mark_in_progress(conn: Connection, batch: Batch, api_id: str, *, due_at: datetime) -> None:
    """submitting -> in_progress: the API accepted the batch under this id."""
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
    """submitting -> planned: the API certainly did not accept the batch. due_at: the earliest time to send it again."""
    values = {"end": SendingEnd.REJECTED, "problem": problem, "request_id": request_id, "ended_at": now}
    conn.execute(update(sendings).where(sendings.c.id == sending).values(**values))
    _plan_again(conn, batch, due_at=due_at, problem=problem)


def _plan_again(conn: Connection, batch: Batch, *, due_at: datetime, **values: Any) -> None:
    """submitting -> planned; or -> in_progress if an earlier sending has appeared at the API in the meantime."""
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
    """Stay submitting: note that the end of the sending is unknown, and release the batch until due_at.

    grace_from: the start of the grace time, by the API's clock.
    """
    values = {"end": SendingEnd.UNKNOWN, "problem": in_words(reason, problem), "grace_from": grace_from}
    conn.execute(update(sendings).where(sendings.c.id == sending, sendings.c.end.is_(None)).values(**values))
    postpone(conn, batch, due_at=due_at, reason=reason, problem=problem)


def mark_adopted(conn: Connection, batch: Batch, sending: int, api_id: str, *, now: datetime) -> None:
    """submitting -> in_progress: a batch at the API was proved to be this sending."""
    values = {"end": SendingEnd.ADOPTED, "api_id": api_id, "ended_at": now}
    conn.execute(update(sendings).where(sendings.c.id == sending).values(**values))
    mark_in_progress(conn, batch, api_id, due_at=now)


def mark_absent(conn: Connection, batch: Batch, sending: int, *, now: datetime) -> bool:
    """submitting -> planned: a listing that was read after the grace time does not show the batch. Return True.

    Return False and change nothing if the sending's driver has recorded the API's answer since the listing was read.
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
    """Release the batch until due_at. wait: the length of this wait in seconds; the next one is longer.

    reason, problem: why it waits, and details for people; None: none. also: other columns to change; None: none.
    """
    values: dict[str, Any] = dict(also or {})
    values |= {"due_at": due_at, "wait_seconds": wait, "reason": reason, "problem": problem, "claimed_by": None}
    conn.execute(update(batches).where(batches.c.id == batch.id).values(**values))


class Again(NamedTuple):
    """A running batch, when it is polled again, and after how many seconds that is."""

    batch: Batch
    due_at: datetime
    wait: float


def postpone_running(conn: Connection, running: Sequence[Again]) -> None:
    """Release running batches that the API knows until their due_at. Skips those that another driver has claimed."""
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
    """Hold back the job's planned batches that are due, until due_at or until a batch ends.

    behind: hold back only batches of this run that do not open its gate; None: all planned batches.
    """
    due = [batches.c.job_id == job_id, batches.c.state == BatchState.PLANNED, batches.c.due_at <= now]
    if behind is not None:
        due += [batches.c.run_id == behind, batches.c.gate.is_(None)]
    conn.execute(update(batches).where(*due).values(due_at=due_at, reason=why, problem=None, claimed_by=None))


def wake_held_back(conn: Connection, now: datetime) -> None:
    """Make all batches due that wait for room, money or a gate, because a batch of any job has ended."""
    waiting = (batches.c.state == BatchState.PLANNED, batches.c.reason.in_(HELD_BACK), batches.c.due_at > now)
    conn.execute(update(batches).where(*waiting).values(due_at=now))


def mark_canceling(conn: Connection, batch: Batch, *, now: datetime, due_at: datetime) -> None:
    """in_progress -> canceling: the API was asked to cancel the batch."""
    _move(conn, batch, BatchState.CANCELING, due_at=due_at, canceling_at=now)


def mark_ended(
    conn: Connection, batch: Batch, counts: Mapping[str, int], *, ended_at: datetime, due_at: datetime
) -> None:
    """in_progress or canceling -> ended: the results can be downloaded. counts: the API's request_counts."""
    assert batch.state in AT_THE_API
    values = {"counts": dict(counts), "ended_at": ended_at, "due_at": due_at, "wait_seconds": 0.0}
    _move(conn, batch, BatchState.ENDED, **values, not_found=0, not_found_at=None)


def count_download(conn: Connection, batch: Batch, *, now: datetime, due_at: datetime, problem: str) -> None:
    """Note a download that was not complete, and download again at due_at."""
    downloaded = {"downloads": batch.downloads + 1, "downloaded_at": batch.downloaded_at or now}
    postpone(conn, batch, due_at=due_at, problem=problem, also=downloaded)


def collected_so_far(conn: Connection, batch: Batch) -> tuple[dict[str, int], float]:
    """Return the batch's collected rows by outcome, and the cost of their answers in US dollars."""
    row = conn.execute(select(batches.c.outcomes, batches.c.cost_usd).where(batches.c.id == batch.id)).one()
    return dict(row.outcomes or {}), round(float(row.cost_usd), 12)


def mark_collected(conn: Connection, batch: Batch, *, delete_remote: bool, now: datetime) -> None:
    """ended -> collected: every row has its outcome. Raises LostRace if a row is still in flight.

    delete_remote: whether the batch is to be deleted at the API.
    """
    _refuse_in_flight(conn, batch)
    values = {"delete_remote": delete_remote, "due_at": now, "collected_at": now}
    _move(conn, batch, BatchState.COLLECTED, **values)


def mark_lost(conn: Connection, batch: Batch, why: str, *, due_at: datetime) -> None:
    """From submitting, in_progress, canceling or ended -> lost. Raises LostRace if a row is still in flight.

    why: for people. due_at: when the API is asked for the batch again.
    """
    _refuse_in_flight(conn, batch)
    _move(conn, batch, BatchState.LOST, problem=why, due_at=due_at, not_found=0, not_found_at=None)


def mark_found_again(conn: Connection, batch: Batch, api_id: str, *, now: datetime) -> int:
    """lost -> in_progress: the API has the batch after all. Return how many of its rows wait for it again.

    Rows that have been sent again since then do not.
    """
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
    """Note that the batch was deleted at the API."""
    conn.execute(update(batches).where(batches.c.id == batch.id).values(delete_remote=False, claimed_by=None))


def ask_to_cancel(conn: Connection, job_id: int) -> int:
    """Mark the job's batches that are or may be at the API as to be canceled at once. Return how many there are."""
    there = (BatchState.SUBMITTING, *AT_THE_API, BatchState.ENDED)
    here = (batches.c.job_id == job_id, batches.c.state.in_(there))
    return conn.execute(update(batches).where(*here).values(cancel=True, due_at=AT_ONCE)).rowcount


def _refuse_in_flight(conn: Connection, batch: Batch) -> None:
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
    left = conn.scalar(select(func.count()).select_from(requests).where(*here))
    if left:
        raise LostRace(f"batch {batch.id} still has {left} rows in flight; run the same command again to continue")
