"""Scripts and notebooks run jobs and read answers from Python."""

import asyncio
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import Job, cancel, errors, export, load_job, preview, results, retry, run, run_async, status, verify
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


# -- a notebook needs no shell ---------------------------------------------------------------------------------------


@pytest.fixture
def failed(folder: Path) -> Job:
    """Return a job of which two rows were cut off, and one has no text."""
    job = load_job("job.yaml")
    notes = "".join(f"n{i},Note number {i}.\n" for i in range(4))
    (folder / "notes.csv").write_text(f"id,text\n{notes}n9,\n")
    run(made(job, max_tokens=1), emulator=True, poll_seconds=0.01, tell=lambda line: None)
    return job


def made(job: Job, **request: Any) -> Job:
    """Return the job with other fields of its request, and with schema-free answers."""
    return job.model_copy(update={"request": job.request.model_copy(update=request)})


def test_status_errors_and_verify_return_what_the_commands_say(failed: Job) -> None:
    how_far = status(failed, emulator=True)
    causes = errors("notes", emulator=True)
    proof = verify(made(failed, max_tokens=1), source=True, emulator=True)

    assert (how_far.job, how_far.rows, how_far.batches) == ("notes", {"truncated": 5}, {"collected": 1})
    assert (how_far.open_runs, how_far.next_command) == ((), ("errors", "notes"))
    assert how_far.last_run is not None
    assert (how_far.last_run.state, how_far.last_run.planned) == ("finished", True)
    assert str(how_far).startswith("job      notes, answers in table answers")
    assert [(cause.status, cause.error_type, cause.rows, cause.keys[0]) for cause in causes] == [
        ("truncated", "max_tokens", 5, "n0")
    ]
    assert causes[0].command[:2] == ("retry", "notes")
    assert (proof.holds, proof.rows, proof.source_rows) == (True, 5, 5)


def test_retry_sends_chosen_rows_again_with_a_change(failed: Job) -> None:
    lines: list[str] = []

    finished = retry(
        failed, status="truncated", keys=["n0", ("n1",)], changes={"request.max_tokens": 60}, emulator=True,
        poll_seconds=0.01, tell=lines.append,
    )  # fmt: skip

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 2})
    assert results("notes", emulator=True, status="succeeded")["id"].to_list() == ["n0", "n1"]
    assert any(line.startswith("batch 2 collected") for line in lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"status": "lots"}, "--status lots: unknown status"),
        (
            {"changes": {"request.prompt": "x"}},
            "changes: 'request.prompt' cannot be changed for one sending",
        ),
    ],
    ids=["status", "field"],
)
def test_a_wrong_retry_is_refused(failed: Job, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        retry(failed, emulator=True, **options)


def test_answers_are_exported_to_a_file_and_to_folders(failed: Job, folder: Path) -> None:
    whole = export(failed, folder / "answers.parquet", emulator=True, limit=3)
    parts = export("notes", "by_status", emulator=True, partition_by="status", file_format="csv")

    assert (whole.rows, pl.read_parquet("answers.parquet").height) == (3, 3)
    assert (parts.rows, parts.files) == (5, 1)
    assert [path.suffix for path in (folder / "by_status" / "status=truncated").iterdir()] == [".csv"]
    with pytest.raises(InputError, match="file_format csv"):
        export("notes", "x.csv", emulator=True, file_format="csv")


def test_cancel_ends_the_runs_of_a_job(folder: Path) -> None:
    run(load_job("job.yaml"), emulator=True, detach=True, tell=lambda line: None)

    canceled = cancel("notes", emulator=True, tell=lambda line: None)

    assert canceled.runs == 1
    assert status("notes", emulator=True).open_runs == ()


def test_what_the_database_does_not_know_is_refused() -> None:
    for ask in (status, errors, verify, cancel):
        with pytest.raises(InputError, match="there is no database"):
            ask("notes", emulator=True)
    ran(load_job("job.yaml"))
    for ask in (status, errors, verify, cancel):
        with pytest.raises(InputError, match="no job"):
            ask("letters", emulator=True)
    with pytest.raises(InputError, match="give the job itself"):
        verify("notes", source=True, emulator=True)


# -- with an event loop ------------------------------------------------------------------------------------------------


def test_a_run_leaves_the_event_loop_free() -> None:
    async def both() -> tuple[Any, int]:
        turns = 0
        running = asyncio.create_task(
            run_async(load_job("job.yaml"), emulator=True, poll_seconds=0.01, tell=lambda line: None)
        )
        while not running.done():
            turns += 1
            await asyncio.sleep(0.01)
        return await running, turns

    finished, turns = asyncio.run(both())

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 7})
    assert turns > 10


def test_a_run_that_is_canceled_stops_like_with_ctrl_c_and_is_continued() -> None:
    async def canceled() -> list[str]:
        lines: list[str] = []
        sent = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell(line: str) -> None:
            lines.append(line)
            if "sent" in line or "submitted" in line or "in progress" in line:
                loop.call_soon_threadsafe(sent.set)

        running = asyncio.create_task(run_async(load_job("job.yaml"), emulator=True, poll_seconds=60, tell=tell))
        await sent.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return lines

    asyncio.run(canceled())

    stopped = status("notes", emulator=True)
    assert [one.state for one in stopped.open_runs] == ["open"]
    ran(load_job("job.yaml"))
    assert results("notes", emulator=True, status="succeeded").height == 7
    assert status("notes", emulator=True).batches == {"collected": 1}


def test_errors_of_a_run_are_raised_where_it_is_awaited() -> None:
    job = load_job("job.yaml")
    Path("notes.csv").unlink()

    with pytest.raises(InputError, match=r"notes\.csv"):
        asyncio.run(run_async(job, emulator=True))


# -- previews ----------------------------------------------------------------------------------------------------------


def test_a_preview_yields_the_events_of_each_answer_and_how_it_ended() -> None:
    seen = list(preview(load_job("job.yaml"), 2, emulator=True))

    ended = [each for each in seen if each.event is None]
    assert [each.key for each in ended] == ["n0", "n1"]
    for last in ended:
        pieces = [each for each in seen if each.key == last.key and each.event is not None]
        assert last.outcome is not None
        assert (last.outcome.state, last.outcome.text) == ("succeeded", "".join(each.text for each in pieces))
        assert last.cost_usd is not None
        assert last.message is not None
        assert last.message["content"][0]["text"] == last.outcome.text
        assert pieces[0].event is not None
        assert pieces[0].event["type"] == "message_start"


def test_a_preview_works_while_an_event_loop_runs_and_may_be_left_early() -> None:
    async def first() -> str:
        events = preview(load_job("job.yaml"), 3, emulator=True)
        found = next(events)
        events.close()  # type: ignore[attr-defined]  # it is a generator
        return found.key

    assert asyncio.run(first()) == "n0"


def test_a_wrong_preview_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match="n 0"):
        preview(load_job("job.yaml"), 0, emulator=True)
    with pytest.raises(InputError, match="n99"):
        preview(load_job("job.yaml"), keys=["n99"], emulator=True)
