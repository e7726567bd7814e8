"""Version 0006: reasons of batches, the start of a cancel, announced ends of runs, and owners of batches at the API."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

TIME = sa.DateTime()  # UTC without a zone
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: The sentences that earlier versions wrote to `problem` and used as reasons.
SENTENCES = {
    "waits for room at the API: BATCH_MAX_IN_FLIGHT requests are there": "no_room",
    "waits for room at the API: limits.max_in_flight_requests of this job are there": "no_room_of_job",
    "waits for money: what is at the API may cost all that is left of limits.max_cost_usd": "no_money",
    "waits for money: what is at the API may cost all that is left of BATCH_MONTHLY_BUDGET_USD": "no_money_of_month",
    "waits for the canary: the first rows of a new recipe show whether the rest is sent": "behind_canary",
    "waits for the primer: one row writes what all share into the prompt cache": "behind_primer",
    "the API finds it too large: its rows go in smaller batches": "too_large",
    "it was sent by another account; run with that account's key": "other_account",
    "it never reached the API": "absent",
}
REASONS = (
    *("no_room", "no_room_of_job", "no_money", "no_money_of_month", "behind_canary", "behind_primer", "absent"),
    *("no_answer", "driver_gone", "not_listed", "listing_unreadable", "running_candidate", "results_unreadable"),
    *("over_room", "over_budget", "opens_gate", "too_large", "row_too_large", "body_gone", "old_recipe"),
    *("row_changed", "run_ended", "overdue", "other_account"),
)


def upgrade() -> None:
    """Upgrade version 0005 to this one."""
    with op.batch_alter_table("batches") as batches:
        batches.add_column(sa.Column("reason", sa.String(), nullable=True))
        batches.add_column(sa.Column("canceling_at", TIME, nullable=True))
        batches.create_check_constraint("known_reason", " OR ".join(f"reason = '{reason}'" for reason in REASONS))
    known = sa.table("batches", sa.column("reason"), sa.column("problem"))
    for sentence, reason in SENTENCES.items():
        op.execute(known.update().where(known.c.problem == sentence).values(reason=reason, problem=None))
    op.add_column("runs", sa.Column("announced_at", TIME, nullable=True))
    # these ends must not be announced again
    op.execute("UPDATE runs SET announced_at = ended_at WHERE state <> 'open'")
    op.create_table(
        "identified",
        sa.Column("account_id", ID, nullable=False),
        sa.Column("api_id", sa.String(), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_identified_account_id")),
        sa.PrimaryKeyConstraint("account_id", "api_id", name=op.f("pk_identified")),
    )
