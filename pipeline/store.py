"""What the state database knows, and one function for each move. Edge: SQL.

Every function takes a connection and commits nothing: a step decides what belongs into one transaction.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Row,
    Select,
    bindparam,
    case,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
    union,
    update,
)

from pipeline import migrations
from pipeline.account import Identity
from pipeline.bulk import Bulk, next_ids
from pipeline.errors import DatabaseError, LostRace, RunEnded
from pipeline.packing import Packing
from pipeline.quote import InFlight, Unsent
from pipeline.reasons import BEHIND_GATE, HELD_BACK, Reason, in_words
from pipeline.states import (
    AT_THE_API,
    BATCH_MOVES,
    CLOSED_BATCHES,
    OPEN_BATCHES,
    OUTCOMES,
    BatchState,
    Gate,
    RowState,
    RunReason,
    RunState,
    SendingEnd,
)
from pipeline.tables import accounts, batches, files, identified, jobs, leases, requests, runs, sendings, tallies

RESULTS_KEPT = timedelta(days=29)  # by the API, from a batch's creation
SKEW = timedelta(seconds=120)  # how far the API's created_at may lie before our intent
TWIN_WATCH = timedelta(hours=25)  # how long a sending taken for not accepted is looked for: a batch takes 24 h at most
AT_ONCE = datetime(2000, 1, 1, tzinfo=UTC)  # due by every clock


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
    reason: str | None
    problem: str | None
    created_at: datetime
    claim: int
    not_found: int
    not_found_at: datetime | None
    cancel: bool
    delete_remote: bool
    max_output_usd: float | None
    max_input_usd: float | None
    gate: str | None
    canceling_at: datetime | None


#: Sendings that came to the API, as far as anybody knows.
MAY_HAVE_ARRIVED: ColumnElement[bool] = or_(
    sendings.c.end.is_(None), sendings.c.end.not_in([SendingEnd.REJECTED, SendingEnd.ABSENT])
)

_BATCH = [batches.c[name] for name in Batch.__dataclass_fields__]


def _batch(row: Row[Any]) -> Batch:
    return Batch(**{**row._mapping, "state": BatchState(row.state)})


def _number(created: CursorResult[Any]) -> int:
    key = created.inserted_primary_key
    assert key is not None
    return int(key[0])


def alone(conn: Connection) -> None:
    """Whoever else calls this waits until this transaction has ended. On SQLite every writer does."""
    if conn.dialect.name == "postgresql":
        conn.execute(select(func.pg_advisory_xact_lock(_ALONE)))


_ALONE = 0x6261746368  # any number that is ours


# -- jobs and runs ---------------------------------------------------------------------------------------------------


def put_job(
    conn: Connection,
    *,
    name: str,
    file: str | None,
    results_table: str,
    columns: dict[str, Any],
    spool: str | None,
    spool_id: str,
    now: datetime,
) -> int:
    """Note the job, or what is new of it; its number."""
    row = job_named(conn, name)
    values = {"file": file, "columns": columns, "spool": spool, "spool_id": spool_id}
    if row is not None:
        conn.execute(update(jobs).where(jobs.c.id == row.id).values(**values))
        return int(row.id)
    created = conn.execute(insert(jobs).values(name=name, results_table=results_table, created_at=now, **values))
    return _number(created)


def spool_id_of(conn: Connection, job_id: int, *, to_change: bool = False) -> str | None:
    """The id of the job's spool, which stays so until this transaction has ended.

    to_change: unless it changes it itself: it waits until nobody commits a batch any more.
    """
    if conn.dialect.name == "postgresql":  # on SQLite there is one writer at a time
        lock = func.pg_advisory_xact_lock if to_change else func.pg_advisory_xact_lock_shared
        conn.execute(select(lock(_SPOOL, job_id)))
    return conn.scalar(select(jobs.c.spool_id).where(jobs.c.id == job_id))


_SPOOL = 0x73706F6C  # any number that is ours


def set_spool(conn: Connection, job_id: int, address: str, spool_id: str) -> None:
    """The job's spool is at this address from now on."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(spool=address, spool_id=spool_id))


def columns_of(conn: Connection, job_id: int, *, to_change: bool = False) -> dict[str, Any]:
    """The columns of the job's results table, which stay so until this transaction has ended.

    to_change: unless it changes them itself: it waits until nobody writes answers any more.
    """
    if conn.dialect.name == "postgresql":  # on SQLite there is one writer at a time
        # not the job's row: many readers of a locked row keep a writer waiting for ever, here all wait their turn
        lock = func.pg_advisory_xact_lock if to_change else func.pg_advisory_xact_lock_shared
        conn.execute(select(lock(_COLUMNS, job_id)))
    columns: dict[str, Any] = conn.execute(select(jobs.c.columns).where(jobs.c.id == job_id)).scalar_one()
    return columns


def set_columns(conn: Connection, job_id: int, columns: dict[str, Any]) -> None:
    """The job's results table has these columns from now on."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(columns=columns))


_COLUMNS = 0x636F6C73  # any number that is ours


def mark_swept(conn: Connection, job_id: int, now: datetime) -> None:
    """A driver has just done all that was due for the job."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(swept_at=now))


def job_named(conn: Connection, name: str) -> Row[Any] | None:
    """The job of this name, or None."""
    return conn.execute(select(jobs).where(jobs.c.name == name)).one_or_none()


def run(conn: Connection, run_id: int) -> Row[Any]:
    """One run."""
    return conn.execute(select(runs).where(runs.c.id == run_id)).one()


def batches_to_come_back(conn: Connection, job_id: int) -> int:
    """How many batches of the job are at the API, or may be, or wait to be collected."""
    states = [state for state in OPEN_BATCHES if state is not BatchState.PLANNED]
    here = (batches.c.job_id == job_id, batches.c.state.in_(states))
    return conn.scalar(select(func.count()).select_from(batches).where(*here)) or 0


def all_jobs(conn: Connection) -> list[Row[Any]]:
    """All jobs, oldest first."""
    return list(conn.execute(select(jobs).order_by(jobs.c.id)))


def open_runs(conn: Connection, job_id: int | None = None) -> list[Row[Any]]:
    """The open runs of a job, or of all jobs, oldest first."""
    query = select(runs).where(runs.c.state == RunState.OPEN).order_by(runs.c.id)
    return list(conn.execute(query if job_id is None else query.where(runs.c.job_id == job_id)))


#: Runs that the same command goes on with: open ones, and those that stopped for their budget.
UNFINISHED: ColumnElement[bool] = or_(
    runs.c.state == RunState.OPEN, runs.c.reason.is_not_distinct_from(RunReason.BUDGET)
)

_IS_RETRY: ColumnElement[bool] = runs.c.retry.is_not(null())


def unfinished_retries(conn: Connection, job_id: int) -> list[Row[Any]]:
    """The retries of a job that the same command goes on with, oldest first. Their waiting rows are left to them."""
    query = select(runs).where(runs.c.job_id == job_id, _IS_RETRY, UNFINISHED).order_by(runs.c.id)
    return list(conn.execute(query))


def last_run(conn: Connection, job_id: int) -> Row[Any] | None:
    """The job's newest run, or None."""
    return conn.execute(select(runs).where(runs.c.job_id == job_id).order_by(runs.c.id.desc()).limit(1)).one_or_none()


