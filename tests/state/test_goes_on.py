"""A database that an earlier version made, in the middle of a run, is gone on with: nothing is lost or sent again.

database_0007.json is such a database: its tables' definitions for both kinds of database, its rows, and its spool. It
was made when three rows had their answers, two were at the API, and two were planned.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Column, Connection, DateTime, LargeBinary, MetaData, Table, inspect, select, text, update
from sqlalchemy.types import NullType, TypeEngine

from pipeline.state.migrations import SCHEMA
from pipeline.state.tables import batches
from pipeline.states import BatchState
from tests.conftest import TurnedDatabase, World, texts

POSTGRESQL_IS_LONG = True

MADE = json.loads((Path(__file__).parent / "database_0007.json").read_text(encoding="utf-8"))
TYPES: dict[str | None, TypeEngine[Any]] = {"time": DateTime(), "bytes": LargeBinary(), "json": JSON(none_as_null=True)}


def kind_of(value: object) -> str | None:
    """The kind that a stored value is marked with; None for one that JSON has as it is."""
    return next(iter(value)) if isinstance(value, dict) else None


def plain(value: Any) -> Any:
    """A stored value as it was in the database."""
    kind = kind_of(value)
    if kind == "time":
        return datetime.fromisoformat(value[kind]).replace(tzinfo=None)
    if kind == "bytes":
        return bytes.fromhex(value[kind])
    return value[kind] if kind == "json" else value


def fill(conn: Connection, name: str, rows: list[dict[str, Any]], schema: str | None) -> None:
    """Insert the stored rows into a table that is there."""
    kinds = {column: kind_of(value) for row in rows for column, value in row.items() if kind_of(value)}
    columns: list[Column[Any]] = [Column(column, TYPES.get(kinds.get(column), NullType())) for column in rows[0]]
    table = Table(name, MetaData(), *columns, schema=schema)
    conn.execute(table.insert(), [{column: plain(value) for column, value in row.items()} for row in rows])


@pytest.fixture
def made_before(world: World) -> World:
    """A world whose database and spool are the stored ones, and whose emulator has the batch that is at the API."""
    in_folder = json.loads(json.dumps(MADE).replace("{folder}", str(world.folder)))
    schema = None if world.database.is_sqlite else SCHEMA
    (job,) = in_folder["tables"]["jobs"]
    job["spool"] = world.spool
    job["columns"]["json"]["schema"] = world.database.default_schema
    with world.database.write() as conn:
        kind = conn.dialect.name
        if schema is not None:
            conn.execute(text(f"DROP SCHEMA {schema} CASCADE"))
            conn.execute(text(f"CREATE SCHEMA {schema}"))
            conn.execute(text(f"SET LOCAL search_path TO {schema}"))
        else:
            for name in inspect(conn).get_table_names():
                conn.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
                conn.exec_driver_sql(f"DROP TABLE {name}")
        for statement in in_folder["ddl"][kind]:
            conn.exec_driver_sql(statement)
        for name, rows in in_folder["tables"].items():
            fill(conn, name, rows, schema)
        if schema is not None:
            conn.execute(text(f"SET LOCAL search_path TO {world.database.default_schema}"))
        conn.exec_driver_sql(in_folder["ddl"][f"answers_{kind}"])
        fill(conn, "answers", in_folder["answers"], world.database.default_schema)
    for name, body in in_folder["spool"].items():
        path = world.folder / "spool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
    world.rows(texts(7))
    world.database.close()
    world.database = TurnedDatabase(world.database.url.render_as_string(hide_password=False), world.clock)
    return world


def at_the_api(world: World) -> None:
    """Let the emulator have the batch that the database has in progress. Its id there is the emulator's own."""
    with world.database.write() as conn:
        here = batches.c.state == BatchState.IN_PROGRESS
        nonce = conn.scalar(select(batches.c.nonce).where(here))
        body = (world.folder / "spool" / "summaries" / f"{nonce}.json").read_bytes()
        created = world.client().messages.batches.create(requests=json.loads(body)["requests"])
        conn.execute(update(batches).where(here).values(api_id=created.id, created_at=created.created_at))


def test_a_run_in_the_middle_goes_on_from_a_database_of_an_earlier_version(made_before: World) -> None:
    at_the_api(made_before)
    before = made_before.answers()

    finished = made_before.run(made_before.job(limits={"max_batch_requests": 2}))

    assert made_before.batch_states() == ["collected"] * 4
    assert (finished.run_id, finished.state, finished.rows) == (2, "finished", {"succeeded": 4})
    assert {key: made_before.answers()[key] for key in before} == before
    assert made_before.statuses() == {f"r{i}": "refused" if i == 2 else "succeeded" for i in range(7)}
    assert made_before.accepted() == 4
    assert made_before.sent_twice() == []


def test_a_batch_of_an_earlier_version_that_the_api_does_not_know_is_lost_and_the_planned_one_is_sent(
    made_before: World,
) -> None:
    finished = made_before.run(made_before.job(limits={"max_batch_requests": 2}))

    assert (finished.state, finished.rows) == ("finished", {"lost": 2, "succeeded": 2})
    assert made_before.batch_states() == ["collected", "collected", "lost", "collected"]
    assert made_before.sent_twice() == []
