"""`evaluate` prints figures, and its exit code says whether the accuracy reaches a minimum."""

from pathlib import Path

import pytest

from pipeline.emulator import RunningEmulator
from tests.cli import test_commands
from tests.cli.test_commands import Command

api, command = test_commands.api, test_commands.command  # fixtures

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Sort: {{ text }}"}
output: {labels: [garden, house]}
sink: {table: answers}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.yaml").write_text(f"{JOB}gold: {{columns: {{label: truth}}}}\n")
    rows = [f"n{i},This garden is the garden of number {i}.,{'house' if i < 2 else 'garden'}\n" for i in range(40)]
    (folder / "notes.csv").write_text("id,text,truth\n" + "".join(rows))
    return folder


def test_check_says_how_many_rows_have_gold(command: Command) -> None:
    assert "gold     40 of 40 rows have gold\n" in command("check", "job.yaml").err


def test_check_says_how_strict_the_gate_of_a_canary_is(command: Command, folder: Path) -> None:
    canary = "canary: {rows: 200, min_accuracy: 0.85}"
    (folder / "job.yaml").write_text(f"{JOB}gold: {{columns: {{label: truth}}}}\n{canary}\n")
    rows = "".join(f"n{i},Text {i}.,garden\n" for i in range(200))
    (folder / "notes.csv").write_text(f"id,text,truth\n{rows}")

    assert (
        "canary   opens at 179 of 200 right (canary.min_accuracy 85.0% by bound); passes in 100 tries of a prompt that "
        "is right for 85%: 4, 88%: 30, 90%: 65, 92%: 92\n"
    ) in command("check", "job.yaml").err


def test_check_says_how_strict_the_gate_of_a_canary_by_reviews_is(command: Command, folder: Path) -> None:
    (folder / "job.yaml").write_text(f"{JOB}gold: reviews\ncanary: {{rows: 200, min_accuracy: 0.85}}\n")

    assert "canary   opens at 179 of 200 right (canary.min_accuracy 85.0% by bound)" in command("check", "job.yaml").err


def test_a_canary_with_too_few_right_answers_names_evaluate_as_the_next_command(command: Command, folder: Path) -> None:
    canary = "canary: {rows: 40, min_accuracy: 0.85}"
    (folder / "job.yaml").write_text(f"{JOB}gold: {{columns: {{label: truth}}}}\n{canary}\n")
    rows = "".join(f"n{i},This garden is the garden of number {i}.,{'house' if i < 40 else ''}\n" for i in range(42))
    (folder / "notes.csv").write_text(f"id,text,truth\n{rows}")

    ran = command("run", "job.yaml")

    assert ran.code == 3
    assert ran.next == ["evaluate", "job.yaml"]


def test_the_figures_are_printed_with_examples(command: Command) -> None:
    command("run", "job.yaml")

    ran = command("evaluate", "job.yaml")

    assert ran.code == 0
    assert ran.out == (
        "gold     40 rows with gold: 40 succeeded\n"
        "accuracy 38 of 40 right: 95.0% (83.5% to 98.6%)\n"
        "cost     $0.0018, $0.000048 per right answer\n"
        "\n"
        "label: CLASS  GOLD  PRECISION               RECALL                    F1\n"
        "garden          38  95.0% (83.5% to 98.6%)  100.0% (90.8% to 100.0%)  0.974 (0.910 to 0.993)\n"
        "house            2  -                       0.0% (0.0% to 65.8%)      0.000 (0.000 to 0.793)\n"
        "\n"
        "label: GOLD / ANSWER  garden  house  (failed)\n"
        "garden                    38      .         .\n"
        "house                      2      .         .\n"
        "\n"
        "label: GOLD  ANSWER  ROWS  EXAMPLES\n"
        "house        garden     2  n0, n1\n"
    )


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (("0.8",), 0, "minimum  80.0% is reached: at least 86.0% is shown (bound); 37 of 40 reach it"),
        (("0.9",), 1, "minimum  90.0% is missed: at least 86.0% is shown (bound); 40 of 40 reach it"),
        (("0.9", "--judge", "point"), 0, "minimum  90.0% is reached: 95.0% are right (point); 36 of 40 reach it"),
        (
            ("0.99", "--judge", "alarm"),
            1,
            "minimum  99.0% is missed: up to 98.3% is possible (alarm); 39 of 40 reach it",
        ),
    ],
)
def test_a_missed_minimum_is_exit_1(command: Command, options: tuple[str, ...], code: int, line: str) -> None:
    command("run", "job.yaml")

    ran = command("evaluate", "job.yaml", "--min-accuracy", *options)

    assert (ran.code, ran.out.splitlines()[3]) == (code, line)
    [facts] = command("evaluate", "job.yaml", "--min-accuracy", *options, "--json").events
    assert (facts["event"], facts["minimum"]["passed"], facts["accuracy"]["right"]) == ("evaluate", code == 0, 38)


def test_wrong_options_and_missing_gold_are_exit_2(command: Command, folder: Path, api: RunningEmulator) -> None:
    unknown = command("evaluate", "job.yaml")
    command("run", "job.yaml")
    judge = command("evaluate", "job.yaml", "--judge", "point")
    other = command("evaluate", "job.yaml", "--min-accuracy", "0.9", "--judge", "jury")
    (folder / "job.yaml").write_text(JOB)
    missing = command("evaluate", "job.yaml")

    assert [unknown.code, judge.code, other.code, missing.code] == [2] * 4
    assert judge.err == "error: --judge point: this is for --min-accuracy, which is not given\n"
    assert other.err == "error: --judge jury: write bound, point or alarm\n"
    assert "error: job notes has no gold; name the columns with the right answers in its file" in missing.err


def test_compare_prints_how_sides_differ_and_judges_a_drop(command: Command, folder: Path) -> None:
    command("run", "job.yaml")
    command("export", "job.yaml", "before.parquet")

    ran = command("compare", "job.yaml", "before.parquet", "current", "--max-drop", "0.1", "--rows", "rows.ndjson")
    strict = command("compare", "job.yaml", "before.parquet", "current", "--max-drop", "0.001", "--json")
    one = command("compare", "job.yaml", "current")

    assert ran.code == 0
    assert ran.out == (
        "base     before.parquet: 40 rows, $0.0018 in all\n"
        "\n"
        "side     current: 40 rows, $0.0018 in all\n"
        "pairs    40; left out: not known which rows have changed since\n"
        "agree    40 of 40: 100.0% (91.2% to 100.0%)\n"
        "cost     per 1,000 rows $0.05 -> $0.05\n"
        f"{ran.out.splitlines()[6]}\n"
        "right    38 -> 38 of 40 with gold: +0.0% (-6.6% to +6.6%)\n"
        "only one is right: base 0, side 0; p = 1.0000\n"
        "max drop a loss of more than 10.0% is excluded: up to 5.5% is possible\n"
        "verdict  no difference is shown; a loss of more than 5.5% is excluded\n"
    )
    assert (folder / "rows.ndjson").read_bytes() == b""
    assert (strict.code, strict.events[0]["sides"][0]["passed"]) == (1, False)
    assert (one.code, "give two sides" in one.err) == (2, True)
