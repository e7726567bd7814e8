"""The state database: made, brought up to date, refused."""

import sqlite3
from pathlib import Path

import pytest

from pipeline.database import Database
from pipeline.errors import DatabaseError
from pipeline.migrations import HEAD


def test_the_migrations_come_to_the_tables_that_a_new_database_gets(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path}/new.db").close()
    with sqlite3.connect(tmp_path / "old.db") as old:  # a database of before the first version
        old.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    Database(f"sqlite:///{tmp_path}/old.db").close()

    assert tables(tmp_path / "old.db") == tables(tmp_path / "new.db")
    with sqlite3.connect(tmp_path / "old.db") as upgraded:
        assert upgraded.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


def tables(file: Path) -> dict[str, set[str]]:
    """Each table and index with the parts of its definition."""
    with sqlite3.connect(file) as database:
        found = database.execute("SELECT name, sql FROM sqlite_master WHERE sql > ''")
        return {name: words(sql) for name, sql in found if name != "alembic_version"}


def words(sql: str) -> set[str]:
    """The parts of a definition: constraints may come in another order."""
    return {" ".join(line.split()).rstrip(",") for line in sql.splitlines() if line.strip()}


def test_a_database_of_today_is_opened_as_it_is(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path}/batches.db").close()

    again = Database(f"sqlite:///{tmp_path}/batches.db")

    assert not again.new
    with again.read() as conn:
        assert conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == HEAD


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path}/batches.db").close()
    with sqlite3.connect(tmp_path / "batches.db") as later:
        later.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(DatabaseError, match=r"made by a newer version of batch-pipeline \(9999\)"):
        Database(f"sqlite:///{tmp_path}/batches.db")


def test_tables_of_somebody_else_are_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "theirs.db") as theirs:
        theirs.execute("CREATE TABLE jobs (title TEXT)")

    with pytest.raises(DatabaseError, match="has tables that are not ours"):
        Database(f"sqlite:///{tmp_path}/theirs.db")

    with sqlite3.connect(tmp_path / "theirs.db") as theirs:
        assert [name for (name,) in theirs.execute("SELECT name FROM sqlite_master")] == ["jobs"]
