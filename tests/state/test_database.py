"""The state database: its creation, its upgrade, refused databases, and errors as sentences."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, Table, create_engine, func, insert, inspect, make_url, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.sql.base import Executable

from pipeline.errors import DatabaseError, LostRace, Stopped
from pipeline.state import database, migrations
from pipeline.state.batches import smallest_too_large
from pipeline.state.database import Database
from pipeline.state.migrations import HEAD, SCHEMA
from pipeline.state.tables import accounts, batches, jobs, leases, metadata, requests, runs, sendings
from pipeline.state.tallies import run_counts
from tests.support.postgres import connected, own_server, url_of

THEN = datetime(2026, 11, 20, 8, 30)  # noqa: DTZ001  # as the columns have it: UTC without a zone


@contextmanager
def plain(url: str) -> Iterator[Connection]:
    """Open a transaction without the class Database; names without a schema are those of the state database."""
    engine = create_engine(url)
    with engine.begin() as conn:
        if engine.dialect.name == "postgresql":
            conn.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            conn.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")
        yield conn
    engine.dispose()


def version(url: str) -> str | None:
    with plain(url) as conn:
        found: str | None = conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return found


# -- creation and upgrade --------------------------------------------------------------------------------------------


def test_a_database_is_created_once_and_then_opened_unchanged(database_url: str) -> None:
    with closing(Database(database_url)) as first:
        assert first.new

    with closing(Database(database_url)) as again:
        assert not again.new
    assert version(database_url) == HEAD


def test_a_database_exists_after_it_was_created(database_url: str) -> None:
    before = Database.exists(database_url)
    Database(database_url).close()

    assert not before
    assert Database.exists(database_url)


def test_the_migrations_give_the_same_tables_as_a_new_database(
    database_url: str,
) -> None:
    Database(database_url).close()
    made = shape(database_url)
    with plain(database_url) as conn:
        metadata.drop_all(conn)
        conn.exec_driver_sql("DELETE FROM alembic_version")  # a database from before the first version

    Database(database_url).close()

    assert shape(database_url) == made
    assert made.keys() == {*metadata.tables, "alembic_version"}
    assert version(database_url) == HEAD


def shape(url: str) -> dict[str, Any]:
    """Return the definition of each table, always in the same order."""
    with plain(url) as conn:
        seen = inspect(conn)
        schema = migrations.schema_of(conn)
        return {
            table: {
                "columns": {
                    column["name"]: (str(column["type"]), column["nullable"], column["default"])
                    for column in seen.get_columns(table, schema=schema)
                },
                "key": in_order([dict(seen.get_pk_constraint(table, schema=schema))]),
                "foreign keys": in_order(seen.get_foreign_keys(table, schema=schema)),
                "unique": in_order(seen.get_unique_constraints(table, schema=schema)),
                "checks": in_order(seen.get_check_constraints(table, schema=schema)),
                "indexes": in_order(seen.get_indexes(table, schema=schema)),
            }
            for table in seen.get_table_names(schema=schema)
        }


def in_order(parts: Any) -> list[list[tuple[str, str]]]:
    """Return constraints or indexes by name, with the condition of a partial index as text."""
    flat = [{**part, **part.get("dialect_options", {}), "dialect_options": None} for part in parts]
    return sorted(sorted((name, str(value)) for name, value in part.items()) for part in flat)


JOB = {"results_table": "answers", "columns": {"key": {"id": "text"}}, "created_at": THEN}
RUN = {"job_id": 1, "vars": {"day": "today"}, "job": {"name": "j"}, "recipe": "r", "vanished": 3, "created_at": THEN}
SIZES = {"size_bytes": 2**40, "requests": 2, "rows": 2, "cost_usd": 0.25, "downloads": 0, "wait_seconds": 1.5}
BATCH = {"job_id": 1, "run_id": 1, "account_id": 1, "recipe": "r", "digest": "d", "counts": {"succeeded": 2}, **SIZES}
SENDING = {"account_id": 1, "lease_token": 7, "started_at": THEN, "deadline": THEN}
REQUEST = {"job_id": 1, "run_id": 1, "row_hash": bytes(16), "recipe": "r", "attempts": 0}

#: Rows of version 0001; each table comes after those that it refers to.
FIRST_ROWS: dict[str, list[dict[str, Any]]] = {
    "accounts": [{"id": 1, "base_url": "https://a", "organization": "o", "workspace": "w", "emulated": False}],
    "jobs": [{"id": 1, "name": "j", **JOB}, {"id": 2, "name": "k", "file": "k.yaml", **JOB, "results_table": "others"}],
    "leases": [{"resource": "job j", "token": 7, "holder": {"pid": 1}, "expires_at": THEN}],
    "runs": [{"id": 1, "state": "open", **RUN}],
    "batches": [
        {"id": i, "state": state, "api_id": api_id, "nonce": f"n{i}", "created_at": THEN, "due_at": THEN, **BATCH}
        for i, state, api_id in [(1, "in_progress", "msgbatch_1"), (2, "submitting", None), (4, "dropped", None)]
    ],
    "sendings": [
        {"id": 1, "batch_id": 1, "end": "accepted", "api_id": "msgbatch_1", **SENDING},
        {"id": 2, "batch_id": 2, "end": None, **SENDING},
    ],
    "requests": [
        {"id": i, "key": f'["{i}"]', "state": state, "batch_id": batch, "n": i, "body_id": batch, **REQUEST}
        for i, state, batch in [(1, "in_flight", 1), (2, "in_flight", 2), (3, "pending", None), (9, "succeeded", 1)]
    ],
}


def make_first_version(url: str) -> dict[str, list[dict[str, Any]]]:
    """Create a database of version 0001, fill it, and return its rows."""
    bring_to(url, "0001")
    with plain(url) as conn:
        for name, rows in FIRST_ROWS.items():
            for row in rows:
                conn.execute(insert(reflected(conn, name)).values(row))
    return rows_of(url)


def bring_to(url: str, revision: str) -> None:
    """Create the current tables, or upgrade an older database."""
    with plain(url) as conn:
        config = Config(attributes={"connection": conn})
        config.set_main_option("script_location", "pipeline.state:migrations")
        config.set_main_option("path_separator", "os")
        command.upgrade(config, revision)


def reflected(conn: Connection, name: str) -> Table:
    return Table(name, MetaData(), autoload_with=conn, schema=migrations.schema_of(conn))


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of all tables with the columns that the tables have now."""
    with plain(url) as conn:
        tables = {name: reflected(conn, name) for name in FIRST_ROWS}
        return {
            name: [dict(row._mapping) for row in conn.execute(select(table).order_by(table.columns[0]))]
            for name, table in tables.items()
        }


