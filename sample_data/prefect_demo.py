"""`make prefect-demo`: start a Prefect server, a worker and the emulator; deploy, run a nightly job, and sweep.

All that it starts it stops, and all that it writes goes into a folder that it removes.
"""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from pipeline.emulator import start

ROOT = Path(__file__).parent.parent
PREFECT = Path(sys.executable).with_name("prefect")
PATIENCE = 120.0  # the longest wait in seconds
BATCH_SECONDS = 3.0  # processing time of a batch in the emulator


def main() -> int:
    """Run the demo, and return 0 if all answers are stored."""
    with tempfile.TemporaryDirectory(prefix="prefect-demo-") as name:
        folder = Path(name)
        with start(folder / "emulator", processing_seconds=BATCH_SECONDS) as emulator:
            print(f"emulator   {emulator.url}")
            return _demo(folder, emulator.url)


def _demo(folder: Path, api: str) -> int:
    port = _free_port()
    environ = _environ(folder, api, port)
    database = folder / "batches.db"
    with (folder / "log").open("wb") as log:

        @contextlib.contextmanager
        def running(*arguments: str) -> Iterator[None]:
            process = subprocess.Popen(
                [str(PREFECT), *arguments], cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True
            )
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

        def prefect(*arguments: str) -> None:
            print(f"$ prefect {' '.join(arguments)}")
            ran = subprocess.run(
                [PREFECT, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
            )
            if ran.returncode:
                sys.exit(f"{ran.stdout}{ran.stderr}\n{(folder / 'log').read_text(errors='replace')[-3000:]}")

        with running("server", "start", "--host", "127.0.0.1", "--port", str(port)):
            _until(lambda: _is_up(port), "the server")
            print(f"server     http://127.0.0.1:{port} (as long as this runs)")
            prefect("--no-prompt", "work-pool", "create", "batches", "--type", "process")
            prefect("--no-prompt", "deploy", "--all")
            with running("worker", "start", "--pool", "batches", "--type", "process"):
                # With a canary, the first 20 rows would be sent alone, and the rest would need a second sweep.
                prefect(
                    "deployment", "run", "run-job/nightly-document-summarization", "-p", "no_canary=true", "--watch"
                )
                print("           the run has ended and holds no worker; the API works")
                time.sleep(BATCH_SECONDS + 2)
                prefect("deployment", "run", "collect-results/collect-results", "--watch")
                _print_runs(port)
    return _print_answers(database)


def _environ(folder: Path, api: str, port: int) -> dict[str, str]:
    ours = ("PREFECT_", "ANTHROPIC_", "BATCH_", "PIPELINE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PIPELINE_ROOT": str(ROOT),
        "ANTHROPIC_BASE_URL": api,
        "ANTHROPIC_API_KEY": "emulated",
        "BATCH_DATABASE_URL": f"sqlite:///{folder}/batches.db",
    }


def _print_runs(port: int) -> None:
    wanted = {"sort": "START_TIME_ASC", "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}}
    for run in httpx.post(f"http://127.0.0.1:{port}/api/flow_runs/filter", json=wanted).json():
        print(f"run        {run['name']}: {run['state']['name']}: {run['state']['message']}")


def _print_answers(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as database:
        by_status = database.execute("SELECT status, count(*), sum(cost_usd) FROM document_summaries GROUP BY status")
        for status, rows, cost in by_status:
            print(f"answers    {rows} {status}, ${cost:.2f}")
        for key, text in database.execute("SELECT doc_id, text FROM document_summaries ORDER BY doc_id LIMIT 3"):
            print(f"  {key}\n    {text}")
        succeeded = database.execute("SELECT count(*) FROM document_summaries WHERE status = 'succeeded'").fetchone()[0]
    return 0 if succeeded == 500 else 1


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come within {PATIENCE:.0f} s")
        time.sleep(0.2)


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/health").is_success
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
