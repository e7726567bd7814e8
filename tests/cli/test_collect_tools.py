"""`collect --no-tools` leaves rows waiting for a `collect` with their tools; a signal does not wait for a call."""

import json
import os
import signal
from pathlib import Path

import pytest

from pipeline.emulator import RunningEmulator
from tests.cli.test_commands import NOTES, Command, api, command  # noqa: F401 - fixtures
from tests.support.processes import begin, environment

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request:
  model: claude-haiku-4-5
  max_tokens: 600
  prompt: "Use grow for: {{ text }}"
  params:
    tools:
      - name: grow
        input_schema: {type: object, properties: {plant: {type: string}}, required: [plant]}
rounds: {tools: {grow: garden_tools.grow}}
sink: {table: answers}
"""
TOOLS = """\
from pathlib import Path


def grow(plant: str) -> str:
    with open(Path(__file__).with_name("calls"), "a") as calls:
        calls.write("one\\n")
    return f"{plant} grows"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB)
    (folder / "notes.csv").write_text(NOTES)
    (folder / "garden_tools.py").write_text(TOOLS)
    return folder


@pytest.mark.parametrize("api", [1.0], indirect=True)  # or else `run` itself may see the batch end, and call the tools
def test_a_sweep_without_tools_leaves_rows_waiting_and_the_next_sweep_with_tools_goes_on(
    command: Command,  # noqa: F811
    api: RunningEmulator,  # noqa: F811
    folder: Path,
) -> None:
    command("run", "job.yaml", "--detach")
    api.emulator.wait_idle()
    waiting = command("collect", "job.yaml", "--no-tools")
    while "in progress" in waiting.out:  # `run` has looked at the batch before it had ended: the next look is not due
        waiting = command("collect", "job.yaml", "--no-tools")
    calls = (folder / "calls").exists()

    followed = command("collect", "job.yaml", "--follow")

    assert waiting.code == 0
    assert "run 1: 6 rows wait for tools, which are not called here (--no-tools)" in waiting.err
    assert waiting.err.count("--no-tools") == 1
    assert not calls
    assert followed.code == 0
    assert "6 rows: 6 succeeded" in followed.out
    assert (folder / "calls").read_text().count("one") >= 6
    assert command("verify", "job.yaml").code == 0


HANGS = """\
import threading
from pathlib import Path


def grow(plant: str) -> str:
    Path(__file__).with_name("begun").write_text("one\\n")
    threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_call_ends_the_command_and_the_call_is_made_again(
    api: RunningEmulator,  # noqa: F811
    folder: Path,
    number: signal.Signals,
) -> None:
    (folder / "job.yaml").write_text(JOB.replace("garden_tools.grow}}", "garden_tools.grow}, timeout: 3600}"))
    (folder / "garden_tools.py").write_text(HANGS)
    os.mkfifo(folder / "begun")
    drives = environment(api.url)

    interrupted = begin(drives, "run", str(folder / "job.yaml"), "--json")
    try:
        (folder / "begun").read_text()  # returns when a call has begun
        interrupted.send_signal(number)
        _, said = interrupted.communicate(timeout=60)
    finally:
        interrupted.kill()
    (folder / "garden_tools.py").write_text(TOOLS)
    again = begin(drives, "run", str(folder / "job.yaml"), "--json")
    lines, errors = again.communicate(timeout=120)

    assert interrupted.returncode == 130
    assert "interrupted: nothing is lost" in said
    assert again.returncode == 0, errors
    assert json.loads(lines.splitlines()[-1])["rows"] == {"succeeded": 6}