def test_an_older_database_is_upgraded_with_all_its_rows(database_url: str) -> None:
    before = make_first_version(database_url)

    with closing(Database(database_url)) as upgraded:
        assert not upgraded.new
        with upgraded.read() as conn:
            assert run_counts(conn, 1) == {"in_flight": 2, "pending": 1, "succeeded": 1}

    after = rows_of(database_url)
    before["leases"][0]["token"] += 1  # the holder from before the upgrade can write nothing more
    for table, rows in before.items():
        kept = [{name: value for name, value in row.items() if name != "lease_token"} for row in rows]
        assert [{name: now[name] for name in row} for row, now in zip(kept, after[table], strict=True)] == kept
    assert all(sending["driver"] == "" for sending in after["sendings"])
    assert all(batch["claim"] == 0 and batch["cancel"] is False for batch in after["batches"])
    assert version(database_url) == HEAD


def test_an_upgraded_database_accepts_the_same_values_as_a_new_one(database_url: str) -> None:
    make_first_version(database_url)

    with closing(Database(database_url)) as upgraded:
        with upgraded.write() as conn:
            conn.execute(update(batches).where(batches.c.id == 1).values(state="lost"))
            conn.execute(update(sendings).where(sendings.c.id == 2).values(end="twin"))
        with pytest.raises((IntegrityError, LostRace)), upgraded.write() as conn:
            conn.execute(update(batches).where(batches.c.id == 2).values(state="elsewhere"))
        with pytest.raises(IntegrityError), upgraded.write() as conn:
            conn.execute(update(requests).where(requests.c.id == 1).values(batch_id=77))


