"""Slow tools keep a driver neither from polling and submitting, nor from stopping when it is asked to."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.errors import Interrupted
from pipeline.job.model import Job
from pipeline.runner.follow import follow
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.runner.sweep import sweep
from pipeline.state.turns import standing
from pipeline.steps.tools import SECONDS_AT_A_TIME
from tests.conftest import World
from tests.rounds.builders import Counting, holds, with_tools

POSTGRESQL_IS_LONG = True


class Slow(Counting):
    """A tool whose calls take longer than a driver calls tools at a time."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def __call__(self, word: str) -> str:
        self._world.clock.advance(SECONDS_AT_A_TIME + 1)
        return super().__call__(word)


def calling(world: World) -> int:
    """Return how many rows wait for calls of tools."""
    with world.database.read() as conn:
        return sum(behind.calling for behind in standing(conn, 1).values())


def test_a_run_submits_a_batch_that_becomes_due_while_it_calls_tools(world: World) -> None:
    busy = {"do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 60}
    world.emulator.add_fault(on="create", times=1, **busy)  # the first batch waits; the rows of the second call tools
    waited = []

    def look(event: str, facts: dict[str, Any]) -> None:
        if event == "submitted" and facts["batch"] == 1:
            waited.append(calling(world))

    world.on_event = look
    finished = world.run(with_tools(world, {"lookup": Slow(world)}, limits={"max_batch_requests": 3}))

    assert waited == [1]
    assert finished.rows == {"succeeded": 5}
    assert holds(world)


@pytest.fixture
def slow(world: World) -> Slow:
    """The tool of a run whose rows all wait for it."""
    lookup = Slow(world)
    world.run(with_tools(world, {"lookup": lookup}), detach=True)
    world.clock.advance(120)
    assert set(world.states().values()) == {"in_flight"}
    return lookup


def test_a_sweep_makes_all_calls_and_submits_the_next_round(world: World, slow: Slow) -> None:
    world.sweep()

    assert len(world.told("tools_called")) == 5
    assert calling(world) == 0
    assert world.batch_states() == ["collected", "in_progress"]


def test_a_detached_run_makes_all_calls_and_submits_the_next_round(world: World, slow: Slow) -> None:
    world.run(with_tools(world, {"lookup": slow}), detach=True)

    assert len(world.told("tools_called")) == 5
    assert calling(world) == 0
    assert world.batch_states() == ["collected", "in_progress"]


def test_a_follower_waits_for_nothing_while_calls_are_left(world: World, slow: Slow) -> None:
    followed = follow(world.where())

    names = [name for name, _ in world.events]
    first = names.index("tools_called")
    assert names[first : first + 5] == ["tools_called"] * 5
    assert followed.exit_code == 0
    assert set(world.statuses().values()) == {"succeeded"}


class Hanging(Counting):
    """A tool whose third call asks the driver to stop, and then hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.over, self.stop = threading.Event(), threading.Event()

    def __call__(self, word: str) -> str:
        text = super().__call__(word)
        if self.calls.total() == 3:
            self.stop.set()
            self.over.wait(60)
        return text


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.over.set()


def runs(world: World, job: Job, tool: Hanging) -> None:
    where = world.where()
    tool.stop = where.stop.event
    run(job, where, Options())


def sweeps(world: World, job: Job, tool: Hanging) -> None:
    world.run(job, detach=True)
    world.clock.advance(120)
    where = world.where()
    tool.stop = where.stop.event
    sweep(where)


@pytest.mark.parametrize("drive", [runs, sweeps])
def test_a_driver_that_is_asked_to_stop_leaves_the_call_under_way_which_is_made_again(
    world: World, hanging: Hanging, drive: Callable[[World, Job, Hanging], None]
) -> None:
    job = with_tools(world, {"lookup": hanging}, rounds={"timeout": 3600})

    with pytest.raises(Interrupted):
        drive(world, job, hanging)
    stopped_at = hanging.calls.total()
    finished = world.run(job)

    assert stopped_at == 3
    assert not hanging.over.is_set()
    assert finished.rows == {"succeeded": 5}
    assert hanging.calls.total() == sum(answer["tool_calls"] for answer in world.answers().values()) + 1
    assert holds(world)
