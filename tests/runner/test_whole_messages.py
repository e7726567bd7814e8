"""A job that stores whole messages, and a second job that continues each conversation from them."""

import orjson
import pytest

from tests.conftest import World, texts
from tests.runner.test_retry import asked, kept

LOOKUP = {"name": "lookup", "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}}}


def test_the_message_of_every_answer_is_stored_with_the_ids_of_its_tool_calls(world: World) -> None:
    params = {"tools": [LOOKUP], "tool_choice": {"type": "any"}}
    world.emulator.add_fault(on="item", do="error", error_type="invalid_request_error", match="Text number 0 ")

    world.run(world.job(request={"params": params}, output={"message": True}))

    answers = world.answers()
    assert [key for key, answer in answers.items() if answer["message"] is None] == ["r0"]
    for answer in (answer for answer in answers.values() if answer["message"] is not None):
        message = orjson.loads(answer["message"])
        assert (message["id"], message["stop_reason"]) == (answer["message_id"], "tool_use")
        assert message["content"][0]["id"].startswith("toolu_")
        assert message["usage"]["service_tier"] == "batch"


@pytest.mark.parametrize("world", ["SQLite"], indirect=True)  # a source in PostgreSQL gives the same text
def test_the_next_turn_is_built_from_the_stored_message(world: World) -> None:
    world.rows(texts(2))
    world.run(world.job(output={"message": True}, source={"keep": {"text": "asked"}}))
    stored = {key: orjson.loads(answer["message"])["content"] for key, answer in world.answers().items()}
    query = {"query": "SELECT id, asked, message FROM answers", "database": str(world.database.url), "key": "id"}
    request = {"messages": [{"role": "user", "content": "Summarize: {{ asked }}"}], "turns": "message"}

    shorter = kept(
        world,
        name="shorter",
        source=query | {"path": None},
        request=request | {"prompt": "Shorter."},
        sink={"table": "shorter"},
    )
    finished = world.run(shorter)

    assert finished.rows == {"succeeded": 2}
    sent = [request["messages"] for request in asked(world, "shorter")]
    assert {turns[0]["content"]: turns[1:] for turns in sent} == {
        f"Summarize: {row['text']}": [
            {"role": "assistant", "content": stored[str(row["id"])]},
            {"role": "user", "content": "Shorter."},
        ]
        for row in texts(2)
    }


@pytest.mark.parametrize("world", ["SQLite"], indirect=True)
def test_tool_results_alone_are_the_next_turn(world: World) -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "lookup", "input": {}}]}
    found = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "It is 7."}]}
    world.rows([{"id": "r0", "text": "Which?", "turns": orjson.dumps([call, found]).decode()}])
    request = {"messages": [{"role": "user", "content": "{{ text }}"}], "turns": "turns", "prompt": None}

    finished = world.run(kept(world, request=request | {"params": {"tools": [LOOKUP]}}))

    assert finished.rows == {"succeeded": 1}
    assert asked(world)[0]["messages"] == [{"role": "user", "content": "Which?"}, call, found]
