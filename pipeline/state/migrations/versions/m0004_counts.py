"""Version 0004: the number of rows of a run in each state, as a sum of changes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
STATES = (
    *("pending", "in_flight", "succeeded", "errored", "expired", "canceled"),
    *("lost", "invalid", "truncated", "refused", "unparsable"),
)


def upgrade() -> None:
    """Upgrade version 0003 to this one."""
    op.create_table(
        "tallies",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(" OR ".join(f"state = '{state}'" for state in STATES), name=op.f("ck_tallies_known_state")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_tallies_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tallies")),
    )
    op.create_index("ix_tallies_run_id", "tallies", ["run_id"])
    op.execute(
        """
        INSERT INTO tallies (run_id, state, rows)
        SELECT run_id, state, count(*)
          FROM requests
         GROUP BY run_id, state
        """
    )
