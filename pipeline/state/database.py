"""Open the state database, create it if it is new, and turn its errors into sentences. Edge: SQL."""

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import create_engine, event, func, select
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, StatementError

from pipeline.errors import DatabaseError, LostRace, PipelineError, Stopped
from pipeline.state import migrations

# Types of SQLAlchemy, for rooms that write no SQL: they import them from here.
Connection = sqlalchemy.Connection
Url = URL

BUSY_SECONDS = 30.0  # how long a writer waits for another writer of the same SQLite file or the same PostgreSQL row
#: The pages of a SQLite file that a connection keeps. With the usual 2,000, rows that share requests, and are all over
#: the tables, took a third more time to collect; rows in the order of their keys need less.
CACHE_KB = 8_000
IDLE_SECONDS = 60.0  # how long a driver suspended in the middle of a write may hold its locks on PostgreSQL

_URLS = "sqlite:///path/to/batches.db or postgresql+psycopg://user:password@host/database"
_SQLITE = ("sqlite", "sqlite+pysqlite")
_POSTGRES = ("postgresql", "postgresql+psycopg")

#: Parameters of a connection to PostgreSQL that the URL does not set: a dead connection is noticed within a minute.
_CONNECTING = {
    "application_name": "batch-pipeline",
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


class Database:
    """One state database. `write()` and `read()` are its transactions.

    new: whether it was just created. is_sqlite: whether it is a SQLite file; otherwise it is on a PostgreSQL server.
    file: the SQLite file; None on PostgreSQL. default_schema: the schema for results tables; None on SQLite.
    """

    new: bool
    default_schema: str | None

    def __init__(self, url: str) -> None:
        """Open the database, and create its tables if it is new. Raises DatabaseError, which says what is wrong.

        url: `sqlite:///path/to/file.db` (three slashes and a relative path, four and an absolute one), or
        `postgresql+psycopg://user:password@host:port/database`.
        """
        self.url = _parsed(url)
        self.is_sqlite = self.url.drivername in _SQLITE
        self.file = Path(self.url.database or "").absolute() if self.is_sqlite else None
        engine = _sqlite(self.url) if self.is_sqlite else _postgres(self.url)
        self._engine = engine
        self._writes = engine.execution_options(pipeline_writes=True)
        self._reads = engine if self.is_sqlite else engine.execution_options(**_SNAPSHOT)
        # The threads of this process queue here, because SQLite waits for its lock by sleeping and trying again.
        self._writing = threading.Lock() if self.is_sqlite else contextlib.nullcontext()
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise

    def _bring_up(self) -> None:
        with self._sentences("open"), self._engine.connect() as plain:
            conn = plain.execution_options(pipeline_writes=True, pipeline_rebuilds=True)
            with conn.begin():
                self.default_schema = None if self.is_sqlite else _default_schema(conn, self.shown)
                self.new = migrations.bring_up(conn, self.shown, self.now(conn, datetime.now(UTC)))
            if self.is_sqlite:
                conn.invalidate()  # this connection does not check foreign keys

    @staticmethod
    def exists(url: str) -> bool:
        """Return whether a database exists at this URL, without creating one; True on a PostgreSQL server."""
        try:
            parsed = _parsed(url)
            if parsed.drivername in _SQLITE:
                return Path(parsed.database or "").exists()
            engine = _postgres(parsed)
        except DatabaseError:
            return True
        try:
            with engine.connect() as conn:
                return migrations.is_made(conn)
        except DBAPIError:
            return True
        finally:
            engine.dispose()

    @property
    def folder(self) -> Path | None:
        """Return the folder of the SQLite file; None on PostgreSQL."""
        return None if self.file is None else self.file.parent

    @staticmethod
    def folder_of(url: str) -> Path | None:
        """Return the folder of the SQLite file at this URL, whether or not it exists; None for PostgreSQL.

        Raises DatabaseError if the URL is wrong.
        """
        parsed = _parsed(url)
        return Path(parsed.database or "").absolute().parent if parsed.drivername in _SQLITE else None

    @property
    def shown(self) -> str:
        """Return the URL with the password hidden."""
        return _shown(self.url)

    @staticmethod
    def shown_url(url: str) -> str:
        """Return this URL with the password hidden. Raises DatabaseError if the URL is wrong."""
        return _shown(_parsed(url))

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that writes, and commit it at the end of the block.

        On SQLite it holds the write lock from its start. On PostgreSQL each statement sees what others have committed
        before it (READ COMMITTED): code that reads and then writes must lock what it read, or guard the write. Raises
        Stopped or LostRace; nothing is written then.
        """
        with self._sentences("write to"), self._writing, self._writes.connect() as conn, conn.begin():
            yield conn

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads; it sees the database as it was at one moment."""
        with self._sentences("read"), self._reads.connect() as conn, conn.begin():
            yield conn

    def now(self, conn: Connection, local: datetime) -> datetime:
        """Return the time that all drivers of this database use for leases: the server's clock; `local` on SQLite."""
        if self.is_sqlite:
            return local
        now: datetime = conn.execute(select(func.clock_timestamp())).scalar_one()
        return now.astimezone(UTC)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _sentences(self, what: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as exc:
            said = f"cannot {what} {self.shown}: {' '.join(str(exc.orig).partition(_DETAILS)[0].split())}"
            raised = _of_sqlite(said, exc) if self.is_sqlite else _of_postgres(said, exc, opening=what == "open")
            if raised is None:
                raise
            raise raised from exc


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        hidden = re.sub(r"//.*@", "//***@", url)
        raise DatabaseError(
            f"--database {hidden!r} is no database URL; write {_URLS}"
        ) from None  # the original message may hold the password
    if parsed.drivername in _POSTGRES:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in _SQLITE and parsed.database and parsed.database != ":memory:":
        return parsed
    raise DatabaseError(f"--database {_shown(parsed)}: state is kept in a SQLite file or in PostgreSQL; write {_URLS}")


def _shown(url: URL) -> str:
    return url.difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)


# -- SQLite ----------------------------------------------------------------------------------------------------------


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # `begin` below starts transactions
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a committed intent survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA cache_size=-{CACHE_KB}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        options = conn.get_execution_options()
        if options.get("pipeline_rebuilds"):
            conn.exec_driver_sql("PRAGMA foreign_keys=OFF")  # within a transaction it would have no effect
        # IMMEDIATE: otherwise a transaction that reads first fails when it writes after another one has written
        conn.exec_driver_sql("BEGIN IMMEDIATE" if options.get("pipeline_writes") else "BEGIN")

    return engine


def _of_sqlite(said: str, exc: DBAPIError) -> PipelineError | None:
    text = str(exc.orig)
    if "readonly" in text or "unable to open" in text or "not a database" in text or "malformed" in text:
        return DatabaseError(f"{said}; give another one by --database")
    if "full" in text or "locked" in text or "disk I/O" in text:
        return Stopped(f"{said}; nothing half done, safe to run again")
    return None


def is_busy(exc: StatementError) -> bool:
    """Return whether a statement failed because another process has locked what it needs, not because of its SQL."""
    # by code, because the text may name a column `locked`; an extended code has the primary one in its lowest byte
    code = getattr(exc.orig, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or getattr(exc.orig, "sqlstate", None) == "55P03"


# -- PostgreSQL ------------------------------------------------------------------------------------------------------

_SNAPSHOT = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_DETAILS = "\n"  # after this, the server's message quotes the statement


def _postgres(url: URL) -> Engine:
    connecting = {name: value for name, value in _CONNECTING.items() if name not in url.query}
    try:
        engine = create_engine(
            url,
            connect_args=connecting,
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,  # the server may have been restarted between two polls
            execution_options={"schema_translate_map": {None: migrations.SCHEMA}},
        )
    except ImportError as exc:
        raise DatabaseError(
            f"--database {_shown(url)}: PostgreSQL's driver psycopg does not load here ({exc}); "
            "pip install 'psycopg[binary]'"
        ) from exc

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        from psycopg.types.array import ListBinaryDumper

        connection.adapters.register_dumper(list, ListBinaryDumper)  # for the arrays of bulk.py; half the time of text
        connection.execute("SET TimeZone TO 'UTC'")  # so that now() in --where compares with our times
        connection.commit()

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        if conn.get_execution_options().get("pipeline_writes"):
            # a committed intent survives a power cut; no driver waits for ever for one that is suspended or dead
            settings = {
                "synchronous_commit": "on",
                "lock_timeout": f"{BUSY_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
            }
            conn.execute(select(*[func.set_config(name, value, True) for name, value in settings.items()]))

    return engine


def _default_schema(conn: Connection, database: str) -> str:
    """Return the schema for results tables: the first existing one of the search path that is not the state's schema.

    The state's schema comes first in the search path of a user with the same name.
    """
    encoding = conn.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise DatabaseError(f"{database} is a database in {encoding}; give one made with ENCODING 'UTF8' by --database")
    path: list[str] = conn.execute(select(func.current_schemas(False))).scalar_one()
    schemas = [schema for schema in path if schema != migrations.SCHEMA]
    if not schemas:
        raise DatabaseError(f"{database} has no schema for results tables in its search_path; CREATE SCHEMA public")
    return schemas[0]


def _of_postgres(said: str, exc: DBAPIError, *, opening: bool) -> PipelineError | None:
    """Return the error for the server's SQLSTATE, which connection errors do not have; None for an unknown error."""
    state: str = getattr(exc.orig, "sqlstate", None) or ""
    gone = not state and isinstance(exc, OperationalError | InterfaceError)
    if opening and (gone or state.startswith("08")):
        return DatabaseError(f"{said}; check the address, user, password and database name given by --database")
    if gone or state.startswith(_PASSING):
        return Stopped(f"{said}; nothing half done, safe to run again")
    if state in _RACES:
        return LostRace(f"{said}; another driver changed the same rows; run the same command again to continue")
    if state == "42501":  # insufficient_privilege
        return DatabaseError(
            f"{said}; grant its user CREATE on the database, or create schema {migrations.SCHEMA} for that user"
        )
    if state == "25006":  # read_only_sql_transaction
        return DatabaseError(f"{said}; this server is read-only: give the primary server by --database")
    if state == "54000":  # program_limit_exceeded: only an index limits the values that we write
        return DatabaseError(f"{said}; PostgreSQL takes keys of up to about 2,700 bytes: use a shorter source.key")
    return None


#: Starts of SQLSTATEs: connection, resources (disk full, memory, connections), shutdown and cancel, system errors;
#: lock_not_available; idle_in_transaction_session_timeout.
_PASSING = ("08", "53", "57", "58", "55P03", "25P03")
#: deadlock_detected, serialization_failure, unique_violation: SQLite, which has one writer at a time, has none of them.
_RACES = ("40P01", "40001", "23505")


def default_url(folder: Path, *, emulated: bool) -> str:
    """Return the URL of the database beside a job file: batches.db, or emulated.db for answers of the emulator."""
    name = "emulated.db" if emulated else "batches.db"
    return f"sqlite:///{os.path.relpath(folder / name)}"
