"""The versions of the state database's tables, and the way from an older one to today's.

A driver and an upgrade never work at the same time. The upgrade is refused while a driver holds a lease. A driver reads
the version in each transaction in which it takes a lease or a batch, or plans: once it is another one, it stops. Both
lock the version's row first, so that on PostgreSQL, too, one of them waits for the other's commit and then sees it.
"""

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
from pipeline.state.tables import batches, leases, metadata

#: The version that this code works with; versions/ has a file for each step up to it.
HEAD = "0007"

#: Where the tables are on PostgreSQL. A SQLite file has no schemas.
SCHEMA = "batch_pipeline"

_LOCK = 0x62617463685F7069  # any number that nobody else locks by

#: As Alembic makes it.
_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

_CURRENT = select(_version.c.version_num).with_for_update(read=True, key_share=True)  # an upgrade waits for us

MOST_NAMED = 3  # drivers that a message names


def schema_of(conn: Connection) -> str | None:
    """The schema that this database's tables are in; None for the only one of a SQLite file."""
    return SCHEMA if conn.dialect.name == "postgresql" else None


def is_made(conn: Connection) -> bool:
    """Whether this database has our tables."""
    return inspect(conn).has_table(_version.name, schema=schema_of(conn))


def require_current(conn: Connection) -> None:
    """Raise Stopped unless the tables are of our version; they stay so until this transaction has ended.

    Call it before the transaction locks anything else.
    """
    version = conn.scalar(_CURRENT)
    if version != HEAD:
        raise Stopped(
            f"the database was upgraded by a newer version of batch-pipeline (from {HEAD} to {version}) while this one "
            "ran: nothing more is sent or stored by it; run the job again with the new version"
        )


def bring_up(conn: Connection, database: str, now: datetime) -> bool:
    """Make the tables of a new database, or bring an older one to today's version, in the caller's transaction.

    database: its name, for messages; now: by the clock that leases go by. Returns whether it was new. Raises
    DatabaseError for tables that are not ours, for a newer version, and for an older one that a driver is at work on.
    On SQLite the transaction has the write lock and does not look at foreign keys.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(select(func.pg_advisory_xact_lock(_LOCK)))  # drivers that open it now wait until it is up
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
        _upgrade(conn, database)
        _fence(conn)
    return False


def _refuse_at_work(conn: Connection, database: str, version: str | None, now: datetime) -> None:
    """Raise DatabaseError while a driver holds a lease: its version would fill the new tables and columns wrongly."""
    conn.execute(select(_version).with_for_update())  # a driver that begins now waits, and then sees the new version
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


def _fence(conn: Connection) -> None:
    """Take leases and batches from drivers that are only suspended: of whatever version, they can move nothing more.

    Their signs of life stay, for such a driver may be in the middle of a POST.
    """
    conn.execute(update(leases).values(token=leases.c.token + 1))
    conn.execute(update(batches).where(batches.c.claimed_by.is_not(None)).values(claim=batches.c.claim + 1))


def _make(conn: Connection, database: str, present: set[str]) -> None:
    """A new database gets today's tables at once; tests hold that the migrations come to the same."""
    foreign = sorted(present & metadata.tables.keys())
    if foreign:
        own = "a file of its own" if schema_of(conn) is None else f"a database whose schema {SCHEMA} is free"
        raise DatabaseError(f"{database} has tables that are not ours ({', '.join(foreign)}); give {own} by --database")
    schema = schema_of(conn)
    if schema is not None and not inspect(conn).has_schema(schema):  # IF NOT EXISTS would need the right to make one
        conn.execute(CreateSchema(schema))
    metadata.create_all(conn)
    _version.create(conn)
    conn.execute(insert(_version).values(version_num=HEAD))


def _upgrade(conn: Connection, database: str) -> None:
    from alembic import command  # not at the top: a database of today is what nearly every command finds
    from alembic.config import Config

    if schema_of(conn) is not None:
        conn.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")  # the steps name no schema
    config = Config(attributes={"connection": conn})
    config.set_main_option("script_location", "pipeline.state:migrations")
    config.set_main_option("path_separator", "os")
    command.upgrade(config, HEAD)
    # a step that changes a table of SQLite copies it, which foreign keys would not let it
    broken = conn.exec_driver_sql("PRAGMA foreign_key_check").first() if schema_of(conn) is None else None
    if broken is not None:
        raise DatabaseError(
            f"{database} cannot be brought to version {HEAD}: row {broken[1]} of {broken[0]} names a row of "
            f"{broken[2]} that is not there; nothing was changed; give another database by --database"
        )
