"""Commands that should respond at once: on 500 rows, and `status` on a large database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import harness
from harness import Bench, BenchError, Line, Usage, below, median_of

from scenarios import second_run, whole_run

ROWS = 500
RUN_SECONDS, POST_SECONDS = 1.4, 1.2  # of a first run over ROWS rows
SECONDS = {"--help": 0.4, "run": 0.5, "status": 0.4, "export": 0.4}  # by command; the run has nothing to do
STATUS_SECONDS = 1.0  # on a large database
LEAST_TIMES = 5  # the runs are short, and the first one reads from the disk


class First(NamedTuple):
    """The seconds of a run over new rows, from its start to the head of its first POST, and to its end."""

    post: float
    end: float


def measure(bench: Bench) -> Iterator[Line]:
    """Measure the median of several runs of each; `status` after the largest run, which is done first if necessary."""
    with bench.fresh_folder("start") as folder:
        first = median_of(lambda: _first_run(bench, folder), _times(bench), lambda each: each.end)
        print(f"run over {ROWS} new rows: {first.end:.2f} s, first POST after {first.post:.2f} s", flush=True)
        what = f"run over {ROWS} new rows"
        yield below(what, first.end, f"{first.end:.2f} s", RUN_SECONDS, f"under {RUN_SECONDS} s")
        yield below(f"{what}: first POST", first.post, f"{first.post:.2f} s", POST_SECONDS, f"under {POST_SECONDS} s")
        last = sorted(folder.glob("run-*"))[-1]
        commands = {"--help": ["--help"], "run": ["run", str(last / "bench.yaml"), "--yes"]}
        commands |= {"status": ["status", "bench"], "export": ["export", "bench", "answers.csv", "--overwrite"]}
        for name, words in commands.items():
            seconds = _seconds(bench, last, words)
            what = "batch-pipeline --help" if name == "--help" else f"{name}, {ROWS} rows"
            what += " and nothing to do" if name == "run" else ""
            yield below(what, seconds, f"{seconds:.2f} s", SECONDS[name], f"under {SECONDS[name]} s")
    yield _large_status(bench)


def _large_status(bench: Bench) -> Line:
    rows = max(bench.options.sizes)
    if bench.answered is None:
        whole_run.answered(bench, rows)
    assert bench.answered is not None
    seconds = _seconds(bench, bench.answered, ["status", "bench"])
    what, judged = f"status, {rows:,} rows", rows == max(second_run.TARGETS)
    return below(what, seconds, f"{seconds:.2f} s", STATUS_SECONDS, f"under {STATUS_SECONDS:.0f} s", judged=judged)


def _times(bench: Bench) -> int:
    repeat: int = bench.options.repeat
    return max(LEAST_TIMES, repeat)


def _first_run(bench: Bench, parent: Path) -> First:
    """Measure a run over new rows in a new folder, which stays."""
    folder = parent / f"run-{len(list(parent.iterdir())):03}"
    folder.mkdir()
    job = harness.write_job(folder, bench.rows(ROWS, "parquet"))
    with harness.served("bare_server.py") as server:
        environment = harness.environment_for(server.url, folder)
        command = [harness.pipeline_command(), "run", str(job), "--yes", "--json"]
        usage, events = harness.run(command, folder, environment, timeout=bench.options.timeout)
        harness.succeeded(usage, f"run over {ROWS} new rows", folder)
        sent_at = server.seen()["first_create"]
    if sent_at is None:
        raise BenchError(f"the run over {ROWS} new rows sent nothing; see {folder}")
    harness.check_answers("pipeline", folder, ROWS)
    return First(sent_at - events.started, usage.wall_seconds)


def _seconds(bench: Bench, folder: Path, words: list[str]) -> float:
    def once() -> Usage:
        # an address without a server, which is not called
        environment = harness.environment_for("http://127.0.0.1:9", folder)
        usage, _ = harness.run([harness.pipeline_command(), *words], folder, environment, timeout=bench.options.timeout)
        return harness.succeeded(usage, f"batch-pipeline {' '.join(words)}", folder)

    usage = median_of(once, _times(bench), lambda usage: usage.wall_seconds)
    print(f"batch-pipeline {' '.join(words)}: {usage.wall_seconds:.2f} s, {usage.peak_mb:.0f} MB", flush=True)
    return usage.wall_seconds
