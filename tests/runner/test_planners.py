"""A run whose rows are planned by processes of their own."""

import contextlib
import importlib
import json
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from pipeline.api.reach import Reach
from pipeline.emulator import start
from pipeline.emulator.running import RunningEmulator
from pipeline.errors import PipelineError
from pipeline.planning.messages import Failed
from pipeline.planning.plan import Plan
from pipeline.runner import planners, processes
from pipeline.runner.options import Options
from pipeline.runner.run import run as run_job
from tests.conftest import World
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


def marked_rows(job: Path) -> list[int]:
    """Return the number of rows of each mark that a source is settled."""
    with sqlite3.connect(job.with_name("batches.db")) as database:
        return [rows for (rows,) in database.execute("SELECT rows FROM stretches WHERE first = 0")]


def test_another_process_plans_and_the_events_are_as_with_one(api: RunningEmulator, job: Path) -> None:
    code, events, errors = ended(run(api, job))

    planned = [event for event in events if event["event"] == "planned"]
    assert code == 0, errors
    assert [event["job"] for event in planned] == ["notes"] * 30
    assert sum(event["rows"] for event in planned) == ROWS
    assert {"planned_elsewhere", "taken_over", "warning"}.isdisjoint(event["event"] for event in events), errors
    assert (events[-1]["event"], events[-1]["state"]) == ("run", "finished")
    every_row_once(api, job)
    assert marked_rows(job) == [ROWS]


def test_a_planner_sends_equal_requests_once_whatever_becomes_of_their_batches_meanwhile(
    api: RunningEmulator, job: Path
) -> None:
    rows = "".join(f"{i},The plant number {i % 40} is dry.\n" for i in range(ROWS))
    (job.parent / "notes.csv").write_text(f"id,text\n{rows}")
    job.write_text(job.read_text().replace("max_batch_requests: 40", "max_batch_requests: 10"))

    code, events, errors = ended(run(api, job))

    assert code == 0, errors
    assert api.emulator.audit()["requests_accepted"] == 40
    assert (events[-1]["event"], events[-1]["rows"]) == ("run", {"succeeded": ROWS})


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
    assert marked_rows(job) == [ROWS]


def test_when_the_planner_dies_in_pass_one_the_driver_quotes_and_plans(api: RunningEmulator, job: Path) -> None:
    driver = run(api, job)
    while not (pids := children(driver)):
        assert driver.poll() is None
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    code, events, errors = ended(driver)

    assert code == 0, errors
    assert "has ended" in next(event["warning"] for event in events if event["event"] == "warning")
    every_row_once(api, job)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_wrong_source_is_refused_in_the_same_words(api: RunningEmulator, job: Path, processes: str) -> None:
    with (job.parent / "notes.csv").open("a") as notes:
        notes.write("7,the key of another note\n")

    code, events, errors = ended(run(api, job, "--processes", processes))

    assert code == 2
    assert errors.splitlines()[-1] == (
        "error: source.key: id: several rows have the same key: 7 in notes.csv row 8, notes.csv row 1201; "
        "choose columns whose values identify each row"
    )
    assert "planned" not in {event["event"] for event in events}
    assert api.emulator.audit()["requests_accepted"] == 0


def test_rows_that_changed_are_found_and_the_others_stay(api: RunningEmulator, job: Path) -> None:
    header, *rows = (job.parent / "notes.csv").read_text().splitlines()
    (job.parent / "notes.csv").unlink()
    for i in range(2):
        (job.parent / f"part{i}.csv").write_text("\n".join([header, *rows[i::2], ""]))
    job.write_text(job.read_text().replace("notes.csv", "part*.csv"))
    assert ended(run(api, job))[0] == 0
    with (job.parent / "part1.csv").open("a") as part:
        part.write("another,a new text\n")

    code, events, errors = ended(run(api, job))
    idle, of_idle, _ = ended(run(api, job))

    assert (code, idle) == (0, 0), errors
    assert [event["rows"] for event in events if event["event"] == "planned"] == [1]
    assert "planned" not in {event["event"] for event in of_idle}
    assert api.emulator.audit()["accepted_twice"] == []
    assert api.emulator.audit()["requests_accepted"] == ROWS + 1


@pytest.mark.parametrize(
    ("options", "wanted_by_job", "expected"),
    [
        pytest.param(Options(processes=None), None, 0, id="nobody wants one"),
        pytest.param(Options(processes=None), 2, 1, id="the job wants one"),
        pytest.param(Options(), 2, 0, id="a flow"),
        pytest.param(Options(processes=3), None, 1, id="one planner for one file"),
        pytest.param(Options(processes=2, limit=3), None, 0, id="the first rows only"),
        pytest.param(Options(processes=2, dry_run=True), None, 0, id="the quote only"),
    ],
)
def test_how_many_planners_a_run_has(world: World, options: Options, wanted_by_job: int | None, expected: int) -> None:
    plan = Plan(world.job(limits={"processes": wanted_by_job}))
    with_reach = replace(world.where(), reach=lambda client: Reach("default", 60.0))

    assert planners.number_of_planners(plan, with_reach, options) == expected


