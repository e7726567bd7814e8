"""`collect --follow`, as real processes: it waits for the first run, and ends when no run is open."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.app import main
from pipeline.emulator import RunningEmulator, start
from tests.support.processes import begin, environment, kill, put_job, until

ROWS = 8
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])


@pytest.fixture
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "emulator", processing_seconds=getattr(request, "param", 0.2)) as running:
        yield running


slow = pytest.mark.parametrize("api", [600.0], ids=["slow"], indirect=True)  #: an API that takes long for a batch


@pytest.fixture
def job(tmp_path: Path) -> str:
    return str(put_job(tmp_path, rows=ROWS, max_batch_requests=3))


def command(api: RunningEmulator, *arguments: str) -> "subprocess.Popen[str]":
    return begin(environment(api.url), *arguments)


def done(api: RunningEmulator, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, and return what it wrote."""
    process = command(api, *arguments)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def statuses(job: str) -> list[str]:
    with sqlite3.connect(Path(job).parent / "batches.db") as database:
        return [status for (status,) in database.execute("SELECT status FROM note_summaries")]


def end_all(api: RunningEmulator) -> None:
    """Let the API end all batches."""
    api.emulator.clock.advance(1000)
    api.emulator.wait_idle()


# -- waiting for the first run ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_followers_that_start_before_the_database_exists_end_with_the_first_run(api: RunningEmulator, job: str) -> None:
    followers = [command(api, "collect", job, "--follow", "--json"), command(api, "collect", job, "--follow")]
    for follower in followers:
        assert follower.stderr is not None
        assert follower.stderr.readline().startswith("waiting: there is no database sqlite:///")

    ran = done(api, "run", job, "--json")
    (out, _), (text, said) = [follower.communicate(timeout=120) for follower in followers]

    assert [ran.returncode, *(follower.returncode for follower in followers)] == [0, 0, 0], said
    assert [event["event"] for event in events(out)[-2:]] == ["run", "status"]
    assert {**events(out)[-2], "cost_usd": None} == {
        "event": "run",
        "job": "notes",
        "run_id": 1,
        "state": "finished",
        "reason": None,
        "rows": {"succeeded": ROWS},
        "cost_usd": None,
    }
    assert f"run 1    of notes finished: {ROWS} rows: {ROWS} succeeded, $" in said
    assert said.count("waiting: there is no database") == 0  # it was said once
    assert said.splitlines()[-1] == f"next: batch-pipeline export {job}"
    assert f"{ROWS} rows: {ROWS} succeeded" in text
    assert statuses(job) == ["succeeded"] * ROWS
    assert api.emulator.audit()["requests_accepted"] == ROWS


@SIGNALS
def test_a_follower_that_waits_for_the_database_can_be_interrupted(
    api: RunningEmulator, job: str, number: signal.Signals
) -> None:
    follower = command(api, "collect", job, "--follow")
    assert follower.stderr is not None
    follower.stderr.readline()

    follower.send_signal(number)
    _, said = follower.communicate(timeout=60)

    assert follower.returncode == 130
    assert "interrupted: nothing is lost; run the same command again to continue" in said


@pytest.mark.long
def test_a_name_that_the_database_does_not_know_is_refused_and_a_job_file_is_waited_for(
    api: RunningEmulator, job: str, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/batches.db"
    done(api, "run", job)
    other = tmp_path / "other.yaml"
    other.write_text(Path(job).read_text().replace("name: notes", "name: others").replace("note_summaries", "others"))

    refused = done(api, "collect", "tikets", "--follow", "--database", database)
    follower = command(api, "collect", str(other), "--follow", "--json")
    until(follower, "no_run_open")
    ran = done(api, "run", str(other))
    out, _ = follower.communicate(timeout=120)

    assert refused.returncode == 2
    assert "knows no job 'tikets' (it knows: notes)" in refused.stderr
    assert (ran.returncode, follower.returncode) == (0, 0)
    assert [event["job"] for event in events(out) if event["event"] == "run"] == ["others"]


def test_no_password_is_shown_while_the_database_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], postgres_url: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["batch-pipeline", "collect", "--database", postgres_url])

    with pytest.raises(SystemExit):
        main()

    said = capfd.readouterr().err
    assert "there is no database" in said
    assert "***" in said


# -- following -------------------------------------------------------------------------------------------------------


@slow
@SIGNALS
def test_a_follower_can_be_interrupted_and_the_same_command_continues(
    api: RunningEmulator, job: str, number: signal.Signals
) -> None:
    done(api, "run", job, "--detach")
    follower = command(api, "collect", job, "--follow")
    assert follower.stderr is not None
    assert any(line.startswith("waiting: ") for line in follower.stderr)

    follower.send_signal(number)
    _, said = follower.communicate(timeout=60)
    end_all(api)
    again = done(api, "collect", job, "--follow")

    assert follower.returncode == 130
    assert "interrupted: nothing is lost; run the same command again to continue" in said
    assert again.returncode == 0
    assert statuses(job) == ["succeeded"] * ROWS


@pytest.mark.long
@slow
@pytest.mark.parametrize(("event", "times"), [("ended", 1), ("collected", 2)])
def test_another_follower_continues_after_a_kill(api: RunningEmulator, job: str, event: str, times: int) -> None:
    text = Path(job).read_text()  # the third batch is sent when the others have ended, and takes long
    Path(job).write_text(text.replace("max_batch_requests: 3", "max_batch_requests: 3, max_in_flight_requests: 6"))
    done(api, "run", job, "--detach")
    end_all(api)
    killed = command(api, "collect", job, "--follow", "--json")
    until(killed, event, times)
    kill(killed)

    again = command(api, "collect", job, "--follow", "--json")
    out = None
    while out is None:
        try:
            out, _ = again.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            end_all(api)

    assert again.returncode == 0
    assert [(end["run_id"], end["state"]) for end in events(out) if end["event"] == "run"] == [(1, "finished")]
    assert statuses(job) == ["succeeded"] * ROWS
    audit = api.emulator.audit()
    assert (audit["requests_accepted"], audit["accepted_twice"]) == (ROWS, [])


def test_the_exit_code_is_that_of_the_run_and_the_next_command_is_said(api: RunningEmulator, job: str) -> None:
    api.emulator.add_fault(on="item", do="refuse", match="Note 3:", times=1)
    done(api, "run", job, "--detach")
    database = f"sqlite:///{Path(job).parent}/batches.db"

    followed = done(api, "collect", "--follow", "--poll-seconds", "0.2", "--database", database)
    after = done(api, "run", job)

    assert followed.returncode == 1
    assert f"run 1    of notes finished: {ROWS} rows: {ROWS - 1} succeeded, 1 refused, $" in followed.stderr
    assert followed.stderr.splitlines()[-1] == f"next: batch-pipeline errors notes --database {database}"
    assert (after.returncode, "before this command" in after.stderr) == (0, False)  # the follower has told the end
