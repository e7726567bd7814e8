"""Compile each SQL statement once for all databases of a process, which takes a sixth of the time from tests.

SQLAlchemy compiles a statement once for each engine, and tests open thousands of databases. What it has compiled does
not depend on the engine, but on its dialect, and all dialects of a kind are alike here.
"""

from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Engine
from sqlalchemy.util import LRUCache

_DIALECTS = (SQLiteDialect_pysqlite, PGDialect_psycopg)
_compiled: LRUCache[Any, Any] = LRUCache(5_000)


def share_compiled_sql() -> None:
    """Let all engines of this process share what was compiled. A second call does nothing."""
    for dialect in _DIALECTS:  # the cache finds a statement by its dialect and its text
        setattr(dialect, "__eq__", lambda self, other: type(self) is type(other))  # noqa: B010
        setattr(dialect, "__hash__", lambda self: hash(type(self)))  # noqa: B010
    if not event.contains(Engine, "engine_connect", _share):
        event.listen(Engine, "engine_connect", _share)


def _share(conn: Connection) -> None:
    if isinstance(conn.dialect, _DIALECTS):
        conn.engine._compiled_cache = _compiled
