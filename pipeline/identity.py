"""What identifies a row and its content: key, row_hash, and the values it keeps. Pure, in bulk over a chunk."""

import base64
import datetime
import decimal
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import polars as pl

_JSON_OPTIONS = orjson.OPT_NON_STR_KEYS
_BETWEEN = "\x1f"


def keys(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Each row's key as a JSON array of its key columns' values: '["acme",17]'."""
    return [dump(list(values)) for values in frame.select(columns).iter_rows()]


def kept(frame: pl.DataFrame, keep: Mapping[str, str]) -> list[str | None]:
    """Each row's kept values as a JSON object by results column; None for all when nothing is kept."""
    if not keep:
        return [None] * frame.height
    names = list(keep.values())
    return [dump(dict(zip(names, values, strict=True))) for values in frame.select(list(keep)).iter_rows()]


def row_hashes(frame: pl.DataFrame, columns: Sequence[str]) -> list[bytes]:
    """16 bytes for each row: a hash of the values of `columns`, which are what the request is made of.

    Values are hashed by their text, each with its column and length, so that no two different rows run together;
    the same value as CSV text or as a Parquet number is the same.
    """
    if not columns:
        return [hashlib.blake2b(digest_size=16).digest()] * frame.height
    parts = pl.concat_str([_tagged(name, frame.schema[name]) for name in sorted(columns)], separator=_BETWEEN)
    values = frame.select(parts.cast(pl.Binary)).to_series()
    return [hashlib.blake2b(value, digest_size=16).digest() for value in values.to_list()]


def shown(key: str) -> str:
    """A key as people write it: its values with commas between."""
    return ",".join(str(value) for value in orjson.loads(key))


def dump(value: Any) -> str:
    """Compact JSON text of a source value; dates as ISO text, decimals as text, bytes as base64."""
    return orjson.dumps(value, default=_plain, option=_JSON_OPTIONS).decode()


def _tagged(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    text = column.cast(pl.String) if not dtype.is_nested() else _nested_text(name)
    if dtype == pl.Binary:
        text = column.bin.encode("base64")
    length = text.str.len_bytes().cast(pl.String)
    present = pl.concat_str([pl.lit(f"{name}:"), length, pl.lit(":"), text])
    return pl.when(column.is_null()).then(pl.lit(f"{name}:null")).otherwise(present)


def _nested_text(name: str) -> pl.Expr:
    return pl.col(name).map_elements(lambda value: dump(_listed(value)), return_dtype=pl.String)


def _listed(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"a value of type {type(value).__name__} cannot be kept")
