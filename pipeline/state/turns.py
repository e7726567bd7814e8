"""The rounds of rows: answers after which a row goes on, the calls of tools that they ask for, and their results.

Edge: SQL. A turn is stored in the transaction that makes its row pending in the next round. If we die before it, the
answer is collected again; after it, the next driver goes on from the turn. A call is claimed in one transaction, by the
sign of life of its driver, and its result is stored in another one. If we die in between, the call is made again, by
the driver that claims it next.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from pipeline.errors import LostRace
from pipeline.state import migrations
from pipeline.state.conditions import WAITS_FOR_ROUND, WAITS_IN_SPOOL, runs_like
from pipeline.state.rows import KnownRow
from pipeline.state.runs import require_open
from pipeline.state.tables import batches, leases, requests, runs, turns
from pipeline.state.tallies import moved, tally
from pipeline.states import OPEN_BATCHES, RowState, Waits


class NewTurn(NamedTuple):
    """An answer after which its row goes on in another round.

    row: its number. params: of the request that was answered, as JSON. message: the answer, as JSON. calls: how many
    tools it asks for; None: the model paused, and asks for none. usage: what the round used, see `Earlier`. gate: the
    gate of the run that the next round's batch opens; None: none.
    """

    row: int
    round: int
    params: str
    message: str
    calls: int | None
    usage: dict[str, Any]
    gate: str | None


class Earlier(NamedTuple):
    """The rounds of a row before the present one. round: the present one; usages: of each earlier round."""

    round: int
    usages: Sequence[dict[str, Any]]


FIRST_ROUND = Earlier(1, ())


def put_turns(conn: Connection, new: Sequence[NewTurn], now: datetime) -> None:
    """Store turns in the transaction in which their rows go on. Replaces those of an earlier conversation of a row."""
    if not new:
        return
    these = [{"row": turn.row, "round_": turn.round} for turn in new]
    of_row = turns.c.request_id == bindparam("row")
    conn.execute(delete(turns).where(of_row, turns.c.round >= bindparam("round_")), these)
    with_params = (of_row, turns.c.round < bindparam("round_"), turns.c.params.is_not(None))
    conn.execute(update(turns).where(*with_params).values(params=None), these)
    conn.execute(
        insert(turns),
        [
            {
                "request_id": turn.row,
                "round": turn.round,
                "params": turn.params,
                "message": turn.message,
                "results": None if turn.calls is None else orjson.dumps([None] * turn.calls).decode(),
                "open_calls": turn.calls or 0,
                "usage": turn.usage,
                "gate": turn.gate,
                "ready_at": now,
            }
            for turn in new
        ],
    )


def forget_params(conn: Connection, rows: Sequence[int]) -> None:
    """Remove the requests that are stored with the turns of rows that have ended: no further round needs them."""
    if rows:
        here = (turns.c.request_id == bindparam("row"), turns.c.params.is_not(None))
        conn.execute(update(turns).where(*here).values(params=None), [{"row": row} for row in rows])


def earlier_rounds(conn: Connection, batch: int, first: int, last: int) -> dict[int, Earlier]:
    """Return the earlier rounds of the rows in flight at positions first to last of a batch, by the row's number.

    Rows that are in their first round are left out.
    """
    query = (
        select(requests.c.id, requests.c.round, turns.c.usage)
        .join(turns, (turns.c.request_id == requests.c.id) & (turns.c.round < requests.c.round))
        .where(
            requests.c.batch_id == batch,
            requests.c.n.between(first, last),
            requests.c.state == RowState.IN_FLIGHT,
            requests.c.round > 1,
        )
        .order_by(requests.c.id, turns.c.round)
    )
    found: dict[int, tuple[int, list[dict[str, Any]]]] = {}
    for row, number, usage in conn.execute(query).tuples():
        found.setdefault(row, (number, []))[1].append(usage)
    return {row: Earlier(*rounds) for row, rounds in found.items()}


def has_later_rounds(conn: Connection, batch: int) -> bool:
    """Return whether rows in flight of a batch are in a later round than their first."""
    if not conn.scalar(select(select(turns.c.round).exists())):  # most databases have no turns: look at no row
        return False
    here = (requests.c.batch_id == batch, requests.c.state == RowState.IN_FLIGHT, requests.c.round > 1)
    return bool(conn.scalar(select(select(requests.c.id).where(*here).exists())))


# -- the calls of tools ----------------------------------------------------------------------------------------------

#: A turn and its row, which waits for the next round.
_OF_ROW = (turns.c.request_id == requests.c.id) & (turns.c.round == requests.c.round - 1)


def _waiting(run_id: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for rows of a run that wait for their next round; one that has changed begins again."""
    return (requests.c.run_id == run_id, WAITS_FOR_ROUND, requests.c.changed_hash.is_(None))


