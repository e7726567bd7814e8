"""Version 0010: the rounds of rows whose answer is not the end, and what a row waits for before its next round."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Upgrade version 0009 to this one."""
    with op.batch_alter_table("requests") as requests:
        requests.add_column(sa.Column("round", sa.Integer(), nullable=False, server_default=sa.text("1")))
        requests.drop_constraint(op.f("ck_requests_known_waits"), type_="check")
        requests.create_check_constraint("known_waits", "waits = 'spool' OR waits = 'source' OR waits = 'round'")
    op.create_table(
        "turns",
        sa.Column("request_id", ID, autoincrement=False, nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("params", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("results", sa.Text(), nullable=True),
        sa.Column("open_calls", sa.Integer(), nullable=False),
        sa.Column("usage", sa.JSON(), nullable=False),
        sa.Column("gate", sa.String(), nullable=True),
        sa.Column("ready_at", sa.DateTime(), nullable=False),
        sa.Column("claimed_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("request_id", "round", name=op.f("pk_turns")),
    )
