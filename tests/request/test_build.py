"""A row becomes the params of one Messages call; params that the job fixes are the same in all calls."""

from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from pipeline.errors import JobError, RowProblem
from pipeline.job.model import Job
from pipeline.request.build import RequestBuilder, fixed_params


def job(prompt: str | None = "{{ body }}", *, nulls: str = "invalid", **fields: Any) -> Job:
    """Return a job with this prompt. fields: of `request`, or `output` and `vars` as a whole."""
    whole = {name: fields.pop(name) for name in ("output", "vars") if name in fields}
    request = {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": prompt, **fields}
    source = {"path": "a.csv", "key": "id", "nulls": nulls}
    return Job.model_validate({"name": "j", "source": source, "request": request, "sink": {"table": "t"}, **whole})


def test_a_request_has_the_form_of_the_messages_api() -> None:
    builder = RequestBuilder(job("Sum up: {{ body }}", system="Be brief.", params={"stop_sequences": ["END"]}))

    params = builder.params({"body": "The ship sank."}).params

    assert orjson.loads(params) == {
        "model": "claude-haiku-4-5",
        "max_tokens": 100,
        "system": "Be brief.",
        "stop_sequences": ["END"],
        "messages": [{"role": "user", "content": "Sum up: The ship sank."}],
    }


def test_params_are_compact_utf8_and_the_same_bytes_each_time() -> None:
    made = job("{{ body }}")

    first, second = (RequestBuilder(made).params({"body": "ä€😀\n\u2028"}).params for _ in range(2))

    assert first == second
    assert b'": ' not in first
    assert b"\n" not in first
    assert "ä€😀".encode() in first


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('"quoted" \\ back', id="quotes and backslashes"),
        pytest.param("a\nb\r\nc\td", id="newlines and tabs"),
        pytest.param("a\u2028b\u2029c\u0085d\x0be\x0c", id="other line ends"),
        pytest.param("\x00\x01\x1f", id="control characters"),
        pytest.param("ä€😀𝔘 العربية", id="any script"),
        pytest.param("}],]}{{", id="braces"),
        pytest.param("\x00prompt\x00", id="what looks like our own mark"),
        pytest.param('","params":{', id="what looks like a body"),
    ],
)
def test_any_text_arrives_unchanged(text: str) -> None:
    params = RequestBuilder(job("{{ body }}")).params({"body": text}).params

    assert orjson.loads(params)["messages"] == [{"role": "user", "content": text}]


def test_labels_become_a_schema_added_to_the_output_config_of_the_job() -> None:
    made = job(params={"output_config": {"effort": "low"}}, output={"labels": ["yes", "no"]})

    params = fixed_params(made)

    assert params["output_config"] == {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"label": {"type": "string", "enum": ["yes", "no"]}},
                "required": ["label"],
                "additionalProperties": False,
            },
        },
    }
    assert made.request.params == {"output_config": {"effort": "low"}}


def test_without_system_and_labels_neither_is_sent() -> None:
    assert fixed_params(job()) == {"model": "claude-haiku-4-5", "max_tokens": 100}


def test_system_may_be_a_list_of_blocks() -> None:
    blocks = [{"type": "text", "text": "Be brief."}]

    assert fixed_params(job(system=blocks))["system"] == blocks


def test_the_builder_names_the_columns_that_it_needs() -> None:
    assert RequestBuilder(job("{{ b }}{{ a }}{{ row['c d'] }}")).columns.templates == ("a", "b", "c d")
    assert RequestBuilder(job("{{ row[a] }}")).columns.all_columns


@pytest.mark.parametrize("body", ["", "   ", "\n\t\u00a0"], ids=["empty", "blanks", "other blanks"])
def test_an_empty_prompt_makes_the_row_invalid(body: str) -> None:
    with pytest.raises(RowProblem, match="the prompt is empty"):
        RequestBuilder(job("{{ body }}")).params({"body": body})


def test_a_lone_surrogate_makes_the_row_invalid() -> None:
    with pytest.raises(RowProblem, match="not valid Unicode"):
        RequestBuilder(job("{{ body }}")).params({"body": "\ud800"})


