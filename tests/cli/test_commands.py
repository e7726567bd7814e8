"""Commands print what they should and end with the right exit code, over real HTTP."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from pipeline.cli.app import app, main
from pipeline.emulator import RunningEmulator, start
from pipeline.errors import Interrupted
from pipeline.planning import packer
from pipeline.runner import processes
from pipeline.state.database import Database
from pipeline.storage import digests

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Summarize: {{ text }}"}
sink: {table: answers}
"""
NOTES = "id,text\n" + "".join(f"n{i},Note number {i} is about the plant number {i}.\n" for i in range(6))


class Ran(NamedTuple):
    """The exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    @property
    def next(self) -> list[str]:
        """The words of the next command that it prints."""
        [line] = [line for line in self.err.splitlines() if line.startswith("next: ")]
        return shlex.split(line.removeprefix("next: batch-pipeline "))

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that --json printed."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Ran]


@pytest.fixture
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningEmulator]:
    with start(tmp_path / "emulator", processing_seconds=getattr(request, "param", 0.05)) as running:
        yield running


slow = pytest.mark.parametrize("api", [60.0], ids=["slow"], indirect=True)  #: an API that takes a minute for a batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB)
    (folder / "notes.csv").write_text(NOTES)
    return folder


@pytest.fixture
def command(
    api: RunningEmulator, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that runs a command in the job's folder, in this process."""

    def ran(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["batch-pipeline", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        assert "Traceback" not in captured.err
        return Ran(exit_.value.code, captured.out, captured.err)

    for name, value in environment(api).items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "BATCH_"))]:
        if name not in environment(api):
            monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    return ran


def environment(api: RunningEmulator) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": api.url,
        "ANTHROPIC_API_KEY": "emulated",
        "BATCH_POLL_SECONDS": "0.02",
        "BATCH_GRACE_SECONDS": "0.2",
        "NO_PROXY": "*",
    }


def fail(api: RunningEmulator, note: int, do: str, **fault: Any) -> None:
    """Let the first request for this note fail."""
    api.emulator.add_fault(on="item", do=do, match=f"Note number {note} ", times=1, **fault)


# -- errors, retry ---------------------------------------------------------------------------------------------------


def test_the_commands_that_errors_prints_make_every_row_succeed(command: Command, api: RunningEmulator) -> None:
    fail(api, 1, "max_tokens")
    fail(api, 2, "refuse")
    fail(api, 3, "cancel")
    fail(api, 4, "error", error_type="a_new_error")
    ran = command("run", "job.yaml")
    assert (ran.code, ran.next) == (1, ["errors", "job.yaml"])

    said = []
    while ran.next[0] != "export":
        errors = command("errors", "job.yaml")
        said.append(errors.next)
        ran = command(*errors.next)

    assert sorted(said) == [
        ["retry", "job.yaml", "--status", "canceled"],
        ["retry", "job.yaml", "--status", "errored", "--error-type", "a_new_error"],
        ["retry", "job.yaml", "--status", "refused", "--set", "request.model=claude-sonnet-5"],
        ["retry", "job.yaml", "--status", "truncated", "--set", "request.max_tokens=120"],
    ]
    assert ran.code == 0
    assert command("verify", "job.yaml", "--source").code == 0
    assert len(list(api.emulator.accepted())) == 10


def test_errors_names_each_cause_with_the_command_that_fixes_it(command: Command, api: RunningEmulator) -> None:
    fail(api, 1, "max_tokens")
    fail(api, 4, "error", error_type="invalid_request_error")
    command("run", "job.yaml")

    text = command("errors", "job.yaml")
    facts = command("errors", "job.yaml", "--json").events

    assert text.code == 0
    assert "1 row truncated (max_tokens): the answer stopped at max_tokens" in text.out
    assert re.search(r"    for example n1 \(msg_\w+\)\n", text.out)
    assert "batch-pipeline retry job.yaml --status truncated --set request.max_tokens=120\n" in text.out
    assert "correct the job file; then: batch-pipeline run job.yaml\n" in text.out
    assert {fact["command"] for fact in facts} == {
        "batch-pipeline run job.yaml",
        "batch-pipeline retry job.yaml --status truncated --set request.max_tokens=120",
    }


