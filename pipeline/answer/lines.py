"""Split a stream of results into lines, and parse each line as JSON, even if it is malformed. Pure."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import orjson


def split_lines(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines of a stream, without newlines, in groups: those that each chunk completes, then the last line.

    Only \\n ends a line, because the text of an answer may contain U+2028 and other line separators. The last line is
    empty if the stream ends with a newline, or is empty.
    """
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield [b"".join(rest), *others[:-1]]
            rest = [others[-1]]
    yield [b"".join(rest)]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line; None if the line was cut, or is not a JSON object.

    Python's own parser gets what orjson refuses: lone surrogates, and numbers too large for a float.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def storable_json(value: Any) -> Any:
    """Return a JSON value that can be stored: lone surrogates become U+FFFD, numbers too large to be exact None."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {storable_json(name): storable_json(of) for name, of in value.items()}
    if isinstance(value, list):
        return [storable_json(each) for each in value]
    if isinstance(value, bool) or value is None:
        return value
    return value if abs(value) < FIRST_INEXACT else None  # also for nan and infinity


FIRST_INEXACT = 2**53  # a double cannot hold every whole number from here on
