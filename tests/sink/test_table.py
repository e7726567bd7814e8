"""The results table and its history table, on SQLite and PostgreSQL."""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, Table, func, inspect, make_url, select

from pipeline.answer.outcome import Outcome
from pipeline.errors import DatabaseError, JobError
from pipeline.sink.columns import ResultColumns
from pipeline.sink.definition import check_tables, make_tables
from pipeline.sink.table import HISTORY_SLICE, Fixed, ResultsTable, columns_as_json
from pipeline.state.database import Database
from tests.support.postgres import connected

NOW = datetime.datetime(2026, 11, 20, 8, 30, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(hours=1)

BY_ID = ResultColumns({"id": "text"}, {}, {})
BY_TWO = ResultColumns({"account": "text", "ticket": "integer"}, {"opened": "date"}, {"label": "text"})


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url)) as database:
        yield database


def sink(database: Database, columns: ResultColumns, name: str = "answers", **options: Any) -> ResultsTable:
    return ResultsTable(name, columns, schema=database.default_schema, **options)


def made(
    database: Database, columns: ResultColumns = BY_ID, before: ResultColumns | None = None, **options: Any
) -> ResultsTable:
    """The results table, made or brought up as a run does it."""
    table = sink(database, columns.added_to(before), **options)
    with database.write() as conn:
        make_tables(conn, table, before)
    return table


def answer(
    table: ResultsTable, key: Sequence[Any], text: str | None = "An answer", *, at: datetime.datetime = NOW, **keep: Any
) -> tuple[Any, ...]:
    """A row of the table."""
    outcome = Outcome(
        "succeeded", text=text, values={"label": "billing"}, stop_reason="end_turn", model="m", input_tokens=3
    )
    fixed = Fixed("recipe", 0.25, 1, "nonce-0", "msgbatch_1", 1, at)
    return table.row(orjson.dumps(key).decode(), orjson.dumps(keep).decode() if keep else None, outcome, fixed)


def write(database: Database, table: ResultsTable, *rows: tuple[Any, ...]) -> None:
    with database.write() as conn:
        table.write(conn, rows)


def rows_of(database: Database, table: Table | None) -> list[dict[str, Any]]:
    assert table is not None
    with database.read() as conn:
        order = [table.c.updated_at, *list(table.columns)[:2]]
        return [dict(row._mapping) for row in conn.execute(select(table).order_by(*order))]


def texts(database: Database, table: Table | None) -> list[str | None]:
    return [row["text"] for row in rows_of(database, table)]


def tables(conn: Connection, database: Database) -> set[str]:
    return set(inspect(conn).get_table_names(schema=database.default_schema))


# -- values ----------------------------------------------------------------------------------------------------------


