"""What the state database knows, and one function for each move. Edge: SQL.

Every function takes a connection and commits nothing: a step decides what belongs into one transaction.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, CursorResult, Row, bindparam, func, insert, or_, select, text, update

from pipeline.account import Identity
from pipeline.bulk import Bulk
from pipeline.errors import DatabaseError, LostRace
from pipeline.packing import Packing
from pipeline.states import AT_THE_API, BATCH_MOVES, OPEN_BATCHES, BatchState, RowState, RunState, SendingEnd
from pipeline.tables import accounts, batches, jobs, requests, runs, sendings


@dataclass(frozen=True)
class Batch:
    """A batch as the database has it; the fields are those of the table."""

    id: int
    job_id: int
    run_id: int
    account_id: int | None
    state: BatchState
    recipe: str
    nonce: str
    digest: str
    size_bytes: int
    requests: int
    rows: int
    api_id: str | None
    downloads: int
    downloaded_at: datetime | None
    wait_seconds: float
    due_at: datetime
    problem: str | None


TOO_LARGE = "the API finds it too large: its rows go in smaller batches"

_BATCH = [batches.c[name] for name in Batch.__dataclass_fields__]


def _batch(row: Row[Any]) -> Batch:
    return Batch(**{**row._mapping, "state": BatchState(row.state)})


def _number(created: CursorResult[Any]) -> int:
    key = created.inserted_primary_key
    assert key is not None
    return int(key[0])


# -- jobs and runs ---------------------------------------------------------------------------------------------------


def put_job(
    conn: Connection,
    *,
    name: str,
    file: str | None,
    results_table: str,
    columns: dict[str, Any],
    spool: str | None,
    now: datetime,
) -> int:
    """Note the job, or what is new of it; its number."""
    row = job_named(conn, name)
    values = {"file": file, "columns": columns, "spool": spool}
    if row is not None:
        conn.execute(update(jobs).where(jobs.c.id == row.id).values(**values))
        return int(row.id)
    created = conn.execute(insert(jobs).values(name=name, results_table=results_table, created_at=now, **values))
    return _number(created)


def job_named(conn: Connection, name: str) -> Row[Any] | None:
    """The job of this name, or None."""
    return conn.execute(select(jobs).where(jobs.c.name == name)).one_or_none()


def run(conn: Connection, run_id: int) -> Row[Any]:
    """One run."""
    return conn.execute(select(runs).where(runs.c.id == run_id)).one()


def all_jobs(conn: Connection) -> list[Row[Any]]:
    """All jobs, oldest first."""
    return list(conn.execute(select(jobs).order_by(jobs.c.id)))


def open_runs(conn: Connection, job_id: int | None = None) -> list[Row[Any]]:
    """The open runs of a job, or of all jobs, oldest first."""
    query = select(runs).where(runs.c.state == RunState.OPEN).order_by(runs.c.id)
    return list(conn.execute(query if job_id is None else query.where(runs.c.job_id == job_id)))


def last_run(conn: Connection, job_id: int) -> Row[Any] | None:
    """The job's newest run, or None."""
    return conn.execute(select(runs).where(runs.c.job_id == job_id).order_by(runs.c.id.desc()).limit(1)).one_or_none()


def join_run(
    conn: Connection, job_id: int, *, variables: dict[str, Any], job: dict[str, Any], recipe: str, now: datetime
) -> int:
    """The job's open run with these vars and this recipe, which then goes by the present job; else a new one."""
    for run in open_runs(conn, job_id):
        if run.vars == variables and run.recipe == recipe:
            conn.execute(update(runs).where(runs.c.id == run.id).values(job=job, planned_at=None))
            return int(run.id)
    values = {"job_id": job_id, "vars": variables, "job": job, "recipe": recipe, "state": RunState.OPEN}
    created = conn.execute(insert(runs).values(created_at=now, vanished=0, **values))
    return _number(created)


