"""Version 0008: what a pending row waits for, so that no index names its state; fewer foreign keys of rows."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Upgrade version 0007 to this one."""
    op.add_column("requests", sa.Column("waits", sa.String(), nullable=True))
    op.execute(
        "UPDATE requests SET waits = CASE WHEN body_id IS NULL THEN 'source' ELSE 'spool' END WHERE state = 'pending'"
    )
    op.drop_index("ix_requests_waiting", "requests")
    op.drop_index("ix_requests_body", "requests")
    with op.batch_alter_table("requests") as requests:
        for name in ("job_id", "run_id", "body_id"):
            requests.drop_constraint(op.f(f"fk_requests_{name}"), type_="foreignkey")
        requests.create_check_constraint("known_waits", "waits = 'spool' OR waits = 'source'")
        requests.create_check_constraint("pending_waits", "(state = 'pending') = (waits IS NOT NULL)")
        requests.create_check_constraint("waits_in_a_body", "(waits = 'spool') = (body_id IS NOT NULL)")
    _partial_index("ix_requests_waiting", "run_id", "id", where="waits IS NOT NULL")
    _partial_index("ix_requests_body", "body_id", "body_n", where="waits = 'spool'")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE requests SET (fillfactor = 40)")


def _partial_index(name: str, *columns: str, where: str) -> None:
    op.create_index(name, "requests", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
