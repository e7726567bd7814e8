"""Measures the pipeline beside a plain script over the SDK, both against a bare server in another process.

python benchmarks/bench.py [--sizes 10000,100000,1000000] [--format csv|parquet] [--plain-max 100000] [--repeat 1]
                          [--flow]

Prints one line per size and program, then the ratios. Exits with 1 if a table does not have exactly its rows, each
succeeded, or if a program failed. README.md beside this file says how to read the figures.

This process imports nothing large: on Linux the peak memory of a child begins at that of the process that started it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ANSWERS = {  # database, table
    "plain": ("plain.db", "answers"),
    "pipeline": ("batches.db", "bench_answers"),
    "flow": ("batches.db", "bench_answers"),
}

NO_COMMAND = "there is no batch-pipeline command: install the project"

JOB = """\
name: bench
source:
  path: {source}
  key: id
request:
  model: claude-haiku-4-5
  max_tokens: 300
  prompt: "Summarize:\\n<title>{{{{ title }}}}</title>\\n{{{{ body }}}}"
canary: false
sink:
  table: bench_answers
"""


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


@dataclass(frozen=True)
class Usage:
    """What one process took. peak_mb: resident, in 10**6 bytes; cpu_seconds: user and system together."""

    exit_code: int
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Measurement:
    program: str
    rows: int
    client: Usage
    server: Usage

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.client.wall_seconds


def wait(process: subprocess.Popen[bytes], started: float) -> Usage:
    """Wait for a child and read its own usage: wait4 speaks of this child alone, getrusage of all there ever were."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    # Linux gives ru_maxrss in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(process.returncode, time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak / 1e6)


def run(command: list[str], folder: Path, environment: dict[str, str], *, timeout: float) -> Usage:
    """Run a program in its folder, output into output.txt there. timeout: seconds, then it is killed (exit code -9)."""
    with (folder / "output.txt").open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            return wait(process, started)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()


@contextmanager
def bare_server() -> Iterator[tuple[str, Callable[[], Usage]]]:
    """A fresh server: its address, and a function that stops it and says what it took."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, str(HERE / "bare_server.py")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode()
        if not line.startswith("listening on "):
            raise BenchError("the bare server did not start")

        def stop() -> Usage:
            process.send_signal(signal.SIGTERM)
            return wait(process, started)

        yield line.removeprefix("listening on ").strip(), stop
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
        process.stdout.close()


def environment_for(base_url: str, folder: Path) -> dict[str, str]:
    """The caller's environment without what would change a run: other keys, settings of ours, proxies.

    folder: for the state database, and what Prefect keeps of its own.
    """
    foreign = ("ANTHROPIC_", "BATCH_", "PREFECT_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    ours = {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": "sk-bench", "BATCH_POLL_SECONDS": "0.1"}
    ours["BATCH_DATABASE_URL"] = f"sqlite:///{folder / ANSWERS['pipeline'][0]}"
    ours |= {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return kept | ours


@contextmanager
def prefect_server(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A Prefect server in another process, as a deployment has; the environment of who talks to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(0.1)
        else:
            raise BenchError("Prefect's server did not start")
        yield environment | {"PREFECT_API_URL": url}
    finally:
        server.terminate()
        server.wait()


def pipeline_command() -> str | None:
    beside = Path(sys.executable).with_name("batch-pipeline")
    return str(beside) if beside.exists() else shutil.which("batch-pipeline")


def command_for(program: str, source: Path, folder: Path, plain_batch: int) -> list[str]:
    if program == "plain":
        script, database = str(HERE / "plain_script.py"), str(folder / ANSWERS[program][0])
        return [sys.executable, script, str(source), database, "--batch-size", str(plain_batch)]
    job = folder / "bench.yaml"
    job.write_text(JOB.format(source=source), encoding="utf-8")
    if program == "flow":
        return [sys.executable, "-m", "flows.run_job", str(job)]
    executable = pipeline_command()
    if executable is None:
        raise BenchError(NO_COMMAND)
    return [executable, "run", str(job), "--yes"]


def check_answers(program: str, folder: Path, rows: int) -> None:
    """Raises BenchError unless the table has exactly `rows` keys, each once and each succeeded with a text."""
    name, table = ANSWERS[program]
    query = f"SELECT count(*), count(DISTINCT id), sum(status = 'succeeded' AND text <> '') FROM {table}"
    with closing(sqlite3.connect(folder / name)) as database:
        found = database.execute(query).fetchone()
    if found != (rows, rows, rows):
        raise BenchError(f"{program}: rows, keys, succeeded are {found}, not {rows} each; see {folder}")


def measure(program: str, source: Path, rows: int, arguments: argparse.Namespace) -> Measurement:
    """One run in a fresh folder with a fresh server; the folder goes afterwards, unless something was wrong."""
    folder = Path(tempfile.mkdtemp(prefix=f"{program}-{rows}-", dir=source.parent))
    command = command_for(program, source, folder, arguments.plain_batch)
    with bare_server() as (base_url, stop):
        environment = environment_for(base_url, folder)
        with prefect_server(environment) if program == "flow" else nullcontext(environment) as environment:
            client = run(command, folder, environment, timeout=arguments.timeout)
        server = stop()
    if client.exit_code != 0:
        output = (folder / "output.txt").read_text(errors="replace").strip().splitlines()[-15:]
        last = "\n".join(output)
        raise BenchError(f"{program} with {rows:,} rows ended with exit code {client.exit_code}; see {folder}\n{last}")
    check_answers(program, folder, rows)
    shutil.rmtree(folder)
    return Measurement(program, rows, client, server)


def median_run(program: str, source: Path, rows: int, arguments: argparse.Namespace) -> Measurement:
    """The run of median wall time; of an even number the slower of the middle two, so that no figure is made up."""
    runs = [measure(program, source, rows, arguments) for _ in range(arguments.repeat)]
    middle = statistics.median_high(run.client.wall_seconds for run in runs)
    return next(run for run in runs if run.client.wall_seconds == middle)


def make_rows(rows: int, folder: Path, file_format: str) -> Path:
    script = str(HERE / "make_rows.py")
    subprocess.run([sys.executable, script, str(rows), str(folder), "--format", file_format], check=True)
    return folder / f"rows.{file_format}"


def line(measurement: Measurement) -> str:
    client, server = measurement.client, measurement.server
    return (
        f"{measurement.rows:>10,}  {measurement.program:<9} {client.wall_seconds:>8.1f} {client.cpu_seconds:>8.1f} "
        f"{client.peak_mb:>8.0f} {measurement.rows_per_second:>9,.0f} {server.cpu_seconds:>13.1f}"
    )


def summary(measurements: dict[tuple[str, int], Measurement], sizes: list[int]) -> Iterator[str]:
    """How the two compare at each size, and how flat the pipeline's memory is from the one size to the next."""
    for rows in sizes:
        plain, pipeline = measurements.get(("plain", rows)), measurements.get(("pipeline", rows))
        if plain and pipeline:
            speed = pipeline.rows_per_second / plain.rows_per_second
            memory = pipeline.client.peak_mb / plain.client.peak_mb
            yield f"{rows:,} rows: pipeline / plain script = {speed:.2f} in rows/s, {memory:.2f} in peak memory"
        flow = measurements.get(("flow", rows))
        if flow and pipeline:
            longer = flow.client.wall_seconds - pipeline.client.wall_seconds
            yield f"{rows:,} rows: as a Prefect flow {longer:.1f} s longer"
    ours = [measurements["pipeline", rows] for rows in sorted(sizes) if ("pipeline", rows) in measurements]
    for smaller, larger in itertools.pairwise(ours):
        change = larger.client.peak_mb / smaller.client.peak_mb - 1
        yield f"peak memory of the pipeline from {smaller.rows:,} to {larger.rows:,} rows: {change:+.0%}"


