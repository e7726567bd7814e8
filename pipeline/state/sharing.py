"""Which request of a run may other rows share, and how do they join it? Edge: SQL.

A row joins a request of an earlier batch in a transaction that locks the batch's row and reads its state there. Every
move of the batch changes that row, so a join and the move to `ended` exclude each other: results are collected only
from `ended` on, and a driver that collects them sees all rows that have joined.
"""

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)

from pipeline.errors import LostRace
from pipeline.state.bulk import Bulk
from pipeline.state.tables import batches, requests, runs, shared
from pipeline.state.tallies import moved
from pipeline.states import BatchState, RowState, RunState

OPEN_TO_ROWS = (BatchState.PLANNED, BatchState.SUBMITTING, BatchState.IN_PROGRESS)
_AT_ONCE = 5_000  # hashes that one query asks for


class Place(NamedTuple):
    """Where a request is: the number of its batch, and its position there."""

    batch: int
    n: int


class Shareable(NamedTuple):
    """A request of the run. rows: that were planned to share it.

    joinable: whether rows may join its batch. answered: the key of a row that has succeeded by it, whose answer other
    rows may copy; None: there is none yet, because its batch is joinable, or has ended and is not collected.
    """

    place: Place
    rows: int
    joinable: bool
    answered: str | None


class Join(NamedTuple):
    """A row that shares the request at a place, or copies its answer. sent_hash: of the request."""

    sent_hash: bytes
    place: Place


class Decision(NamedTuple):
    """What becomes of rows that would share a request, for as long as the transaction lasts.

    open: the batches that they may join; answered: the key of a row whose answer they copy, by sent_hash. A row with
    neither waits in the spool. contended: another transaction has locked a batch that would be open. ended: requests,
    by sent_hash, whose batch has ended and is not collected.
    """

    open: frozenset[int]
    answered: Mapping[bytes, str]
    contended: bool
    ended: frozenset[bytes] = frozenset()

    def state(self, join: Join) -> RowState:
        """Return the state in which a row is inserted, or into which it moves."""
        if join.place.batch in self.open:
            return RowState.IN_FLIGHT
        return RowState.SUCCEEDED if join.sent_hash in self.answered else RowState.PENDING


def _joinable(account_id: int) -> ColumnElement[bool]:
    ours = or_(batches.c.account_id.is_(None), batches.c.account_id == account_id)
    well = and_(~batches.c.cancel, batches.c.not_found == 0)  # it is not about to be canceled or lost
    return and_(batches.c.state.in_(OPEN_TO_ROWS), ours, well)


def shareable(conn: Connection, run_id: int, hashes: Collection[bytes], account_id: int) -> dict[bytes, Shareable]:
    """Return by sent_hash the requests of a run that rows may share, or whose answer they may copy now or soon."""
    answered = (
        select(requests.c.key)
        .where(
            requests.c.batch_id == shared.c.batch_id,
            requests.c.n == shared.c.n,
            requests.c.state == RowState.SUCCEEDED,
            requests.c.outcome_sent_hash == shared.c.sent_hash,
        )
        .limit(1)
        .scalar_subquery()
    )
    joinable = _joinable(account_id)
    collected_soon = and_(batches.c.state == BatchState.ENDED, batches.c.account_id == account_id)
    columns = (shared.c.sent_hash, shared.c.batch_id, shared.c.n, shared.c.rows)
    flags = [case((condition, True), else_=False) for condition in (joinable, collected_soon)]
    query = select(*columns, *flags, case((~joinable, answered)))
    query = query.join(batches, batches.c.id == shared.c.batch_id).where(shared.c.run_id == run_id)
    found: dict[bytes, Shareable] = {}
    asked = list(hashes)
    for start in range(0, len(asked), _AT_ONCE):
        for sent_hash, batch, n, rows, is_open, is_soon, key in conn.execute(
            query.where(shared.c.sent_hash.in_(asked[start : start + _AT_ONCE]))
        ):
            if is_open or is_soon or key is not None:
                found[bytes(sent_hash)] = Shareable(Place(batch, n), rows, bool(is_open), key)
    return found


def decide(conn: Connection, run_id: int, joins: Sequence[Join], account_id: int) -> Decision:
    """Lock the batches that rows would join, and decide what becomes of each row.

    A batch that another transaction has locked is not waited for, so that two drivers never wait for each other. On
    SQLite there is one writer at a time.
    """
    wanted = {join.place.batch for join in joins}
    if not wanted:
        return Decision(frozenset(), {}, contended=False)
    here = (batches.c.id.in_(sorted(wanted)), _joinable(account_id))
    query = select(batches.c.id).where(*here).order_by(batches.c.id)
    locked = frozenset(conn.scalars(query.with_for_update(key_share=True, skip_locked=True)))
    missed = wanted - locked
    if not missed:
        return Decision(locked, {}, contended=False)
    contended = bool(set(conn.scalars(query)) - locked)
    left = {join.sent_hash: join.place for join in joins if join.place.batch in missed}
    found = {h: known for h, known in shareable(conn, run_id, left, account_id).items() if known.place == left[h]}
    answered = {sent_hash: known.answered for sent_hash, known in found.items() if known.answered is not None}
    ended = frozenset(h for h, known in found.items() if known.answered is None and not known.joinable)
    return Decision(locked, answered, contended, ended)


