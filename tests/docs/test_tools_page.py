"""What docs/tools.md shows can be used as it stands, and the tools of the example job can be called."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.job.load import load
from pipeline.job.model import Job
from pipeline.request.check import check_params
from pipeline.tools.calls import Toolbox
from pipeline.tools.proof import load_tools

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
JOB = """
name: orders
source: {path: orders.csv, key: id}
sink: {table: answers}
"""
REQUEST = '  model: claude-haiku-4-5\n  max_tokens: 100\n  prompt: "{{ question }}"\n'
TODAY = date(2026, 11, 29)


@pytest.fixture(scope="module")
def example() -> Toolbox:
    tools = load_tools(load(ROOT / "sample_data" / "jobs" / "answer_tickets.yaml", variables={}, today=TODAY))
    assert tools is not None
    return tools


def called(tools: Toolbox, name: str, **given: Any) -> dict[str, Any]:
    return tools.call({"type": "tool_use", "id": "toolu_1", "name": name, "input": given})


def test_it_begins_with_what_rounds_are_not_for_and_what_tools_must_be() -> None:
    paragraphs = PAGE.split("\n\n")

    assert paragraphs[1].startswith("A round takes minutes to hours; this is not for chat.")
    assert paragraphs[2].startswith("Tools must be safe to repeat.")


def test_the_job_file_and_the_module_that_it_shows_work_together(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    (tmp_path / "job.yaml").write_text(JOB + shown.group(1).replace("request:\n", f"request:\n{REQUEST}"))
    (tmp_path / "mytools.py").write_text(SCRIPTS[0])

    job = load(tmp_path / "job.yaml", variables={}, today=TODAY)
    check_params(job)
    tools = load_tools(job)

    assert tools is not None
    assert orjson.loads(called(tools, "lookup", number="7")["content"]) == {"number": "7", "state": "delivered"}


def test_the_job_in_python_that_it_shows_can_be_made() -> None:
    names: dict[str, Any] = {}

    exec(SCRIPTS[1], names)

    job = names["job"]
    assert isinstance(job, Job)
    check_params(job)
    tools = load_tools(job)
    assert tools is not None
    assert called(tools, "lookup", number="7")["content"] == "Order 7 was delivered."


def test_the_tools_of_the_example_answer_what_the_model_may_ask(example: Toolbox) -> None:
    earlier = called(example, "earlier_tickets", account="pedal parts utrecht", most=2)
    unknown = called(example, "earlier_tickets", account="Nobody")
    price = called(example, "postage", service="parcel", weight_kg=10)
    too_heavy = called(example, "postage", service="pallet", weight_kg=1001)

    assert [list(ticket) for ticket in orjson.loads(earlier["content"])] == [["opened_at", "subject"]] * 2
    assert unknown["content"] == "[]"
    assert orjson.loads(price["content"]) == {"service": "parcel", "eur": 24.0}
    assert (too_heavy["is_error"], too_heavy["content"]) == (
        True,
        "postage failed: ValueError: 1001 kg are too heavy for one sending",
    )