def bench(arguments: argparse.Namespace, folder: Path) -> None:
    programs = [arguments.only] if arguments.only else ["plain", "pipeline", *(["flow"] if arguments.flow else [])]
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}; "
        f"{arguments.format}, rows of 1.1 kB; plain script: {arguments.plain_batch:,} requests a create; "
        f"{arguments.repeat} run(s) each, the median is shown"
    )
    print(f"{'rows':>10}  {'program':<9} {'wall s':>8} {'cpu s':>8} {'peak MB':>8} {'rows/s':>9} {'server cpu s':>13}")
    measurements = {}
    for rows in arguments.sizes:
        of_size = folder / str(rows)
        source = make_rows(rows, of_size, arguments.format)
        for program in programs:
            if program == "plain" and rows > arguments.plain_max:
                print(f"{rows:>10,}  plain     skipped: above --plain-max {arguments.plain_max:,}", flush=True)
                continue
            measurements[program, rows] = median_run(program, source, rows, arguments)
            print(line(measurements[program, rows]), flush=True)
        shutil.rmtree(of_size)
    for sentence in summary(measurements, arguments.sizes):
        print(sentence)


def sizes(text: str) -> list[int]:
    return [int(part.replace("_", "")) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the pipeline beside a plain script over the SDK.")
    parser.add_argument("--sizes", type=sizes, default=[10_000, 100_000, 1_000_000], help="rows, separated by commas")
    parser.add_argument("--format", choices=("csv", "parquet"), default="csv", help="of the source file")
    parser.add_argument("--plain-max", type=int, default=100_000, help="no plain script above so many rows")
    parser.add_argument("--plain-batch", type=int, default=25_000, help="requests in one create of the plain script")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the median counts")
    parser.add_argument("--only", choices=tuple(ANSWERS), help="measure one of them")
    parser.add_argument("--flow", action="store_true", help="the pipeline as a Prefect flow, too")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one run")
    parser.add_argument("--folder", type=Path, help="where rows and databases go (default: a temporary folder)")
    arguments = parser.parse_args()

    if arguments.only != "plain" and pipeline_command() is None:
        print(f"{NO_COMMAND}, or use --only plain", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="batch-pipeline-bench-", dir=arguments.folder))
    try:
        bench(arguments, folder)
    except BenchError as exc:
        print(exc, file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
