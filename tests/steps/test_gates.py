"""A run sends its canary or its primer first and waits for it before it sends the remaining rows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pipeline.emulator import Emulator
from pipeline.errors import Interrupted
from pipeline.job.model import Job
from pipeline.planning.gates import wanted
from pipeline.planning.selection import Selection
from pipeline.runner import planner
from pipeline.state.tables import runs
from pipeline.states import Gate
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True

CANARY = {"rows": 5, "max_failed": 0.2}
WAITS = 500  # of a driver that waits for what never comes
BUSY = {"on": "create", "do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 100}


@pytest.fixture(autouse=True)
def nobody_waits_for_ever(world: World) -> None:
    wait, waited = world.clock.advance, 0

    def advance(seconds: float) -> None:
        nonlocal waited
        waited += 1
        assert waited < WAITS, f"it waits for ever: {world.events[-3:]}"
        wait(seconds)

    world.clock.advance = advance  # type: ignore[method-assign]


def job(world: World, rows: int = 50, canary: Any = CANARY, **changes: Any) -> Job:
    """Return a job over so many rows, with a canary of five."""
    world.rows(texts(rows))
    return world.job(canary=canary, **changes)


def sizes(world: World) -> list[int]:
    """Return the number of requests in each accepted batch, in order."""
    return [facts["requests"] for facts in world.told("submitted")]


def moves(world: World) -> list[str]:
    """Return the batches submitted and collected, in order: `+5` and `-5` for one of five requests."""
    signs = {"submitted": "+", "collected": "-"}
    return [f"{signs[name]}{facts['requests']}" for name, facts in world.events if name in signs]


def dead(*args: Any, **options: Any) -> None:
    raise Interrupted("dead")


def sweeps(world: World, times: int = 4, *, minutes: int = 1) -> None:
    """Sweep every so many minutes, as a scheduler does."""
    for _ in range(times):
        world.clock.advance(60 * minutes + 1)
        world.sweep()


def run_states(world: World) -> list[tuple[str, str | None]]:
    """Return the state and the reason of each run."""
    with world.database.read() as conn:
        return [(each.state, each.reason) for each in conn.execute(select(runs).order_by(runs.c.id))]


def smallest_body(world: World) -> Path:
    """Return the body of the canary, while nothing has been sent."""
    bodies = (world.folder / "spool" / "summaries").glob("*.json")
    return min(bodies, key=lambda body: body.stat().st_size)


# -- the canary ------------------------------------------------------------------------------------------------------


def test_the_canary_of_a_new_recipe_is_sent_first_and_the_remaining_rows_wait_for_it(world: World) -> None:
    finished = world.run(job(world, 60, limits={"max_batch_requests": 30}))

    assert moves(world)[:3] == ["+5", "-5", "+30"]
    assert sizes(world) == [5, 30, 25]
    assert (finished.state, finished.rows) == ("finished", {"succeeded": 60})
    assert {key for key, answer in world.answers().items() if answer["custom_id"].endswith("-0")} >= {"r0", "r5"}
    assert world.sent_twice() == []


def test_nothing_more_is_sent_when_too_many_rows_of_the_canary_fail(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", times=2)

    stopped = world.run(job(world))

    assert (stopped.state, stopped.reason, stopped.exit_code) == ("incomplete", "canary", 3)
    assert stopped.rows == {"succeeded": 3, "refused": 2, "pending": 45}
    assert sizes(world) == [5]
    assert world.batch_states() == ["collected", "dropped"]
    assert world.told("canary_failed")[0]["failed"] == 2


def test_a_canary_with_no_more_failures_than_allowed_passes(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", times=1)

    finished = world.run(job(world))

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 49, "refused": 1})


def test_after_a_failed_canary_the_same_command_sends_the_next_rows_as_a_canary(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse")
    work = job(world, 70)
    world.run(work)

    again = world.run(work)
    world.emulator.clear_faults()
    mended = world.run(work)

    assert (again.state, again.reason) == ("incomplete", "canary")
    assert again.rows == {"refused": 5, "pending": 60}
    assert mended.rows == {"succeeded": 60}
    assert sizes(world) == [5, 5, 5, 55]


def test_after_a_failed_canary_the_same_command_sends_a_canary_although_few_rows_are_left(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse")
    work = job(world, 50)
    world.run(work)

    again = world.run(work)

    assert (again.state, again.reason) == ("incomplete", "canary")
    assert sizes(world) == [5, 5]


def test_a_few_successes_in_a_failed_canary_do_not_prove_the_recipe(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", times=3)
    work = job(world, 100)
    world.run(work)

    world.run(work)

    assert sizes(world) == [5, 5, 90]


def test_the_user_can_skip_the_canary_after_it_failed(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", times=5)
    work = job(world)
    world.run(work)

    finished = world.run(work, canary=False)

    assert finished.rows == {"succeeded": 45}
    assert sizes(world) == [5, 45]


def test_the_user_can_skip_a_canary_that_is_at_the_api(world: World) -> None:
    work = job(world)
    world.run(work, detach=True)
    waiting = sizes(world)

    world.run(work, detach=True, canary=False)

    assert waiting == [5]
    assert sizes(world) == [5, 45]


def test_a_job_without_a_canary_does_not_wait_for_an_older_canary_at_the_api(world: World) -> None:
    world.run(job(world), detach=True)

    world.run(job(world, canary=False), detach=True)

    assert sizes(world) == [5, 45]


@pytest.mark.parametrize(
    ("rows", "canary", "sent"),
    [
        pytest.param(49, CANARY, [49], id="fewer than ten times its rows"),
        pytest.param(60, False, [60], id="the job has none"),
        pytest.param(50, {"rows": 5}, [5, 45], id="just as many"),
    ],
)
def test_a_canary_is_sent_when_the_job_has_one_and_enough_rows(
    world: World, rows: int, canary: Any, sent: list[int]
) -> None:
    world.run(job(world, rows, canary))

    assert sizes(world) == sent


def test_a_recipe_that_succeeded_before_has_no_canary(world: World) -> None:
    work = job(world, 3)
    world.run(work)
    world.rows(texts(103))

    world.run(work)

    assert sizes(world) == [3, 100]


def test_a_changed_recipe_has_a_canary(world: World) -> None:
    world.run(job(world))
    other = world.job(canary=CANARY, request={"prompt": "In one word: {{ text }}"})

    world.run(other, refresh=True)

    assert sizes(world) == [5, 45, 5, 45]


def test_a_run_of_few_rows_has_no_canary_and_the_next_larger_run_has_one(world: World) -> None:
    work = job(world, 100)
    world.emulator.add_fault(on="item", do="refuse")

    few = world.run(work, limit=10)
    more = world.run(work, limit=70)

    assert few.rows == {"refused": 10}
    assert (more.reason, more.rows) == ("canary", {"refused": 5, "pending": 55})
    assert sizes(world) == [10, 5]


def test_an_open_run_of_few_rows_does_not_replace_the_canary_of_a_larger_run(world: World) -> None:
    work = job(world, 100)
    world.emulator.add_fault(on="item", do="refuse")
    world.run(work, limit=3, detach=True)

    world.run(work)

    assert world.accepted() < 20


def test_a_canary_row_with_a_temporary_failure_is_sent_again_before_it_counts(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", times=4)

    finished = world.run(job(world))

    assert sizes(world) == [5, 4, 45]
    assert moves(world)[:4] == ["+5", "-5", "+4", "-4"]
    assert finished.rows == {"succeeded": 50}


def test_canary_rows_whose_attempts_are_used_up_count_as_failed(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error")

    stopped = world.run(job(world))

    assert (stopped.reason, stopped.rows) == ("canary", {"errored": 5, "pending": 45})
    assert sizes(world) == [5, 5, 5]


def test_rows_that_cannot_be_sent_are_not_part_of_the_canary(world: World) -> None:
    rows = texts(60)
    for row in rows[:7]:
        row["text"] = ""
    world.rows(rows)

    finished = world.run(world.job(canary=CANARY, request={"prompt": "{{ text }}"}))

    assert sizes(world) == [5, 48]
    assert finished.rows == {"succeeded": 53, "invalid": 7}


def test_a_canary_that_is_too_large_for_the_api_is_split_and_still_waited_for(world: World) -> None:
    rows = texts(60)
    for row in rows[:5]:
        row["text"] = f"{row['text']} {'Long. ' * 400}"
    world.rows(rows)
    world.emulator.settings.max_batch_bytes = 6_000
    world.emulator.add_fault(on="item", do="refuse", match="Long")

    stopped = world.run(world.job(canary=CANARY))

    assert stopped.reason == "canary"
    assert (sum(sizes(world)), set(world.statuses().values())) == (5, {"refused"})


def test_sweeps_finish_a_detached_run_with_a_canary(world: World) -> None:
    detached = world.run(job(world), detach=True)
    waiting = sizes(world)

    sweeps(world)

    assert (detached.state, waiting) == ("open", [5])
    assert sizes(world) == [5, 45]
    assert run_states(world) == [("finished", None)]
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_sweep_ends_the_run_of_a_canary_that_failed(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse")
    world.run(job(world), detach=True)

    sweeps(world)

    assert run_states(world) == [("incomplete", "canary")]
    assert sizes(world) == [5]
    assert world.sweep() == []


@pytest.mark.parametrize("next_one", ["run", "sweeps"])
@pytest.mark.parametrize("fails", [False, True], ids=["well", "badly"])
def test_a_run_continues_after_its_driver_died_when_it_had_collected_the_canary(
    world: World, fails: bool, next_one: str
) -> None:
    if fails:
        world.emulator.add_fault(on="item", do="refuse")
    work = job(world)
    world.dies_at(work, "collected")
    sent = sizes(world)

    if next_one == "run":
        world.run(work)
    sweeps(world)

    assert sent == [5]
    assert sizes(world) == ([5] if fails else [5, 45])
    assert run_states(world)[0] == (("incomplete", "canary") if fails else ("finished", None))
    assert world.sent_twice() == []


@pytest.mark.parametrize("nth", [1, 2, 3], ids=["the canary", "the next batch", "all"])
def test_a_run_continues_after_its_driver_died_when_it_had_planned(world: World, nth: int) -> None:
    work = job(world, 60, limits={"max_batch_requests": 30})
    world.dies_at(work, "planned", nth)

    sweeps(world)
    world.run(work)

    assert moves(world)[:2] == ["+5", "-5"]
    assert run_states(world)[0] == ("finished", None)
    assert set(world.statuses().values()) == {"succeeded"}
    assert (world.accepted(), world.sent_twice()) == (60, [])


def test_the_next_run_sends_the_canary_first_after_a_driver_died_when_it_had_planned(world: World) -> None:
    work = job(world, 60, limits={"max_batch_requests": 30})
    world.dies_at(work, "planned", 1)

    finished = world.run(work)

    assert moves(world)[:3] == ["+5", "-5", "+30"]
    assert finished.rows == {"succeeded": 60}
    assert (world.accepted(), world.sent_twice()) == (60, [])


def test_the_next_run_sends_the_canary_first_after_a_driver_died_before_it_planned(world: World) -> None:
    work = job(world)
    world.dies_at(work, "quote")

    world.run(work)

    assert sizes(world) == [5, 45]


@pytest.mark.parametrize("moment", ["planned", "submitting", "submitted", "waiting", "ended", "collected"])
def test_a_second_driver_at_any_moment_waits_for_the_canary_too(world: World, moment: str) -> None:
    work = job(world, 60, limits={"max_batch_requests": 30})
    both = world.run_beside(work, moment)

    assert [finished.state for finished in both] == ["finished", "finished"]
    assert moves(world)[:2] == ["+5", "-5"]
    assert sorted(sizes(world)) == [5, 25, 30]
    assert (world.accepted(), world.sent_twice()) == (60, [])


def test_a_second_driver_does_not_wait_again_when_the_canary_has_passed(world: World) -> None:
    """None of its rows has succeeded, but that many were allowed to fail."""
    work = job(world, 60, canary={"rows": 5, "max_failed": 1.0})
    world.emulator.add_fault(on="item", do="refuse", times=5)

    both = world.run_beside(work, "gate_opened")

    assert [finished.state for finished in both] == ["finished", "finished"]
    assert len(world.told("gate_opened")) == 1
    assert moves(world) == ["+5", "-5", "+55", "-55"]


@pytest.mark.parametrize("moment", ["submitted", "waiting", "ended", "collected"])
def test_a_second_driver_sends_nothing_either_when_the_canary_fails(world: World, moment: str) -> None:
    work = job(world, 100)
    world.emulator.add_fault(on="item", do="refuse")
    both = world.run_beside(work, moment)

    assert [finished.reason for finished in both] == ["canary", "canary"]
    assert world.accepted() <= 10


def test_a_canary_with_a_row_that_changed_before_sending_is_planned_again(world: World) -> None:
    world.emulator.add_fault(**BUSY)
    work = job(world)
    world.run(work, detach=True)
    world.emulator.clear_faults()
    rows = texts(50)
    rows[2]["text"] = "Something else altogether."
    world.rows(rows)

    finished = world.run(work)

    assert moves(world)[:3] == ["+5", "-5", "+45"]
    assert finished.rows == {"succeeded": 50}
    assert "Something else" in world.answers()["r2"]["text"]


def test_other_rows_become_the_canary_when_its_rows_have_left_the_source(world: World) -> None:
    world.emulator.add_fault(**BUSY)
    work = job(world, 100)
    world.run(work, detach=True)
    world.emulator.clear_faults()
    smallest_body(world).unlink()
    world.rows(texts(100)[5:])

    finished = world.run(work)

    assert moves(world)[:3] == ["+5", "-5", "+90"]
    assert finished.rows == {"succeeded": 95}


def test_a_sweep_sends_other_rows_as_the_canary_when_it_is_gone_and_the_planner_died(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.emulator.add_fault(**BUSY)
    work = job(world, 20, canary={"rows": 1, "max_failed": 0.2})
    world.run(work, detach=True)
    world.emulator.clear_faults()
    with monkeypatch.context() as patch:
        patch.setattr(planner, "finish_planning", dead)
        with pytest.raises(Interrupted):
            world.run(work)
    world.emulator.add_fault(on="create", do="status", status=413, error_type="request_too_large", times=1)

    sweeps(world, 6)

    assert moves(world) == ["+1", "-1", "+18", "-18"]
    assert Counter(world.statuses().values()) == {"invalid": 1, "succeeded": 19}


def test_the_only_canary_row_left_in_the_source_is_the_canary_after_it_changed(world: World) -> None:
    world.emulator.add_fault(**BUSY)
    work = job(world, 100)
    world.run(work, detach=True)
    world.emulator.clear_faults()
    rows = texts(100)[4:]
    rows[0]["text"] = "Something else altogether."
    world.rows(rows)

    finished = world.run(work)

    assert moves(world)[:3] == ["+1", "-1", "+95"]
    assert finished.rows == {"succeeded": 96}


def test_the_remaining_rows_are_sent_although_rows_of_the_collected_canary_change(
    world: World,
) -> None:
    work = job(world, 100)
    world.dies_at(work, "collected")
    rows = texts(100)
    for row in rows[:5]:
        row["text"] = f"Something else altogether: {row['id']}."
    world.rows(rows)

    finished = world.run(work)

    assert finished.rows == {"succeeded": 100}


def test_the_next_run_sends_the_canary_again_after_a_driver_died_before_retrying_it(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", times=5)
    work = job(world)
    world.dies_at(work, "collected")

    finished = world.run(work)

    assert moves(world)[:4] == ["+5", "-5", "+5", "-5"]
    assert finished.rows == {"succeeded": 50}


def test_a_canary_whose_body_is_gone_is_planned_again(world: World) -> None:
    world.emulator.add_fault(**BUSY)
    work = job(world)
    world.run(work, detach=True)
    world.emulator.clear_faults()
    smallest_body(world).unlink()
    sweeps(world)

    finished = world.run(work)

    assert moves(world)[:2] == ["+5", "-5"]
    assert finished.rows == {"succeeded": 50}


def test_a_run_waits_for_a_canary_whose_create_had_no_response(world: World) -> None:
    world.emulator.add_fault(on="create", do="drop_after", times=1)

    finished = world.run(job(world))

    assert finished.rows == {"succeeded": 50}
    assert [name for name, _ in world.events if name in ("adopted", "submitted")][:2] == ["adopted", "submitted"]
    assert world.accepted() == 50


@pytest.mark.long
def test_a_canary_that_is_lost_counts_as_failed(world: World) -> None:
    world.with_settings(poll=600.0)
    world.emulator.add_fault(on="retrieve", do="status", status=404, error_type="not_found_error")

    stopped = world.run(job(world))

    assert (stopped.reason, stopped.rows) == ("canary", {"lost": 5, "pending": 45})


def test_equal_rows_share_one_request_of_a_canary(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": f"Text number {i // 2}."} for i in range(100)])

    finished = world.run(world.job(canary=CANARY))

    assert sizes(world)[0] == 5
    assert finished.rows == {"succeeded": 100}
    assert world.accepted() == 50


@pytest.mark.parametrize("moment", ["planned", "submitting"])
def test_a_driver_that_continues_a_run_without_a_canary_sends_none_either(world: World, moment: str) -> None:
    work = job(world, 50, limits={"max_batch_requests": 25})
    world.dies_at(work, moment, canary=False)

    quoted = world.run(work, dry_run=True).quote
    finished = world.run(work)

    assert (quoted.ahead, quoted.batches) == (0, 2)
    assert sizes(world) == [25, 25]
    assert finished.rows == {"succeeded": 50}


def test_the_next_run_has_a_canary_again(world: World) -> None:
    work = job(world, 50)
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", times=50)
    world.run(work, canary=False)

    with world.database.read() as conn:
        assert list(conn.scalars(select(runs.c.no_canary))) == [True]
    world.rows([*texts(50), {"id": "new", "text": "another"}])
    world.run(world.job(canary=CANARY, request={"max_tokens": 50}))

    with world.database.read() as conn:
        assert list(conn.scalars(select(runs.c.no_canary).order_by(runs.c.id))) == [True, False]
    assert sizes(world)[1] == 5


def test_a_retry_has_no_canary(world: World) -> None:
    work = job(world, 60, False)
    world.emulator.add_fault(on="item", do="refuse")
    world.run(work)
    world.emulator.clear_faults()

    world.run(world.job(canary=CANARY), retry=Selection())

    assert sizes(world) == [60, 60]


# -- the primer ------------------------------------------------------------------------------------------------------

LONG = " ".join(f"Rule {i}: a text that speaks of the number {i} is filed under {i}." for i in range(400))


def caching(world: World, rows: int = 40, system: Any = LONG, cache: str | None = "1h", **changes: Any) -> Job:
    """Return a job whose requests share about 6,000 tokens."""
    request = {"system": system} | ({"cache": cache} if cache else {})
    return job(world, rows, changes.pop("canary", False), request=request, **changes)


def written(world: World) -> list[str]:
    """Return the rows that wrote to the cache."""
    return [key for key, answer in world.answers().items() if answer["cache_write_tokens"]]


def read(world: World) -> int:
    """Return how many rows read from the cache."""
    return sum(answer["cache_read_tokens"] > 0 for answer in world.answers().values())


def test_the_primer_fills_the_cache_and_the_other_rows_read_from_it(world: World) -> None:
    finished = world.run(caching(world))

    assert moves(world) == ["+1", "-1", "+39", "-39"]
    assert (written(world), read(world)) == (["r0"], 39)
    assert finished.rows == {"succeeded": 40}


def test_each_run_sends_a_primer_of_its_own(world: World) -> None:
    work = caching(world)
    world.run(work)
    world.rows(texts(80))
    world.clock.advance(2 * 3600)

    world.run(work)

    assert sizes(world) == [1, 39, 1, 39]
    assert (written(world), read(world)) == (["r0", "r40"], 78)


MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
RULES = [{"type": "text", "text": LONG, **MARK}]
TOOLS = [{"name": "look", "description": LONG, "input_schema": {"type": "object"}, **MARK}]


@pytest.mark.parametrize(
    "request_fields",
    [
        pytest.param({"system": RULES}, id="in the system prompt"),
        pytest.param({"params": {"tools": TOOLS}}, id="in a tool"),
        pytest.param({"messages": [{"role": "user", "content": RULES}]}, id="in a turn that all rows share"),
    ],
)
def test_a_primer_fills_the_cache_for_the_users_own_breakpoints(world: World, request_fields: dict[str, Any]) -> None:
    world.run(job(world, 10, False, request=request_fields))

    assert sizes(world) == [1, 9]
    assert (written(world), read(world)) == (["r0"], 9)
    assert world.told("warning") == []


def test_a_breakpoint_at_the_end_of_each_request_is_not_primed_but_warned_of(world: World) -> None:
    world.run(job(world, 10, False, request={"system": LONG, "params": {"cache_control": {"type": "ephemeral"}}}))

    assert sizes(world) == [10]
    assert (len(written(world)), read(world)) == (10, 0)
    [warning] = world.told("warning")
    assert warning["warning"].startswith("request.params.cache_control: the API sets this breakpoint at the end of")
    assert "set request.cache" in warning["warning"]


@pytest.mark.parametrize(
    ("rows", "system", "sent"),
    [
        pytest.param(40, LONG[:8_000], [40], id="too short to be cached"),
        pytest.param(2, LONG, [2], id="too few rows to gain by it"),
        pytest.param(3, LONG, [1, 2], id="enough rows"),
    ],
)
def test_a_primer_is_sent_when_the_cached_prefix_and_the_rows_are_enough(
    world: World, rows: int, system: str, sent: list[int]
) -> None:
    world.run(caching(world, rows, system))

    assert sizes(world) == sent


@pytest.fixture
def slow(world: World) -> Iterator[None]:
    """Use an emulator that takes four hours for a batch."""
    quick = world.emulator
    with Emulator(world.folder / "slow", processing_seconds=4 * 3600, clock=quick.clock) as world.emulator:
        yield
    world.emulator = quick


@pytest.mark.usefixtures("slow")
def test_after_two_hours_the_other_rows_are_sent_without_waiting_for_the_primer(world: World) -> None:
    world.run(caching(world), detach=True)

    sweeps(world, 11, minutes=10)
    early = sizes(world)
    sweeps(world, 2, minutes=10)

    assert early == [1]
    assert sizes(world) == [1, 39]


@pytest.mark.usefixtures("slow")
def test_a_run_waits_for_a_canary_longer_than_two_hours(world: World) -> None:
    world.run(job(world), detach=True)

    sweeps(world, 10, minutes=20)
    early = sizes(world)
    sweeps(world, 3, minutes=20)

    assert early == [5]
    assert sizes(world) == [5, 45]


def test_the_two_hours_begin_when_the_primer_is_sent(world: World) -> None:
    world.emulator.add_fault(**{**BUSY, "retry_after": 9_000}, times=1)
    world.run(caching(world), detach=True)
    world.clock.advance(12_000)

    sweeps(world, 1)
    first = sizes(world)
    sweeps(world, 3)

    assert first == [1]
    assert sizes(world) == [1, 39]
    assert written(world) == ["r0"]


def test_a_primer_that_fails_opens_the_gate_too(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", times=1)

    finished = world.run(caching(world))

    assert sizes(world) == [1, 39]
    assert finished.rows == {"succeeded": 39, "refused": 1}


def test_a_run_with_a_canary_has_no_primer(world: World) -> None:
    world.run(caching(world, 60, canary=CANARY))

    assert sizes(world) == [5, 55]
    assert (set(written(world)), read(world)) == ({f"r{i}" for i in range(5)}, 55)


def test_a_run_continues_after_its_driver_died_when_it_had_collected_the_primer(world: World) -> None:
    work = caching(world)
    world.dies_at(work, "collected")

    sweeps(world)

    assert sizes(world) == [1, 39]
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_retry_of_many_rows_sends_a_primer_first(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse")
    work = caching(world)
    world.run(work)
    world.emulator.clear_faults()
    world.clock.advance(2 * 3600)

    world.run(work, retry=Selection())

    assert sizes(world) == [1, 39, 1, 39]


# -- pure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "recipe", "primes", "gate"),
    [
        pytest.param(50, "", False, Gate.CANARY, id="a new recipe"),
        pytest.param(50, "", True, Gate.CANARY, id="it fills the cache as well"),
        pytest.param(50, "proven", True, Gate.PRIMER, id="a proven one that caches"),
        pytest.param(49, "", True, Gate.PRIMER, id="too few rows for a canary"),
        pytest.param(2, "", True, None, id="too few rows for anything"),
        pytest.param(45, "failed", True, Gate.CANARY, id="one whose canary has failed"),
        pytest.param(45, "failed proven", False, None, id="one that was proven since"),
        pytest.param(50, "proven", False, None, id="proven"),
    ],
)
def test_the_gate_of_a_run_is_the_canary_or_the_primer_or_none(
    rows: int, recipe: str, primes: bool, gate: Gate | None
) -> None:
    sections = {
        "name": "a",
        "source": {"path": "a.csv", "key": "id"},
        "request": {"model": "claude-haiku-4-5", "max_tokens": 5, "prompt": "{{ text }}"},
        "sink": {"table": "answers"},
        "canary": CANARY,
    }

    known = {"proven": "proven" in recipe, "failed": "failed" in recipe}

    assert wanted(Job.model_validate(sections), rows=rows, primes=primes, **known) == gate
