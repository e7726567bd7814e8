"""One sweep over very many open batches, none of which has ended: the cost of waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import harness
from harness import Bench, Line, Served, below, median_of

BATCHES = 1_000  # for which the targets are defined: the size of one page of the listing
SECONDS = 3
REQUESTS = 20  # of each batch
POLL_SECONDS = 5  # between two polls of a batch: longer than a sweep should take, so that each sweep polls once


class Sweep(NamedTuple):
    """The measurement of one sweep: seconds from start to end of its process, and its requests to the server."""

    seconds: float
    peak_mb: float
    pages: int
    retrieves: int


def measure(bench: Bench) -> Iterator[Line]:
    """Send batches to a server that holds them, sweep, then let them end and check their answers."""
    batches = bench.options.open_batches
    rows = batches * REQUESTS
    with bench.fresh_folder("poll") as folder, harness.served("bare_server.py", "--hold") as server:
        job = harness.write_job(folder, bench.rows(rows, "parquet"), batch=REQUESTS)
        environment = harness.environment_for(server.url, folder) | {"BATCH_POLL_SECONDS": str(POLL_SECONDS)}

        def run_command(*words: str) -> harness.Usage:
            command = [harness.pipeline_command(), *words, "--json"]
            usage, _ = harness.run(command, folder, environment, timeout=bench.options.timeout)
            return harness.succeeded(usage, f"batch-pipeline {words[0]}", folder)

        def sweep() -> Sweep:
            time.sleep(POLL_SECONDS + 1)  # now all batches are due
            before = _requests_so_far(server)
            usage = run_command("collect", "bench")
            pages, retrieves = (
                after - earlier for after, earlier in zip(_requests_so_far(server), before, strict=True)
            )
            return Sweep(usage.wall_seconds, usage.peak_mb, pages, retrieves)

        sent = run_command("run", str(job), "--yes", "--detach")
        median_sweep = median_of(sweep, bench.options.repeat, lambda each: each.seconds)
        server.release()
        collected = run_command("run", str(job), "--yes")
        harness.check_answers("pipeline", folder, rows)
    asked = f"listing pages: {median_sweep.pages}, retrieves: {median_sweep.retrieves}"
    print(
        f"{batches:,} batches: sent in {sent.wall_seconds:.1f} s, one sweep {median_sweep.seconds:.1f} s ({asked}, ",
        end="",
    )
    print(f"{median_sweep.peak_mb:.0f} MB), collected in {collected.wall_seconds:.1f} s", flush=True)
    what, judged = f"{batches:,} open batches, one poll pass", batches == BATCHES
    yield below(
        what, median_sweep.seconds, f"{median_sweep.seconds:.1f} s", SECONDS, f"under {SECONDS} s", judged=judged
    )
    requests = median_sweep.pages + median_sweep.retrieves
    yield below(f"{what}: requests", requests, asked, 2, "one listing page", judged=judged)


def _requests_so_far(server: Served) -> tuple[int, int]:
    requests = server.seen()["requests"]
    return requests.get("list", 0), requests.get("retrieve", 0)