def mark_planned(conn: Connection, run_id: int, *, vanished: int, now: datetime) -> None:
    """The run's planning has come to the end of the source."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(planned_at=now, vanished=runs.c.vanished + vanished))


def end_run(conn: Connection, run_id: int, state: RunState, *, reason: str | None, now: datetime) -> None:
    """open -> finished or incomplete, with the counts of that moment."""
    values = {"state": state, "reason": reason, "ended_at": now, "counts": run_counts(conn, run_id)}
    conn.execute(update(runs).where(runs.c.id == run_id, runs.c.state == RunState.OPEN).values(**values))


def run_counts(conn: Connection, run_id: int) -> dict[str, int]:
    """The run's rows by state."""
    query = select(requests.c.state, func.count()).where(requests.c.run_id == run_id).group_by(requests.c.state)
    return {row[0]: row[1] for row in conn.execute(query)}


def job_counts(conn: Connection, job_id: int) -> list[tuple[str, int]]:
    """The job's rows by state."""
    query = select(requests.c.state, func.count()).where(requests.c.job_id == job_id).group_by(requests.c.state)
    return [(state, number) for state, number in conn.execute(query)]


def run_cost(conn: Connection, run_id: int) -> float:
    """US dollars of everything the run has had answered, failed and repeated rows included."""
    return float(
        conn.scalar(select(func.coalesce(func.sum(batches.c.cost_usd), 0.0)).where(batches.c.run_id == run_id)) or 0
    )


def has_work(conn: Connection, run_id: int) -> bool:
    """Whether a batch of the run is open, or a row waits whose request stands in the spool."""
    flying = select(batches.c.id).where(batches.c.run_id == run_id, batches.c.state.in_(OPEN_BATCHES)).limit(1)
    waiting = (requests.c.run_id == run_id, requests.c.state == text("'pending'"), requests.c.body_id.is_not(None))
    return conn.scalar(flying) is not None or conn.scalar(select(requests.c.id).where(*waiting).limit(1)) is not None


def rows_for_planning(conn: Connection, run_id: int) -> int:
    """How many rows of the run can only go on from the source: never spooled, or changed since they were sent."""
    unspooled = (requests.c.run_id == run_id, requests.c.state == text("'pending'"), requests.c.body_id.is_(None))
    back = requests.c.state != RowState.IN_FLIGHT
    changed = (requests.c.run_id == run_id, requests.c.changed_hash.is_not(None), back)
    counts = [conn.scalar(select(func.count()).select_from(requests).where(*some)) for some in (unspooled, changed)]
    return sum(count or 0 for count in counts)


def forget_changed(conn: Connection, run_id: int) -> None:
    """The source has been planned since: what is still marked as changed is not in it any more."""
    back = requests.c.state.not_in([RowState.PENDING, RowState.IN_FLIGHT])
    conn.execute(update(requests).where(requests.c.run_id == run_id, back).values(changed_hash=None))


# -- accounts --------------------------------------------------------------------------------------------------------


def account(conn: Connection, identity: Identity) -> int:
    """The number of this account. Raises DatabaseError when the database belongs to the other world."""
    other = conn.scalar(select(accounts.c.base_url).where(accounts.c.emulated != identity.emulated).limit(1))
    if other is not None:
        holds, this = ("the API", "the emulator") if identity.emulated else ("the emulator", "the API")
        raise DatabaseError(
            f"this database holds answers of {holds} ({other}), and this command speaks to {this}; "
            "give another database by --database"
        )
    found = conn.scalar(
        select(accounts.c.id).where(
            accounts.c.organization == identity.organization,
            accounts.c.workspace == identity.workspace,
            # the emulator takes a new port at each start, and is the same account for all that
            or_(accounts.c.base_url == identity.base_url, accounts.c.emulated),
        )
    )
    if found is not None:
        return int(found)
    values = {name: getattr(identity, name) for name in ("base_url", "organization", "workspace", "emulated")}
    return _number(conn.execute(insert(accounts).values(**values)))


def circuit(conn: Connection, account_id: int) -> str | None:
    """Why submitting on this account has stopped; None when it goes on."""
    return conn.scalar(select(accounts.c.circuit_cause).where(accounts.c.id == account_id))


def open_circuit(conn: Connection, account_id: int, cause: str, now: datetime) -> None:
    """Stop all submitting on this account."""
    values = {"circuit_cause": cause, "circuit_at": now}
    conn.execute(update(accounts).where(accounts.c.id == account_id).values(**values))


