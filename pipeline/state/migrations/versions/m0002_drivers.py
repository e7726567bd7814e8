"""Version 0002: several drivers of one job, money reserved for each sending, and lost batches."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime()  # UTC without a zone


def upgrade() -> None:
    """Upgrade version 0001 to this one."""
    op.add_column("jobs", sa.Column("spool_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("swept_at", TIME, nullable=True))
    op.add_column("runs", sa.Column("retry", sa.JSON(), nullable=True))
    op.add_column("runs", sa.Column("tokens_per_byte", sa.Float(), nullable=True))
    with op.batch_alter_table("batches") as batches:
        batches.add_column(sa.Column("claim", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        batches.add_column(sa.Column("claimed_by", sa.String(), nullable=True))
        batches.add_column(sa.Column("not_found", sa.Integer(), nullable=False, server_default=sa.text("0")))
        batches.add_column(sa.Column("not_found_at", TIME, nullable=True))
        batches.add_column(sa.Column("cancel", sa.Boolean(), nullable=False, server_default=sa.false()))
        batches.add_column(sa.Column("delete_remote", sa.Boolean(), nullable=False, server_default=sa.false()))
        batches.add_column(sa.Column("max_output_usd", sa.Float(), nullable=True))
        batches.add_column(sa.Column("max_input_usd", sa.Float(), nullable=True))
        batches.drop_constraint("known_state", type_="check")
        batches.create_check_constraint(
            "known_state",
            "state = 'planned' OR state = 'submitting' OR state = 'in_progress' OR state = 'canceling' OR state = 'ended' OR state = 'collected' OR state = 'dropped' OR state = 'lost'",
        )
        batches.drop_constraint("has_id", type_="check")
        batches.create_check_constraint(
            "has_id",
            "state = 'lost' OR (api_id IS NOT NULL) = (state IN ('in_progress', 'canceling', 'ended', 'collected'))",
        )
    with op.batch_alter_table("sendings") as sendings:
        # '' is no driver's lease: it is not known which driver of an older version sent it, so the call may still run
        sendings.add_column(sa.Column("driver", sa.String(), nullable=False, server_default=""))
        sendings.drop_column("lease_token")
        sendings.add_column(sa.Column("reserved_usd", sa.Float(), nullable=True))
        sendings.add_column(sa.Column("settled_usd", sa.Float(), nullable=True))
        sendings.drop_constraint("known_end", type_="check")
        sendings.create_check_constraint(
            "known_end", "\"end\" IN ('accepted', 'rejected', 'unknown', 'adopted', 'absent', 'twin')"
        )
