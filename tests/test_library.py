"""Scripts and notebooks run jobs and read answers from Python."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import Job, load_job, results, run
from pipeline.errors import InputError, JobError

JOB = """\
name: notes
vars: {tone: calm}
source: {path: notes.csv, key: id}
request: {model: claude-haiku-4-5, max_tokens: 60, prompt: "{{ vars.tone }}: {{ text }}"}
sink: {table: answers}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to work in, with a job over seven notes."""
    monkeypatch.chdir(tmp_path)
    for name in ("BATCH_DATABASE_URL", "BATCH_SPOOL", "BATCH_MONTHLY_BUDGET_USD"):
        monkeypatch.delenv(name, raising=False)
    notes = "".join(f"n{i},Note number {i}.\n" for i in range(7))
    (tmp_path / "notes.csv").write_text(f"id,text\n{notes}")
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def ran(job: Job, **options: Any) -> list[str]:
    """Run it on the emulator and return the lines of progress."""
    lines: list[str] = []
    finished = run(job, emulator=True, poll_seconds=0.01, tell=lines.append, **options)
    assert finished.exit_code == 0
    return lines


def test_a_job_runs_and_results_returns_its_answers_as_a_frame() -> None:
    job = load_job("job.yaml")

    lines = ran(job)
    frame = results(job, emulator=True)

    assert lines[1].startswith("rows     7 in the source: 7 new")
    assert any(line.startswith("batch 1 collected: 7 succeeded") for line in lines)
    assert isinstance(frame, pl.DataFrame)
    assert frame["id"].to_list() == [f"n{i}" for i in range(7)]
    assert frame.schema["cost_usd"] == pl.Float64
    assert frame.schema["updated_at"] == pl.Datetime("us", "UTC")


def test_a_job_made_in_python_runs_like_one_from_a_file() -> None:
    job = Job.model_validate(
        {
            "name": "notes",
            "source": {"path": "notes.csv", "key": "id"},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 60, "prompt": "{{ text }}"},
            "sink": {"table": "answers"},
        }
    )

    ran(job)

    assert results("notes", emulator=True).height == 7


def test_the_end_of_a_run_is_a_short_text_under_a_notebook_cell() -> None:
    shown = repr(run(load_job("job.yaml"), emulator=True, poll_seconds=0.01))

    assert shown.startswith("Finished(run_id=1, state='finished', reason=None, rows={'succeeded': 7}, cost_usd=0.00")
    assert "Note number" not in shown


def test_the_same_call_again_continues_the_job() -> None:
    ran(load_job("job.yaml"), limit=3)

    lines = ran(load_job("job.yaml"))

    assert any("4 new, 3 kept" in line for line in lines)
    assert results("notes", emulator=True, status="succeeded").height == 7


@pytest.mark.parametrize(("size", "heights"), [(3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_many_answers_are_read_in_several_frames(size: int, heights: list[int]) -> None:
    ran(load_job("job.yaml"))

    frames = list(results("notes", emulator=True, batch_size=size))

    assert [frame.height for frame in frames] == heights
    assert pl.concat(frames).equals(results("notes", emulator=True))


def test_a_job_without_answers_gives_a_frame_without_rows() -> None:
    ran(load_job("job.yaml"))

    frame = results("notes", emulator=True, where="id = 'none'")

    assert (frame.height, "text" in frame.columns) == (0, True)
    assert [each.height for each in results("notes", emulator=True, status="errored", batch_size=2)] == [0]


def test_vars_are_given_as_on_the_command_line() -> None:
    assert load_job("job.yaml", {"tone": "loud"}).vars == {"tone": "loud"}
    with pytest.raises(JobError, match="the job declares no such var"):
        load_job("job.yaml", {"tune": "loud"})


def test_progress_is_written_to_stderr_unless_the_caller_handles_it(capfd: pytest.CaptureFixture[str]) -> None:
    run(load_job("job.yaml"), emulator=True, poll_seconds=0.01)

    said = capfd.readouterr()
    assert "batch 1 collected: 7 succeeded" in said.err
    assert said.out == ""


def test_a_missing_database_an_unknown_job_and_a_wrong_batch_size_are_refused() -> None:
    with pytest.raises(InputError, match="there is no database"):
        results("notes")
    ran(load_job("job.yaml"))
    with pytest.raises(InputError, match="no job"):
        results("letters", emulator=True)
    with pytest.raises(InputError, match="batch_size 0"):
        results("notes", emulator=True, batch_size=0)