def join_run(
    conn: Connection,
    job_id: int,
    *,
    variables: dict[str, Any],
    job: dict[str, Any],
    recipe: str,
    retry: dict[str, Any] | None,
    now: datetime,
) -> int:
    """The job's open run with these vars and this recipe, which then goes by the present job; else a new one.

    A run that stopped for its budget is opened again: its money counts on. retry: what a person wants sent again, which
    is a run of its own; None for the whole source. Under the lease on planning.
    """
    joined_run = run_to_join(conn, job_id, variables=variables, recipe=recipe, retry=retry)
    open_again = {"state": RunState.OPEN, "reason": None, "ended_at": None, "counts": None, "planned_at": None}
    if joined_run is not None:
        joined = update(runs).where(runs.c.id == joined_run, UNFINISHED).values(job=job, **open_again)
        if conn.execute(joined).rowcount:
            return joined_run
    values = {"job_id": job_id, "vars": variables, "job": job, "recipe": recipe, "state": RunState.OPEN}
    created = conn.execute(insert(runs).values(created_at=now, vanished=0, retry=retry, **values))
    return _number(created)


def run_to_join(
    conn: Connection, job_id: int, *, variables: dict[str, Any], recipe: str, retry: dict[str, Any] | None
) -> int | None:
    """The newest such run, an open one before all others, if it can go on; None if there is none."""
    query = select(runs).where(runs.c.job_id == job_id, runs.c.recipe == recipe).order_by(runs.c.id.desc())
    alike = [run for run in conn.execute(query) if run.vars == variables and run.retry == retry]
    last = next((run for run in alike if run.state == RunState.OPEN), alike[0] if alike else None)
    return last.id if last is not None and (last.state == RunState.OPEN or last.reason == RunReason.BUDGET) else None


def require_open(conn: Connection, run_id: int) -> Row[Any]:
    """The run, which stays open until this transaction has ended. Raises RunEnded when it is not open."""
    run = conn.execute(select(runs).where(runs.c.id == run_id).with_for_update(read=True)).one()
    if run.state != RunState.OPEN:
        raise RunEnded(f"run {run_id} was ended by another driver ({run.reason or run.state})")
    return run


def mark_planned(conn: Connection, run_id: int, *, vanished: int, now: datetime) -> None:
    """The run's planning has come to the end of the source."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(planned_at=now, vanished=runs.c.vanished + vanished))


def bound_tokens(conn: Connection, run_id: int, tokens_per_byte: float | None) -> None:
    """Note how many tokens a byte of input comes to at most; None for a run without a budget."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(tokens_per_byte=tokens_per_byte))


def end_run(conn: Connection, run_id: int, state: RunState, *, reason: RunReason | None, now: datetime) -> bool:
    """open -> finished, with the counts of that moment, or incomplete; False when it was not open.

    The rows that waited for a retry stand with their outcomes, unless the same command goes on with it.
    """
    # announced_at: nobody was told of this end yet, whatever was told of an earlier one before the run went on
    values: dict[str, Any] = {"state": state, "reason": reason, "ended_at": now, "announced_at": None}
    if state is RunState.FINISHED:  # of one that stopped before, rows may still come back from the API
        values["counts"] = run_counts(conn, run_id)
    here = (runs.c.id == run_id, runs.c.state == RunState.OPEN)
    ended = bool(conn.execute(update(runs).where(*here).values(**values)).rowcount)
    if ended:
        stand_if_retry_is_over(conn, run_id)
        _add_up(conn, run_id)
    return ended


def cancel_stopped_retries(conn: Connection, job_id: int) -> None:
    """Retries of the job that stopped for their budget do not go on: their waiting rows stand with their outcomes."""
    stopped = [run.id for run in unfinished_retries(conn, job_id) if run.state != RunState.OPEN]
    conn.execute(update(runs).where(runs.c.id.in_(stopped)).values(reason=RunReason.CANCELED))
    for run_id in stopped:
        stand_if_retry_is_over(conn, run_id)


def end_if_done(conn: Connection, run_id: int, now: datetime) -> bool:
    """open -> finished, when it has been planned to the end and nothing of it is left to do; whether it just ended."""
    run = conn.execute(select(runs).where(runs.c.id == run_id).with_for_update(key_share=True)).one()
    if run.planned_at is None or has_work(conn, run_id) or rows_for_planning(conn, run_id):
        return False
    ended = end_run(conn, run_id, RunState.FINISHED, reason=None, now=now)
    if ended and run.job.get("privacy", {}).get("delete_remote"):
        mark_files_done(conn, run.job_id)
    return ended


def run_counts(conn: Connection, run_id: int) -> dict[str, int]:
    """The run's rows by state."""
    return _tallied(conn, tallies.c.run_id == run_id)


def job_counts(conn: Connection, job_id: int) -> dict[str, int]:
    """The job's rows by state."""
    return _tallied(conn, tallies.c.run_id.in_(select(runs.c.id).where(runs.c.job_id == job_id)))


def run_rows(conn: Connection, run: Row[Any]) -> dict[str, int]:
    """The run's rows as people see them: `planned` are in a batch that was not sent yet, `in_flight` was sent.

    Of a run that has ended, the counts that were written then.
    """
    if run.counts is not None:
        return dict(run.counts)
    return _apart(conn, run_counts(conn, run.id), batches.c.run_id == run.id)


def job_rows(conn: Connection, job_id: int) -> dict[str, int]:
    """The job's rows, as `run_rows`."""
    return _apart(conn, job_counts(conn, job_id), batches.c.job_id == job_id)


def _apart(conn: Connection, counts: dict[str, int], which: ColumnElement[bool]) -> dict[str, int]:
    """A row is `in_flight` from its planning on. Those of planned batches are counted apart here."""
    query = select(func.sum(batches.c.rows)).where(which, batches.c.state == BatchState.PLANNED)
    in_batches = counts.get(RowState.IN_FLIGHT, 0)
    planned = min(int(conn.scalar(query) or 0), in_batches)
    found = {**counts, BatchState.PLANNED.value: planned, RowState.IN_FLIGHT.value: in_batches - planned}
    return {state: rows for state, rows in found.items() if rows}


def rows_of_source(conn: Connection, job_id: int, variables: dict[str, Any]) -> int | None:
    """The job's rows, if all of them are of the source that these vars name; None when it was run with other vars."""
    others = select(runs.c.vars).where(runs.c.job_id == job_id)
    if any(given != variables for given in conn.scalars(others)):
        return None
    return sum(job_counts(conn, job_id).values())


def note_gone(conn: Connection, job_id: int, gone: int, now: datetime) -> None:
    """So many rows of the job were not in its source when it was read whole."""
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(gone=gone, gone_at=now))


class Collecting(NamedTuple):
    """A batch of which some rows have their outcome, and others are waited for."""

    batch: int
    rows: int
    answered: int


def partly_collected(conn: Connection, job_id: int) -> list[Collecting]:
    """The job's batches whose results are stored in part: more of them come, or are downloaded again."""
    ended = select(batches.c.id, batches.c.rows).where(batches.c.job_id == job_id, batches.c.state == BatchState.ENDED)
    found: list[Collecting] = []
    for batch, rows in conn.execute(ended.order_by(batches.c.id)).tuples().all():
        here = (requests.c.batch_id == batch, requests.c.state == RowState.IN_FLIGHT)
        waiting = conn.scalar(select(func.count()).select_from(requests).where(*here)) or 0
        if waiting < rows:
            found.append(Collecting(batch, rows, rows - waiting))
    return found


