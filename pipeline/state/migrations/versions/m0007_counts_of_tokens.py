"""Version 0007: token counts of a recipe's sample, runs without a canary, and rows that left the source."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TIME = sa.DateTime()  # UTC without a zone
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Upgrade version 0006 to this one."""
    op.add_column("runs", sa.Column("no_canary", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("gone", sa.Integer()))
    op.add_column("jobs", sa.Column("gone_at", TIME))
    op.create_table(
        "token_counts",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("sample", sa.JSON(), nullable=False),
        sa.Column("prefix", sa.Integer(), nullable=False),
        sa.Column("counted_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_token_counts_job_id")),
        sa.PrimaryKeyConstraint("job_id", "recipe", name=op.f("pk_token_counts")),
    )
