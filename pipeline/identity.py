"""What identifies a row and its content: key, row_hash, and the values it keeps. Pure, in bulk over a chunk."""

import base64
import datetime
import decimal
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from pipeline.frames import LATE_FIELDS

_JSON_OPTIONS = orjson.OPT_NON_STR_KEYS
_BETWEEN = "\x1f"
_ESCAPED = r'["\\\x00-\x1f]'  # in a text of JSON
_ONE_NUMBER = r"^\[-?[0-9]+\]$"
LONG_ROW = 500  # bytes in the mean, from which rows are put together one by one
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)


def columns_of(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """These columns by their very names: `select` would take `^a.*$` for a pattern."""
    return pl.DataFrame({name: frame.get_column(name) for name in names})


def keys(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Each row's key as a JSON array of its key columns' values: '["acme",17]'."""
    return key_column(frame, columns).to_list()


def key_column(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Each row's key, as `keys` has it."""
    plain = [frame.get_column(name) for name in columns]
    if all(_is_plain(column) for column in plain):  # put together in bulk, as `dump` writes it
        texts = pl.DataFrame([column.cast(pl.String).alias(f"c{i}") for i, column in enumerate(plain)])
        quotes = ['"' if column.dtype == pl.String else "" for column in plain]
        parts = [pl.format(f"{quote}{{}}{quote}", pl.col(f"c{i}")) for i, quote in enumerate(quotes)]
        return texts.select(pl.format("[{}]", pl.concat_str(parts, separator=",")).alias("key")).to_series()
    plain = [column + 0.0 if column.dtype.is_float() else column for column in plain]  # -0.0 is no key beside 0.0
    lists = zip(*(column.to_list() for column in plain), strict=True)
    return pl.Series("key", [dump(values) for values in lists], dtype=pl.String)


def _is_plain(column: pl.Series) -> bool:
    """Whether JSON has its values as their text is, between quotes if they are texts."""
    if column.null_count():
        return False
    if column.dtype == pl.String:
        return not column.str.contains(_ESCAPED).any()
    return column.dtype in _INTEGERS


def key_texts(keys: pl.Series) -> pl.Series:
    """Keys for comparison: 17 and "17" are the same one, for a table that people look things up in."""
    if keys.str.contains(_ONE_NUMBER).all():
        numbers = pl.DataFrame([keys.str.strip_chars("[]").alias("number")])
        return numbers.select(pl.format('["{}"]', pl.col("number"))).to_series()
    if (keys.str.starts_with('["') & ~keys.str.contains(",", literal=True)).all():
        return keys
    lists = map(orjson.loads, keys.to_list())
    texts = [dump([value if isinstance(value, str) else dump(value) for value in values]) for values in lists]
    return pl.Series(texts, dtype=pl.String)


def kept(frame: pl.DataFrame, keep: Mapping[str, str]) -> list[str | None]:
    """Each row's kept values as a JSON object by results column; None for all when nothing is kept."""
    if not keep:
        return [None] * frame.height
    names = list(keep.values())
    return [dump(dict(zip(names, values, strict=True))) for values in _rows(frame, list(keep))]


def named_rows(frame: pl.DataFrame, columns: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Each row as a mapping of these columns; an empty one for each row when there are none."""
    if not columns:
        return ({} for _ in range(frame.height))
    rows = (dict(zip(columns, values, strict=True)) for values in _rows(frame, columns))
    return map(_with_late_fields, rows) if LATE_FIELDS in columns else rows


def _with_late_fields(row: dict[str, Any]) -> dict[str, Any]:
    late = row.pop(LATE_FIELDS)
    return {**row, **late} if late else row


def _rows(frame: pl.DataFrame, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of these columns row by row; half the time of polars' own iter_rows."""
    return zip(*(frame.get_column(name).to_list() for name in columns), strict=True)


def row_hashes(frame: pl.DataFrame, columns: Sequence[str]) -> list[bytes]:
    """16 bytes for each row: a hash of the values of `columns`, which are what the request is made of.

    Values are hashed by their text, each with its column and length, so that no two different rows run together;
    the same value as CSV text or as a Parquet number is the same.
    """
    if not columns:
        return [hashlib.blake2b(digest_size=16).digest()] * frame.height
    names = sorted(column for column in columns if column != LATE_FIELDS)
    texts = [_text(frame.get_column(name)) for name in names]
    is_long = sum(text.estimated_size() for text in texts) > LONG_ROW * frame.height
    values = _long_rows(names, texts) if is_long else _short_rows(names, texts)
    if LATE_FIELDS in columns:
        values = map(_with_late_text, values, frame.get_column(LATE_FIELDS).to_list())
    return [hashlib.blake2b(value, digest_size=16).digest() for value in values]


def _short_rows(names: Sequence[str], texts: Sequence[pl.Series]) -> list[bytes]:
    """What row_hashes are made of: each value behind its column and length."""
    frame = pl.DataFrame([text.alias(f"c{i}") for i, text in enumerate(texts)])
    parts = [_tagged(name, f"c{i}") for i, name in enumerate(names)]
    return frame.select(pl.concat_str(parts, separator=_BETWEEN).cast(pl.Binary)).to_series().to_list()


def _long_rows(names: Sequence[str], texts: Sequence[pl.Series]) -> Iterator[bytes]:
    """The same, row by row: with long values the copies that polars makes on the way cost more than that."""
    heads = [f"{_BETWEEN if i else ''}{name}:".encode() for i, name in enumerate(names)]
    for row in zip(*(text.cast(pl.Binary).to_list() for text in texts), strict=True):
        parts: list[bytes] = []
        for head, value in zip(heads, row, strict=True):
            parts += (head, b"null") if value is None else (b"%b%d:" % (head, len(value)), value)
        yield b"".join(parts)


def _with_late_text(value: bytes, late: Mapping[str, Any] | None) -> bytes:
    """What a row_hash is made of. A row without such fields has the hash that it has without the column of them."""
    if not late:
        return value
    text = json_text({name: late[name] for name in sorted(late)})
    return f"{_BETWEEN}{LATE_FIELDS}:{len(text)}:{text}".encode() + value


def shown(key: str) -> str:
    """A key as people write it: its values with commas between."""
    return ",".join(str(value) for value in orjson.loads(key))


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
        return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"))


class _LargeInteger(Exception):
    """There is an integer that orjson does not write."""


def _dumped(value: Any) -> str:
    try:
        return orjson.dumps(value, default=_plain, option=_JSON_OPTIONS).decode()
    except orjson.JSONEncodeError as exc:
        if "64-bit" in str(exc):
            raise _LargeInteger from exc
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


def _tagged(name: str, column: str) -> pl.Expr:
    text = pl.col(column)
    present = pl.concat_str([pl.lit(f"{name}:"), text.str.len_bytes().cast(pl.String), pl.lit(":"), text])
    return pl.when(text.is_null()).then(pl.lit(f"{name}:null")).otherwise(present)


def _text(column: pl.Series) -> pl.Series:
    """The values as text, each the same whatever the values beside it are."""
    if column.dtype == pl.Object:
        return pl.Series([_text_of(value) for value in column.to_list()], dtype=pl.String)
    if column.dtype.is_nested():
        values = [None if value is None else dump(_listed(value)) for value in column.to_list()]
        return pl.Series(values, dtype=pl.String)
    return column.bin.encode("base64") if column.dtype == pl.Binary else column.cast(pl.String)


def _text_of(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json_text(value)
    if is_large(value):
        return str(value)
    text: str = pl.Series([value]).cast(pl.String)[0]
    return text


def _listed(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"a value of type {type(value).__name__} cannot be kept")
