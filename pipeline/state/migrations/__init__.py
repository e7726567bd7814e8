"""The version of the state database's tables, and the upgrade from older versions. Edge: SQL.

A driver and an upgrade never work at the same time. The upgrade is refused while a driver holds a lease. A driver reads
the version in each transaction in which it takes a lease, claims a batch or plans, and stops if the version is another
one. Both lock the version's row first, so that also on PostgreSQL one of them waits for the other's commit and sees it.
"""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.schema import CreateSchema

from pipeline.errors import DatabaseError, Stopped
from pipeline.state.holders import holds, in_words, until
from pipeline.state.tables import batches, leases, metadata, requests

#: The version that this code works with; versions/ has a file for each step up to it.
HEAD = "0011"

#: Where the tables are on PostgreSQL. A SQLite file has no schemas.
SCHEMA = "batch_pipeline"

#: How full PostgreSQL makes a page of `requests`, in percent. The rest is for the second version of each row, with its
#: outcome. At 50, a quarter of them had no room.
FILLED = 40

_LOCK = 0x62617463685F7069  # any number that no other program locks

#: The table of Alembic.
_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

# an upgrade waits until this transaction has ended
_CURRENT = select(_version.c.version_num).with_for_update(read=True, key_share=True)

#: Tables that upgrades make, with the version. Before it, a table of that name may be anybody's.
_MADE_BY = {"shared": "0009", "turns": "0010"}
MOST_NAMED = 3  # drivers that a message names


def schema_of(conn: Connection) -> str | None:
    """Return the schema of this database's tables; None for SQLite, which has no schemas."""
    return SCHEMA if conn.dialect.name == "postgresql" else None


def is_made(conn: Connection) -> bool:
    """Return whether this database has the tables of the pipeline."""
    return inspect(conn).has_table(_version.name, schema=schema_of(conn))


def require_current(conn: Connection) -> None:
    """Raise Stopped if the tables are not of this code's version. Otherwise no upgrade starts in this transaction.

    Call it before the transaction locks anything else.
    """
    version = conn.scalar(_CURRENT)
    if version != HEAD:
        raise Stopped(
            f"the database was upgraded by a newer version of batch-pipeline (from {HEAD} to {version}) while this one "
            "ran: nothing more is sent or stored by it; run the job again with the new version"
        )


def bring_up(conn: Connection, database: str, now: datetime) -> bool:
    """Create the tables of a new database, or upgrade an older one, in the caller's transaction.

    database: its name in messages. now: the time by the clock of leases. Returns whether the database was new. Raises
    DatabaseError if it has foreign tables, is of a newer version, or is of an older version and in use by a driver.
    On SQLite the transaction must have the write lock and must not check foreign keys.
    """
    if conn.dialect.name == "postgresql":
        # drivers that open the database now wait until this is done
        conn.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    present = set(inspect(conn).get_table_names(schema=schema_of(conn)))
    if _version.name not in present:
        _make(conn, database, present)
        return True
    version = conn.scalar(select(_version.c.version_num))
    if version is not None and (not version.isdigit() or int(version) > int(HEAD)):
        raise DatabaseError(f"{database} was made by a newer version of batch-pipeline ({version}); update it")
    if version != HEAD:
        if leases.name in present:
            _refuse_at_work(conn, database, version, now)
        _refuse_same_names(database, version or "", present)
        _upgrade(conn, database)
        _fence(conn)
    return False


def _refuse_at_work(conn: Connection, database: str, version: str | None, now: datetime) -> None:
    """Raise DatabaseError if a driver holds a lease, because its older version would write the new tables wrongly."""
    conn.execute(select(_version).with_for_update())  # a driver that starts now waits and then sees the new version
    ends: dict[str, datetime] = {}
    for row in conn.execute(select(leases.c.holder, leases.c.expires_at)):
        if holds(row.holder, row.expires_at, now):
            process = in_words(row.holder)
            ends[process] = max(row.expires_at, ends.get(process, row.expires_at))
    if not ends:
        return
    named = [f"{process} (its lease lasts until {until(end)})" for process, end in sorted(ends.items())[:MOST_NAMED]]
    more = f" and {len(ends) - MOST_NAMED} more" if len(ends) > MOST_NAMED else ""
    raise DatabaseError(
        f"{database} is of version {version}, which this batch-pipeline upgrades to {HEAD}, but drivers of the older "
        f"version are at work on it: {', '.join(named)}{more}; nothing was changed: wait until they have ended, or "
        "stop them, and run the same command again; the lease of a driver that has died just runs out"
    )


def _refuse_same_names(database: str, version: str, present: Collection[str]) -> None:
    """Raise DatabaseError if the upgrade would make a table whose name another table has, such as a results table."""
    for table, made_by in _MADE_BY.items():
        if version < made_by and table in present:
            raise DatabaseError(
                f"{database} is of version {version}, whose upgrade to {HEAD} makes a table {table!r}, but there is "
                "another table of that name; nothing was changed: rename that table, and run the same command again"
            )


def _fence(conn: Connection) -> None:
    """Take leases and batches from drivers that are only suspended, so that they can move nothing when they wake.

    Their signs of life stay, because such a driver may be in the middle of a create call.
    """
    conn.execute(update(leases).values(token=leases.c.token + 1))
    conn.execute(update(batches).where(batches.c.claimed_by.is_not(None)).values(claim=batches.c.claim + 1))


def _make(conn: Connection, database: str, present: set[str]) -> None:
    """Create the current tables in a new database. Tests prove that the migrations give the same tables."""
    foreign = sorted(present & metadata.tables.keys())
    if foreign:
        own = "a file of its own" if schema_of(conn) is None else f"a database whose schema {SCHEMA} is free"
        raise DatabaseError(f"{database} has tables that are not ours ({', '.join(foreign)}); give {own} by --database")
    schema = schema_of(conn)
    if schema is not None and not inspect(conn).has_schema(
        schema
    ):  # IF NOT EXISTS would need the right to create a schema
        conn.execute(CreateSchema(schema))
    metadata.create_all(conn)
    if schema is not None:
        conn.exec_driver_sql(f"ALTER TABLE {schema}.{requests.name} SET (fillfactor = {FILLED})")
    _version.create(conn)
    conn.execute(insert(_version).values(version_num=HEAD))


def _upgrade(conn: Connection, database: str) -> None:
    from alembic import command  # not at the top: few commands find an older database and need it
    from alembic.config import Config

    if schema_of(conn) is not None:
        conn.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")  # the migrations name no schema
    config = Config(attributes={"connection": conn})
    config.set_main_option("script_location", "pipeline.state:migrations")
    config.set_main_option("path_separator", "os")
    command.upgrade(config, HEAD)
    # a migration that changes a table of SQLite copies it, which foreign keys would forbid
    broken = conn.exec_driver_sql("PRAGMA foreign_key_check").first() if schema_of(conn) is None else None
    if broken is not None:
        raise DatabaseError(
            f"{database} cannot be brought to version {HEAD}: row {broken[1]} of {broken[0]} names a row of "
            f"{broken[2]} that is not there; nothing was changed; give another database by --database"
        )
