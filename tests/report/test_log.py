"""The log has one event for each move of a batch, as JSON on request, and no content of a row."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.events.runs import WaitsForRetry
from pipeline.planning.selection import Selection
from pipeline.report import log
from pipeline.runner.run import run
from tests.conftest import World

SECRET = "Zanzibar"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Return the JSON log at its lowest level."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(log.JsonFormatter())
    before = log.logger.level
    log.logger.addHandler(handler)
    log.logger.setLevel(logging.DEBUG)
    yield out
    log.logger.removeHandler(handler)
    log.logger.setLevel(before)


def test_each_move_of_a_batch_is_one_event_with_its_ids(world: World, lines: io.StringIO) -> None:
    run(world.job(), replace(world.where(), tell=log.tell))

    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    moves = [event["event"] for event in events if "batch" in event]
    assert moves == ["planned", "submitting", "submitted", "ended", "collected"]
    assert {event["job"] for event in events if "batch" in event} == {"summaries"}
    submitted = next(event for event in events if event["event"] == "submitted")
    assert submitted["api_id"].startswith("msgbatch_")
    assert submitted["request_id"].startswith("req_")
    assert {"time", "level", "requests"} <= submitted.keys()


def test_an_error_of_the_api_is_logged_with_its_request_id(world: World, lines: io.StringIO) -> None:
    world.emulator.add_fault(on="create", do="status", status=529, error_type="overloaded_error", times=1)
    world.emulator.add_fault(on="retrieve", do="status", status=500, error_type="api_error", times=1)

    run(world.job(), replace(world.where(), tell=log.tell))

    events = {event["event"]: event for event in map(json.loads, lines.getvalue().splitlines())}
    assert "(req_" in events["rejected"]["problem"]
    assert "(req_" in events["unreachable"]["problem"]
    assert events["rejected"]["level"] == "warning"


def test_an_unfinished_retry_is_logged_without_its_keys_and_conditions(lines: io.StringIO) -> None:
    retry = Selection(keys=(SECRET,), where=f"id = '{SECRET}'")

    log.tell(WaitsForRetry(job="summaries", run=2, rows=3, vars={}, retry=retry.facts()))

    (event,) = map(json.loads, lines.getvalue().splitlines())
    assert (event["level"], event["run"], event["rows"]) == ("warning", 2, 3)
    assert SECRET not in lines.getvalue()


def test_no_key_and_no_text_is_logged_at_any_level(world: World, lines: io.StringIO) -> None:
    world.key = f"sk-{SECRET}"
    world.rows([{"id": f"{SECRET}{i}", "text": f"{SECRET} {i}" if i else ""} for i in range(4)])
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match=f"{SECRET} 1")
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", times=1)
    world.emulator.add_fault(on="create", do="drop_after", times=1)
    world.emulator.add_fault(on="results", do="missing_lines", times=1)
    job = world.job(request={"prompt": f"{{{{ text }}}} {SECRET}", "system": SECRET})

    run(job, replace(world.where(), tell=log.tell))

    assert len(lines.getvalue().splitlines()) > 10
    assert SECRET not in lines.getvalue()


def test_every_log_line_of_a_command_is_json_on_request(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,text\n1,One.\n2,Two.\n")
    (tmp_path / "job.yaml").write_text(
        "name: logged\nsource: {path: rows.csv, key: id}\nsink: {table: answers}\n"
        'request: {model: claude-haiku-4-5, max_tokens: 9, prompt: "{{ text }}"}\n'
    )
    command = [sys.executable, "-m", "pipeline.cli", "run", "--emulator", "--log-format", "json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCH_")}

    ran = subprocess.run(
        [*command, str(tmp_path / "job.yaml")], capture_output=True, text=True, env=environment, check=False
    )
    failed = subprocess.run([*command, "nowhere.yaml"], capture_output=True, text=True, env=environment, check=False)

    events = [json.loads(line) for line in ran.stderr.splitlines()]
    assert ran.returncode == 0, ran.stderr
    assert [event["event"] for event in events if "batch" in event][-1] == "collected"
    [error] = [json.loads(line) for line in failed.stderr.splitlines()]
    assert (error["level"], failed.returncode) == ("error", 2)
    assert "nowhere.yaml" in error["message"]
