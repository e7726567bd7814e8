"""Insert the rows that a job did not know, in the transaction that plans their batch. Edge: SQL.

A new row is written once, with its batch. If we die before that, the database knows nothing of the row, and the next
planning finds it in the source again.
"""

from collections import Counter
from collections.abc import Sequence
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


def insert_new_rows(
    conn: Connection, rows: NewRows, *, job_id: int, run_id: int, recipe: str, batch: int | None
) -> list[int]:
    """Insert new rows as in flight in this batch, or as invalid, and return their numbers in ascending order.

    batch: None if all rows are invalid. Raises KeyKnown if the database has one of the keys, or a key comes twice.
    """
    if not rows.keys:
        return []
    numbers = next_ids(conn, len(rows.keys))
    invalid = [i for i, position in enumerate(rows.positions) if position is None]
    sent, offsets = rows, list(range(len(rows.keys)))
    if invalid:
        offsets = [i for i, position in enumerate(rows.positions) if position is not None]
        sent = rows.some(offsets)
    to = _Target(job_id, run_id, recipe, batch)
    try:
        if conn.dialect.name == "sqlite":
            _insert_on_sqlite(conn, sent, numbers[0], offsets, to)
        else:
            _insert_sent(conn, sent, [numbers[i] for i in offsets], to)
        _insert_invalid(conn, rows.some(invalid), [numbers[i] for i in invalid], to)
    except IntegrityError as exc:
        raise KeyKnown from exc
    tally(conn, {(run_id, RowState.IN_FLIGHT): len(offsets), (run_id, RowState.INVALID): len(invalid)})
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

# The rows come as one JSON array, and hashes, offsets and positions as one value each, with _DIGITS characters for each
# number, so that SQLite inserts all rows in one step, in which other threads can work.
_DIGITS = 8
_ON_SQLITE = """
INSERT INTO requests (id, job_id, "key", keep, run_id, state, row_hash, recipe, sent_hash, attempts,
                      batch_id, n, body_id, body_n)
SELECT :first + CAST(substr(:offsets, 8 * item.key + 1, 8) AS INTEGER), :job_id, {key}, {keep}, :run_id, 'in_flight',
       substr(:row_hashes, 16 * item.key + 1, 16), :recipe, substr(:sent_hashes, 16 * item.key + 1, 16), 0,
       :batch, CAST(substr(:positions, 8 * item.key + 1, 8) AS INTEGER),
       :batch, CAST(substr(:positions, 8 * item.key + 1, 8) AS INTEGER)
FROM json_each(:rows) AS item
"""
_KEYS_ONLY = text(_ON_SQLITE.format(key="item.value", keep="NULL"))
_KEYS_AND_KEEPS = text(
    _ON_SQLITE.format(key="json_extract(item.value, '$[0]')", keep="json_extract(item.value, '$[1]')")
)


def _insert_on_sqlite(conn: Connection, rows: NewRows, first: int, offsets: Sequence[int], to: _Target) -> None:
    """Insert rows that are sent. offsets: what to add to `first` for the number of each row."""
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
    conn.execute(_KEYS_ONLY if plain else _KEYS_AND_KEEPS, given)


def _numbers(numbers: Sequence[int | None]) -> bytes:
    """Return numbers as texts of _DIGITS characters each."""
    return b"%8d" * len(numbers) % tuple(numbers)


_OF_ALL = ("id", "job_id", "key", "keep", "run_id", "state", "row_hash", "recipe", "attempts")
_SENT = Bulk(insert(requests), (*_OF_ALL, "sent_hash", "batch_id", "n", "body_id", "body_n"))
_INVALID = Bulk(insert(requests), (*_OF_ALL, "outcome", "outcome_hash", "outcome_recipe"))


def _insert_sent(conn: Connection, rows: NewRows, numbers: Sequence[int], to: _Target) -> None:
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
                to.batch,
                n,
                to.batch,
                n,
            )
            for number, key, keep, row_hash, sent_hash, n in zip(
                numbers, rows.keys, rows.keeps, rows.row_hashes, rows.sent_hashes, rows.positions, strict=True
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