def test_a_null_makes_the_row_invalid_unless_the_job_treats_it_as_empty() -> None:
    with pytest.raises(RowProblem, match="null in this row: body"):
        RequestBuilder(job("Text: {{ body }}")).params({"body": None})

    params = RequestBuilder(job("Text: {{ body }}", nulls="empty")).params({"body": None}).params
    assert orjson.loads(params)["messages"][0]["content"] == "Text: "


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        pytest.param("{{ vars.tone }}", r"request\.prompt: vars\.tone is not among the vars", id="an undeclared var"),
        pytest.param("{{ body", r"line 1 of the template", id="braces left open"),
        pytest.param("{{ body.__class__ }}", r"__class__ is not allowed", id="a way out"),
        pytest.param(
            "{{ body|nofilter }}",
            r"No filter named 'nofilter'",
            id="an unknown filter",
        ),
    ],
)
def test_a_wrong_prompt_is_refused_before_any_row(prompt: str, said: str) -> None:
    with pytest.raises((JobError, ValidationError), match=said):
        RequestBuilder(job(prompt))


def test_vars_reach_the_prompt() -> None:
    params = RequestBuilder(job("{{ vars.tone }} {{ body }}", vars={"tone": "calm"})).params({"body": "x"}).params

    assert orjson.loads(params)["messages"][0]["content"] == "calm x"


def test_a_system_prompt_with_our_internal_marker_is_sent_unchanged() -> None:
    params = RequestBuilder(job("{{ body }}", system="\x00prompt\x00")).params({"body": "x"}).params

    assert orjson.loads(params)["system"] == "\x00prompt\x00"
    assert orjson.loads(params)["messages"][0]["content"] == "x"


# -- conversations -----------------------------------------------------------------------------------------------------

SHOTS = [{"role": "user", "content": "Ping."}, {"role": "assistant", "content": "Pong."}]


def messages(made: Job, row: dict[str, Any]) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = orjson.loads(RequestBuilder(made).params(row).params)["messages"]
    return said


def test_turns_are_placed_between_the_examples_and_the_prompt() -> None:
    earlier = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]},
    ]

    said = messages(job("{{ body }}", messages=SHOTS, turns="history"), {"body": "Now.", "history": earlier})

    assert said == [*SHOTS, *earlier, {"role": "user", "content": "Now."}]


def test_a_whole_message_is_the_turn_that_it_was() -> None:
    content = [
        {"type": "thinking", "thinking": "", "signature": "s"},
        {"type": "compaction", "content": None},
        {"type": "tool_use", "id": "toolu_1", "name": "lookup", "input": {"order": None}},
    ]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": content, "usage": {"input_tokens": 1}}
    asked, answered = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": content}
    made = job(messages=[asked], turns="message")

    alone = messages(made, {"body": "Now.", "message": orjson.dumps(message).decode()})
    listed = messages(made, {"body": "Now.", "message": orjson.dumps([message, asked, message]).decode()})

    assert alone == [asked, answered, {"role": "user", "content": "Now."}]
    assert listed == [asked, answered, asked, answered, {"role": "user", "content": "Now."}]


CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]}
FOUND = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "7"}]}