def close_circuit(conn: Connection, account_id: int) -> None:
    """A batch was accepted: submitting goes on."""
    values = {"circuit_cause": None, "circuit_at": None}
    conn.execute(update(accounts).where(accounts.c.id == account_id).values(**values))


# -- batches: reading ------------------------------------------------------------------------------------------------


def batches_in(conn: Connection, job_id: int, *states: BatchState, due: datetime | None = None) -> list[Batch]:
    """The job's batches in these states, in the order they were planned. due: only those due by then."""
    query = select(*_BATCH).where(batches.c.job_id == job_id, batches.c.state.in_(states)).order_by(batches.c.id)
    if due is not None:
        query = query.where(batches.c.due_at <= due)
    return [_batch(row) for row in conn.execute(query)]


def batches_by_state(conn: Connection, run_id: int) -> dict[str, int]:
    """How many batches of the run are in each state."""
    query = select(batches.c.state, func.count()).where(batches.c.run_id == run_id).group_by(batches.c.state)
    return {row[0]: row[1] for row in conn.execute(query)}


def next_due(conn: Connection, job_id: int) -> datetime | None:
    """When the job's next batch is due for anything; None when it has no open batch."""
    query = select(batches.c.due_at).where(batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES))
    return conn.scalar(query.order_by(batches.c.due_at).limit(1))


def is_owned(conn: Connection, api_id: str) -> bool:
    """Whether a sending of ours has this batch of the API."""
    return conn.scalar(select(sendings.c.id).where(sendings.c.api_id == api_id)) is not None


def unsent(conn: Connection, job_id: int) -> frozenset[int]:
    """The numbers of the job's batches that are planned and not sent."""
    query = select(batches.c.id).where(batches.c.job_id == job_id, batches.c.state == BatchState.PLANNED)
    return frozenset(conn.scalars(query))


def all_foreign(conn: Connection, job_id: int, account_id: int) -> int:
    """How many of the job's open batches another account has sent, if they all were; else 0."""
    open_now = (batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES))
    accounts_of = list(conn.scalars(select(batches.c.account_id).where(*open_now)))
    return len(accounts_of) if all(a not in (None, account_id) for a in accounts_of) else 0


def any_open(conn: Connection, numbers: Iterable[int]) -> bool:
    """Whether one of these batches is not in a final state yet."""
    query = select(batches.c.id).where(batches.c.id.in_(list(numbers)), batches.c.state.in_(OPEN_BATCHES)).limit(1)
    return conn.scalar(query) is not None


def smallest_too_large(conn: Connection, run_id: int) -> int | None:
    """Of the run's batches that the API found too large, the fewest requests; None if it never did."""
    too_large = (batches.c.run_id == run_id, batches.c.state == BatchState.DROPPED, batches.c.problem == TOO_LARGE)
    fewest: int | None = conn.scalar(select(func.min(batches.c.requests)).where(*too_large))
    return fewest


def last_sending(conn: Connection, batch_id: int) -> Row[Any]:
    """The newest sending of a batch that has one."""
    return conn.execute(
        select(sendings).where(sendings.c.batch_id == batch_id).order_by(sendings.c.id.desc()).limit(1)
    ).one()


# -- batches: moves --------------------------------------------------------------------------------------------------


def _move(conn: Connection, batch: int, expected: BatchState, to: BatchState, **values: Any) -> None:
    """Move one batch, only from the state we believe it is in. Raises LostRace if it is not."""
    assert to in BATCH_MOVES[expected], f"{expected} -> {to} is no legal move"
    here = (batches.c.id == batch, batches.c.state == expected)
    if conn.execute(update(batches).where(*here).values(state=to, **values)).rowcount != 1:
        raise LostRace(f"batch {batch} is no longer {expected}; the same command again goes on")


# Rows planned one after the other have consecutive numbers and positions: one statement claims them all.
_CLAIM = Bulk(
    update(requests)
    .where(requests.c.id.between(bindparam("first"), bindparam("last")), requests.c.state == text("'pending'"))
    .values(
        state=text("'in_flight'"),
        run_id=bindparam("run"),
        batch_id=bindparam("batch"),
        n=requests.c.id - bindparam("offset"),
        body_id=bindparam("body"),
        body_n=requests.c.id - bindparam("offset_"),
    ),
    ("first", "last", "offset", "offset_", "run", "batch", "body"),
)