def test_sentences_of_an_older_version_become_reasons(database_url: str) -> None:
    make_first_version(database_url)
    bring_to(database_url, "0005")
    with plain(database_url) as conn:
        theirs = reflected(conn, "batches")
        for number, problem in [
            (1, "it was sent by another account; run with that account's key"),
            (2, "502 Bad Gateway"),
            (4, "the API finds it too large: its rows go in smaller batches"),
        ]:
            conn.execute(update(theirs).where(theirs.c.id == number).values(problem=problem))

    with closing(Database(database_url)) as upgraded, upgraded.read() as conn:
        read = conn.execute(select(batches.c.reason, batches.c.problem).order_by(batches.c.id)).all()
        smallest = smallest_too_large(conn, 1)

    assert [tuple(row) for row in read] == [("other_account", None), (None, "502 Bad Gateway"), ("too_large", None)]
    assert smallest == 2


def test_runs_that_ended_under_an_older_version_are_not_announced_again(database_url: str) -> None:
    make_first_version(database_url)
    bring_to(database_url, "0005")
    with plain(database_url) as conn:
        theirs = reflected(conn, "runs")
        conn.execute(update(theirs).values(state="incomplete", reason="budget", ended_at=THEN))

    with closing(Database(database_url)) as upgraded, upgraded.read() as conn:
        announced = conn.scalars(select(runs.c.announced_at)).all()

    assert announced == [THEN.replace(tzinfo=UTC)]


def test_a_failed_upgrade_leaves_a_sqlite_database_unchanged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/batches.db"
    make_first_version(url)
    with plain(url) as conn:  # foreign keys are off here, so that a row can name a missing batch
        conn.exec_driver_sql("UPDATE requests SET batch_id = 77 WHERE id = 2")
    before, tables = rows_of(url), shape(url)

    with pytest.raises(DatabaseError, match=r"row 2 of requests names a row of batches that is not there; nothing"):
        Database(url)

    assert (rows_of(url), shape(url), version(url)) == (before, tables, "0001")


def test_a_failed_upgrade_leaves_a_postgresql_database_unchanged(postgres_url: str) -> None:
    make_first_version(postgres_url)
    with plain(postgres_url) as conn:  # the upgrade cannot change the last table but one
        conn.exec_driver_sql("CREATE VIEW public.tokens AS SELECT lease_token FROM sendings")
    before, tables = rows_of(postgres_url), shape(postgres_url)

    with pytest.raises(DBAPIError, match="cannot drop column lease_token of table sendings"):
        Database(postgres_url)

    assert (rows_of(postgres_url), shape(postgres_url), version(postgres_url)) == (before, tables, "0001")


@pytest.mark.parametrize("older", [False, True], ids=["new", "of an older version"])
def test_processes_that_open_a_database_at_the_same_time_all_succeed(database_url: str, *, older: bool) -> None:
    if older:
        make_first_version(database_url)
    program = (
        "import sys; from pipeline.state.database import Database; sys.stdin.read(); print(Database(sys.argv[1]).new)"
    )
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "ignore::ResourceWarning", "-c", program, database_url],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()  # go
        said = [process.stdout.read().strip() for process in processes if process.stdout is not None]

    assert sorted(said) == (["False"] * 4 if older else ["False"] * 3 + ["True"])
    assert version(database_url) == HEAD


def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    Database(database_url).close()
    with plain(database_url) as later:
        later.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(DatabaseError, match=r"made by a newer version of batch-pipeline \(9999\)"):
        Database(database_url)


def test_foreign_tables_are_refused_and_left_unchanged(database_url: str) -> None:
    with plain(database_url) as theirs:
        theirs.exec_driver_sql("CREATE TABLE jobs (title TEXT)")

    with pytest.raises(DatabaseError, match=r"has tables that are not ours \(jobs\); give a .* by --database"):
        Database(database_url)

    with plain(database_url) as theirs:
        assert inspect(theirs).get_table_names(schema=migrations.schema_of(theirs)) == ["jobs"]


# -- PostgreSQL's schemas --------------------------------------------------------------------------------------------


def test_on_postgresql_state_has_a_schema_of_its_own(postgres_url: str) -> None:
    with connected(postgres_url) as theirs:
        theirs.execute("CREATE TABLE public.jobs (title TEXT)")

    with closing(Database(postgres_url)) as ours, ours.read() as conn:
        assert conn.execute(select(jobs)).all() == []
        assert inspect(conn).get_table_names(schema="public") == ["jobs"]
        assert set(inspect(conn).get_table_names(schema=SCHEMA)) == {*metadata.tables, "alembic_version"}
        assert ours.default_schema == "public"
        assert ours.file is None


