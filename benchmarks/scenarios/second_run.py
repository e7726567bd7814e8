"""The same command again over an unchanged source, with all answers in the database."""

from __future__ import annotations

from collections.abc import Iterator

import harness
from harness import HEADER, Bench, BenchError, Line, Measurement, at_least, median_of, peak, record

from scenarios import whole_run

TARGETS = {1_000_000: 1_000_000, 10_000_000: 3_000_000}  # rows per second, by rows


def measure(bench: Bench) -> Iterator[Line]:
    """Measure runs over the rows of the largest run, which is done first if it was not measured.

    They find the mark that all rows have succeeded, and compare none.
    """
    rows = max(bench.options.sizes)
    if bench.answered is None:
        whole_run.answered(bench, rows)
    print(HEADER)
    run = record(
        bench, median_of(lambda: _once(bench, rows), bench.options.repeat, lambda run: run.client.wall_seconds)
    )
    what, wanted = f"second run over {run.rows:,} unchanged rows, Parquet", TARGETS.get(run.rows)
    least = wanted or max(TARGETS.values())
    shown = f"{run.rows_per_second:,.0f} rows/s"
    yield at_least(what, run.rows_per_second, shown, least, f"at least {least:,} rows/s", judged=wanted is not None)
    yield peak(what, [run])


def _once(bench: Bench, rows: int) -> Measurement:
    folder = bench.answered
    assert folder is not None
    command = [harness.pipeline_command(), "run", str(folder / "bench.yaml"), "--yes", "--json"]
    with harness.served("bare_server.py") as server:
        environment = harness.environment_for(server.url, folder)
        client, events = harness.run(command, folder, environment, timeout=bench.options.timeout)
        sent = server.seen()["requests"].get("create", 0)
        usage = server.stop()
    harness.succeeded(client, f"a run over {rows:,} unchanged rows", folder)
    if sent:
        raise BenchError(f"a run sent {sent} batches, though nothing had changed; see {folder}")
    harness.check_answers("pipeline", folder, rows)
    return Measurement("second", "pipeline", "parquet", rows, client, usage, events.stages())
