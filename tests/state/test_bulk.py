"""Statements for very many rows give the same result on SQLite and PostgreSQL."""

import datetime
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.types import NullType

from pipeline.errors import LostRace, Stopped
from pipeline.state.bulk import AT_ONCE_POSTGRES, WORTH_A_COPY, Bulk, next_ids
from pipeline.state.database import Database
from pipeline.state.tables import UtcDateTime, requests
from tests.support.postgres import connected
from tests.support.records import put_run

NOW = datetime.datetime(2026, 11, 20, 8, 30, tzinfo=datetime.UTC)
MANY = AT_ONCE_POSTGRES + 77  # more rows than one statement carries on either database

notes = Table(
    "some notes",
    MetaData(),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("100% (sure)", Text),
    Column('a "quoted": name', Integer),
    Column("share", Float),
    Column("hash", LargeBinary(16)),
    Column("done", Boolean),
    Column("at", UtcDateTime),
)
add_notes = Bulk(insert(notes), [column.name for column in notes.columns])


class State(StrEnum):
    WAITING = "waiting"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as database:
        with database.write() as conn:
            notes.create(conn)
        yield database


def note(i: int, **changes: Any) -> tuple[Any, ...]:
    values = {"text": f"note {i}", "number": i, "share": i / 4, "hash": i.to_bytes(16), "done": i % 2 == 0, "at": NOW}
    return (i, *{**values, **changes}.values())


def stored(database: Database) -> list[tuple[Any, ...]]:
    with database.read() as conn:
        return [tuple(row) for row in conn.execute(select(notes).order_by(notes.c.id))]


@pytest.mark.parametrize("rows", [0, 1, 7, 600, MANY])
def test_rows_are_inserted_and_counted(database: Database, rows: int) -> None:
    given = [note(i) for i in range(rows)]

    with database.write() as conn:
        inserted = add_notes.execute(conn, given)

    assert inserted == rows
    assert stored(database) == given


def test_values_are_stored_as_the_types_of_their_columns(database: Database) -> None:
    given = [
        note(1, text=None, number=None, share=None, hash=None, done=None, at=None),
        note(2, text=State.WAITING, number=-1, share=3, hash=b"", done=True),
        note(2**63 - 1, text="naïve 数 \U0001f600 '%s' {\"a\", NULL} \\", number=2**31 - 1, share=1e300),
    ]

    with database.write() as conn:
        add_notes.execute(conn, given)

    assert stored(database) == given
    assert type(stored(database)[1][1]) is str


def test_a_column_of_nulls_alone_is_stored(database: Database) -> None:
    empty = {"text": None, "number": None, "share": None, "hash": None, "done": None, "at": None}

    with database.write() as conn:
        add_notes.execute(conn, [note(i, **empty) for i in range(3)])

    assert stored(database) == [(i, *[None] * 6) for i in range(3)]


@pytest.mark.parametrize(
    "alike", [(), ("text",), ("number", "done", "at"), ("text", "number", "share", "hash", "done", "at")]
)
def test_values_that_many_rows_share_are_stored_with_each_of_them(database: Database, alike: tuple[str, ...]) -> None:
    shared = {"text": "?1", "number": -5, "share": None, "hash": b"\0\xff", "done": True, "at": NOW}
    given = [note(i, **{name: shared[name] for name in alike}) for i in range(MANY)]

    with database.write() as conn:
        inserted = add_notes.execute(conn, given)

    assert inserted == MANY
    assert stored(database) == given


def test_equal_values_of_different_types_stay_what_they_are(tmp_path: Path) -> None:
    untyped = Table("untyped", MetaData(), Column("id", BigInteger, primary_key=True), Column("value", NullType))
    given = [(i, 1.0 if i == 3 else 1) for i in range(8)]  # as many as one statement carries
    with closing(Database(f"sqlite:///{tmp_path}/batches.db")) as database:
        with database.write() as conn:
            conn.execute(text("CREATE TABLE untyped (id INTEGER PRIMARY KEY, value BLOB)"))
            Bulk(insert(untyped), ["id", "value"]).execute(conn, given)
        with database.read() as conn:
            found = conn.execute(text("SELECT typeof(value) FROM untyped ORDER BY id")).scalars().all()

    assert found == ["real" if i == 3 else "integer" for i in range(8)]


