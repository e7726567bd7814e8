"""Which answers go on, and what the next request says."""

from typing import Any

import orjson
import pytest

from pipeline.answer.continuing import Continuing, continued, next_params, out_of_rounds
from pipeline.answer.outcome import Outcome
from pipeline.job.model import Job
from pipeline.states import RowState

USE = {"type": "tool_use", "id": "toolu_1", "name": "lookup", "input": {"word": "a"}}
TEXT = {"type": "text", "text": "Let me see."}
TOOL = {"name": "lookup", "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}}}
ANSWER = {"name": "answer", "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}}}


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "name": "j",
        "source": {"path": "a.csv", "key": "id"},
        "request": {"model": "m", "max_tokens": 1, "prompt": "{{ a }}", "params": {"tools": [TOOL, ANSWER]}},
        "sink": {"table": "t"},
        "rounds": {"tools": {"lookup": "mytools.lookup"}},
        "retry": {"change": {"paused": {"continue": True}}},
        **changes,
    }
    return Job.model_validate(fields)


def calls(stop: str, content: Any, error_type: str | None = None, **changes: Any) -> int | None:
    outcome = Outcome(RowState.SUCCEEDED, error_type, stop_reason=stop)
    return Continuing(job(**changes)).calls(outcome, orjson.dumps({"content": content}).decode())


@pytest.mark.parametrize(
    ("stop", "content", "expected"),
    [
        pytest.param("tool_use", [TEXT, USE], 1, id="one call"),
        pytest.param("tool_use", [USE, {**USE, "name": "unknown"}], 2, id="a call of an unknown tool gets an error"),
        pytest.param("tool_use", [{**USE, "name": "unknown"}], 1, id="a call of an unknown tool alone, too"),
        pytest.param("tool_use", [USE, {**USE, "name": "answer"}], 2, id="a tool that is not the output"),
        pytest.param("max_tokens", [TEXT, USE], None, id="cut off in the middle"),
        pytest.param("end_turn", [TEXT], None, id="the end"),
        pytest.param("pause_turn", [TEXT], 0, id="paused"),
        pytest.param("pause_turn", [], None, id="paused without content, which the API does not take back"),
        pytest.param("pause_turn", "text", None, id="malformed"),
        pytest.param("tool_use", [USE, "text"], None, id="a malformed block"),
    ],
)
def test_an_answer_goes_on_if_it_asks_for_our_tools_or_paused(stop: str, content: Any, expected: int | None) -> None:
    assert calls(stop, content) == expected


def test_an_answer_with_the_tool_of_the_output_is_the_end() -> None:
    content = [USE, {**USE, "name": "answer"}]

    assert calls("tool_use", content, output={"tool": "answer"}) is None
    assert calls("tool_use", [USE], output={"tool": "answer"}) == 1


def test_nothing_goes_on_unasked_and_nothing_damaged() -> None:
    assert calls("pause_turn", [TEXT], retry={}) is None
    assert calls("tool_use", [USE], rounds={}) is None
    assert calls("tool_use", [USE], "odd_result") is None


PARAMS = '{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"A"}]}'
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "B"}


def message(*blocks: str) -> str:
    return '{"id":"msg_1","content":[' + ",".join(blocks) + '],"stop_reason":"tool_use"}'


def test_the_answer_is_sent_back_byte_by_byte_and_the_results_follow() -> None:
    block = '{"type":"tool_use", "id":"toolu_1","name":"lookup","input":{"n": 12345678901234567890123, "x": 1.50}}'

    made = next_params(PARAMS, message(block), [RESULT], None)

    assert (
        made
        == (
            '{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"A"},'
            f'{{"role":"assistant","content":[{block}]}},'
            '{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","content":"B"}]}]}'
        ).encode()
    )


def test_a_paused_answer_is_sent_back_alone() -> None:
    made = orjson.loads(next_params(PARAMS, message('{"type":"text","text":"C"}'), None, "5m"))

    assert made["messages"] == [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": [{"type": "text", "text": "C"}]},
    ]


def test_the_breakpoint_moves_behind_the_last_result() -> None:
    first = next_params(PARAMS, message(orjson.dumps(USE).decode()), [RESULT, RESULT], "1h")
    second = next_params(first.decode(), message(orjson.dumps(USE).decode()), [RESULT], "1h")

    marked = {**RESULT, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert orjson.loads(first)["messages"][-1]["content"] == [RESULT, marked]
    assert [turn["content"] for turn in orjson.loads(second)["messages"][2::2]] == [[RESULT, RESULT], [marked]]


def test_the_messages_of_params_in_another_order_are_continued_too() -> None:
    params = '{"messages":[{"role":"user","content":"A"}],"model":"m"}'

    made = orjson.loads(next_params(params, message('{"type":"text","text":"C"}'), None, None))

    assert (made["model"], len(made["messages"])) == ("m", 2)


def test_a_batch_counts_an_answer_that_goes_on_and_the_last_round_is_truncated() -> None:
    paused = Outcome(RowState.TRUNCATED, "pause_turn", "paused", stop_reason="pause_turn")

    assert continued(paused)[:3] == ("continued", None, None)
    assert out_of_rounds(paused, 3)[:2] == ("truncated", "rounds")
    assert "still asked for tools in round 3 of 3" in str(
        out_of_rounds(paused._replace(stop_reason="tool_use"), 3).error_message
    )


def test_the_next_request_is_for_the_container_of_the_answer() -> None:
    message = orjson.dumps({"content": [TEXT], "container": {"id": "container_2", "expires_at": "soon"}}).decode()
    asked = {"model": "m", "messages": [{"role": "user", "content": "a"}]}

    def container(params: dict[str, Any]) -> Any:
        made = next_params(orjson.dumps(params).decode(), message, None, None)
        assert list(orjson.loads(made))[-1] == "messages"
        return orjson.loads(made)["container"]

    assert container(asked) == "container_2"
    assert container({"container": "container_2", **asked}) == "container_2"
    assert container({"container": "container_1", **asked}) == "container_2"
    assert container({"container": {"skills": [1]}, **asked}) == {"skills": [1], "id": "container_2"}


def test_without_a_container_the_next_request_names_none() -> None:
    message = orjson.dumps({"content": [TEXT], "container": None}).decode()

    made = next_params('{"model":"m","messages":[{"role":"user","content":"a"}]}', message, None, None)

    assert "container" not in orjson.loads(made)
