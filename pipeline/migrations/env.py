"""Runs the migrations on the connection that `bring_up` was given."""

from alembic import context

from pipeline.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