def _tallied(conn: Connection, which: ColumnElement[bool]) -> dict[str, int]:
    number = func.sum(tallies.c.rows)
    query = select(tallies.c.state, number).where(which).group_by(tallies.c.state).having(number != 0)
    return {state: int(rows) for state, rows in conn.execute(query)}


def _tally(conn: Connection, changes: Mapping[tuple[int, str], int]) -> None:
    """Note how many rows came into a state of a run, or left it, in this transaction. changes: by run and state."""
    rows = [{"run_id": run_id, "state": state, "rows": n} for (run_id, state), n in changes.items() if n]
    if rows:
        conn.execute(insert(tallies), rows)


def _moved(conn: Connection, run_id: int, before: str, after: str, rows: int) -> int:
    """So many rows of a run have moved from one state to another; how many."""
    changes = Counter({(run_id, before): -rows})
    changes[run_id, after] += rows
    _tally(conn, changes)
    return rows


def _leaving(conn: Connection, *which: ColumnElement[bool]) -> Counter[tuple[int, str]]:
    """Rows that are about to change, by run and state, each negative; they stay as they are until then."""
    query = select(requests.c.run_id, requests.c.state).where(*which).with_for_update(key_share=True)
    leaving: Counter[tuple[int, str]] = Counter()
    leaving.subtract((row[0], row[1]) for row in conn.execute(query))
    return leaving


def _add_up(conn: Connection, run_id: int) -> None:
    """Put the sums in the place of what they are the sums of. For a run that ends, so that one driver does it."""
    terms = list(conn.scalars(select(tallies.c.id).where(tallies.c.run_id == run_id)))
    sums: Counter[tuple[int, str]] = Counter()
    for start in range(0, len(terms), _IDS_AT_ONCE):
        some = tallies.c.id.in_(terms[start : start + _IDS_AT_ONCE])
        for state, rows in conn.execute(select(tallies.c.state, tallies.c.rows).where(some)):
            sums[run_id, state] += rows
        conn.execute(tallies.delete().where(some))
    _tally(conn, sums)


_IDS_AT_ONCE = 5_000


def run_cost(conn: Connection, run_id: int) -> float:
    """US dollars of everything the run has had answered, failed and repeated rows included."""
    cost = conn.scalar(select(func.coalesce(func.sum(batches.c.cost_usd), 0.0)).where(batches.c.run_id == run_id))
    return round(float(cost or 0), 12)


def has_work(conn: Connection, run_id: int) -> bool:
    """Whether a batch of the run is open, or a row waits whose request stands in the spool."""
    flying = select(batches.c.id).where(batches.c.run_id == run_id, batches.c.state.in_(OPEN_BATCHES))
    waiting = (requests.c.run_id == run_id, requests.c.state == text("'pending'"), requests.c.body_id.is_not(None))
    # in one statement, so that a row on its way from waiting to flying is seen at either place
    return bool(conn.scalar(select(or_(flying.exists(), select(requests.c.id).where(*waiting).exists()))))


def rows_for_planning(conn: Connection, run_id: int) -> int:
    """How many rows of the run can only go on from the source: never spooled, or changed since they were sent."""
    unspooled = (requests.c.run_id == run_id, requests.c.state == text("'pending'"), requests.c.body_id.is_(None))
    back = requests.c.state != RowState.IN_FLIGHT
    changed = (requests.c.run_id == run_id, requests.c.changed_hash.is_not(None), back)
    counts = [conn.scalar(select(func.count()).select_from(requests).where(*some)) for some in (unspooled, changed)]
    return sum(count or 0 for count in counts)


def forget_changed(conn: Connection, run_id: int) -> None:
    """The source has been planned since: what is still marked as changed is not in it any more."""
    marked = (requests.c.run_id == run_id, requests.c.changed_hash.is_not(None))
    back = requests.c.state.not_in([RowState.PENDING, RowState.IN_FLIGHT])
    conn.execute(update(requests).where(*marked, back).values(changed_hash=None))


# -- accounts --------------------------------------------------------------------------------------------------------


def account(conn: Connection, identity: Identity) -> int:
    """The number of this account. Raises DatabaseError when the database belongs to the other world."""
    alone(conn)
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


# -- room and money --------------------------------------------------------------------------------------------------


def lock_accounts(conn: Connection) -> None:
    """No other intent is committed until this transaction has ended."""
    conn.execute(select(accounts.c.id).order_by(accounts.c.id).with_for_update(key_share=True)).all()


def in_flight(conn: Connection) -> dict[int, int]:
    """Requests that are at the API, or may be, by job."""
    there = batches.c.state.in_([BatchState.SUBMITTING, *AT_THE_API])
    query = select(batches.c.job_id, func.sum(batches.c.requests)).where(there).group_by(batches.c.job_id)
    return {job: int(number) for job, number in conn.execute(query)}


def jobs_held_back(conn: Connection, *, since: datetime) -> set[int]:
    """Jobs with a batch that waits for room at the API, and was asked after since then: somebody drives them."""
    waits = (batches.c.state == BatchState.PLANNED, batches.c.reason == Reason.NO_ROOM, batches.c.due_at > since)
    return set(conn.scalars(select(batches.c.job_id).where(*waits)))


def reserve(batch: Batch, tokens_per_byte: float) -> float | None:
    """US dollars that a batch may cost at most; None when its model has no known price. Pure."""
    if batch.max_output_usd is None or batch.max_input_usd is None:
        return None
    return batch.max_output_usd + batch.max_input_usd * tokens_per_byte


def spending(conn: Connection, run_id: int, tokens_per_byte: float) -> tuple[float, float]:
    """US dollars: what the run's sendings have cost, and what those that are not settled may cost at most.

    Sendings of before the run had a budget are reserved for as well.
    """
    return _spending(conn, batches.c.run_id == run_id, literal(tokens_per_byte))


def spending_since(conn: Connection, since: datetime, certain: float) -> tuple[float, float]:
    """As `spending`, of all sendings of all jobs that began since then, lost ones included.

    certain: tokens that a byte is at most, for runs which never had a budget.
    """
    return _spending(conn, sendings.c.started_at >= since, func.coalesce(runs.c.tokens_per_byte, certain))


def _spending(conn: Connection, which: ColumnElement[bool], per_byte: ColumnElement[Any]) -> tuple[float, float]:
    of_runs = sendings.join(batches, batches.c.id == sendings.c.batch_id).join(runs, runs.c.id == batches.c.run_id)
    at_most = batches.c.max_output_usd + batches.c.max_input_usd * per_byte
    unsettled = case((sendings.c.settled_usd.is_(None), func.coalesce(sendings.c.reserved_usd, at_most, 0.0)))
    query = select(func.sum(sendings.c.settled_usd), func.sum(unsettled)).select_from(of_runs)
    settled, reserved = conn.execute(query.where(which, MAY_HAVE_ARRIVED)).one()
    return float(settled or 0.0), float(reserved or 0.0)


