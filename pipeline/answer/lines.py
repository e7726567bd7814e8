"""Result lines as they come: split at newlines, and read as JSON however odd. Pure."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import orjson


def split(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines of a stream without their newlines, as many at a time as a chunk completes; the last one at its end.

    They are split at \\n only: an answer's text may hold U+2028 and the like.
    """
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield [b"".join(rest), *others[:-1]]
            rest = [others[-1]]
    yield [b"".join(rest)]


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line as an object; None when it is none, for it was cut or is something else.

    What orjson refuses Python's own reader may still read: lone surrogates, numbers beyond what a float holds.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def cleaned(value: Any) -> Any:
    """JSON as it can be stored: a lone surrogate becomes U+FFFD, a number too large to be exact everywhere None."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {cleaned(name): cleaned(of) for name, of in value.items()}
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    if isinstance(value, bool) or value is None:
        return value
    return value if abs(value) < LARGEST else None  # of nan and infinity, too


LARGEST = 2**53  # from here on, not each whole number is a double