def test_a_retry_says_which_rows_are_sent_and_what_they_cost(command: Command, api: RunningEmulator) -> None:
    fail(api, 1, "max_tokens")
    command("run", "job.yaml")

    ran = command("retry", "job.yaml", "--set", "request.max_tokens=100", "--yes")

    assert ran.code == 0
    assert "rows     6 in the source: 1 to send again, 5 not selected\n" in ran.err
    assert "sends    1 request in 1 batch" in ran.err
    assert " to 100 tokens an answer" in ran.err
    assert "run 2    finished: 1 row: 1 succeeded" in ran.err
    assert ran.next == ["export", "job.yaml"]


def test_a_run_prints_the_whole_command_of_an_unfinished_retry(
    command: Command, api: RunningEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(api, 1, "max_tokens")
    command("run", "job.yaml")
    wanted = ["retry", "job.yaml", "--status", "truncated", "--where", "id = 'n1'", "--set", "request.max_tokens=120"]
    with monkeypatch.context() as patch:
        patch.setattr(packer.Packer, "add", interrupted)  # its rows are marked, and in no batch
        died = command(*wanted, "--yes")

    ran = command("run", "job.yaml", "--database", "sqlite:///batches.db")
    as_json = command("run", "job.yaml", "--json")
    said = [line for line in ran.err.splitlines() if line.startswith("retry    ")]
    retried = command(*shlex.split(said[0].partition("batch-pipeline ")[2]))

    assert died.code == Interrupted.exit_code
    assert said == [
        "retry    1 row waits for a retry that is not finished: batch-pipeline retry job.yaml --status truncated "
        "--where 'id = '\"'\"'n1'\"'\"'' --set request.max_tokens=120 --yes --database sqlite:///batches.db"
    ]
    assert "rows     6 in the source: 5 kept, 1 left to a retry that is not finished\n" in ran.err
    assert (ran.code, ran.next) == (0, [*wanted, "--database", "sqlite:///batches.db"])
    (told,) = [fact for fact in as_json.events if fact["event"] == "waits_for_retry"]
    assert told["command"] == f"batch-pipeline {shlex.join(wanted)} --yes"
    assert (retried.code, len(list(api.emulator.accepted()))) == (0, 7)


def interrupted(*_: object) -> None:
    raise Interrupted("dead")


def test_a_retry_ends_with_the_same_exit_codes_as_a_run(command: Command, api: RunningEmulator) -> None:
    api.emulator.add_fault(on="item", do="refuse", match="Note number 1 ", times=2)
    command("run", "job.yaml")

    fails_again = command("retry", "job.yaml", "--json")

    assert (fails_again.code, fails_again.events[-1]["rows"]) == (1, {"refused": 1})


@slow
def test_a_detached_retry_leaves_its_run_open(command: Command, api: RunningEmulator) -> None:
    api.emulator.add_fault(on="item", do="refuse", match="Note number 1 ")
    command("run", "job.yaml", "--detach")
    api.emulator.clock.advance(60)
    command("collect")

    detached = command("retry", "job.yaml", "--detach", "--json")

    assert (detached.code, detached.events[-1]["state"]) == (0, "open")
    assert detached.events[-1].keys() == {"event", "run_id", "state", "reason", "rows", "cost_usd"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([], "no row to send again (answers: 1 canceled, 5 succeeded); add --status canceled", id="no one"),
        pytest.param(
            ["--status", "lost"], "no row has the status lost (answers: 1 canceled, 5 succeeded)", id="none of a status"
        ),
        pytest.param(["--key", "n2"], "row n2: its status is succeeded; add --status succeeded", id="it succeeded"),
        pytest.param(["--key", "n1"], "row n1: its status is canceled; add --status canceled", id="it was canceled"),
        pytest.param(["--key", '["n2"]'], 'row ["n2"]: its status is succeeded', id="a key as JSON"),
        pytest.param(["--key", "n9"], "row n9: the job knows no such row", id="an unknown key"),
        pytest.param(
            ["--key", "n1", "--status", "canceled", "--where", "attempts > 5"],
            "row n1: its answer does not meet --error-type or --where",
            id="a key for which a condition does not hold",
        ),
        pytest.param(
            ["--status", "canceled", "--error-type", "api_error"],
            "no row meets --error-type or --where (rows with a selected status: 1; their error types: canceled)",
            id="no such error type",
        ),
        pytest.param(
            ["--status", "canceled", "--where", "attempts > 5"],
            "no row meets --error-type or --where (rows with a selected status: 1;",
            id="a predicate for which there is none",
        ),
    ],
)
def test_a_retry_without_rows_says_why(command: Command, api: RunningEmulator, arguments: list[str], said: str) -> None:
    fail(api, 1, "cancel")
    command("run", "job.yaml")

    ran = command("retry", "job.yaml", *arguments)
    reasons = [event for event in command("retry", "job.yaml", *arguments, "--json").events if "reasons" in event]

    assert ran.code == 0
    assert said in ran.err
    assert said in reasons[0]["reasons"][0]
    assert len(list(api.emulator.accepted())) == 6


