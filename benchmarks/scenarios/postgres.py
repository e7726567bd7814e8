"""A whole run into PostgreSQL, compared with the plain script with psycopg."""

from __future__ import annotations

from collections.abc import Iterator

from harness import HEADER, Bench, Line, Measurement, median_of, peak, record, served
from harness import measure as measured

from scenarios.whole_run import against_plain

ROWS = 100_000  # for which the target is defined
TIMES = 2.0


def measure(bench: Bench) -> Iterator[Line]:
    """Measure runs from Parquet, each with a new PostgreSQL server."""
    rows = bench.options.postgres_rows
    print(f"{HEADER}   into PostgreSQL")
    plain, pipeline = (record(bench, _median(bench, program, rows)) for program in ("plain", "pipeline"))
    what = f"PostgreSQL, whole run, {rows:,} rows"
    yield against_plain(what, pipeline, plain, TIMES, judged=rows == ROWS)
    yield peak(what, [pipeline])


def _median(bench: Bench, program: str, rows: int) -> Measurement:
    source = bench.rows(rows, "parquet")

    def once() -> Measurement:
        with served("postgres_server.py") as server:
            return measured(bench, "postgres", program, source, rows, database=server.url)

    return median_of(once, bench.options.repeat, lambda run: run.client.wall_seconds)
