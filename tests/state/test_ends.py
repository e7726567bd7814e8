"""The end of a run is announced even if the process dies between the commit and the announcement."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select

import pipeline
from pipeline.cli.app import main
from pipeline.emulator import RunningEmulator, start
from pipeline.job.model import Job
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run
from pipeline.state import ends
from pipeline.state.jobs import job_named
from pipeline.state.tables import runs
from pipeline.steps.cancel import cancel
from tests.conftest import World, texts
from tests.support import dying, processes

POSTGRESQL_IS_LONG = True

ROOT = Path(__file__).parents[2]


def fails(world: World, row: int) -> None:
    """Let the API refuse this row once."""
    world.emulator.add_fault(on="item", do="refuse", match=f"Text number {row} ", times=1)


def tells_nobody(world: World, job: Job, **options: Any) -> Finished:
    """Start a `run` that dies when the end of its run is committed."""
    return run(job, world.where(), Options(**options))


def announced(world: World) -> list[bool]:
    """Return for each run whether its end is noted as announced."""
    with world.database.read() as conn:
        return [at is not None for at in conn.scalars(select(runs.c.announced_at).order_by(runs.c.id))]


# -- ends of earlier runs --------------------------------------------------------------------------------------------


def test_an_unannounced_bad_end_is_announced_by_the_next_run_and_only_once(world: World) -> None:
    fails(world, 1)
    tells_nobody(world, world.job())

    second = world.run(world.job())
    told = world.told("run_ended")
    third = world.run(world.job())

    [end] = told
    assert (end["run"], end["job"], end["rows"]) == (1, "summaries", {"succeeded": 4, "refused": 1})
    assert end["when"] == "before this command"
    assert (second.rows, second.exit_code) == ({}, 1)
    assert (world.told("run_ended"), third.exit_code) == (told, 0)
    assert announced(world) == [True, True, True]


def test_an_unannounced_good_end_is_noted_without_being_announced(world: World) -> None:
    tells_nobody(world, world.job())

    second = world.run(world.job())

    assert (world.told("run_ended"), second.exit_code) == ([], 0)
    assert announced(world) == [True, True]


def test_the_exit_code_is_that_of_the_worst_end(world: World) -> None:
    fails(world, 1)
    tells_nobody(world, world.job())
    world.rows(texts(20))
    tells_nobody(world, world.job(limits={"max_cost_usd": 0.000001}))

    ended = world.run(world.job(request={"prompt": "Again: {{ text }}"}))

    assert ended.state == "finished"
    told = world.told("run_ended")[-2:]
    assert [(end["run"], end["state"]) for end in told] == [(1, "finished"), (2, "incomplete")]
    assert ended.exit_code == 3


def test_the_exit_code_of_a_continued_run_is_that_of_its_last_end(world: World) -> None:
    tells_nobody(world, world.job(limits={"max_cost_usd": 0.000001}))

    ended = world.run(world.job(limits={"max_cost_usd": 1}))

    assert (ended.run_id, ended.state, ended.exit_code) == (1, "finished", 0)


def test_a_second_end_after_an_announced_one_is_announced_too(world: World) -> None:
    stopped = world.run(world.job(limits={"max_cost_usd": 0.000001}))
    fails(world, 1)
    tells_nobody(world, world.job(limits={"max_cost_usd": 1}))

    ends.note_told(world.database, stopped.told, world.clock())  # by a process that was slow to note the first end
    after = world.run(world.job(limits={"max_cost_usd": 1}))

    assert [end["run"] for end in world.told("run_ended")] == [1]
    assert after.exit_code == 1


def test_a_dry_run_announces_no_ends(world: World) -> None:
    fails(world, 1)
    tells_nobody(world, world.job())

    quoted = world.run(world.job(), dry_run=True)

    assert (quoted.exit_code, announced(world)) == (0, [False])
    assert world.run(world.job()).exit_code == 1


def test_each_of_two_drivers_of_one_run_announces_its_end(world: World) -> None:
    fails(world, 1)

    both = world.run_beside(world.job(), "waiting")

    assert [(ended.run_id, ended.exit_code) for ended in both] == [(1, 1), (1, 1)]
    assert announced(world) == [True]


def test_the_end_of_another_run_is_announced_and_does_not_change_the_exit_code(world: World) -> None:
    fails(world, 1)
    first = world.job(vars={"day": "monday"})
    world.run(first, detach=True)
    world.rows([*texts(5), {"id": "new", "text": "Another text."}])

    second = world.run(world.job(vars={"day": "tuesday"}))

    [end] = world.told("run_ended")
    assert (end["run"], end["when"]) == (1, "while this command ran")
    assert (second.rows, second.exit_code) == ({"succeeded": 1}, 0)
    assert announced(world) == [True, True]


def test_an_end_is_noted_once(world: World) -> None:
    ended = tells_nobody(world, world.job())
    ends.note_told(world.database, ended.told, world.clock())
    at = world.clock()
    world.clock.advance(60)

    ends.note_told(world.database, ended.told, world.clock())

    with world.database.read() as conn:
        assert conn.scalar(select(runs.c.announced_at)) == at


def test_cancel_announces_the_runs_that_it_or_a_cancel_that_died_has_ended(world: World) -> None:
    world.run(world.job(), detach=True)
    with world.database.read() as conn:
        row = job_named(conn, "summaries")
    assert row is not None
    died = world.where()
    died.stop.event.set()  # it stops after the transaction that ends the runs

    with pytest.raises(Exception, match="interrupted"):
        cancel(died, row)
    before = announced(world)
    cancel(world.where(), row)

    assert (before, announced(world)) == ([False], [True])


# -- processes that die ----------------------------------------------------------------------------------------------


@pytest.fixture
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningEmulator]:
    """An API that refuses one row the first time it is sent."""
    with start(tmp_path / "emulator", processing_seconds=getattr(request, "param", 0.05)) as running:
        running.emulator.add_fault(on="item", do="refuse", match="plant number 1.", times=1)
        yield running


slow = pytest.mark.parametrize("api", [60.0], ids=["slow"], indirect=True)  #: an API that takes a minute for a batch


@pytest.fixture
def folder(tmp_path: Path, api: RunningEmulator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with notes.yaml, a job over six rows; the environment names the API."""
    folder = tmp_path / "work"
    folder.mkdir()
    processes.put_job(folder, rows=6)
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "BATCH_"))]:
        monkeypatch.delenv(name)
    for name, value in {**processes.environment(api.url), "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return folder


class Ran(NamedTuple):
    """The exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def ran(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["batch-pipeline", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert isinstance(exit_.value.code, int)
        return Ran(exit_.value.code, *capfd.readouterr())

    return ran


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def dies(place: str, what: str, *arguments: str, module: str = "pipeline.cli") -> str:
    """Run a command in another process that dies at a given place, see tests.support.dying; return its output."""
    died = python("-m", "tests.support.dying", place, what, module, *arguments)
    assert died.returncode == dying.DEAD, died.stderr
    return died.stdout + died.stderr


def let_batches_end(api: RunningEmulator) -> None:
    api.emulator.clock.advance(61)
    api.emulator.wait_idle()


OWN_END = "run 1    finished: 6 rows: 5 succeeded, 1 refused"
AFTERWARDS = "run 1 ended before this command: 1 of 6 rows failed; next: batch-pipeline errors notes.yaml\n"
SWEPT = "run 1 of notes ended: 1 of 6 rows failed; next: batch-pipeline errors notes\n"

PLACES = pytest.mark.parametrize(
    ("place", "what"),
    [("before", "end"), ("after", "end"), ("before", "note")],
    ids=["before it is committed", "after it is committed", "after it was told"],
)


@PLACES
def test_the_end_of_a_run_whose_process_died_is_announced_by_the_next_run(
    command: Command, folder: Path, place: str, what: str
) -> None:
    died = dies(place, what, "run", "notes.yaml")

    again = command("run", "notes.yaml")
    third = command("run", "notes.yaml")

    assert (OWN_END in died) == (what == "note")
    assert (OWN_END if place == "before" and what == "end" else AFTERWARDS) in again.err
    assert again.code == 1
    assert (third.code, "run 1 " in third.err) == (0, False)


def test_an_end_that_was_noted_before_the_process_died_is_not_announced_again(command: Command) -> None:
    said = dies("after", "note", "run", "notes.yaml")

    again = command("run", "notes.yaml")

    assert OWN_END in said
    assert (again.code, "run 1 " in again.err) == (0, False)


def test_a_sweep_announces_the_end_of_a_run_that_died_with_a_command_to_paste(command: Command) -> None:
    dies("after", "end", "run", "notes.yaml")

    swept = command("collect", "--database", "sqlite:///batches.db")
    as_json = command("collect", "--json")
    again = command("run", "notes.yaml")

    line = "run 1 of notes ended: 1 of 6 rows failed; next: batch-pipeline errors notes --database sqlite:///batches.db"
    assert line in swept.err.splitlines()
    assert swept.code == 0
    assert as_json.out == ""
    assert (again.code, "run 1 " in again.err) == (0, False)


def test_the_end_of_a_run_that_died_is_announced_as_json(command: Command) -> None:
    dies("after", "end", "run", "notes.yaml")

    again = command("run", "notes.yaml", "--json")

    [end] = [event for event in map(json.loads, again.out.splitlines()) if event["event"] == "run_ended"]
    assert (end["run"], end["state"], end["rows"]) == (1, "finished", {"succeeded": 5, "refused": 1})
    assert again.code == 1


@slow
@PLACES
def test_after_a_sweep_that_died_the_next_one_announces_the_end(
    command: Command, api: RunningEmulator, place: str, what: str
) -> None:
    command("run", "notes.yaml", "--detach")
    let_batches_end(api)
    died = dies(place, what, "collect")

    swept = command("collect")
    silent = command("collect")

    assert (SWEPT in died) == (what == "note")
    assert SWEPT in swept.err
    assert "run 1 " not in silent.err


@slow
def test_a_sweep_announces_the_end_of_a_cancel_that_died(command: Command) -> None:
    command("run", "notes.yaml", "--detach")
    dies("after", "end", "cancel", "notes.yaml")

    swept = command("collect")

    assert "run 1 of notes ended: it stopped early, it was canceled; next: batch-pipeline status notes\n" in swept.err


def test_a_python_script_hears_of_the_end_of_a_run_that_died(folder: Path) -> None:
    (folder / "script.py").write_text('import pipeline\npipeline.run(pipeline.load_job("notes.yaml"))\n')
    dies("after", "end", module="script")
    lines: list[str] = []

    again = pipeline.run(pipeline.load_job("notes.yaml"), tell=lines.append)
    third = pipeline.run(pipeline.load_job("notes.yaml"), tell=lines.append)

    assert [line for line in lines if line.startswith("run ")] == [AFTERWARDS.removesuffix(".yaml\n")]
    assert ([end.run_id for end in again.earlier], again.exit_code) == ([1], 1)
    assert (third.earlier, third.exit_code) == ((), 0)