def test_results_tables_go_to_the_first_schema_of_the_search_path_that_is_not_the_state_s(postgres_url: str) -> None:
    name = make_url(postgres_url).database
    with connected(postgres_url) as admin:  # as for a user named batch_pipeline, whose own schema comes first
        admin.execute(f"CREATE SCHEMA team; ALTER DATABASE {name} SET search_path TO {SCHEMA}, team, public".encode())

    schemas = []
    for _ in ("made", "opened again"):
        with closing(Database(postgres_url)) as opened:
            schemas.append(opened.default_schema)

    assert schemas == ["team", "team"]


def test_a_search_path_without_a_schema_for_results_is_refused(postgres_url: str) -> None:
    with connected(postgres_url) as admin:
        admin.execute("DROP SCHEMA public")

    with pytest.raises(DatabaseError, match="has no schema for results tables in its search_path; CREATE SCHEMA"):
        Database(postgres_url)


def test_a_user_without_the_right_to_create_the_schema_gets_one_sentence(postgres_url: str) -> None:
    user = f"user_{make_url(postgres_url).database}"
    theirs = make_url(postgres_url).set(username=user, password="secret").render_as_string(hide_password=False)
    with connected(postgres_url) as admin:
        admin.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'".encode())
        try:
            with pytest.raises(
                DatabaseError, match=r"permission denied for database .*; grant its user CREATE on the database"
            ):
                Database(theirs)

            admin.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {user}".encode())
            with closing(Database(theirs)) as made:
                assert made.new
        finally:
            admin.execute(f"DROP OWNED BY {user}; DROP ROLE {user}".encode())


# -- transactions ----------------------------------------------------------------------------------------------------


def new_account(name: str) -> Executable:
    return insert(accounts).values(base_url=name, organization="o", workspace="w", emulated=False)


def names(conn: Connection) -> list[str]:
    return list(conn.scalars(select(accounts.c.base_url).order_by(accounts.c.id)))


def test_a_reader_sees_the_database_at_one_moment_while_others_write(database_url: str) -> None:
    with closing(Database(database_url)) as one, closing(Database(database_url)) as other:
        with one.read() as reading:
            before = names(reading)
            with other.write() as conn:
                conn.execute(new_account("a"))
            during = names(reading)
        with one.read() as reading:
            after = names(reading)

    assert (before, during, after) == ([], [], ["a"])


def test_a_write_that_raises_writes_nothing(database_url: str) -> None:
    with closing(Database(database_url)) as ours:

        def write() -> None:
            with ours.write() as conn:
                conn.execute(new_account("a"))
                raise RuntimeError("half way")

        with pytest.raises(RuntimeError):
            write()
        with ours.read() as conn:
            assert names(conn) == []


def test_on_postgresql_commits_are_synchronous_and_readers_cannot_write(postgres_url: str) -> None:
    name = make_url(postgres_url).database
    with connected(postgres_url) as admin:
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit TO off".encode())
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_isolation TO serializable".encode())

    with closing(Database(postgres_url)) as ours:
        for _ in range(8):  # psycopg prepares a statement at its sixth execution
            with ours.write() as conn:
                assert setting(conn, "synchronous_commit") == "on"
                assert setting(conn, "transaction_isolation") == "read committed"
            with ours.read() as conn:
                assert setting(conn, "transaction_isolation") == "repeatable read"
                assert setting(conn, "transaction_read_only") == "on"
                assert setting(conn, "TimeZone") == "UTC"


def setting(conn: Connection, name: str) -> str:
    return str(conn.execute(select(func.current_setting(name))).scalar_one())


def test_drivers_use_the_clock_of_the_postgresql_server(database_url: str) -> None:
    local = datetime.now(UTC) + timedelta(days=3)  # of a machine whose clock is wrong

    with closing(Database(database_url)) as ours, ours.write() as conn:
        now = ours.now(conn, local)

    assert now.tzinfo is UTC
    if ours.is_sqlite:
        assert now == local
    else:
        assert abs(now - datetime.now(UTC)) < timedelta(hours=1)


