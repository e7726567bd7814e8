"""Put a job with a run and a batch into a database, for tests of single functions of pipeline.state."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert

from pipeline.state.tables import batches, jobs, runs

NOW = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)


def put_run(conn: Connection) -> None:
    """Insert a job and an open run of it, both with the number 1."""
    conn.execute(insert(jobs).values(id=1, name="j", results_table="answers", columns={}, created_at=NOW))
    run = {"vars": {}, "job": {}, "recipe": "r", "state": "open", "created_at": NOW}
    conn.execute(insert(runs).values(id=1, job_id=1, **run))


def put_batch(conn: Connection, **fields: Any) -> None:
    """Insert batch 1 of the run of `put_run`. fields: what differs from a planned batch of one row."""
    batch: dict[str, Any] = {
        "id": 1,
        "job_id": 1,
        "run_id": 1,
        "state": "planned",
        "recipe": "r",
        "nonce": "n",
        "digest": "d",
        "size_bytes": 1,
        "requests": 1,
        "rows": 1,
        "created_at": NOW,
        "due_at": NOW,
    }
    conn.execute(insert(batches).values(batch | fields))
