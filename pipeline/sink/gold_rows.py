"""Look up the gold of rows by their keys. Edge: SQL."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from pipeline.sink.gold import GoldTable
from pipeline.sink.plain_rows import plain_rows
from pipeline.sink.sides import Clause, Key, lookup, order_of
from pipeline.state.database import Database


def gold_rows(database: Database, table: GoldTable, keys: Sequence[Key], order: str) -> dict[Key, tuple[Any, ...]]:
    """Return the values of the gold columns of the rows with these keys, and perhaps of others.

    A row without gold is missing. keys: in the order that `order` names, see sides.Side.
    """
    columns = [table.table.c[name] for name in table.sink.columns.key]
    query, width = select(*columns, *[table.table.c[name] for name in table.columns]), len(columns)

    def read(clause: Clause) -> dict[Key, tuple[Any, ...]]:
        with database.read() as conn:
            return {row[:width]: row[width:] for row in plain_rows(conn, clause(query))}

    return lookup(columns, keys, read, ordered=order == order_of(database))
