"""Damage result lines: cut them, make them invalid JSON, or valid JSON of a wrong form."""

import json
from collections.abc import Callable
from typing import Any

import orjson

from pipeline.emulator.rules import Damage

NO_TEXT = b"\x00\xff\xfe\x80"  #: neither UTF-8 nor allowed in JSON


def damaged(line: bytes, damage: Damage) -> bytes:
    """Return the line with this damage; unchanged if the damage needs a succeeded result and the line has none."""
    half = len(line) // 2
    if damage == "cut":
        return line[:half]
    if damage == "binary":
        return line[:half] + NO_TEXT + line[half:]
    result_line = orjson.loads(line)
    if damage == "no_type":
        del result_line["result"]["type"]
        return orjson.dumps(result_line)
    return (TO_MESSAGES[damage](result_line) if result_line["result"]["type"] == "succeeded" else None) or line


def _with_null_message(result_line: dict[str, Any]) -> bytes:
    return orjson.dumps({**result_line, "result": {**result_line["result"], "message": None}})


def _with_usage_text(result_line: dict[str, Any]) -> bytes:
    result_line["result"]["message"]["usage"]["output_tokens"] = "12"
    return orjson.dumps(result_line)


def _with_huge_number(result_line: dict[str, Any]) -> bytes:
    result_line["result"]["message"]["usage"]["output_tokens"] = "@huge@"  # replaced by a number too large for a float
    return orjson.dumps(result_line).replace(b'"output_tokens":"@huge@"', b'"output_tokens":1e400')


def _with_surrogate(result_line: dict[str, Any]) -> bytes | None:
    """Return the line with a lone surrogate before the first space of the first text; None if there is no text.

    Before a space, because text that is itself JSON then stays valid JSON.
    """
    block = next((block for block in result_line["result"]["message"]["content"] if block["type"] == "text"), None)
    if block is None:
        return None
    before, space, after = block["text"].partition(" ")
    block["text"] = f"{before}\ud800{space}{after}"
    return json.dumps(result_line, separators=(",", ":")).encode()  # orjson refuses lone surrogates


TO_MESSAGES: dict[str, Callable[[dict[str, Any]], bytes | None]] = {
    "null_message": _with_null_message,
    "usage_text": _with_usage_text,
    "huge_number": _with_huge_number,
    "surrogate": _with_surrogate,
}
