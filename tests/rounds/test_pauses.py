"""An answer with stop_reason pause_turn goes on by itself: it is appended, and the model answers again."""

from typing import Any

import pytest
from sqlalchemy import func, select

from pipeline.job.model import Job
from pipeline.planning.selection import Selection
from pipeline.planning.verdict import Verdict
from pipeline.runner.verify import verify
from pipeline.state.tables import turns
from pipeline.steps.cancel import cancel
from tests.answer.test_retry_change import asked
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True


def pausing(world: World, **changes: Any) -> Job:
    sections: dict[str, Any] = {"retry": {"change": {"paused": {"continue": True}}}}
    return world.job(**sections | changes)


def pauses(world: World, times: int | None = 1, match: str = "number 1 ") -> None:
    """Let the model pause so often over the rows whose prompt has this text."""
    world.emulator.add_fault(on="item", do="pause_turn", match=match, times=times)


def holds(world: World) -> bool:
    return verify(world.database, world.known()).holds


def test_a_paused_answer_goes_on_with_the_answer_appended(world: World) -> None:
    pauses(world, 2)

    finished = world.run(pausing(world))

    first, second, third = (request["messages"] for request in asked(world, "number 1 "))
    assert finished.rows == {"succeeded": 5}
    assert second == [*first, {"role": "assistant", "content": second[-1]["content"]}]
    assert third == [*second, {"role": "assistant", "content": third[-1]["content"]}]
    assert second[-1]["content"][0]["text"].startswith("[emulated]")
    assert {key: answer["rounds"] for key, answer in world.answers().items()} == {
        **dict.fromkeys(("r0", "r2", "r3", "r4"), 1),
        "r1": 3,
    }
    assert holds(world)
    assert (world.accepted(), world.sent_twice()) == (7, [])


def test_tokens_cost_and_attempts_are_those_of_all_rounds(world: World) -> None:
    pauses(world)
    world.run(pausing(world))

    answers = world.answers()
    parts = [batch["cost_usd"] for batch in world.told("collected")]
    assert sum(answer["cost_usd"] for answer in answers.values()) == pytest.approx(sum(parts), abs=1e-5)
    one, other = answers["r1"], answers["r2"]
    assert one["attempts"] == 2
    assert one["input_tokens"] > 2 * other["input_tokens"]
    assert one["output_tokens"] > other["output_tokens"]
    assert world.told("collected")[0]["outcomes"] == {"succeeded": 4, "continued": 1}


def test_a_row_that_pauses_in_its_last_round_is_truncated(world: World) -> None:
    pauses(world, None)

    finished = world.run(pausing(world, rounds={"max": 3}))

    answer = world.answers()["r1"]
    assert finished.rows == {"succeeded": 4, "truncated": 1}
    assert (answer["error_type"], answer["rounds"], answer["attempts"]) == ("rounds", 3, 3)
    assert "paused its turn in round 3 of 3" in answer["error_message"]
    assert world.run(pausing(world, rounds={"max": 3})).rows == {}
    assert holds(world)


def test_without_the_change_a_paused_answer_is_truncated(world: World) -> None:
    pauses(world)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 4, "truncated": 1}
    assert "rounds" not in world.answers()["r1"]


def test_an_error_in_a_later_round_repeats_that_round_only(world: World) -> None:
    pauses(world)
    world.emulator.add_fault(on="item", do="error", error_type="api_error", match='"assistant"', times=2)

    finished = world.run(pausing(world, retry={"max_attempts": 3, "change": {"paused": {"continue": True}}}))

    answer = world.answers()["r1"]
    assert finished.rows == {"succeeded": 5}
    assert (answer["rounds"], answer["attempts"]) == (2, 4)
    assert [len(request["messages"]) for request in asked(world, "number 1 ")] == [1, 2, 2, 2]
    assert holds(world)


def test_attempts_count_within_a_round(world: World) -> None:
    for match in ("number 1 ", '"assistant"'):
        world.emulator.add_fault(on="item", do="error", error_type="api_error", match=match, times=2)
    pauses(world)

    finished = world.run(pausing(world, retry={"max_attempts": 3, "change": {"paused": {"continue": True}}}))

    assert finished.rows == {"succeeded": 5}
    assert world.answers()["r1"]["attempts"] == 6


