"""The connection to the state database: opened, made when new, and its errors as sentences. Edge: SQL."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from pipeline import migrations
from pipeline.errors import DatabaseError, Stopped

BUSY_SECONDS = 30  # how long a writer waits for another writer of the same SQLite file


class Database:
    """One state database. `write()` and `read()` are its transactions; every step commits before it goes on."""

    def __init__(self, url: str) -> None:
        """Opens the database and makes its tables when it is new. Raises DatabaseError that says what is wrong.

        url: `sqlite:///path/to/file.db` (three slashes and a relative path, four and an absolute one).
        """
        try:
            self.url: URL = make_url(url)
        except ArgumentError as exc:
            raise DatabaseError(f"--database {url!r} is no database URL; write sqlite:///path/to/batches.db") from exc
        if self.url.get_backend_name() != "sqlite" or not self.url.database or self.url.database == ":memory:":
            raise DatabaseError(
                f"--database {self.shown}: this version keeps its state in SQLite files: sqlite:///batches.db"
            )
        self.file = Path(self.url.database).absolute()
        self.new = not self.file.exists() or self.file.stat().st_size == 0
        self._engine = _engine(self.url)
        self._writing = threading.Lock()
        with self._sentences("open"), self.write() as conn:
            migrations.bring_up(conn, self.shown)

    @staticmethod
    def exists(url: str) -> bool:
        """Whether there is a database at this URL, without making one."""
        try:
            file = make_url(url).database
        except ArgumentError:
            return True  # opening it says what is wrong with it
        return file is None or Path(file).exists()

    @property
    def shown(self) -> str:
        """The URL without a password."""
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: it holds the write lock from its first line on and commits at the end."""
        # Our own threads queue here: SQLite's own way to wait for the lock is to sleep and look again.
        with self._sentences("write to"), self._writing, self._engine.connect() as plain:
            conn = plain.execution_options(pipeline_writes=True)
            with conn.begin():
                yield conn

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: one moment's view of the database."""
        with self._sentences("read"), self._engine.connect() as conn, conn.begin():
            yield conn

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _sentences(self, what: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as exc:
            text = str(exc.orig)
            if "readonly" in text or "unable to open" in text or "not a database" in text or "malformed" in text:
                raise DatabaseError(f"cannot {what} {self.shown}: {text}; give another one by --database") from exc
            if "full" in text or "locked" in text or "disk I/O" in text:
                raise Stopped(f"cannot {what} {self.shown}: {text}; nothing half done, safe to run again") from exc
            raise
        except SQLAlchemyError as exc:
            if "unable to open" in str(exc):
                raise DatabaseError(f"cannot {what} {self.shown}: {exc}") from exc
            raise


def _engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # we say BEGIN ourselves, below
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a committed intent survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        # IMMEDIATE: a transaction that reads before it writes would else fail when another one wrote in between
        conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("pipeline_writes") else "BEGIN")

    return engine


def default_url(folder: Path, *, emulated: bool) -> str:
    """The database beside a job file: batches.db, or emulated.db for what the emulator answered."""
    name = "emulated.db" if emulated else "batches.db"
    return f"sqlite:///{os.path.relpath(folder / name)}"
