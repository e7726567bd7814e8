"""Write source values as JSON: for keys, for kept columns, and for lists that a template prints. Pure."""

import base64
import datetime
import decimal
import json
import math
import uuid
from typing import Any

import orjson

from pipeline.errors import SourceError

_JSON_OPTIONS = orjson.OPT_NON_STR_KEYS


class UnprintableError(ValueError):
    """An unprintable value was printed. The message is the reason why the value has no exact text."""


class Unprintable:
    """Stands for a source value that has no exact text. Printing it, or writing it as JSON, raises the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __str__(self) -> str:
        raise UnprintableError(self.reason)

    def __repr__(self) -> str:
        return f"Unprintable({self.reason!r})"

    __html__ = __str__


class Nanoseconds(str):
    """A time as ISO text with nanoseconds, which no Python type and no results table can hold."""

    __slots__ = ()


def dump(values: Any) -> str:
    """Return a list or mapping of source values as compact JSON; dates as ISO text, decimals as text.

    An integer beyond 64 bits becomes text, and a list or structure that contains one becomes the text of its JSON,
    because readers of JSON would turn such an integer into a float.
    Raises SourceError, which names source.key and source.keep, for a value that has no exact text.
    """
    try:
        return _dumped(values)
    except _LargeInteger:
        pass
    if isinstance(values, dict):
        return _dumped({name: _without_large_integers(value) for name, value in values.items()})
    return _dumped([_without_large_integers(value) for value in values])


def json_text(value: Any) -> str:
    """Return one value as compact JSON, with all digits of large integers."""
    try:
        return _dumped(value)
    except _LargeInteger:
        return json.dumps(value, default=json_default, ensure_ascii=False, separators=(",", ":"))


class _LargeInteger(Exception):
    """A value contains an integer beyond 64 bits, which orjson cannot write."""


def _dumped(value: Any) -> str:
    """Return a value as compact JSON. Raises _LargeInteger, and SourceError for a value that has no exact text."""
    try:
        return orjson.dumps(value, default=json_default, option=_JSON_OPTIONS).decode()
    except orjson.JSONEncodeError as exc:
        if "64-bit" in str(exc):
            raise _LargeInteger from exc
        if isinstance(exc.__cause__, UnprintableError):
            raise SourceError(f"source.key or source.keep: {exc.__cause__}") from exc
        raise


def _without_large_integers(value: Any) -> Any:
    """Return the value, or its text or its JSON as text if it is or contains an integer beyond 64 bits."""
    if is_large(value):
        return str(value)
    try:
        _dumped(value)
    except _LargeInteger:
        return json_text(value)
    return value


def is_large(value: Any) -> bool:
    """Return whether the value is an integer that does not fit in 64 bits."""
    return type(value) is int and not -(2**63) <= value < 2**63


def text_to_hash(value: Any) -> str:
    """Return the JSON of a list or structure for row_hash; NaN and the infinities stay distinct from null."""
    text = json_text(value)
    if "null" not in text or _is_finite(value):
        return text
    return json.dumps(value, default=json_default, ensure_ascii=False, separators=(",", ":"))


def _is_finite(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True


def json_default(value: Any) -> Any:
    """Convert a value that JSON has no type for: to text, and bytes to base64. The `default` function of JSON writers.

    Raises UnprintableError for an Unprintable, and TypeError for an unknown type.
    """
    if isinstance(value, decimal.Decimal | datetime.timedelta | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):  # for Python's own JSON
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Unprintable):
        raise UnprintableError(value.reason)
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")