def settle(conn: Connection, batch: Batch, *, lost: int) -> None:
    """What the batch has cost is known now. lost: requests of it that may have cost something nobody knows."""
    cost = conn.scalar(select(batches.c.cost_usd).where(batches.c.id == batch.id)) or 0.0
    kept = func.coalesce(sendings.c.reserved_usd, 0.0) * (lost / max(1, batch.requests))
    here = (sendings.c.batch_id == batch.id, sendings.c.end.in_([SendingEnd.ACCEPTED, SendingEnd.ADOPTED]))
    conn.execute(update(sendings).where(*here).values(settled_usd=cost + kept))


def run_outcomes(conn: Connection, run_id: int) -> Counter[str]:
    """Rows of the run's batches by the outcome that was collected for them."""
    total: Counter[str] = Counter()
    for outcomes in conn.scalars(select(batches.c.outcomes).where(batches.c.run_id == run_id)):
        total.update(outcomes or {})
    return total


def estimated(conn: Connection, run_id: int, facts: Mapping[str, Any]) -> None:
    """Note what was said of the run's cost when it began."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(estimate=dict(facts)))


# -- gates -----------------------------------------------------------------------------------------------------------


def set_gate(conn: Connection, run_id: int, gate: Gate | None) -> None:
    """What the run waits for from now on; None: nothing."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(gate=gate))


def note_no_canary(conn: Connection, run_id: int) -> None:
    """All rows of the run are sent at once, whoever goes on with it: a person said so."""
    conn.execute(update(runs).where(runs.c.id == run_id).values(no_canary=True))


def open_gate(conn: Connection, run_id: int, gate: str, now: datetime) -> bool:
    """The rest of the run may be sent; False when the gate was open already."""
    here = (runs.c.id == run_id, runs.c.gate == gate)
    if not conn.execute(update(runs).where(*here).values(gate=None)).rowcount:
        return False
    behind = (batches.c.run_id == run_id, batches.c.state == BatchState.PLANNED, batches.c.due_at > now)
    waits = batches.c.reason.in_(list(BEHIND_GATE.values()))
    conn.execute(update(batches).where(*behind, waits).values(due_at=now, reason=None, problem=None))
    return True


def keeps_gate(conn: Connection, run_id: int, gate: str) -> bool:
    """Whether anything is there that opens this gate of the run: on its way, waiting to go again, or answered."""
    ahead = gate_batches(conn, run_id, gate)
    if any(batch.state in OPEN_BATCHES for batch in ahead) or waits_for_gate(conn, run_id, gate):
        return True
    return any(state in OUTCOMES for state in outcomes_of(conn, [batch.id for batch in ahead]))


def first_sent_at(conn: Connection, numbers: Sequence[int]) -> datetime | None:
    """When the first of these batches that came to the API, or may have, was sent, by its clock; None if none did."""
    query = select(func.min(sendings.c.started_at)).where(sendings.c.batch_id.in_(numbers), MAY_HAVE_ARRIVED)
    first: datetime | None = conn.scalar(query)
    return first


def gate_batches(conn: Connection, run_id: int, gate: str) -> list[Batch]:
    """The batches that open this gate of the run, but for dropped ones."""
    here = (batches.c.run_id == run_id, batches.c.gate == gate, batches.c.state != BatchState.DROPPED)
    return [_batch(row) for row in conn.execute(select(*_BATCH).where(*here).order_by(batches.c.id))]


def waits_for_gate(conn: Connection, run_id: int, gate: str) -> bool:
    """Whether rows wait to be sent again in a batch that opens this gate of the run."""
    theirs = select(batches.c.id).where(batches.c.run_id == run_id, batches.c.gate == gate)
    waiting = (requests.c.run_id == run_id, requests.c.state == text("'pending'"), requests.c.body_id.in_(theirs))
    return conn.scalar(select(requests.c.id).where(*waiting).limit(1)) is not None


def outcomes_of(conn: Connection, numbers: Sequence[int]) -> dict[str, int]:
    """Rows that were sent in these batches last, by state."""
    query = select(requests.c.state, func.count()).where(requests.c.batch_id.in_(numbers)).group_by(requests.c.state)
    return {row[0]: row[1] for row in conn.execute(query)}


def has_sent(conn: Connection, run_id: int, gate: Gate | None = None) -> bool:
    """Whether anything of the run, or of what opens this gate of it, has ever been sent, or may have been."""
    here = [batches.c.run_id == run_id, batches.c.account_id.is_not(None)]
    if gate is not None:
        here.append(batches.c.gate == gate)
    return conn.scalar(select(batches.c.id).where(*here).limit(1)) is not None


def canary_failed(conn: Connection, job_id: int, recipe: str) -> bool:
    """Whether a canary has ended a run with this recipe."""
    here = (runs.c.job_id == job_id, runs.c.recipe == recipe, runs.c.reason == RunReason.CANARY)
    return conn.scalar(select(runs.c.id).where(*here).limit(1)) is not None


def has_succeeded(conn: Connection, job_id: int, recipe: str) -> bool:
    """Whether a row has succeeded with this recipe, in a run that its canary did not end."""
    proven = or_(runs.c.reason.is_(None), runs.c.reason != RunReason.CANARY)
    query = (
        select(batches.c.outcomes)
        .join(runs, runs.c.id == batches.c.run_id)
        .where(batches.c.job_id == job_id, batches.c.recipe == recipe, batches.c.outcomes.is_not(None), proven)
    )
    return any((outcomes or {}).get(RowState.SUCCEEDED) for outcomes in conn.scalars(query))


# -- files -----------------------------------------------------------------------------------------------------------


def file_of(conn: Connection, job_id: int, account_id: int, sha256: str) -> Row[Any] | None:
    """The file with this content that the job has put up for this account, unless it is to be removed; or None."""
    here = (files.c.job_id == job_id, files.c.account_id == account_id, files.c.sha256 == sha256)
    query = select(files).where(*here, ~files.c.delete_remote).order_by(files.c.id.desc()).limit(1)
    return conn.execute(query).one_or_none()


def add_file(conn: Connection, **values: Any) -> None:
    """Note a file that was put up."""
    conn.execute(insert(files).values(delete_remote=False, **values))


def forget_file(conn: Connection, file_id: str) -> None:
    """It is not at the API any more."""
    conn.execute(files.delete().where(files.c.file_id == file_id))


def has_files(conn: Connection, job_id: int) -> bool:
    """Whether the job has put up files that may be at the API still."""
    return conn.scalar(select(files.c.id).where(files.c.job_id == job_id).limit(1)) is not None


def mark_files_done(conn: Connection, job_id: int) -> None:
    """The job's files are to be removed at the API, if nothing of it waits or is at the API any more."""
    open_batch = select(batches.c.id).where(batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES))
    waiting = select(requests.c.id).where(requests.c.job_id == job_id, requests.c.state == text("'pending'"))
    open_run = select(runs.c.id).where(runs.c.job_id == job_id, runs.c.state == RunState.OPEN)
    done = ~open_batch.exists() & ~waiting.exists() & ~open_run.exists()
    conn.execute(update(files).where(files.c.job_id == job_id, done).values(delete_remote=True))


