"""Version 0005: the table `stretches`, with the digests of a source file's rows when they were planned."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Upgrade version 0004 to this one."""
    op.create_table(
        "stretches",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("source", sa.LargeBinary(32), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_stretches_job_id")),
        sa.PrimaryKeyConstraint("job_id", "source", "n", name=op.f("pk_stretches")),
    )
    op.create_index("ix_stretches_job_id_first", "stretches", ["job_id", "first"])
