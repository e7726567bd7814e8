"""Result lines of the API for property tests: plain ones, and such that differ from them in a few places."""

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from pipeline.job.model import Job

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "word": {"enum": ["good", "bad"]}, "day": {"type": "string"}},
    "required": ["n"],
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "text": {},
    "labels": {"labels": ["good", "bad"]},
    "schema": {"schema": SCHEMA},
    "thinking": {"thinking": True},
    "citations": {"citations": True},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5-20251001",
    "content": [{"type": "text", "text": "good", "citations": None}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "stop_details": None,
    "usage": {
        "input_tokens": 312,
        "cache_creation_input_tokens": 7,
        "cache_read_input_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
        "output_tokens": 44,
        "service_tier": "batch",
        "inference_geo": "us",
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    },
}
LINE = {"custom_id": "x-0", "result": {"type": "succeeded", "message": MESSAGE}}


def job_of(output: str) -> Job:
    """Return a job with one of OUTPUTS."""
    fields = {
        "name": "j",
        "source": {"path": "a.csv", "key": "id"},
        "request": {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ body }}"},
        "sink": {"table": "t"},
        "output": OUTPUTS[output],
    }
    return Job.model_validate(fields)


TEXTS = st.one_of(
    st.text(),
    st.sampled_from(["", "good", '{"label": "GOOD"}', '{"label":"bad","why":"x"}', '{"label":1}', '{"label":"none"}']),
    st.sampled_from(['{"n":1,"word":" Good ","more":2}', '{"n":1.0}', '{"n":1e30}', '{"n":"x"}', "[1]", "{", "null"]),
)
ODD = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1.0, -0.0, 2**53, 2**63, 2**64, 10**400, float("inf"), float("nan")]),
    st.sampled_from(
        ["", "us", "text", "refusal", "max_tokens", "tool_use", "stop_sequence", "end_turn", "\ud800", "\0"]
    ),
    st.sampled_from([[], {}, [None], [[]], {"type": "text"}, {"type": "thinking", "thinking": "hm"}]),
    st.sampled_from([{"type": "text", "text": "b", "citations": [{"cited_text": "c"}]}, [{"type": "text", "text": 1}]]),
    st.integers(),
    TEXTS,
).map(copy.deepcopy)  # a later change may be made inside of it


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return each object and list inside a value with each of its keys or indexes."""
    here = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in here] + [place for _, inner in here for place in places(inner)]


def as_json(value: Any, twice: tuple[Any, Any, Any] | None, ascii_only: bool) -> str:
    """Return the JSON of a value. twice: an object in it, and a key and a value that it has once more, before all."""
    if isinstance(value, dict):
        items = list(value.items())
        if twice is not None and value is twice[0]:
            items.insert(0, (twice[1], twice[2]))
        inner = (f"{json.dumps(k)}:{as_json(v, twice, ascii_only)}" for k, v in items)
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_json(each, twice, ascii_only) for each in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


@st.composite
def result_lines(draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """Draw a plain line with up to three changes: fields left out, replaced, added or written twice, bytes changed."""
    line = json.loads(json.dumps(LINE))
    line["result"]["message"]["content"][0]["text"] = draw(TEXTS)
    twice: tuple[Any, Any, Any] | None = None
    for _ in range(draw(st.integers(0, 3))):
        inside, key = draw(st.sampled_from(places(line)))
        change = draw(st.sampled_from(["replace", "remove", "add", "twice", "append"]))
        if change == "replace":
            inside[key] = draw(ODD)
        elif change == "remove":
            del inside[key]
        elif change == "twice" and isinstance(inside, dict):
            twice = (inside, key, draw(ODD))
        elif change == "append" and isinstance(inside.get("content") if isinstance(inside, dict) else None, list):
            inside["content"].append(draw(ODD))
        elif isinstance(inside, dict):
            inside[draw(st.sampled_from(["new", "text", "citations", "usage", "type", "container"]))] = draw(ODD)
        if not places(line):
            break
    written = as_json(line, twice, draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(written)))
        written = written[:at] + draw(st.sampled_from([b"", b"\xff", b"\x01", b"\\", b'"', b" ", b"\\ud83d"]))
        written += draw(st.sampled_from([b"", b"\r", b" x"]))
    return written
