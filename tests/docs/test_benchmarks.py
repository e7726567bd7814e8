"""The benchmarks measure what they say: a tiny one is whole, and what must not count does not."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench.py"


def bench(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A benchmark with everything that it makes in a folder of the test's."""
    command = [sys.executable, str(BENCH), "--folder", str(tmp_path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_a_whole_run_is_measured_and_its_report_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("Before.\n<!-- benchmark: begin -->\nold\n<!-- benchmark: end -->\nAfter.\n")
    out = str(tmp_path / "report")

    done = bench(tmp_path, "--only", "pipeline", "--sizes", "60", "--format", "parquet", "--repeat", "1", "--out", out)

    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "report.json").read_text())["scenarios"]["run"]["measurements"]
    assert (run["program"], run["source"], run["rows"]) == ("pipeline", "parquet", 60)
    assert run["body_bytes"] > 1_000 * run["rows"]
    assert list(run["stages"]) == ["quote", "plan", "collect"]
    assert 0 < run["stages"]["quote"] <= run["stages"]["plan"] <= run["stages"]["collect"]
    assert run["stages"]["collect"] < run["client"]["wall_seconds"]
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(f"Before.\n<!-- benchmark: begin -->\n{os.cpu_count()} CPUs (")
    assert text.endswith("<!-- benchmark: end -->\nAfter.\n")
    assert "old" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


@pytest.mark.long
def test_a_small_benchmark_measures_each_scenario(tmp_path: Path) -> None:
    sizes = ["--sizes", "60,90", "--quote-rows", "90", "--documents", "12", "--open-batches", "2", "--repeat", "1"]
    sizes += ["--kind-rows", "30", "--equal-rows", "3000"]
    scenarios = ("--only", "run,second,start,quote,documents,kinds,equal", "--format", "parquet")

    done = bench(tmp_path, *scenarios, *sizes, "--out", str(tmp_path / "report"))

    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    lines = [line for scenario in report["scenarios"].values() for line in scenario["lines"]]
    assert [line["what"] for line in lines] == [
        "whole run, 60 rows, Parquet",
        "whole run, 90 rows, Parquet",
        "second run over 90 unchanged rows, Parquet",
        "second run over 90 unchanged rows, Parquet: peak memory",
        "run over 500 new rows",
        "run over 500 new rows: first POST",
        "batch-pipeline --help",
        "run, 500 rows and nothing to do",
        "status, 500 rows",
        "export, 500 rows",
        "status, 90 rows",
        "quote of 90 rows, Parquet",
        "first POST of 90 rows, Parquet",
        "quote of 90 rows, CSV",
        "first POST of 90 rows, CSV",
        "12 documents of 100 kB",
        "12 documents of 100 kB: peak memory",
        "labels, 30 rows, Parquet",
        "schema of 8 properties, 30 rows, Parquet",
        "few-shot, 30 rows, Parquet",
        "filters and loops, 30 rows, Parquet",
        "3,000 rows of 3 texts, batches of 25,000",
        "3,000 rows of 3 texts, batches of 25,000: requests",
        "3,000 rows of 3 texts, batches of 100",
        "3,000 rows of 3 texts, batches of 100: requests",
    ]
    assert all(line["value"] > 0 for line in lines)
    assert [line["measured"] for line in lines if line["what"].endswith(": requests")] == ["3", "3"]
    runs = report["scenarios"]["run"]["measurements"]
    assert [(run["program"], run["rows"]) for run in runs] == [
        ("plain", 60),
        ("pipeline", 60),
        ("plain", 90),
        ("pipeline", 90),
    ]


@pytest.mark.long
def test_a_poll_pass_over_open_batches_is_counted_at_the_server(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "poll", "--open-batches", "6", "--repeat", "1")

    assert done.returncode == 0, done.stderr
    assert "listing pages: 1, retrieves: 0" in done.stdout


@pytest.mark.long
def test_drivers_of_one_job_wait_for_locks_on_postgresql(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "locks", "--lock-rows", "1500")

    assert done.returncode == 0, done.stderr
    assert re.search(r"8 drivers, 1,500 rows: [0-9.]+ s, longest wait for a lock [0-9.]+ s", done.stdout)


def test_a_program_that_fails_is_no_figure_and_the_next_scenario_is_measured_all_the_same(tmp_path: Path) -> None:
    options = ("--sizes", "60", "--format", "csv", "--repeat", "1", "--timeout", "0.01")

    done = bench(tmp_path, "--only", "run,start", *options, "--out", str(tmp_path / "report"))

    assert done.returncode == 1
    scenarios = json.loads((tmp_path / "report.json").read_text())["scenarios"]
    (run,), (start,) = scenarios["run"]["lines"], scenarios["start"]["lines"]
    assert run["measured"].startswith("failed: plain with 60 rows ended with exit code -9; see ")
    assert start["measured"].startswith("failed: run over 500 new rows ended with exit code -9; see ")
    assert run["met"] is False
    assert scenarios["run"]["measurements"] == []


def test_a_table_that_lacks_a_row_or_an_answer_does_not_count(tmp_path: Path) -> None:
    sqlite = sqlite3.connect(tmp_path / "plain.db")
    sqlite.execute("CREATE TABLE answers (id, status, text)")
    rows = [("a", "succeeded", "text"), ("b", "succeeded", "text"), ("c", "succeeded", "")]
    sqlite.executemany("INSERT INTO answers VALUES (?, ?, ?)", rows)
    sqlite.commit()
    sqlite.close()
    code = "from harness import *; import sys; check_answers('plain', Path(sys.argv[1]), int(sys.argv[2]))"

    for wanted in ("2", "3", "4"):
        command = [sys.executable, "-c", code, str(tmp_path), wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCH.parent)
        assert f"plain: rows, different keys, succeeded rows are (3, 3, 2); each should be {wanted}" in done.stderr


def worktrees() -> str:
    return subprocess.run(
        ["git", "worktree", "list"], capture_output=True, text=True, check=True, cwd=BENCH.parent
    ).stdout


@pytest.mark.long
def test_this_tree_is_compared_with_a_commit_whose_worktree_is_removed(tmp_path: Path) -> None:
    options = ("--sizes", "60", "--format", "csv", "--repeat", "2")

    done = bench(tmp_path, "--against", "HEAD", *options)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [each.split()[1] for each in lines if each.startswith("        60 ")] == ["this", "HEAD", "this", "HEAD"]
    at = lines.index("60 rows, csv, medians of 2 runs of each:")
    assert lines[at + 1].split() == ["this", "HEAD", "this/that"]
    assert [each.rsplit(maxsplit=3)[0] for each in lines[at + 2 :]] == ["wall s", "cpu s", "peak MB"]
    assert "batch-pipeline-against-" not in worktrees()
    assert list(tmp_path.iterdir()) == []


def test_a_commit_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = bench(tmp_path, "--against", "no-such-commit", "--sizes", "60", "--repeat", "1")

    assert done.returncode == 1
    assert "no-such-commit" in done.stderr
    assert "batch-pipeline-against-" not in worktrees()


def test_a_file_without_marks_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("My notes.\n")

    done = bench(tmp_path, "--out", str(tmp_path / "report"))

    assert done.returncode == 1
    assert "report.md exists, but does not have exactly one <!-- benchmark: begin -->" in done.stderr
    assert (tmp_path / "report.md").read_text() == "My notes.\n"
