"""The model asks for client tools and pauses as often as the prompt decides, and its questions need their answers."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from pipeline.emulator import Emulator, Settings
from pipeline.emulator.model.validate import Context, problem
from tests.emulator.builders import client_of, params, result_of

SCHEMA = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
LOOK = {"name": "look", "input_schema": SCHEMA}
ASK = {"name": "ask", "input_schema": {"type": "object", "properties": {"number": {"type": "integer"}}}}
SEARCH = {"type": "web_search_20260318", "name": "web_search"}
SYSTEM = "Use look to find what you need."


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Emulator]:
    """An emulator whose model asks for tools in up to five turns, and pauses up to three times."""
    with Emulator(tmp_path / "data", settings=Settings(tool_rounds=5, tool_calls=3, pauses=3)) as emulator:
        yield emulator


def say(call: dict[str, Any]) -> str:
    return f"{call['name']} says {len(call['input'].get('word', ''))}."


def conversation(send: Callable[[dict[str, Any]], Any], **asked: Any) -> list[dict[str, Any]]:
    """Return the messages of a whole conversation, each tool answered by `say`. send: returns the message to params."""
    answers, wanted = [], params(**asked)
    while True:
        message = send(wanted)
        answers.append(message)
        turns = [*wanted["messages"], {"role": "assistant", "content": message["content"]}]
        calls = [block for block in message["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": say(call)} for call in calls]
        if message["stop_reason"] == "tool_use":
            turns.append({"role": "user", "content": results})
        elif message["stop_reason"] != "pause_turn":
            return answers
        wanted = {**wanted, "messages": turns}


def live(emulator: Emulator) -> Callable[[dict[str, Any]], Any]:
    return lambda wanted: client_of(emulator).messages.create(**wanted).to_dict()


def in_batch(emulator: Emulator) -> Callable[[dict[str, Any]], Any]:
    return lambda wanted: result_of(emulator, **wanted)["message"]


def types(message: dict[str, Any]) -> list[str]:
    return [block["type"] for block in message["content"]]


def test_the_content_decides_how_many_rounds_and_calls_there_are(busy: Emulator) -> None:
    whole = [conversation(live(busy), text=f"Ship {n} sank.", system=SYSTEM, tools=[LOOK]) for n in range(40)]

    rounds = Counter(len(messages) - 1 for messages in whole)
    calls = Counter(types(message).count("tool_use") for messages in whole for message in messages[:-1])
    assert set(rounds) == {1, 2, 3, 4, 5}
    assert set(calls) == {1, 2, 3}


def test_a_batch_answers_as_a_live_conversation_does(busy: Emulator) -> None:
    asked = {"text": "Ship 7 sank.", "system": SYSTEM, "tools": [LOOK, ASK]}

    batched, direct = conversation(in_batch(busy), **asked), conversation(live(busy), **asked)

    assert [types(message) for message in batched] == [types(message) for message in direct]
    assert batched[-1]["content"] == direct[-1]["content"]


def test_the_inputs_follow_the_schema_and_the_last_answer_repeats_the_results_in_order(busy: Emulator) -> None:
    messages = conversation(live(busy), text="Ship 4 sank.", system=SYSTEM, tools=[LOOK])

    calls = [block for message in messages for block in message["content"] if block["type"] == "tool_use"]
    assert all(call["input"]["word"] in ("ship", "4", "sank") for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    said = " ".join(map(say, calls))
    assert messages[-1]["content"][-1]["text"] == f"[emulated] Ship 4 sank. The tools said: {said}"


def test_structured_output_comes_in_the_last_round(busy: Emulator) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    output = {"format": {"type": "json_schema", "schema": schema}}

    messages = conversation(live(busy), text="Ship 4 sank.", system=SYSTEM, tools=[LOOK], output_config=output)

    assert {message["stop_reason"] for message in messages[:-1]} == {"tool_use"}
    assert messages[-1]["content"][-1]["text"] == '{"a":1}'


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"system": "Say what happened."}, id="the prompts do not name the tool"),
        pytest.param({"system": "Overlook it, or look-up."}, id="the name is a part of another word"),
        pytest.param({"tool_choice": {"type": "none"}}, id="no tool may be used"),
    ],
)
def test_no_client_tool_is_asked_for(busy: Emulator, fields: dict[str, Any]) -> None:
    messages = conversation(live(busy), **{"text": "Ship 4 sank.", "system": SYSTEM, "tools": [LOOK], **fields})

    assert [types(message) for message in messages] == [["text"]]


def test_tools_are_asked_for_one_by_one_if_the_request_says_so(busy: Emulator) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}

    whole = [
        conversation(live(busy), text=f"Ship {n} sank.", system=SYSTEM, tools=[LOOK], tool_choice=choice)
        for n in range(5)
    ]

    assert {types(message).count("tool_use") for messages in whole for message in messages} == {0, 1}


def test_without_room_for_the_inputs_the_answer_is_cut(busy: Emulator) -> None:
    message = conversation(live(busy), text="Ship 4 sank.", system=SYSTEM, tools=[LOOK], max_tokens=5)[0]

    assert (message["stop_reason"], types(message)) == ("max_tokens", ["text"])
    assert message["usage"]["output_tokens"] == 5


def test_an_answer_pauses_as_often_as_the_content_decides(busy: Emulator) -> None:
    whole = [conversation(in_batch(busy), text=f"Ship {n} sank.", tools=[SEARCH]) for n in range(12)]

    assert {len(messages) - 1 for messages in whole} == {0, 1, 2, 3}
    for messages in whole:
        blocks = [block for message in messages for block in message["content"]]
        uses = [block["id"] for block in blocks if block["type"] == "server_tool_use"]
        assert uses == [block["tool_use_id"] for block in blocks if block["type"] == "web_search_tool_result"]
        assert all(types(message)[-1] == "server_tool_use" for message in messages[:-1])
        counted = [message["usage"]["server_tool_use"]["web_search_requests"] for message in messages]
        assert sum(counted) == len(uses)
        assert messages[-1]["content"][-1]["text"].startswith("[emulated] Ship ")


def test_an_answer_may_pause_and_then_ask_for_client_tools(busy: Emulator) -> None:
    whole = [
        conversation(live(busy), text=f"Ship {n} sank.", system=SYSTEM, tools=[SEARCH, LOOK], model="claude-opus-5")
        for n in range(8)
    ]

    reasons = [[message["stop_reason"] for message in messages] for messages in whole]
    assert any({"pause_turn", "tool_use"} <= set(each) for each in reasons)
    assert {each[-1] for each in reasons} == {"end_turn"}


def test_the_fault_of_a_pause_leaves_an_answer_that_can_be_sent_back(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="pause_turn", times=1)
    asked = {"text": "Ship 4 sank.", "tools": [SEARCH], "model": "claude-opus-5"}

    messages = conversation(in_batch(emulator), **asked)

    assert [message["stop_reason"] for message in messages] == ["pause_turn", "end_turn"]
    assert types(messages[1])[-2:] == ["web_search_tool_result", "text"]


# -- what is refused -------------------------------------------------------------------------------------------------


def used(*ids: str) -> dict[str, Any]:
    blocks = [{"type": "tool_use", "id": each, "name": "look", "input": {}} for each in ids]
    return {"role": "assistant", "content": blocks}


def results(*ids: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": each} for each in ids]}


ASKED = {"role": "user", "content": "Look."}
TEXT = {"type": "text", "text": "Here it is."}
LATE = {"role": "user", "content": [TEXT, *results("t1")["content"]]}
MISSING = (
    "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: t1. Each `tool_use` block "
    "must have a corresponding `tool_result` block in the next message."
)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        pytest.param([ASKED, used("t1"), ASKED], MISSING, id="no result"),
        pytest.param([ASKED, used("t2", "t1"), results("t2")], MISSING, id="one of two results"),
        pytest.param([ASKED, used("t1"), LATE], MISSING, id="a result after a text"),
        pytest.param(
            [ASKED, used("t1"), results("t1", "t2")],
            "messages.2.content.1: unexpected `tool_use_id` found in `tool_result` blocks: t2. Each",
            id="a result without its use",
        ),
        pytest.param(
            [ASKED, used("t1"), results("t1"), used("t2"), results("t1", "t2")],
            "messages.4.content.0: unexpected `tool_use_id` found in `tool_result` blocks: t1. Each",
            id="a result of an earlier turn",
        ),
        pytest.param(
            [ASKED, used("t1"), results("t1", "t1")],
            "messages.2.content.1: each tool_use must have a single result. Found multiple",
            id="a result twice",
        ),
        pytest.param(
            [ASKED, used("t1"), results("t1"), used("t1"), results("t1")],
            "messages.3.content.0: `tool_use` ids must be unique",
            id="an id twice",
        ),
        pytest.param(
            [ASKED, {"role": "assistant", "content": "It"}],
            "This model does not support assistant message prefill.",
            id="an answer that did not pause",
        ),
    ],
)
def test_turns_of_tools_that_do_not_fit_are_refused(turns: list[dict[str, Any]], said: str) -> None:
    found = problem(params(messages=turns, model="claude-opus-5"), Context("2026-10-21"), lambda: 10)

    assert found is not None
    assert found.message.startswith(said)


def test_turns_of_one_role_that_follow_each_other_are_read_as_one(emulator: Emulator) -> None:
    turns = [ASKED, used("t1"), used("t2"), results("t2"), results("t1")]

    client_of(emulator).messages.create(**params(messages=turns))
    with pytest.raises(anthropic.BadRequestError, match="without `tool_result` blocks"):
        client_of(emulator).messages.create(**params(messages=turns[:-1]))
