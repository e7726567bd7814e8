"""`review` writes a sheet, and its exit code says whether all of a filled-in one was stored."""

import csv
from pathlib import Path

import pytest

from tests.cli import test_commands
from tests.cli.test_commands import Command

api, command = test_commands.api, test_commands.command  # fixtures

JOB = """\
name: notes
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "Sort: {{ text }}"}
output: {labels: [garden, house]}
sink: {table: answers}
gold: reviews
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB)
    rows = [f"n{i},This garden is the garden of number {i}.\n" for i in range(8)]
    (folder / "notes.csv").write_text("id,text\n" + "".join(rows))
    return folder


def fill(path: Path, column: str, *texts: str) -> None:
    """Fill in a column of the first lines of a CSV file."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row, text in zip(rows, texts, strict=False):
        row[column] = text
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_sheet_is_written_filled_in_imported_and_evaluated(command: Command, folder: Path) -> None:
    command("run", "job.yaml")

    wrote = command("review", "job.yaml", "export", "five.csv", "--sample", "5")
    fill(folder / "five.csv", "verdict", "right", "wrong", "right", "unsure")
    stored, again = (command("review", "job.yaml", "import", "five.csv", *options) for options in ((), ("--json",)))
    evaluated = command("evaluate", "job.yaml")

    assert (wrote.code, wrote.out) == (0, "wrote    5 lines of 5 rows to five.csv\n")
    assert wrote.next == ["review", "job.yaml", "import", "five.csv"]
    assert (stored.code, stored.out) == (
        0,
        "reviews  4 reviews stored; 1 line is not filled in\nverdicts 2 right, 1 wrong, 1 unsure\n",
    )
    assert stored.next == ["evaluate", "job.yaml"]
    assert again.events == [
        {
            "event": "review",
            "job": "notes",
            "added": 0,
            "unchanged": 4,
            "not_filled_in": 1,
            "verdicts": {"right": 2, "wrong": 1, "unsure": 1},
            "refused": [],
            "wins": None,
        }
    ]
    assert evaluated.out.splitlines()[:3] == [
        "gold     3 rows with gold: 3 succeeded",
        "accuracy 2 of 3 right: 66.7% (20.8% to 93.9%)",
        "left out 1 row of which a person was not sure",
    ]


def test_of_pairs_the_import_says_the_wins(command: Command, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("output: {labels: [garden, house]}\n", ""))
    command("run", "job.yaml")
    command("export", "job.yaml", "before.parquet")
    (folder / "job.yaml").write_text(JOB.replace("output: {labels: [garden, house]}\n", "").replace("Sort", "Tell"))
    command("run", "job.yaml", "--refresh")

    wrote = command("review", "job.yaml", "export", "pairs.csv", "--pairs", "before.parquet", "current", "--json")
    fill(folder / "pairs.csv", "better", *["tie"] * 8)
    stored = command("review", "job.yaml", "import", "pairs.csv")
    command("review", "job.yaml", "export", "all.csv")
    fill(folder / "all.csv", "verdict", *["right"] * 8)
    command("review", "job.yaml", "import", "all.csv")
    dropped = command("compare", "job.yaml", "before.parquet", "current", "--max-drop", "0.1")

    assert (dropped.code, "--max-drop: the rows with gold were chosen" in dropped.err) == (2, True)
    assert (wrote.events[0]["rows"], wrote.events[0]["lines"]) == (8, 8)
    assert stored.out == "reviews  8 reviews stored\nbetter   before.parquet 0, current 0, ties 8; p = 1.0000\n"


def test_a_row_whose_answer_has_changed_is_exit_1_and_a_wrong_line_is_exit_2(command: Command, folder: Path) -> None:
    command("run", "job.yaml")
    command("review", "job.yaml", "export", "all.csv")
    fill(folder / "all.csv", "verdict", "right", "maybe")
    wrong = command("review", "job.yaml", "import", "all.csv")
    fill(folder / "all.csv", "verdict", "right", "right")
    fill(folder / "all.csv", "row", f"r{'0' * 24}")
    unknown = command("review", "job.yaml", "import", "all.csv")
    command("review", "job.yaml", "export", "all.csv", "--overwrite")
    fill(folder / "all.csv", "verdict", "right", "right")
    (folder / "job.yaml").write_text(JOB.replace("garden, house", "room, house"))
    command("run", "job.yaml", "--refresh")
    changed = command("review", "job.yaml", "import", "all.csv")

    assert (wrong.code, unknown.code, changed.code) == (2, 2, 1)
    assert "error: all.csv, line 3: column verdict is 'maybe', which is none of right, wrong, unsure" in wrong.err
    assert f"line 2: row r{'0' * 24} is no row of job notes; nothing was imported" in unknown.err
    assert changed.out.startswith("reviews  0 reviews stored; 6 lines are not filled in\nverdicts 0 right")
    assert changed.out.count(": its answer is another one since the export\n") == 2


def test_wrong_lines_are_named_in_the_order_of_the_file(command: Command, folder: Path) -> None:
    command("run", "job.yaml")
    command("review", "job.yaml", "export", "all.csv")
    with open(folder / "all.csv", newline="", encoding="utf-8-sig") as file:
        first = next(csv.DictReader(file))["row"]
    fill(folder / "all.csv", "row", first, "typed")
    fill(folder / "all.csv", "verdict", "maybe", "right")

    ran = command("review", "job.yaml", "import", "all.csv")

    assert ran.code == 2
    assert ran.err.index("line 2: column verdict") < ran.err.index("line 3: 'typed' in column row")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "all.csv"), "review show: write export or import"),
        (("import", "all.csv", "--blind"), "it takes the file alone"),
        (("import", "all.csv"), "all.csv is no file"),
        (("export", "all.pdf"), "all.pdf: the name must end in .xlsx or .csv"),
        (("export", "there/all.csv"), "there is no folder there"),
        (("export", "all.csv", "--disagree", "current", "job:other"), "other"),
        (("export", "all.csv", "--by", "label"), "--by label: this is for --sample"),
    ],
)
def test_what_cannot_be_done_is_exit_2(command: Command, folder: Path, words: tuple[str, ...], message: str) -> None:
    command("run", "job.yaml")

    ran = command("review", "job.yaml", *words)

    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not (folder / "all.csv").exists()