def files_to_delete(conn: Connection, job_id: int, account_id: int) -> list[str]:
    """The ids of the job's files that are to be removed at the API."""
    here = (files.c.job_id == job_id, files.c.account_id == account_id, files.c.delete_remote)
    return list(conn.scalars(select(files.c.file_id).where(*here)))


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


def next_due(conn: Connection, job_id: int, driver: str, account_id: int) -> datetime | None:
    """When the job's next batch is due for anything; None when it has no open batch but those of other drivers."""
    free = or_(batches.c.claimed_by.is_(None), batches.c.claimed_by == driver)
    ours = or_(batches.c.account_id.is_(None), batches.c.account_id == account_id)
    query = select(batches.c.due_at).where(batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES), free, ours)
    return conn.scalar(query.order_by(batches.c.due_at).limit(1))


def waited_for(conn: Connection, job_id: int, driver: str) -> list[Row[Any]]:
    """Return holder and end of the lease of each other driver that has open batches of the job."""
    theirs = (batches.c.job_id == job_id, batches.c.state.in_(OPEN_BATCHES), batches.c.claimed_by != driver)
    has_them = (leases.c.resource.in_(select(batches.c.claimed_by).where(*theirs)), leases.c.expires_at.is_not(None))
    return list(conn.execute(select(leases.c.holder, leases.c.expires_at).where(*has_them)))


def known_nonces(conn: Connection, job_id: int) -> set[str]:
    """The nonces of all batches that the job ever had."""
    return set(conn.scalars(select(batches.c.nonce).where(batches.c.job_id == job_id)))


def owner_of(conn: Connection, api_id: str) -> int | None:
    """The sending of ours that has this batch of the API; None when none has."""
    return conn.scalar(select(sendings.c.id).where(sendings.c.api_id == api_id))


def is_owned(conn: Connection, api_id: str) -> bool:
    """Whether a sending of ours has this batch of the API."""
    return owner_of(conn, api_id) is not None


def is_of_before(conn: Connection, sending: int, api_id: str, created_at: datetime) -> bool:
    """Whether a batch that came as the answer to this sending is another one's, or older than the sending."""
    if owner_of(conn, api_id) not in (None, sending):
        return True
    began: datetime = conn.execute(select(sendings.c.started_at).where(sendings.c.id == sending)).scalar_one()
    return created_at < began - SKEW


def nonce_at_api(conn: Connection, account_id: int, api_id: str) -> str | None:
    """The nonce that the results of a batch at the API were seen to carry, '' for a stranger's; None: never seen."""
    here = (identified.c.account_id == account_id, identified.c.api_id == api_id)
    return conn.scalar(select(identified.c.nonce).where(*here))


def identify(conn: Connection, account_id: int, api_id: str, nonce: str) -> None:
    """Note whose a batch at the API is. Raises LostRace or IntegrityError when another driver has just done so."""
    conn.execute(insert(identified).values(account_id=account_id, api_id=api_id, nonce=nonce))


def sent_at(conn: Connection, batch: Batch) -> datetime:
    """When the sending that the API has, or may have, was begun, by its clock. For a batch that was sent."""
    query = select(sendings.c.started_at).where(sendings.c.batch_id == batch.id)
    owner = case((sendings.c.api_id == batch.api_id, 0), else_=1)
    began: datetime = conn.execute(query.order_by(owner, sendings.c.id.desc()).limit(1)).scalar_one()
    return began


def unsent(conn: Connection, job_id: int) -> dict[int, Unsent]:
    """The job's batches that are planned and not sent, by number."""
    columns = (batches.c.id, batches.c.requests, batches.c.rows, batches.c.gate)
    planned = select(*columns).where(batches.c.job_id == job_id, batches.c.state == BatchState.PLANNED)
    return {row.id: Unsent(row.requests, row.rows, row.gate) for row in conn.execute(planned)}


def flying(conn: Connection, job_id: int, tokens_per_byte: float) -> InFlight | None:
    """The job's batches that are at the API, or may be; None when there are none.

    tokens_per_byte: of input, at most, for runs without a budget: they have none of their own.
    """
    per_byte = func.coalesce(runs.c.tokens_per_byte, tokens_per_byte)
    at_most = batches.c.max_output_usd + batches.c.max_input_usd * per_byte
    there = batches.c.state.in_((BatchState.SUBMITTING, *AT_THE_API, BatchState.ENDED))
    query = (
        select(
            func.count(), func.sum(batches.c.requests), func.sum(batches.c.rows), func.sum(at_most), func.count(at_most)
        )
        .select_from(batches.join(runs, runs.c.id == batches.c.run_id))
        .where(batches.c.job_id == job_id, there)
    )
    number, sent, rows, usd, priced = conn.execute(query).one()
    return InFlight(number, int(sent), int(rows), float(usd) if priced == number else None) if number else None


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
    dropped = (batches.c.run_id == run_id, batches.c.state == BatchState.DROPPED)
    too_large = (*dropped, batches.c.reason == Reason.TOO_LARGE)
    fewest: int | None = conn.scalar(select(func.min(batches.c.requests)).where(*too_large))
    return fewest


def last_sending(conn: Connection, batch_id: int) -> Row[Any]:
    """The newest sending of a batch that has one."""
    return conn.execute(
        select(sendings).where(sendings.c.batch_id == batch_id).order_by(sendings.c.id.desc()).limit(1)
    ).one()


def at_the_api(conn: Connection, run_id: int | None = None) -> bool:
    """Whether a batch of the run, or of any, may still cost something, or give room or money back."""
    there = batches.c.state.in_((BatchState.SUBMITTING, *AT_THE_API, BatchState.ENDED))
    query = select(batches.c.id).where(there).limit(1)
    return conn.scalar(query if run_id is None else query.where(batches.c.run_id == run_id)) is not None


def due_at_the_api(conn: Connection, account_id: int, due: datetime) -> list[Row[Any]]:
    """Batches of the account, of all jobs, that are at the API and may be asked after by then: api_id, started_at."""
    there = (batches.c.state.in_(AT_THE_API), of_account(account_id), batches.c.due_at <= due)
    sent = sendings.c.api_id == batches.c.api_id
    query = select(batches.c.api_id, sendings.c.started_at).join(sendings, sent).where(*there)
    return list(conn.execute(query))


def absent_since(conn: Connection, job_id: int, account_id: int, since: datetime) -> list[Row[Any]]:
    """Sendings of this account taken for not accepted since then, with the count and nonce of their batches."""
    query = (
        select(sendings, batches.c.requests, batches.c.nonce)
        .join(batches, batches.c.id == sendings.c.batch_id)
        .where(batches.c.job_id == job_id, sendings.c.account_id == account_id)
        .where(sendings.c.end == SendingEnd.ABSENT, sendings.c.ended_at > since)
    )
    return list(conn.execute(query))


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
    query = select(*_BATCH).where(batches.c.id == number).with_for_update(key_share=True)
    batch = _batch(conn.execute(query).one())
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


