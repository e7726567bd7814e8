"""The answers of the emulated model and their token counts."""

import json
from datetime import date
from typing import Any

import pytest

from pipeline.emulator import Emulator
from pipeline.emulator.model.answers import gist
from tests.emulator.builders import PNG, asking, client_of, image, params, pdf, result_of, text_document

SCHEMA = {
    "type": "object",
    "properties": {
        "note": {"type": "string"},
        "label": {"enum": ["billing", "outage", "how_to"]},
        "score": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "when": {"type": ["string", "null"], "format": "date"},
        "person": {"$ref": "#/$defs/person"},
    },
    "required": ["label", "score"],
    "additionalProperties": False,
    "$defs": {
        "person": {
            "type": "object",
            "properties": {"mail": {"type": "string", "format": "email"}, "kind": {"const": "human"}},
            "required": ["mail", "kind"],
            "additionalProperties": False,
        }
    },
}


def message_of(emulator: Emulator, text: str = "Summarize. The ship sank.", **fields: Any) -> Any:
    result = result_of(emulator, messages=[{"role": "user", "content": text}], **fields)
    assert result["type"] == "succeeded", result
    return result["message"]


def assert_obeys_schema(value: Any) -> None:
    assert value["label"] in ("billing", "outage", "how_to")
    assert isinstance(value["score"], int)
    assert isinstance(value["note"], str)
    assert [type(tag) for tag in value["tags"]] == [str]
    assert date.fromisoformat(value["when"]).year == 2026
    assert set(value["person"]) == {"mail", "kind"}
    assert "@" in value["person"]["mail"]
    assert value["person"]["kind"] == "human"


def formatted(schema: Any) -> dict[str, Any]:
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        pytest.param("The ship sank. Nobody knew why.", "[emulated] The ship sank.", id="first sentence"),
        pytest.param(
            "Summarize this:\n<doc id='1'>The <b>harbour</b>\nis closed! Go home.</doc>\nBe brief.",
            "[emulated] The harbour is closed!",
            id="the tagged part",
        ),
        pytest.param(
            "Summarize:\n\nThe ship sank at noon. Why?\n\nThanks!", "[emulated] The ship sank at noon.", id="body"
        ),
        pytest.param("word " * 100, f"[emulated] {('word ' * 32).strip()}...", id="clipped at a word"),
        pytest.param("Ünïcödé ✓", "[emulated] Ünïcödé ✓", id="any script"),
    ],
)
def test_free_text_is_marked_and_is_the_gist_of_the_last_user_turn(
    emulator: Emulator, prompt: str, answer: str
) -> None:
    message = message_of(emulator, prompt)

    assert message["content"] == [{"type": "text", "text": answer}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_the_gist_is_taken_from_the_longest_text_of_the_last_turn(emulator: Emulator) -> None:
    blocks = [{"type": "text", "text": "Short."}, {"type": "text", "text": "A much longer text. With an end."}]
    turns = [
        {"role": "user", "content": "An earlier and by far longer turn than the last one is. Really."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": blocks},
    ]

    message = result_of(emulator, messages=turns)["message"]

    assert message["content"][0]["text"] == "[emulated] A much longer text."


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        pytest.param([image()], "What is it?", id="image"),
        pytest.param([pdf(), image()], "What is it?", id="PDF and image"),
        pytest.param([text_document("A ship sank at noon. Why?")], "A ship sank at noon.", id="text document"),
        pytest.param([text_document("A ship.")], "What is it?", id="text shorter than the prompt"),
        pytest.param(
            [{"type": "document", "source": {"type": "content", "content": "A ship sank at noon. Why?"}}],
            "A ship sank at noon.",
            id="document of blocks",
        ),
    ],
)
def test_the_gist_is_taken_from_a_text_document_that_is_longer_than_the_prompt(
    emulator: Emulator, blocks: list[dict[str, Any]], text: str
) -> None:
    message = result_of(emulator, messages=asking(*blocks))["message"]

    assert message["content"] == [{"type": "text", "text": f"[emulated] {text}"}]


def test_a_prompt_of_an_image_alone_gets_an_answer(emulator: Emulator) -> None:
    message = result_of(emulator, messages=[{"role": "user", "content": [image()]}])["message"]

    assert message["content"] == [{"type": "text", "text": "[emulated]"}]


def test_equal_params_get_equal_answers(emulator: Emulator) -> None:
    first, second = (message_of(emulator, **formatted(SCHEMA)) for _ in range(2))

    assert first["content"] == second["content"]
    assert first["id"] != second["id"]


