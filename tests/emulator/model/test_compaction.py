"""A long conversation is summarized, and a later request that hands the summary back reads nothing before it."""

from typing import Any

import orjson
import pytest

from pipeline.api.realtime import _Message
from pipeline.emulator import Emulator
from pipeline.emulator.operations.messages import events
from tests.emulator.builders import client_of

BETA = "compact-2026-01-12"
LONG = "The ship sank. " * 14_000  # 52,500 tokens


def asked(emulator: Emulator, turns: list[dict[str, Any]], beta: str = BETA, **edit: Any) -> dict[str, Any]:
    """Return the message that answers these turns, with a compaction at 50,000 tokens."""
    trigger = {"type": "input_tokens", "value": edit.pop("value", 50_000)}
    management = {"edits": [{"type": "compact_20260112", "trigger": trigger, **edit}]}
    create: Any = client_of(emulator).beta.messages.create
    message = create(
        model="claude-sonnet-5", max_tokens=500, messages=turns, betas=[beta], context_management=management
    )
    made: dict[str, Any] = orjson.loads(message.to_json())
    return made


def says(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_long_conversation_is_summarized_and_its_tokens_are_counted_apart(emulator: Emulator) -> None:
    made = asked(emulator, [says(LONG)])

    compaction, *others = made["content"]
    assert (compaction["type"], made["stop_reason"]) == ("compaction", "end_turn")
    assert compaction["content"].startswith("[emulated] Summary of 1 turns: ")
    assert "text" in [block["type"] for block in others]
    first, second = made["usage"]["iterations"]
    assert (first["type"], second["type"]) == ("compaction", "message")
    assert first["input_tokens"] > 50_000
    assert made["usage"]["input_tokens"] == second["input_tokens"] < 1_000


def test_a_summary_that_is_handed_back_replaces_all_before_it(emulator: Emulator) -> None:
    made = asked(emulator, [says(LONG)])

    later = asked(emulator, [says(LONG), {"role": "assistant", "content": made["content"]}, says("And then?")])

    assert "compaction" not in [block["type"] for block in later["content"]]
    assert later["usage"]["input_tokens"] < 500


def test_a_short_conversation_is_not_summarized(emulator: Emulator) -> None:
    made = asked(emulator, [says("The ship sank.")])

    assert made["usage"].get("iterations") is None


def test_an_answer_may_stop_after_the_summary(emulator: Emulator) -> None:
    made = asked(emulator, [says(LONG)], pause_after_compaction=True)

    assert [block["type"] for block in made["content"]] == ["compaction"]
    assert (made["stop_reason"], made["usage"]["input_tokens"]) == ("compaction", 0)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"beta": "context-management-2025-06-27"}, "needs the beta header compact-2026-01-12"),
        ({"value": 49_999}, "trigger.value: Input should be greater than or equal to 50000"),
    ],
    ids=["another beta", "too early"],
)
def test_a_wrong_edit_is_refused(emulator: Emulator, edit: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        asked(emulator, [says("x")], **edit)


def test_a_summary_that_was_changed_is_refused(emulator: Emulator) -> None:
    block = {**asked(emulator, [says(LONG)])["content"][0], "content": "[emulated] Summary: nothing happened"}

    with pytest.raises(Exception, match="the compaction block was changed; send it back as it was returned"):
        asked(emulator, [says("x"), {"role": "assistant", "content": [block]}, says("And then?")])


def test_a_streamed_summary_is_the_same_as_a_whole_one(emulator: Emulator) -> None:
    made = asked(emulator, [says(LONG)])
    made["stop_details"] = None
    streamed = _Message()

    for event in events(made):
        streamed.add(orjson.loads(event.split(b"data: ", 1)[1]))

    assert streamed.whole is not None
    assert streamed.whole["content"] == made["content"]
