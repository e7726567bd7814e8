"""Run the migrations on the connection that was passed to `bring_up`. Edge: SQL."""

from alembic import context

from pipeline.state.migrations import schema_of
from pipeline.state.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table_schema=schema_of(connection),
)
context.run_migrations()
