"""Commands that should respond at once: `--help`, and `status` on a large database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import harness
from harness import Bench, Line, Usage, below, median_of

from scenarios import second_run, whole_run

HELP_SECONDS, STATUS_SECONDS = 0.4, 1.0
LEAST_TIMES = 5  # the runs are short, and the first one reads from the disk


def measure(bench: Bench) -> Iterator[Line]:
    """Measure the median of several runs of each; `status` after the largest run, which is done first if necessary."""
    with bench.fresh_folder("help") as folder:
        seconds = _seconds(bench, folder, ["--help"])
    yield below("batch-pipeline --help", seconds, f"{seconds:.2f} s", HELP_SECONDS, f"under {HELP_SECONDS} s")
    rows = max(bench.options.sizes)
    if bench.answered is None:
        whole_run.answered(bench, rows)
    assert bench.answered is not None
    seconds = _seconds(bench, bench.answered, ["status", "bench"])
    what, judged = f"status, {rows:,} rows", rows == second_run.ROWS
    yield below(what, seconds, f"{seconds:.2f} s", STATUS_SECONDS, f"under {STATUS_SECONDS:.0f} s", judged=judged)


def _seconds(bench: Bench, folder: Path, words: list[str]) -> float:
    def once() -> Usage:
        # an address without a server, which is not called
        environment = harness.environment_for("http://127.0.0.1:9", folder)
        usage, _ = harness.run([harness.pipeline_command(), *words], folder, environment, timeout=bench.options.timeout)
        return harness.succeeded(usage, f"batch-pipeline {' '.join(words)}", folder)

    usage = median_of(once, max(LEAST_TIMES, bench.options.repeat), lambda usage: usage.wall_seconds)
    print(f"batch-pipeline {' '.join(words)}: {usage.wall_seconds:.2f} s, {usage.peak_mb:.0f} MB", flush=True)
    return usage.wall_seconds
