"""A source whose rows have all succeeded is marked: the next run compares no row, unless a planning has begun since."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pipeline.errors import SourceError, Stopped
from pipeline.planning import unchanged
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.selection import Selection
from pipeline.state import settled
from pipeline.state.runs import join_run, mark_planned, newest_run
from pipeline.state.segments import Segment, SegmentDigest
from pipeline.state.tables import stretches
from tests.conftest import World, texts
from tests.planning.test_shards import in_threads
from tests.planning.test_unchanged import KEEP, again, kept, read, seen

POSTGRESQL_IS_LONG = True

__all__ = ["read"]  # a fixture


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that gets the number of rows of each segment that is compared."""
    found: list[int] = []
    noted = KnownRows.noted

    def counted(self: KnownRows, note: SegmentDigest, recipe: str) -> Segment:
        found.append(note.rows)
        return noted(self, note, recipe)

    monkeypatch.setattr(KnownRows, "noted", counted)
    return found


@pytest.fixture
def marked(world: World, compared: list[int], read: list[str]) -> World:
    """Return a world whose ten rows have succeeded and are marked, so that a run compares none of them."""
    world.rows(seen(10, "today"))
    world.run(world.job(**KEEP))
    read.clear()
    assert world.run(world.job(**KEEP)).rows == {}
    assert (compared, read, kept(world)) == ([], [], 10)
    return world


def has_mark(world: World) -> bool:
    """Return whether the job has a mark, valid or not."""
    with world.database.read() as conn:
        return conn.scalar(select(stretches.c.n).where(stretches.c.first == 0)) is not None


def is_marked(world: World) -> bool:
    """Return whether the job has a valid mark."""
    with world.database.read() as conn:
        marks = conn.scalars(select(stretches.c.source).where(stretches.c.first == 0)).all()
        return any(settled.settled_rows(conn, world.known().id, source) is not None for source in marks)


def run_over_another_source_at(world: World, moment: str) -> None:
    """Run the job, and at this event of the run once more, over other kept values, which then change back."""

    def plan_another_source(event: str, facts: dict[str, Any]) -> None:
        if event == moment:
            world.on_event = None
            world.rows(seen(10, "tomorrow"))
            world.run(world.job(**KEEP))
            world.rows(seen(10, "today"))

    world.on_event = plan_another_source
    world.run(world.job(**KEEP))


def answered_by_a_sweep(world: World) -> None:
    """Have all rows answered, with a command that did not see it."""
    world.run(world.job(), detach=True)
    world.clock.advance(61)
    assert world.sweep() == [("summaries", None)]
    assert set(world.statuses().values()) == {"succeeded"}


# -- a valid mark ----------------------------------------------------------------------------------------------------


def test_each_run_over_a_marked_source_marks_it_again(marked: World, compared: list[int]) -> None:
    for _ in range(3):
        assert again(marked, [], **KEEP) == {}

    assert compared == []
    assert is_marked(marked)
    assert marked.accepted() == 10


def test_several_files_have_one_mark(world: World, compared: list[int]) -> None:
    os.unlink(world.rows(texts(1)))
    world.rows(texts(10), "a.csv")
    world.rows([{"id": "new", "text": "A new text."}], "b.csv")
    job = world.job(source={"path": str(world.folder / "*.csv")})
    world.run(job)

    world.run(job)

    assert (compared, kept(world)) == ([], 11)


def test_rows_that_were_there_before_and_new_ones_are_marked_together(marked: World, compared: list[int]) -> None:
    adds_a_row(marked)
    again(marked, [], **KEEP)

    assert marked.run(marked.job(**KEEP)).rows == {}

    assert (compared, kept(marked)) == ([], 11)


def test_rows_that_the_run_itself_has_sent_again_are_marked_too(world: World, compared: list[int]) -> None:
    error = {"do": "error", "error_type": "api_error", "match": "Text number 3 ", "times": 1}
    world.emulator.add_fault(on="item", **error)
    world.run(world.job())
    assert world.accepted() == 6

    world.run(world.job())

    assert (compared, kept(world)) == ([], 5)


