"""Waiting rows are found by `waits`, which partial indexes name, so that an outcome changes no indexed column."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import Table, event, select, text, update
from sqlalchemy.exc import IntegrityError

from pipeline.errors import LostRace
from pipeline.state.batches import BATCH_COLUMNS, Batch, batch_of
from pipeline.state.database import Connection, Database
from pipeline.state.migrations import FILLED, SCHEMA
from pipeline.state.new_rows import NewRows, insert_new_rows
from pipeline.state.rows import (
    BEFORE_ALL,
    Settled,
    any_waiting,
    mark_outcomes,
    needed_bodies,
    rows_to_send_again,
    stand,
    unneeded_bodies,
)
from pipeline.state.runs import has_work, rows_for_planning
from pipeline.state.tables import batches, jobs, requests, runs
from pipeline.states import RowState
from tests.state.test_database import bring_to, make_first_version, plain, reflected
from tests.support.records import put_batch, put_run

ENDED = {"state": "ended", "requests": 3, "rows": 3, "api_id": "msgbatch_1"}
ROWS = 40


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with a batch whose rows are in flight at the positions 0 to ROWS - 1."""
    with closing(Database(database_url)) as database:
        with database.write() as conn:
            put_run(conn)
            put_batch(conn, **ENDED)
            hashes = [bytes([i]) * 16 for i in range(ROWS)]
            new = NewRows([f'["{i}"]' for i in range(ROWS)], [None] * ROWS, hashes, hashes, list(range(ROWS)))
            insert_new_rows(conn, new, job_id=1, run_id=1, recipe="r", batch=1)
        yield database


def the_batch(conn: Connection) -> Batch:
    return batch_of(conn.execute(select(*BATCH_COLUMNS)).one())


def settle(conn: Connection, how: Settled) -> None:
    """Give all rows in flight this end."""
    numbers = list(conn.scalars(select(requests.c.id).where(requests.c.state == RowState.IN_FLIGHT)))
    mark_outcomes(conn, the_batch(conn), 0, ROWS - 1, {how: numbers})


def waits_of(conn: Connection) -> set[tuple[str, str | None]]:
    return {(row.state, row.waits) for row in conn.execute(select(requests.c.state, requests.c.waits))}


AGAIN = Settled("errored", "api_error", again=True)
NOT_COUNTED = Settled("errored", "billing_error", again=True, counts=False)
SUCCEEDED = Settled("succeeded", None, again=False)


@pytest.mark.parametrize(
    ("how", "then"),
    [
        pytest.param(SUCCEEDED, ("succeeded", None), id="an outcome"),
        pytest.param(AGAIN, ("pending", "spool"), id="sent again"),
        pytest.param(NOT_COUNTED, ("pending", "spool"), id="refused with its account"),
    ],
)
def test_only_a_row_that_is_sent_again_waits(database: Database, how: Settled, then: tuple[str, str | None]) -> None:
    with database.write() as conn:
        settle(conn, how)

        assert waits_of(conn) == {then}


def test_a_row_of_a_batch_without_a_body_waits_for_the_source(database: Database) -> None:
    with database.write() as conn:
        conn.execute(update(requests).values(body_id=None, body_n=None))
        settle(conn, AGAIN)

        assert waits_of(conn) == {("pending", "source")}


def test_a_row_that_returns_to_its_outcome_waits_no_more(database: Database) -> None:
    with database.write() as conn:
        settle(conn, AGAIN)
        stand(conn, 1)

        assert waits_of(conn) == {("errored", None)}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"state": "pending", "batch_id": None}, id="pending without it"),
        pytest.param({"waits": "spool"}, id="in flight with it"),
        pytest.param({"state": "pending", "batch_id": None, "waits": "source"}, id="for the source, with a body"),
        pytest.param({"state": "pending", "batch_id": None, "waits": "rain"}, id="unknown"),
    ],
)
def test_the_database_refuses_a_wrong_waits(database: Database, wrong: dict[str, Any]) -> None:
    with pytest.raises((IntegrityError, LostRace)), database.write() as conn:
        conn.execute(update(requests).where(requests.c.n == 0).values(**wrong))


@pytest.mark.parametrize("table", [jobs, runs, batches], ids=lambda table: table.name)
def test_the_database_refuses_to_remove_what_a_row_in_flight_belongs_to(database: Database, table: Table) -> None:
    with pytest.raises(IntegrityError), database.write() as conn:
        conn.execute(table.delete())


# -- indexes ---------------------------------------------------------------------------------------------------------


def indexed_columns() -> set[str]:
    """Return the columns that the indexes of `requests` name, as columns or in their conditions."""
    named = {column.name for index in requests.indexes for column in index.columns} | {"id", "job_id", "key"}
    for index in requests.indexes:
        named |= set(re.findall(r"[a-z_]+", str(index.dialect_options["sqlite"]["where"])))
    return named & set(requests.c.keys())


