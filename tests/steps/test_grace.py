"""Every command that drives batches warns when the grace time is shorter than the lease."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from flows.collect_results import collect_results
from flows.run_job import run_job
from pipeline.api import client as api
from pipeline.api.client import Api
from pipeline.cli.app import main
from pipeline.driver.settings import Settings
from pipeline.emulator import start
from pipeline.job.endpoint import Endpoint
from pipeline.runner.sweep import sweep
from tests.conftest import World
from tests.support.processes import environment, put_job

WARNING = (
    "BATCH_GRACE_SECONDS=60 is less than BATCH_LEASE_SECONDS=120: a driver that has lost its lease may still be "
    "sending when the API's listing is taken for complete, and a batch may be paid twice; set BATCH_GRACE_SECONDS to "
    "120 or more"
)


@pytest.fixture
def real_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide that the emulator is one, so that the driver takes it for the API."""
    monkeypatch.setattr(api, "EMULATOR", "another organization")


def warnings(world: World) -> list[str]:
    return [facts["warning"] for facts in world.told("warning")]


@pytest.mark.usefixtures("real_api")
@pytest.mark.parametrize("world", ["SQLite"], indirect=True)
def test_each_command_warns_once_of_a_grace_time_below_the_lease(world: World) -> None:
    world.run(world.job(), detach=True)
    after_run = warnings(world)
    world.events.clear()

    where = replace(world.where(), connect=lambda _: Api(world.client(), now=world.clock))
    for client in ("default", "aws"):  # as of a sweep over jobs that speak by several clients
        with where.driving(Endpoint(client)):
            pass
    sweep(where)

    assert after_run == [WARNING]
    assert warnings(world) == [WARNING]


@pytest.mark.usefixtures("real_api")
@pytest.mark.parametrize("world", ["SQLite"], indirect=True)
@pytest.mark.parametrize("grace", [120.0, 300.0], ids=["as long", "longer"])
def test_a_grace_time_as_long_as_the_lease_gives_no_warning(world: World, grace: float) -> None:
    world.with_settings(grace=grace)

    world.run(world.job())

    assert warnings(world) == []


@pytest.mark.parametrize("world", ["SQLite"], indirect=True)
def test_the_emulator_needs_no_grace_time(world: World) -> None:
    world.run(world.job())

    assert warnings(world) == []


def test_the_default_settings_give_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCH_GRACE_SECONDS", "BATCH_LEASE_SECONDS"):
        monkeypatch.delenv(name, raising=False)

    assert Settings.from_environment().warning() is None


Ran = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ran:
    """Return a function that runs a command in a job's folder with a short grace time and returns its stderr."""

    def ran(url: str, *arguments: str) -> str:
        for name, value in environment(url, BATCH_GRACE_SECONDS="60").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["batch-pipeline", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capfd.readouterr().err
        assert exit_.value.code == 0, said
        return said

    put_job(tmp_path, rows=3)
    monkeypatch.chdir(tmp_path)
    return ran


@pytest.mark.usefixtures("real_api")
def test_only_commands_that_drive_batches_warn_of_a_short_grace_time(command: Ran, tmp_path: Path) -> None:
    with start(tmp_path / "emulator", processing_seconds=60) as running:
        said = {
            name: command(running.url, *name.split())
            for name in (
                "check notes.yaml",
                "run notes.yaml --detach",
                "status notes.yaml",
                "collect",
                "cancel notes.yaml",
                "errors notes.yaml",
            )
        }

    driving = {name.split()[0] for name, stderr in said.items() if f"warning  {WARNING}\n" in stderr}
    assert driving == {"run", "collect", "cancel"}


def test_a_command_with_its_own_emulator_gives_no_warning(command: Ran) -> None:
    said = command("http://nowhere", "run", "notes.yaml", "--emulator")

    assert "BATCH_LEASE_SECONDS" not in said


@pytest.mark.usefixtures("real_api")
def test_a_flow_continues_after_the_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put_job(tmp_path, rows=3)
    with start(tmp_path / "emulator", processing_seconds=60) as running, disable_run_logger():
        for name, value in environment(running.url, BATCH_DATABASE_URL=f"sqlite:///{tmp_path}/batches.db").items():
            monkeypatch.setenv(name, value)

        submitted = run_job.fn(str(file))
        running.emulator.clock.advance(61)
        running.emulator.wait_idle()
        collected = collect_results.fn()

    assert (submitted.name, collected.name) == ("Submitted", "Completed")
