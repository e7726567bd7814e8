"""Insert the rows that a job did not know, in the transaction that plans their batch. Edge: SQL.

A new row is written once, with its batch. If we die before that, the database knows nothing of the row, and the next
planning finds it in the source again.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import product, repeat
from types import MappingProxyType
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

from pipeline.state.bulk import Bulk, next_ids
from pipeline.state.rows import known_rows
from pipeline.state.tables import requests
from pipeline.state.tallies import tally
from pipeline.states import RowState


class NewRows(NamedTuple):
    """New rows in the order of the source, column by column.

    keys, keeps: JSON; keeps: None where nothing is kept. row_hashes, sent_hashes: 16 bytes each. positions: of each
    row's request in the body; None: the row cannot be sent, so it is invalid, and its sent_hash is not stored.
    """

    keys: list[str]
    keeps: list[str | None]
    row_hashes: list[bytes]
    sent_hashes: list[bytes]
    positions: list[int | None]

    @classmethod
    def none(cls) -> "NewRows":
        """Return no rows, to which some can be added."""
        return cls([], [], [], [], [])

    def add(self, other: "NewRows") -> None:
        """Append the rows of `other`."""
        for column, more in zip(self, other, strict=True):
            column += more  # type: ignore[operator]

    def some(self, which: Sequence[int]) -> "NewRows":
        """Return the rows with these indexes."""
        return NewRows(*([column[i] for i in which] for column in self))  # type: ignore[arg-type]


class KeyKnown(Exception):
    """A new row cannot be inserted, because its key is in the database by now, or comes twice among the new rows."""


class Shared(NamedTuple):
    """What becomes of a new row that shares a request of an earlier batch, at its position there.

    state: in flight in that batch; succeeded, by the answer to that request; or pending, to be sent from that batch's
    body.
    """

    batch: int
    state: RowState


def insert_new_rows(
    conn: Connection,
    rows: NewRows,
    *,
    job_id: int,
    run_id: int,
    recipe: str,
    batch: int | None,
    shared: Mapping[int, Shared] = MappingProxyType({}),
) -> list[int]:
    """Insert new rows as in flight in this batch, or as invalid, and return their numbers in ascending order.

    batch: None if no row is in flight in a new batch. shared: the rows that share a request of an earlier batch, by
    index. Raises KeyKnown if the database has one of the keys, or a key comes twice.
    """
    if not rows.keys:
        return []
    numbers = next_ids(conn, len(rows.keys))
    invalid = [i for i, position in enumerate(rows.positions) if position is None]
    sent, offsets = rows, list(range(len(rows.keys)))
    if invalid or shared:
        offsets = [i for i, position in enumerate(rows.positions) if position is not None and i not in shared]
        sent = rows.some(offsets)
    to = _Target(job_id, run_id, recipe, batch)
    try:
        _insert_sent(conn, sent, numbers, offsets, to)
        _insert_invalid(conn, rows.some(invalid), [numbers[i] for i in invalid], to)
        joined = _insert_shared(conn, rows, numbers, shared, to)
    except IntegrityError as exc:
        raise KeyKnown from exc
    states = Counter({RowState.IN_FLIGHT: len(offsets), RowState.INVALID: len(invalid)}) + joined
    tally(conn, {(run_id, state): n for state, n in states.items()})
    return numbers


class _Target(NamedTuple):
    """Where new rows are inserted. batch: None if none of them is sent."""

    job_id: int
    run_id: int
    recipe: str
    batch: int | None


def known_key(conn: Connection, job_id: int, rows: NewRows) -> str | None:
    """Return the first key that comes twice among new rows or that the database knows; None if there is none."""
    twice = next((key for key, n in Counter(rows.keys).items() if n > 1), None)
    if twice is not None:
        return twice
    for start in range(0, len(rows.keys), _KEYS_AT_ONCE):
        known = known_rows(conn, job_id, rows.keys[start : start + _KEYS_AT_ONCE])
        if known:
            return next(iter(known))
    return None


_KEYS_AT_ONCE = 5_000


def _insert_shared(
    conn: Connection, rows: NewRows, numbers: Sequence[int], shared: Mapping[int, Shared], to: _Target
) -> Counter[RowState]:
    """Insert the rows that share a request of an earlier batch. Return their number by state."""
    by_state: defaultdict[RowState, list[int]] = defaultdict(list)
    for i, of_row in shared.items():
        by_state[of_row.state].append(i)
    if joined := by_state[RowState.IN_FLIGHT]:
        _insert_sent(conn, rows.some(joined), numbers, joined, to, [shared[i].batch for i in joined])
    for state, statement in ((RowState.SUCCEEDED, _ANSWERED), (RowState.PENDING, _WAITING)):
        some = by_state[state]
        columns = (*rows.some(some), [shared[i].batch for i in some], [numbers[i] for i in some])
        statement.execute(conn, [_shared_row(state, to, *of_row) for of_row in zip(*columns, strict=True)])
    return Counter({state: len(some) for state, some in by_state.items()})


def _shared_row(
    state: RowState,
    to: _Target,
    key: str,
    keep: str | None,
    row_hash: bytes,
    sent_hash: bytes,
    position: int | None,
    batch: int,
    number: int,
) -> tuple[object, ...]:
    """Return a row for _ANSWERED or _WAITING."""
    of_all = (number, to.job_id, key, keep, to.run_id, state.value, row_hash, to.recipe)
    if state is RowState.PENDING:
        return (*of_all, 0, sent_hash, "spool", batch, position)
    return (*of_all, 1, sent_hash, batch, position, "succeeded", row_hash, to.recipe, sent_hash)


# The rows come as one JSON array, and hashes, offsets and positions as one value each, with _DIGITS characters for each
# number, so that SQLite inserts all rows in one step, in which other threads can work.
_DIGITS = 8
_ON_SQLITE = """
INSERT INTO requests (id, job_id, "key", keep, run_id, state, row_hash, recipe, sent_hash, attempts,
                      batch_id, n, body_id, body_n)
