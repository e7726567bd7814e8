"""Version 0008: what a pending row waits for, and fewer foreign keys of rows.

The indexes' conditions name `waits` and no longer `state`, so that PostgreSQL can change a row in place with its outcome.
The foreign keys of job_id, run_id and body_id are dropped, because each costs PostgreSQL a query for each new row. From
then on the database does not refuse a row whose job or run does not exist, or that names the body of a batch that does
not exist. That of batch_id stays.
"""

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
