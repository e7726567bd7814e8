"""Measure how soon a run that was killed by kill -9 continues, when the same command is started again on this machine.

python benchmarks/restart.py [--rows 20000] [--database URL] [--repeat 5]

For each moment at which it is killed, one line: seconds from the start of the second process to its quote, and to the
first move of a batch (planned, submitting, submitted; late in a run ended or collected), the median and the largest.
Settings are the defaults: leases last two minutes, yet those of a dead process on this machine are free at once. The
API is the emulator, in this process. Exits with 1 if a second process does nothing, or does not end well.

--database: of PostgreSQL, to be used instead of a SQLite file; its jobs get names of their own and stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.emulator import start

MOMENTS = ("planned", "submitting", "submitted", "collected")
WORKS = ("planned", "submitting", "submitted", "ended", "collected")  # events of a driver that works

JOB = """\
name: {name}
source: {{path: notes.csv, key: id}}
request: {{model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{{{ text }}}}"}}
limits: {{max_batch_requests: {batch}}}
sink: {{table: {name}}}
"""


class Restart(NamedTuple):
    """The seconds from the start of the second process to its quote and to its first work."""

    quote: float
    work: float


def main() -> None:
    """Measure each moment and print a line for it."""
    parser = argparse.ArgumentParser(description="Measure how soon a killed run continues.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--database")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    database = "PostgreSQL" if options.database else "SQLite"
    print(f"{options.rows:,} rows, {database}, {options.repeat} kills at each moment")
    print(f"{'killed at':12} {'quote s':>14} {'first work s':>14}   median / largest")
    for moment in MOMENTS:
        restarts = [restart(moment, options.rows, options.database, number) for number in range(options.repeat)]
        print(f"{moment:12} {_figures([r.quote for r in restarts])} {_figures([r.work for r in restarts])}", flush=True)


def _figures(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):6.2f} / {max(seconds):5.2f}"


def restart(moment: str, rows: int, database: str | None, number: int) -> Restart:
    """Kill a run at its first event `moment`, start it again, and let it end."""
    with tempfile.TemporaryDirectory(prefix="restart-") as name:
        folder = Path(name)
        write_job(folder, f"restart_{os.getpid()}_{moment}_{number}", rows)
        with start(folder / "emulator", processing_seconds=1.0) as api, running_job(folder, api.url, database) as first:
            wait_for_event(first, lambda event: event == moment)
            first.kill()
            first.wait()
            started = time.monotonic()
            with running_job(folder, api.url, database) as second:
                wait_for_event(second, lambda event: event == "quote")
                quote = time.monotonic() - started
                wait_for_event(second, lambda event: event in WORKS)
                work = time.monotonic() - started
                # the second run is stopped, because it might wait for the grace time of a batch that was being sent
                second.terminate()
                second.communicate()
                if second.returncode not in (0, 130):
                    sys.exit(f"killed at {moment}: the second process ended with exit code {second.returncode}")
    return Restart(quote, work)


def write_job(folder: Path, name: str, rows: int) -> None:
    """Write rows and a job of 40 batches, so that most of them are still to be sent when the run is killed."""
    text = "".join(f'{i},"Note {i}: water the plant number {i}."\n' for i in range(rows))
    (folder / "notes.csv").write_text(f"id,text\n{text}")
    (folder / "notes.yaml").write_text(JOB.format(name=name, batch=max(1, rows // 40)))


@contextmanager
def running_job(folder: Path, url: str, database: str | None) -> Iterator[subprocess.Popen[str]]:
    """Start `batch-pipeline run` with its events on stdout; kill it after the block if it still runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BATCH_", "ANTHROPIC_"))}
    environment |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "emulated"}
    if database is not None:
        environment |= {"BATCH_DATABASE_URL": database, "BATCH_SPOOL": str(folder / "spool")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", "notes.yaml", "--json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for_event(process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> None:
    """Read the events of the driver up to the first one with such a name."""
    assert process.stdout is not None
    for line in process.stdout:
        if wanted(json.loads(line)["event"]):
            return
    sys.exit(f"the run ended with exit code {process.wait()} before it printed the awaited event")


if __name__ == "__main__":
    main()
