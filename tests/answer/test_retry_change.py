"""Rows that did not succeed are sent again with a change: more tokens, another model, or a second question."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from pydantic import ValidationError
from sqlalchemy import func, select

from pipeline.answer import retry_change
from pipeline.answer.retry_change import Answer
from pipeline.errors import AccountStopped, JobError
from pipeline.job.model import Job
from pipeline.job.retrying import AskAgain, Change, LongerAnswer, OtherModel, Retry
from pipeline.state.tables import batches, runs
from tests.conftest import World, texts

POSTGRESQL_IS_LONG = True

LONGER = {"truncated": {"max_tokens": "2x"}}
OTHER = {"refused": {"model": "claude-sonnet-5"}}
REASK = {"unparsable": {"reask": True}}
BUSY = {"on": "create", "do": "status", "status": 429, "error_type": "rate_limit_error", "retry_after": 100}


def changing(world: World, change: dict[str, Any], **sections: Any) -> Job:
    """A job whose failed rows go again so changed."""
    return world.job(retry={"change": change, **sections.pop("retry", {})}, **sections)


def labels(world: World, change: dict[str, Any] = REASK, **sections: Any) -> Job:
    """The same with labels."""
    return changing(world, change, output={"labels": ["rain", "sun"]}, **sections)


def asked(world: World, text: str = "") -> list[dict[str, Any]]:
    """The params of all requests whose params hold this text, in the order that the API accepted them."""
    found = []
    for batch in dict.fromkeys(each["batch_id"] for each in world.emulator.accepted()):
        lines = (world.emulator.data / "batches" / batch / "requests").read_bytes().splitlines()
        found += [params for line in lines if text.encode() in (params := line.split(b" ", 2)[2])]
    return [orjson.loads(params) for params in found]


def tokens_asked(world: World, text: str = "number 1 ") -> list[int]:
    """max_tokens of the requests that hold this text, in their order."""
    return [params["max_tokens"] for params in asked(world, text)]


def cut_off(world: World, below: int = 200, **rule: Any) -> None:
    """Answers to row 1 are cut off, if they may not have so many tokens."""
    for tokens in (100, 200, 400, 800):
        if tokens < below:
            match = f'"max_tokens":{tokens},"messages":[{{"role":"user","content":"Summarize: Text number 1 '
            world.emulator.add_fault(on="item", do="max_tokens", match=match, **rule)


def bill(world: World) -> float:
    """What all batches have cost."""
    with world.database.read() as conn:
        return float(conn.scalar(select(func.sum(batches.c.cost_usd))) or 0.0)


def sweeps(world: World, times: int = 4) -> None:
    """A scheduler that collects each minute."""
    for _ in range(times):
        world.clock.advance(61)
        world.sweep()


# -- too short -------------------------------------------------------------------------------------------------------


def test_a_truncated_row_is_sent_again_with_more_tokens(world: World) -> None:
    cut_off(world)

    finished = world.run(changing(world, LONGER))

    assert finished.rows == {"succeeded": 5}
    assert tokens_asked(world) == [100, 200]
    assert (world.accepted(), world.sent_twice()) == (6, [])
    assert (world.answers()["r1"]["status"], world.answers()["r1"]["attempts"]) == ("succeeded", 2)
    assert world.answers()["r2"]["attempts"] == 1


def test_max_tokens_grows_with_each_attempt_until_the_attempts_are_used_up(world: World) -> None:
    cut_off(world, 10_000)

    finished = world.run(changing(world, LONGER))

    assert finished.rows == {"succeeded": 4, "truncated": 1}
    assert tokens_asked(world) == [100, 200, 400]
    assert world.answers()["r1"]["attempts"] == 3


def test_each_attempt_is_counted_in_the_costs(world: World) -> None:
    cut_off(world)

    finished = world.run(changing(world, LONGER))

    stored = sum(answer["cost_usd"] for answer in world.answers().values())
    assert finished.cost_usd == pytest.approx(bill(world))
    assert finished.cost_usd > stored > 0  # the answer that was cut off was replaced, and had its price


def test_no_row_is_changed_unless_the_job_names_the_change(world: World) -> None:
    cut_off(world)

    finished = world.run(world.job())

    assert finished.rows == {"succeeded": 4, "truncated": 1}
    assert world.accepted() == 5


def test_a_row_is_not_sent_more_often_than_max_attempts(world: World) -> None:
    cut_off(world)

    finished = world.run(changing(world, LONGER, retry={"max_attempts": 1}))

    assert finished.rows == {"succeeded": 4, "truncated": 1}
    assert world.accepted() == 5


def test_max_tokens_never_exceeds_the_limit_of_the_model(world: World) -> None:
    world.emulator.add_fault(on="item", do="max_tokens", match="number 1 ")

    finished = world.run(changing(world, {"truncated": {"max_tokens": "50x"}}, request={"max_tokens": 2_000}))

    assert tokens_asked(world) == [2_000, 64_000]
    assert finished.rows == {"succeeded": 4, "truncated": 1}
    assert world.answers()["r1"]["attempts"] == 2
    assert world.sweep() == []


def test_at_the_limit_of_the_model_a_second_run_does_not_send_the_row_again(world: World) -> None:
    world.emulator.add_fault(on="item", do="max_tokens", match="number 1 ")
    job = changing(world, {"truncated": {"max_tokens": "50x"}}, request={"max_tokens": 2_000})
    world.run(job)

    again = world.run(job)

    assert tokens_asked(world) == [2_000, 64_000]
    assert again.rows == {}


@pytest.mark.parametrize("fault", ["context_window", "pause_turn"])
def test_an_answer_truncated_for_another_reason_is_not_sent_again_with_more_tokens(world: World, fault: str) -> None:
    world.emulator.add_fault(on="item", do=fault, match="number 1 ")

    finished = world.run(changing(world, LONGER))

    assert finished.rows == {"succeeded": 4, "truncated": 1}
    assert world.accepted() == 5


def test_an_attempt_that_was_not_cut_off_does_not_count_for_the_tokens(world: World) -> None:
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", match="number 1 ", times=1)
    cut_off(world)
    world.run(changing(world, {}, retry={"max_attempts": 2}))

    finished = world.run(changing(world, LONGER, retry={"max_attempts": 3}))

    assert finished.rows == {"succeeded": 1}
    assert tokens_asked(world) == [100, 100, 200]


def test_a_temporary_error_after_a_change_keeps_the_changed_tokens(world: World) -> None:
    cut_off(world)
    match = '"max_tokens":200,"messages":[{"role":"user","content":"Summarize: Text number 1 '
    world.emulator.add_fault(on="item", do="error", error_type="overloaded_error", match=match, times=1)

    finished = world.run(changing(world, LONGER))

    assert finished.rows == {"succeeded": 5}
    assert tokens_asked(world) == [100, 200, 200]


def test_rows_that_failed_before_the_change_was_configured_are_sent_again(world: World) -> None:
    cut_off(world)
    world.run(world.job())

    finished = world.run(changing(world, LONGER))

    assert finished.rows == {"succeeded": 1}
    assert tokens_asked(world) == [100, 200]


def test_a_row_whose_source_values_changed_starts_with_the_original_tokens(world: World) -> None:
    cut_off(world, 10_000)
    job = changing(world, LONGER)
    world.run(job)
    rows = texts(5)
    rows[1]["text"] = "Another text altogether."
    world.rows(rows)

    finished = world.run(job)

    assert finished.rows == {"succeeded": 1}
    assert tokens_asked(world, "Another text") == [100]
    assert world.answers()["r1"]["attempts"] == 1


def test_another_recipe_starts_with_the_original_tokens(world: World) -> None:
    cut_off(world, 10_000)
    world.run(changing(world, LONGER))

    world.run(changing(world, LONGER, request={"prompt": "In one word: {{ text }}"}))

    assert tokens_asked(world, "In one word: Text number 1 ") == [100]


def test_more_tokens_are_reserved_for(world: World) -> None:
    cut_off(world)
    limits = {"max_cost_usd": 1.0}

    finished = world.run(changing(world, LONGER, limits=limits))

    with world.database.read() as conn:
        most = list(conn.scalars(select(batches.c.max_output_usd).order_by(batches.c.id)))
    assert most[1] == pytest.approx(2 * most[0] / 5)
    assert finished.rows == {"succeeded": 5}


# -- deaths, splits and others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("next_one", ["run", "sweeps"])
@pytest.mark.parametrize(("moment", "nth"), [("collected", 1), ("planned", 2), ("submitted", 2)])
def test_another_driver_continues_after_one_died_between_two_attempts(
    world: World, moment: str, nth: int, next_one: str
) -> None:
    cut_off(world)
    job = changing(world, LONGER)
    world.dies_at(job, moment, nth)

    if next_one == "run":
        world.run(job)
    else:
        sweeps(world)

    assert set(world.statuses().values()) == {"succeeded"}
    assert tokens_asked(world) == [100, 200]
    assert (world.answers()["r1"]["attempts"], world.sent_twice()) == (2, [])


def test_with_detach_sweeps_send_the_changed_rows(world: World) -> None:
    cut_off(world)
    world.run(changing(world, LONGER), detach=True)

    sweeps(world)

    assert set(world.statuses().values()) == {"succeeded"}
    assert tokens_asked(world) == [100, 200]
    with world.database.read() as conn:
        assert conn.scalar(select(runs.c.state)) == "finished"


@pytest.mark.parametrize("json", [True, False], ids=["the API's own answer", "a proxy's page"])
def test_a_batch_of_changed_requests_that_is_split_is_not_changed_twice(world: World, json: bool) -> None:
    world.emulator.add_fault(on="item", do="max_tokens", match='"max_tokens":100')
    page = {} if json else {"page": "html"}
    world.emulator.add_fault(on="create", do="status", status=413, match='"max_tokens":200', times=1, **page)

    finished = world.run(changing(world, LONGER))

    assert finished.rows == {"succeeded": 5}
    assert sorted(tokens_asked(world, "Summarize")) == [100] * 5 + [200] * 5
    assert "dropped" in world.batch_states()


def test_a_batch_of_changed_requests_that_was_not_sent_stays_unchanged(world: World) -> None:
    cut_off(world)
    world.run(changing(world, LONGER), detach=True)
    world.emulator.add_fault(**BUSY)
    world.clock.advance(61)
    world.sweep()
    world.emulator.clear_faults()
    waiting = world.batch_states()

    world.run(changing(world, LONGER))

    assert waiting == ["collected", "planned"]
    assert tokens_asked(world) == [100, 200]


def test_a_batch_of_changed_requests_whose_body_is_missing_is_written_again(world: World) -> None:
    cut_off(world)
    job = changing(world, LONGER)
    world.run(job, detach=True)
    world.emulator.add_fault(**BUSY)
    world.clock.advance(61)
    world.sweep()
    world.emulator.clear_faults()
    for body in (world.folder / "spool" / "summaries").glob("*.json"):
        body.unlink()

    finished = world.run(job)

    assert finished.rows == {"succeeded": 5}
    assert tokens_asked(world) == [100, 200]


@pytest.mark.parametrize("moment", ["waiting", "ended", "collected"])
def test_a_second_driver_at_any_moment_sends_no_row_twice(world: World, moment: str) -> None:
    cut_off(world)
    job = changing(world, LONGER)

    both = world.run_beside(job, moment)

    assert [finished.state for finished in both] == ["finished", "finished"]
    assert tokens_asked(world) == [100, 200]
    assert set(world.statuses().values()) == {"succeeded"}


def test_rows_with_equal_requests_are_asked_again_together(world: World) -> None:
    world.rows([{"id": f"r{i}", "text": "The same text."} for i in range(4)])
    world.emulator.add_fault(on="item", do="max_tokens", match='"max_tokens":100')

    finished = world.run(changing(world, LONGER))

    assert finished.rows == {"succeeded": 4}
    assert tokens_asked(world, "same text") == [100, 200]
    assert {answer["attempts"] for answer in world.answers().values()} == {2}


@pytest.mark.parametrize("next_one", ["run", "sweeps and run"])
def test_a_changed_request_that_was_refused_for_the_account_is_sent_again_unchanged(
    world: World, next_one: str
) -> None:
    cut_off(world)
    match = '"max_tokens":200,"messages":[{"role":"user","content":"Summarize: Text number 1 '
    world.emulator.add_fault(on="item", do="error", error_type="billing_error", match=match, times=1)
    with pytest.raises(AccountStopped):
        world.run(changing(world, LONGER))

    if next_one != "run":
        sweeps(world)
    world.run(changing(world, LONGER))

    assert tokens_asked(world) == [100, 200, 200]
    assert world.answers()["r1"]["attempts"] == 2
    assert set(world.statuses().values()) == {"succeeded"}


def test_another_model_that_was_refused_for_the_account_is_asked_again(world: World) -> None:
    world.emulator.add_fault(**REFUSED_BY_HAIKU, times=1)
    world.emulator.add_fault(
        on="item", do="error", error_type="billing_error", match='"model":"claude-sonnet-5"', times=1
    )
    with pytest.raises(AccountStopped):
        world.run(changing(world, OTHER, retry={"max_attempts": 2}))

    world.run(changing(world, OTHER, retry={"max_attempts": 2}))

    assert set(world.statuses().values()) == {"succeeded"}
    assert [params["model"] for params in asked(world)][5:] == ["claude-sonnet-5"] * 2


# -- refused ---------------------------------------------------------------------------------------------------------

REFUSED_BY_HAIKU = {"on": "item", "do": "refuse", "match": '"model":"claude-haiku-4-5"'}


def test_a_row_that_one_model_refuses_is_sent_to_another_model(world: World) -> None:
    world.emulator.add_fault(**REFUSED_BY_HAIKU, times=2)

    finished = world.run(changing(world, OTHER))

    by = {key: answer["model"].rsplit("-2025", 1)[0] for key, answer in world.answers().items()}
    assert finished.rows == {"succeeded": 5}
    assert sorted(by.values()) == ["claude-haiku-4-5"] * 3 + ["claude-sonnet-5"] * 2
    assert [params["model"] for params in asked(world)][5:] == ["claude-sonnet-5"] * 2
    assert finished.cost_usd == pytest.approx(bill(world))


def test_a_row_that_both_models_refuse_is_refused(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="number 1 ")

    finished = world.run(changing(world, OTHER))

    assert finished.rows == {"succeeded": 4, "refused": 1}
    assert [params["model"] for params in asked(world, "number 1 ")] == ["claude-haiku-4-5", "claude-sonnet-5"]
    assert world.answers()["r1"]["attempts"] == 2
    assert world.answers()["r1"]["model"] == "claude-sonnet-5"


def test_the_same_command_does_not_ask_the_other_model_again(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="number 1 ")
    job = changing(world, OTHER)
    world.run(job)

    again = world.run(job)

    assert again.rows == {}
    assert len(asked(world, "number 1 ")) == 2


def test_a_change_to_the_same_model_is_not_sent(world: World) -> None:
    world.emulator.add_fault(on="item", do="refuse", match="number 1 ")

    finished = world.run(changing(world, {"refused": {"model": "claude-haiku-4-5"}}))
    again = world.run(changing(world, {"refused": {"model": "claude-haiku-4-5"}}))

    assert (finished.state, finished.rows) == ("finished", {"succeeded": 4, "refused": 1})
    assert again.rows == {}
    assert world.accepted() == 5
    assert world.states()["r1"] == "refused"


def test_a_model_that_cannot_be_used_is_refused_before_anything_is_sent(world: World) -> None:
    with pytest.raises(JobError, match="claude-sonnet-55"):
        world.run(changing(world, {"refused": {"model": "claude-sonnet-55"}}))

    assert world.accepted() == 0


# -- unparsable ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("wrong_label", "the answer's label 'no_such_label' is not one of the declared labels"),
        ("not_json", "the answer is not JSON"),
    ],
)
def test_an_unparsable_answer_is_sent_back_with_its_problem(world: World, fault: str, said: str) -> None:
    world.emulator.add_fault(on="item", do=fault, match="number 1 ", times=1)

    finished = world.run(labels(world))

    first, second = asked(world, "number 1 ")
    assert finished.rows == {"succeeded": 5}
    assert second == {**first, "messages": second["messages"]}
    assert second["messages"][:1] == first["messages"]
    answer, problem = second["messages"][1:]
    assert (answer["role"], problem["role"]) == ("assistant", "user")
    assert answer["content"]
    assert problem["content"] == f"That answer cannot be used: {said}. Answer again, so that it fits."
    assert world.answers()["r1"]["label"] in ("rain", "sun")
    assert world.answers()["r1"]["attempts"] == 2
    assert finished.cost_usd == pytest.approx(bill(world))


def test_each_unparsable_answer_is_sent_back(world: World) -> None:
    world.emulator.add_fault(on="item", do="wrong_label", match="number 1 ")

    finished = world.run(labels(world))

    assert finished.rows == {"succeeded": 4, "unparsable": 1}
    assert [len(params["messages"]) for params in asked(world, "number 1 ")] == [1, 3, 5]


def test_for_an_empty_answer_only_the_problem_is_sent_back(world: World) -> None:
    world.emulator.add_fault(on="item", do="empty", match="number 1 ", times=1)

    finished = world.run(labels(world))

    assert finished.rows == {"succeeded": 5}
    assert [turn["role"] for turn in asked(world, "number 1 ")[1]["messages"]] == ["user", "user"]


def test_reask_false_sends_nothing_again(world: World) -> None:
    world.emulator.add_fault(on="item", do="wrong_label", match="number 1 ")

    finished = world.run(labels(world, {"unparsable": {"reask": False}}))

    assert finished.rows == {"succeeded": 4, "unparsable": 1}
    assert world.accepted() == 5


@pytest.mark.parametrize("next_one", ["run", "sweeps"])
def test_a_driver_that_dies_before_the_second_question_is_replaced_by_another(world: World, next_one: str) -> None:
    world.emulator.add_fault(on="item", do="wrong_label", match="number 1 ", times=1)
    job = labels(world)
    world.dies_at(job, "collected")

    if next_one == "run":
        world.run(job)
    else:
        sweeps(world)

    assert [len(params["messages"]) for params in asked(world, "number 1 ")] == [1, 3]
    assert set(world.statuses().values()) == {"succeeded"}


@pytest.mark.parametrize("path", ["at once", "by the next run"])
def test_a_question_that_grows_too_large_for_a_batch_is_not_asked_again(world: World, path: str) -> None:
    world.rows([{"id": "r1", "text": f"Text number 1 {'is long ' * 180}"}])
    world.emulator.add_fault(on="item", do="wrong_label")
    limits = {"max_batch_bytes": 2_000}
    if path != "at once":
        world.run(labels(world, {}, limits=limits))

    finished = world.run(labels(world, limits=limits))

    assert (finished.state, world.accepted()) == ("finished", 1)
    assert set(world.states().values()) <= {"unparsable", "invalid"}


def tool(world: World, **sections: Any) -> Job:
    """A job whose answer is the use of a tool, with an input that the emulator does not manage."""
    note = {"type": "string", "minLength": 5_000}
    schema = {"type": "object", "properties": {"note": note}, "required": ["note"]}
    params = {"tools": [{"name": "keep", "input_schema": schema}]}
    return changing(world, REASK, output={"tool": "keep"}, request={"params": params, "max_tokens": 1_000}, **sections)


def test_an_unparsable_tool_use_is_sent_back_as_a_failed_tool_result(world: World) -> None:
    world.rows(texts(1))

    finished = world.run(tool(world, retry={"max_attempts": 2}))

    _, second = asked(world)
    used, result = (turn["content"][0] for turn in second["messages"][1:])
    assert finished.rows == {"unparsable": 1}
    assert (used["type"], used["name"], set(used["input"])) == ("tool_use", "keep", {"note"})
    assert (result["type"], result["tool_use_id"], result["is_error"]) == ("tool_result", used["id"], True)
    assert "note" in result["content"]
    assert world.answers()["r0"]["error_type"] == "unparsable"


def test_each_tool_use_that_is_sent_back_has_its_own_id(world: World) -> None:
    """The API refuses a conversation in which two uses have the same."""
    world.rows(texts(1))

    world.run(tool(world))

    used = [
        block["id"] for turn in asked(world)[2]["messages"] if turn["role"] == "assistant" for block in turn["content"]
    ]
    assert len(used) == 2
    assert len(set(used)) == 2


def test_an_answer_without_the_tool_is_sent_back_as_text(world: World) -> None:
    world.rows(texts(1))
    world.emulator.add_fault(on="item", do="not_json", times=1)
    schema = {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]}
    params = {"tools": [{"name": "keep", "input_schema": schema}]}

    finished = world.run(changing(world, REASK, output={"tool": "keep"}, request={"params": params}))

    answer, problem = asked(world)[1]["messages"][1:]
    assert finished.rows == {"succeeded": 1}
    assert answer["content"].startswith("[emulated]")
    assert "does not use the tool keep" in problem["content"]


# -- fallbacks ---------------------------------------------------------------------------------------------------------

HAIKU, SONNET, OPUS = "claude-haiku-4-5", "claude-sonnet-5", "claude-opus-4-8"


def models_asked(world: World, text: str = "number 1 ") -> list[str]:
    """The models of the requests that hold this text, in their order."""
    return [params["model"] for params in asked(world, text)]


def fails_at(world: World, model: str, do: str = "error", **fault: Any) -> None:
    """Row 1 fails whenever this model is asked."""
    fault = {"error_type": "overloaded_error"} | fault if do == "error" else fault
    match = f'"model":"{model}","max_tokens":100,"messages":[{{"role":"user","content":"Summarize: Text number 1 '
    world.emulator.add_fault(on="item", do=do, match=match, **fault)


def test_after_its_attempts_an_errored_row_is_sent_to_each_model_of_the_chain(world: World) -> None:
    fails_at(world, HAIKU)
    fails_at(world, SONNET)

    finished = world.run(changing(world, {"errored": {"model": [SONNET, OPUS]}}, retry={"max_attempts": 2}))

    assert finished.rows == {"succeeded": 5}
    assert models_asked(world) == [HAIKU, HAIKU, SONNET, OPUS]
    assert {key: (answer["model"], answer["attempts"]) for key, answer in world.answers().items() if key in "r1r2"} == {
        "r1": (OPUS, 4),
        "r2": ("claude-haiku-4-5-20251001", 1),
    }
    assert world.sent_twice() == []


def test_a_row_that_every_model_fails_stays_errored_and_is_not_sent_by_the_next_run(world: World) -> None:
    for model in (HAIKU, SONNET):
        fails_at(world, model)
    job = changing(world, {"errored": {"model": SONNET}}, retry={"max_attempts": 1})

    first, second = world.run(job), world.run(job)

    assert first.rows == {"succeeded": 4, "errored": 1}
    assert second.rows == {}
    assert models_asked(world) == [HAIKU, SONNET]
    assert world.states()["r1"] == "errored"


def test_an_error_that_is_not_retried_asks_the_next_model_at_once(world: World) -> None:
    fails_at(world, HAIKU, error_type="invalid_request_error")

    finished = world.run(changing(world, {"errored": {"model": SONNET}}))

    assert finished.rows == {"succeeded": 5}
    assert models_asked(world) == [HAIKU, SONNET]


def test_an_expired_row_is_sent_to_another_model_after_its_attempts(world: World) -> None:
    fails_at(world, HAIKU, do="expire")

    finished = world.run(changing(world, {"expired": {"model": OPUS}}, retry={"max_attempts": 2}))

    assert finished.rows == {"succeeded": 5}
    assert models_asked(world) == [HAIKU, HAIKU, OPUS]


def test_a_refused_row_is_sent_to_each_model_of_the_chain(world: World) -> None:
    for model in (HAIKU, SONNET):
        fails_at(world, model, do="refuse")

    finished = world.run(changing(world, {"refused": {"model": [SONNET, OPUS]}}, retry={"max_attempts": 2}))

    assert finished.rows == {"succeeded": 5}
    assert models_asked(world) == [HAIKU, SONNET, OPUS]


def test_a_fallback_named_later_is_sent_by_the_next_run_with_the_request_of_the_source(world: World) -> None:
    fails_at(world, HAIKU)
    fails_at(world, SONNET)
    for change in ({}, {"errored": {"model": [SONNET]}}, {"errored": {"model": [SONNET, OPUS]}}):
        world.run(changing(world, change, retry={"max_attempts": 1}))

    assert models_asked(world) == [HAIKU, SONNET, OPUS]
    assert world.answers()["r1"]["attempts"] == 3
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_driver_that_dies_before_the_fallback_is_replaced_by_another(world: World) -> None:
    fails_at(world, HAIKU)
    job = changing(world, {"errored": {"model": SONNET}}, retry={"max_attempts": 1})
    world.dies_at(job, "collected")

    sweeps(world)

    assert models_asked(world) == [HAIKU, SONNET]
    assert set(world.statuses().values()) == {"succeeded"}


def test_a_model_twice_in_a_chain_is_refused(world: World) -> None:
    with pytest.raises(ValidationError, match="model names claude-sonnet-5 more than once"):
        changing(world, {"errored": {"model": [SONNET, OPUS, SONNET]}})


# -- pure ------------------------------------------------------------------------------------------------------------

ASKED = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Well?"}]}
TOOL = {**ASKED, "tool_choice": {"type": "tool", "name": "keep"}}
WRONG = "That answer cannot be used: it is late. Answer again, so that it fits."
TWICE = LongerAnswer(max_tokens="2x")
USE = {"type": "tool_use", "id": "toolu_01reasked000000000000001", "name": "keep", "input": {"a": 1}}
FAILED = {"type": "tool_result", "tool_use_id": "toolu_01reasked000000000000001", "is_error": True, "content": WRONG}


def limit(most: int | None) -> Callable[[str], int | None]:
    """Of every model."""
    return lambda model: most


def turns(*more: tuple[str, Any]) -> dict[str, Any]:
    """ASKED with these turns behind."""
    return {**ASKED, "messages": [*ASKED["messages"], *({"role": role, "content": said} for role, said in more)]}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "most", "tokens"),
    [
        pytest.param(TWICE, None, 200, id="twice"),
        pytest.param(TWICE, 150, 150, id="up to the limit"),
        pytest.param(TWICE, 100, None, id="the limit is reached"),
        pytest.param(TWICE, 50, None, id="the limit is passed"),
        pytest.param(LongerAnswer(max_tokens="1.5x"), None, 150, id="by a fraction"),
        pytest.param(LongerAnswer(max_tokens="1.001x"), None, None, id="by less than a token"),
    ],
)
def test_a_longer_answer(change: LongerAnswer, most: int | None, tokens: int | None) -> None:
    expected = None if tokens is None else {**ASKED, "max_tokens": tokens}

    assert retry_change.changed_params(ASKED, change, None, limit(most)) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [pytest.param("n", {**ASKED, "model": "n"}, id="another"), pytest.param("m", None, id="the same")],
)
def test_another_model(model: str, expected: dict[str, Any] | None) -> None:
    assert retry_change.changed_params(ASKED, OtherModel(model=model), None, limit(None)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(None, None, id="nobody knows the answer"),
        pytest.param("Soon. \n", turns(("assistant", "Soon."), ("user", WRONG)), id="a text"),
        pytest.param(" \n", turns(("user", WRONG)), id="an empty one"),
    ],
)
def test_reask_appends_the_answer_and_its_problem(answer: str | None, expected: dict[str, Any] | None) -> None:
    given = None if answer is None else Answer(answer, "it is late")

    assert retry_change.changed_params(ASKED, AskAgain(reask=True), given, limit(None)) == expected


@pytest.mark.parametrize(
    ("answer", "said", "result"),
    [
        pytest.param('{"a":1}', [USE], [FAILED], id="its input"),
        pytest.param("Soon.", "Soon.", WRONG, id="a text instead"),
        pytest.param("[1]", "[1]", WRONG, id="no object"),
    ],
)
def test_reask_appends_the_tool_use_and_a_failed_result(answer: str, said: Any, result: Any) -> None:
    changed = retry_change.changed_params(TOOL, AskAgain(reask=True), Answer(answer, "it is late"), limit(None))

    assert changed is not None
    assert [turn["content"] for turn in changed["messages"][1:]] == [said, result]


def test_a_change_does_not_alter_the_params_in_place() -> None:
    before = orjson.dumps(TOOL)

    retry_change.changed_params(TOOL, AskAgain(reask=True), Answer('{"a":1}', "it is late"), limit(None))

    assert orjson.dumps(TOOL) == before


@pytest.mark.parametrize(
    ("outcome", "error_type", "expected"),
    [
        ("truncated", "max_tokens", TWICE),
        ("truncated", "model_context_window_exceeded", None),
        ("truncated", "pause_turn", None),
        ("refused", "refusal", OtherModel(model="n")),
        ("unparsable", "unparsable", AskAgain(reask=True)),
        ("errored", "overloaded_error", None),
        ("expired", "expired", None),
        ("succeeded", None, None),
        (None, None, None),
    ],
)
def test_which_change_an_outcome_has(outcome: str | None, error_type: str | None, expected: Any) -> None:
    change = Change(truncated=TWICE, refused=OtherModel(model="n"), unparsable=AskAgain(reask=True))

    assert retry_change.change_for(Retry(change=change), outcome, error_type, 1) == expected
    assert retry_change.change_for(Retry(), outcome, error_type, 1) is None


CHAIN = Change(errored=OtherModel(model=["n", "o"]), refused=OtherModel(model=["n", "o"]))


@pytest.mark.parametrize(
    ("outcome", "error_type", "attempts", "changed", "again"),
    [
        pytest.param("errored", "overloaded_error", 2, False, True, id="unchanged, the last time"),
        pytest.param("errored", "overloaded_error", 3, True, True, id="the first model beyond"),
        pytest.param("errored", "overloaded_error", 4, True, True, id="the second model beyond"),
        pytest.param("errored", "overloaded_error", 5, True, False, id="no model is left"),
        pytest.param("errored", "not_found_error", 1, True, True, id="an error that is not retried"),
        pytest.param("errored", "billing_error", 1, False, False, id="an error of the account"),
        pytest.param("expired", "expired", 3, False, False, id="no change is named"),
        pytest.param("refused", "refusal", 3, True, True, id="a chain after a refusal has one beyond"),
        pytest.param("refused", "refusal", 4, True, False, id="and no second one"),
        pytest.param("canceled", "canceled", 1, False, False, id="canceled"),
    ],
)
def test_when_the_next_model_is_asked(outcome: str, error_type: str, attempts: int, changed: bool, again: bool) -> None:
    retry = Retry(change=CHAIN)

    assert (retry_change.change_for(retry, outcome, error_type, attempts) is not None) == changed
    assert retry_change.may_send_again(retry, outcome, error_type, attempts) == again
