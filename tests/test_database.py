"""The state database: made, brought up to date, refused."""

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pipeline.database import Database
from pipeline.errors import DatabaseError
from pipeline.migrations import HEAD
from pipeline.tables import metadata


def test_the_migrations_make_the_tables_that_the_code_works_with(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/batches.db")

    with database.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []
        found = conn.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql > ''")
        made = {row[0]: row[1] for row in found}
    with sqlite3.connect(tmp_path / "plain.db") as plain:
        for statement in statements():
            plain.execute(statement)
        declared = dict(plain.execute("SELECT name, sql FROM sqlite_master WHERE sql > ''"))
    made.pop("alembic_version")
    assert {name: words(sql) for name, sql in made.items()} == {name: words(sql) for name, sql in declared.items()}


def statements() -> list[str]:
    """What the declared tables would be made with."""
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateIndex, CreateTable

    tables = metadata.sorted_tables
    made = [str(CreateTable(table).compile(dialect=sqlite.dialect())) for table in tables]
    return made + [str(CreateIndex(i).compile(dialect=sqlite.dialect())) for table in tables for i in table.indexes]


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
