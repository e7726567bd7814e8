"""The versions of the state database's tables, and the way from an older one to today's."""

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, func, insert, inspect, select
from sqlalchemy.schema import CreateSchema

from pipeline.errors import DatabaseError
from pipeline.tables import metadata

#: The version that this code works with; versions/ has a file for each step up to it.
HEAD = "0006"

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


def schema_of(conn: Connection) -> str | None:
    """The schema that this database's tables are in; None for the only one of a SQLite file."""
    return SCHEMA if conn.dialect.name == "postgresql" else None


def is_made(conn: Connection) -> bool:
    """Whether this database has our tables."""
    return inspect(conn).has_table(_version.name, schema=schema_of(conn))


def bring_up(conn: Connection, database: str) -> bool:
    """Make the tables of a new database, or bring an older one to today's version, in the caller's transaction.

    database: its name, for messages. Returns whether it was new. Raises DatabaseError for tables that are not ours, and
    for a newer version. On SQLite the transaction has the write lock and does not look at foreign keys.
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
        _upgrade(conn, database)
    return False


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
    config.set_main_option("script_location", "pipeline:migrations")
    config.set_main_option("path_separator", "os")
    command.upgrade(config, HEAD)
    # a step that changes a table of SQLite copies it, which foreign keys would not let it
    broken = conn.exec_driver_sql("PRAGMA foreign_key_check").first() if schema_of(conn) is None else None
    if broken is not None:
        raise DatabaseError(
            f"{database} cannot be brought to version {HEAD}: row {broken[1]} of {broken[0]} names a row of "
            f"{broken[2]} that is not there; nothing was changed; give another database by --database"
        )