#: Values of each kind as JSON has them, and as the table does where that is not the same.
KINDS: dict[str, list[tuple[Any, Any]]] = {
    "text": [("plain, naïve 数 \U0001f600", None), ("", None), (None, None)],
    "integer": [(0, None), (-(2**63), None), (2**63 - 1, None), (None, None)],
    "number": [(0.1, None), (-1e300, None), (17, 17.0), (None, None)],
    "boolean": [(True, None), (False, None), (None, None)],
    "date": [("0001-01-01", datetime.date(1, 1, 1)), ("2026-11-20", datetime.date(2026, 11, 20)), (None, None)],
    "datetime": [
        ("2026-11-20T10:30:05.123456", datetime.datetime(2026, 11, 20, 10, 30, 5, 123456)),  # noqa: DTZ001  # as kept
        ("2026-11-20T10:30:05+02:00", datetime.datetime(2026, 11, 20, 8, 30, 5)),  # noqa: DTZ001  # UTC without a zone
        (None, None),
    ],
    "json": [({"a": [1, None, "\x00"]}, '{"a":[1,null,"\\u0000"]}'), ([], "[]"), ("text", None), (None, None)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_each_kind_are_read_back_unchanged(database: Database, kind: str) -> None:
    table = made(database, ResultColumns({"id": "integer"}, {"kept": kind}, {}))
    given = KINDS[kind]

    write(database, table, *[answer(table, [i], kept=value) for i, (value, _) in enumerate(given)])

    expected = [value if stored is None else stored for value, stored in given]
    found = [row["kept"] for row in rows_of(database, table.table)]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize("kind", ["text", "integer", "number", "boolean", "date", "datetime"])
def test_a_key_of_each_kind_identifies_its_row(database: Database, kind: str) -> None:
    table = made(database, ResultColumns({"id": kind}, {}, {}, history=True))
    keys = [value for value, _ in KINDS[kind] if value is not None]
    write(database, table, *[answer(table, [key], "first") for key in keys])

    write(database, table, *[answer(table, [key], "second", at=LATER) for key in keys])

    assert texts(database, table.table) == ["second"] * len(keys)
    assert texts(database, table.history) == ["first"] * len(keys)


def test_what_the_pipeline_knows_of_an_answer_is_stored_with_it(database: Database) -> None:
    table = made(database, BY_TWO)

    write(database, table, answer(table, ["acme", 17], opened="2026-11-01"))

    (row,) = rows_of(database, table.table)
    source = {"account": "acme", "ticket": 17, "opened": datetime.date(2026, 11, 1)}
    said = {"label": "billing", "text": "An answer", "stop_reason": "end_turn", "model": "m"}
    ended = {"status": "succeeded", "error_type": None, "error_message": None, "attempts": 1, "cost_usd": 0.25}
    used = {"input_tokens": 3, "output_tokens": 0, "cache_read_tokens": 0, "cache_write_tokens": 0}
    sent = {"recipe": "recipe", "custom_id": "nonce-0", "batch_id": "msgbatch_1", "run_id": 1, "updated_at": NOW}
    assert row == {**source, **said, **ended, **used, **sent}


def test_a_nul_is_replaced_on_postgresql(database: Database) -> None:
    table = made(database, ResultColumns({"id": "text"}, {"kept": "text"}, {}))

    write(database, table, answer(table, ["a\x00b"], "An\x00swer", kept="\x00"))
    with database.write() as conn:
        table.update_keep(conn, [('["a\\u0000b"]', '{"kept": "new\\u0000"}')])

    (row,) = rows_of(database, table.table)
    nul = "\x00" if database.is_sqlite else "\ufffd"
    assert (row["id"], row["text"], row["kept"]) == (f"a{nul}b", f"An{nul}swer", f"new{nul}")


def test_column_names_may_have_any_characters(database: Database) -> None:
    odd = ["100% sure", 'a "quoted" one', "a:b", "%(x)s", "select", "Größe", "back\\slash"]
    before = ResultColumns({"the key": "text"}, {}, {})
    made(database, before)
    columns = ResultColumns({"the key": "text"}, dict.fromkeys(odd, "text"), {}, history=True)
    table = made(database, columns, before)

    write(database, table, answer(table, ["a"], "An answer", at=NOW, **dict.fromkeys(odd, "first")))
    write(database, table, answer(table, ["a"], "An answer", at=NOW, **dict.fromkeys(odd, "second")))
    with database.write() as conn:
        table.update_keep(conn, [('["a"]', orjson.dumps(dict.fromkeys(odd, "third")).decode())])

    (now,), (replaced,) = rows_of(database, table.table), rows_of(database, table.history)
    assert [now[name] for name in odd] == ["third"] * len(odd)
    assert [replaced[name] for name in odd] == ["first"] * len(odd)


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_new_answer_takes_the_place_of_the_one_with_its_key(database: Database) -> None:
    table = made(database)
    write(database, table, answer(table, ["a"], "first"), answer(table, ["b"], "stays"))

    write(database, table, answer(table, ["c"], "enters", at=LATER), answer(table, ["a"], "second", at=LATER))

    assert texts(database, table.table) == ["stays", "second", "enters"]


def test_the_last_of_two_answers_with_one_key_in_one_write_stays(database: Database) -> None:
    table = made(database)

    write(database, table, answer(table, ["a"], "first"), answer(table, ["b"]), answer(table, ["a"], "second"))

    assert sorted(texts(database, table.table), key=str) == ["An answer", "second"]


def test_kept_columns_are_updated_without_the_answer(database: Database) -> None:
    columns = ResultColumns({"id": "text"}, {"opened": "date", "once": "text"}, {}, history=True)
    table = made(database, columns, kept_today=["opened"])
    write(database, table, *[answer(table, [f"r{i}"], opened="2026-11-01", once="x") for i in range(3)])

    with database.write() as conn:
        table.update_keep(conn, [('["r0"]', '{"opened": "2026-12-24"}'), ('["r2"]', '{"opened": null}')])

    found = {row["id"]: (row["opened"], row["once"], row["text"]) for row in rows_of(database, table.table)}
    assert found == {
        "r0": (datetime.date(2026, 12, 24), "x", "An answer"),
        "r1": (datetime.date(2026, 11, 1), "x", "An answer"),
        "r2": (None, "x", "An answer"),
    }
    assert rows_of(database, table.history) == []


def test_a_table_without_kept_columns_is_not_updated(database: Database) -> None:
    table = made(database)
    write(database, table, answer(table, ["a"]))

    with database.write() as conn:
        table.update_keep(conn, [('["a"]', None)])

    assert texts(database, table.table) == ["An answer"]


# -- history ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [BY_ID, BY_TWO], ids=["one key column", "two key columns"])
def test_an_answer_that_gets_replaced_moves_to_the_history(database: Database, columns: ResultColumns) -> None:
    table = made(database, replace(columns, history=True))
    keys = [["a", 1][: len(columns.key)], ["a", 2][: len(columns.key)], ["b", 1][: len(columns.key)]]
    write(database, table, answer(table, keys[0], "first"), answer(table, keys[2], "stays"))
    before = rows_of(database, table.table)

    write(database, table, answer(table, keys[0], "second", at=LATER))

    assert texts(database, table.table) == ["stays", "second"]
    (moved,) = rows_of(database, table.history)
    (first,) = [row for row in before if row["text"] == "first"]
    assert moved == {**first, "replaced_at": LATER}


def test_a_first_answer_adds_nothing_to_the_history(database: Database) -> None:
    table = made(database, replace(BY_TWO, history=True))

    write(database, table, *[answer(table, ["acme", i]) for i in range(10)])

    assert rows_of(database, table.history) == []


def test_each_replaced_answer_is_kept_whatever_their_number(database: Database) -> None:
    table = made(database, replace(BY_TWO, history=True))
    many = 2 * HISTORY_SLICE + 1
    for number in range(3):
        write(database, table, *[answer(table, [f"k{i}", i], f"answer {number}") for i in range(many)])

    with database.read() as conn:
        assert table.history is not None
        counts = select(table.history.c.text, func.count()).group_by(table.history.c.text)
        assert {row[0]: row[1] for row in conn.execute(counts)} == {"answer 0": many, "answer 1": many}
    assert texts(database, table.table) == ["answer 2"] * many


def test_an_answer_and_its_place_in_the_history_are_one_transaction(database: Database) -> None:
    table = made(database, replace(BY_ID, history=True))
    write(database, table, answer(table, ["a"], "first"))

    def write_and_die() -> None:
        with database.write() as conn:
            table.write(conn, [answer(table, ["a"], "second")])
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_and_die()
    assert texts(database, table.table) == ["first"]
    assert rows_of(database, table.history) == []


def test_history_is_written_only_while_it_is_switched_on(database: Database) -> None:
    off, on = BY_ID, replace(BY_ID, history=True)
    before: ResultColumns | None = None
    for number, columns in enumerate([off, on, on, off, on]):
        table = made(database, columns, before)
        write(database, table, answer(table, ["a"], f"answer {number}", at=NOW + datetime.timedelta(hours=number)))
        before = table.columns

    assert texts(database, table.history) == ["answer 0", "answer 1", "answer 3"]
    assert texts(database, table.table) == ["answer 4"]


def test_without_history_there_is_no_table_for_it(database: Database) -> None:
    table = made(database)

    with database.read() as conn:
        assert table.table.name in tables(conn, database)
        assert "answers_history" not in tables(conn, database)


def test_a_history_table_of_another_program_is_refused_and_left_unchanged(database: Database) -> None:
    made(database, ResultColumns({"id": "text"}, {}, {}), name="answers_history")

    with pytest.raises(DatabaseError, match=r"sink.history: table 'answers_history' exists and was not made by this"):
        made(database, replace(BY_ID, history=True))

    with database.read() as conn:
        assert "answers" not in tables(conn, database)


def test_a_history_table_that_was_dropped_is_created_again(database: Database) -> None:
    on = replace(BY_ID, history=True)
    first = made(database, on)
    assert first.history is not None
    with database.write() as conn:
        first.history.drop(conn)

    again = made(database, on, first.columns)

    write(database, again, answer(again, ["a"], "first"))
    write(database, again, answer(again, ["a"], "second"))
    assert texts(database, again.history) == ["first"]


def test_a_column_named_like_the_history_column_is_refused(database: Database) -> None:
    before = ResultColumns({"id": "text"}, {"Replaced_At": "text"}, {})
    made(database, before)

    with pytest.raises(JobError, match="column 'Replaced_At' clashes with a column of the history table"):
        made(database, replace(BY_ID, history=True), before)


# -- the columns of today --------------------------------------------------------------------------------------------


def test_columns_are_added_and_never_removed(database: Database) -> None:
    before = ResultColumns({"id": "text"}, {"opened": "date"}, {}, history=True)
    first = made(database, before)
    write(database, first, answer(first, ["a"], "first", opened="2026-11-01"))

    today = ResultColumns({"id": "text"}, {"team": "text"}, {"label": "text"}, history=True)
    second = made(database, today, before, kept_today=["team"])
    write(database, second, answer(second, ["b"], "other", team="red"))
    write(database, second, answer(second, ["a"], "second", team="blue", at=LATER))

    found = {row["id"]: (row["opened"], row["team"], row["label"]) for row in rows_of(database, second.table)}
    assert found == {"a": (None, "blue", "billing"), "b": (None, "red", "billing")}
    (moved,) = rows_of(database, second.history)
    assert (moved["text"], moved["opened"], moved["team"]) == ("first", datetime.date(2026, 11, 1), None)


@pytest.mark.parametrize(
    ("kinds", "values", "found"),
    [
        (("integer", "number"), (17, 0.5), (17.0, 0.5)),
        (("number", "integer"), (0.5, 17), (0.5, 17.0)),
        (("integer", "text"), (17, "many"), ("17", "many")),
        (("text", "integer"), ("many", 17), ("many", "17")),
        (("date", "text"), ("2026-11-20", "today"), ("2026-11-20", "today")),
    ],
)
def test_a_kept_column_takes_values_of_another_kind_than_before(
    database: Database, kinds: tuple[str, str], values: tuple[Any, Any], found: tuple[Any, Any]
) -> None:
    was, now = (ResultColumns({"id": "text"}, {"kept": kind}, {}, history=True) for kind in kinds)
    first = made(database, was)
    write(database, first, answer(first, ["a"], kept=values[0]))

    second = made(database, now, first.columns)
    write(database, second, answer(second, ["b"], kept=values[1]))
    write(database, second, answer(second, ["b"], kept=values[1], at=LATER))

    kept = [row["kept"] for row in rows_of(database, second.table)]
    if database.is_sqlite and kinds[0] == "integer":  # a column of SQLite that once was one of integers turns them back
        kept = [type(found[0])(kept[0]), kept[1]]
    assert kept == list(found)
    assert [row["kept"] for row in rows_of(database, second.history)] == [found[1]]


def test_columns_that_an_older_version_stored_have_no_history() -> None:
    older: dict[str, Any] = {"key": {"id": "text"}, "keep": {}, "output": {"label": "text"}}

    columns = ResultColumns(**older)

    assert not columns.history
    assert columns == ResultColumns(**orjson.loads(orjson.dumps(columns_as_json(columns))))


def test_a_column_once_kept_that_clashes_with_a_new_one_is_refused() -> None:
    before = ResultColumns({"id": "text"}, {"Label": "text"}, {})
    today = ResultColumns({"id": "text"}, {"source_label": "text"}, {"label": "text"})

    with pytest.raises(JobError, match="'Label' clashes with the output column; give the job and sink"):
        today.added_to(before)


# -- tables that are not ours ----------------------------------------------------------------------------------------


def test_a_table_that_exists_already_is_refused(database: Database) -> None:
    made(database)

    with pytest.raises(DatabaseError, match="table 'answers' exists and was not made by this job; choose another name"):
        made(database)


def test_a_missing_table_is_refused(database: Database) -> None:
    table = made(database)
    with database.write() as conn:
        table.table.drop(conn)

    with pytest.raises(DatabaseError, match="table 'answers' does not exist any more, and paid answers were in it"):
        made(database, before=table.columns)


def test_a_table_of_the_same_name_in_another_schema_is_ignored(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        with database.write() as conn:
            conn.exec_driver_sql("CREATE SCHEMA team")
            conn.exec_driver_sql("CREATE TABLE team.answers (theirs TEXT)")

        table = made(database)
        write(database, table, answer(table, ["a"]))

        assert table.table.schema == "public"
        assert texts(database, table.table) == ["An answer"]


def test_a_table_stays_in_the_schema_in_which_it_was_created(postgres_url: str) -> None:
    on = replace(BY_ID, history=True)
    with closing(Database(postgres_url)) as mine:
        first = made(mine, on)
        write(mine, first, answer(first, ["a"], "first"))
    name = make_url(postgres_url).database
    with connected(postgres_url) as admin:  # a driver of another user, who has a schema of his own
        admin.execute(f"CREATE SCHEMA his; ALTER DATABASE {name} SET search_path TO his, public".encode())

    with closing(Database(postgres_url)) as his:
        again = made(his, on, ResultColumns(**columns_as_json(first.columns)))
        write(his, again, answer(again, ["a"], "second"))

        assert his.default_schema == "his"
        assert texts(his, first.table) == ["second"]
        assert texts(his, first.history) == ["first"]


@pytest.mark.parametrize(
    ("columns", "name", "said"),
    [
        (
            ResultColumns({"k" * 64: "text"}, {}, {}),
            "answers",
            "source.key: .*'kkk.*' is longer than .*; rename it in the source",
        ),
        (
            ResultColumns({"id": "text"}, {"数" * 22: "text"}, {}),
            "answers",
            "source.keep: .* keep it under another name",
        ),
        (
            ResultColumns({"id": "text"}, {"xmin": "text"}, {}),
            "answers",
            "column 'xmin' has the name of a PostgreSQL system column",
        ),
        (
            replace(BY_ID, history=True),
            "a" * 60,
            "sink.history: the name 'aaa.*_history",
        ),
    ],
    ids=["long key", "long kept column", "PostgreSQL's own", "long history table"],
)
def test_names_that_postgresql_cannot_have_are_refused(
    postgres_url: str, columns: ResultColumns, name: str, said: str
) -> None:
    with closing(Database(postgres_url)) as database, database.read() as conn:
        table = sink(database, columns, name)

        with pytest.raises(DatabaseError, match=said):
            check_tables(conn, table, None)


def test_the_longest_names_of_postgresql_work(postgres_url: str) -> None:
    columns = ResultColumns({"k" * 63: "text", "数" * 21: "text"}, {"v" * 63: "text"}, {}, history=True)
    with closing(Database(postgres_url)) as database:
        table = made(database, columns, name="a" * 55)
        write(database, table, answer(table, ["a", "b"], "first"))
        write(database, table, answer(table, ["a", "b"], "second"))

        assert texts(database, table.history) == ["first"]