def test_an_outcome_changes_no_column_that_an_index_names(database: Database) -> None:
    changed: list[str] = []

    with database.write() as conn:

        @event.listens_for(conn, "before_cursor_execute")
        def see(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            found = re.match(r"UPDATE \S*requests SET (.*) WHERE", statement, re.DOTALL)
            if found:
                changed.extend(re.findall(r"(?:^|, )(\w+)=", found[1]))

        settle(conn, SUCCEEDED)

    assert {"state", "outcome", "attempts"} <= set(changed)
    assert set(changed) & indexed_columns() == set()


def test_postgresql_changes_rows_in_place_with_their_outcome(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        with database.write() as conn:
            put_run(conn)
            put_batch(conn, **ENDED)
            n = 2_000
            hashes = [i.to_bytes(16, "big") for i in range(n)]
            new = NewRows([f'["{i:08}"]' for i in range(n)], [None] * n, hashes, hashes, list(range(n)))
            numbers = insert_new_rows(conn, new, job_id=1, run_id=1, recipe="0" * 64, batch=1)
        with database.write() as conn:
            mark_outcomes(conn, the_batch(conn), 0, n - 1, {SUCCEEDED: numbers})
            of = f"'{SCHEMA}.requests'::regclass"
            query = f"SELECT pg_stat_get_xact_tuples_hot_updated({of}), pg_stat_get_xact_tuples_updated({of})"
            in_place, all_of_them = conn.exec_driver_sql(query).one()

    assert all_of_them == n
    assert in_place == n


QUERIES: dict[str, tuple[Callable[[Connection], Any], str]] = {
    "any row of the job": (lambda conn: any_waiting(conn, 1), "ix_requests_waiting"),
    "rows to send again": (lambda conn: rows_to_send_again(conn, 1, after=BEFORE_ALL, limit=9), "ix_requests_"),
    "bodies to keep": (lambda conn: needed_bodies(conn, 1), "ix_requests_body"),
    "bodies to remove": (lambda conn: unneeded_bodies(conn, 1), "ix_requests_body"),
    "work of the run": (lambda conn: has_work(conn, 1), "ix_requests_"),
    "rows for planning": (lambda conn: rows_for_planning(conn, 1), "ix_requests_waiting"),
    "rows of a retry": (lambda conn: stand(conn, 1), "ix_requests_waiting"),
}


@pytest.mark.parametrize("name", QUERIES)
def test_waiting_rows_are_found_by_a_partial_index(database: Database, name: str) -> None:
    asks, index = QUERIES[name]
    asked: list[tuple[str, Any]] = []
    with database.write() as conn:
        event.listen(
            conn, "before_cursor_execute", lambda _c, _u, statement, given, *_: asked.append((statement, given))
        )
        asks(conn)
        plans = []
        for statement, given in [*asked]:
            if "requests" in statement and "waits" in statement:
                plans.append(plan(conn, database, statement, given))

    assert plans
    assert all(index in each for each in plans), plans


def plan(conn: Connection, database: Database, statement: str, given: Any) -> str:
    """Return how the database would execute a statement."""
    if database.is_sqlite:
        return "\n".join(str(row) for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given))
    conn.exec_driver_sql("SET LOCAL enable_seqscan = off")  # the table is too small for any index to be worth it
    conn.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
    return "\n".join(str(row) for row in conn.exec_driver_sql(f"EXPLAIN {statement}", given))


# -- the upgrade -----------------------------------------------------------------------------------------------------


def test_an_upgrade_notes_what_pending_rows_wait_for(database_url: str) -> None:
    make_first_version(database_url)
    bring_to(database_url, "0007")
    with plain(database_url) as conn:
        old = reflected(conn, "requests")
        ids = list(conn.scalars(select(old.c.id).order_by(old.c.id)))
        free = {"batch_id": None, "n": None, "state": "pending"}
        conn.execute(update(old).where(old.c.id == ids[0]).values(**free, body_id=1, body_n=0))
        conn.execute(update(old).where(old.c.id == ids[1]).values(**free, body_id=None, body_n=None))

    with closing(Database(database_url)) as upgraded, upgraded.read() as conn:
        seen = {row.id: row for row in conn.execute(select(requests.c.id, requests.c.state, requests.c.waits))}

    assert (seen[ids[0]].waits, seen[ids[1]].waits) == ("spool", "source")
    assert all((row.state == "pending") == (row.waits is not None) for row in seen.values())


@pytest.mark.parametrize("older", [False, True], ids=["new", "of an older version"])
def test_postgresql_leaves_room_for_the_second_version_of_a_row(postgres_url: str, *, older: bool) -> None:
    if older:
        make_first_version(postgres_url)

    Database(postgres_url).close()

    with plain(postgres_url) as conn:
        query = text("SELECT reloptions FROM pg_class WHERE oid = CAST(:name AS regclass)")
        options = conn.scalar(query, {"name": f"{SCHEMA}.requests"})
    assert options == [f"fillfactor={FILLED}"]