def test_a_retry_says_which_rows_left_the_source_or_were_never_run(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    fail(api, 1, "refuse")
    fail(api, 2, "refuse")
    command("run", "job.yaml", "--limit", "5")
    (folder / "notes.csv").write_text(NOTES.replace("n1,Note", "m1,Note"))

    gone = command("retry", "job.yaml")
    never = command("retry", "job.yaml", "--key", "n5", "--key", "n1")

    assert "1 row is no longer in the source and cannot be sent again, so the answer stays as it is" in gone.err
    assert "run 2    finished: 1 row: 1 succeeded" in gone.err
    assert "row n5: the job knows no such row" in never.err
    assert "1 row is no longer in the source" in never.err


def test_a_retry_of_lost_rows_says_that_it_may_pay_twice(command: Command, api: RunningEmulator) -> None:
    command("run", "job.yaml")

    nothing = command("retry", "job.yaml", "--status", "lost")
    named = command("retry", "job.yaml", "--status", "lost", "--status", "succeeded", "--key", "n1")

    assert "may cost twice" not in nothing.err
    assert "warning  lost rows may have been answered and paid for: sending them again may cost twice" in named.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--status", "done"], "--status done: unknown status", id="a status"),
        pytest.param(["--set", "request.prompt=x"], "--set request.prompt=x: write FIELD=VALUE", id="a field"),
        pytest.param(["--set", "request.max_tokens=0"], "request.max_tokens: Input should be", id="a value"),
        pytest.param(["--set", "request.params.top_k=1"], "request.params.top_k", id="a param the API refuses"),
        pytest.param(["--where", "frobs = 1"], "--where 'frobs = 1' is not a SQL predicate", id="a predicate"),
        pytest.param(["--var", "day=monday"], "--var day: the job declares no such var", id="a var"),
        pytest.param(["--database", "sqlite:///none.db"], "there is no database sqlite:///none.db", id="a database"),
    ],
)
def test_a_wrong_retry_is_refused(command: Command, api: RunningEmulator, arguments: list[str], said: str) -> None:
    fail(api, 1, "refuse")
    command("run", "job.yaml")

    ran = command("retry", "job.yaml", *arguments)

    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == 2
    assert len(errors) == 1
    assert said in errors[0]
    assert len(list(api.emulator.accepted())) == 6