def test_rows_that_a_sweep_has_collected_are_compared_once_and_then_marked(world: World, compared: list[int]) -> None:
    answered_by_a_sweep(world)
    assert not has_mark(world)

    world.run(world.job())
    assert sum(compared) == 5
    world.run(world.job())

    assert sum(compared) == 5


def test_a_sweep_leaves_the_mark_valid(marked: World, compared: list[int]) -> None:
    marked.sweep()

    again(marked, [], **KEEP)

    assert compared == []


# -- what has no mark ------------------------------------------------------------------------------------------------


def test_a_source_with_a_failed_row_gets_no_mark_and_a_changed_retry_policy_sends_the_row(world: World) -> None:
    error = {"do": "error", "error_type": "api_error", "match": "Text number 3 ", "times": 1}
    world.emulator.add_fault(on="item", **error)
    once = world.job(retry={"max_attempts": 1})
    world.run(once)
    world.run(once)
    world.run(once)
    assert not has_mark(world)

    assert world.run(world.job(retry={"max_attempts": 2})).rows == {"succeeded": 1}


def test_rows_that_failed_and_are_not_sent_again_get_no_mark_with_new_ones(world: World) -> None:
    """The second run has one row, which succeeds, but the source has another one, which has failed."""
    error = {"do": "error", "error_type": "invalid_request_error", "match": "Text number 3 "}
    world.emulator.add_fault(on="item", **error)
    world.run(world.job())
    world.rows(texts(6))

    assert world.run(world.job()).rows == {"succeeded": 1}

    assert not has_mark(world)


def test_rows_that_failed_and_are_sent_again_are_marked_when_they_have_succeeded(world: World) -> None:
    error = {"do": "error", "error_type": "api_error", "match": "Text number 3 ", "times": 1}
    world.emulator.add_fault(on="item", **error)
    world.run(world.job(retry={"max_attempts": 1}))

    assert world.run(world.job(retry={"max_attempts": 2})).rows == {"succeeded": 1}

    assert is_marked(world)


def test_rows_of_an_older_recipe_get_no_mark_and_can_be_refreshed(marked: World) -> None:
    newer = marked.job(**KEEP, request={"max_tokens": 200})
    assert (marked.run(newer).rows, marked.run(newer).rows) == ({}, {})
    assert not is_marked(marked)

    assert marked.run(newer, refresh=True).rows == {"succeeded": 10}


def test_a_run_with_refresh_compares_the_rows(marked: World, compared: list[int]) -> None:
    assert marked.run(marked.job(**KEEP), refresh=True).rows == {}

    assert sum(compared) == 10


def test_a_dry_run_over_a_source_marks_nothing(world: World) -> None:
    answered_by_a_sweep(world)

    world.run(world.job(), dry_run=True)

    assert not has_mark(world)


def test_a_planning_between_the_quote_and_the_lease_prevents_the_mark(world: World, compared: list[int]) -> None:
    world.rows(seen(10, "today"))
    world.run(world.job(**KEEP))

    run_over_another_source_at(world, "quote")

    assert not is_marked(world)
    again(world, [], **KEEP)
    assert {answer["seen"] for answer in world.answers().values()} == {"today"}


def test_a_run_that_another_driver_has_begun_after_the_quote_prevents_the_mark(world: World) -> None:
    def begin_with_another_text(event: str, facts: dict[str, Any]) -> None:
        if event == "quote":
            world.on_event = None
            changes_a_row(world)
            world.run(world.job(), detach=True)  # its run is open, and the other command goes on with it
            world.rows(texts(10))

    world.rows(texts(10))
    world.run(world.job())
    world.on_event = begin_with_another_text
    world.run(world.job())

    assert world.run(world.job()).rows == {"succeeded": 1}
    assert "number 5" in world.answers()["r5"]["text"]


