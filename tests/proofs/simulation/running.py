"""Run schedules with the time, random numbers and threads of a world."""

import contextlib
import queue
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import anthropic._base_client
import pytest
from sqlalchemy import delete
from sqlalchemy import text as sql

from pipeline import prefetch
from pipeline.api import client as api
from pipeline.driver import listing
from pipeline.emulator import ids
from pipeline.emulator.http import router
from pipeline.request import packing
from pipeline.runner import submitter
from pipeline.spool import local
from pipeline.state import holders, leases
from pipeline.state.database import Database
from pipeline.state.tables import metadata
from pipeline.steps import submit
from pipeline.tools import calls
from tests.proofs.simulation.constants import (
    START,
)
from tests.proofs.simulation.replacements import AtOnce, Renewal, TurnQueue, TurnSemaphore, TurnThread
from tests.proofs.simulation.schedule import Schedule
from tests.proofs.simulation.world import World


class Shelf:
    """A folder and a database that many schedules use one after the other, so that tables are created only once."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        """url: a database on a PostgreSQL server; None: a SQLite file."""
        self.folder = folder
        self.database = Database(url or f"sqlite:///{folder}/batches.db")

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def clear(self) -> None:
        """Remove the data of the last schedule."""
        for name in ("emulator", "spool"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        with self.database.write() as conn:
            for each in reversed(metadata.sorted_tables):
                conn.execute(delete(each))
            for name in ("answers", "answers_history", "answers_trials"):
                conn.execute(sql(f"DROP TABLE IF EXISTS {name}"))


@contextlib.contextmanager
def turned(world: World, seed: int) -> Iterator[None]:
    """Let the pipeline use this world's time, random numbers and threads instead of the machine's."""
    nonces = random.Random(f"nonces {seed}")
    began = time.time()
    chance = SimpleNamespace(
        token_bytes=nonces.randbytes, token_hex=lambda n: nonces.randbytes(n).hex(), choice=nonces.choice
    )
    clock = SimpleNamespace(
        monotonic=world.monotonic,
        time=lambda: began + (world.at - START).total_seconds(),
        time_ns=time.time_ns,
        sleep=lambda seconds: world.wait(lambda: False, seconds, "the SDK, to try again"),
    )
    threads = SimpleNamespace(
        Thread=lambda target, name, daemon: TurnThread(world, target, name),
        Semaphore=lambda value: TurnSemaphore(world, value),
    )
    renewals = SimpleNamespace(
        Thread=lambda target, args, daemon, name: Renewal(world, target, args), Event=threading.Event
    )

    def holder() -> dict[str, Any]:
        assert world.process is not None
        return world.process.holder

    def runs(pid: int, started: str) -> bool:
        """Return whether a process of the running machine has this id; both machines have the same ids."""
        assert world.process is not None
        here = (process for process in world.processes if process.machine == world.process.machine)
        return any(
            (process.pid, process.holder["started"]) == (pid, started) and process.state in ("running", "stopped")
            for process in here
        )

    start = calls.Toolbox._start

    def start_call(toolbox: calls.Toolbox, place: int, use: Mapping[str, Any], ended: Any) -> None:
        world.tools.note(use["id"])
        start(toolbox, place, use, ended)

    with pytest.MonkeyPatch.context() as patch:
        for module in (holders, leases):
            patch.setattr(module, "holder", holder)
        patch.setattr(holders, "_runs", runs)
        for module in (packing, leases, local, ids, router):
            patch.setattr(module, "secrets", chance)
        for module in (leases, submit, local, anthropic._base_client):
            patch.setattr(module, "time", clock)
        for module in (submitter, submit):
            patch.setattr(module, "threading", threads)
        patch.setattr(prefetch, "ThreadPoolExecutor", AtOnce)
        patch.setattr(local, "FORGOTTEN_SECONDS", float("inf"))  # the files have the time of the machine
        patch.setattr(leases, "threading", renewals)
        patch.setattr(submit, "random", nonces)
        patch.setattr(calls, "time", clock)
        patch.setattr(calls, "threading", threads)
        patch.setattr(calls, "queue", SimpleNamespace(SimpleQueue=lambda: TurnQueue(world), Empty=queue.Empty))
        patch.setattr(calls.Toolbox, "_start", start_call)
        patch.setattr(api, "PAGE", 3)  # so that a few batches are a listing of several pages
        patch.setattr(listing, "LEAST", 2)  # and are asked after by it
        yield


def simulate(seed: int, shelf: Shelf, say: Callable[[str], None] = lambda what: None) -> None:
    """Run one schedule. Raises Violation."""
    shelf.clear()
    world = World(seed, shelf.folder, shelf.database, say)
    with turned(world, seed), world.emulator:
        try:
            Schedule(world).play()
        finally:
            world.turns.end(task for process in world.processes for task in process.tasks)


@contextlib.contextmanager
def a_shelf(*, postgresql: bool = False) -> Iterator[Shelf]:
    """Yield a shelf, in memory if the machine has such a folder; for PostgreSQL with a new server."""
    in_memory = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="simulation-", dir=in_memory if in_memory.is_dir() else None)
        )
        url = None
        if postgresql:
            from tests.support.postgres import own_server, url_of

            url = url_of(stack.enter_context(own_server()))
        yield stack.enter_context(contextlib.closing(Shelf(Path(folder), url)))


def replay(seed: int) -> str:
    """Return the command that shows a schedule step by step."""
    return f"python -m tests.proofs.simulation --seed {seed} -v"
