"""How a source value is written as JSON: in keys, in kept values, and where a template prints a list. Pure."""

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


class NoText(ValueError):
    """A value is printed that has no exact text; the message is the reason."""


class Unfit:
    """A value that has no exact text. Whoever prints it, or writes it as JSON, fails with the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __str__(self) -> str:
        raise NoText(self.reason)

    def __repr__(self) -> str:
        return f"Unfit({self.reason!r})"

    __html__ = __str__


class Nanoseconds(str):
    """ISO text of a time whose nanoseconds no Python type and no results table holds."""

    __slots__ = ()


def dump(values: Any) -> str:
    """Compact JSON text of source values; dates as ISO text, decimals as text.

    An integer beyond 64 bits is a text, and a list or structure that holds one is the text of its JSON: who reads this
    text would make a float of it.
    """
    try:
        return _dumped(values)
    except _LargeInteger:
        pass
    if isinstance(values, dict):
        return _dumped({name: _readable(value) for name, value in values.items()})
    return _dumped([_readable(value) for value in values])


def json_text(value: Any) -> str:
    """Compact JSON text of one value, with its integers as they stand."""
    try:
        return _dumped(value)
    except _LargeInteger:
        return json.dumps(value, default=plain, ensure_ascii=False, separators=(",", ":"))


class _LargeInteger(Exception):
    """There is an integer that orjson does not write."""


def _dumped(value: Any) -> str:
    try:
        return orjson.dumps(value, default=plain, option=_JSON_OPTIONS).decode()
    except orjson.JSONEncodeError as exc:
        if "64-bit" in str(exc):
            raise _LargeInteger from exc
        if isinstance(exc.__cause__, NoText):
            raise SourceError(f"source.key or source.keep: {exc.__cause__}") from exc
        raise


def _readable(value: Any) -> Any:
    """The value as orjson writes it and reads it back."""
    if is_large(value):
        return str(value)
    try:
        _dumped(value)
    except _LargeInteger:
        return json_text(value)
    return value


def is_large(value: Any) -> bool:
    """Whether this is an integer beyond 64 bits."""
    return type(value) is int and not -(2**63) <= value < 2**63


def hashed_text(value: Any) -> str:
    """A list or structure as row_hashes have it: as JSON, where NaN and the infinities are not the same as null."""
    text = json_text(value)
    if "null" not in text or _is_finite(value):
        return text
    return json.dumps(value, default=plain, ensure_ascii=False, separators=(",", ":"))


def _is_finite(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True


def plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal | datetime.timedelta | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):  # for Python's own JSON
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Unfit):
        raise NoText(value.reason)
    raise TypeError(f"a value of type {type(value).__name__} cannot be kept")
