"""How does a page write values, keys and times? Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.job import json_values
from pipeline.quality.compare_values import FAILED
from pipeline.source import identity

LONGEST_VALUE = 80  # characters of a value that names a bar or a cell


def value_text(value: Any) -> str:
    """Return a value as the name of a bar or of a cell."""
    if value is FAILED:
        return "(failed)"
    if value is None:
        return "(null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "":
        return "(empty)"
    return cut(str(value), LONGEST_VALUE)


def cut(text: str, longest: int) -> str:
    """Return the text; of a longer one so many characters, and an ellipsis."""
    return text if len(text) <= longest else f"{text[:longest].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def key_text(key: Sequence[Any]) -> str:
    """Return a key as people write it."""
    return cut(identity.joined(json_values.dump(list(key))), LONGEST_VALUE)


def minute(at: datetime) -> str:
    """Return `2026-11-20 14:05 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
