"""Version 0003: gates of runs, usage of batches, the recipe of an outcome, and files uploaded through the Files API."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime()  # UTC without a zone
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Upgrade version 0002 to this one."""
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("gate", sa.String(), nullable=True))
        runs.add_column(sa.Column("estimate", sa.JSON(), nullable=True))
        runs.create_check_constraint("known_gate", "gate = 'canary' OR gate = 'primer'")
    with op.batch_alter_table("batches") as batches:
        batches.add_column(sa.Column("gate", sa.String(), nullable=True))
        batches.add_column(sa.Column("usage", sa.JSON(), nullable=True))
        batches.create_check_constraint("known_gate", "gate = 'canary' OR gate = 'primer'")
    op.add_column("requests", sa.Column("outcome_sent_hash", sa.LargeBinary(16), nullable=True))
    op.create_table(
        "files",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("delete_remote", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_files_job_id")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_files_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("file_id", name=op.f("uq_files_file_id")),
    )
    op.create_index("ix_files_job_id_account_id_sha256", "files", ["job_id", "account_id", "sha256"])