def test_an_update_changes_the_rows_it_names_and_counts_them(database: Database) -> None:
    finish = Bulk(
        update(notes)
        .where(notes.c.id == bindparam("row"), notes.c.done != text("true"))
        .values({"100% (sure)": bindparam("now"), "done": bindparam("done"), 'a "quoted": name': text("NULL")}),
        ("now", "done", "row"),
    )
    with database.write() as conn:
        add_notes.execute(conn, [note(i) for i in range(MANY)])

    with database.write() as conn:
        changed = finish.execute(conn, [(f"finished {i}", True, i) for i in range(MANY + 5)])

    assert changed == MANY // 2  # the others were done
    assert stored(database) == [
        note(i) if i % 2 == 0 else note(i, text=f"finished {i}", number=None, done=True) for i in range(MANY)
    ]


def test_an_update_of_ranges_counts_all_rows_in_them(database: Database) -> None:
    renumber = Bulk(
        update(notes)
        .where(notes.c.id.between(bindparam("first"), bindparam("last")))
        .values({'a "quoted": name': notes.c.id - bindparam("offset"), "share": bindparam("share")}),
        ("first", "last", "offset", "share"),
    )
    with database.write() as conn:
        add_notes.execute(conn, [note(i) for i in range(100)])

    with database.write() as conn:
        changed = renumber.execute(conn, [(10, 19, 10, 0.5), (50, 50, 7, 1.0), (200, 300, 0, 1.0)])

    assert changed == 11
    assert [row[2] for row in stored(database)[10:20]] == list(range(10))
    assert stored(database)[50][2:4] == (43, 1.0)
    assert stored(database)[20] == note(20)


def test_many_rows_are_inserted_into_a_table_of_very_many_columns(database: Database) -> None:
    names = [f"c{i}" for i in range(200)]
    wide = Table("wide", MetaData(), *[Column(name, Integer) for name in names])
    rows = [tuple(range(i, i + 200)) for i in range(1_200)]

    with database.write() as conn:
        wide.create(conn)
        inserted = Bulk(insert(wide), names).execute(conn, rows)
        stored = [tuple(row) for row in conn.execute(select(wide).order_by(wide.c.c0))]

    assert inserted == len(rows)
    assert stored == rows


def test_one_statement_works_on_sqlite_and_postgresql_in_turn(tmp_path: Path, postgres_url: str) -> None:
    with (
        closing(Database(f"sqlite:///{tmp_path}/batches.db")) as file,
        closing(Database(postgres_url)) as server,
    ):
        for database in (file, server):
            with database.write() as conn:
                notes.create(conn)
        for i in (1, 2):
            for database in (file, server):
                with database.write() as conn:
                    assert add_notes.execute(conn, [note(i)]) == 1

        assert stored(file) == stored(server) == [note(1), note(2)]


# -- numbers for new rows --------------------------------------------------------------------------------------------


def with_a_run(database: Database) -> None:
    with database.write() as conn:
        put_run(conn)


NEW = ("id", "job_id", "key", "run_id", "state", "waits", "row_hash", "recipe", "attempts")
add_requests = Bulk(insert(requests), NEW)


def new_rows(ids: list[int]) -> list[tuple[Any, ...]]:
    return [(i, 1, f'["{i}"]', 1, "pending", "source", bytes(16), "r", 0) for i in ids]


def test_new_rows_get_numbers_after_the_existing_ones(database: Database) -> None:
    with_a_run(database)

    with database.write() as conn:
        first = next_ids(conn, 3)
        add_requests.execute(conn, new_rows(first))
        second = next_ids(conn, MANY)
        add_requests.execute(conn, new_rows(second))

    assert first == [1, 2, 3]
    assert second == list(range(4, 4 + MANY))


def test_no_rows_get_no_numbers(database: Database) -> None:
    with database.write() as conn:
        assert next_ids(conn, 0) == []


