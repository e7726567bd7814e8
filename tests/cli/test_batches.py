"""`batches` lists a job's batches as the database has them, and with --remote all batches that the API lists."""

import re

import anthropic
import pytest

from pipeline.emulator import RunningEmulator
from tests.cli.test_commands import Command, api, command, folder, slow
from tests.emulator.builders import requests

__all__ = ["api", "command", "folder"]  # fixtures


def test_the_batches_of_a_job_are_listed_with_the_ids_of_the_api(command: Command) -> None:
    command("run", "job.yaml")

    printed = command("batches", "job.yaml")
    [batch] = command("batches", "notes", "--json").events

    assert printed.code == 0
    assert re.split("  +", printed.out.splitlines()[0]) == [
        "BATCH", "API ID", "STATE", "REQUESTS", "OUTCOMES", "CREATED", "ENDED", "AGE", "COST",
    ]  # fmt: skip
    assert batch["event"] == "batch"
    assert {name: batch[name] for name in ("batch", "state", "run_id", "requests", "rows", "problem")} == {
        "batch": 1,
        "state": "collected",
        "run_id": 1,
        "requests": 6,
        "rows": 6,
        "problem": None,
    }
    assert batch["counts"]["succeeded"] == batch["outcomes"]["succeeded"] == 6
    assert batch["cost_usd"] > 0
    assert re.search(rf"1  {batch['api_id']}  collected +6  6 succeeded", printed.out)


def test_a_batch_that_waits_says_why_below_the_table(command: Command, api: RunningEmulator) -> None:
    api.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", retry_after=60)
    command("run", "job.yaml", "--detach")

    printed = command("batches", "job.yaml").out.splitlines()

    assert printed[1].split()[:3] == ["1", "-", "planned"]
    assert printed[-1].startswith("batch 1: ")
    assert "429" in printed[-1] or "rate_limit_error" in printed[-1]


@slow
def test_the_listing_of_the_account_tells_ours_from_foreign_batches(command: Command, api: RunningEmulator) -> None:
    with anthropic.Anthropic(base_url=api.url, api_key="emulated") as client:
        foreign = client.messages.batches.create(requests=requests(2))
    command("run", "job.yaml", "--detach")

    printed = command("batches", "job.yaml", "--remote")
    listed = command("batches", "job.yaml", "--remote", "--json").events

    assert [(each["job"], each["batch"], each["requests"], each["collected"]) for each in listed] == [
        ("notes", 1, 6, False),
        (None, None, 2, None),
    ]
    assert listed[1]["api_id"] == foreign.id
    assert "2 batches: 1 of this database, 1 of them not collected; 1 foreign" in printed.out
    assert [each["vanishes_at"] for each in listed] == [None, None]


def test_results_that_the_api_removes_soon_are_named(command: Command, api: RunningEmulator) -> None:
    command("run", "job.yaml")
    api.emulator.clock.advance(23 * 24 * 3600)

    printed = command("batches", "job.yaml", "--remote")

    assert "notes batch 1, collected" in printed.out
    assert "(soon)" in printed.out
    assert "the API removes the results of 1 batch within 7 days, 0 of them not collected" in printed.out


@pytest.mark.parametrize("words", [["batches", "job.yaml"], ["batches", "job.yaml", "--remote"]])
def test_without_a_database_there_are_no_batches(command: Command, words: list[str]) -> None:
    ran = command(*words)

    assert (ran.code, ran.out) == (2, "")
    assert "run a job first" in ran.err