def test_a_job_that_was_never_run_cannot_be_retried(command: Command, folder: Path) -> None:
    command("run", "job.yaml", "--limit", "1")
    (folder / "other.yaml").write_text(JOB.replace("name: notes", "name: others").replace("answers", "theirs"))

    ran = command("retry", "other.yaml")

    assert ran.code == 2
    assert "knows no job 'others' (it knows: notes); run it first" in ran.err


def test_a_retry_uses_the_vars_of_the_last_run_unless_others_are_given(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    dated = JOB.replace("notes.csv", '"{{ vars.day }}.csv"').replace("source:", "vars: {day: today}\nsource:")
    (folder / "job.yaml").write_text(dated)
    (folder / "monday.csv").write_text("id,text\nm,Note number 1 of Monday\n")
    (folder / "tuesday.csv").write_text("id,text\nt,Note number 2 of Tuesday\n")
    fail(api, 1, "refuse")
    fail(api, 2, "refuse")
    command("run", "job.yaml", "--var", "day=tuesday")
    command("run", "job.yaml", "--var", "day=monday")

    by_name = command("retry", "notes")
    given = command("retry", "job.yaml", "--var", "day=tuesday")

    assert "vars     day=monday\n" in by_name.err
    assert "1 to send again" in by_name.err
    assert given.code == 0
    assert given.next == ["export", "job.yaml"]
    assert command("verify", "job.yaml", "--source", "--var", "day=monday").code == 0


@pytest.mark.parametrize(("answer", "accepted"), [("n", 6), ("y", 7)], ids=["no", "yes"])
def test_a_retry_asks_for_confirmation_on_a_terminal(
    command: Command, api: RunningEmulator, folder: Path, answer: str, accepted: int
) -> None:
    fail(api, 1, "refuse")
    command("run", "job.yaml")

    ran, screen = on_a_terminal(api, folder, ["retry", "job.yaml", "--status", "refused"], answer)

    assert ran == 0, screen
    assert "1 to send again" in screen
    assert "send this? [y/N]" in screen
    assert len(list(api.emulator.accepted())) == accepted
    if answer == "n":
        assert "next: batch-pipeline retry job.yaml --status refused" in screen


def on_a_terminal(api: RunningEmulator, folder: Path, arguments: list[str], answer: str) -> tuple[int, str]:
    """Run a command on a terminal and return its exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC_", "BATCH_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=folder,
        env=clean | environment(api),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    screen = b""
    try:
        while chunk := os.read(ours, 4096):
            screen += chunk
    except OSError:  # the terminal is gone with the process
        pass
    os.close(ours)
    return process.wait(timeout=60), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.decode())


# -- cancel ----------------------------------------------------------------------------------------------------------


@slow
def test_cancel_says_what_it_did_and_a_sweep_collects_the_remaining_rows(
    command: Command, api: RunningEmulator
) -> None:
    api.emulator.settings.canceled_share = 1
    command("run", "job.yaml", "--detach")

    canceled = command("cancel", "job.yaml")
    waiting = command("verify", "job.yaml")
    api.emulator.clock.advance(100)
    api.emulator.wait_idle()
    collected = command("collect", "job.yaml")

    assert canceled.code == 0
    assert "canceled 1 open run; 1 batch is still at the API, which was asked to cancel" in canceled.err
    assert canceled.next == ["collect", "job.yaml"]
    assert (waiting.code, waiting.next) == (1, ["collect", "job.yaml"])
    assert "run 1    incomplete: canceled" in collected.out
    assert "6 rows: 6 canceled" in collected.out
    assert collected.next == ["errors", "job.yaml"]
    assert command("verify", "job.yaml").code == 0


@slow
def test_cancel_prints_one_event_as_json(command: Command, api: RunningEmulator) -> None:
    command("run", "job.yaml", "--detach")

    ran = command("cancel", "notes", "--json")

    [event] = [event for event in ran.events if event["event"] == "canceled"]
    assert (event["runs"], event["open"], event["foreign"]) == (1, 1, 0)


@slow
def test_cancel_with_a_key_of_another_account_says_how_to_give_batches_up(
    command: Command, api: RunningEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("run", "job.yaml", "--detach")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "emulated@other-team")

    canceled = command("cancel", "job.yaml")
    given_up = command(*canceled.next)
    verified = command("verify", "job.yaml")

    assert "1 of them sent by another account" in canceled.err
    assert canceled.next == ["cancel", "job.yaml", "--abandon"]
    assert "no batch of the job is at the API any more" in given_up.err
    assert verified.code == 0
    assert "warning  batch 1 is lost: it was sent by another account" in verified.out


@slow
def test_a_run_that_is_canceled_by_another_command_says_so(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    at_work = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", "job.yaml", "--yes"],
        cwd=folder,
        env={**os.environ, **environment(api)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert at_work.stderr is not None
    next(line for line in at_work.stderr if "submitted" in line)

    command("cancel", "job.yaml")
    said = at_work.stderr.read()

    assert at_work.wait(timeout=60) == 3
    assert "run 1    incomplete (canceled): 6 rows: 6 in flight" in said
    assert "it was canceled: requests that succeeded are collected" in said
    assert "next: batch-pipeline collect job.yaml" in said


def test_cancel_says_when_there_is_nothing_to_cancel(command: Command) -> None:
    command("run", "job.yaml")

    ran = command("cancel", "job.yaml")

    assert ran.code == 0
    assert "canceled 0 open runs; no batch of the job is at the API any more" in ran.err
    assert ran.next == ["status", "job.yaml"]


# -- verify ----------------------------------------------------------------------------------------------------------


def test_verify_says_what_was_proven(command: Command, api: RunningEmulator) -> None:
    fail(api, 1, "refuse")
    command("run", "job.yaml")

    ran = command("verify", "job.yaml", "--source")
    facts = command("verify", "job.yaml", "--json").events

    assert ran.code == 0
    assert ran.out == (
        "holds    6 rows: each has one final status, and one answer with that status in table answers\n"
        "         5 succeeded, 1 refused\n"
        "         the API's counts of 1 collected batch (6 requests) agree\n"
        "         6 rows of the source: each has an outcome for its present content\n"
    )
    assert ran.next == ["export", "job.yaml"]
    assert facts == [
        {
            "event": "verify",
            "job": "notes",
            "holds": True,
            "problems": 0,
            "rows": 6,
            "statuses": {"succeeded": 5, "refused": 1},
            "waiting": 0,
            "source_rows": None,
            "gone": None,
            "vanished": 0,
            "batches": 1,
            "requests": 6,
            "lost": [],
            "twins": [],
        }
    ]


def test_verify_names_what_does_not_agree_and_what_to_do(command: Command, folder: Path) -> None:
    command("run", "job.yaml")
    (folder / "notes.csv").write_text(NOTES.replace("Note number 2", "Another text") + "n6,A new one.\n")

    ran = command("verify", "job.yaml", "--source")
    facts = command("verify", "job.yaml", "--source", "--json")
    mended = command(*ran.next)

    assert (ran.code, facts.code) == (1, 1)
    assert ran.out == (
        "does not hold: 2 problems with the job\n"
        "    n2 has changed in the source since its outcome was stored\n"
        "    n6 is in the source and was never planned\n"
    )
    assert [event["of"] for event in facts.events[:-1]] == ["n2", "n6"]
    assert (facts.events[-1]["holds"], facts.events[-1]["problems"]) == (False, 2)
    assert ran.next == ["run", "job.yaml"]
    assert mended.code == 0
    assert command("verify", "job.yaml", "--source").code == 0


@slow
def test_verify_of_an_open_run_says_what_is_not_done(command: Command, api: RunningEmulator) -> None:
    command("run", "job.yaml", "--detach")

    ran = command("verify", "job.yaml")

    assert ran.code == 1
    assert ran.out.startswith(
        "does not hold: 6 problems with 6 rows, 6 of them without an outcome\n    n0 is not done: "
    )
    assert ran.next == ["collect", "job.yaml"]


# -- money, status, the end of a run ---------------------------------------------------------------------------------


def with_limits(folder: Path, limits: str) -> None:
    (folder / "job.yaml").write_text(f"{JOB}limits: {{{limits}}}\n")


def test_a_run_whose_budget_is_spent_prints_the_budget_that_then_finishes_it(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    notes = "".join(f"n{i},Note number {i} is about the plant number {i}.\n" for i in range(60))
    (folder / "notes.csv").write_text(f"id,text\n{notes}")
    with_limits(folder, "max_cost_usd: 0.001, max_batch_requests: 4")

    stopped = command("run", "job.yaml")
    status = command("status", "job.yaml")
    as_json = command("run", "job.yaml", "--json")
    enough = re.search(r"limits\.max_cost_usd: ([0-9.]+) is enough for the waiting rows", stopped.err)
    assert enough is not None
    with_limits(folder, f"max_cost_usd: {enough[1]}, max_batch_requests: 4")
    finished = command(*stopped.next)

    limit = "budget   $0.0010 (limits.max_cost_usd)"
    assert f"{limit}: the run stops before it costs more, by a 99% bound of its input\n" in stopped.err
    assert stopped.code == 3
    assert re.search(r"run 1    incomplete \(budget\): 60 rows: \d+ pending, \d+ succeeded, \$0.00", stopped.err)
    assert re.search(r"budget \$0\.0010: \$0\.00\d\d spent; limits\.max_cost_usd", stopped.err)
    assert "raise it and run the same command again" in stopped.err
    assert stopped.next == status.next == ["run", "job.yaml"]
    assert re.search(r"budget \$0\.0010: \$0\.00\d\d spent; limits\.max_cost_usd", status.out)
    [budget] = [event for event in as_json.events if event["event"] == "budget"]
    assert budget["to_finish_usd"] == float(enough[1])
    assert (finished.code, "60 succeeded" in finished.err) == (0, True)
    assert api.emulator.audit()["requests_accepted"] == 60


def test_check_says_that_the_budget_bounds_the_input_with_99_percent_certainty(command: Command, folder: Path) -> None:
    without = command("check", "job.yaml")
    with_limits(folder, "max_cost_usd: 5")

    checked = command("check", "job.yaml")

    assert "budget" not in without.err
    assert (
        "budget   $5.00 (limits.max_cost_usd): answers are bounded exactly, by max_tokens;\n"
        "         input is bounded by the tokens per byte of a sample, with 99% certainty, so in rare cases a run\n"
        "         costs slightly more\n"
    ) in checked.err


def test_a_run_says_before_it_starts_that_its_budget_is_enough(command: Command, folder: Path) -> None:
    with_limits(folder, "max_cost_usd: 5")

    ran = command("run", "job.yaml")
    status = command("status", "job.yaml", "--json").events[0]

    assert "budget   $5.00 (limits.max_cost_usd): enough for the worst case\n" in ran.err
    assert status["last_run"]["budget"]["limit_usd"] == 5
    assert status["last_run"]["budget"]["reserved_usd"] == 0
    assert 0 < status["last_run"]["budget"]["spent_usd"] < 0.01
    assert status["last_run"]["budget"]["to_finish_usd"] is None


@slow
def test_status_says_what_is_reserved_and_when_the_job_was_last_swept(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    with_limits(folder, "max_cost_usd: 5")
    command("run", "job.yaml", "--detach")

    ran = command("status", "job.yaml")

    assert re.search(r"budget \$5\.00: \$0\.00 spent, \$0\.00\d\d reserved for results not stored yet\n", ran.out)
    assert re.search(r"swept    \d+ s ago\n", ran.out)
    assert ran.next == ["collect", "job.yaml"]


def test_status_names_an_unfinished_retry_as_the_next_command(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    notes = "".join(f"n{i},Note number {i} is about the plant number {i}.\n" for i in range(60))
    (folder / "notes.csv").write_text(f"id,text\n{notes}")
    api.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", times=60)
    command("run", "job.yaml")
    with_limits(folder, "max_cost_usd: 0.001, max_batch_requests: 4")
    options = ["--status", "errored", "--where", "attempts = 1 and id like 'n%'", "--set", "request.max_tokens=80"]

    stopped = command("retry", "job.yaml", *options, "--set", "request.system=Be brief.")
    said = command("status", "job.yaml").next
    with_limits(folder, "max_cost_usd: 5")
    finished = command(*said)

    assert stopped.code == 3
    assert said[:2] == ["retry", "job.yaml"]
    assert finished.code == 0
    assert "run 2    finished: 60 rows: 60 succeeded" in finished.err


def test_a_run_whose_rows_mostly_fail_says_how_to_continue(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    notes = "".join(f"n{i},Note number {i} is about the plant number {i}.\n" for i in range(1_200))
    (folder / "notes.csv").write_text(f"id,text\n{notes}")
    with_limits(folder, "max_batch_requests: 500, max_in_flight_requests: 500")
    api.emulator.add_fault(on="item", do="refuse")

    ran = command("run", "job.yaml", "--no-canary")

    assert ran.code == 3
    assert "run 1    incomplete (failures)" in ran.err
    assert "too many of its rows failed, so nothing more is sent" in ran.err
    assert ran.next == ["errors", "job.yaml"]


def test_a_canary_whose_rows_mostly_fail_says_how_to_continue(
    command: Command, api: RunningEmulator, folder: Path
) -> None:
    notes = "".join(f"n{i},Note number {i} is about the plant number {i}.\n" for i in range(200))
    (folder / "notes.csv").write_text(f"id,text\n{notes}")
    api.emulator.add_fault(on="item", do="refuse")

    ran = command("run", "job.yaml")
    status = command("status", "job.yaml")

    assert ran.code == 3
    assert "canary: 20 of its 20 rows failed" in ran.err
    assert "run 1    incomplete (canary): 200 rows: 180 pending, 20 refused" in ran.err
    assert "send all rows with `run --no-canary`" in ran.err
    assert ran.next == status.next == ["errors", "job.yaml"]


def test_answers_are_exported_to_a_file_that_is_overwritten_only_on_request(command: Command, folder: Path) -> None:
    command("run", "job.yaml")

    exported = command("export", "job.yaml", "answers.csv")
    again = command("export", "job.yaml", "answers.csv")
    over = command("export", "job.yaml", "answers.csv", "--overwrite", "--limit", "2")

    assert (exported.code, exported.err.splitlines()[-1]) == (0, "wrote    6 rows to answers.csv")
    assert (again.code, again.err.splitlines()[-1]) == (
        2,
        "error: answers.csv exists; give another name, or --overwrite",
    )
    assert (over.code, len((folder / "answers.csv").read_text().splitlines())) == (0, 3)


def test_answers_are_exported_to_a_folder_of_files(command: Command, folder: Path) -> None:
    command("run", "job.yaml")
    asked = ("export", "job.yaml", "answers", "--partition-by", "status", "--partition-by", "model", "--format", "csv")

    exported = command(*asked)
    again = command(*asked)

    assert (exported.code, exported.err.splitlines()[-1]) == (0, "wrote    6 rows to answers in 1 file")
    [file] = folder.glob("answers/status=succeeded/model=*/part-*.csv")
    assert len(file.read_text().splitlines()) == 7
    assert (again.code, again.err.splitlines()[-1]) == (
        2,
        "error: answers is not empty; give another folder, or --overwrite",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--partition-by", "status"], "--partition-by writes a folder of files: give its path after the job"),
        (
            ["a.csv", "--format", "csv"],
            "--format csv: this is for --partition-by only; without it the ending of FILE gives the format",
        ),
        (["a", "--partition-by", "status", "--format", "xlsx"], "--format xlsx: write parquet, csv or ndjson"),
    ],
)
def test_export_options_that_exclude_each_other_are_refused(command: Command, words: list[str], said: str) -> None:
    refused = command("export", "job.yaml", *words)

    assert (refused.code, refused.err.splitlines()[-1]) == (2, f"error: {said}")


def test_the_next_command_has_all_its_options_and_can_be_pasted(command: Command, folder: Path) -> None:
    (folder / "my job.yaml").write_text(JOB)

    checked = command("check", "my job.yaml", "--database", "sqlite:///an other.db")
    ran = command(*checked.next)
    exported = command(*ran.next)

    assert checked.next == ["run", "my job.yaml", "--database", "sqlite:///an other.db"]
    assert ran.next == ["export", "my job.yaml", "--database", "sqlite:///an other.db"]
    assert len(exported.events) == 6


def test_a_job_given_by_name_uses_the_database_that_knows_it(
    command: Command, api: RunningEmulator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    command("run", "work/job.yaml", "--database", "sqlite:///batches.db")

    checked = command("check", "notes")
    estimated = command("estimate", "notes", "--json")
    again = command(*checked.next)

    assert checked.next == estimated.next == ["run", "notes"]
    assert estimated.events[0]["rows"]["kept"] == 6
    assert (again.code, "6 kept" in again.err) == (0, True)
    assert len(list(api.emulator.accepted())) == 6
    assert list(folder.glob("*.db")) == []


@pytest.mark.parametrize("job", ["job.yaml", "notes"])
def test_check_opens_the_database_once(job: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("run", "job.yaml")
    opened = []
    opens = Database.__init__

    def counted(database: Database, url: str) -> None:
        opened.append(url)
        opens(database, url)

    monkeypatch.setattr(Database, "__init__", counted)

    checked = command("check", job)

    assert checked.code == 0
    assert opened == ["sqlite:///batches.db"]


def test_a_job_file_of_init_has_a_budget_and_passes_check_unchanged(command: Command, folder: Path) -> None:
    command("init", "notes.csv", "-o", "new.yaml")

    checked = command("check", "new.yaml")
    ran = command("run", "new.yaml")

    assert "max_cost_usd: 5" in (folder / "new.yaml").read_text()
    assert "model: claude-haiku-5-5\n" in (folder / "new.yaml").read_text()  # the newest one that the API lists
    assert checked.code == 0
    assert ran.code == 0
    assert "budget   $5.00 (limits.max_cost_usd): enough for the worst case" in ran.err


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))  # type: ignore[attr-defined]
def test_every_command_has_a_help_text(command: Command, name: str) -> None:
    ran = command(name, "--help")

    assert ran.code == 0
    assert "Usage: batch-pipeline" in ran.out


# -- what is begun while modules are imported ------------------------------------------------------------------------


def test_a_run_begins_with_a_planner_or_with_an_unchanged_source(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    start_planner, begin = processes._start, digests.begin
    monkeypatch.setattr(processes, "LARGE_BYTES", len(NOTES) - 1)
    monkeypatch.setattr(processes, "_cores", lambda: 2)

    def planner() -> processes.PlannerProcess:
        begun.append("planner")
        return start_planner()

    def source(path: str) -> None:
        begun.append(path)
        begin(path)

    monkeypatch.setattr(processes, "_start", planner)
    monkeypatch.setattr(digests, "begin", source)
    os.utime(folder / "notes.csv", (0, 0))

    ran = [command("run", "job.yaml") for _ in range(2)]

    assert [each.code for each in ran] == [0, 0]
    assert begun == ["planner", str(folder / "notes.csv")]
    assert digests._begun == {}
    (folder / "notes.csv").write_text(NOTES + "n6,A new note.\n")
    assert "7 in the source: 1 new, 6 kept" in command("run", "job.yaml").err
    assert begun[2:] == [str(folder / "notes.csv"), "planner"]