class ClaimedTurn(NamedTuple):
    """A turn whose calls this driver makes. row, key: of its row; message: the answer, as JSON.

    results: for each call its result, None without one.
    """

    row: int
    key: str
    round: int
    message: str
    results: list[Any]


class ClaimableRows(NamedTuple):
    """Rows of a run that wait for calls of tools, and which one driver may claim now.

    driver: the sign of life of this driver. living_at: the time by the clock of leases. after, last: only rows whose
    numbers are above `after` and at most `last`; None: all above.
    """

    run_id: int
    driver: str
    living_at: datetime
    after: int = 0
    last: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions for these rows, joined with their turns."""
        claimed = _is_claimed(self.living_at)
        free = or_(turns.c.claimed_by.is_(None), turns.c.claimed_by == self.driver, ~claimed)
        return [*_calling(self.run_id, self.after, self.last), free]


def _calling(run_id: int, after: int, last: int | None) -> list[ColumnElement[bool]]:
    """Return the conditions for the rows of a run that wait for calls of tools, with numbers from above `after` on."""
    to_last = [] if last is None else [requests.c.id <= last]
    return [*_waiting(run_id), turns.c.open_calls > 0, requests.c.id > after, *to_last]


def _is_claimed(living_at: datetime) -> ColumnElement[bool]:
    """Return the condition for a turn that a living driver has claimed."""
    alive = select(leases.c.resource).where(leases.c.resource == turns.c.claimed_by, leases.c.expires_at > living_at)
    return alive.exists()


def claimable_rows(conn: Connection, which: ClaimableRows, *, limit: int) -> list[int]:
    """Return the numbers of the first rows that a driver may claim now, in order. Claims none."""
    query = select(requests.c.id).join(turns, _OF_ROW).where(*which.conditions()).order_by(requests.c.id).limit(limit)
    return list(conn.scalars(query))


class CallsLeft(NamedTuple):
    """Calls without results. held: whether a living driver has claimed some of them."""

    calls: int
    held: bool


def calls_left(conn: Connection, run_id: int, *, after: int, last: int, living_at: datetime) -> CallsLeft:
    """Return the calls that rows of a run wait for, of the rows whose numbers are above `after` and at most `last`."""
    held = func.count().filter(_is_claimed(living_at))
    query = (
        select(func.coalesce(func.sum(turns.c.open_calls), 0), held)
        .select_from(requests)
        .join(turns, _OF_ROW)
        .where(*_calling(run_id, after, last))
    )
    calls, rows_held = conn.execute(query).one()
    return CallsLeft(int(calls), rows_held > 0)


def claim_turn(conn: Connection, which: ClaimableRows) -> ClaimedTurn | None:
    """Claim the first of these turns, whose calls no other living driver makes; None: none is left.

    Raises RunEnded if the run is not open: calls are made for open runs only.
    """
    migrations.require_current(conn)
    require_open(conn, which.run_id)
    query = (
        select(turns.c.request_id, requests.c.key, turns.c.round, turns.c.message, turns.c.results)
        .join(requests, _OF_ROW)
        .where(*which.conditions())
        .order_by(requests.c.id)
        .limit(1)
    )
    row = conn.execute(query.with_for_update(of=turns, skip_locked=True)).one_or_none()
    if row is None:
        return None
    here = (turns.c.request_id == row.request_id, turns.c.round == row.round)
    conn.execute(update(turns).where(*here).values(claimed_by=which.driver))
    return ClaimedTurn(row.request_id, row.key, row.round, row.message, orjson.loads(row.results))


def put_result(conn: Connection, turn: ClaimedTurn, call: int, result: Any, *, driver: str, now: datetime) -> None:
    """Store the result of a call, and release the turn with the last one. call: its place among those of the answer.

    result: a block for the API. Raises LostRace if another driver has claimed the turn.
    """
    here = (turns.c.request_id == turn.row, turns.c.round == turn.round)
    query = select(turns.c.results, turns.c.claimed_by).where(*here).with_for_update()
    row = conn.execute(query).one_or_none()
    if row is None or row.claimed_by != driver:
        raise LostRace(f"the calls of row {turn.key} were taken by another driver; run the same command again")
    results = orjson.loads(row.results)
    results[call] = result
    left = sum(each is None for each in results)
    values = {"results": orjson.dumps(results).decode(), "open_calls": left, "ready_at": now}
    conn.execute(update(turns).where(*here).values(**values, claimed_by=driver if left else None))


# -- the next round --------------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """The rows of a run that wait for their next round, behind one gate or none.

    ready: how many can be sent. since: when the first of them could; None: none can. calling: how many wait for results
    of tools.
    """

    ready: int
    since: datetime | None
    calling: int


def standing(conn: Connection, run_id: int) -> dict[str | None, Standing]:
    """Return the rows of a run that wait for their next round, by the gate that its batch opens; None: no gate."""
    is_ready = turns.c.open_calls == 0
    query = (
        select(
            turns.c.gate,
            func.count().filter(is_ready),
            func.min(turns.c.ready_at).filter(is_ready),
            func.count().filter(~is_ready),
        )
        .select_from(requests)
        .join(turns, _OF_ROW)
        .where(*_waiting(run_id))
        .group_by(turns.c.gate)
    )
    return {gate: Standing(*rest) for gate, *rest in conn.execute(query)}


def is_round_open(conn: Connection, run_id: int, gate: str | None) -> bool:
    """Return whether more rows may still come into the next round: the run has open batches, or rows to send again.

    gate: only batches that open this gate; None: any batch of the run.
    """
    flying = [batches.c.run_id == run_id, batches.c.state.in_(OPEN_BATCHES)]
    waiting = [requests.c.run_id == run_id, WAITS_IN_SPOOL]
    if gate is not None:
        flying.append(batches.c.gate == gate)
        waiting.append(requests.c.body_id.in_(select(batches.c.id).where(batches.c.gate == gate)))
    exists = or_(select(batches.c.id).where(*flying).exists(), select(requests.c.id).where(*waiting).exists())
    return bool(conn.scalar(select(exists)))


def any_between_rounds(conn: Connection, run_id: int) -> bool:
    """Return whether a row of a run waits for its next round."""
    return bool(conn.scalar(select(select(requests.c.id).where(*_waiting(run_id)).exists())))


class ReadyRow(NamedTuple):
    """A row whose next round can be sent. params, message: of the round before, as JSON; results: of the calls, too.

    results None: the model paused. round: the next one.
    """

    id: int
    key: str
    keep: str | None
    row_hash: bytes
    round: int
    params: str
    message: str
    results: str | None


def ready_rows(
    conn: Connection, run_id: int, gate: str | None, *, after: int, limit: int, most_bytes: int
) -> list[ReadyRow]:
    """Return rows of a run whose next round can be sent, by number, from behind `after` on.

    gate: as in `standing`. limit: the most rows; most_bytes: about how many their texts have in all, unless one row has
    more.
    """
    of_gate = turns.c.gate.is_(None) if gate is None else turns.c.gate == gate
    which = (*_waiting(run_id), turns.c.open_calls == 0, of_gate, requests.c.id > after)
    texts = (turns.c.params, turns.c.message, turns.c.results)
    params, message, results = (func.coalesce(func.length(each), 0) for each in texts)
    size = params + message + results
    sizes = select(requests.c.id, size).join(turns, _OF_ROW).where(*which).order_by(requests.c.id).limit(limit)
    last, total = after, 0
    for row, of_row in conn.execute(sizes).tuples():
        total += of_row
        if total > most_bytes and last > after:
            break
        last = row
    of_request = (requests.c.id, requests.c.key, requests.c.keep, requests.c.row_hash, requests.c.round)
    query = select(*of_request, *texts).join(turns, _OF_ROW).where(*which, requests.c.id <= last)
    return [ReadyRow(*row) for row in conn.execute(query.order_by(requests.c.id))]


class TurnRecord(NamedTuple):
    """A turn as the database has it; the fields are those of the table. params, message, results: JSON."""

    round: int
    params: str | None
    message: str
    results: str | None
    open_calls: int
    usage: dict[str, Any]


def turns_of(conn: Connection, row: int, before: int) -> list[TurnRecord]:
    """Return the turns of a row in its rounds before this one, the first round first."""
    columns = [turns.c[name] for name in TurnRecord._fields]
    query = select(*columns).where(turns.c.request_id == row, turns.c.round < before).order_by(turns.c.round)
    return [TurnRecord(*turn) for turn in conn.execute(query)]


# -- runs ------------------------------------------------------------------------------------------------------------


def carry_over(conn: Connection, run_id: int, rows: Sequence[KnownRow]) -> None:
    """Move rows that are pending in a later round from an earlier run to this one, which goes on with them."""
    theirs = [row for row in rows if row.run_id != run_id]
    for row in theirs:
        here = (requests.c.id == row.id, requests.c.run_id == row.run_id, requests.c.state == RowState.PENDING)
        if conn.execute(update(requests).where(*here).values(run_id=run_id)).rowcount != 1:
            raise LostRace("another driver planned some of these rows; run the same command again to continue")
        tally(conn, {(row.run_id, RowState.PENDING): -1, (run_id, RowState.PENDING): 1})


def carry_over_vanished(conn: Connection, run_id: int, variables: dict[str, Any]) -> None:
    """Move rows of ended runs that wait for a round and have left the source to this run, which goes on with them.

    Call it when planning has reached the end of the source: such rows that are in the source are rows of this run by
    then. variables: its vars; rows of other vars belong to another source. Rows with another recipe are left out: they
    would begin again with this one, and there are no values to begin with; see `rows.forget_rounds`.
    """
    others = [run for run in runs_like(conn, run_id, variables) if run != run_id]
    recipe = select(runs.c.recipe).where(runs.c.id == run_id).scalar_subquery()
    for run in others:
        these = update(requests).where(*_waiting(run), requests.c.recipe == recipe).values(run_id=run_id)
        if taken := conn.execute(these).rowcount:
            tally(conn, {(run, RowState.PENDING): -taken, (run_id, RowState.PENDING): taken})


def repeat_rounds(conn: Connection, run_id: int, rows: Sequence[KnownRow]) -> None:
    """lost -> pending, in the round that was lost, for rows that a retry sends again."""
    for row in rows:
        here = (requests.c.id == row.id, requests.c.state == RowState.LOST, requests.c.run_id == row.run_id)
        again = {"state": RowState.PENDING, "waits": Waits.ROUND, "run_id": run_id, "changed_hash": None}
        again |= dict.fromkeys(("batch_id", "n", "body_id", "body_n"))
        counted = {"attempts": -func.abs(requests.c.attempts)}
        if conn.execute(update(requests).where(*here).values(**again, **counted)).rowcount != 1:
            raise LostRace("another driver planned some of these rows; run the same command again to continue")
        if row.run_id == run_id:
            moved(conn, run_id, RowState.LOST, RowState.PENDING, 1)
        else:
            tally(conn, {(row.run_id, RowState.LOST): -1, (run_id, RowState.PENDING): 1})