SELECT :first + CAST(substr(:offsets, 8 * item.key + 1, 8) AS INTEGER), :job_id, {key}, {keep}, :run_id, 'in_flight',
       substr(:row_hashes, 16 * item.key + 1, 16), :recipe, substr(:sent_hashes, 16 * item.key + 1, 16), 0,
       {batch}, CAST(substr(:positions, 8 * item.key + 1, 8) AS INTEGER),
       {batch}, CAST(substr(:positions, 8 * item.key + 1, 8) AS INTEGER)
FROM json_each(:rows) AS item
"""
_KEYS_ONLY = {"key": "item.value", "keep": "NULL"}
_KEYS_AND_KEEPS = {"key": "json_extract(item.value, '$[0]')", "keep": "json_extract(item.value, '$[1]')"}
_ONE_BATCH = {"batch": ":batch"}
_SEVERAL_BATCHES = {"batch": "CAST(substr(:batches, 8 * item.key + 1, 8) AS INTEGER)"}
#: By whether the rows have no kept values, and whether they are in one batch.
_STATEMENTS = {
    (plain, one): text(
        _ON_SQLITE.format(**(_KEYS_ONLY if plain else _KEYS_AND_KEEPS), **(_ONE_BATCH if one else _SEVERAL_BATCHES))
    )
    for plain, one in product((True, False), repeat=2)
}


def _insert_on_sqlite(
    conn: Connection, rows: NewRows, first: int, offsets: Sequence[int], to: _Target, batches: Sequence[int] | None
) -> None:
    """Insert rows that are sent. offsets: what to add to `first` for the number of each row. batches: see above."""
    plain = not any(rows.keeps)
    given = {
        **to._asdict(),
        "first": first,
        "offsets": _numbers(offsets),
        "positions": _numbers(rows.positions),
        "row_hashes": b"".join(rows.row_hashes),
        "sent_hashes": b"".join(rows.sent_hashes),
        "rows": orjson.dumps(rows.keys if plain else [*zip(rows.keys, rows.keeps, strict=True)]).decode(),
    }
    if batches is not None:
        del given["batch"]
        given["batches"] = _numbers(batches)
    conn.execute(_STATEMENTS[plain, batches is None], given)


def _numbers(numbers: Sequence[int | None]) -> bytes:
    """Return numbers as texts of _DIGITS characters each."""
    return b"%8d" * len(numbers) % tuple(numbers)


_OF_ALL = ("id", "job_id", "key", "keep", "run_id", "state", "row_hash", "recipe", "attempts")
_SENT = Bulk(insert(requests), (*_OF_ALL, "sent_hash", "batch_id", "n", "body_id", "body_n"))
_INVALID = Bulk(insert(requests), (*_OF_ALL, "outcome", "outcome_hash", "outcome_recipe"))
_OUTCOME = ("outcome", "outcome_hash", "outcome_recipe", "outcome_sent_hash")
_ANSWERED = Bulk(insert(requests), (*_OF_ALL, "sent_hash", "batch_id", "n", *_OUTCOME))
_WAITING = Bulk(insert(requests), (*_OF_ALL, "sent_hash", "waits", "body_id", "body_n"))


def _insert_sent(
    conn: Connection,
    rows: NewRows,
    numbers: Sequence[int],
    offsets: Sequence[int],
    to: _Target,
    batches: Sequence[int] | None = None,
) -> None:
    """Insert rows in flight. offsets: the index of each one's number. batches: of each row; None: the new batch."""
    if conn.dialect.name == "sqlite":
        _insert_on_sqlite(conn, rows, numbers[0], offsets, to, batches)
        return
    _SENT.execute(
        conn,
        [
            (
                number,
                to.job_id,
                key,
                keep,
                to.run_id,
                "in_flight",
                row_hash,
                to.recipe,
                0,
                sent_hash,
                batch,
                n,
                batch,
                n,
            )
            for number, key, keep, row_hash, sent_hash, n, batch in zip(
                [numbers[i] for i in offsets], *rows, batches or repeat(to.batch, len(offsets)), strict=True
            )
        ],
    )


def _insert_invalid(conn: Connection, rows: NewRows, numbers: Sequence[int], to: _Target) -> None:
    _INVALID.execute(
        conn,
        [
            (number, to.job_id, key, keep, to.run_id, "invalid", row_hash, to.recipe, 0, "invalid", row_hash, to.recipe)
            for number, key, keep, row_hash in zip(numbers, rows.keys, rows.keeps, rows.row_hashes, strict=True)
        ],
    )
