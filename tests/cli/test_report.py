"""`report` writes one page, for its owner alone, and refuses what it cannot do before it writes anything."""

from pathlib import Path

import pytest

from pipeline.cli.report import spread
from tests.cli import test_commands, test_evaluate
from tests.cli.test_commands import Command
from tests.support.pages import read

api, command, folder = test_commands.api, test_commands.command, test_evaluate.folder  # fixtures


def test_the_page_gets_the_name_of_the_job(command: Command, folder: Path) -> None:
    command("run", "job.yaml")

    ran = command("report", "job.yaml")

    page = folder / "notes.html"
    assert ran.code == 0
    assert (
        f"wrote    notes.html ({page.stat().st_size / 1e3:.1f} kB): it holds keys and texts of rows and answers"
        in ran.err
    )
    assert ran.next == ["status", "job.yaml"]
    assert page.stat().st_mode & 0o777 == 0o600
    shown = read(page.read_text(encoding="utf-8")).text
    assert "38 of 40 answers to rows with gold are right: 95.0% (83.5% to 98.6%)." in shown
    assert "Next batch-pipeline export job.yaml" in " ".join(shown.split())


def test_the_same_command_gives_the_same_bytes(command: Command, folder: Path) -> None:
    command("run", "job.yaml")

    command("report", "job.yaml", "-o", "first.html")
    command("report", "job.yaml", "-o", "second.html")

    assert (folder / "first.html").read_bytes() == (folder / "second.html").read_bytes()


def test_all_words_behind_compare_are_sides(command: Command, folder: Path) -> None:
    command("run", "job.yaml")
    command("export", "job.yaml", "before.parquet")

    ran = command("report", "job.yaml", "1", "--compare", "before.parquet", "current", "-o", "page.html")

    assert ran.code == 0
    assert (
        "Compared with before.parquet current no difference is shown" in read((folder / "page.html").read_text()).text
    )


@pytest.mark.parametrize(
    ("words", "spread_words"),
    [
        ("job --compare a b --rows 3", "job --compare a --compare b --rows 3"),
        ("job 3 --compare a b c", "job 3 --compare a --compare b --compare c"),
        ("job --compare a --compare b", "job --compare a --compare b"),
        ("job -o page.html", "job -o page.html"),
    ],
)
def test_the_option_is_put_before_each_side(words: str, spread_words: str) -> None:
    assert spread(words.split()) == spread_words.split()


def test_json_names_the_file(command: Command, folder: Path) -> None:
    command("run", "job.yaml")

    [event] = command("report", "job.yaml", "--no-text", "--json").events

    size = (folder / "notes.html").stat().st_size
    assert event == {"event": "report", "job": "notes", "file": "notes.html", "bytes": size, "texts": False}
    assert "n0" not in (folder / "notes.html").read_text()


def test_a_job_whose_file_is_gone_is_reported_as_it_was_run(command: Command, folder: Path) -> None:
    command("run", "job.yaml")
    (folder / "job.yaml").unlink()

    ran = command("report", "notes", "--database", f"sqlite:///{folder}/batches.db")

    assert ran.code == 0
    assert "38 of 40 answers to rows with gold are right" in read((folder / "notes.html").read_text()).text


def test_the_address_of_the_database_does_not_get_onto_the_page(
    command: Command, migrated_url: str, folder: Path
) -> None:
    database = ["--database", migrated_url, "--spool", "spool"]
    command("run", "job.yaml", *database)

    assert command("report", "job.yaml", *database).code == 0

    shown = read((folder / "notes.html").read_text()).text
    assert "Next batch-pipeline export job.yaml" in shown
    assert "postgresql" not in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--compare", "current"], "error: --compare: give two sides: the base first, then what is compared with it\n"),
        (["7"], "error: job notes has no run 7 (its runs: 1)\n"),
        (["--compare", "current", "cheap"], "error: unknown side 'cheap'"),
        (["-o", "missing/page.html"], "error: missing/page.html: there is no folder missing; create it first\n"),
        (["-o", "."], "error: -o .: the name must end in .html\n"),
        (["-o", "job.yaml", "--overwrite"], "error: -o job.yaml: the name must end in .html\n"),
        (["--rows", "1000"], "Invalid value for '--rows'"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    command: Command, folder: Path, words: list[str], sentence: str
) -> None:
    command("run", "job.yaml")
    before = sorted(folder.iterdir())

    ran = command("report", "job.yaml", *words)

    assert ran.code == 2
    assert sentence in ran.err
    assert sorted(folder.iterdir()) == before
