"""Make rows, start servers and programs, and measure the time and memory of each; for all scenarios.

This module imports nothing large, because on Linux the peak memory of a child starts at that of its parent process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

HERE = Path(__file__).parent
PROGRAMS = ("plain", "pipeline", "flow")
TABLES = {"plain": "answers", "pipeline": "bench_answers", "flow": "bench_answers"}
SQLITE_FILES = {"plain": "plain.db", "pipeline": "batches.db", "flow": "batches.db"}
ROW_BYTES = 1_055  # bytes of a row's body; with id and title a row has 1.1 kB
GROUP_BYTES = 50_000 * ROW_BYTES  # bytes of the bodies in one row group of a Parquet file

NO_COMMAND = "there is no batch-pipeline command: install the project"

JOB = """\
name: bench
source:
  path: {source}
  key: id
request:
  model: claude-haiku-4-5
  max_tokens: 300
{request}
canary: false
limits:
  max_batch_requests: {batch}
sink:
  table: bench_answers
"""


class Kind(NamedTuple):
    """A kind of job. request: more of the job's request, as YAML; more: other sections. answer: what the server answers
    to each request; empty: its usual text. holds: a condition of SQL for a row with that answer.
    """

    request: str
    more: str = ""
    answer: str = ""
    holds: str = "text <> ''"


SUMMARY = Kind('  prompt: "Summarize:\\n<title>{{ title }}</title>\\n{{ body }}"')

#: Runs `batch-pipeline` from the tree in PYTHONPATH. In older commits the command line is one module.
START = """\
import os, sys, pipeline
if not pipeline.__file__.startswith(os.environ["PYTHONPATH"] + os.sep):
    sys.exit(f"pipeline was imported from {pipeline.__file__}, not from {os.environ['PYTHONPATH']}")
try:
    from pipeline.cli.app import main
except ModuleNotFoundError:
    from pipeline.cli import main
main()
"""
BATCH = 25_000  # requests of a batch; the default of a job


class BenchError(Exception):
    """A measurement cannot continue, or must not count. The message says why."""


@dataclass(frozen=True)
class Usage:
    """The time and memory of one program, with the processes that it starts and waits for.

    peak_mb: in 10**6 bytes: resident memory; of several processes, the sum of what each has, shared pages divided.
    cpu_seconds: user and system together.
    """

    exit_code: int
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Measurement:
    """The measurement of one run. stages: seconds from its start to the end of each of STAGES; empty if unknown."""

    scenario: str
    program: str
    source: str  # csv, parquet
    rows: int
    client: Usage
    server: Usage
    stages: dict[str, float] = field(default_factory=dict)
    body_bytes: int = 0  # bytes of all creates, as counted by the server
    database_bytes: int = 0  # bytes of the SQLite file at the end
    requests: int = 0  # of all creates, as counted by the server

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.client.wall_seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"rows_per_second": self.rows_per_second}


#: Stages of a run: the event of `--json` that ends it, whether the first or the last such event does, its name. Sending
#: continues during rendering, and during collecting if the queue is full.
STAGES = {
    "quote": ("quote", "first", "start, pass one"),
    "plan": ("planned", "last", "render, spool, send"),
    "collect": ("collected", "last", "poll, collect"),
}
REST = "end"  # the time after these stages


class Line(NamedTuple):
    """A line of the table. met: None: the target is for another size than the measured one."""

    what: str
    measured: str
    target: str
    met: bool | None
    value: float


@dataclass
class Bench:
    """A running benchmark: its options, and the data that scenarios leave for later ones."""

    options: argparse.Namespace
    folder: Path  # for rows and databases; its content is removed at the end
    measurements: list[Measurement] = field(default_factory=list)
    # further tables of the report, with their heads first
    tables: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    answered: Path | None = None  # the folder of a finished run over the most rows, as Parquet, with its database

    def rows(self, count: int, file_format: str, *, body: int = ROW_BYTES, distinct: int | None = None) -> Path:
        """Return a file with so many rows, which is made if it does not exist.

        body: bytes of a row's text. distinct: how many different texts there are; None: all differ.
        """
        folder = self.options.rows_folder or self.folder
        path = Path(folder, f"rows-{count}x{body}{f'of{distinct}' if distinct else ''}.{file_format}")
        if not path.exists():
            script, group = str(HERE / "make_rows.py"), str(max(1, GROUP_BYTES // body))
            with self.fresh_folder("rows", folder) as made:  # renamed when complete, because later runs may use it
                options = ["--format", file_format, "--rows-per-group", group, "--body", str(body)]
                options += ["--distinct", str(distinct)] if distinct else []
                subprocess.run([sys.executable, script, str(count), str(made), *options], check=True)
                (made / f"rows.{file_format}").rename(path)
        return path.absolute()

    @contextmanager
    def fresh_folder(self, name: str, parent: Path | None = None) -> Iterator[Path]:
        """Yield a new folder and remove it after the block; if the block raises, the folder stays for inspection."""
        parent = parent or self.folder
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        yield folder
        if folder != self.answered:
            shutil.rmtree(folder)


Result = TypeVar("Result")


def median_of(once: Callable[[], Result], times: int, value: Callable[[Result], float]) -> Result:
    """Return the result with the median value; of an even number, the higher of the middle two results."""
    results = [once() for _ in range(times)]
    middle = statistics.median_high(value(result) for result in results)
    return next(result for result in results if value(result) == middle)


# Programs ------------------------------------------------------------------------------------------------------------


class EventTimes:
    """The events of `--json` that a running program prints: when each kind came first and last."""

    def __init__(self, process: subprocess.Popen[bytes], started: float, output: IO[bytes]) -> None:
        self._process, self.started, self._output = process, started, output
        self.first: dict[str, float] = {}  # seconds from its start
        self.last: dict[str, float] = {}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            seconds = time.monotonic() - self.started
            self._output.write(line)
            with suppress(ValueError, KeyError, TypeError):  # lines that are no events
                event = json.loads(line)["event"]
                self.first.setdefault(event, seconds)
                self.last[event] = seconds

    def wait_for_end(self) -> None:
        """Read the events up to the last one."""
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stages(self) -> dict[str, float]:
        """Return when each stage ended, in seconds from the start; stages without an event are left out."""
        ends = {stage: getattr(self, which).get(event) for stage, (event, which, _) in STAGES.items()}
        return {stage: seconds for stage, seconds in ends.items() if seconds is not None}


class Memory:
    """Looks again and again at the memory of a process and of those that it has started, while there are any."""

    EVERY = 0.1  # seconds

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> float:
        """Return the largest sum that was seen, in 10**6 bytes; 0 if there was never more than one process."""
        self._ended.set()
        self._thread.join()
        return self._peak / 1e6

    def _look(self) -> None:
        while not self._ended.wait(self.EVERY):
            with suppress(OSError):  # a process has ended meanwhile, or this system has no /proc
                pids = list(_family(self._pid))
                if len(pids) > 1:
                    self._peak = max(self._peak, sum(map(_proportional_bytes, pids)))


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that it has started. Raises OSError if it has ended."""
    yield pid
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _family(int(child))


