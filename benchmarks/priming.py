"""Run a job with a shared prefix with and without a primer, and print the effect of the prompt cache.

python benchmarks/priming.py [--rows 5000] [--prefix 4000] [--batch 500]

Primed: `cache: 1h`, so that one row goes first and writes the prefix. Unprimed: the same breakpoint by hand, so that
all batches go at once. The API is the emulator, which models the cache: of each batch the first 20 requests begin
before any of them has written. Exits with 1 if a row has no answer.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import func, select

from pipeline.api.client import Api
from pipeline.api.reach import Reach
from pipeline.driver.environment import Environment
from pipeline.driver.settings import Settings
from pipeline.emulator import start
from pipeline.job.model import Job
from pipeline.runner.run import run
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import job_named
from pipeline.text import money

MODEL = "claude-sonnet-5"  # a model that caches prefixes from 1,024 tokens on
BYTES_PER_TOKEN = 4  # in the emulator


class Totals(NamedTuple):
    """The sums over a run's answers: rows, tokens by class, US dollars."""

    rows: int
    fresh: int
    written: int
    read: int
    cost: float


def main() -> None:
    """Run both and print a line for each."""
    parser = argparse.ArgumentParser(description="Show what priming the prompt cache saves.")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--prefix", type=int, default=4_000, help="tokens that all requests share")
    parser.add_argument("--batch", type=int, default=500, help="requests of a batch")
    options = parser.parse_args()
    print(f"{options.rows:,} rows, {options.prefix:,} shared tokens, batches of {options.batch:,}, {MODEL}")
    print(f"{'':10} {'input':>12} {'written':>12} {'read':>12} {'read of shared':>15} {'cost':>10}")
    for name, primed in (("unprimed", False), ("primed", True)):
        totals = measure(options.rows, options.prefix, options.batch, primed=primed)
        if totals.rows != options.rows:
            raise SystemExit(f"{name}: {totals.rows} of {options.rows} rows succeeded")
        share = totals.read / (totals.read + totals.written)
        tokens = f"{totals.fresh:>12,} {totals.written:>12,} {totals.read:>12,}"
        print(f"{name:10} {tokens} {share:>15.1%} {money(totals.cost):>10}", flush=True)


def measure(rows: int, prefix: int, batch: int, *, primed: bool) -> Totals:
    """Do one run in a new folder and return its sums."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = _job(folder, rows, prefix, batch, primed=primed)
        with start(folder / "emulator", processing_seconds=1.0) as api:
            database = Database(f"sqlite:///{folder}/batches.db")
            here = Environment(
                database=database,
                connect=lambda endpoint: Api.connect(Reach(endpoint.client, 60.0, api.url, "emulated")),
                settings=Settings(poll=0.2),
            )
            run(job, here)
            totals = _totals(database, job)
            database.close()
        return totals


def _job(folder: Path, rows: int, prefix: int, batch: int, *, primed: bool) -> Job:
    with open(folder / "rows.csv", "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "text"])
        writer.writerows([i, f"Ticket number {i} says that something is wrong with parcel {i}."] for i in range(rows))
    system = ("You sort tickets by the rules of this house. " * prefix)[: prefix * BYTES_PER_TOKEN]
    system_blocks = [{"type": "text", "text": system, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    shared_fields: dict[str, Any] = {"system": system, "cache": "1h"} if primed else {"system": system_blocks}
    return Job.model_validate(
        {
            "name": "priming",
            "source": {"path": str(folder / "rows.csv"), "key": "id"},
            "request": {"model": MODEL, "max_tokens": 50, "prompt": "{{ text }}", **shared_fields},
            "limits": {"max_batch_requests": batch},
            "sink": {"table": "answers"},
            "canary": False,  # a canary would also write the prefix
        }
    )


def _totals(database: Database, job: Job) -> Totals:
    with database.read() as conn:
        record = job_named(conn, job.name)
        assert record is not None
        table = ResultsTable.of(record).table
        sums = (table.c[name] for name in ("input_tokens", "cache_write_tokens", "cache_read_tokens", "cost_usd"))
        query = select(func.count(), *(func.sum(column) for column in sums)).where(table.c.status == "succeeded")
        return Totals(*conn.execute(query).one())


if __name__ == "__main__":
    main()
