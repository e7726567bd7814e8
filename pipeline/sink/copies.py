"""Copies of an answer for rows whose request equals one that has succeeded. Edge: SQL."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from pipeline.errors import LostRace
from pipeline.sink.keys import among
from pipeline.sink.table import HISTORY_SLICE, ResultsTable
from pipeline.states import RowState


class Copy(NamedTuple):
    """A row that gets the answer of another one. source: that one's key; key, keep: its own. All three are JSON."""

    source: str
    key: str
    keep: str | None
    attempts: int


def with_answers(conn: Connection, sink: ResultsTable, keys: Iterable[str]) -> set[str]:
    """Return those of these keys that have a succeeded answer in the results table. keys: JSON."""
    wanted = {sink.key_values(key): key for key in keys}
    return {wanted[key] for key in _stored(conn, sink, wanted, only_keys=True)}


def copies(
    conn: Connection, sink: ResultsTable, wanted: Sequence[Copy], *, run_id: int, now: datetime
) -> list[tuple[Any, ...]]:
    """Return rows for `ResultsTable.write`: answers of other rows, with the key and kept values of these.

    A copy has cost no money and no tokens. Raises LostRace if an answer is not there.
    """
    sources = {copy.source: sink.key_values(copy.source) for copy in wanted}
    stored = _stored(conn, sink, sources.values(), only_keys=False)
    own = {**_NOTHING_USED, "run_id": run_id, "updated_at": now}
    names = [column.name for column in sink.table.columns]
    changes = [(i, own[name]) for i, name in enumerate(names) if name in own]
    attempts = names.index("attempts")
    found = []
    for copy in wanted:
        answer = stored.get(sources[copy.source])
        if answer is None:
            raise LostRace("an answer was removed while it was copied; run the same command again to continue")
        row = [*sink.lead, *sink.source_values(copy.key, copy.keep)]
        row += answer[len(row) :]
        for i, value in changes:
            row[i] = value
        row[attempts] = copy.attempts
        found.append(tuple(row))
    return found


_NOTHING_USED: dict[str, Any] = {
    "input_tokens": 0,
    "output_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "cost_usd": 0.0,
}


def _stored(
    conn: Connection, sink: ResultsTable, keys: Iterable[tuple[Any, ...]], *, only_keys: bool
) -> dict[tuple[Any, ...], Row[Any]]:
    """Return the succeeded answers with these keys, by key. only_keys: whether only the keys are wanted of them."""
    key = [sink.rows.c[name] for name in sink.columns.key]
    query = select(*(key if only_keys else sink.rows.c)).where(sink.rows.c.status == RowState.SUCCEEDED)
    first = 0 if only_keys else len(sink.lead)
    every = list(dict.fromkeys(keys))
    found: dict[tuple[Any, ...], Row[Any]] = {}
    for start in range(0, len(every), HISTORY_SLICE):
        some = every[start : start + HISTORY_SLICE]
        found |= {tuple(row[first : first + len(key)]): row for row in conn.execute(query.where(among(key, some)))}
    return found