# -- errors as sentences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:secret@host/db",
        "postgresql+psycopg2://me:secret@host/db",
        "postgres://me:secret@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "batches.db",
        "postgresql://me:secret@host:port/db",
    ],
)
def test_other_urls_are_refused_with_the_forms_that_work(url: str) -> None:
    with pytest.raises(DatabaseError) as refused:
        Database(url)

    assert "write sqlite:///path/to/batches.db or postgresql+psycopg://user:password@host/database" in str(
        refused.value
    )
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"username": "nobody_at_all"}, "nobody_at_all"),
        ({"host": "127.0.0.1", "port": 1, "query": {"password": "secret"}}, "Connection refused"),
    ],
    ids=["database", "user", "address"],
)
def test_a_server_that_refuses_the_connection_gives_one_sentence(
    postgres_url: str, change: dict[str, Any], said: str
) -> None:
    url = make_url(postgres_url).set(password="secret", **change).render_as_string(hide_password=False)

    with pytest.raises(DatabaseError) as refused:
        Database(url)

    assert str(refused.value).startswith("cannot open postgresql+psycopg://")
    assert said in str(refused.value)
    assert "check the address, user, password and database name given by --database" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert Database.exists(url)  # only opening it shows what is wrong


def test_a_wrong_password_gives_one_sentence_without_the_password() -> None:
    with own_server() as server:
        right = make_url(url_of(server)).set(password="right")
        with connected(url_of(server)) as admin:
            admin.execute("ALTER ROLE postgres PASSWORD 'right'")
            (server.pgdata / "pg_hba.conf").write_text("local all all scram-sha-256\n")
            admin.execute("SELECT pg_reload_conf()")
        Database(right.render_as_string(hide_password=False)).close()

        with pytest.raises(DatabaseError, match="password authentication failed for user") as refused:
            Database(right.set(password="wrong").render_as_string(hide_password=False))

    assert "postgres:***@" in str(refused.value)
    assert "wrong" not in str(refused.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(DatabaseError, match=r"psycopg does not load here .*; pip install 'psycopg\[binary\]'"):
        Database("postgresql+psycopg://host/db")


def test_a_database_with_an_encoding_other_than_utf8_is_refused(postgres_server: str, postgres_url: str) -> None:
    name = f"{make_url(postgres_url).database}_latin"
    with connected(postgres_server) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0".encode())
        try:
            with pytest.raises(DatabaseError, match="is a database in LATIN1; give one made with ENCODING 'UTF8'"):
                Database(make_url(postgres_url).set(database=name).render_as_string(hide_password=False))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("These are notes, more than a hundred bytes of them. " * 20)

    with pytest.raises(DatabaseError, match=r"cannot open .*notes\.txt: file is not a database; give another one"):
        Database(f"sqlite:///{tmp_path}/notes.txt")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="unable to open database file; give another one by --database"):
        Database(f"sqlite:///{tmp_path}/nowhere/batches.db")


def test_a_read_only_file_gives_one_sentence(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path}/batches.db")) as ours:
        with ours.write() as conn:
            conn.exec_driver_sql("PRAGMA query_only=ON")

        with pytest.raises(DatabaseError, match="attempt to write a readonly database"), ours.write() as conn:
            conn.execute(new_account("a"))


def test_a_read_only_server_gives_one_sentence(postgres_url: str) -> None:
    with connected(postgres_url) as admin:
        admin.execute(
            f"ALTER DATABASE {make_url(postgres_url).database} SET default_transaction_read_only TO on".encode()
        )

    with pytest.raises(DatabaseError, match="this server is read-only: give the primary server by --database"):
        Database(postgres_url)


def test_a_full_disk_stops_the_run_with_nothing_half_done(database_url: str) -> None:
    with closing(Database(database_url)) as ours:

        def write() -> None:
            with ours.write() as conn:
                conn.execute(new_account("first"))
                fill_the_disk(conn)

        with pytest.raises(Stopped, match=r"cannot write to .*; nothing half done, safe to run again"):
            write()

        with ours.write() as conn:
            assert names(conn) == []
            make_room(conn)
            conn.execute(new_account("second"))
        with ours.read() as conn:
            assert names(conn) == ["second"]


