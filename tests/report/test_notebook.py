"""The pipeline runs in a notebook: a real kernel executes the cells of docs/python.md."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.events.batches import Submitted
from pipeline.report.notebook import Area, is_running
from pipeline.runner.options import Finished
from tests.conftest import World, event_of

DOCS = Path(__file__).parents[2] / "docs" / "python.md"


class Client(NotebookClient):
    """Executes a notebook and records each text that a cell shows in place of another."""

    shown: list[str]

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.shown.append(msg["content"]["data"]["text/plain"])
        return super().process_message(msg, cell, cell_index)


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that executes cells in a new folder, in a kernel without the machine's settings."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    for name in ("BATCH_DATABASE_URL", "BATCH_SPOOL", "BATCH_MONTHLY_BUDGET_USD", "BATCH_POLL_SECONDS"):
        monkeypatch.delenv(name, raising=False)

    def executed(*cells: str, allow_errors: bool = False) -> tuple[list[Any], list[str]]:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])  # type: ignore[no-untyped-call]
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        client = Client(book, timeout=120, allow_errors=allow_errors, resources={"metadata": {"path": str(folder)}})
        client.shown = []
        client.execute()
        return [cell.outputs for cell in book.cells], client.shown

    return executed


def test_the_cells_of_the_python_page_show_what_the_page_says(execute: Any) -> None:
    cells = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)

    # a notebook has an asyncio loop that runs, which `run` must not mind
    outputs, shown = execute("import asyncio\nassert asyncio.get_running_loop().is_running()", *cells)

    _, _, _, ran, frame, frames, facts, streamed = outputs
    [area, result] = ran  # one area, and nothing on stderr
    assert area.output_type == "display_data"
    lines = area.data["text/plain"].splitlines()
    assert re.fullmatch(r"ticket_triage: run 1 finished, \d+ s", lines[0])
    assert lines[1].startswith("rows     40 in the source: 40 new")
    assert lines[-3:-1] == ["batches  1 collected", "answers  40: 40 succeeded"]
    assert re.fullmatch(r"spent    \$0\.\d+", lines[-1])
    assert result.data["text/plain"] == "('finished', {'succeeded': 40})"
    assert any("batches  1 in progress" in text and "next     look at " in text for text in shown)
    assert shown[-1] == area.data["text/plain"]
    assert "shape: (" in frame[0].data["text/plain"]
    printed = "".join(output.text for output in frames)  # the kernel may send it in several parts
    assert [line.split()[0] for line in printed.splitlines()] == ["16", "16", "8"]
    said = "".join(output.text for output in facts)
    assert said.startswith("job      ticket_triage, answers in table ticket_labels")
    assert said.endswith("{'succeeded': 40} True []\n")
    assert '"label"' in "".join(output.text for output in streamed)


def test_an_error_that_stops_a_run_is_shown_in_its_area(execute: Any) -> None:
    job = {
        "name": "notes",
        "source": {"path": "none.csv", "key": "id"},
        "request": {"model": "claude-haiku-4-5", "max_tokens": 50, "prompt": "{{ text }}"},
        "sink": {"table": "answers"},
    }

    outputs, _ = execute(
        f"from pipeline import Job, run\nrun(Job.model_validate({job}), emulator=True)", allow_errors=True
    )

    area, error = outputs[0]
    assert area.data["text/plain"].startswith("notes: SourceError: ")
    assert (error.output_type, error.ename) == ("error", "SourceError")


def test_a_process_without_a_kernel_is_not_a_notebook() -> None:
    assert not is_running()


def test_the_area_shows_the_states_of_the_batches(world: World) -> None:
    texts: list[str] = []
    area = Area("summaries", texts.append)

    def tell(event: str, facts: dict[str, Any]) -> None:
        area._shown_at = 0  # as if the last change had been long ago
        area.tell(event_of(event, facts))

    world.on_event = tell
    world.emulator.add_fault(on="create", do="status", status=529, error_type="overloaded_error", times=1)
    area.finished(world.run(world.job(limits={"max_batch_requests": 2})))

    assert texts[0] == "summaries: running, 0 s"
    states = [line for text in texts for line in text.splitlines() if line.startswith("batches")]
    assert states[0] == "batches  1 planned"
    assert any(" in progress" in line for line in states)
    assert any(" ended, " in line for line in states)
    assert states[-1] == "batches  3 collected"
    assert any(re.search(r"^next     look at \d\d:\d\d:\d\d$", text, re.MULTILINE) for text in texts)
    assert any(re.search(r"^         batch 1 was not accepted: .*529", line) for line in texts[-1].splitlines())
    assert re.search(r"^answers  5: 5 succeeded\nspent    \$0\.\d+$", texts[-1], re.MULTILINE)
    assert texts[-1].startswith("summaries: run 1 finished, ")


def test_a_hundred_batches_do_not_change_the_area_a_hundred_times() -> None:
    texts: list[str] = []
    area = Area("summaries", texts.append)
    area._shown_at = float("inf")  # just now, for a clock that stands still

    for batch in range(100):
        area.tell(Submitted(batch=batch, api_id="msgbatch", requests=1))
    many = len(texts)
    area.finished(Finished(1, "finished", None, dict(Counter(succeeded=100)), 1.5, None, 0.0))  # type: ignore[arg-type]

    assert many == 1
    assert "batches  100 in progress" in texts[-1]
    assert texts[-1].endswith("answers  100: 100 succeeded\nspent    $1.50")