def _consecutive(rows: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(row, n) pairs as stretches (first row, last row, row minus n) in which both count up together."""
    stretches: list[tuple[int, int, int]] = []
    for row, n in rows:
        if stretches and stretches[-1][1] == row - 1 and stretches[-1][2] == row - n:
            stretches[-1] = (stretches[-1][0], row, row - n)
        else:
            stretches.append((row, row, row - n))
    return stretches


def add_batch(
    conn: Connection, *, job_id: int, run_id: int, recipe: str, contents: Packing, digest: str, now: datetime
) -> int:
    """A new planned batch, and its rows pending -> in_flight. Raises LostRace when one of them is not free."""
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
            cost_usd=0.0,
            downloads=0,
            wait_seconds=0.0,
            created_at=now,
            due_at=now,
        )
    )
    batch = _number(created)
    stretches = _consecutive(contents.rows)
    claims = [(first, last, offset, offset, run_id, batch, batch) for first, last, offset in stretches]
    if _CLAIM.execute(conn, claims) != len(contents.rows):
        raise LostRace("another driver planned some of these rows; the same command again goes on")
    return batch


def drop(conn: Connection, batch: Batch, why: str) -> None:
    """planned -> dropped: it is not going to be sent; its rows are pending again."""
    _move(conn, batch.id, BatchState.PLANNED, BatchState.DROPPED, problem=why)
    conn.execute(
        update(requests)
        .where(requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
        .values(state=RowState.PENDING, batch_id=None, n=None)
    )


def begin_sending(
    conn: Connection,
    batch: Batch,
    account_id: int,
    *,
    lease_token: int,
    started_at: datetime,
    deadline: datetime,
    due_at: datetime,
) -> int:
    """planned -> submitting, with the intent: from here on a create may reach the API.

    started_at, deadline: by the API's clock. Returns the sending's number.
    """
    _move(conn, batch.id, BatchState.PLANNED, BatchState.SUBMITTING, account_id=account_id, due_at=due_at)
    who = {"batch_id": batch.id, "account_id": account_id, "lease_token": lease_token}
    values: dict[str, Any] = {**who, "started_at": started_at, "deadline": deadline}
    return _number(conn.execute(insert(sendings).values(**values)))


def record_api_id(conn: Connection, sending: int, api_id: str, request_id: str | None, now: datetime) -> None:
    """The API accepted this sending. Recorded even by a driver that has lost its lease: the fact is a fact."""
    values = {"end": SendingEnd.ACCEPTED, "api_id": api_id, "request_id": request_id, "ended_at": now}
    conn.execute(update(sendings).where(sendings.c.id == sending, sendings.c.api_id.is_(None)).values(**values))


def mark_in_progress(conn: Connection, batch: int, api_id: str, *, due_at: datetime) -> None:
    """submitting -> in_progress: the API has it under this id."""
    values = {"api_id": api_id, "due_at": due_at, "wait_seconds": 0.0, "problem": None}
    _move(conn, batch, BatchState.SUBMITTING, BatchState.IN_PROGRESS, **values)


def mark_rejected(
    conn: Connection, batch: int, sending: int, problem: str, request_id: str | None, *, now: datetime, due_at: datetime
) -> None:
    """submitting -> planned: proven that the API took nothing. due_at: not to be tried again before."""
    values = {"end": SendingEnd.REJECTED, "problem": problem, "request_id": request_id, "ended_at": now}
    conn.execute(update(sendings).where(sendings.c.id == sending).values(**values))
    _move(conn, batch, BatchState.SUBMITTING, BatchState.PLANNED, due_at=due_at, problem=problem)


def mark_unknown(
    conn: Connection, batch: int, sending: int, problem: str, *, grace_from: datetime, due_at: datetime
) -> None:
    """Stays submitting: how the sending ended is to be found out. grace_from: by the API's clock."""
    values = {"end": SendingEnd.UNKNOWN, "problem": problem, "grace_from": grace_from}
    conn.execute(update(sendings).where(sendings.c.id == sending, sendings.c.end.is_(None)).values(**values))
    conn.execute(update(batches).where(batches.c.id == batch).values(problem=problem, due_at=due_at))


def mark_adopted(conn: Connection, batch: int, sending: int, api_id: str, *, now: datetime) -> None:
    """submitting -> in_progress: a batch at the API proved to be this sending."""
    values = {"end": SendingEnd.ADOPTED, "api_id": api_id, "ended_at": now}
    conn.execute(update(sendings).where(sendings.c.id == sending).values(**values))
    mark_in_progress(conn, batch, api_id, due_at=now)


def mark_absent(conn: Connection, batch: int, sending: int, *, now: datetime) -> None:
    """submitting -> planned: a listing after the grace time does not show it."""
    conn.execute(update(sendings).where(sendings.c.id == sending).values(end=SendingEnd.ABSENT, ended_at=now))
    _move(conn, batch, BatchState.SUBMITTING, BatchState.PLANNED, due_at=now, problem="it never reached the API")


def postpone(conn: Connection, batch: int, *, due_at: datetime, wait: float = 0.0, problem: str | None = None) -> None:
    """Look at this batch again at due_at. wait: seconds that the last wait was, from which the next one grows."""
    values = {"due_at": due_at, "wait_seconds": wait, "problem": problem}
    conn.execute(update(batches).where(batches.c.id == batch).values(**values))


def mark_canceling(conn: Connection, batch: Batch) -> None:
    """in_progress -> canceling: somebody asked the API to cancel it."""
    _move(conn, batch.id, BatchState.IN_PROGRESS, BatchState.CANCELING)


def mark_ended(
    conn: Connection, batch: Batch, counts: Mapping[str, int], *, ended_at: datetime, due_at: datetime
) -> None:
    """in_progress or canceling -> ended: results can be fetched."""
    assert batch.state in AT_THE_API
    values = {"counts": dict(counts), "ended_at": ended_at, "due_at": due_at, "wait_seconds": 0.0, "problem": None}
    _move(conn, batch.id, batch.state, BatchState.ENDED, **values)


def count_download(conn: Connection, batch: Batch, *, now: datetime, due_at: datetime, problem: str) -> None:
    """The results were not complete: fetch them again at due_at."""
    values = {"downloads": batch.downloads + 1, "downloaded_at": batch.downloaded_at or now}
    conn.execute(update(batches).where(batches.c.id == batch.id).values(due_at=due_at, problem=problem, **values))


def mark_collected(conn: Connection, batch: Batch, *, now: datetime) -> None:
    """ended -> collected: every row of it has its outcome. Raises LostRace while one is still in flight."""
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
    left = conn.scalar(select(func.count()).select_from(requests).where(*here))
    if left:
        raise LostRace(f"batch {batch.id} still has {left} rows in flight; the same command again goes on")
    _move(conn, batch.id, BatchState.ENDED, BatchState.COLLECTED, collected_at=now, problem=None)


# -- rows ------------------------------------------------------------------------------------------------------------

_KNOWN = [
    requests.c[name]
    for name in (
        "id",
        "key",
        "run_id",
        "state",
        "row_hash",
        "recipe",
        "keep",
        "batch_id",
        "attempts",
        "outcome",
        "outcome_hash",
        "outcome_recipe",
        "error_type",
        "changed_hash",
    )
]


def has_rows(conn: Connection, job_id: int) -> bool:
    """Whether the job knows any row yet."""
    return conn.scalar(select(requests.c.id).where(requests.c.job_id == job_id).limit(1)) is not None


def known_rows(conn: Connection, job_id: int, keys: Sequence[str]) -> dict[str, Row[Any]]:
    """What is known of these keys; at most a chunk of them."""
    query = select(*_KNOWN).where(requests.c.job_id == job_id, requests.c.key.in_(keys))
    return {row.key: row for row in conn.execute(query)}


#: What a new row is inserted with, in this order; `job_id` and `id` come before.
NEW_ROW = (
    *("key", "run_id", "state", "row_hash", "recipe", "keep", "sent_hash", "attempts"),
    *("outcome", "outcome_hash", "outcome_recipe"),
)
_ADD = Bulk(insert(requests), ("id", "job_id", *NEW_ROW))


def add_rows(conn: Connection, job_id: int, rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """Insert new rows, each a tuple of NEW_ROW; their numbers, ascending and consecutive."""
    if not rows:
        return []
    first = int(conn.scalar(select(func.coalesce(func.max(requests.c.id), 0))) or 0) + 1
    _ADD.execute(conn, [(i, job_id, *row) for i, row in enumerate(rows, first)])
    return list(range(first, first + len(rows)))


_REPLAN = Bulk(
    update(requests)
    .where(requests.c.id == bindparam("row"), requests.c.state != text("'in_flight'"))
    .values(
        {name: bindparam(f"new_{name}") for name in NEW_ROW}
        | dict.fromkeys(("batch_id", "n", "body_id", "body_n", "changed_hash"), text("NULL"))
    ),
    (*(f"new_{name}" for name in NEW_ROW), "row"),
)


def replan_rows(conn: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Known rows -> pending (or invalid), as they are at the source now: each a tuple of NEW_ROW and its number."""
    if _REPLAN.execute(conn, rows) != len(rows):
        raise LostRace("another driver planned some of these rows; the same command again goes on")


def keep_rows(conn: Connection, rows: Sequence[tuple[int, str | None, str | None]]) -> None:
    """Rows that need no sending: (number, kept values, outcome to return to or None to leave the state)."""
    back = [{"row": row, "keep_": keep, "outcome_": outcome} for row, keep, outcome in rows if outcome is not None]
    stay = [{"row": row, "keep_": keep} for row, keep, outcome in rows if outcome is None]
    statement = update(requests).where(requests.c.id == bindparam("row")).values(keep=bindparam("keep_"))
    if stay:
        conn.execute(statement, stay)
    if back:
        answered = {"row_hash": requests.c.outcome_hash, "recipe": requests.c.outcome_recipe, "changed_hash": None}
        conn.execute(statement.values(state=bindparam("outcome_"), **answered), back)


def mark_changed(conn: Connection, rows: Iterable[tuple[int, bytes | None]]) -> None:
    """Rows in flight whose source row is another by now (its hash), or again the one that was sent (None)."""
    changes = [{"row": row, "hash": row_hash} for row, row_hash in rows]
    if changes:
        statement = update(requests).where(requests.c.id == bindparam("row")).values(changed_hash=bindparam("hash"))
        conn.execute(statement, changes)


def take_over(conn: Connection, run_id: int, older: Sequence[int]) -> None:
    """The waiting rows of older runs become this one's, to be rendered anew: their bodies have an older recipe."""
    waiting = (requests.c.run_id.in_(older), requests.c.state == RowState.PENDING)
    conn.execute(update(requests).where(*waiting).values(run_id=run_id, body_id=None, body_n=None))


def remove_vanished(conn: Connection, run_id: int, variables: dict[str, Any]) -> int:
    """Remove rows that no longer stand in the source and never had an outcome; how many there were.

    Call when planning has come to the end of the source: every row of it that waits is in a batch by then. Rows that
    wait for a run with other vars belong to another source and stay.
    """
    job_id = conn.scalar(select(runs.c.job_id).where(runs.c.id == run_id))
    same = [
        run.id
        for run in conn.execute(select(runs.c.id, runs.c.vars).where(runs.c.job_id == job_id))
        if run.vars == variables
    ]
    vanished = (requests.c.run_id.in_(same), requests.c.state == RowState.PENDING, requests.c.outcome.is_(None))
    removed = conn.execute(requests.delete().where(*vanished)).rowcount
    # a row that was to be sent again has vanished, and its body is gone: its outcome stands
    answered = (requests.c.run_id.in_(same), requests.c.state == RowState.PENDING, requests.c.body_id.is_(None))
    conn.execute(update(requests).where(*answered).values(state=requests.c.outcome))
    return removed


def rows_to_send_again(conn: Connection, run_id: int, *, after: tuple[int, int, int], limit: int) -> list[Row[Any]]:
    """Waiting rows of a run whose request stands in a body, in their order there. after: (body_id, body_n, id)."""
    body, n, row = after
    columns = (requests.c.id, requests.c.body_id, requests.c.body_n, requests.c.sent_hash)
    behind = or_(
        requests.c.body_id > body,
        (requests.c.body_id == body) & (requests.c.body_n > n),
        (requests.c.body_id == body) & (requests.c.body_n == n) & (requests.c.id > row),
    )
    query = (
        select(*columns, batches.c.nonce, batches.c.digest)
        .join(batches, batches.c.id == requests.c.body_id)
        .where(requests.c.run_id == run_id, requests.c.state == text("'pending'"), behind)
        .order_by(requests.c.body_id, requests.c.body_n, requests.c.id)
        .limit(limit)
    )
    return list(conn.execute(query))


def forget_body(conn: Connection, batch: int) -> None:
    """The body of this batch is gone: its waiting rows can only be rendered from the source again."""
    waiting = (requests.c.body_id == batch, requests.c.state == RowState.PENDING)
    conn.execute(update(requests).where(*waiting).values(body_id=None, body_n=None))


def unneeded_bodies(conn: Connection, job_id: int, batch_ids: Sequence[int] | None = None) -> list[str]:
    """The nonces of final batches whose body no waiting row needs any more."""
    needed = select(requests.c.id).where(requests.c.body_id == batches.c.id, requests.c.state == text("'pending'"))
    final = batches.c.state.in_([BatchState.COLLECTED, BatchState.DROPPED])
    query = select(batches.c.nonce).where(batches.c.job_id == job_id, final, ~needed.exists())
    return list(conn.scalars(query if batch_ids is None else query.where(batches.c.id.in_(batch_ids))))


def batch_rows(conn: Connection, batch: int, first: int, last: int) -> list[tuple[int, int, int, str, str | None]]:
    """The rows of a batch still in flight, at positions first to last: (number, n, attempts, key, keep), by n."""
    query = select(requests.c.id, requests.c.n, requests.c.attempts, requests.c.key, requests.c.keep).where(
        requests.c.batch_id == batch,
        requests.c.n.between(first, last),
        requests.c.state == RowState.IN_FLIGHT,
    )
    return [tuple(row) for row in conn.execute(query.order_by(requests.c.n, requests.c.id))]


class Settled(NamedTuple):
    """One row's outcome, for `mark_outcomes`."""

    row: int
    outcome: str
    error_type: str | None
    again: bool  #: whether it is sent again


def mark_outcomes(conn: Connection, batch: Batch, first: int, last: int, rows: Sequence[Settled]) -> None:
    """in_flight -> an outcome, or pending when it is sent again, for all rows at positions first to last of a batch.

    Raises LostRace unless these are just the rows in flight there.
    """
    if not rows:
        return
    kinds = Counter((row.outcome, row.error_type, row.again) for row in rows)
    usual, _ = kinds.most_common(1)[0]
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
    moved = 0
    for kind in kinds.keys() - {usual}:
        numbers = [{"row": row.row} for row in rows if row[1:] == kind]
        statement = update(requests).where(requests.c.id == bindparam("row"), *here)
        moved += conn.execute(statement.values(_with_outcome(*kind)), numbers).rowcount
    rest_of_them = update(requests).where(*here, requests.c.n.between(first, last))
    moved += conn.execute(rest_of_them.values(_with_outcome(*usual))).rowcount
    if moved != len(rows):
        raise LostRace(f"rows of batch {batch.id} were moved by another driver; the same command again goes on")


def _with_outcome(outcome: str, error_type: str | None, again: bool) -> dict[str, Any]:
    values = {
        "state": RowState.PENDING if again else outcome,
        "outcome": outcome,
        "error_type": error_type,
        "outcome_hash": requests.c.row_hash,
        "outcome_recipe": requests.c.recipe,
        "attempts": requests.c.attempts + 1,
    }
    return values | ({"batch_id": None, "n": None} if again else {})


def add_to_batch(conn: Connection, batch: Batch, *, outcomes: Mapping[str, int], cost_usd: float) -> None:
    """Count a chunk's outcomes and cost into its batch."""
    before = conn.execute(select(batches.c.outcomes).where(batches.c.id == batch.id)).scalar_one() or {}
    total = {name: before.get(name, 0) + outcomes.get(name, 0) for name in before.keys() | outcomes.keys()}
    values = {"outcomes": total, "cost_usd": batches.c.cost_usd + cost_usd}
    conn.execute(update(batches).where(batches.c.id == batch.id).values(**values))


def soon(now: datetime, seconds: float) -> datetime:
    """`seconds` from `now`."""
    return now + timedelta(seconds=seconds)
