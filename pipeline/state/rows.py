"""The rows of jobs: added, planned, sent, and given their outcomes. Edge: SQL."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    text,
    update,
)

from pipeline.errors import LostRace
from pipeline.state.batches import Batch
from pipeline.state.bulk import Bulk
from pipeline.state.conditions import (
    BACK,
    IS_RETRY,
    UNFINISHED,
    WAITING,
    WAITS_FOR_ROUND,
    WAITS_FOR_SOURCE,
    WAITS_IN_SPOOL,
    runs_like,
)
from pipeline.state.jobs import jobs_with_work
from pipeline.state.tables import batches, requests, runs, sendings
from pipeline.state.tallies import leaving, moved, tallied_moves, tally
from pipeline.states import CLOSED_BATCHES, OPEN_BATCHES, OUTCOMES, BatchState, RowState, Waits


class KnownRow(NamedTuple):
    """What is known of a row of the source; the fields are those of the table.

    attempts: of the last outcome, where there is one; changed_hash: None as long as no other source row was seen.
    """

    id: int
    key: str
    run_id: int
    state: str
    row_hash: bytes
    recipe: str
    keep: str | None
    batch_id: int | None
    outcome: str | None
    outcome_hash: bytes | None
    outcome_recipe: str | None
    error_type: str | None
    changed_hash: bytes | None
    outcome_sent_hash: bytes | None
    attempts: int
    round: int

    @property
    def is_between_rounds(self) -> bool:
        """Whether the row is pending in a later round: what it has been answered is in `turns`."""
        return self.state == RowState.PENDING and self.round > 1

    @property
    def batch(self) -> int:
        """The number of the batch that a row in flight is in."""
        assert self.batch_id is not None, f"row {self.id} is {self.state} and in no batch"
        return self.batch_id


_KNOWN = [
    func.abs(requests.c.attempts).label(name) if name == "attempts" else requests.c[name] for name in KnownRow._fields
]


def has_rows(conn: Connection, job_id: int) -> bool:
    """Return whether the job has any row."""
    return conn.scalar(select(requests.c.id).where(requests.c.job_id == job_id).limit(1)) is not None


def any_waiting(conn: Connection, job_id: int) -> bool:
    """Return whether a row of the job is pending."""
    of_job = select(runs.c.id).where(runs.c.job_id == job_id)
    waiting = (requests.c.run_id.in_(of_job), WAITING)
    return conn.scalar(select(requests.c.id).where(*waiting).limit(1)) is not None


def is_at_rest(conn: Connection, job_id: int, *, now: datetime) -> bool:
    """Return whether nothing of the job is open: it has no work for a sweep, and no row is pending."""
    return job_id not in jobs_with_work(conn, now=now) and not any_waiting(conn, job_id)


def known_rows(conn: Connection, job_id: int, keys: Sequence[str]) -> dict[str, KnownRow]:
    """Return the known rows by key; new keys are left out. keys: at most a chunk."""
    query = select(*_KNOWN).where(requests.c.job_id == job_id, requests.c.key.in_(keys))
    return {row.key: row for row in map(KnownRow._make, conn.execute(query))}


class Replanned(NamedTuple):
    """A known row as it is planned again, `id` its number. outcome_hash, outcome_recipe: what its outcome answers."""

    run_id: int
    state: str
    row_hash: bytes
    recipe: str
    keep: str | None
    sent_hash: bytes | None
    attempts: int
    outcome: str | None
    outcome_hash: bytes | None
    outcome_recipe: str | None
    id: int


class Kept(NamedTuple):
    """A row that need not be sent. keep: its kept values; outcome: to return to, None to leave the state unchanged."""

    row: int
    keep: str | None
    outcome: str | None


_RUN_AND_STATE = itemgetter(Replanned._fields.index("run_id"), Replanned._fields.index("state"))
_REPLANNED = Replanned._fields[:-1]  # what is written: all but the number
_IS_PENDING = bindparam("new_state", type_=String) == text(f"'{RowState.PENDING}'")
_REPLAN = Bulk(
    update(requests)
    .where(requests.c.id == bindparam("row"), requests.c.state != text("'in_flight'"))
    .values(
        {name: bindparam(f"new_{name}") for name in _REPLANNED}
        | {"waits": case((_IS_PENDING, text(f"'{Waits.SOURCE}'"))), "round": text("1")}
        | dict.fromkeys(("batch_id", "n", "body_id", "body_n", "changed_hash"), text("NULL"))
    ),
    (*(f"new_{name}" for name in _REPLANNED), "row"),
)


def replan_rows(conn: Connection, rows: Sequence[Replanned]) -> None:
    """Move known rows to pending or invalid, with their new values from the source. They begin at round 1.

    Raises LostRace if another driver has planned some.
    """
    if not rows:
        return
    changes = leaving(conn, requests.c.id.in_([row.id for row in rows]))
    changes.update(map(_RUN_AND_STATE, rows))
    if _REPLAN.execute(conn, rows) != len(rows):
        raise LostRace("another driver planned some of these rows; run the same command again to continue")
    tally(conn, changes)


def keep_rows(conn: Connection, rows: Sequence[Kept]) -> None:
    """Store the kept values of rows that need not be sent, and move back to their outcome those that name one."""
    if rows:  # a driver that is collecting one of them has read the old kept values and must read them again
        flying = (requests.c.id.in_([kept.row for kept in rows]), requests.c.state == RowState.IN_FLIGHT)
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
        with tallied_moves(conn, [row for row, _, outcome in rows if outcome is not None]):
            conn.execute(statement.values(state=bindparam("outcome_"), **answered), back)


#: The columns that a row gets back when it returns to its earlier outcome.
_AS_ANSWERED = {
    "row_hash": requests.c.outcome_hash,
    "recipe": requests.c.outcome_recipe,
    "attempts": func.abs(requests.c.attempts),
    "waits": None,
}

#: The columns of a pending row whose request is to be rendered from the source: it begins at round 1.
_FROM_SOURCE: dict[str, Any] = {"body_id": None, "body_n": None, "waits": Waits.SOURCE, "round": 1}

#: The columns of a pending row whose body is missing. The request of a later round is made from `turns` again.
_WITHOUT_BODY: dict[str, Any] = {
    "body_id": None,
    "body_n": None,
    "waits": case((requests.c.round > 1, Waits.ROUND), else_=Waits.SOURCE),
}


def mark_changed(conn: Connection, rows: Iterable[tuple[int, bytes | None]]) -> None:
    """Mark rows in flight whose source row has changed since they were sent.

    rows: (number, hash of the changed row); hash None: the source row is again as it was sent.
    """
    changes = [{"row": row, "hash": row_hash} for row, row_hash in rows]
    if changes:
        statement = update(requests).where(requests.c.id == bindparam("row")).values(changed_hash=bindparam("hash"))
        conn.execute(statement, changes)


def take_over(conn: Connection, run_id: int, older: Sequence[int]) -> None:
    """Move the pending rows of older runs to this run and let it render them again with its recipe."""
    for other in older:
        waiting = (requests.c.run_id == other, WAITING)
        taken = conn.execute(update(requests).where(*waiting).values(run_id=run_id, **_FROM_SOURCE))
        tally(conn, {(other, RowState.PENDING): -taken.rowcount, (run_id, RowState.PENDING): taken.rowcount})


def forget_waiting_bodies(conn: Connection, run_id: int, variables: dict[str, Any]) -> None:
    """Let the planning that starts now render all pending rows again; see `remove_vanished`.

    The request of a later round stays: the source cannot give it.
    """
    waiting = (requests.c.run_id.in_(runs_like(conn, run_id, variables)), WAITS_IN_SPOOL, requests.c.round == 1)
    conn.execute(update(requests).where(*waiting).values(**_FROM_SOURCE))


def forget_bodies_of(conn: Connection, numbers: Sequence[int]) -> None:
    """Let the run of each of these rows render it again if it is pending, because its request is outdated."""
    if numbers:
        waiting = (requests.c.id.in_(numbers), requests.c.state == RowState.PENDING)
        conn.execute(update(requests).where(*waiting).values(**_FROM_SOURCE))


def forget_rounds(conn: Connection, run_id: int, variables: dict[str, Any]) -> None:
    """Let rows of other runs that wait for a round begin again from the source, if they have another recipe than this.

    Call it when planning has reached the end of the source, and has seen no row in flight that it waits for: then such
    rows have left the source, and `remove_vanished` does the rest. variables: as there.
    """
    recipe = select(runs.c.recipe).where(runs.c.id == run_id).scalar_subquery()
    for run in runs_like(conn, run_id, variables):
        waits = (requests.c.run_id == run, requests.c.run_id != run_id, WAITS_FOR_ROUND, requests.c.recipe != recipe)
        conn.execute(update(requests).where(*waits).values(**_FROM_SOURCE))


def stand(conn: Connection, run_id: int, *which: ColumnElement[bool]) -> None:
    """pending -> the earlier outcome, for the rows of a run that have one. which: further conditions on the rows."""
    waits = (requests.c.run_id == run_id, WAITING, *which)
    if conn.scalar(select(requests.c.id).where(*waits).limit(1)) is None:
        return
    back = {**_AS_ANSWERED, "body_id": None, "body_n": None, "changed_hash": None}
    for outcome in OUTCOMES:
        these = update(requests).where(*waits, requests.c.outcome == outcome).values(state=outcome, **back)
        moved(conn, run_id, RowState.PENDING, outcome, conn.execute(these).rowcount)


def stand_vanished(conn: Connection, run_id: int) -> None:
    """Return the pending rows of a retry that its planning did not find in the source to their earlier outcomes.

    Call it when the planning has reached the end of the source; see `remove_vanished`.
    """
    stand(conn, run_id, WAITS_FOR_SOURCE)


def stand_if_retry_is_over(conn: Connection, run_id: int) -> None:
    """Return the pending rows of a retry to their earlier outcomes if no command continues the retry.

    On PostgreSQL another transaction may end the retry at the same time and not see rows that become pending here. The
    next planning finds such rows.
    """
    if conn.scalar(select(runs.c.id).where(runs.c.id == run_id, IS_RETRY, ~UNFINISHED)) is not None:
        stand(conn, run_id)


def waiting_for_nothing(conn: Connection, job_id: int) -> list[int]:
    """Return the retries of the job that no command continues and that still have pending rows."""
    waits = select(requests.c.id).where(requests.c.run_id == runs.c.id, WAITING)
    return list(conn.scalars(select(runs.c.id).where(runs.c.job_id == job_id, IS_RETRY, ~UNFINISHED, waits.exists())))


def remove_vanished(conn: Connection, run_id: int, variables: dict[str, Any]) -> int:
    """Remove the rows that are no longer in the source and never had an outcome, and return how many have vanished.

    Call it when planning has reached the end of the source: all pending rows of the source are in a batch by then. A
    row that became pending in the meantime, out of a collected batch, still has its body. Pending rows of a run with
    other vars belong to another source and stay, as do those of a retry.
    """
    removed = 0
    for same in runs_like(conn, run_id, variables):
        waits = (requests.c.run_id == same, WAITS_FOR_SOURCE)
        if conn.scalar(select(requests.c.id).where(*waits).limit(1)) is None:
            continue
        gone = conn.execute(requests.delete().where(*waits, requests.c.outcome.is_(None))).rowcount
        tally(conn, {(same, RowState.PENDING): -gone})
        removed += gone
        for outcome in OUTCOMES:  # a vanished row that was to be sent again returns to its outcome
            stands = update(requests).where(*waits, requests.c.outcome == outcome).values(state=outcome, waits=None)
            moved(conn, same, RowState.PENDING, outcome, conn.execute(stands).rowcount)
    return removed


class Place(NamedTuple):
    """Where the request of a pending row is: in which body, at which position there; and the row's number."""

    body: int
    n: int
    row: int