def jobs_with_work(conn: Connection, *, now: datetime) -> set[int]:
    """Jobs that a sweep has something to do for: open runs or batches, lost ones, some to delete, twins to look for."""
    open_run = select(runs.c.job_id).where(runs.c.state == RunState.OPEN)
    kept = select(sendings.c.id).where(sendings.c.batch_id == batches.c.id, sendings.c.started_at > now - RESULTS_KEPT)
    batch = select(batches.c.job_id).where(
        or_(
            batches.c.state.in_(OPEN_BATCHES),
            batches.c.delete_remote,
            (batches.c.state == BatchState.LOST) & kept.exists(),
        )
    )
    twin = (
        select(batches.c.job_id)
        .join(sendings, sendings.c.batch_id == batches.c.id)
        .where(sendings.c.end == SendingEnd.ABSENT, sendings.c.ended_at > now - TWIN_WATCH)
    )
    file = select(files.c.job_id).where(files.c.delete_remote)
    return set(conn.scalars(union(open_run, batch, twin, file)))


# -- batches: claims -------------------------------------------------------------------------------------------------


class Which(NamedTuple):
    """Batches to take: of a job, in these states, due by then, with a higher number than `after`, and `only`."""

    job_id: int
    states: Sequence[BatchState]
    due: datetime
    after: int = 0
    only: ColumnElement[bool] | None = None


TO_DELETE: ColumnElement[bool] = batches.c.delete_remote


def of_account(account_id: int) -> ColumnElement[bool]:
    """Batches that this account has sent."""
    return batches.c.account_id == account_id


def to_abandon(account_id: int) -> ColumnElement[bool]:
    """Batches of which this account can learn nothing: another account's, and those that the API does not end."""
    return or_(batches.c.account_id != account_id, batches.c.reason == Reason.OVERDUE)


def claim(conn: Connection, which: Which, *, driver: str, living_at: datetime, limit: int) -> list[Batch]:
    """Take batches that no other living driver has, in the order they were planned.

    driver: the sign of life of the one who takes; living_at: the time that signs of life are measured by. Raises
    Stopped when the database was upgraded.
    """
    migrations.require_current(conn)
    alive = select(leases.c.resource).where(leases.c.resource == batches.c.claimed_by, leases.c.expires_at > living_at)
    free = or_(batches.c.claimed_by.is_(None), batches.c.claimed_by == driver, ~alive.exists())
    wanted = [batches.c.job_id == which.job_id, batches.c.state.in_(which.states), batches.c.due_at <= which.due, free]
    wanted += [batches.c.id > which.after] + ([] if which.only is None else [which.only])
    query = select(*_BATCH).where(*wanted).order_by(batches.c.id).limit(limit)
    taken = [_batch(row) for row in conn.execute(query.with_for_update(key_share=True, skip_locked=True))]
    if taken:
        here = batches.c.id.in_([batch.id for batch in taken])
        conn.execute(update(batches).where(here).values(claim=batches.c.claim + 1, claimed_by=driver))
    return [replace(batch, claim=batch.claim + 1) for batch in taken]


def check_claim(conn: Connection, batch: Batch) -> None:
    """Raises LostRace unless the batch is still ours, and keeps it so until this transaction has ended."""
    query = select(batches.c.claim).where(batches.c.id == batch.id).with_for_update(key_share=True)
    if conn.scalar(query) != batch.claim:
        raise LostRace(f"batch {batch.id} was taken by another driver; the same command again goes on")


# -- batches: moves --------------------------------------------------------------------------------------------------


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
    batch = _number(created)
    stretches = _consecutive(contents.rows)
    claims = [(first, last, offset, offset, run_id, batch, batch) for first, last, offset in stretches]
    claim = _CLAIM_FOR_RETRY if conn.scalar(select(_IS_RETRY).where(runs.c.id == run_id)) else _CLAIM
    if claim.execute(conn, claims) != len(contents.rows):
        raise LostRace("another driver planned some of these rows; the same command again goes on")
    _moved(conn, run_id, RowState.PENDING, RowState.IN_FLIGHT, len(contents.rows))
    return batch


def drop(conn: Connection, batch: Batch, reason: Reason, detail: str | None = None) -> None:
    """planned -> dropped: it is not going to be sent; its rows are pending again. Under the lease on planning.

    Rows of a retry that is over stand with their outcomes instead.
    """
    _move(conn, batch, BatchState.DROPPED, reason=reason, problem=detail)
    back = (
        update(requests)
        .where(requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
        .values(state=RowState.PENDING, batch_id=None, n=None)
    )
    _moved(conn, batch.run_id, RowState.IN_FLIGHT, RowState.PENDING, conn.execute(back).rowcount)
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
    sending = _number(conn.execute(insert(sendings).values(**values)))
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
    return _moved(conn, batch.run_id, RowState.LOST, RowState.IN_FLIGHT, waiting)


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
        "outcome",
        "outcome_hash",
        "outcome_recipe",
        "error_type",
        "changed_hash",
        "outcome_sent_hash",
    )
]


def has_rows(conn: Connection, job_id: int) -> bool:
    """Whether the job knows any row yet."""
    return conn.scalar(select(requests.c.id).where(requests.c.job_id == job_id).limit(1)) is not None


def any_waiting(conn: Connection, job_id: int) -> bool:
    """Whether a row of the job is pending."""
    of_job = select(runs.c.id).where(runs.c.job_id == job_id)
    waiting = (requests.c.run_id.in_(of_job), requests.c.state == text("'pending'"))
    return conn.scalar(select(requests.c.id).where(*waiting).limit(1)) is not None


def known_rows(conn: Connection, job_id: int, keys: Sequence[str]) -> dict[str, Row[Any]]:
    """What is known of these keys; at most a chunk of them. attempts: of the last outcome, where there is one."""
    query = select(*_KNOWN, func.abs(requests.c.attempts).label("attempts")).where(
        requests.c.job_id == job_id, requests.c.key.in_(keys)
    )
    return {row.key: row for row in conn.execute(query)}


#: What a new row is inserted with, in this order; `job_id` and `id` come before.
NEW_ROW = (
    *("key", "run_id", "state", "row_hash", "recipe", "keep", "sent_hash", "attempts"),
    *("outcome", "outcome_hash", "outcome_recipe"),
)
_RUN_AND_STATE = itemgetter(NEW_ROW.index("run_id"), NEW_ROW.index("state"))
_ADD = Bulk(insert(requests), ("id", "job_id", *NEW_ROW))


