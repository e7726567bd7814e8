"""The rows of a job: added, planned, sent, and their outcomes. Edge: SQL."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
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
from pipeline.state.batches import Batch
from pipeline.state.bulk import Bulk, next_ids
from pipeline.state.conditions import IS_RETRY, UNFINISHED, runs_like
from pipeline.state.tables import batches, requests, runs
from pipeline.state.tallies import leaving, moved, tallied_moves, tally
from pipeline.states import CLOSED_BATCHES, OPEN_BATCHES, OUTCOMES, BatchState, RowState


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

    @property
    def batch(self) -> int:
        """The number of the batch that a row in flight is in."""
        assert self.batch_id is not None, f"row {self.id} is {self.state} and in no batch"
        return self.batch_id


_KNOWN = [
    func.abs(requests.c.attempts).label(name) if name == "attempts" else requests.c[name] for name in KnownRow._fields
]


def has_rows(conn: Connection, job_id: int) -> bool:
    """Whether the job knows any row yet."""
    return conn.scalar(select(requests.c.id).where(requests.c.job_id == job_id).limit(1)) is not None


def any_waiting(conn: Connection, job_id: int) -> bool:
    """Whether a row of the job is pending."""
    of_job = select(runs.c.id).where(runs.c.job_id == job_id)
    waiting = (requests.c.run_id.in_(of_job), requests.c.state == text("'pending'"))
    return conn.scalar(select(requests.c.id).where(*waiting).limit(1)) is not None


def known_rows(conn: Connection, job_id: int, keys: Sequence[str]) -> dict[str, KnownRow]:
    """What is known of these keys, by key; at most a chunk of them."""
    query = select(*_KNOWN).where(requests.c.job_id == job_id, requests.c.key.in_(keys))
    return {row.key: row for row in map(KnownRow._make, conn.execute(query))}


class NewRow(NamedTuple):
    """What a row is inserted with, or planned again with. outcome_hash, outcome_recipe: what its outcome answers."""

    key: str
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


class Replanned(NamedTuple):
    """A known row, by its number, and how it is planned now."""

    row: int
    new: NewRow


class Kept(NamedTuple):
    """A row that needs no sending. keep: its kept values; outcome: to return to, None to leave the state as it is."""

    row: int
    keep: str | None
    outcome: str | None


_RUN_AND_STATE = itemgetter(NewRow._fields.index("run_id"), NewRow._fields.index("state"))
_ADD = Bulk(insert(requests), ("id", "job_id", *NewRow._fields))


def add_rows(conn: Connection, job_id: int, rows: Sequence[NewRow]) -> list[int]:
    """Insert new rows; their numbers, ascending."""
    if not rows:
        return []
    numbers = next_ids(conn, len(rows))
    _ADD.execute(conn, [(number, job_id, *row) for number, row in zip(numbers, rows, strict=True)])
    tally(conn, Counter(map(_RUN_AND_STATE, rows)))
    return numbers


_REPLAN = Bulk(
    update(requests)
    .where(requests.c.id == bindparam("row"), requests.c.state != text("'in_flight'"))
    .values(
        {name: bindparam(f"new_{name}") for name in NewRow._fields}
        | dict.fromkeys(("batch_id", "n", "body_id", "body_n", "changed_hash"), text("NULL"))
    ),
    (*(f"new_{name}" for name in NewRow._fields), "row"),
)


def replan_rows(conn: Connection, rows: Sequence[Replanned]) -> None:
    """Known rows -> pending (or invalid), as they are at the source now."""
    if not rows:
        return
    changes = leaving(conn, requests.c.id.in_([replanned.row for replanned in rows]))
    changes.update(_RUN_AND_STATE(replanned.new) for replanned in rows)
    if _REPLAN.execute(conn, [(*new, row) for row, new in rows]) != len(rows):
        raise LostRace("another driver planned some of these rows; the same command again goes on")
    tally(conn, changes)


def keep_rows(conn: Connection, rows: Sequence[Kept]) -> None:
    """Write the kept values of rows that need no sending, and return those to their outcome that have one."""
    if rows:  # who is collecting one of them has read what it kept before: he is to read it again
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
        tally(conn, {(other, RowState.PENDING): -taken.rowcount, (run_id, RowState.PENDING): taken.rowcount})


def forget_waiting_bodies(conn: Connection, run_id: int, variables: dict[str, Any]) -> None:
    """Rows that wait are rendered anew by the planning that begins now; see `remove_vanished`."""
    waiting = (requests.c.run_id.in_(runs_like(conn, run_id, variables)), requests.c.state == text("'pending'"))
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
        moved(conn, run_id, RowState.PENDING, outcome, conn.execute(these).rowcount)


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
    if conn.scalar(select(runs.c.id).where(runs.c.id == run_id, IS_RETRY, ~UNFINISHED)) is not None:
        stand(conn, run_id)


def waiting_for_nothing(conn: Connection, job_id: int) -> list[int]:
    """Retries of the job that no command goes on with, and for which rows wait all the same."""
    waits = select(requests.c.id).where(requests.c.run_id == runs.c.id, requests.c.state == text("'pending'"))
    return list(conn.scalars(select(runs.c.id).where(runs.c.job_id == job_id, IS_RETRY, ~UNFINISHED, waits.exists())))


def remove_vanished(conn: Connection, run_id: int, variables: dict[str, Any]) -> int:
    """Remove rows that no longer stand in the source and never had an outcome; how many there were.

    Call when planning has come to the end of the source: every row of it that waited is in a batch by then. One that
    came to wait meanwhile, out of a batch that was collected, has its body still. Rows that wait for a run with other
    vars belong to another source and stay, as do those of a retry.
    """
    removed = 0
    for same in runs_like(conn, run_id, variables):
        waits = (requests.c.run_id == same, requests.c.state == text("'pending'"), requests.c.body_id.is_(None))
        if conn.scalar(select(requests.c.id).where(*waits).limit(1)) is None:
            continue
        gone = conn.execute(requests.delete().where(*waits, requests.c.outcome.is_(None))).rowcount
        tally(conn, {(same, RowState.PENDING): -gone})
        removed += gone
        for outcome in OUTCOMES:  # one that was to be sent again has vanished: its outcome stands
            stands = update(requests).where(*waits, requests.c.outcome == outcome).values(state=outcome)
            moved(conn, same, RowState.PENDING, outcome, conn.execute(stands).rowcount)
    return removed


class Place(NamedTuple):
    """Where the request of a waiting row stands: in which body, at which position there; and the row's number."""

    body: int
    n: int
    row: int


