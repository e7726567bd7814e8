"""The time until a large job shows its quote, and from there until it sends its first batch.

The run is killed when its first POST arrives, because whole runs are measured elsewhere. So no table is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import harness
from harness import Bench, BenchError, EventTimes, Line, below, median_of

ROWS = 1_000_000  # for which the targets are defined
QUOTE_SECONDS, POST_SECONDS = 10, 5


class Quoted(NamedTuple):
    """The seconds from the start to the quote, and from there to the head of the first POST; the peak MB until then."""

    quote: float
    post: float
    peak_mb: float


def measure(bench: Bench) -> Iterator[Line]:
    """Measure the quote from Parquet, for which the targets are defined, and from CSV."""
    rows = bench.options.quote_rows
    for source, name in (("parquet", "Parquet"), ("csv", "CSV")):
        file = bench.rows(rows, source)
        quoted = median_of(lambda file=file: _once(bench, file), bench.options.repeat, lambda each: each.quote)  # type: ignore[misc]
        summary = (
            f"{quoted.quote:.1f} s to the quote, {quoted.post:.1f} s more to the first POST, {quoted.peak_mb:.0f} MB"
        )
        print(f"{rows:>10,}  {name:<8} {summary}", flush=True)
        what, judged = f"{rows:,} rows, {name}", rows == ROWS and source == "parquet"
        limit = f"under {QUOTE_SECONDS} s"
        yield below(f"quote of {what}", quoted.quote, f"{quoted.quote:.1f} s", QUOTE_SECONDS, limit, judged=judged)
        limit = f"under {POST_SECONDS} s after the quote"
        yield below(f"first POST of {what}", quoted.post, f"{quoted.post:.1f} s", POST_SECONDS, limit, judged=judged)


def _once(bench: Bench, source: Path) -> Quoted:
    with bench.fresh_folder("quote") as folder, harness.served("bare_server.py") as server:
        job = harness.write_job(folder, source)
        command = [harness.pipeline_command(), "run", str(job), "--yes", "--json"]
        environment = harness.environment_for(server.url, folder)

        def posted(events: EventTimes) -> bool:
            return "quote" in events.first and server.seen()["first_create"] is not None

        usage, events = harness.run(command, folder, environment, timeout=bench.options.timeout, until=posted)
        first_create = server.seen()["first_create"]
        if first_create is None:
            harness.succeeded(usage, "a run that should send", folder)
            raise BenchError(f"the run ended with exit code {usage.exit_code} before it sent anything; see {folder}")
        quote = events.first["quote"]
        return Quoted(quote, first_create - events.started - quote, usage.peak_mb)