def fill_the_disk(conn: Connection) -> None:
    if conn.dialect.name == "sqlite":
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        conn.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
        conn.execute(insert(leases).values(resource="x" * 100_000, token=1))
    else:
        conn.exec_driver_sql("DO $$ BEGIN RAISE 'could not extend file: No space left' USING ERRCODE = '53100'; END $$")


def make_room(conn: Connection) -> None:
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql("PRAGMA max_page_count=1000000")


def test_a_lock_that_another_process_keeps_stops_the_run_after_a_while(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with closing(Database(database_url)) as one, closing(Database(database_url)) as other:
        with one.write() as conn:
            conn.execute(new_account("a"))
        with one.write() as holding:
            holding.execute(update(accounts).values(workspace="mine"))

            with pytest.raises(Stopped, match=r"lock.*; nothing half done, safe to run again"), other.write() as conn:
                conn.execute(update(accounts).values(workspace="theirs"))


def test_a_broken_connection_stops_the_run_and_the_next_one_works(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as ours:

        def write() -> None:
            with ours.write() as conn, connected(postgres_url) as admin:
                conn.execute(new_account("a"))
                process = conn.execute(select(func.pg_backend_pid())).scalar_one()
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", [process])
                conn.execute(new_account("b"))

        with pytest.raises(Stopped, match=r"cannot write to .*; nothing half done, safe to run again"):
            write()
        with ours.read() as conn:
            assert names(conn) == []


def test_a_driver_suspended_in_a_write_does_not_block_others_for_ever(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.1)
    with closing(Database(postgres_url)) as ours:

        def write() -> None:
            with ours.write() as conn, connected(postgres_url) as admin:
                conn.execute(new_account("a"))
                with admin.transaction():  # this lock is granted when the server ends the suspended write
                    admin.execute("LOCK TABLE batch_pipeline.accounts")
                conn.execute(new_account("b"))

        with pytest.raises(Stopped, match=r"cannot write to .*; nothing half done, safe to run again"):
            write()


def test_a_stopped_server_gives_one_sentence_until_it_is_back() -> None:
    with own_server() as server, closing(Database(url_of(server))) as ours:

        def write() -> None:
            with ours.write() as conn:
                conn.execute(new_account("a"))
                server.stop()
                conn.execute(new_account("b"))

        with pytest.raises(Stopped, match=r"cannot write to .*; nothing half done, safe to run again"):
            write()
        with pytest.raises(Stopped, match=r"cannot read .*; nothing half done, safe to run again"), ours.read() as conn:
            names(conn)

        server.ensure_postgres_running()
        with ours.write() as conn:
            conn.execute(new_account("c"))
        with ours.read() as conn:
            assert names(conn) == ["c"]


def test_a_deadlock_is_a_lost_race(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as ours:
        with ours.write() as conn:
            conn.execute(new_account("a"))
            conn.execute(new_account("b"))
        both_hold_one = threading.Barrier(2)
        ends: list[str] = []

        def write(*order: str) -> None:
            try:
                with ours.write() as conn:
                    conn.exec_driver_sql("SET LOCAL deadlock_timeout TO '20ms'")
                    conn.execute(update(accounts).where(accounts.c.base_url == order[0]).values(workspace="x"))
                    both_hold_one.wait()
                    conn.execute(update(accounts).where(accounts.c.base_url == order[1]).values(workspace="x"))
                ends.append("written")
            except LostRace as exc:
                ends.append(str(exc))

        threads = [threading.Thread(target=write, args=order) for order in (("a", "b"), ("b", "a"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lost = next(end for end in ends if end != "written")
    assert "deadlock detected; another driver changed the same rows; run the same command again to continue" in lost
    assert sorted(ends, key=len)[0] == "written"


def test_of_two_drivers_that_add_the_same_row_one_loses_the_race(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as ours:
        with ours.write() as conn:
            conn.execute(new_account("a"))

        with pytest.raises(LostRace, match="another driver changed the same rows"), ours.write() as conn:
            conn.execute(new_account("a"))


def test_a_key_too_long_for_postgresql_gives_one_sentence(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as ours:
        noise = "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(3_000))  # text that does not compress
        with pytest.raises(DatabaseError, match=r"use a shorter source\.key"), ours.write() as conn:
            conn.execute(insert(leases).values(resource=noise, token=1))