def _proportional_bytes(pid: int) -> int:
    """Return the memory of a process; of pages that several processes share, its part."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return 0 if found is None else int(found[1]) * 1024


def wait(process: subprocess.Popen[bytes], started: float) -> Usage:
    """Wait for a child and return its usage, by wait4, because getrusage gives the sum of all children."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
    # Linux gives ru_maxrss in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(process.returncode, time.monotonic() - started, usage.ru_utime + usage.ru_stime, peak / 1e6)


def run(
    command: list[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    timeout: float,
    until: Callable[[EventTimes], bool] | None = None,
) -> tuple[Usage, EventTimes]:
    """Run a program in its folder; all its output goes to output.txt there.

    timeout: seconds, after which it is killed (exit code -9). until: checked often; True kills it.
    """
    with (folder / "output.txt").open("ab") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=output)
        events = EventTimes(process, started, output)
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        memory = Memory(process.pid)
        try:
            if until is not None:
                while process.poll() is None and not until(events):
                    time.sleep(0.05)
                if process.returncode is not None:
                    return Usage(process.returncode, time.monotonic() - started, 0.0, 0.0), events
                process.kill()
            usage = wait(process, started)
            return replace(usage, peak_mb=max(usage.peak_mb, memory.end())), events
        finally:
            timer.cancel()
            memory.end()
            if process.returncode is None:
                process.kill()
                process.wait()
            events.wait_for_end()


def succeeded(usage: Usage, what: str, folder: Path) -> Usage:
    """Return the usage of a program that ended with 0. Raises BenchError with its last output if it did not."""
    if usage.exit_code == 0:
        return usage
    last = "\n".join((folder / "output.txt").read_text(errors="replace").strip().splitlines()[-15:])
    raise BenchError(f"{what} ended with exit code {usage.exit_code}; see {folder}\n{last}")


# Servers -------------------------------------------------------------------------------------------------------------