@pytest.mark.parametrize(
    ("fields", "history", "sent"),
    [
        pytest.param({"messages": SHOTS, "turns": "history"}, [CALL, FOUND], [*SHOTS, CALL, FOUND], id="tool results"),
        pytest.param({"messages": SHOTS[:1]}, None, SHOTS[:1], id="only turns that all rows share"),
        pytest.param(
            {"messages": [{"role": "user", "content": "About {{ body }}?"}]},
            None,
            [{"role": "user", "content": "About ships?"}],
            id="a turn that is a template",
        ),
        pytest.param({"messages": SHOTS[:1], "turns": "history"}, [], SHOTS[:1], id="a row without turns of its own"),
    ],
)
def test_a_conversation_that_ends_with_the_user_needs_no_prompt(
    fields: dict[str, Any], history: object, sent: list[dict[str, Any]]
) -> None:
    assert messages(job(None, **fields), {"body": "ships", "history": history}) == sent


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([SHOTS[0], CALL], "the conversation does not end with a turn of the user, and the job has no request.prompt"),
        ([], "the conversation has no turns, and the job has no request.prompt"),
        ([FOUND, CALL, FOUND][1:], "the conversation begins with a turn of role 'assistant'; it must be 'user'"),
    ],
    ids=["the assistant's at its end", "none", "the assistant's at its start"],
)
def test_a_row_whose_conversation_does_not_end_with_the_user_is_invalid_without_a_prompt(
    history: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(RowProblem, match=said):
        messages(job(None, turns="history"), {"body": "x", "history": history})


@pytest.mark.parametrize("empty", [None, "", "[]", []], ids=["null", "no text", "no turn as JSON", "no turn"])
def test_a_row_without_turns_has_only_its_prompt(empty: object) -> None:
    assert messages(job(turns="history"), {"body": "Now.", "history": empty}) == [{"role": "user", "content": "Now."}]


def test_examples_are_templates_of_the_row() -> None:
    shots = [{"role": "user", "content": [{"type": "text", "text": "In {{ language }}?"}]}, SHOTS[1]]

    said = messages(job(messages=shots), {"body": "Now.", "language": "Greek"})

    assert said[0] == {"role": "user", "content": [{"type": "text", "text": "In Greek?"}]}


def test_a_text_document_in_an_example_is_a_template_too() -> None:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "About {{ body }}"}}

    said = messages(job(messages=[{"role": "user", "content": [document]}]), {"body": "ships"})

    assert said[0]["content"][0]["source"]["data"] == "About ships"


def test_each_row_can_set_its_model_and_max_tokens() -> None:
    made = job(model="claude-{{ line }}-5", max_tokens="{{ n }}", system="Be brief.")

    built = RequestBuilder(made).params({"body": "x", "line": "sonnet", "n": 300.0})

    assert (built.model, built.max_tokens) == ("claude-sonnet-5", 300)
    assert orjson.loads(built.params) == {
        "model": "claude-sonnet-5",
        "max_tokens": 300,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "x"}],
    }


# -- the prompt cache --------------------------------------------------------------------------------------------------

TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("first", "last")]
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def test_the_cache_breakpoint_is_after_the_last_example_shared_by_all_requests() -> None:
    varies = {"role": "user", "content": "About {{ body }}?"}
    made = job(system="Be brief.", messages=[*SHOTS, varies], cache="1h", params={"tools": TOOLS})

    params = orjson.loads(RequestBuilder(made).params({"body": "x"}).params)

    assert params["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "Pong.", **MARK}]}
    assert orjson.dumps(params).count(b"cache_control") == 1


def test_without_examples_the_cache_breakpoint_is_after_the_system_prompt() -> None:
    assert fixed_params(job(system="Be brief.", cache="5m", params={"tools": TOOLS}))["system"] == [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "5m"}}
    ]


def test_without_examples_and_system_the_cache_breakpoint_is_after_the_tools() -> None:
    assert fixed_params(job(cache="1h", params={"tools": TOOLS}))["tools"] == [TOOLS[0], {**TOOLS[1], **MARK}]


def test_a_built_request_says_whether_it_writes_to_the_cache() -> None:
    assert RequestBuilder(job(system="Be brief.", cache="1h")).params({"body": "x"}).caches
    assert not RequestBuilder(job(system="Be brief.")).params({"body": "x"}).caches


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_model_is_forced_to_use_the_output_tool() -> None:
    made = job(params={"tools": TOOLS}, output={"tool": "last"})

    assert fixed_params(made)["tool_choice"] == {"type": "tool", "name": "last"}


def test_a_tool_choice_of_the_job_for_the_output_tool_is_kept() -> None:
    chosen = {"type": "tool", "name": "last", "disable_parallel_tool_use": True}
    made = job(params={"tools": TOOLS, "tool_choice": chosen}, output={"tool": "last"})

    assert fixed_params(made)["tool_choice"] == chosen


def test_a_schema_may_be_a_pydantic_model() -> None:
    class Invoice(BaseModel):
        total: float
        paid: bool

    schema = fixed_params(job(output={"schema": Invoice}))["output_config"]["format"]["schema"]

    assert schema["properties"].keys() == {"total", "paid"}
    assert schema["additionalProperties"] is False