def test_a_structured_answer_follows_its_schema_with_required_properties_first(emulator: Emulator) -> None:
    message = message_of(emulator, **formatted(SCHEMA))

    value = json.loads(message["content"][0]["text"])
    assert_obeys_schema(value)
    assert list(value)[:2] == ["label", "score"]
    assert set(value) == set(SCHEMA["properties"])  # type: ignore[call-overload]
    assert value["note"].startswith("[emulated]")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("My billing is wrong, billing twice, an outage once.", "billing"),
        ("<ticket>Outage since noon.</ticket> Choose billing, billing, outage or how_to.", "outage"),
        ("To be or not to be: outage.", "outage"),
        ("How to do it? How?", "how_to"),
    ],
)
def test_the_label_is_the_one_whose_words_occur_in_the_text(emulator: Emulator, text: str, label: str) -> None:
    message = message_of(emulator, text, **formatted(SCHEMA))

    assert json.loads(message["content"][0]["text"])["label"] == label


def test_labels_that_do_not_occur_in_the_text_are_chosen_by_hash(emulator: Emulator) -> None:
    labels = {
        json.loads(message_of(emulator, f"Text {n}.", **formatted(SCHEMA))["content"][0]["text"])["label"]
        for n in range(20)
    }

    assert labels == {"billing", "outage", "how_to"}


def test_a_forced_tool_gets_an_input_that_follows_its_schema(emulator: Emulator) -> None:
    tools = [{"name": "file", "input_schema": SCHEMA}, {"name": "other", "input_schema": {"type": "object"}}]

    message = message_of(emulator, tools=tools, tool_choice={"type": "tool", "name": "file"})
    free = message_of(emulator, tools=tools, tool_choice={"type": "auto"})

    (block,) = message["content"]
    assert message["stop_reason"] == "tool_use"
    assert (block["type"], block["name"]) == ("tool_use", "file")
    assert_obeys_schema(block["input"])
    assert (free["stop_reason"], free["content"][0]["type"]) == ("end_turn", "text")


def test_a_long_answer_is_cut_at_max_tokens(emulator: Emulator) -> None:
    prose = message_of(emulator, max_tokens=3)
    structured = message_of(emulator, max_tokens=3, **formatted(SCHEMA))

    assert (prose["stop_reason"], prose["usage"]["output_tokens"]) == ("max_tokens", 3)
    assert prose["content"][0]["text"] == "[emulated] S"
    assert structured["stop_reason"] == "max_tokens"
    with pytest.raises(json.JSONDecodeError):
        json.loads(structured["content"][0]["text"])


def test_a_stop_sequence_ends_the_answer(emulator: Emulator) -> None:
    stopped = message_of(emulator, "The ship sank.", stop_sequences=["nothing", " sank"])

    assert stopped["content"][0]["text"] == "[emulated] The ship"
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", " sank")


@pytest.mark.parametrize(
    ("fields", "thought"),
    [
        ({"model": "claude-haiku-4-5"}, None),
        ({"model": "claude-haiku-5-5"}, ""),
        ({"model": "claude-haiku-5-5", "thinking": {"type": "disabled"}}, None),
        ({"model": "claude-opus-4-8", "thinking": {"type": "adaptive", "display": "summarized"}}, "[emulated]"),
        ({"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "[emulated]"),
    ],
    ids=["off by default", "on by default", "off", "adaptive", "enabled"],
)
def test_the_thinking_block_comes_before_the_text(
    emulator: Emulator, fields: dict[str, Any], thought: str | None
) -> None:
    message = message_of(emulator, **fields)

    kinds = [block["type"] for block in message["content"]]
    assert kinds == (["text"] if thought is None else ["thinking", "text"])
    if thought is not None:
        assert message["content"][0]["thinking"][:10] == thought
        details = message["usage"]["output_tokens_details"]
        assert 0 < details["thinking_tokens"] < message["usage"]["output_tokens"]


def test_usage_counts_a_token_per_four_bytes_at_the_batch_tier(emulator: Emulator) -> None:
    plain = message_of(emulator, "x" * 400)["usage"]
    with_system = message_of(emulator, "x" * 400, system="y" * 400)["usage"]

    assert plain["service_tier"] == "batch"
    assert plain["input_tokens"] == 110
    assert with_system["input_tokens"] == 210
    assert plain["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}


def test_an_image_has_a_fixed_token_count_whatever_its_size(emulator: Emulator) -> None:
    turns: Any = [{"role": "user", "content": [image(PNG + bytes(100_000))]}]

    count = client_of(emulator).messages.count_tokens(model="claude-haiku-4-5", messages=turns)

    assert count.input_tokens == 1610


def test_count_tokens_agrees_with_the_usage(emulator: Emulator) -> None:
    fields: Any = params("Say hello.", system="Be brief.")
    count = client_of(emulator).messages.count_tokens(**{k: v for k, v in fields.items() if k != "max_tokens"})

    assert count.input_tokens == result_of(emulator, **fields)["message"]["usage"]["input_tokens"]


def test_the_gist_of_an_empty_text_is_empty() -> None:
    assert gist("<a></a>") == ""