def add_rows(conn: Connection, job_id: int, rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """Insert new rows, each a tuple of NEW_ROW; their numbers, ascending."""
    if not rows:
        return []
    numbers = next_ids(conn, len(rows))
    _ADD.execute(conn, [(number, job_id, *row) for number, row in zip(numbers, rows, strict=True)])
    _tally(conn, Counter(map(_RUN_AND_STATE, rows)))
    return numbers


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
    if not rows:
        return
    changes = _leaving(conn, requests.c.id.in_([row[-1] for row in rows]))
    changes.update(map(_RUN_AND_STATE, rows))
    if _REPLAN.execute(conn, rows) != len(rows):
        raise LostRace("another driver planned some of these rows; the same command again goes on")
    _tally(conn, changes)


def keep_rows(conn: Connection, rows: Sequence[tuple[int, str | None, str | None]]) -> None:
    """Rows that need no sending: (number, kept values, outcome to return to or None to leave the state)."""
    if rows:  # who is collecting one of them has read what it kept before: he is to read it again
        flying = (requests.c.id.in_([row for row, *_ in rows]), requests.c.state == RowState.IN_FLIGHT)
        theirs = batches.c.id.in_(select(requests.c.batch_id).where(*flying))
        ended = (theirs, batches.c.state == BatchState.ENDED)
        conn.execute(update(batches).where(*ended).values(claim=batches.c.claim + 1, claimed_by=None))
    back = [{"row": row, "keep_": keep, "outcome_": outcome} for row, keep, outcome in rows if outcome is not None]
    stay = [{"row": row, "keep_": keep} for row, keep, outcome in rows if outcome is None]
    statement = update(requests).where(requests.c.id == bindparam("row")).values(keep=bindparam("keep_"))
    if stay:
        conn.execute(statement, stay)
    if back:
        answered = {**_AS_ANSWERED, "changed_hash": None}
        with _tallied_moves(conn, [row for row, _, outcome in rows if outcome is not None]):
            conn.execute(statement.values(state=bindparam("outcome_"), **answered), back)


#: Of a row that goes back to its outcome, what else goes back to what it was then.
_AS_ANSWERED = {
    "row_hash": requests.c.outcome_hash,
    "recipe": requests.c.outcome_recipe,
    "attempts": func.abs(requests.c.attempts),
}


def mark_changed(conn: Connection, rows: Iterable[tuple[int, bytes | None]]) -> None:
    """Rows in flight whose source row is another by now (its hash), or again the one that was sent (None)."""
    changes = [{"row": row, "hash": row_hash} for row, row_hash in rows]
    if changes:
        statement = update(requests).where(requests.c.id == bindparam("row")).values(changed_hash=bindparam("hash"))
        conn.execute(statement, changes)


def take_over(conn: Connection, run_id: int, older: Sequence[int]) -> None:
    """The waiting rows of older runs become this one's, to be rendered anew: their bodies have an older recipe."""
    for other in older:
        waiting = (requests.c.run_id == other, requests.c.state == text("'pending'"))
        taken = conn.execute(update(requests).where(*waiting).values(run_id=run_id, body_id=None, body_n=None))
        _tally(conn, {(other, RowState.PENDING): -taken.rowcount, (run_id, RowState.PENDING): taken.rowcount})


def forget_waiting_bodies(conn: Connection, run_id: int, variables: dict[str, Any]) -> None:
    """Rows that wait are rendered anew by the planning that begins now; see `remove_vanished`."""
    waiting = (requests.c.run_id.in_(_runs_like(conn, run_id, variables)), requests.c.state == text("'pending'"))
    conn.execute(update(requests).where(*waiting, requests.c.body_id.is_not(None)).values(body_id=None, body_n=None))


def forget_bodies_of(conn: Connection, numbers: Sequence[int]) -> None:
    """These rows, where they wait, are rendered again by the run that they wait for: their requests are outdated."""
    if numbers:
        waiting = (requests.c.id.in_(numbers), requests.c.state == RowState.PENDING)
        conn.execute(update(requests).where(*waiting).values(body_id=None, body_n=None))


def stand(conn: Connection, run_id: int, *which: ColumnElement[bool]) -> None:
    """pending -> the outcome that they had, for the rows of a run that have one. which: of these only."""
    waits = (requests.c.run_id == run_id, requests.c.state == text("'pending'"), *which)
    if conn.scalar(select(requests.c.id).where(*waits).limit(1)) is None:
        return
    back = {**_AS_ANSWERED, "body_id": None, "body_n": None, "changed_hash": None}
    for outcome in OUTCOMES:
        these = update(requests).where(*waits, requests.c.outcome == outcome).values(state=outcome, **back)
        _moved(conn, run_id, RowState.PENDING, outcome, conn.execute(these).rowcount)


def stand_vanished(conn: Connection, run_id: int) -> None:
    """Rows that a retry waits to send and its planning did not find in the source stand with their outcomes.

    Call when the planning has come to the end of the source; see `remove_vanished`.
    """
    stand(conn, run_id, requests.c.body_id.is_(None))


def stand_if_retry_is_over(conn: Connection, run_id: int) -> None:
    """The waiting rows of a retry that no command goes on with stand with their outcomes.

    On PostgreSQL another transaction may end the retry just now, and not see rows that begin to wait here: the next
    planning looks for such ones.
    """
    if conn.scalar(select(runs.c.id).where(runs.c.id == run_id, _IS_RETRY, ~UNFINISHED)) is not None:
        stand(conn, run_id)


def waiting_for_nothing(conn: Connection, job_id: int) -> list[int]:
    """Retries of the job that no command goes on with, and for which rows wait all the same."""
    waits = select(requests.c.id).where(requests.c.run_id == runs.c.id, requests.c.state == text("'pending'"))
    return list(conn.scalars(select(runs.c.id).where(runs.c.job_id == job_id, _IS_RETRY, ~UNFINISHED, waits.exists())))


def remove_vanished(conn: Connection, run_id: int, variables: dict[str, Any]) -> int:
    """Remove rows that no longer stand in the source and never had an outcome; how many there were.

    Call when planning has come to the end of the source: every row of it that waited is in a batch by then. One that
    came to wait meanwhile, out of a batch that was collected, has its body still. Rows that wait for a run with other
    vars belong to another source and stay, as do those of a retry.
    """
    removed = 0
    for same in _runs_like(conn, run_id, variables):
        waits = (requests.c.run_id == same, requests.c.state == text("'pending'"), requests.c.body_id.is_(None))
        if conn.scalar(select(requests.c.id).where(*waits).limit(1)) is None:
            continue
        gone = conn.execute(requests.delete().where(*waits, requests.c.outcome.is_(None))).rowcount
        _tally(conn, {(same, RowState.PENDING): -gone})
        removed += gone
        for outcome in OUTCOMES:  # one that was to be sent again has vanished: its outcome stands
            stands = update(requests).where(*waits, requests.c.outcome == outcome).values(state=outcome)
            _moved(conn, same, RowState.PENDING, outcome, conn.execute(stands).rowcount)
    return removed


@contextmanager
def _tallied_moves(conn: Connection, numbers: Sequence[int]) -> Iterator[None]:
    """Within the block these rows change their states; at most a chunk of them."""
    these = requests.c.id.in_(numbers)
    changes = _leaving(conn, these)
    yield
    changes.subtract(_leaving(conn, these))
    _tally(conn, changes)


def _runs_like(conn: Connection, run_id: int, variables: dict[str, Any]) -> list[int]:
    """The runs of the same job with these vars, but for retries: their rows are left to them."""
    job_id = conn.scalar(select(runs.c.job_id).where(runs.c.id == run_id))
    found = conn.execute(select(runs.c.id, runs.c.vars).where(runs.c.job_id == job_id, ~_IS_RETRY))
    return [run.id for run in found if run.vars == variables]


def rows_to_send_again(conn: Connection, run_id: int, *, after: tuple[int, int, int], limit: int) -> list[Row[Any]]:
    """Waiting rows of a run whose request stands in a body, in their order there. after: (body_id, body_n, id)."""
    body, n, row = after
    of_row = ("id", "key", "body_id", "body_n", "outcome", "error_type", "sent_hash", "outcome_sent_hash")
    columns = [requests.c[name] for name in of_row]
    behind = or_(
        requests.c.body_id > body,
        (requests.c.body_id == body) & (requests.c.body_n > n),
        (requests.c.body_id == body) & (requests.c.body_n == n) & (requests.c.id > row),
    )
    query = (
        select(*columns, batches.c.nonce, batches.c.digest, batches.c.gate)
        .join(batches, batches.c.id == requests.c.body_id)
        .where(requests.c.run_id == run_id, requests.c.state == text("'pending'"), behind)
        .order_by(requests.c.body_id, requests.c.body_n, requests.c.id)
        .limit(limit)
    )
    return list(conn.execute(query))


def note_sent(conn: Connection, rows: Sequence[tuple[int, bytes]]) -> None:
    """Rows that go again changed, with the hash of what they are asked now."""
    if rows:
        statement = update(requests).where(requests.c.id == bindparam("row")).values(sent_hash=bindparam("hash"))
        conn.execute(statement, [{"row": row, "hash": sent_hash} for row, sent_hash in rows])


def leave_rows(conn: Connection, numbers: Sequence[int]) -> None:
    """Waiting rows that would be sent again in vain -> the outcome that they had."""
    if numbers:
        here = (
            requests.c.id == bindparam("row"),
            requests.c.state == RowState.PENDING,
            requests.c.outcome.is_not(None),
        )
        attempts = func.abs(requests.c.attempts)
        values = {"state": requests.c.outcome, "attempts": attempts, "body_id": None, "body_n": None}
        with _tallied_moves(conn, numbers):
            conn.execute(update(requests).where(*here).values(values), [{"row": number} for number in numbers])


def forget_body(conn: Connection, batch: int) -> None:
    """The body of this batch is gone: its waiting rows can only be rendered from the source again."""
    waiting = (requests.c.body_id == batch, requests.c.state == RowState.PENDING)
    conn.execute(update(requests).where(*waiting).values(body_id=None, body_n=None))


def unneeded_bodies(conn: Connection, job_id: int, batch_ids: Sequence[int] | None = None) -> list[str]:
    """The nonces of final batches whose body no waiting row needs any more."""
    needed = select(requests.c.id).where(requests.c.body_id == batches.c.id, requests.c.state == text("'pending'"))
    final = batches.c.state.in_(CLOSED_BATCHES)
    query = select(batches.c.nonce).where(batches.c.job_id == job_id, final, ~needed.exists())
    return list(conn.scalars(query if batch_ids is None else query.where(batches.c.id.in_(batch_ids))))


def needed_bodies(conn: Connection, job_id: int) -> list[int]:
    """The numbers of the batches whose body may be read again: open ones, and those that a waiting row stands in."""
    waiting = select(requests.c.id).where(requests.c.body_id == batches.c.id, requests.c.state == text("'pending'"))
    needed = or_(batches.c.state.in_(OPEN_BATCHES), waiting.exists())
    return list(conn.scalars(select(batches.c.id).where(batches.c.job_id == job_id, needed).order_by(batches.c.id)))


def batch_rows(conn: Connection, batch: int, first: int, last: int) -> Sequence[Sequence[Any]]:
    """The rows of a batch still in flight, at positions first to last: (number, n, attempts, key, keep), by n."""
    attempts = case((requests.c.attempts < 0, 0), else_=requests.c.attempts).label("attempts")
    query = (
        select(requests.c.id, requests.c.n, attempts, requests.c.key, requests.c.keep)
        .where(
            requests.c.batch_id == batch,
            requests.c.n.between(first, last),
            requests.c.state == RowState.IN_FLIGHT,
        )
        .order_by(requests.c.n, requests.c.id)
    )
    return whole(conn, query)


def whole(conn: Connection, query: Select[Any]) -> Sequence[Sequence[Any]]:
    """All rows of a query whose columns are numbers and texts, in its order.

    On SQLite in one step: for each step its driver lets other threads go on, and then waits for its turn again.
    """
    if conn.dialect.name != "sqlite":
        return conn.execute(query).fetchall()
    rows = query.subquery()
    found: str = conn.scalar(select(func.json_group_array(func.json_array(*rows.c)))) or "[]"
    return orjson.loads(found)  # type: ignore[no-any-return]


class Settled(NamedTuple):
    """One row's outcome, for `mark_outcomes`."""

    row: int
    outcome: str
    error_type: str | None
    again: bool  #: whether it is sent again
    counts: bool = True  #: whether it was an attempt; where the account was refused, the row was not


def mark_outcomes(
    conn: Connection, batch: Batch, first: int, last: int, rows: Sequence[Settled], *, left: Sequence[int] = ()
) -> None:
    """in_flight -> an outcome, or pending when it is sent again, for all rows at positions first to last of a batch.

    left: rows there that stay in flight. Nothing of a retry that is over is sent again. Raises LostRace unless these
    are just the rows in flight there.
    """
    if not rows:
        return
    kinds = Counter(row[1:] for row in rows)
    usual, _ = kinds.most_common(1)[0]
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
    moved = 0
    for kind in kinds.keys() - {usual}:
        numbers = [{"row": row.row} for row in rows if row[1:] == kind]
        statement = update(requests).where(requests.c.id == bindparam("row"), *here)
        moved += conn.execute(statement.values(_with_outcome(*kind)), numbers).rowcount
    rest_of_them = update(requests).where(*here, requests.c.n.between(first, last))
    if left:
        rest_of_them = rest_of_them.where(requests.c.id.not_in(left))
    moved += conn.execute(rest_of_them.values(_with_outcome(*usual))).rowcount
    if moved != len(rows):
        raise LostRace(f"rows of batch {batch.id} were moved by another driver; the same command again goes on")
    changes: Counter[tuple[int, str]] = Counter({(batch.run_id, RowState.IN_FLIGHT): -len(rows)})
    for (outcome, _, again, _), number in kinds.items():
        changes[batch.run_id, RowState.PENDING if again else outcome] += number
    _tally(conn, changes)
    if any(row.again for row in rows):
        stand_if_retry_is_over(conn, batch.run_id)


def _with_outcome(outcome: str, error_type: str | None, again: bool, counts: bool) -> dict[str, Any]:
    if not counts:
        return {"state": RowState.PENDING, "batch_id": None, "n": None}
    values: dict[str, Any] = {
        "state": RowState.PENDING if again else outcome,
        "outcome": outcome,
        "error_type": error_type,
        "outcome_hash": requests.c.row_hash,
        "outcome_recipe": requests.c.recipe,
        "outcome_sent_hash": requests.c.sent_hash,
        "attempts": case((requests.c.attempts < 0, 1), else_=requests.c.attempts + 1),
    }
    return values | ({"batch_id": None, "n": None} if again else {})


def add_to_batch(
    conn: Connection, batch: Batch, outcomes: Mapping[str, int], usage: Mapping[str, int], cost_usd: float
) -> None:
    """Count a chunk's outcomes, tokens by class and cost into its batch."""
    before = conn.execute(select(batches.c.outcomes, batches.c.usage).where(batches.c.id == batch.id)).one()
    values = {
        "outcomes": dict(Counter(before.outcomes or {}) + Counter(outcomes)),
        "usage": dict(Counter(before.usage or {}) + Counter(usage)),
        "cost_usd": batches.c.cost_usd + cost_usd,
    }
    conn.execute(update(batches).where(batches.c.id == batch.id).values(**values))


def soon(now: datetime, seconds: float) -> datetime:
    """`seconds` from `now`."""
    return now + timedelta(seconds=seconds)
