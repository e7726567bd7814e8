"""Server tools are used once, with results that are marked as invented."""

from typing import Any

import pytest

from pipeline.emulator import Emulator
from tests.emulator.builders import client_of, params, result_of

SEARCH = {"type": "web_search_20260318", "name": "web_search"}
FETCH = {"type": "web_fetch_20260318", "name": "web_fetch"}
CODE = {"type": "code_execution_20260521", "name": "code_execution"}
SHELL = {"type": "code_execution_20250825", "name": "code_execution"}
OWN = {"name": "look", "input_schema": {"type": "object"}}
CASES = [
    pytest.param(SEARCH, "web_search", "web_search_tool_result", (1, 0), id="search"),
    pytest.param(FETCH, "web_fetch", "web_fetch_tool_result", (0, 1), id="fetch"),
    pytest.param(CODE, "code_execution", "code_execution_tool_result", (0, 0), id="code"),
    pytest.param(SHELL, "bash_code_execution", "bash_code_execution_tool_result", (0, 0), id="shell"),
]


def live(emulator: Emulator, **fields: Any) -> Any:
    return client_of(emulator).messages.create(**params(**fields))


def without_ids(block: Any) -> dict[str, Any]:
    """Return a block without its ids, which depend on the params and so on `stream`."""
    return {name: value for name, value in block.to_dict().items() if name not in ("id", "tool_use_id")}


@pytest.mark.parametrize(("tool", "name", "result", "counts"), CASES)
def test_a_server_tool_is_used_once_before_the_text(
    emulator: Emulator, tool: dict[str, Any], name: str, result: str, counts: tuple[int, int]
) -> None:
    message = result_of(emulator, tools=[OWN, tool, SEARCH if tool is FETCH else FETCH])["message"]

    call, answer, text = message["content"]
    assert (call["type"], call["name"]) == ("server_tool_use", name)
    assert call["id"].startswith("srvtoolu_")
    assert (answer["type"], answer["tool_use_id"]) == (result, call["id"])
    assert "[emulated]" in str(answer["content"])
    assert (text["type"], text["text"]) == ("text", "[emulated] Summarize.")
    assert message["stop_reason"] == "end_turn"
    used = message["usage"]["server_tool_use"]
    assert (used["web_search_requests"], used["web_fetch_requests"]) == counts


@pytest.mark.parametrize(("tool", "name", "result", "counts"), CASES)
def test_the_sdk_reads_server_tool_use_with_and_without_streaming(
    emulator: Emulator, tool: dict[str, Any], name: str, result: str, counts: tuple[int, int]
) -> None:
    plain = live(emulator, tools=[tool])
    with client_of(emulator).messages.stream(**params(tools=[tool])) as stream:
        streamed = stream.get_final_message()

    assert [block.type for block in plain.content] == ["server_tool_use", result, "text"]
    assert [without_ids(block) for block in streamed.content] == [without_ids(block) for block in plain.content]
    assert streamed.usage.server_tool_use == plain.usage.server_tool_use
    assert streamed.usage.server_tool_use is not None


def test_web_search_asks_for_the_gist_and_web_fetch_for_the_url_in_the_text(emulator: Emulator) -> None:
    turns = [{"role": "user", "content": "Read https://ships.example/log today. Then stop."}]

    search = result_of(emulator, tools=[SEARCH], messages=turns)["message"]["content"][0]
    fetch = result_of(emulator, tools=[FETCH], messages=turns)["message"]["content"][0]

    assert search["input"] == {"query": "Read https://ships.example/log today."}
    assert fetch["input"] == {"url": "https://ships.example/log"}


def test_a_forced_server_tool_is_used_and_a_forced_client_tool_is_only_called(emulator: Emulator) -> None:
    tools = [SEARCH, FETCH, OWN]

    served = result_of(emulator, tools=tools, tool_choice={"type": "tool", "name": "web_fetch"})["message"]
    own = result_of(emulator, tools=tools, tool_choice={"type": "tool", "name": "look"})["message"]

    assert served["content"][0]["name"] == "web_fetch"
    assert served["stop_reason"] == "end_turn"
    assert [block["type"] for block in own["content"]] == ["tool_use"]
    assert "server_tool_use" not in own["usage"]


def test_tool_choice_none_uses_no_tool(emulator: Emulator) -> None:
    message = result_of(emulator, tools=[SEARCH], tool_choice={"type": "none"})["message"]

    assert [block["type"] for block in message["content"]] == ["text"]
    assert "server_tool_use" not in message["usage"]


def test_structured_output_comes_after_the_result_of_the_tool(emulator: Emulator) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}

    message = result_of(emulator, tools=[SEARCH], output_config={"format": {"type": "json_schema", "schema": schema}})[
        "message"
    ]

    assert message["content"][-1]["text"] == '{"a":1}'


def test_a_fault_of_the_text_keeps_the_result_of_the_tool(emulator: Emulator) -> None:
    emulator.add_fault(on="item", do="max_tokens")

    message = result_of(emulator, tools=[SEARCH])["message"]

    assert [block["type"] for block in message["content"]] == ["server_tool_use", "web_search_tool_result", "text"]
    assert message["stop_reason"] == "max_tokens"


def test_the_input_of_a_tool_call_counts_against_max_tokens(emulator: Emulator) -> None:
    free, used = (result_of(emulator, max_tokens=7, tools=tools)["message"] for tools in ([OWN], [SEARCH]))

    assert (free["stop_reason"], used["stop_reason"]) == ("end_turn", "max_tokens")
    assert used["usage"]["output_tokens"] == 7
