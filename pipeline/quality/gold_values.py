"""How is a value of gold read as the type of the output column that it is compared with? Pure."""

import datetime
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from pipeline.job.json_values import Unprintable, dump, is_large
from pipeline.text import folded


class Misread(ValueError):
    """A value cannot be read as a kind of column. The message ends a sentence that begins with the value."""


def read(kind: str, value: Any) -> Any:
    """Return a value as a column of this kind stores it (see sink.columns.KINDS). Raises Misread.

    value: of a source column, neither None nor an empty text.
    """
    if isinstance(value, Unprintable):
        raise Misread(f"has no exact text: {value.reason}")
    return _READERS[kind](value)


def is_empty(value: Any) -> bool:
    """Return whether a source has no value in a place: null, an empty text, or nothing but blanks."""
    return value is None or (isinstance(value, str) and not value.strip())


def declared(texts: list[str]) -> dict[str, str]:
    """Return the declared texts by the form in which they are compared, without case and outer blanks."""
    return {folded(text): text for text in texts}


def as_declared(options: Mapping[str, str], value: Any) -> str:
    """Return the declared text that equals a value apart from case and outer blanks. Raises Misread for any other."""
    text = options.get(folded(_text(value)))
    if text is None:
        shown = list(options.values())
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        raise Misread(f"is none of {', '.join(shown[:10])}{more}")
    return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dump(value) if isinstance(value, list | dict | bool) else str(value)


def _integer(value: Any) -> int:
    number = value
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int | float | Decimal) or number != number // 1:
        raise Misread("is not a whole number")
    if is_large(int(number)):
        raise Misread("does not fit in 64 bits")
    return int(number)


def _number(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float | Decimal) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or number != number or number in (float("inf"), float("-inf")):
        raise Misread("is not a number")
    return number


def _boolean(value: Any) -> bool:
    word = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if word not in _BOOLEANS:
        raise Misread("is neither true nor false")
    return _BOOLEANS[word]


def _date(value: Any) -> datetime.date:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            raise Misread("is not a date like 2026-11-20") from None
    if isinstance(value, datetime.datetime):
        if value.time() != datetime.time():
            raise Misread("is a time, and the output is a date")
        return value.date()
    if not isinstance(value, datetime.date):
        raise Misread("is not a date like 2026-11-20")
    return value


def _datetime(value: Any) -> datetime.datetime:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            raise Misread("is not a time like 2026-11-20T08:30:00") from None
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if not isinstance(value, datetime.datetime):
        raise Misread("is not a time like 2026-11-20T08:30:00")
    return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)


def _scalars(value: Any) -> str:
    """Return a list of scalars as JSON text."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise Misread('is not a JSON list like ["a", "b"]') from None
    if not isinstance(value, list):
        raise Misread('is not a list; write a JSON list like ["a", "b"]')
    if any(isinstance(each, list | dict) for each in value):
        raise Misread("holds lists or objects, which are not compared")
    return dump(value)


_INTEGER = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_READERS = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "date": _date,
    "datetime": _datetime,
    "json": _scalars,
}
