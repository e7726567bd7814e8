"""The versions of the state database's tables, and the way from an older one to today's."""

from sqlalchemy import Connection, inspect, text

from pipeline.errors import DatabaseError
from pipeline.tables import metadata

#: The version that this code works with; versions/ has a file for each step up to it.
HEAD = "0001"


def bring_up(conn: Connection, database: str) -> None:
    """Make the tables of a new database, or bring an older one to today's version, in the caller's transaction.

    database: its name, for messages. Raises DatabaseError for tables that are not ours, and for a newer version.
    """
    present = set(inspect(conn).get_table_names())
    if "alembic_version" in present:
        version = conn.scalar(text("SELECT version_num FROM alembic_version"))
        if version == HEAD:
            return
        if version is not None and (not str(version).isdigit() or int(version) > int(HEAD)):
            raise DatabaseError(f"{database} was made by a newer version of batch-pipeline ({version}); update it")
    else:
        _make(conn, database, present)
        return
    from alembic import command  # not at the top: a database of today is what nearly every command finds
    from alembic.config import Config

    config = Config(attributes={"connection": conn})
    config.set_main_option("script_location", "pipeline:migrations")
    config.set_main_option("path_separator", "os")
    command.upgrade(config, HEAD)


def _make(conn: Connection, database: str, present: set[str]) -> None:
    """A new database gets today's tables at once; tests hold that the migrations come to the same."""
    foreign = sorted(present & metadata.tables.keys())
    if foreign:
        raise DatabaseError(
            f"{database} has tables that are not ours ({', '.join(foreign)}); give a file of its own by --database"
        )
    metadata.create_all(conn)
    conn.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    conn.execute(text("INSERT INTO alembic_version VALUES (:version)"), {"version": HEAD})