class WaitingRow(NamedTuple):
    """A pending row whose request is in a body. nonce, digest, gate: those of the batch that the body was for.

    attempts: how often it was sent, or 0 if a retry will send it.
    """

    id: int
    key: str
    body_id: int
    body_n: int
    outcome: str | None
    error_type: str | None
    attempts: int
    sent_hash: bytes | None
    outcome_sent_hash: bytes | None
    nonce: str
    digest: str
    gate: str | None

    @property
    def place(self) -> Place:
        """Return where the row's request is."""
        return Place(self.body_id, self.body_n, self.id)


BEFORE_ALL = Place(body=0, n=-1, row=0)
_OF_BODY = ("nonce", "digest", "gate")
_ATTEMPTS = case((requests.c.attempts < 0, 0), else_=requests.c.attempts).label("attempts")
_WAITING = [
    _ATTEMPTS if name == "attempts" else batches.c[name] if name in _OF_BODY else requests.c[name]
    for name in WaitingRow._fields
]


def rows_to_send_again(conn: Connection, run_id: int, *, after: Place, limit: int) -> list[WaitingRow]:
    """Return the pending rows of a run whose request is in a body, in the order of the bodies.

    after: of the row before the first one. limit: the largest number of rows.
    """
    behind = or_(
        requests.c.body_id > after.body,
        (requests.c.body_id == after.body) & (requests.c.body_n > after.n),
        (requests.c.body_id == after.body) & (requests.c.body_n == after.n) & (requests.c.id > after.row),
    )
    query = (
        select(*_WAITING)
        .join(batches, batches.c.id == requests.c.body_id)
        .where(requests.c.run_id == run_id, WAITS_IN_SPOOL, behind)
        .order_by(requests.c.body_id, requests.c.body_n, requests.c.id)
        .limit(limit)
    )
    return [WaitingRow(*row) for row in conn.execute(query)]