class Served:
    """A server in another process that has printed its address."""

    def __init__(self, process: subprocess.Popen[bytes], started: float, url: str) -> None:
        self._process, self._started, self.url = process, started, url

    def stop(self) -> Usage:
        """Stop the server and return its usage."""
        self._process.send_signal(signal.SIGTERM)
        return wait(self._process, self._started)

    def seen(self) -> dict[str, Any]:
        """Return what clients have asked a bare server so far: the fields of `bare_server.Seen`."""
        with urllib.request.urlopen(f"{self.url}/bench", timeout=60) as answer:
            seen: dict[str, Any] = json.load(answer)
        return seen

    def release(self) -> None:
        """Let all held batches of a bare server end."""
        urllib.request.urlopen(f"{self.url}/bench/release", data=b"", timeout=60).close()


@contextmanager
def served(script: str, *options: str) -> Iterator[Served]:
    """Start a script of this folder that prints `listening on URL`, and stop it by SIGTERM after the block."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, str(HERE / script), *options], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode()
        if not line.startswith("listening on "):
            raise BenchError(f"{script} ended or printed something else instead of its address; see its messages above")
        yield Served(process, started, line.removeprefix("listening on ").strip())
    finally:
        if process.returncode is None:
            process.terminate()
            process.wait()
        process.stdout.close()


@contextmanager
def prefect_server(environment: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Start a Prefect server in another process, as in a deployment; yield the environment of its clients."""
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
            raise BenchError("Prefect's server did not respond within 60 s of its start")
        yield {**environment, "PREFECT_API_URL": url}
    finally:
        server.terminate()
        server.wait()


# The programs that are compared --------------------------------------------------------------------------------------