def test_equal_rows_are_sent_apart_because_each_has_a_conversation(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": "The same."} for i in range(3)])

    world.run(pausing(world))

    assert world.accepted() == 3


def test_a_sweep_goes_on_without_the_source(world: World) -> None:
    pauses(world)
    world.run(pausing(world), detach=True)
    (world.folder / "rows.csv").unlink()
    for _ in range(6):
        world.clock.advance(120)
        world.sweep()

    assert set(world.statuses().values()) == {"succeeded"}
    assert world.answers()["r1"]["rounds"] == 2


def test_a_row_that_changes_while_it_is_at_the_api_begins_at_round_1(world: World) -> None:
    pauses(world, match="number 1 is")
    world.run(pausing(world), detach=True)
    rows = texts(5)
    rows[1]["text"] = "Another text."
    world.rows(rows)

    world.run(pausing(world))

    assert world.answers()["r1"]["rounds"] == 1
    assert [len(request["messages"]) for request in asked(world, "Another text.")] == [1]
    assert set(world.statuses().values()) == {"succeeded"}


def between_rounds(world: World, **changes: Any) -> Job:
    """Let row 1 wait for its second round, while the other rows are still to be answered."""
    job = pausing(world, **{"limits": {"max_batch_requests": 2, "max_in_flight_requests": 2}, **changes})
    pauses(world)
    world.run(job, detach=True)
    for _ in range(10):
        if world.states().get("r1") == "pending":
            return job
        world.clock.advance(60)
        world.sweep()
    raise AssertionError("row 1 did not pause")


def test_a_row_that_changes_between_two_rounds_begins_at_round_1(world: World) -> None:
    job = between_rounds(world)
    rows = texts(5)
    rows[1]["text"] = "Another text."
    world.rows(rows)

    world.run(job)

    assert world.answers()["r1"]["rounds"] == 1
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_run_again_goes_on_with_the_rows_between_two_rounds(world: World) -> None:
    job = between_rounds(world)

    finished = world.run(job)

    assert finished.quote.rows[Verdict.IN_ROUNDS] == 1
    assert world.answers()["r1"]["rounds"] == 2
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.sent_twice() == []


def test_a_new_recipe_begins_at_round_1(world: World) -> None:
    between_rounds(world)

    world.run(pausing(world, request={"prompt": "Shorten: {{ text }}"}))

    assert world.answers()["r1"]["rounds"] == 1
    assert world.statuses()["r1"] == "succeeded"


def test_a_row_that_leaves_the_source_between_two_rounds_is_answered(world: World) -> None:
    job = between_rounds(world)
    world.rows([row for row in texts(5) if row["id"] != "r1"])

    world.run(job)

    assert world.answers()["r1"]["rounds"] == 2
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_canceled_run_keeps_its_turns_for_the_next_run(world: World) -> None:
    job = between_rounds(world)
    cancel(world.where(), world.known())
    for _ in range(4):
        world.clock.advance(120)
        world.sweep()
    assert world.states()["r1"] == "pending"

    world.run(job)

    assert world.answers()["r1"]["rounds"] == 2
    assert world.sent_twice() == []


def test_requests_of_rows_that_have_ended_are_not_kept(world: World) -> None:
    pauses(world, 2)
    world.run(pausing(world))

    with world.database.read() as conn:
        kept = conn.scalar(select(func.count()).select_from(turns).where(turns.c.params.is_not(None)))
        stored = conn.scalar(select(func.count()).select_from(turns))
    assert (stored, kept) == (2, 0)


def test_a_missing_body_of_a_later_round_is_made_from_the_turns_again(world: World) -> None:
    world.emulator.add_fault(on="create", do="status", status=429, error_type="rate_limit_error", match='"assistant"')
    job = pausing(world)
    pauses(world)
    world.run(job, detach=True)
    for _ in range(4):
        world.clock.advance(60)
        world.sweep()
    bodies = [*(world.folder / "spool" / "summaries").glob("*.json")]
    assert len(bodies) == 1
    bodies[0].unlink()
    world.emulator.clear_faults()

    world.run(job)

    answer = world.answers()["r1"]
    assert (answer["status"], answer["rounds"]) == ("succeeded", 2)
    assert [len(request["messages"]) for request in asked(world, "number 1 ")] == [1, 2]


def test_a_retry_of_a_row_that_has_ended_begins_at_round_1(world: World) -> None:
    pauses(world, 2)
    world.run(pausing(world, rounds={"max": 2}))
    assert world.answers()["r1"]["error_type"] == "rounds"

    world.run(pausing(world, rounds={"max": 2}), retry=Selection(statuses=("truncated",)))

    answer = world.answers()["r1"]
    assert (answer["status"], answer["rounds"]) == ("succeeded", 1)


def test_a_batch_that_is_lost_in_a_later_round_keeps_the_sums_of_the_earlier_ones(world: World) -> None:
    pauses(world)
    job = pausing(world)
    world.run(job, detach=True)
    world.clock.advance(60)
    world.sweep()
    assert world.batch_states() == ["collected", "in_progress"]
    world.emulator.add_fault(on="results", do="status", status=404, error_type="not_found_error")
    for _ in range(6):
        world.clock.advance(3_600)
        world.sweep()

    answer = world.answers()["r1"]
    assert (answer["status"], answer["rounds"], answer["attempts"]) == ("lost", 2, 2)
    assert answer["output_tokens"] > 0
    assert answer["cost_usd"] is None


def test_an_answer_whose_request_is_gone_is_asked_for_again(world: World) -> None:
    pauses(world, 1)
    job = pausing(world)
    world.run(job, detach=True)
    [body] = (world.folder / "spool" / "summaries").glob("*.json")
    body.unlink()

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert world.told("body_lost")
    assert [len(request["messages"]) for request in asked(world, "number 1 ")] == [1, 1]
    assert holds(world)
