"""`trial` asks a sample otherwise, commands know it by its name, and `compare` says how to make it the job's."""

import json
from pathlib import Path

import pytest

from pipeline.emulator import RunningEmulator
from tests.cli import test_commands
from tests.cli.test_commands import Command

api, command, slow = test_commands.api, test_commands.command, test_commands.slow  # fixtures

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Sort: {{ text }}"}
output: {labels: [garden, house]}
gold: {columns: {label: truth}}
sink: {table: answers}
limits: {max_cost_usd: 5}
"""
OTHER = "--set=request.prompt=@other.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB)
    (folder / "other.txt").write_text("A garden, a garden, the garden:\n{{ text }}\n")
    rows = [
        f"n{i},This {word} is {word} number {i}.,{word}\n" for i in range(20) for word in [["house", "garden"][i % 2]]
    ]
    (folder / "notes.csv").write_text("id,text,truth\n" + "".join(rows))
    return folder


def test_it_says_its_quote_its_budget_and_what_is_next(command: Command) -> None:
    ran = command("trial", "job.yaml", "--name", "base", "--sample", "8")

    assert ran.code == 0
    lines = ran.err.splitlines()
    assert "rows     8 in the trial: 8 new" in lines
    assert "budget   $0.50 (of the trial): enough for the worst case" in lines
    assert any(line.startswith("answers  in table answers_trials (trial base) of ") for line in lines)
    assert ran.next == ["evaluate", "job.yaml", "base"]
    assert command("evaluate", "job.yaml", "base").out.startswith("gold     20 rows with gold: 8 succeeded\n")


def test_its_end_is_json_with_its_name(command: Command) -> None:
    events = command("trial", "job.yaml", "--name", "base", "--json").events

    assert {**events[-1], "cost_usd": None} == {
        "event": "run",
        "run_id": 1,
        "state": "finished",
        "reason": None,
        "trial": "base",
        "rows": {"succeeded": 20},
        "cost_usd": None,
    }


def test_commands_know_a_trial_by_its_name_after_that_of_the_job(command: Command, folder: Path) -> None:
    command("trial", "job.yaml", "--name", "base", "--sample", "8")

    of_job, of_trial = command("status", "job.yaml"), command("status", "notes:base")
    verified, exported = command("verify", "job.yaml:base"), command("export", "job.yaml:base", "base.ndjson")
    key = json.loads((folder / "base.ndjson").read_text().splitlines()[0])["id"]
    shown = command("show", "job.yaml:base", "--key", key)
    listed, errors = command("batches", "notes:base", "--json"), command("errors", "job.yaml:base")

    assert [each.code for each in (of_job, of_trial, verified, exported, shown, listed, errors)] == [0] * 7
    assert "trial    base: 8 rows: 8 succeeded, " in of_job.out
    assert (of_job.next, of_trial.next) == (["run", "job.yaml"], ["export", "notes:base"])
    table, rows, *_ = of_trial.out.splitlines()
    assert (table, rows) == ("job      notes:base, answers in table answers_trials", "rows     8 rows: 8 succeeded")
    assert len((folder / "base.ndjson").read_text().splitlines()) == 8
    assert [event["rows"] for event in listed.events] == [8]
    assert command("status", "job.yaml", "--json").events[0]["trials"][0]["name"] == "base"


@slow
def test_a_detached_trial_is_canceled_or_collected_by_name(command: Command) -> None:
    detached = command("trial", "job.yaml", "--name", "base", "--detach")
    collected = command("collect", "job.yaml")
    canceled = command("cancel", "job.yaml:base")

    assert (detached.next, collected.next) == (["collect", "job.yaml:base"], ["collect", "job.yaml"])
    assert "job      notes:base: swept\n" in collected.err
    assert canceled.next == ["collect", "job.yaml:base"]
    assert "incomplete: canceled" in command("status", "job.yaml:base").out


def test_commands_for_jobs_refuse_a_trial(command: Command, folder: Path) -> None:
    command("trial", "job.yaml", "--name", "base")

    for words, instead in (
        (("run",), "trial job.yaml --name base"),
        (("estimate",), "trial job.yaml --name base"),
        (("check",), "trial job.yaml --name base"),
        (("evaluate",), "evaluate job.yaml base"),
        (("compare", "current", "current"), "compare job.yaml current base"),
        (("report",), "report job.yaml --compare current base"),
        (("review", "export", "sheet.csv"), "review job.yaml export FILE --disagree current base"),
    ):
        ran = command(words[0], "job.yaml:base", *words[1:])
        assert ran.code == 2
        said = f"error: job.yaml:base: this command is for jobs, and base is a trial; give `{instead}`"
        assert said in ran.err
    assert not list(folder.glob("*.html")) + list(folder.glob("sheet*"))


def test_unknown_options_and_names_are_exit_2(command: Command, folder: Path, api: RunningEmulator) -> None:
    for words, said in (
        (("--name", "current"), "error: --name current: a trial has a name of up to 63 letters"),
        (("--name", "a", "--set", "output.labels=[a, b]"), "error: --set output.labels=[a, b]: write FIELD=VALUE"),
        (("--name", "a", "--set", "request.prompt=@no.txt"), "error: --set request.prompt=@no.txt: no.txt cannot be"),
        (("--name", "a", "--set", "request.prompt={{ truth }}"), "error: --set request.prompt={{ truth }}: "),
        (("--name", "a", "--set", "request.prompt='{{ truth }}'"), "error: --set: column 'truth' is used by request"),
        (("--name", "a", "--where", "id = 'x'"), "error: the source has no row that meets --where"),
    ):
        ran = command("trial", "job.yaml", *words)
        assert ran.code == 2
        assert said in ran.err
    assert command("evaluate", "job.yaml", "nobody").code == 2
    assert api.emulator.audit()["requests_accepted"] == 0


def test_failed_rows_are_asked_again_as_the_trial_was_begun(command: Command, api: RunningEmulator) -> None:
    api.emulator.add_fault(on="item", do="error", error_type="api_error", times=3, per="params")

    other = command("trial", "job.yaml", "--name", "failing", "--sample", "8")
    listed = command("errors", "job.yaml:failing")
    again = command("retry", "job.yaml:failing", "--status", "errored")
    changed = command("retry", "job.yaml:failing", "--status", "succeeded", "--set", "request.max_tokens=9")

    assert (other.code, listed.code, again.code, changed.code) == (1, 0, 0, 2), (other, listed, again, changed)
    assert "retry job.yaml:failing --status errored" in listed.out
    assert "error: --set: the rows of a trial are asked as it was begun" in changed.err
    assert command("status", "job.yaml:failing").out.splitlines()[1] == "rows     8 rows: 8 succeeded"


def test_a_trial_keeps_the_vars_with_which_it_was_begun(command: Command, folder: Path) -> None:
    (folder / "job.yaml").write_text(
        JOB.replace("source: {path: notes.csv", "vars: {day: today}\nsource: {path: 'notes_{{ vars.day }}.csv'")
    )
    (folder / "notes.csv").rename(folder / "notes_2026-11-01.csv")

    begun = command("trial", "job.yaml", "--name", "base", "--var", "day=2026-11-01")
    again = command("trial", "job.yaml", "--name", "base")
    other = command("trial", "job.yaml", "--name", "base", "--var", "day=2026-11-02")
    judged = command("evaluate", "job.yaml", "base", "--min-accuracy", "0.8")

    assert [begun.code, again.code, other.code, judged.code] == [0, 0, 2, 0]
    assert "rows     20 in the trial: 20 kept" in again.err


# -- compare ---------------------------------------------------------------------------------------------------------


def test_compare_says_what_would_make_the_better_trial_the_jobs(command: Command, folder: Path) -> None:
    command("trial", "job.yaml", "--name", "base", OTHER)
    (folder / "better.txt").write_text("Sort this:\n\n{{ text }}\n")
    command("trial", "job.yaml", "--name", "better", "--set", "request.prompt=@better.txt")

    ran = command("compare", "job.yaml", "base", "better")
    facts = command("compare", "job.yaml", "base", "better", "--json").events[0]
    reverse = command("compare", "job.yaml", "better", "base")

    assert facts["sides"][0]["verdict"] == "better is better than the base"
    assert ran.out.endswith(
        "\nadopt    better is better than the base; to make it the job's, write into the job file:\n"
        "\n"
        "request:\n"
        "  prompt: |\n"
        "    Sort this:\n"
        "\n"
        "    {{ text }}\n"
    )
    assert ran.next == ["estimate", "job.yaml", "--refresh"]
    assert facts["adopt"] == {"side": "better", "changes": {"request.prompt": "Sort this:\n\n{{ text }}\n"}}
    assert ("adopt" in reverse.out, reverse.next) == (False, ["evaluate", "job.yaml"])


def test_rows_that_differ_are_written_with_their_input(command: Command, folder: Path) -> None:
    command("trial", "job.yaml", "--name", "base")
    command("trial", "job.yaml", "--name", "other", OTHER)

    ran = command("compare", "job.yaml", "base", "other", "--rows", "rows.ndjson")
    again = command("compare", "job.yaml", "base", "other", "--rows", "rows.ndjson")

    rows = [json.loads(line) for line in (folder / "rows.ndjson").read_text().splitlines()]
    assert "wrote    rows.ndjson\n" in ran.err
    assert rows
    assert all(row["base"]["label"] != row["answer"]["label"] for row in rows)
    number = int(rows[0]["key"][0][1:])
    assert rows[0]["input"] == {"text": f"This house is house number {number}."}
    assert rows[0]["side"] == "other"
    assert rows[0]["right"] == {"base": True, "answer": False}
    assert again.code == 2
    assert "error: --rows rows.ndjson: the file exists" in again.err


def test_a_nightly_gate_runs_the_job_only_if_the_trial_is_good_enough(command: Command, api: RunningEmulator) -> None:
    def night(name: str) -> list[int]:
        codes = [command("trial", "job.yaml", "--name", name, "--gold-only", "--sample", "200", "--yes").code]
        codes += [command("evaluate", "job.yaml", name, "--min-accuracy", "0.85", "--judge", "alarm").code]
        return codes

    good = night("n-2026-11-28")
    api.emulator.add_fault(on="item", do="other_label", share=1.0, seed=1)
    bad = night("n-2026-11-29")

    assert (good, bad) == ([0, 0], [0, 1])


# -- estimate --------------------------------------------------------------------------------------------------------


def test_estimate_says_that_rows_with_gold_go_first(command: Command, folder: Path) -> None:
    canary = "canary: {rows: 16, min_accuracy: 0.8}\n"
    (folder / "job.yaml").write_text(JOB + canary)

    ran, facts = command("estimate", "job.yaml"), command("estimate", "job.yaml", "--json").events[0]

    assert "(the first 16 rows with gold are sent first)" in ran.out
    assert "canary   opens at 16 of 16 right (canary.min_accuracy 80.0% by bound); passes in" in ran.out
    assert (facts["ahead"], facts["gold_ahead"]) == (16, True)
