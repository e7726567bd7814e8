"""Version 0011: trials, which are jobs of their own that share one results table."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NO_TRIAL = sa.text("trial_of IS NULL")


def upgrade() -> None:
    """Upgrade version 0010 to this one."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("uq_jobs_results_table"), type_="unique")
        jobs.add_column(sa.Column("trial_of", ID, nullable=True))
        jobs.add_column(sa.Column("trial", sa.JSON(), nullable=True))
        jobs.create_foreign_key(op.f("fk_jobs_trial_of"), "jobs", ["trial_of"], ["id"])
    op.create_index(
        "ix_jobs_results_table",
        "jobs",
        ["results_table"],
        unique=True,
        sqlite_where=NO_TRIAL,
        postgresql_where=NO_TRIAL,
    )