def note_joined(conn: Connection, run_id: int, joins: Iterable[Join]) -> None:
    """Count rows that have joined: in their batches, and in the requests that they share."""
    rows = Counter(joins)
    of_batch: Counter[int] = Counter()
    for join, n in rows.items():
        of_batch[join.place.batch] += n
    if not of_batch:
        return
    added = update(batches).where(batches.c.id == bindparam("batch")).values(rows=batches.c.rows + bindparam("more"))
    conn.execute(added, [{"batch": batch, "more": n} for batch, n in sorted(of_batch.items())])
    _ADD_ROWS.execute(conn, [(run_id, join.sent_hash, *join.place, n) for join, n in sorted(rows.items())])


_ADD_ROWS = Bulk(
    update(shared)
    .where(
        shared.c.run_id == bindparam("run"),
        shared.c.sent_hash == bindparam("hash"),
        shared.c.batch_id == bindparam("batch"),
        shared.c.n == bindparam("place"),
    )
    .values(rows=shared.c.rows + bindparam("more")),
    ("run", "hash", "batch", "place", "more"),
)


def note_shareable(conn: Connection, run_id: int, batch: int, placed: Mapping[bytes, tuple[int, int]]) -> None:
    """Note where requests are, for rows that come later. placed: position and number of rows by sent_hash.

    An earlier request with the same sent_hash has as many rows as may share one, or rows cannot join it any more.
    """
    if not placed:
        return
    in_order = sorted(placed.items())  # so that two planners do not wait for each other
    _upsert(conn.dialect.name).execute(conn, [(run_id, hashed, batch, n, rows) for hashed, (n, rows) in in_order])


@functools.cache
def _upsert(dialect: str) -> Bulk:
    """Return the insert that replaces an earlier note; made when used, because imports of dialects are slow."""
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    row = insert(shared)
    replaced = {name: row.excluded[name] for name in ("batch_id", "n", "rows")}
    upsert = row.on_conflict_do_update(index_elements=["run_id", "sent_hash"], set_=replaced)
    return Bulk(upsert, ("run_id", "sent_hash", "batch_id", "n", "rows"))


def has_shareable(conn: Connection, job_id: int) -> bool:
    """Return whether there are notes of finished runs of the job."""
    return conn.scalar(_of_finished(job_id).limit(1)) is not None


def forget_shareable(conn: Connection, job_id: int, *, limit: int) -> int:
    """Remove notes of finished runs of the job, at most `limit`, and return how many: no planning asks for them."""
    key = tuple_(shared.c.run_id, shared.c.sent_hash)
    return conn.execute(shared.delete().where(key.in_(_of_finished(job_id).limit(limit)))).rowcount


def _of_finished(job_id: int) -> Select[Any]:
    finished = (runs.c.job_id == job_id, runs.c.state == RunState.FINISHED)
    return select(shared.c.run_id, shared.c.sent_hash).join(runs, runs.c.id == shared.c.run_id).where(*finished)


class KnownJoin(NamedTuple):
    """A pending row that the database knows, by its number, and the request that it shares."""

    row: int
    join: Join


class CopiedTo(NamedTuple):
    """A row that has copied an answer."""

    sent_hash: bytes
    key: str
    keep: str | None
    attempts: int


def copy_to_known(conn: Connection, run_id: int, rows: Sequence[KnownJoin]) -> list[CopiedTo]:
    """pending -> succeeded, for rows that copy the answer to an equal request. Return them.

    Raises LostRace if one is not pending.
    """
    _change(conn, _COPY, run_id, rows)
    moved(conn, run_id, RowState.PENDING, RowState.SUCCEEDED, len(rows))
    columns = [requests.c[name] for name in CopiedTo._fields]
    numbers, found = [row for row, _ in rows], []
    for start in range(0, len(numbers), _AT_ONCE):
        query = select(*columns).where(requests.c.id.in_(numbers[start : start + _AT_ONCE]))
        found += [CopiedTo(*row) for row in conn.execute(query)]
    return found


def leave_in_body(conn: Connection, run_id: int, rows: Sequence[KnownJoin]) -> None:
    """Let pending rows be sent from the body that has their request. Raises LostRace if one is not pending."""
    _change(conn, _LEAVE, run_id, rows)


def _change(conn: Connection, statement: Bulk, run_id: int, rows: Sequence[KnownJoin]) -> None:
    if statement.execute(conn, [(row, run_id, *join.place) for row, join in rows]) != len(rows):
        raise LostRace("another driver planned some of these rows; run the same command again to continue")


_PENDING = (
    requests.c.id == bindparam("row"),
    requests.c.run_id == bindparam("run"),
    requests.c.state == text("'pending'"),
)
_PLACE = ("row", "run", "batch", "place")
_COPY = Bulk(
    update(requests)
    .where(*_PENDING)
    .values(
        state=text("'succeeded'"),
        outcome=text("'succeeded'"),
        outcome_hash=requests.c.row_hash,
        outcome_recipe=requests.c.recipe,
        outcome_sent_hash=requests.c.sent_hash,
        attempts=func.abs(requests.c.attempts) + text("1"),
        batch_id=bindparam("batch"),
        n=bindparam("place"),
        **dict.fromkeys(("error_type", "waits", "body_id", "body_n"), text("NULL")),
    ),
    _PLACE,
)
_LEAVE = Bulk(
    update(requests)
    .where(*_PENDING)
    .values(waits=text("'spool'"), body_id=bindparam("batch"), body_n=bindparam("place")),
    _PLACE,
)
