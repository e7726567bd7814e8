"""Version 0001: the first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime()  # UTC without a zone


def upgrade() -> None:
    """Create the tables of version 0001."""
    op.create_table(
        "accounts",
        sa.Column("id", ID, nullable=False),
        sa.Column("base_url", sa.String(), nullable=False),
        sa.Column("organization", sa.String(), nullable=False),
        sa.Column("workspace", sa.String(), nullable=False),
        sa.Column("emulated", sa.Boolean(), nullable=False),
        sa.Column("circuit_cause", sa.Text(), nullable=True),
        sa.Column("circuit_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint(
            "base_url", "organization", "workspace", name=op.f("uq_accounts_base_url_organization_workspace")
        ),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("file", sa.Text(), nullable=True),
        sa.Column("results_table", sa.String(), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.Column("spool", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("name", name=op.f("uq_jobs_name")),
        sa.UniqueConstraint("results_table", name=op.f("uq_jobs_results_table")),
    )
    op.create_table(
        "leases",
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.JSON(), nullable=True),
        sa.Column("expires_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("resource", name=op.f("pk_leases")),
    )
    op.create_table(
        "runs",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("vars", sa.JSON(), nullable=False),
        sa.Column("job", sa.JSON(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("planned_at", TIME, nullable=True),
        sa.Column("vanished", sa.Integer(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.CheckConstraint(
            "state = 'open' OR state = 'finished' OR state = 'incomplete'", name=op.f("ck_runs_known_state")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_runs_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_job_id"), "runs", ["job_id"], unique=False)
    op.create_table(
        "batches",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("api_id", sa.String(), nullable=True),
        sa.Column("counts", sa.JSON(), nullable=True),
        sa.Column("outcomes", sa.JSON(), nullable=True),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("downloads", sa.Integer(), nullable=False),
        sa.Column("downloaded_at", TIME, nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("wait_seconds", sa.Float(), nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("collected_at", TIME, nullable=True),
        sa.CheckConstraint(
            "(api_id IS NOT NULL) = (state IN ('in_progress', 'canceling', 'ended', 'collected'))",
            name=op.f("ck_batches_has_id"),
        ),
        sa.CheckConstraint(
            "state = 'planned' OR state = 'submitting' OR state = 'in_progress' OR state = 'canceling' OR state = 'ended' OR state = 'collected' OR state = 'dropped'",
            name=op.f("ck_batches_known_state"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_batches_account_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_batches_job_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_batches_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        sa.UniqueConstraint("api_id", name=op.f("uq_batches_api_id")),
        sa.UniqueConstraint("nonce", name=op.f("uq_batches_nonce")),
    )
    op.create_index("ix_batches_job_id_state", "batches", ["job_id", "state"], unique=False)
    op.create_index(op.f("ix_batches_run_id"), "batches", ["run_id"], unique=False)
    op.create_table(
        "requests",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("row_hash", sa.LargeBinary(length=16), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("keep", sa.Text(), nullable=True),
        sa.Column("batch_id", ID, nullable=True),
        sa.Column("n", sa.Integer(), nullable=True),
        sa.Column("body_id", ID, nullable=True),
        sa.Column("body_n", sa.Integer(), nullable=True),
        sa.Column("sent_hash", sa.LargeBinary(length=16), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("error_type", sa.String(), nullable=True),
        sa.Column("outcome_hash", sa.LargeBinary(length=16), nullable=True),
        sa.Column("outcome_recipe", sa.String(), nullable=True),
        sa.Column("changed_hash", sa.LargeBinary(length=16), nullable=True),
        sa.CheckConstraint(
            "state <> 'in_flight' OR batch_id IS NOT NULL", name=op.f("ck_requests_in_flight_in_a_batch")
        ),
        sa.CheckConstraint("state <> 'pending' OR batch_id IS NULL", name=op.f("ck_requests_pending_in_no_batch")),
        sa.CheckConstraint(
            "state = 'pending' OR state = 'in_flight' OR state = 'succeeded' OR state = 'errored' OR state = 'expired' OR state = 'canceled' OR state = 'lost' OR state = 'invalid' OR state = 'truncated' OR state = 'refused' OR state = 'unparsable'",
            name=op.f("ck_requests_known_state"),
        ),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_requests_batch_id")),
        sa.ForeignKeyConstraint(["body_id"], ["batches.id"], name=op.f("fk_requests_body_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_requests_job_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_requests_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
        sa.UniqueConstraint("job_id", "key", name=op.f("uq_requests_job_id_key")),
    )
    op.create_index(
        "ix_requests_batch_id_n",
        "requests",
        ["batch_id", "n"],
        unique=False,
        sqlite_where=sa.text("batch_id IS NOT NULL"),
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "ix_requests_body",
        "requests",
        ["body_id", "body_n"],
        unique=False,
        sqlite_where=sa.text("state = 'pending' AND body_id IS NOT NULL"),
        postgresql_where=sa.text("state = 'pending' AND body_id IS NOT NULL"),
    )
    op.create_index(
        "ix_requests_changed",
        "requests",
        ["run_id"],
        unique=False,
        sqlite_where=sa.text("changed_hash IS NOT NULL"),
        postgresql_where=sa.text("changed_hash IS NOT NULL"),
    )
    op.create_index(
        "ix_requests_waiting",
        "requests",
        ["run_id", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "sendings",
        sa.Column("id", ID, nullable=False),
        sa.Column("batch_id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("lease_token", sa.BigInteger(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("deadline", TIME, nullable=False),
        sa.Column("end", sa.String(), nullable=True),
        sa.Column("grace_from", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("api_id", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "\"end\" IN ('accepted', 'rejected', 'unknown', 'adopted', 'absent')", name=op.f("ck_sendings_known_end")
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_sendings_account_id")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_sendings_batch_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sendings")),
        sa.UniqueConstraint("api_id", name=op.f("uq_sendings_api_id")),
    )
    op.create_index(op.f("ix_sendings_batch_id"), "sendings", ["batch_id"], unique=False)
