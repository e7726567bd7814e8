"""Compute the texts from which older versions hashed rows, when some conversions were not exact. Pure.

A succeeded row with such a hash was sent with an inexact value. It counts as a row of an older recipe: its answer is
kept, a run reports it, and only a person sends it again.
"""

import base64
import uuid
from collections.abc import Callable
from typing import Any

import orjson
import polars as pl
import pyarrow as pa


def text(column: pl.Series, kind: Any, text_of: Callable[[Any], str | None]) -> pl.Series | None:
    """Return the texts that older versions gave a column's values; None if they are the same today.

    kind: the column's Arrow type in its file, or None; text_of: gives today's text of one value.
    """
    if isinstance(kind, pa.UuidType) and column.dtype == pl.String:
        return pl.Series([_of_uuid(value) for value in column.to_list()], dtype=pl.String)
    dtype = column.dtype
    if dtype == pl.Binary:
        return column.bin.encode("base64")
    if dtype == pl.Time:
        return column.cast(pl.String)
    of_nanos = isinstance(kind, pa.TimestampType) and kind.unit == "ns"
    if isinstance(dtype, pl.Datetime) and (of_nanos or dtype.time_unit == "ns"):
        text = column.cast(pl.String)
        return text if dtype.time_unit == "ns" else text + "000"  # see columnar.py: times that nanoseconds cannot hold
    if dtype == pl.Object:
        return _of_objects(column, text_of)
    if dtype.is_nested() and any(map(_is_changed, _leaves(dtype))):
        return pl.Series([None if value is None else _dump(value) for value in _listed(column)], dtype=pl.String)
    return None


def key_values(column: pl.Series, kind: Any) -> pl.Series | None:
    """Return the values that older versions put into keys; None if they are the same today. kind: see `text`."""
    if isinstance(kind, pa.UuidType) and column.dtype == pl.String:
        return pl.Series([_of_uuid(value) for value in column.to_list()], dtype=pl.String)
    if column.dtype == pl.Binary:
        return column.bin.encode("base64")
    if column.dtype == pl.Object and any(map(_is_inexact, column.to_list())):
        return pl.Series([_older(value) for value in column.to_list()], dtype=pl.Object)
    return None


def _of_uuid(value: str | None) -> str | None:
    return None if value is None else base64.b64encode(uuid.UUID(value).bytes).decode()


def _of_objects(column: pl.Series, text_of: Callable[[Any], str | None]) -> pl.Series | None:
    """Return older texts of a column of objects: integers beyond 64 bits were floats, and UUIDs in lists were bytes."""
    values = column.to_list()
    if not any(map(_is_inexact, values)):
        return None
    texts = [_dump(_older(v)) if isinstance(v, dict | list) else text_of(_older(v)) for v in values]
    return pl.Series(texts, dtype=pl.String)


def _is_inexact(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_inexact, value.values()))
    if isinstance(value, list):
        return any(map(_is_inexact, value))
    return isinstance(value, uuid.UUID) or _is_large(value) or (type(value) is float and value - value != 0)


def _is_large(value: Any) -> bool:
    return type(value) is int and not -(2**63) <= value < 2**64


def _older(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _older(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_older(inner) for inner in value]
    if _is_large(value):
        return float(value) if abs(value) < 2**1023 else None
    return base64.b64encode(value.bytes).decode() if isinstance(value, uuid.UUID) else value


def _leaves(dtype: Any) -> list[Any]:
    if isinstance(dtype, pl.List | pl.Array):
        return _leaves(dtype.inner)
    if isinstance(dtype, pl.Struct):
        return [leaf for field in dtype.fields for leaf in _leaves(field.dtype)]
    return [dtype]


def _is_changed(dtype: Any) -> bool:
    return bool(dtype.is_float() or dtype.is_temporal() or dtype == pl.Binary)


def _listed(column: pl.Series) -> list[Any]:
    try:
        return column.to_list()
    except ValueError:  # a date outside of Python's range; older versions could not hash such rows
        return [None] * len(column)


def _dump(value: Any) -> str:
    """Return the JSON that older versions wrote for a list or structure."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
