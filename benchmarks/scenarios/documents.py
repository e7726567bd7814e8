"""Documents of 100 kB, compared with only writing their bodies once and sending them once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness import HEADER, HERE, Bench, BenchError, Line, Measurement, at_least, median_of, peak, record, served
from harness import measure as measured

DOCUMENTS = 20_000  # for which the target is defined
BYTES = 100_000  # of one document
SHARE = 0.65


class Ceiling(NamedTuple):
    """The seconds that a script takes to write the bodies, and to send them."""

    bytes: int
    write_seconds: float
    send_seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / (self.write_seconds + self.send_seconds)


def measure(bench: Bench) -> Iterator[Line]:
    """Measure the script that only writes and sends, then the pipeline, both with the same file and a new server."""
    documents, repeat = bench.options.documents, bench.options.repeat
    source = bench.rows(documents, "parquet", body=BYTES)
    ceiling = median_of(lambda: _ceiling(bench, source), repeat, lambda found: -found.bytes_per_second)
    run = median_of(lambda: _run(bench, source, documents), repeat, lambda found: found.client.wall_seconds)
    print(f"{HEADER}   of 100 kB each")
    record(bench, run)
    speed, most = run.body_bytes / run.client.wall_seconds, ceiling.bytes_per_second
    print(
        f"{ceiling.bytes / 1e6:,.0f} MB written in {ceiling.write_seconds:.1f} s, sent in {ceiling.send_seconds:.1f} s"
    )
    share = f"{speed / most:.0%} ({speed / 1e6:.0f} of {most / 1e6:.0f} MB/s)"
    target = f"at least {SHARE:.0%} of writing and sending the bodies"
    what = f"{documents:,} documents of 100 kB"
    yield at_least(what, speed / most, share, SHARE, target, judged=documents == DOCUMENTS)
    yield peak(what, [run], judged=documents == DOCUMENTS)


def _run(bench: Bench, source: Path, documents: int) -> Measurement:
    return measured(bench, "documents", "pipeline", source, documents)


def _ceiling(bench: Bench, source: Path) -> Ceiling:
    with bench.fresh_folder("ceiling") as folder, served("bare_server.py") as server:
        command = [sys.executable, str(HERE / "spool_once.py"), str(source), str(folder), server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"spool_once.py: {done.stderr.strip()}")
        return Ceiling(**json.loads(done.stdout))