@pytest.mark.parametrize(
    ("asked", "wanted_by_job", "megabytes", "cores", "expected"),
    [
        pytest.param(None, None, 21, {0, 1}, 2, id="a large source"),
        pytest.param(None, None, 19, {0, 1}, 1, id="a small source"),
        pytest.param(None, None, 21, {0}, 1, id="one core"),
        pytest.param(None, 1, 21, {0, 1}, 1, id="the job wants one"),
        pytest.param(3, 1, 0, {0}, 3, id="the command asks for three"),
    ],
)
def test_how_many_processes_work_on_a_run(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    wanted_by_job: int | None,
    megabytes: int,
    cores: set[int],
    expected: int,
) -> None:
    job = world.job(limits={"processes": wanted_by_job})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)

    assert processes.how_many(job, asked, megabytes * 1_000_000) == expected


def test_the_size_of_a_source_of_one_local_file_is_known(world: World) -> None:
    world.rows([{"id": 1, "text": "a"}])
    job = world.job()
    (file,) = job.source.path or []
    several = world.job(source={**job.source.model_dump(), "path": [file, file]})
    missing = world.job(source={**job.source.model_dump(), "path": ["missing.csv"]})

    assert processes.size_of_local_file(job) == Path(file).stat().st_size > 0
    assert processes.size_of_local_file(several) == processes.size_of_local_file(missing) == 0


def test_processes_that_were_started_ahead_are_used_and_ended() -> None:
    with processes.PlannerProcesses(1) as ahead:
        (first,) = ahead.at_least(1)
        both = ahead.at_least(2)

        assert both[0] is first
        assert first.poll() is None

    assert [process.returncode for process in both] == [-signal.SIGKILL, -signal.SIGKILL]


@pytest.mark.parametrize("wanted", [1, 2])
def test_planners_end_when_all_rows_are_planned_or_the_driver_plans(world: World, wanted: int) -> None:
    world.rows([{"id": n, "text": "a"} for n in range(3)])
    with processes.PlannerProcesses(1) as ahead:
        (planner,) = ahead.at_least(1)
        where = replace(world.where(), reach=lambda client: Reach("default", 60.0))
        finished = run_job(world.job(), where, Options(processes=wanted, planners=ahead))

        assert planner.returncode == -signal.SIGKILL
    assert finished.rows == {"succeeded": 3}


def errors_of_planning() -> list[type[PipelineError]]:
    """Return all errors that a planner may hand to its driver."""
    importlib.import_module("pipeline.storage.objects")
    found, kinds = [PipelineError], list[type[PipelineError]]()
    while found:
        kinds.append(found.pop())
        found += kinds[-1].__subclasses__()
    return kinds


@pytest.mark.parametrize("kind", errors_of_planning())
def test_each_error_reaches_the_driver_as_it_was_raised(kind: type[PipelineError]) -> None:
    error = kind("rows.csv: what happened")

    sent = pickle.loads(pickle.dumps(Failed(error)))

    assert (type(sent.error), str(sent.error)) == (kind, "rows.csv: what happened")


def test_a_planner_does_not_import_the_sdk() -> None:
    looked = (
        "import sys; from pipeline.planning import worker; print(sorted({'anthropic', 'httpx2'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


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
    pids = children(driver)
    kill(driver)

    assert pids != []
    assert all(map(has_ended, pids))
    code, _, errors = ended(
        begin(environment(api.url, BATCH_LEASE_SECONDS="1"), "run", str(job), "--yes", "--json", "--processes", "2")
    )
    assert code == 0, errors
    every_row_once(api, job)


def test_ctrl_c_ends_both_and_the_same_command_continues(api: RunningEmulator, job: Path) -> None:
    driver = run(api, job)
    until(driver, "planned", 3)
    pids = children(driver)
    driver.send_signal(signal.SIGINT)

    code, _, errors = ended(driver)

    assert code == 130
    assert "Traceback" not in errors
    assert all(map(has_ended, pids))
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


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_drivers_and_planners_killed_at_random_lose_no_row_and_pay_none_twice(
    api: RunningEmulator, job: Path, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(12):
        driver = begin(
            environment(api.url, BATCH_LEASE_SECONDS="1"), "run", str(job), "--yes", "--json", "--processes", "2"
        )
        assert driver.stdout is not None
        for _ in range(chance.randrange(25)):
            driver.stdout.readline()
        if chance.random() < 0.5:
            for pid in children(driver):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for _ in range(chance.randrange(10)):
                driver.stdout.readline()
        kill(driver)

    code, _, errors = ended(
        begin(environment(api.url, BATCH_LEASE_SECONDS="1"), "run", str(job), "--yes", "--json", "--processes", "2")
    )

    assert code == 0, errors
    every_row_once(api, job)