def test_drivers_that_add_rows_at_the_same_time_get_different_numbers(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        with_a_run(database)

        with database.write() as one, database.write() as other:
            ones, others = next_ids(one, 5), next_ids(other, 5)
            add_requests.execute(other, new_rows(others))
            add_requests.execute(one, new_rows(ones))

        with database.read() as conn:
            assert sorted(conn.scalars(select(requests.c.id))) == sorted(ones + others)
    assert not set(ones) & set(others)


def test_a_bulk_insert_goes_to_the_schema_of_the_state(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        with_a_run(database)
        with database.write() as conn:
            add_requests.execute(conn, new_rows([7]))
            found = conn.exec_driver_sql("SELECT id FROM batch_pipeline.requests").scalars().all()

    assert found == [7]


def test_rows_copied_twice_in_one_transaction_replace_the_earlier_ones(database: Database) -> None:
    replace = _replacing(database)
    first = [note(i) for i in range(WORTH_A_COPY)]
    second = [note(i, text="replaced", share=None) for i in range(100, WORTH_A_COPY + 100)]

    with database.write() as conn:
        replace.execute(conn, first)
        changed = replace.execute(conn, second)

    assert changed == WORTH_A_COPY
    assert stored(database) == first[:100] + second


def test_a_row_that_the_table_refuses_undoes_the_whole_copy(database: Database) -> None:
    with pytest.raises((LostRace, IntegrityError)), database.write() as conn:
        add_notes.execute(conn, [*(note(i) for i in range(WORTH_A_COPY)), note(1)])

    assert stored(database) == []


def test_rows_are_stored_without_the_right_to_create_temporary_tables(postgres_url: str) -> None:
    name = make_url(postgres_url).database
    with connected(postgres_url) as admin:
        admin.execute("CREATE ROLE poor LOGIN")
        admin.execute(f"GRANT CREATE ON DATABASE {name} TO poor".encode())
        admin.execute("GRANT CREATE ON SCHEMA public TO poor")
        admin.execute(f"REVOKE TEMP ON DATABASE {name} FROM PUBLIC".encode())
    given = [note(i) for i in range(WORTH_A_COPY)]
    poor = make_url(postgres_url).set(username="poor").render_as_string(hide_password=False)

    with closing(Database(poor)) as database:
        with database.write() as conn:
            notes.create(conn)
            add_notes.execute(conn, given)
        found = stored(database)

    with connected(postgres_url) as admin:
        admin.execute("DROP OWNED BY poor")
        admin.execute("DROP ROLE poor")
    assert found == given


class Ending(list[tuple[Any, ...]]):
    """A sequence of rows that calls `happens` after the first 100 rows were read."""

    happens: Callable[[], object]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield from self[:100]
        self.happens()
        yield from self[100:]


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(insert(notes), id="into the table"),
        pytest.param(postgresql.insert(notes).on_conflict_do_nothing(), id="into a temporary table"),
    ],
)
def test_a_server_that_stops_during_a_copy_gives_one_sentence(postgres_url: str, statement: Insert) -> None:
    add_ids = Bulk(statement, ["id"])
    rows = Ending([(i,) for i in range(20 * WORTH_A_COPY)])  # more than one buffer of COPY

    with closing(Database(postgres_url)) as database:
        with database.write() as conn:
            notes.create(conn)

        def end() -> None:
            with connected(postgres_url) as admin:
                others = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE query LIKE 'COPY %'"
                admin.execute(others.encode())

        rows.happens = end
        with pytest.raises(Stopped, match="nothing half done"), database.write() as conn:
            add_ids.execute(conn, rows)

        assert stored(database) == []


def _replacing(database: Database) -> Bulk:
    """Return an insert of notes that replaces notes with the same number."""
    dialect = sqlite if database.is_sqlite else postgresql
    row: Any = dialect.insert(notes)
    replaced = {c.name: row.excluded[c.name] for c in notes.columns if not c.primary_key}
    upsert = row.on_conflict_do_update(index_elements=["id"], set_=replaced)
    return Bulk(upsert, [column.name for column in notes.columns])
