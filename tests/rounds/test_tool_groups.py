"""Other processes call the tools of groups of rows for a driver; what they leave is called later."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from pipeline.driver.tool_groups import LEAST_ROWS, MOST_GROUPS, Called, ToolGroup, groups
from pipeline.errors import LostRace, Stopped
from pipeline.job.model import Job
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.state.tables import turns
from pipeline.steps import tools as step
from pipeline.steps.cancel import cancel
from pipeline.steps.tools import call_group, left_of_groups
from tests.conftest import World, texts
from tests.rounds.builders import Counting, holds, with_tools

POSTGRESQL_IS_LONG = True


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (1, [1]),
        (LEAST_ROWS, [LEAST_ROWS]),
        (LEAST_ROWS + 1, [5, 6]),
        (25_000, [1562, 1563] * (MOST_GROUPS // 2)),
    ],
    ids=["one row", "a few rows", "more rows", "a batch"],
)
def test_rows_are_split_into_few_groups_of_about_equal_size(rows: int, sizes: list[int]) -> None:
    numbers = range(7, 7 + 2 * rows, 2)  # other rows are in between

    made = groups("plants", 3, numbers, 30.0)

    found = [[number for number in numbers if group.first <= number <= group.last] for group in made]
    assert [len(each) for each in found] == sizes
    assert [number for each in found for number in each] == list(numbers)


class Others:
    """Other processes, as a driver lets them work: each has a sign of life of its own.

    dies: called before a group; what it raises is the end of that process.
    """

    def __init__(self, world: World, dies: Callable[[ToolGroup], None] = lambda group: None) -> None:
        self._world, self._dies = world, dies
        self.given: list[list[ToolGroup]] = []
        self.made: list[Called] = []

    def __call__(self, groups: list[ToolGroup]) -> list[Called]:
        self.given.append(groups)
        ended = []
        for group in groups:
            try:
                self._dies(group)
                ended.append(call_group(self._world.where(), group))
            except (RuntimeError, LostRace, Stopped):
                continue
        self.made += ended
        return ended


@pytest.fixture
def lookup(world: World) -> Counting:
    """The tool of a run with 25 rows, which all wait for it."""
    world.rows(texts(25))
    made = Counting()
    world.run(with_tools(world, {"lookup": made}), detach=True)
    world.clock.advance(120)
    sweep(replace(world.where(), runs_tools=False))
    assert set(world.states().values()) == {"pending"}
    return made


def sweep_with(world: World, others: Others) -> list[tuple[str, str | None]]:
    return sweep(replace(world.where(), tool_runner=others))


def finish(world: World, lookup: Counting) -> None:
    """Run the job to its end, and see that each call was made once and each row is answered."""
    finished = world.run(with_tools(world, {"lookup": lookup}))

    assert finished.rows == {"succeeded": 25}
    assert lookup.calls.total() == sum(answer["tool_calls"] for answer in world.answers().values())
    assert world.sent_twice() == []
    assert holds(world)


def test_others_make_all_calls_in_groups_of_rows(world: World, lookup: Counting) -> None:
    others = Others(world)

    swept = sweep_with(world, others)

    assert swept == [("summaries", None)]
    assert [len(groups) for groups in others.given] == [3]
    assert sum(each.calls for each in others.made) == lookup.calls.total()
    assert world.told("tools_called")[-1]["calls"] == lookup.calls.total()
    assert world.batch_states() == ["collected", "in_progress"]
    finish(world, lookup)


def test_a_run_lets_others_make_the_calls_of_all_rounds(world: World, lookup: Counting) -> None:
    others = Others(world)

    finished = run(with_tools(world, {"lookup": lookup}), replace(world.where(), tool_runner=others), Options())

    assert finished.rows == {"succeeded": 25}
    assert sum(each.calls for each in others.made) == lookup.calls.total()
    assert holds(world)


def test_the_rows_of_a_process_that_died_are_given_to_others_again(world: World, lookup: Counting) -> None:
    deaths: list[ToolGroup] = []

    def dies(group: ToolGroup) -> None:
        if len(others.given) == 1 and group == others.given[0][1]:
            deaths.append(group)
            raise RuntimeError

    others = Others(world, dies)
    swept = sweep_with(world, others)

    assert swept == [("summaries", None)]
    assert len(deaths) == 1
    assert others.given[1:] == [deaths]
    assert world.batch_states() == ["collected", "in_progress"]
    finish(world, lookup)


def test_the_driver_makes_the_calls_itself_if_no_other_process_works(world: World, lookup: Counting) -> None:
    def dies(group: ToolGroup) -> None:
        raise RuntimeError

    others = Others(world, dies)
    swept = sweep_with(world, others)

    assert swept == [("summaries", None)]
    assert world.batch_states() == ["collected", "in_progress"]
    assert not others.made
    finish(world, lookup)


def test_a_driver_without_the_tools_that_others_have_leaves_their_rows_to_them(
    world: World, lookup: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*_: Any) -> Any:
        raise Stopped("no module")

    others = Others(world)
    with contextlib.ExitStack() as stack:
        living = world.driver(stack).lease.resource  # another sweep is at work
        with world.database.write() as conn:
            conn.execute(update(turns).values(claimed_by=living))
        monkeypatch.setattr(step, "_toolbox", not_here)
        swept = sweep_with(world, others)
        monkeypatch.undo()

    assert swept == [("summaries", None)]
    assert others.given == []
    finish(world, lookup)


def test_a_group_whose_time_is_over_leaves_its_rows_to_a_further_one(
    world: World, lookup: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "SECONDS_OF_GROUP", 0.0)
    others = Others(world)

    swept = sweep_with(world, others)

    assert swept == [("summaries", None)]
    assert [len(groups) for groups in others.given] == [3, 3, 2, 2, 2, 2, 2, *[1] * 9]
    assert world.batch_states() == ["collected", "in_progress"]
    finish(world, lookup)


def test_a_group_of_a_run_that_has_ended_is_not_called(world: World, lookup: Counting) -> None:
    def dies(group: ToolGroup) -> None:
        if not canceled:
            canceled.append(True)
            cancel(world.where(), world.known())

    canceled: list[bool] = []
    others = Others(world, dies)
    swept = sweep_with(world, others)

    assert swept == [("summaries", None)]
    assert not lookup.calls
    finish(world, lookup)


def test_the_progress_of_groups_is_the_number_of_their_open_calls(world: World, lookup: Counting) -> None:
    seen: list[tuple[int, bool]] = []

    def look(event: str, facts: dict[str, Any]) -> None:
        if event == "tools_called" and others.given:
            seen.append(left_of_groups(world.database, others.given[0]))

    others = Others(world, lambda group: seen.append(left_of_groups(world.database, others.given[0])))
    world.on_event = look
    sweep_with(world, others)

    calls = [each[0] for each in seen]
    assert calls[0] == lookup.calls.total()
    assert calls == sorted(calls, reverse=True)
    assert calls[-1] == 0
    assert {held for _, held in seen} == {False}


def test_a_group_in_which_a_living_driver_makes_a_call_is_held(world: World, lookup: Counting) -> None:
    seen: list[bool] = []

    def during(word: str) -> str:
        seen.append(left_of_groups(world.database, others.given[0]).held)
        return lookup(word)

    during.__qualname__, during.__module__ = "lookup", "counting"
    job: Job = with_tools(world, {"lookup": during})
    others = Others(world)
    run(job, replace(world.where(), tool_runner=others), Options())

    assert set(seen) == {True}
