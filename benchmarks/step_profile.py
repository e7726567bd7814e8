"""Measure the CPU seconds of a run by step and by module of the pipeline, sampled in the run's own process.

python benchmarks/step_profile.py [--rows 100000] [--body 1055] [--format csv|parquet] [--rows-folder DIR] [--json]

Each 5 ms, what every thread has used since then is put down to the innermost function of the pipeline on its stack,
with all that it calls (Jinja, orjson, SQLAlchemy, sqlite3, httpx2). Threads that are not Python's (polars) are one
line. The sampler slows the run by some percent; compare shares, and take speeds from bench.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

import harness

INTERVAL = 0.005  # seconds
LEAST = 0.005  # the smallest share of the CPU time that is printed
PACKAGE = f"{os.sep}pipeline{os.sep}"
NATIVE = "threads of polars and others"
IMPORTS = "imports"
OUTSIDE = "interpreter"
REST = "all else"
COMPARING = ("judge", "known_rows", "plan", "quote", "quoting", "unchanged", "verdict", "job_source", "key_checks")
STEPS = {  # steps in the order of the data, with their rooms, or single modules of a room
    "start: imports": (IMPORTS,),
    "read the source": ("source", "storage", NATIVE),
    "compare with the state": ("source/identity", "source/duplicates", *("planning/" + name for name in COMPARING)),
    "render requests": ("planning/render", "planning/moves", "planning/window", "job", "request"),
    "pack, spool": ("request/packing", "planning/packer", "planning/write", "planning/resend", "spool"),
    "send": ("steps/submit", "steps/admission", "api", "driver", "runner"),
    "read answers": ("answer", "money", "steps"),
    "database": ("state", "sink"),
}

Seconds = defaultdict[tuple[str, str], float]  # CPU seconds by module and function


class Sampler(threading.Thread):
    """Attribute the CPU time of each thread to the function in which the thread is found."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds = Seconds(float)
        self._used: dict[int, float] = {}  # by thread, at the last sample
        self._ending = threading.Event()

    def run(self) -> None:
        """Take samples until stopped."""
        while not self._ending.wait(INTERVAL):
            for thread, frame in sys._current_frames().items():
                if thread != self.ident:
                    self._attribute(thread, frame)

    def _attribute(self, thread: int, frame: FrameType) -> None:
        try:
            used = time.clock_gettime(time.pthread_getcpuclockid(thread))
        except OSError:  # the thread has just ended
            return
        self.seconds[_place_of(frame)] += max(0.0, used - self._used.get(thread, 0.0))
        self._used[thread] = used

    def stop(self) -> None:
        """Stop taking samples."""
        self._ending.set()
        self.join()


def _place_of(frame: FrameType | None) -> tuple[str, str]:
    while frame is not None:
        name = frame.f_code.co_filename
        if PACKAGE in name and "site-packages" not in name:
            module = name.rpartition(PACKAGE)[2].removesuffix(".py").replace(os.sep, "/")
            function = frame.f_code.co_name
            return (IMPORTS, module) if function == "<module>" else (module, function)
        frame = frame.f_back
    return OUTSIDE, ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the CPU time of a run by step and by module.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--body", type=int, default=harness.ROW_BYTES, help="characters of a row's body, on average")
    parser.add_argument("--format", choices=("csv", "parquet"), default="parquet")
    parser.add_argument("--rows-folder", type=Path)
    parser.add_argument("--json", action="store_true", help="one object: wall and CPU seconds, and these by step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="step-profile-") as name, harness.served("bare_server.py") as server:
        folder = Path(name)
        bench = harness.Bench(argparse.Namespace(rows_folder=options.rows_folder), folder)
        job = harness.write_job(folder, bench.rows(options.rows, options.format, body=options.body))
        os.environ.update(harness.environment_for(server.url, folder))
        wall, cpu, sampler = _sampled(["batch-pipeline", "run", str(job), "--yes", "--json", "--processes", "1"])
        harness.check_answers("pipeline", folder, options.rows)
    sampler.seconds[NATIVE, ""] = max(0.0, cpu - sum(sampler.seconds.values()))
    steps = _by_step(sampler.seconds)
    if options.json:
        print(json.dumps({"wall_seconds": wall, "cpu_seconds": cpu, "steps": steps}))
        return
    print(f"{options.rows:,} rows, {options.format}: {wall:.1f} s, of which the processor worked {cpu:.1f} s")
    for step, used in steps.items():
        print(f"{step:30} {used:>7.2f} {used / cpu:>6.1%} {used / options.rows * 1e6:>7.1f}")
    print()
    _print(sampler.seconds, options.rows, cpu)


def _sampled(words: list[str]) -> tuple[float, float, Sampler]:
    """Run a command in this process; return the seconds, the CPU seconds, and the sampler."""
    sampler, started, before = Sampler(), time.monotonic(), time.process_time()
    argv, stdout, sys.argv = sys.argv, sys.stdout, words
    sampler.start()
    try:
        with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
            from pipeline.cli.app import main as command  # imported here, so that imports are sampled

            command()
    except SystemExit as exc:
        if exc.code:
            raise
    finally:
        sampler.stop()
        sys.argv, sys.stdout = argv, stdout
    return time.monotonic() - started, time.process_time() - before, sampler


def _by_step(seconds: Seconds) -> dict[str, float]:
    """Return the CPU seconds of each of STEPS, and of the rest."""
    step_of = {place: step for step, places in STEPS.items() for place in places}
    steps = dict.fromkeys((*STEPS, REST), 0.0)
    for (module, _), used in seconds.items():
        steps[step_of.get(module) or step_of.get(module.partition("/")[0], REST)] += used
    return steps


def _print(seconds: Seconds, rows: int, cpu: float) -> None:
    """Print the CPU seconds by module, the largest first, each with its three largest functions."""
    modules: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for (module, function), used in seconds.items():
        modules[module].append((used, function))
    print(f"{'':30} {'cpu s':>7} {'share':>6} {'µs/row':>7}")
    for module, functions in sorted(modules.items(), key=lambda each: -sum(used for used, _ in each[1])):
        total = sum(used for used, _ in functions)
        if total >= LEAST * cpu:
            largest = ", ".join(
                f"{name} {used / cpu:.0%}" for used, name in sorted(functions, reverse=True)[:3] if name
            )
            print(f"{module:30} {total:>7.2f} {total / cpu:>6.1%} {total / rows * 1e6:>7.1f}   {largest}")


if __name__ == "__main__":
    main()
