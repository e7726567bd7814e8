"""Version 0009: the requests that rows of a run share across batches."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Upgrade version 0008 to this one."""
    op.create_table(
        "shared",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("sent_hash", sa.LargeBinary(16), nullable=False),
        sa.Column("batch_id", ID, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_shared_run_id")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_shared_batch_id")),
        sa.PrimaryKeyConstraint("run_id", "sent_hash", name=op.f("pk_shared")),
    )