def note_sent(conn: Connection, rows: Sequence[tuple[int, bytes]]) -> None:
    """Note the hash of the params that rows are sent again with. rows: (number, sent_hash)."""
    if rows:
        statement = update(requests).where(requests.c.id == bindparam("row")).values(sent_hash=bindparam("hash"))
        conn.execute(statement, [{"row": row, "hash": sent_hash} for row, sent_hash in rows])


def leave_rows(conn: Connection, numbers: Sequence[int]) -> None:
    """pending -> the earlier outcome, for rows that cannot succeed if they are sent again."""
    if numbers:
        here = (
            requests.c.id == bindparam("row"),
            requests.c.state == RowState.PENDING,
            requests.c.outcome.is_not(None),
        )
        attempts = func.abs(requests.c.attempts)
        values = {"state": requests.c.outcome, "attempts": attempts, "body_id": None, "body_n": None, "waits": None}
        with tallied_moves(conn, numbers):
            conn.execute(update(requests).where(*here).values(values), [{"row": number} for number in numbers])


def forget_body(conn: Connection, batch: int) -> None:
    """Let the requests of this batch's pending rows be made again, because the batch's body is missing.

    They are rendered from the source; those of a later round are made from `turns`.
    """
    waiting = (requests.c.body_id == batch, WAITS_IN_SPOOL)
    conn.execute(update(requests).where(*waiting).values(**_WITHOUT_BODY))


