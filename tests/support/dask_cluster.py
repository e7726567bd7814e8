"""A Dask cluster on this machine, whose scheduler and workers are processes that tests kill."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.prefect_stack import PATIENCE, free_port

LOADED = ("--preload", "flows.collect_tasks", "--preload", "flows.tool_tasks")  # else the first task takes seconds


@dataclass
class Cluster:
    """A Dask scheduler and its workers, each with one thread."""

    address: str
    folder: Path
    environ: dict[str, str]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a process of the cluster, which ends with the cluster."""
        with (self.folder / "dask.log").open("ab") as log:
            command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments, *LOADED]
            command += ["--dashboard-address", "127.0.0.1:0"]
            process = subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_worker(self, name: str) -> "subprocess.Popen[bytes]":
        """Start a worker that is not restarted when it is killed."""
        alone = ("--no-nanny", "--nthreads", "1", "--host", "127.0.0.1")
        return self.start("dask_worker", self.address, "--name", name, *alone, "--local-directory", str(self.folder))

    def wait_for_workers(self, number: int) -> None:
        """Wait until the scheduler answers and has so many workers."""
        code = f"from distributed import Client; Client({self.address!r}).wait_for_workers({number}, {PATIENCE})"
        if number == 0:
            code = f"from distributed import Client; Client({self.address!r})"
        subprocess.run([sys.executable, "-c", code], cwd=self.folder, env=self.environ, timeout=PATIENCE, check=True)


@contextlib.contextmanager
def cluster(folder: Path, environ: dict[str, str], workers: int) -> Iterator[Cluster]:
    """Run a cluster on this machine during the block. Its first process is the scheduler, the others are workers."""
    folder.mkdir()
    port = free_port()
    made = Cluster(f"tcp://127.0.0.1:{port}", folder, environ)
    try:
        made.start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port))
        for number in range(workers):
            made.start_worker(f"worker-{number}")
        made.wait_for_workers(workers)
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait(PATIENCE)