def test_a_file_with_a_key_twice_that_other_processes_have_read_gets_no_mark(world: World) -> None:
    os.unlink(world.folder / "rows.csv")
    job = world.job(source={"path": str(world.folder / "*.csv")})
    world.rows(texts(5), "a.csv")
    world.rows([{"id": "b", "text": "B"}], "b.csv")
    world.run(job)
    world.rows([*texts(5), {"id": "new", "text": "New"}], "a.csv")

    def replace(event: str, facts: dict[str, Any]) -> None:
        if event == "quote":
            world.rows([*texts(5), {"id": "r3", "text": "Another text."}], "a.csv")

    world.on_event = replace
    world.run(job, share=in_threads(world))
    world.on_event = None

    with pytest.raises(SourceError, match="several rows have the same key"):
        world.run(job)


def test_an_error_of_the_database_at_the_end_leaves_the_run_finished_without_a_mark(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise Stopped("cannot read the database: disk I/O error")

    monkeypatch.setattr(unchanged, "run_counts", fail)

    assert world.run(world.job()).state == "finished"

    assert not has_mark(world)


def test_a_file_that_got_its_old_time_back_while_it_was_planned_is_compared(world: World) -> None:
    os.utime(world.rows(texts(10)), (0, 0))

    def replace(event: str, facts: dict[str, Any]) -> None:
        if event == "planned":
            changes_a_row(world)

    world.on_event = replace
    world.run(world.job())
    world.on_event = None

    assert world.run(world.job()).rows == {"succeeded": 1}


@pytest.mark.parametrize("moment", ["submitted", "ended", "collected"])
def test_a_planning_before_the_end_of_a_run_prevents_its_mark(world: World, moment: str) -> None:
    world.rows(seen(10, "today"))
    run_over_another_source_at(world, moment)

    assert not is_marked(world)
    again(world, [], **KEEP)
    assert {answer["seen"] for answer in world.answers().values()} == {"today"}


def test_a_file_that_was_replaced_while_the_run_waited_is_compared(world: World) -> None:
    def replace(event: str, facts: dict[str, Any]) -> None:
        if event == "submitted":
            changes_a_row(world)

    world.rows(seen(10, "today"))
    world.on_event = replace
    world.run(world.job(**KEEP))
    world.on_event = None

    assert again(world, [], **KEEP) == {"succeeded": 1}


# -- what makes a mark void ------------------------------------------------------------------------------------------


def changes_a_row(world: World) -> None:
    """Replace the file by one of the same size and time, in which a row has changed."""
    path = world.folder / "rows.csv"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Text number 5", b"Text numbex 5"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def adds_a_row(world: World) -> None:
    world.rows([*seen(10, "today"), {"id": "new", "text": "A new text.", "seen": "today"}])


def test_a_file_of_the_same_size_and_time_is_compared(marked: World) -> None:
    changes_a_row(marked)

    assert again(marked, [], **KEEP) == {"succeeded": 1}

    assert "numbex" in marked.answers()["r5"]["text"]


@pytest.mark.parametrize("change", [changes_a_row, adds_a_row], ids=lambda change: change.__name__)
def test_a_source_that_has_its_earlier_content_again_is_compared(
    marked: World, change: Callable[[World], None]
) -> None:
    change(marked)
    again(marked, [], **KEEP)
    marked.rows(seen(10, "today"))

    again(marked, [], **KEEP)

    assert "number 5" in marked.answers()["r5"]["text"]


def test_a_kept_value_that_changed_and_changed_back_is_stored(marked: World) -> None:
    marked.rows(seen(10, "tomorrow"))
    again(marked, [], **KEEP)
    marked.rows(seen(10, "today"))

    again(marked, [], **KEEP)

    assert {answer["seen"] for answer in marked.answers().values()} == {"today"}


@pytest.mark.parametrize("moment", ["quote", "planned", "submitted", "ended", "collected"])
def test_after_a_driver_died_at_any_moment_the_rows_are_compared(marked: World, moment: str) -> None:
    changes_a_row(marked)
    marked.dies_at(marked.job(**KEEP), moment, nth=len(marked.told(moment)) + 1)
    marked.rows(seen(10, "today"))

    marked.run(marked.job(**KEEP))

    assert set(marked.states().values()) == {"succeeded"}
    assert "number 5" in marked.answers()["r5"]["text"]


def test_a_driver_that_died_in_its_planning_leaves_no_valid_mark(marked: World) -> None:
    changes_a_row(marked)

    marked.dies_at(marked.job(**KEEP), "planned", nth=len(marked.told("planned")) + 1)

    assert has_mark(marked)
    assert not is_marked(marked)


def test_rows_that_a_retry_sends_again_are_compared(marked: World, compared: list[int]) -> None:
    again_please = Selection(keys=("r2",), statuses=("succeeded",))
    marked.run(marked.job(**KEEP), retry=again_please, detach=True)
    assert not is_marked(marked)

    ended = marked.run(marked.job(**KEEP))

    assert ended.state == "finished"
    assert set(marked.states().values()) == {"succeeded"}
    assert marked.accepted() == 11


def test_a_run_with_a_limit_or_other_vars_makes_the_mark_void(marked: World) -> None:
    marked.run(marked.job(**KEEP), limit=3)
    assert not is_marked(marked)
    again(marked, [], **KEEP)
    assert is_marked(marked)

    marked.run(marked.job(**KEEP, vars={"day": "monday"}))

    assert again(marked, [], **KEEP) == {}
    assert marked.accepted() == 10


# -- who writes rows -------------------------------------------------------------------------------------------------

#: Each writer of `requests`: the states of the rows that it changes; PLANNING: those of any row, after the transaction
#: that begins a planning.
PLANNING = "planning"
WRITERS = {
    "moves._CLAIMED": "pending",
    "moves.drop_batch": "in_flight",
    "moves.mark_found_again": "lost",
    "new_rows._ANSWERED": PLANNING,
    "new_rows._INVALID": PLANNING,
    "new_rows._ON_SQLITE": PLANNING,
    "new_rows._SENT": PLANNING,
    "new_rows._WAITING": PLANNING,
    "rows._REPLAN": PLANNING,
    "rows.forget_bodies_of": "pending",
    "rows.forget_body": "pending",
    "rows.forget_rounds": "pending",
    "rows.forget_waiting_bodies": "pending",
    "rows.keep_rows": PLANNING,
    "rows.leave_rows": "pending",
    "rows.mark_changed": PLANNING,
    "rows.mark_outcomes": "in_flight",
    "rows.note_sent": "pending",
    "rows.remove_vanished": "pending",
    "rows.stand": "pending",
    "rows.take_over": "pending",
    "runs.forget_changed": PLANNING,
    "sharing._COPY": "pending",
    "sharing._LEAVE": "pending",
    "turns.carry_over": "pending",
    "turns.carry_over_vanished": "pending",
    "turns.repeat_rounds": "lost",
}
_WRITES = ("update(requests)", "insert(requests)", "requests.delete()", "INSERT INTO requests", "UPDATE requests")


def test_only_a_planning_writes_a_row_that_has_succeeded() -> None:
    found = set()
    for path in (Path(__file__).parents[2] / "pipeline").rglob("*.py"):
        for part in ast.parse(path.read_text(encoding="utf-8")).body if "versions" not in path.parts else ():
            if any(write in ast.unparse(part) for write in _WRITES):
                name = part.name if isinstance(part, ast.FunctionDef) else ast.unparse(part).partition(" ")[0]
                found.add(f"{path.stem}.{name}")

    assert found == WRITERS.keys(), "state/settled.py relies on what is said above of each writer"
    assert set(WRITERS.values()) == {"pending", "in_flight", "lost", PLANNING}  # and none of a row that has succeeded


@pytest.mark.parametrize("join", [False, True], ids=["a new run", "an open run"])
def test_the_transaction_that_begins_a_planning_makes_the_mark_void(marked: World, join: bool) -> None:
    def begin() -> None:
        with marked.database.write() as conn:
            job: dict[str, Any] = {"variables": {}, "job": {"name": "summaries"}, "recipe": "another", "retry": None}
            join_run(conn, marked.known().id, **job, now=marked.clock())

    if join:
        begin()
        with marked.database.write() as conn:
            mark_planned(conn, newest_run(conn), vanished=0, now=marked.clock())
            [source] = conn.scalars(select(stretches.c.source).where(stretches.c.first == 0)).all()
            settled.mark_settled(conn, marked.known().id, source, 10)
    assert is_marked(marked)

    begin()

    assert not is_marked(marked)
