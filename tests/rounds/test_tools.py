"""An answer that asks for tools goes on: they are called, and their results go back in the next round."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from pipeline.job.model import Job
from pipeline.planning.selection import Selection
from pipeline.report.errors import error_facts
from pipeline.report.show import lines
from pipeline.runner.show import show
from pipeline.runner.sweep import sweep
from pipeline.sink.table import ResultsTable
from pipeline.state.leases import planning_of
from pipeline.state.tables import leases, turns
from pipeline.steps.cancel import cancel
from pipeline.steps.tools import call_tools
from tests.conftest import World, texts
from tests.rounds.builders import Counting, conversations, holds, live, with_tools
from tests.support.talking import declared

POSTGRESQL_IS_LONG = True


def results_in(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of tools in the last turn."""
    content = messages[-1]["content"]
    return [block for block in content if isinstance(content, list) and block["type"] == "tool_result"]


def test_the_final_answers_are_those_of_a_live(world: World) -> None:
    lookup = Counting(fails="about")
    job = with_tools(world, {"lookup": lookup})

    finished = world.run(job)

    answers = world.answers()
    assert finished.rows == {"succeeded": 5}
    assert sum(lookup.calls.values()) == sum(answer["tool_calls"] for answer in answers.values())
    other = Counting(fails="about")
    for row in texts(5):
        answer = answers[str(row["id"])]
        said = live(world, job, str(row["text"]), {"lookup": other})
        assert (answer["text"], answer["rounds"], answer["tool_calls"]) == said
    assert lookup.calls == other.calls
    assert len({answer["rounds"] for answer in answers.values()}) > 1
    assert holds(world)
    assert world.sent_twice() == []


def test_the_results_of_one_answer_go_back_in_the_order_of_its_calls(world: World) -> None:
    world.run(
        with_tools(world, {"lookup": Counting(), "other": Counting()}, request={"prompt": "{{ text }} lookup other"})
    )

    several = [messages for messages in conversations(world) if len(results_in(messages)) > 1]
    assert several
    for messages in several:
        asked = [block["id"] for block in messages[-2]["content"] if block["type"] == "tool_use"]
        assert [block["tool_use_id"] for block in messages[-1]["content"]] == asked


def test_the_last_round_may_not_ask_for_tools(world: World) -> None:
    world.emulator.settings.tool_rounds = 3
    lookup = Counting()
    finished = world.run(with_tools(world, {"lookup": lookup}, rounds={"max": 2}))

    ended = [answer for answer in world.answers().values() if answer["status"] == "truncated"]
    assert finished.rows["truncated"] == len(ended) > 0
    assert {(answer["error_type"], answer["rounds"]) for answer in ended} == {("rounds", 2)}
    assert "still asked for tools in round 2 of 2" in ended[0]["error_message"]
    assert max(len(messages) for messages in conversations(world)) == 3
    assert holds(world)


def test_a_conversation_that_grows_larger_than_a_batch_is_invalid_and_has_what_it_has_cost(world: World) -> None:
    world.emulator.settings.tool_rounds = 3

    def lookup(word: str) -> str:
        return "x" * 4000

    tools = with_tools(
        world,
        {"lookup": lookup},
        limits={"max_batch_bytes": 3000},
        prices={"claude-haiku-4-5": {"input": 1, "output": 5}},
    )
    world.run(tools)

    answers = list(world.answers().values())
    assert {answer["status"] for answer in answers} == {"invalid"}
    assert all("larger than limits.max_batch_bytes" in answer["error_message"] for answer in answers)
    assert all((answer["rounds"], answer["attempts"]) == (1, 1) and answer["cost_usd"] > 0 for answer in answers)
    assert holds(world)


def test_a_run_without_rows_that_ask_for_tools_calls_none(world: World) -> None:
    lookup = Counting()
    finished = world.run(with_tools(world, {"lookup": lookup}, request={"prompt": "{{ text }}"}))

    assert finished.rows == {"succeeded": 5}
    assert not lookup.calls
    assert {answer["rounds"] for answer in world.answers().values()} == {1}


