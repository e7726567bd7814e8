"""A run whose rows are planned by processes of their own."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from pipeline.emulator import start
from pipeline.emulator.running import RunningEmulator
from tests.support.processes import begin, environment, kill, put_job, until

ROWS = 1_200
DEADLINE = 60.0  # seconds for a process to end by itself


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "emulator", processing_seconds=0.05) as running:
        yield running


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Return a job whose planning takes many batches."""
    file = put_job(tmp_path, rows=ROWS, max_batch_requests=40)
    file.write_text(file.read_text() + "canary: false\n")
    return file


def run(api: RunningEmulator, job: Path, *options: str) -> "subprocess.Popen[str]":
    return begin(environment(api.url), "run", str(job), "--yes", "--json", "--processes", "2", *options)


def children(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def has_ended(pid: int) -> bool:
    """Return whether a process that is no child of ours ends before the deadline."""
    deadline = monotonic() + DEADLINE
    while monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
    return False


def ended(process: "subprocess.Popen[str]") -> tuple[int, list[dict[str, Any]], str]:
    """Wait for a driver. Return its exit code, the events that were not read yet, and its errors."""
    out, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, [json.loads(line) for line in out.splitlines()], errors


def every_row_once(api: RunningEmulator, job: Path) -> None:
    """Check that each row has an answer and that none was paid twice."""
    with sqlite3.connect(job.with_name("batches.db")) as database:
        counted = database.execute("SELECT count(*), count(DISTINCT id), sum(status = 'succeeded') FROM note_summaries")
        assert counted.fetchone() == (ROWS, ROWS, ROWS)
    audit = api.emulator.audit()
    assert audit["accepted_twice"] == []
    assert audit["requests_accepted"] == ROWS


def test_another_process_plans_and_the_events_are_as_with_one(api: RunningEmulator, job: Path) -> None:
    code, events, errors = ended(run(api, job))

    planned = [event for event in events if event["event"] == "planned"]
    assert code == 0, errors
    assert [event["job"] for event in planned] == ["notes"] * 30
    assert sum(event["rows"] for event in planned) == ROWS
    assert "planned_elsewhere" not in {event["event"] for event in events}
    assert (events[-1]["event"], events[-1]["state"]) == ("run", "finished")
    every_row_once(api, job)


def test_several_planners_take_one_file_after_the_other(api: RunningEmulator, job: Path) -> None:
    header, *rows = (job.parent / "notes.csv").read_text().splitlines()
    (job.parent / "notes.csv").unlink()
    for i in range(3):
        part = "\n".join([header, *rows[i::3], ""])
        (job.parent / f"part{i}.csv").write_text(part)
    job.write_text(job.read_text().replace("notes.csv", "part*.csv"))

    code, _, errors = ended(run(api, job, "--processes", "3"))

    assert code == 0, errors
    every_row_once(api, job)


@pytest.mark.parametrize("nth", [1, 7])
def test_when_a_planner_dies_the_driver_plans_the_rest(api: RunningEmulator, job: Path, nth: int) -> None:
    driver = run(api, job)
    until(driver, "planned", nth)
    for pid in children(driver):
        os.kill(pid, signal.SIGKILL)

    code, _, _ = ended(driver)

    assert code == 0
    every_row_once(api, job)


def test_when_the_driver_dies_its_planner_ends_and_the_same_command_continues(api: RunningEmulator, job: Path) -> None:
    driver = run(api, job)
    until(driver, "planned", 3)
    planners = children(driver)
    kill(driver)

    assert planners != []
    assert all(map(has_ended, planners))
    code, _, errors = ended(
        begin(environment(api.url, BATCH_LEASE_SECONDS="1"), "run", str(job), "--yes", "--json", "--processes", "2")
    )
    assert code == 0, errors
    every_row_once(api, job)


def test_ctrl_c_ends_both_and_the_same_command_continues(api: RunningEmulator, job: Path) -> None:
    driver = run(api, job)
    until(driver, "planned", 3)
    planners = children(driver)
    driver.send_signal(signal.SIGINT)

    code, _, errors = ended(driver)

    assert code == 130
    assert "Traceback" not in errors
    assert all(map(has_ended, planners))
    assert ended(run(api, job))[0] == 0
    every_row_once(api, job)


def test_a_module_of_the_current_folder_is_not_taken_for_ours(api: RunningEmulator, job: Path) -> None:
    for name in ("pipeline", "polars"):
        (job.parent / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    command = ["-P", "-m", "pipeline.cli", "run", str(job), "--yes", "--json", "--processes", "2"]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}

    done = subprocess.run(
        [sys.executable, *command],
        cwd=job.parent,
        env=environment(api.url) | paths,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "not ours" not in done.stderr
    every_row_once(api, job)


def test_the_password_of_the_database_is_in_no_command_line(api: RunningEmulator, job: Path) -> None:
    driver = run(api, job)
    until(driver, "planned")

    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(driver)]

    kill(driver)
    assert lines != []
    assert all(b"sqlite" not in line and api.url.encode() not in line for line in lines)
