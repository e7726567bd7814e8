"""A Prefect server, a process worker and the deployments of prefect.yaml, all for one test."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
PREFECT = Path(sys.executable).with_name("prefect")
PATIENCE = 90.0  # seconds to wait, because the machine may be busy


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a Prefect process without other Prefect settings, keys or telemetry."""
    ours = ("PREFECT_", "ANTHROPIC_", "BATCH_", "PIPELINE_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    offline = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    }
    return inherited | offline | more


@dataclass
class Stack:
    """A server at `url` and its processes. project: a team's repository, with job files and prefect.yaml."""

    project: Path
    url: str
    environ: dict[str, str]
    log: Path
    client: httpx.Client
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    server: "subprocess.Popen[bytes] | None" = None

    def start_server(self) -> None:
        """Start the server in a new session. A server that is started again has its earlier data."""
        port = str(self.client.base_url.port)
        command = [str(PREFECT), "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui"]
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                command, cwd="/", env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        self.until(lambda: _is_up(self.client), "the server")

    def kill_server(self) -> None:
        """Kill the server by SIGKILL."""
        assert self.server is not None
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait(PATIENCE)

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of Prefect in the project, and wait for its end."""
        return subprocess.run(
            [PREFECT, *arguments],
            cwd=self.project,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def python(self, *arguments: str, without: tuple[str, ...] = (), **more: str) -> "subprocess.CompletedProcess[str]":
        """Run Python in the project, and wait for its end. without, more: variables to remove and to add."""
        environ = {name: value for name, value in self.environ.items() if name not in without} | more
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.project,
            env=environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start_worker(self, **more: str) -> "subprocess.Popen[bytes]":
        """Start a process worker in a new session."""
        with self.log.open("ab") as log:
            worker = subprocess.Popen(
                [PREFECT, "worker", "start", "--pool", "batches", "--type", "process"],
                cwd="/",
                env=self.environ | {"PIPELINE_ROOT": str(self.project)} | more,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def stop_worker(self, worker: "subprocess.Popen[bytes]", number: int = signal.SIGTERM) -> None:
        """Stop a worker; with SIGKILL also the processes of its flows."""
        if number == signal.SIGKILL:
            os.killpg(worker.pid, number)
        else:
            worker.send_signal(number)
        worker.wait(PATIENCE)
        self.workers.remove(worker)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call the server's API and return its response."""
        answer = self.client.request(method, path, json=body)
        deadline = time.monotonic() + PATIENCE
        while (
            answer.status_code == 503 and time.monotonic() < deadline
        ):  # the server's SQLite database is locked; clients retry
            time.sleep(0.2)
            answer = self.client.request(method, path, json=body)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def deployments(self) -> dict[str, dict[str, Any]]:
        """Return the deployments by name."""
        return {each["name"]: each for each in self.ask("POST", "/deployments/filter", {})}

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment, as the UI does, and return its id."""
        chosen = self.deployments()[deployment]
        run = self.ask("POST", f"/deployments/{chosen['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def flow_run(self, run: str) -> dict[str, Any]:
        """Return what the server knows about a run."""
        found: dict[str, Any] = self.ask("GET", f"/flow_runs/{run}")
        return found

    def ended(self, run: str) -> dict[str, Any]:
        """Wait until the run is in a final state, and return it."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.until(lambda: self.flow_run(run)["state"]["type"] in final, f"the end of {run}")
        return self.flow_run(run)

    def run(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Start a run of a deployment, wait for its end, and return it."""
        return self.ended(self.start(deployment, **parameters))

    def logs(self, run: str) -> list[str]:
        """Return the text of the run's log."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return [each["message"] for each in self.ask("POST", "/logs/filter", wanted)]

    def artifacts(self, run: str) -> dict[str, Any]:
        """Return the data of the run's artifacts, by key."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}, "sort": "CREATED_DESC"}
        found = self.ask("POST", "/artifacts/filter", wanted)
        return {each["key"]: each["data"] for each in reversed(found)}

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events with this name."""
        found = self.ask("POST", "/events/filter", {"filter": {"event": {"name": [name]}}})
        return list(found["events"])

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until a condition is true."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come; the log:\n{self.log.read_text(errors='replace')[-8000:]}")
            time.sleep(0.2)


@contextlib.contextmanager
def stack(folder: Path, **more: str) -> Iterator[Stack]:
    """Yield a server with the deployments of prefect.yaml and without a worker; all its processes end with the block.

    The project is a copy of what a team's own repository has: job files, their sources, and prefect.yaml.
    """
    project = folder / "project"
    project.mkdir()
    shutil.copy(ROOT / "prefect.yaml", project)
    ignored = shutil.ignore_patterns("*.db*", "spool")
    shutil.copytree(ROOT / "sample_data", project / "sample_data", ignore=ignored)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    lease_storage = "prefect.server.concurrency.lease_storage.filesystem"
    environ = environment(
        folder / "prefect",
        PREFECT_API_URL=url,
        PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=lease_storage,
        PREFECT_SERVER_DATABASE_TIMEOUT="60",
        PREFECT_WORKER_QUERY_SECONDS="1",
        **more,
    )
    with httpx.Client(base_url=url, timeout=30) as client:
        made = Stack(project, url, environ, folder / "prefect.log", client)
        try:
            made.start_server()
            for arguments in (("work-pool", "create", "batches", "--type", "process"), ("deploy", "--all")):
                ran = made.prefect("--no-prompt", *arguments)
                assert ran.returncode == 0, ran.stdout + ran.stderr
            yield made
        finally:
            for process in (*made.workers, made.server):
                if process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait(PATIENCE)


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """Return a port that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
