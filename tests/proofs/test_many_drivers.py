"""Many processes drive one job at the same time and are killed: every row is accepted once and ends once."""

import itertools
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.emulator import start
from pipeline.runner.verify import verify
from pipeline.sink.read import ndjson
from pipeline.state.database import Database
from pipeline.state.jobs import job_named
from pipeline.state.runs import last_run
from pipeline.states import RunState
from tests.support.processes import begin, environment, put_job

pytestmark = pytest.mark.long


@pytest.fixture(params=["PostgreSQL", "SQLite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "PostgreSQL":
        return str(request.getfixturevalue("migrated_url"))
    return f"sqlite:///{tmp_path}/batches.db"


def test_eight_drivers_do_every_row_once_although_two_are_killed_each_second(tmp_path: Path, url: str) -> None:
    drivers, rows = (8, 20_000) if url.startswith("postgresql") else (4, 4_000)
    put_job(tmp_path, rows=rows, max_batch_requests=rows // 20)

    with start(tmp_path / "emulator", processing_seconds=2.0) as api:
        settings = {"BATCH_DATABASE_URL": url, "BATCH_SPOOL": str(tmp_path / "spool")}
        patient = environment(api.url, **settings, BATCH_GRACE_SECONDS="1", BATCH_POLL_SECONDS="0.5")
        ended, killed = drive(tmp_path, patient, drivers, lambda: is_finished(url))
        api.emulator.wait_idle()
        audit = api.emulator.audit()

    assert [(code, said) for code, said in ended if code != 0] == []
    assert killed > 0
    assert (audit["requests_accepted"], audit["accepted_twice"]) == (rows, [])
    database = Database(url)
    with database.read() as conn:
        job = job_named(conn, "notes")
    assert job is not None
    found = verify(database, job)
    assert (found.holds, found.statuses, found.waiting) == (True, {"succeeded": rows}, 0), found.shown
    assert len({json.loads(line)["id"] for line in ndjson(database, job)}) == rows
    database.close()


def is_finished(url: str) -> bool:
    """Return whether the run of the job has ended. Drivers need some more seconds to notice that."""
    with closing(Database(url)) as database, database.read() as conn:
        job = job_named(conn, "notes")
        last = None if job is None else last_run(conn, job.id)
    return last is not None and last.state == RunState.FINISHED


def drive(
    folder: Path, variables: dict[str, str], drivers: int, is_done: Callable[[], bool]
) -> tuple[list[tuple[int, str]], int]:
    """Run so many drivers, kill a quarter of them each second and start others, until the job is done.

    Returns exit code and errors of those that lived to their end, and how many were killed.
    """
    chance = random.Random(0)  # chooses the drivers; the moments are not reproducible

    def another(number: int) -> "subprocess.Popen[str]":
        with open(folder / f"driver{number}.err", "wb") as errors:
            return begin(variables, "run", str(folder / "notes.yaml"), stdout=subprocess.DEVNULL, stderr=errors)

    numbers = itertools.count()
    alive = {number: another(number) for number in itertools.islice(numbers, drivers)}
    ended: list[tuple[int, str]] = []
    killed, next_kill = 0, time.monotonic() + 4.0  # drivers need some time to start
    while alive:
        for number, process in list(alive.items()):
            try:
                code = process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            del alive[number]
            ended.append((code, (folder / f"driver{number}.err").read_text()))
        if time.monotonic() >= next_kill and not ended and not is_done():  # after that, all drivers may end
            next_kill = time.monotonic() + 1.0
            for number in chance.sample(sorted(alive), min(drivers // 4, len(alive))):
                alive[number].send_signal(signal.SIGKILL)
                alive.pop(number).wait()
                killed += 1
                fresh = next(numbers)
                alive[fresh] = another(fresh)
    return ended, killed