class WaitingRow(NamedTuple):
    """A waiting row whose request stands in a body. nonce, digest, gate: those of the batch that the body was for."""

    id: int
    key: str
    body_id: int
    body_n: int
    outcome: str | None
    error_type: str | None
    sent_hash: bytes | None
    outcome_sent_hash: bytes | None
    nonce: str
    digest: str
    gate: str | None

    @property
    def place(self) -> Place:
        """Where its request stands."""
        return Place(self.body_id, self.body_n, self.id)


BEFORE_ALL = Place(body=0, n=-1, row=0)
_OF_BODY = ("nonce", "digest", "gate")
_WAITING = [batches.c[name] if name in _OF_BODY else requests.c[name] for name in WaitingRow._fields]


def rows_to_send_again(conn: Connection, run_id: int, *, after: Place, limit: int) -> list[WaitingRow]:
    """Waiting rows of a run whose request stands in a body, in their order there, from behind `after` on."""
    behind = or_(
        requests.c.body_id > after.body,
        (requests.c.body_id == after.body) & (requests.c.body_n > after.n),
        (requests.c.body_id == after.body) & (requests.c.body_n == after.n) & (requests.c.id > after.row),
    )
    query = (
        select(*_WAITING)
        .join(batches, batches.c.id == requests.c.body_id)
        .where(requests.c.run_id == run_id, requests.c.state == text("'pending'"), behind)
        .order_by(requests.c.body_id, requests.c.body_n, requests.c.id)
        .limit(limit)
    )
    return [WaitingRow(*row) for row in conn.execute(query)]


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
        with tallied_moves(conn, numbers):
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


class BatchRow(NamedTuple):
    """A row of a batch in flight. n: its position there; attempts: those before this one; key, keep: JSON."""

    id: int
    n: int
    attempts: int
    key: str
    keep: str | None


def batch_rows(conn: Connection, batch: int, first: int, last: int) -> list[BatchRow]:
    """The rows of a batch still in flight, at positions first to last, by n."""
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
    return list(map(BatchRow._make, whole(conn, query)))


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
    tally(conn, changes)
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
