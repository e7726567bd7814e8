"""Eight drivers of one job on PostgreSQL, which collect while one of them plans: how long one waits for another."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import harness
from harness import Bench, BenchError, Line, below

ROWS = 40_000  # for which the target is defined
DRIVERS = 8
BATCH = 500  # requests of a batch, so that there is a batch to move at any moment
SECONDS = 1
LOOK_SECONDS = 0.05  # between two looks at the server's locks: so much longer may a wait have been than is seen

_LONGEST = "SELECT max(extract(epoch FROM clock_timestamp() - waitstart)) FROM pg_locks WHERE NOT granted"


def measure(bench: Bench) -> Iterator[Line]:
    """Run eight drivers at once, look at the locks that they wait for, and check their answers."""
    rows = bench.options.lock_rows
    with (
        bench.fresh_folder("locks") as folder,
        harness.served("postgres_server.py") as database,
        harness.served("bare_server.py") as api,
    ):
        job = harness.write_job(folder, bench.rows(rows, "parquet"), batch=BATCH)
        environment = harness.environment_for(api.url, folder, database.url)
        waits, started = Waits(database.url), time.monotonic()
        try:
            _run_drivers([harness.pipeline_command(), "run", str(job), "--yes", "--json"], folder, environment, bench)
        finally:
            longest = waits.end()
        seconds = time.monotonic() - started
        harness.check_answers("pipeline", folder, rows, database.url)
    print(f"{DRIVERS} drivers, {rows:,} rows: {seconds:.1f} s, longest wait for a lock {longest:.2f} s", flush=True)
    what, target = f"{DRIVERS} drivers on PostgreSQL, {rows:,} rows: longest wait for a lock", f"under {SECONDS} s"
    yield below(what, longest, f"{longest:.2f} s", SECONDS, target, judged=rows == ROWS)


def _run_drivers(command: list[str], folder: Path, environment: dict[str, str], bench: Bench) -> None:
    """Start the drivers at the same moment and wait for them. Raises BenchError unless each ends well."""
    with (folder / "output.txt").open("ab") as output:
        drivers = [
            subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output) for _ in range(DRIVERS)
        ]
        codes = [driver.wait(timeout=bench.options.timeout) for driver in drivers]
    if any(codes):
        raise BenchError(f"the drivers ended with exit codes {codes}; see {folder}")


class Waits:
    """Looks again and again at the locks of a PostgreSQL server for which somebody waits."""

    def __init__(self, url: str) -> None:
        import psycopg

        self._connection = psycopg.connect(url, autocommit=True)
        self._ended = threading.Event()
        self._longest = 0.0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> float:
        """Return the longest wait that was seen, in seconds."""
        self._ended.set()
        self._thread.join()
        self._connection.close()
        return self._longest

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            row = self._connection.execute(_LONGEST).fetchone()
            if row is not None and row[0] is not None:
                self._longest = max(self._longest, float(row[0]))