def unneeded_bodies(
    conn: Connection, job_id: int, batch_ids: Sequence[int] | None = None, *, sent_after: datetime | None = None
) -> list[str]:
    """Return the nonces of batches in a final state whose body no row needs. batch_ids None: of all batches.

    A pending row may need it. So may a lost row of a batch that was sent after `sent_after`: the batch may be found
    again, and the answer may go on, which takes the request. None: no answer of the job goes on.
    """
    needed: list[ColumnElement[bool]] = [
        select(requests.c.id).where(requests.c.body_id == batches.c.id, WAITS_IN_SPOOL).exists()
    ]
    if sent_after is not None:
        lost = select(requests.c.id).where(requests.c.batch_id == batches.c.id, requests.c.state == RowState.LOST)
        sent = select(sendings.c.id).where(sendings.c.batch_id == batches.c.id, sendings.c.started_at > sent_after)
        needed.append(and_(batches.c.state == BatchState.LOST, lost.exists(), sent.exists()))
    final = batches.c.state.in_(CLOSED_BATCHES)
    query = select(batches.c.nonce).where(batches.c.job_id == job_id, final, ~or_(*needed))
    return list(conn.scalars(query if batch_ids is None else query.where(batches.c.id.in_(batch_ids))))


def needed_bodies(conn: Connection, job_id: int) -> list[int]:
    """Return the batches whose body may be read again: open ones, and those with the request of a pending row."""
    waiting = select(requests.c.id).where(requests.c.body_id == batches.c.id, WAITS_IN_SPOOL)
    needed = or_(batches.c.state.in_(OPEN_BATCHES), waiting.exists())
    return list(conn.scalars(select(batches.c.id).where(batches.c.job_id == job_id, needed).order_by(batches.c.id)))


class BatchRow(NamedTuple):
    """A row of a batch in flight. n: its position there; attempts: those before this one; key, keep: JSON."""

    id: int
    n: int
    attempts: int
    key: str
    keep: str | None


def batch_rows(conn: Connection, batch: int, first: int, last: int) -> list[BatchRow]:
    """Return the rows of a batch in flight at positions first to last, by n."""
    query = (
        select(requests.c.id, requests.c.n, _ATTEMPTS, requests.c.key, requests.c.keep)
        .where(
            requests.c.batch_id == batch,
            requests.c.n.between(first, last),
            requests.c.state == RowState.IN_FLIGHT,
        )
        .order_by(requests.c.n, requests.c.id)
    )
    return list(map(BatchRow._make, whole(conn, query)))


def rows_by_position(conn: Connection, batch: Batch) -> dict[int, int]:
    """Return how many rows are in flight at each position of a batch that has more than one; empty for most batches."""
    if batch.rows <= batch.requests:
        return {}
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
    number = func.count().label("rows")
    shared = select(requests.c.n, number).where(*here).group_by(requests.c.n).having(func.count() > 1)
    return {row.n: row.rows for row in conn.execute(shared)}


