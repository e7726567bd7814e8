"""The same command again over an unchanged source, with all answers in the database."""

from __future__ import annotations

from collections.abc import Iterator

import harness
from harness import HEADER, Bench, BenchError, Line, Measurement, at_least, median_of, peak, record

from scenarios import whole_run

ROWS = 10_000_000  # for which the target is defined
ROWS_PER_SECOND = 3_000_000


def measure(bench: Bench) -> Iterator[Line]:
    """Measure a second run over the rows of the largest run, which is done first if it was not measured."""
    rows = max(bench.options.sizes)
    if bench.answered is None:
        whole_run.answered(bench, rows)
    print(HEADER)
    second = record(
        bench, median_of(lambda: _once(bench, rows), bench.options.repeat, lambda run: run.client.wall_seconds)
    )
    what, judged = f"second run over {rows:,} unchanged rows, Parquet", rows == ROWS
    speed = f"{second.rows_per_second:,.0f} rows/s"
    target = f"at least {ROWS_PER_SECOND:,} rows/s"
    yield at_least(what, second.rows_per_second, speed, ROWS_PER_SECOND, target, judged=judged)
    yield peak(what, [second])


def _once(bench: Bench, rows: int) -> Measurement:
    folder = bench.answered
    assert folder is not None
    command = [harness.pipeline_command(), "run", str(folder / "bench.yaml"), "--yes", "--json"]
    with harness.served("bare_server.py") as server:
        environment = harness.environment_for(server.url, folder)
        client, events = harness.run(command, folder, environment, timeout=bench.options.timeout)
        sent = server.seen()["requests"].get("create", 0)
        usage = server.stop()
    harness.succeeded(client, f"the second run over {rows:,} rows", folder)
    if sent:
        raise BenchError(f"the second run sent {sent} batches, though nothing had changed; see {folder}")
    harness.check_answers("pipeline", folder, rows)
    return Measurement("second", "pipeline", "parquet", rows, client, usage, events.stages())
