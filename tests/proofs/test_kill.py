"""Real processes lose no row: drivers are killed at any moment or run at the same time, and the API goes down."""

import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.emulator import RunningEmulator, start
from tests.support.processes import ROWS, begin, environment, kill, put_job, until


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "emulator", processing_seconds=0.2) as running:
        yield running


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return put_job(tmp_path)


def command(api: RunningEmulator, *arguments: str) -> "subprocess.Popen[str]":
    return begin(environment(api.url), *arguments)


def answers(job: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(job.parent / "batches.db") as database:
        return list(database.execute("SELECT id, status FROM note_summaries ORDER BY CAST(id AS INTEGER)"))


EVERY_ROW = [(str(i), "succeeded") for i in range(ROWS)]


@pytest.mark.parametrize(
    ("event", "times"),
    [
        ("quote", 1),
        ("planned", 1),
        ("submitting", 1),
        ("submitting", 3),
        ("submitted", 2),
        ("ended", 1),
        ("collected", 1),
    ],
    ids=lambda value: str(value),
)
def test_the_same_command_after_a_kill_ends_with_every_row_once(
    api: RunningEmulator, job: Path, event: str, times: int
) -> None:
    killed = command(api, "run", str(job), "--json")
    until(killed, event, times)
    kill(killed)

    again = command(api, "run", str(job), "--json")
    said, errors = again.communicate(timeout=60)

    assert again.returncode == 0, errors
    assert json.loads(said.splitlines()[-1])["state"] == "finished"
    assert answers(job) == EVERY_ROW
    api.emulator.wait_idle()
    audit = api.emulator.audit()
    assert (audit["requests_accepted"], audit["accepted_twice"]) == (ROWS, [])


@pytest.mark.long
@pytest.mark.parametrize("event", ["quote", "planned", "submitting", "submitted", "ended", "collected"])
def test_the_same_trial_after_a_kill_ends_with_every_row_once(api: RunningEmulator, job: Path, event: str) -> None:
    words = ("trial", str(job), "--name", "base", "--sample", "1000", "--json")
    killed = command(api, *words)
    until(killed, event)
    kill(killed)

    again = command(api, *words)
    said, errors = again.communicate(timeout=60)

    assert again.returncode == 0, errors
    assert json.loads(said.splitlines()[-1])["state"] == "finished"
    with sqlite3.connect(job.parent / "batches.db") as database:
        query = "SELECT id, status FROM note_summaries_trials WHERE trial = 'base' ORDER BY CAST(id AS INTEGER)"
        assert list(database.execute(query)) == EVERY_ROW
    assert answers(job) == []
    api.emulator.wait_idle()
    audit = api.emulator.audit()
    assert (audit["requests_accepted"], audit["accepted_twice"]) == (ROWS, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_says_so_and_the_same_command_continues(
    api: RunningEmulator, job: Path, number: signal.Signals
) -> None:
    interrupted = command(api, "run", str(job), "--json")
    until(interrupted, "planned")
    interrupted.send_signal(number)
    _, said = interrupted.communicate(timeout=60)
    again = command(api, "run", str(job), "--json")
    _, errors = again.communicate(timeout=60)

    assert interrupted.returncode == 130
    assert "interrupted: nothing is lost" in said
    assert "Traceback" not in said
    assert again.returncode == 0, errors
    assert answers(job) == EVERY_ROW
    assert api.emulator.audit()["requests_accepted"] == ROWS


def test_a_create_that_was_accepted_while_the_driver_died_is_adopted(api: RunningEmulator, job: Path) -> None:
    api.emulator.add_fault(
        on="create", do="delay", seconds=30, times=1
    )  # the response is delayed, the batch is accepted
    killed = command(api, "run", str(job), "--json")
    until(killed, "submitting")
    wait_for_a_batch(api)
    kill(killed)

    again = command(api, "run", str(job), "--json")
    said, errors = again.communicate(timeout=60)

    assert again.returncode == 0, errors
    assert '"adopted"' in said
    assert answers(job) == EVERY_ROW
    assert api.emulator.audit()["requests_accepted"] == ROWS


def wait_for_a_batch(api: RunningEmulator) -> None:
    for _ in range(2000):
        if api.emulator.audit()["batches"]:
            return
        api.emulator.wait_idle(0.05)
    raise AssertionError("no batch was accepted")


def test_runs_and_sweeps_at_the_same_time_share_the_work_and_all_finish(api: RunningEmulator, job: Path) -> None:
    drivers = [command(api, "run", str(job), "--json") for _ in range(3)]
    drivers += [command(api, "collect", "--database", f"sqlite:///{job.parent}/batches.db") for _ in range(2)]

    said = [driver.communicate(timeout=120) for driver in drivers]

    for driver, (_, errors) in zip(drivers[:3], said, strict=False):
        assert driver.returncode == 0, errors
    assert answers(job) == EVERY_ROW
    api.emulator.wait_idle()
    audit = api.emulator.audit()
    assert (audit["requests_accepted"], audit["accepted_twice"]) == (ROWS, [])


def test_an_unreachable_api_is_reported_in_one_sentence(tmp_path: Path, job: Path) -> None:
    with start(tmp_path / "gone") as gone:
        pass

    run = command(gone, "run", str(job))
    _, said = run.communicate(timeout=60)

    assert run.returncode == 2
    assert f"no answer from {gone.url}" in said
    assert "nothing was sent" in said
    assert "Traceback" not in said