def whole(conn: Connection, query: Select[Any]) -> Sequence[Sequence[Any]]:
    """Return all rows of a query whose columns are numbers and texts, in the order of the query.

    On SQLite all rows are fetched in one step, because its driver waits for the interpreter after each step.
    """
    if conn.dialect.name != "sqlite":
        return conn.execute(query).fetchall()
    rows = query.subquery()
    found: str = conn.scalar(select(func.json_group_array(func.json_array(*rows.c)))) or "[]"
    return orjson.loads(found)  # type: ignore[no-any-return]


class Settled(NamedTuple):
    """How rows end, for `mark_outcomes`."""

    outcome: str
    error_type: str | None
    again: bool  #: whether the rows are sent again
    counts: bool = True  #: whether this counts as an attempt; it does not if the API refused the account
    goes_on: bool = False  #: whether the rows go on in another round, which is no outcome


def mark_outcomes(
    conn: Connection,
    batch: Batch,
    first: int,
    last: int,
    rows: Mapping[Settled, Sequence[int]],
    *,
    left: Sequence[int] = (),
) -> None:
    """in_flight -> an outcome, or pending if sent again, for all rows at positions first to last of a batch.

    rows: the numbers of rows by how they end. left: the numbers of rows there that stay in flight. Rows of a retry that
    has ended are not sent again. Raises LostRace if rows and left together are not exactly the rows in flight there.
    """
    if not rows:
        return
    usual = max(rows, key=lambda kind: len(rows[kind]))
    settled = sum(map(len, rows.values()))
    here = (requests.c.batch_id == batch.id, requests.c.state == RowState.IN_FLIGHT)
    moved = 0
    for kind in rows.keys() - {usual}:
        numbers = [{"row": row} for row in rows[kind]]
        statement = update(requests).where(requests.c.id == bindparam("row"), *here)
        moved += conn.execute(statement.values(_with_outcome(*kind)), numbers).rowcount
    rest_of_them = update(requests).where(*here, requests.c.n.between(first, last))
    if left:
        rest_of_them = rest_of_them.where(requests.c.id.not_in(left))
    moved += conn.execute(rest_of_them.values(_with_outcome(*usual))).rowcount
    if moved != settled:
        raise LostRace(f"rows of batch {batch.id} were moved by another driver; run the same command again to continue")
    changes: Counter[tuple[int, str]] = Counter({(batch.run_id, RowState.IN_FLIGHT): -settled})
    for kind, numbers_of_kind in rows.items():
        changes[batch.run_id, RowState.PENDING if kind.again else kind.outcome] += len(numbers_of_kind)
    tally(conn, changes)
    if any(kind.again for kind in rows):
        stand_if_retry_is_over(conn, batch.run_id)


#: The columns of a row in flight that goes on in another round, in which attempts are counted from 0. If its source row
#: has changed in the meantime, it begins at round 1 again.
_GOES_ON: dict[str, Any] = {
    "state": RowState.PENDING,
    "waits": case((requests.c.changed_hash.is_(None), Waits.ROUND), else_=Waits.SOURCE),
    "round": case((requests.c.changed_hash.is_(None), requests.c.round + 1), else_=1),
    "attempts": -func.abs(requests.c.attempts),
} | dict.fromkeys(("batch_id", "n", "body_id", "body_n"))


def _with_outcome(outcome: str, error_type: str | None, again: bool, counts: bool, goes_on: bool) -> dict[str, Any]:
    if goes_on:
        return _GOES_ON
    if not counts:
        return BACK
    values: dict[str, Any] = {
        "state": outcome,
        "outcome": outcome,
        "error_type": error_type,
        "outcome_hash": requests.c.row_hash,
        "outcome_recipe": requests.c.recipe,
        "outcome_sent_hash": requests.c.sent_hash,
        "attempts": case((requests.c.attempts < 0, 1), else_=requests.c.attempts + 1),
    }
    return values | BACK if again else values


def add_to_batch(
    conn: Connection, batch: Batch, outcomes: Mapping[str, int], usage: Mapping[str, int], cost_usd: float
) -> None:
    """Add the outcomes, token counts by class and cost of a chunk of rows to their batch."""
    before = conn.execute(select(batches.c.outcomes, batches.c.usage).where(batches.c.id == batch.id)).one()
    values = {
        "outcomes": dict(Counter(before.outcomes or {}) + Counter(outcomes)),
        "usage": dict(Counter(before.usage or {}) + Counter(usage)),
        "cost_usd": batches.c.cost_usd + cost_usd,
    }
    conn.execute(update(batches).where(batches.c.id == batch.id).values(**values))
