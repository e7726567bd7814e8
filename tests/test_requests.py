"""A row becomes the params of one Messages call, and what the job fixes is the same in all of them."""

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.requests import RequestBuilder, fixed_params
from pipeline.templates import RowProblem


def job(prompt: str = "{{ body }}", *, nulls: str = "invalid", **fields: Any) -> Job:
    """A job with this prompt; fields of `request`, or `output` and `vars` as a whole."""
    whole = {name: fields.pop(name) for name in ("output", "vars") if name in fields}
    request = {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": prompt, **fields}
    source = {"path": "a.csv", "key": "id", "nulls": nulls}
    return Job.model_validate({"name": "j", "source": source, "request": request, "sink": {"table": "t"}, **whole})


def test_a_request_is_what_the_messages_api_takes() -> None:
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
def test_any_text_arrives_as_it_is(text: str) -> None:
    params = RequestBuilder(job("{{ body }}")).params({"body": text}).params

    assert orjson.loads(params)["messages"] == [{"role": "user", "content": text}]


def test_labels_are_asked_for_by_a_schema_beside_the_jobs_own_output_config() -> None:
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


def test_the_builder_says_which_columns_it_needs() -> None:
    assert RequestBuilder(job("{{ b }}{{ a }}{{ row['c d'] }}")).columns.templates == ("a", "b", "c d")
    assert RequestBuilder(job("{{ row[a] }}")).columns.all_columns


@pytest.mark.parametrize("body", ["", "   ", "\n\t\u00a0"], ids=["empty", "blanks", "other blanks"])
def test_an_empty_prompt_makes_the_row_invalid(body: str) -> None:
    with pytest.raises(RowProblem, match="the prompt is empty"):
        RequestBuilder(job("{{ body }}")).params({"body": body})


def test_half_a_character_makes_the_row_invalid() -> None:
    with pytest.raises(RowProblem, match="not valid Unicode"):
        RequestBuilder(job("{{ body }}")).params({"body": "\ud800"})


def test_a_null_makes_the_row_invalid_unless_the_job_takes_it_as_empty() -> None:
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


def test_a_system_prompt_that_holds_our_own_mark_is_sent_as_it_is() -> None:
    params = RequestBuilder(job("{{ body }}", system="\x00prompt\x00")).params({"body": "x"}).params

    assert orjson.loads(params)["system"] == "\x00prompt\x00"
    assert orjson.loads(params)["messages"][0]["content"] == "x"
