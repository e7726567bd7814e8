"""Whole runs at growing sizes, from CSV and from Parquet, into SQLite, compared with the plain script."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from harness import HEADER, Bench, Line, Measurement, at_least, median_of, peak, record
from harness import measure as measured

BASE = 100_000  # rows for which the targets are defined; larger sizes are compared with it
TIMES = 3.0
SLOWER = 0.15  # the largest loss of speed at larger sizes
NAMES = {"csv": "CSV", "parquet": "Parquet"}

Runs = dict[tuple[str, str, int], Measurement]  # by program, source, rows


def measure(bench: Bench) -> Iterator[Line]:
    """Measure every selected size, format and program; keep the database of the largest Parquet run."""
    options, runs = bench.options, Runs()
    print(HEADER)
    for rows, source in itertools.product(options.sizes, options.formats):
        if source == "csv" and rows > options.csv_max:
            print(f"{rows:>10,}  all       csv     skipped: above --csv-max {options.csv_max:,}", flush=True)
            continue
        for program in options.programs:
            if program == "plain" and rows > options.plain_max:
                print(f"{rows:>10,}  plain     {source:<8}skipped: above --plain-max {options.plain_max:,}", flush=True)
                continue
            runs[program, source, rows] = record(bench, _median(bench, program, source, rows))
    for sentence in _summary(runs):
        print(sentence)
    yield from _lines(runs)


def answered(bench: Bench, rows: int) -> Measurement:
    """Measure a run over so many rows of Parquet, and keep its database as `bench.answered`."""
    return measured(bench, "run", "pipeline", bench.rows(rows, "parquet"), rows, keep=True)


def _median(bench: Bench, program: str, source: str, rows: int) -> Measurement:
    file = bench.rows(rows, source)
    keep = program == "pipeline" and source == "parquet" and rows == max(bench.options.sizes)
    times = bench.options.repeat if rows <= bench.options.repeat_max else 1
    return median_of(
        lambda: measured(bench, "run", program, file, rows, keep=keep), times, lambda run: run.client.wall_seconds
    )


def _summary(runs: Runs) -> Iterator[str]:
    """Yield the lines that compare the programs at each size, and the pipeline's memory between sizes."""
    for (program, source, rows), run in runs.items():
        what = f"{rows:,} rows, {NAMES[source]}"
        pipeline = runs.get(("pipeline", source, rows))
        if program == "plain" and pipeline:
            memory = pipeline.client.peak_mb / run.client.peak_mb
            speed = pipeline.rows_per_second / run.rows_per_second
            yield f"{what}: pipeline / plain script = {speed:.2f} in rows/s, {memory:.2f} in peak memory"
        if program == "flow" and pipeline:
            yield f"{what}: as a Prefect flow {run.client.wall_seconds - pipeline.client.wall_seconds:.1f} s longer"
    for source in NAMES:
        ours = [run for (program, of, _), run in runs.items() if (program, of) == ("pipeline", source)]
        for smaller, larger in itertools.pairwise(ours):
            change = larger.client.peak_mb / smaller.client.peak_mb - 1
            sizes = f"from {smaller.rows:,} to {larger.rows:,} rows of {NAMES[source]}"
            yield f"peak memory of the pipeline {sizes}: {change:+.0%}"


def _lines(runs: Runs) -> Iterator[Line]:
    for (program, source, rows), run in runs.items():
        if program != "pipeline":
            continue
        what = f"whole run, {rows:,} rows, {NAMES[source]}"
        plain, base = runs.get(("plain", source, rows)), runs.get(("pipeline", source, BASE))
        if plain is not None:
            yield against_plain(what, run, plain, TIMES, judged=rows == BASE)
        if rows > BASE:
            yield _against_base(what, run, base)
        if rows >= BASE:
            yield peak(what, [run])


def against_plain(what: str, run: Measurement, plain: Measurement, times: float, *, judged: bool) -> Line:
    """Return the line of the rows per second as a multiple of those of the plain script."""
    value = run.rows_per_second / plain.rows_per_second
    comparison = f"{value:.2f} times ({run.rows_per_second:,.0f} rows/s beside {plain.rows_per_second:,.0f})"
    return at_least(what, value, comparison, times, f"at least {times} times the plain script", judged=judged)


def _against_base(what: str, run: Measurement, base: Measurement | None) -> Line:
    """Return the line of the loss of rows per second compared with BASE rows."""
    target, speed = f"within {SLOWER:.0%} of {BASE:,} rows", f"{run.rows_per_second:,.0f} rows/s"
    if base is None:
        return at_least(what, run.rows_per_second, speed, 0, target, judged=False)
    change = run.rows_per_second / base.rows_per_second - 1
    return at_least(what, change, f"{change:+.0%} ({speed})", -SLOWER, target)