def test_with_a_cache_the_last_result_has_a_breakpoint_and_earlier_ones_have_none(world: World) -> None:
    world.emulator.settings.tool_rounds = 3
    world.run(with_tools(world, {"lookup": Counting()}, request={"cache": "1h"}))

    later = [messages for messages in conversations(world) if len(messages) > 1]
    for messages in later:
        marked = [
            block
            for turn in messages
            for block in turn["content"]
            if isinstance(block, dict) and "cache_control" in block
        ]
        assert marked == [messages[-1]["content"][-1]]
        assert marked[0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert max(map(len, later)) > 3


def waiting_for_tools(world: World, lookup: Counting, **changes: Any) -> Any:
    """Let the rows of a job wait for calls of tools: the driver does not make them. Return the job."""
    job = with_tools(world, {"lookup": lookup}, **changes)
    world.run(job, detach=True)
    world.clock.advance(120)
    sweep_without_tools(world)
    return job


def sweep_without_tools(world: World) -> list[tuple[str, str | None]]:
    return sweep(replace(world.where(), runs_tools=False))


def test_without_tools_a_sweep_leaves_the_rows_waiting_and_says_so(world: World) -> None:
    lookup = Counting()
    waiting_for_tools(world, lookup)

    assert not lookup.calls
    assert set(world.states().values()) == {"pending"}
    assert world.told("waits_for_tools")[-1]["rows"] == 5

    for _ in range(8):
        world.clock.advance(120)
        world.sweep()
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.told("tools_called")


def test_a_tool_that_cannot_be_imported_is_the_problem_of_its_job_in_a_sweep(world: World) -> None:
    job = with_tools(world, {"lookup": "no_such_module.lookup"})  # type: ignore[dict-item]
    run_as_if_it_could_be_imported(world, job)
    world.clock.advance(120)

    [(name, problem)] = world.sweep()

    assert name == "summaries"
    assert problem is not None
    assert "no module no_such_module" in problem
    assert "5 rows of run 1 wait for it: collect on a machine that has it" in problem
    assert set(world.states().values()) == {"pending"}


def run_as_if_it_could_be_imported(world: World, job: Any) -> None:
    """Begin the run of a job whose module is on the machine that begins it, and not on this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runner.run.load_tools", lambda _: None)
        world.run(job, detach=True)


def test_the_calls_of_a_run_that_ended_wait_for_the_next_run(world: World) -> None:
    lookup = Counting()
    job = waiting_for_tools(world, lookup)
    cancel(world.where(), world.known())
    for _ in range(3):
        world.clock.advance(120)
        world.sweep()
    assert not lookup.calls

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert max(len(messages) for messages in conversations(world)) > 1
    assert world.sent_twice() == []


def test_the_next_run_goes_on_with_rows_of_an_ended_run_that_have_left_the_source(world: World) -> None:
    lookup = Counting()
    job = waiting_for_tools(world, lookup)
    cancel(world.where(), world.known())
    world.rows(texts(3))

    finished = world.run(job)

    answers = world.answers()
    assert finished.rows == {"succeeded": 5}
    assert {key: answer["status"] for key, answer in answers.items()} == {f"r{i}": "succeeded" for i in range(5)}
    assert world.accepted() == sum(answer["rounds"] for answer in answers.values())
    assert holds(world)
    assert world.run(job).rows == {}


def test_rows_of_an_ended_run_that_have_left_the_source_do_not_begin_again_with_another_recipe(world: World) -> None:
    lookup = Counting()
    waiting_for_tools(world, lookup)
    cancel(world.where(), world.known())
    world.rows(texts(3))
    other = with_tools(world, {"lookup": lookup}, request={"prompt": "Please use lookup for: {{ text }}"})

    finished = world.run(other)

    assert finished.rows == {"succeeded": 3}
    assert sorted(world.answers()) == sorted(world.states()) == ["r0", "r1", "r2"]
    assert holds(world)


def test_a_run_goes_on_with_rows_that_an_ended_run_has_at_the_api(world: World) -> None:
    job = with_tools(world, {"lookup": Counting()})
    world.run(job, detach=True)
    world.clock.advance(120)
    world.emulator.wait_idle()
    cancel(world.where(), world.known())
    assert set(world.states().values()) == {"in_flight"}

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert set(world.statuses().values()) == {"succeeded"}
    assert world.sent_twice() == []
    assert holds(world)


def test_two_drivers_make_each_call_once(world: World) -> None:
    lookup = Counting()
    waiting_for_tools(world, lookup)
    beside: list[int] = []

    def calls_beside(word: str) -> str:
        if not beside:
            beside.append(0)
            world.sweep()  # another driver, while this call is being made
        return lookup(word)

    calls_beside.__qualname__, calls_beside.__module__ = "lookup", "counting"
    job = with_tools(world, {"lookup": calls_beside})
    world.run(job)

    made = sum(answer["tool_calls"] for answer in world.answers().values())
    assert set(world.statuses().values()) == {"succeeded"}
    assert sum(lookup.calls.values()) == made
    assert beside


def test_a_call_without_a_result_is_made_again_after_its_driver_has_died(world: World) -> None:
    lookup = Counting()
    job = waiting_for_tools(world, lookup)
    with world.database.write() as conn:  # a driver has claimed them all, and has died in the middle of a call
        conn.execute(update(turns).values(claimed_by="driver dead"))

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert holds(world)


def test_calls_of_a_living_driver_are_left_to_it(world: World) -> None:
    lookup = Counting()
    job = waiting_for_tools(world, lookup)
    with contextlib.ExitStack() as stack:
        driver, other = world.driver(stack), world.driver(stack)
        with world.database.write() as conn:
            assert conn.scalar(select(leases.c.resource).where(leases.c.resource == driver.lease.resource))
            conn.execute(update(turns).values(claimed_by=driver.lease.resource))

        assert call_tools(other, job, 1) == 0
        assert call_tools(driver, job, 1) > 0


def test_rows_that_change_between_two_rounds_begin_at_round_1(world: World) -> None:
    lookup = Counting()
    job = waiting_for_tools(world, lookup)
    rows = texts(5)
    rows[1]["text"] = "Another text."
    world.rows(rows)

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    answer = world.answers()["r1"]
    assert answer["text"] == live(world, job, "Another text.", {"lookup": Counting()})[0]


def test_the_next_round_waits_for_the_batches_of_this_one_unless_its_time_has_passed(world: World) -> None:
    busy = {"do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 900}
    world.emulator.add_fault(on="create", times=1, **busy)
    job = with_tools(world, {"lookup": Counting()}, limits={"max_batch_requests": 3}, rounds={"wait": "10m"})
    world.run(job, detach=True)
    world.clock.advance(60)
    world.sweep()  # two rows are answered, and the other three are still to be sent
    assert world.batch_states() == ["planned", "collected"]

    world.clock.advance(540)
    world.sweep()
    assert world.batch_states() == ["planned", "collected"]

    world.clock.advance(61)
    world.sweep()
    assert world.batch_states() == ["planned", "collected", "in_progress"]


def test_a_run_goes_on_when_another_driver_takes_its_planning_over_while_it_packs_a_round(world: World) -> None:
    taken: list[int] = []

    def take_over(event: str, facts: dict[str, Any]) -> None:
        if event == "planned" and world.told("tools_called") and not taken:
            taken.append(facts["batch"])
            planning = leases.c.resource == planning_of("summaries")
            with world.database.write() as conn:
                conn.execute(update(leases).where(planning).values(token=leases.c.token + 1))

    world.on_event = take_over
    finished = world.run(with_tools(world, {"lookup": Counting()}, limits={"max_batch_requests": 2}))

    assert taken
    assert (finished.state, finished.rows) == ("finished", {"succeeded": 5})
    assert world.sent_twice() == []
    assert holds(world)


def test_a_full_batch_of_the_next_round_does_not_wait(world: World) -> None:
    busy = {"do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 900}
    world.emulator.add_fault(on="create", times=1, **busy)
    world.run(with_tools(world, {"lookup": Counting()}, limits={"max_batch_requests": 2}), detach=True)
    world.clock.advance(60)
    world.sweep()

    assert world.batch_states()[:3] == ["planned", "collected", "collected"]
    assert len(world.batch_states()) > 3


def test_a_lost_round_is_repeated_by_a_retry_of_lost_rows(world: World) -> None:
    lookup = Counting()
    job = with_tools(world, {"lookup": lookup})
    world.emulator.add_fault(on="results", do="missing_lines", match='"end_turn"')
    world.run(job)
    lost, made, sent = world.answers(), lookup.calls.copy(), len(conversations(world))
    assert {answer["status"] for answer in lost.values()} == {"lost"}
    assert min(answer["rounds"] for answer in lost.values()) > 1
    world.emulator.clear_faults()

    finished = world.run(job, retry=Selection(statuses=("lost",)))

    again, answers = conversations(world)[sent:], world.answers()
    assert finished.rows == {"succeeded": 5}
    assert lookup.calls == made
    assert sorted(map(len, again)) == sorted(2 * answer["rounds"] - 1 for answer in lost.values())
    assert {key: answer["rounds"] for key, answer in answers.items()} == {k: a["rounds"] for k, a in lost.items()}
    assert all(answers[key]["attempts"] == lost[key]["rounds"] for key in lost)
    assert holds(world)


@pytest.mark.parametrize("number", [1, 2])
def test_a_batch_that_was_lost_in_a_round_and_is_found_again_goes_on(world: World, number: int) -> None:
    lookup = Counting()
    job = with_tools(world, {"lookup": lookup})
    world.run(job, detach=True)
    for _ in range(number - 1):
        world.clock.advance(60)
        world.sweep()
    world.emulator.add_fault(on="results", do="missing_lines", match='"tool_use"')
    world.run(job)
    assert world.statuses()["r1"] == "lost"
    world.emulator.clear_faults()

    for _ in range(20):
        world.clock.advance(3_600)
        world.sweep()
    world.run(job)

    answers = world.answers()
    assert {answer["status"] for answer in answers.values()} == {"succeeded"}
    assert world.told("found_again")
    assert world.sent_twice() == []
    assert world.accepted() == sum(answer["rounds"] for answer in answers.values())
    assert lookup.calls.total() == sum(answer["tool_calls"] for answer in answers.values())
    assert holds(world)


def test_a_retry_of_rows_that_were_answered_begins_at_round_1(world: World) -> None:
    lookup = Counting()
    job = with_tools(world, {"lookup": lookup}, rounds={"max": 2})
    world.emulator.settings.tool_rounds = 3
    world.run(job)
    before = len(conversations(world))

    world.run(with_tools(world, {"lookup": lookup}, rounds={"max": 6}), retry=Selection(statuses=("truncated",)))

    assert set(world.statuses().values()) == {"succeeded"}
    assert len(conversations(world)[before]) == 1
    assert holds(world)


def test_show_has_the_rounds_of_a_row_and_the_request_that_waits_to_be_sent(world: World) -> None:
    lookup = Counting()
    job = waiting_for_tools(world, lookup)
    before = show(job, "r1", world.database, world.known(), world.spool)
    world.run(job)
    after = show(job, "r1", world.database, world.known(), world.spool)

    assert [turn["round"] for turn in before.turns] == [1]
    assert set(before.turns[0]["results"]) == {None}
    assert before.request_is == "sent"
    assert "state    pending in run 1, 0 attempts so far in round 2" in list(lines(before))
    assert after.row is not None
    assert after.row["round"] == world.answers()["r1"]["rounds"] == len(after.turns) + 1
    assert "is number" in "\n".join(lines(after))


def test_long_conversations_are_read_a_few_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.rounds.BYTES_AT_ONCE", 1)
    monkeypatch.setattr("pipeline.steps.results_file.CHUNK_BYTES", 1)

    finished = world.run(with_tools(world, {"lookup": Counting()}))

    assert finished.rows == {"succeeded": 5}
    assert holds(world)


def without_rounds(world: World) -> Job:
    """Return the job of `with_tools` with its tools, but without the section `rounds`."""
    return with_tools(world, {}, request={"params": {"tools": declared(["lookup"])}})


def test_a_job_that_loses_its_rounds_meanwhile_still_counts_the_earlier_ones(world: World) -> None:
    world.run(with_tools(world, {"lookup": Counting()}), detach=True)
    while all(len(messages) == 1 for messages in conversations(world)):  # until a second round is at the API
        world.clock.advance(120)
        world.sweep()

    world.run(without_rounds(world))

    answers = world.answers().values()
    assert min(answer["rounds"] for answer in answers) == 2
    assert min(answer["tool_calls"] for answer in answers) > 0
    paid = sum(batch["cost_usd"] for batch in world.told("collected"))
    assert sum(answer["cost_usd"] for answer in answers) == pytest.approx(paid, abs=1e-5)
    assert holds(world)


def test_rows_between_two_rounds_of_a_job_that_loses_its_rounds_are_still_sent(world: World) -> None:
    lookup = Counting()
    waiting_for_tools(world, lookup)

    finished = world.run(without_rounds(world))

    assert finished.rows == {"succeeded": 5}
    assert not lookup.calls
    second = [messages for messages in conversations(world) if len(messages) > 1]
    assert len(second) == 5
    assert all("there is no tool 'lookup'" in results_in(messages)[0]["content"] for messages in second)
    assert holds(world)


def test_the_remedy_for_rows_without_rounds_left_is_to_allow_more(world: World) -> None:
    world.emulator.settings.tool_rounds = 3
    world.run(with_tools(world, {"lookup": Counting()}, rounds={"max": 1}))

    with world.database.read() as conn:
        [cause] = error_facts(conn, world.known(), ResultsTable.of(world.known()), "job.yaml")

    assert cause["remedy"] == "raise rounds.max in the job file; then"
    words = ["batch-pipeline", "retry", "job.yaml", "--status", "truncated", "--error-type", "rounds"]
    assert cause["command"][-6:] == words[-6:]
