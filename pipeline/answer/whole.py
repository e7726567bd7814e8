"""Which message does a result line hold, as the JSON text that the API sent? Pure.

The text is cut out of the line, not made again, so that nothing of it changes: unknown fields, the order of the fields
and numbers of any size stay as they were sent.
"""

import json

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from pipeline.answer.lines import parse_line


class _Result(Struct, gc=False):
    type: str
    message: Raw | UnsetType = UNSET


class _Line(Struct, gc=False):
    result: _Result


_decode = msgspec.json.Decoder(_Line).decode


def message_text(line: bytes) -> str | None:
    """Return the JSON text of the message in the line of a succeeded request; None if the line holds no such message.

    A malformed line, such as one with half of a surrogate pair, cannot always be cut: its message is written again.
    """
    try:
        result = _decode(line).result
        if isinstance(result.message, UnsetType):
            return None
        text = bytes(result.message).decode()
        return text if result.type == "succeeded" and text.startswith("{") else None
    except ValueError:
        return _made_again(line)


def _made_again(line: bytes) -> str | None:
    """Return the message of a line that cannot be cut, as JSON in ASCII; None if it holds none."""
    result = (parse_line(line) or {}).get("result")
    if not isinstance(result, dict) or result.get("type") != "succeeded" or not isinstance(result.get("message"), dict):
        return None
    return json.dumps(result["message"])
