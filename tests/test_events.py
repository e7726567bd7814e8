"""Every event has a name of its own, a level, a line, and facts in a fixed order."""

import logging
import re
from pathlib import Path

import pytest

from pipeline.events.batches import BatchMove, Collected, Submitted
from pipeline.events.event import Event
from pipeline.events.runs import RunEnded, Waiting
from pipeline.states import BATCH_MOVES
from tests.conftest import event_classes

CLASSES = pytest.mark.parametrize("of", event_classes(), ids=lambda of: of.name)


@CLASSES
def test_every_event_of_a_driver_has_a_line(of: type[Event]) -> None:
    assert of.line is not Event.line
    assert of.level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", of.name)
    assert [other for other in event_classes() if other.name == of.name] == [of]


def test_every_event_is_created_somewhere() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (Path(__file__).parents[1] / "pipeline").rglob("*.py"))

    made = set(re.findall(r"(?<!class )\b([A-Z]\w+)\(", code))

    assert {of.__name__ for of in event_classes()} - made == set()


def test_every_event_of_a_batch_is_a_legal_move() -> None:
    moves = {(of.before, of.after) for of in event_classes() if issubclass(of, BatchMove)}

    legal = {(before, after) for before, afters in BATCH_MOVES.items() for after in afters}
    assert {move for move in moves if move[0] is not None} <= legal


def test_the_facts_of_an_event_have_a_fixed_order_and_unknown_ones_are_left_out() -> None:
    sent = Submitted(batch=3, api_id="msgbatch_1", requests=2, request_id=None)

    assert list(sent.of_job("notes").facts().items()) == [
        ("job", "notes"),
        ("batch", 3),
        ("api_id", "msgbatch_1"),
        ("requests", 2),
        ("request_id", None),  # the API gave none
    ]
    assert "request_id" not in Submitted(batch=3, api_id="msgbatch_1", requests=2).facts()
    collected = Collected(batch=3, requests=2, rows=2, outcomes={"succeeded": 2}, cost_usd=None)
    assert list(collected.facts()) == ["batch", "requests", "rows", "outcomes", "cost_usd"]


def test_an_event_keeps_the_job_that_it_names() -> None:
    end = RunEnded(when=None, run=2, job="notes", state="finished", reason=None, rows={"errored": 2}, cost_usd=0.5)

    assert end.of_job("others") == end
    assert list(end.facts()) == ["when", "run", "job", "state", "reason", "rows", "cost_usd"]
    assert end.line() == "run 2 of notes ended: 2 of 2 rows failed; next: batch-pipeline errors notes"


def test_the_line_of_a_waiting_run_names_each_other_driver_once() -> None:
    held = [{"process": "process 7", "until": f"0{hour}:00"} for hour in (1, 3, 2)]

    line = Waiting(seconds=0.2, progress={"batches": {"planned": 3}}, held_by=held).line()

    assert line.startswith("waiting: 3 planned, held by process 7: wait, or stop the process; ")
    assert line.endswith("at 03:00 at the latest; next look in 1 s")
