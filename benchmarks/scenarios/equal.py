"""Rows with equal texts: their requests are sent, and paid for, once. Compared with as many rows that all differ."""

from __future__ import annotations

from collections.abc import Iterator

from harness import BATCH, HEADER, Bench, Line, at_least, below, record
from harness import measure as measured

ROWS = 1_000_000  # for which the targets are defined
SHARE = 1_000  # rows with the same text; as many as may share a request
SMALL = 100  # requests of a small batch
PAID = 1.1  # requests for each text, at most


def measure(bench: Bench) -> Iterator[Line]:
    """Measure once: different rows, then rows of which SHARE have the same text, in usual and in small batches."""
    rows = bench.options.equal_rows
    texts, judged = max(1, rows // SHARE), rows == ROWS
    print(f"{HEADER}   with equal texts")
    plain = record(bench, measured(bench, "equal", "pipeline", bench.rows(rows, "parquet"), rows))
    source = bench.rows(rows, "parquet", distinct=texts)
    for batch in (BATCH, SMALL):
        run = record(bench, measured(bench, "equal", "pipeline", source, rows, batch=batch))
        what = f"{rows:,} rows of {texts:,} texts, batches of {batch:,}"
        speed = run.rows_per_second / plain.rows_per_second
        shown = f"{speed:.2f} times ({run.rows_per_second:,.0f} rows/s)"
        yield at_least(what, speed, shown, 1.0, "no slower than different rows", judged=judged)
        target = f"at most {PAID} for each text"
        yield below(f"{what}: requests", run.requests / texts, f"{run.requests:,}", PAID, target, judged=judged)