def environment_for(base_url: str, folder: Path, database: str | None = None) -> dict[str, str]:
    """Return the caller's environment without what would change a run: keys, settings of the pipeline, proxies.

    Nor has it the variable with which each start compiles the modules of a tree that was never installed.
    folder: for Prefect's files, and for the state database if `database` is None.
    """
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    foreign = ("ANTHROPIC_", "BATCH_", "PREFECT_", *proxies, "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    ours = {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": "sk-bench", "BATCH_POLL_SECONDS": "0.1"}
    ours["BATCH_DATABASE_URL"] = database or f"sqlite:///{folder / SQLITE_FILES['pipeline']}"
    if database is not None:
        ours["BATCH_SPOOL"] = str(folder / "spool")
    ours |= {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return kept | ours


def pipeline_command() -> str:
    """Return the path of `batch-pipeline`. Raises BenchError if it is not installed."""
    beside = Path(sys.executable).with_name("batch-pipeline")
    command = str(beside) if beside.exists() else shutil.which("batch-pipeline")
    if command is None:
        raise BenchError(NO_COMMAND)
    return command


def write_job(folder: Path, source: Path, *, batch: int = BATCH, kind: Kind = SUMMARY) -> Path:
    """Write the job file of the pipeline and return its path. batch: the largest number of requests of a batch."""
    job = folder / "bench.yaml"
    job.write_text(JOB.format(source=source, batch=batch, request=kind.request) + kind.more, encoding="utf-8")
    return job


def command_for(
    program: str,
    source: Path,
    folder: Path,
    options: argparse.Namespace,
    database: str | None,
    tree: Path | None = None,
    *,
    batch: int = BATCH,
    kind: Kind = SUMMARY,
) -> list[str]:
    """Return the command line of a program. options: those of the benchmark.

    database: a URL of PostgreSQL; None: a SQLite file in its folder. tree: the pipeline is run from the tree in
    PYTHONPATH; None: from the installed package. batch, kind: of the pipeline's job.
    """
    if program == "plain":
        where = [str(folder / SQLITE_FILES[program])] if database is None else ["--database", database]
        return [
            sys.executable,
            str(HERE / "plain_script.py"),
            str(source),
            *where,
            "--batch-size",
            str(options.plain_batch),
        ]
    job = write_job(folder, source, batch=batch, kind=kind)
    if program == "flow":
        return [sys.executable, "-m", "flows.run_job", str(job)]
    start = [pipeline_command()] if tree is None else [sys.executable, "-c", START]
    processes = [] if options.processes is None else ["--processes", str(options.processes)]
    return [*start, "run", str(job), "--yes", "--json", *processes]


def check_answers(
    program: str, folder: Path, rows: int, database: str | None = None, holds: str = SUMMARY.holds
) -> None:
    """Raise BenchError if the table does not have exactly `rows` keys, each once and each succeeded with its answer.

    holds: see `Kind`.
    """
    succeeded = f"sum(CASE WHEN status = 'succeeded' AND {holds} THEN 1 ELSE 0 END)"
    query = f"SELECT count(*), count(DISTINCT id), {succeeded} FROM {TABLES[program]}"
    try:
        counts = _one_row(query, folder / SQLITE_FILES[program], database)
    except Exception as exc:
        raise BenchError(f"{program}: its answers cannot be read: {exc}; see {folder}") from exc
    if counts != (rows, rows, rows):
        raise BenchError(
            f"{program}: rows, different keys, succeeded rows are {counts}; each should be {rows}; see {folder}"
        )


def _one_row(query: str, file: Path, database: str | None) -> tuple[Any, ...] | None:
    if database is None:
        with closing(sqlite3.connect(file)) as sqlite:
            row: tuple[Any, ...] | None = sqlite.execute(query).fetchone()
            return row
    import psycopg

    with psycopg.connect(database) as postgres:
        return postgres.execute(query.encode()).fetchone()


def measure(
    bench: Bench,
    scenario: str,
    program: str,
    source: Path,
    rows: int,
    *,
    database: str | None = None,
    keep: bool = False,
    tree: Path | None = None,
    batch: int = BATCH,
    kind: Kind = SUMMARY,
) -> Measurement:
    """Measure one run in a new folder with a new server. batch, kind: of the pipeline's job.

    database: the URL of an empty PostgreSQL database; None: SQLite. keep: keep folder and database as `bench.answered`.
    tree: a checkout whose code is run; None: the installed package.
    """
    options = bench.options
    with bench.fresh_folder(f"{program}-{rows}") as folder:
        command = command_for(program, source, folder, options, database, tree, batch=batch, kind=kind)
        with served("bare_server.py", *(["--answer", kind.answer] if kind.answer else [])) as server:
            environment: Mapping[str, str] = environment_for(server.url, folder, _for_sqlalchemy(database))
            if tree is not None:
                environment = {**environment, "PYTHONPATH": str(tree)}
            with prefect_server(environment) if program == "flow" else nullcontext(environment) as environment:
                client, events = run(command, folder, environment, timeout=options.timeout)
            seen = server.seen()
            usage = server.stop()
        succeeded(client, f"{program} with {rows:,} rows", folder)
        check_answers(program, folder, rows, database, kind.holds)
        file = folder / SQLITE_FILES[program]
        size = file.stat().st_size if database is None else 0
        if keep:
            if bench.answered is not None:
                shutil.rmtree(bench.answered)
            bench.answered = folder
    suffix = source.suffix.removeprefix(".")
    stages, sent = events.stages(), (seen["create_bytes"], size, seen["sent"])
    return Measurement(scenario, program, suffix, rows, client, usage, stages, *sent)


def stage_seconds(run: Mapping[str, Any]) -> list[float]:
    """Return the seconds of each of STAGES and of the REST, of a measurement in the report; empty without stages."""
    ends = [*(run["stages"].get(stage) for stage in STAGES), run["client"]["wall_seconds"]]
    return [] if None in ends else [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]


def _for_sqlalchemy(url: str | None) -> str | None:
    return None if url is None else url.replace("postgresql://", "postgresql+psycopg://", 1)


# What is printed -----------------------------------------------------------------------------------------------------

HEADER = "      rows  program   source    wall s    cpu s  peak MB    rows/s  server cpu s"


def line(measurement: Measurement) -> str:
    """Return a measurement as a line under HEADER."""
    client, server = measurement.client, measurement.server
    return (
        f"{measurement.rows:>10,}  {measurement.program:<9} {measurement.source:<8}{client.wall_seconds:>8.1f} "
        f"{client.cpu_seconds:>8.1f} {client.peak_mb:>8.0f} {measurement.rows_per_second:>9,.0f} "
        f"{server.cpu_seconds:>13.1f}"
    )


def record(bench: Bench, measurement: Measurement) -> Measurement:
    """Print a measurement that counts, and keep it for the report."""
    print(line(measurement), flush=True)
    bench.measurements.append(measurement)
    return measurement


def at_least(what: str, value: float, measured: str, least: float, target: str, *, judged: bool = True) -> Line:
    """Return a line whose target is `least` or more. judged: whether the target is for the measured size."""
    return Line(what, measured, target, value >= least if judged else None, value)


def below(what: str, value: float, measured: str, limit: float, target: str, *, judged: bool = True) -> Line:
    """Return a line whose target is less than `limit`. judged: whether the target is for the measured size."""
    return Line(what, measured, target, value < limit if judged else None, value)


def peak(what: str, measurements: Iterable[Measurement], *, judged: bool = True) -> Line:
    """Return the line of the largest peak memory of these measurements."""
    megabytes = max(each.client.peak_mb for each in measurements)
    return below(f"{what}: peak memory", megabytes, f"{megabytes:.0f} MB", 400, "under 400 MB", judged=judged)
