"""The processor time of a whole run from Parquet, by step; no target."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from harness import HERE, Bench, BenchError, Line

ROWS = 100_000


def measure(bench: Bench) -> Iterator[Line]:
    """Sample one run by step_profile.py, at the size of whole runs that is nearest to ROWS."""
    rows = min(bench.options.sizes, key=lambda rows: abs(rows - ROWS))
    folder = bench.rows(rows, "parquet").parent
    command = [sys.executable, str(HERE / "step_profile.py"), "--rows", str(rows), "--rows-folder", str(folder)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"step_profile.py: {done.stderr.strip()}")
    profile = json.loads(done.stdout)
    cells = [
        (step, f"{seconds:.2f}", f"{seconds / profile['cpu_seconds']:.0%}", f"{seconds / rows * 1e6:.1f}")
        for step, seconds in profile["steps"].items()
    ]
    for step, *figures in cells:
        print(f"{step:<24} " + " ".join(f"{figure:>6}" for figure in figures), flush=True)
    title = f"CPU seconds of a whole run, {rows:,} rows of Parquet, by step:"
    bench.tables[title] = [("step", "CPU s", "share", "µs a row"), *cells]
    yield from ()
