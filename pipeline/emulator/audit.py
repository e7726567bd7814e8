"""List all requests that were ever accepted, and find those that were accepted twice without need."""

import sqlite3
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

from pipeline.emulator.clock import wire_time
from pipeline.emulator.store.batches import RESULT_NAMES, Batch, BatchStore

EXAMPLES = 100
RUNNING_US = 1 << 62  #: stands for the end of a batch that is still running
# For each acceptance: how many earlier ones of the same params there were, and whether it was needless, because an
# earlier one had succeeded or was still running.
EARLIER = """
CREATE TABLE judged AS
SELECT sha,
       count(*) OVER earlier AS times_before,
       (max(ended_us) OVER earlier > created_us OR max(succeeded) OVER earlier = 1) AS needless
  FROM seen
WINDOW earlier AS (PARTITION BY sha ORDER BY rowid ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
"""


def accepted(store: BatchStore) -> Iterator[dict[str, Any]]:
    """Yield a dict for each accepted request, in the order of acceptance. result: None until its batch has ended."""
    for batch in store.all():
        created_at = wire_time(batch.created_us)
        for sha256, custom_id, result in _requests(store, batch):
            yield {
                "batch_id": batch.id,
                "custom_id": custom_id,
                "created_at": created_at,
                "params_sha256": sha256,
                "result": result,
            }


def _requests(store: BatchStore, batch: Batch) -> Iterator[tuple[str, str, str | None]]:
    """Yield (params_sha256, custom_id, result) of each request of a batch; result None: the batch has not ended."""
    ended = batch.status == "ended"
    outcomes = store.path(batch.id, "outcomes").read_bytes() if ended else b""
    results = chain((RESULT_NAMES[code] for code in outcomes), repeat(None))
    with store.path(batch.id, "accepted").open(encoding="ascii") as lines:
        for line, result in zip(lines, results, strict=False):
            sha256, custom_id = line.split()
            yield sha256, custom_id, result


def audit(store: BatchStore) -> dict[str, Any]:
    """Return counts of accepted requests, and up to 100 params that were accepted twice without need.

    Without need: an earlier acceptance of the same params was still running or had succeeded. The work is done in a
    temporary SQLite file, so that memory does not grow with millions of requests.
    """
    batches = store.all()
    db = sqlite3.connect("")
    try:
        db.execute(
            "CREATE TABLE seen (sha BLOB, batch INTEGER, created_us INTEGER, ended_us INTEGER, succeeded INTEGER)"
        )
        for batch in batches:
            ended_us = RUNNING_US if batch.ended_us is None else batch.ended_us
            rows = (
                (bytes.fromhex(sha256), batch.number, batch.created_us, ended_us, result == "succeeded")
                for sha256, _, result in _requests(store, batch)
            )
            db.executemany("INSERT INTO seen VALUES (?, ?, ?, ?, ?)", rows)
        db.execute(EARLIER)
        return {"batches": len(batches), **_totals(db), "accepted_twice": _examples(db, batches)}
    finally:
        db.close()


def _totals(db: sqlite3.Connection) -> dict[str, int]:
    requests, distinct = db.execute("SELECT count(*), count(DISTINCT sha) FROM seen").fetchone()
    again = db.execute("SELECT count(*) FROM judged WHERE times_before > 0 AND NOT needless").fetchone()[0]
    twice = db.execute("SELECT count(*) FROM judged WHERE needless").fetchone()[0]
    return {
        "requests_accepted": requests,
        "distinct_params": distinct,
        "accepted_again": again,
        "accepted_twice_count": twice,
    }


def _examples(db: sqlite3.Connection, batches: list[Batch]) -> list[dict[str, Any]]:
    ids = {batch.number: batch.id for batch in batches}
    needless = db.execute("SELECT DISTINCT sha FROM judged WHERE needless LIMIT ?", (EXAMPLES,)).fetchall()
    examples = []
    for (sha,) in needless:
        numbers = db.execute("SELECT batch FROM seen WHERE sha = ? ORDER BY rowid", (sha,)).fetchall()
        examples.append({"params_sha256": sha.hex(), "batch_ids": [ids[number] for (number,) in numbers]})
    return examples
