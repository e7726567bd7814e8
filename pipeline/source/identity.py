"""Compute keys, row_hashes and kept values for all rows of a chunk. Pure."""

import base64
import datetime
import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import orjson
import polars as pl

from pipeline import escapes
from pipeline.job.json_values import Unprintable, dump, is_large, json_text, text_to_hash
from pipeline.source import exact, legacy
from pipeline.source.frames import LATE_FIELDS

_BETWEEN = "\x1f"
_ESCAPED = r'["\\\x00-\x1f]'  # characters that JSON text has to escape
_ONE_NUMBER = r"^\[-?[0-9]+\]$"
LONG_ROW = 3_000  # mean bytes of a row, from which rows are joined one by one
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)


def columns_of(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Return a frame of these columns, by exact name: `select` would read `^a.*$` as a pattern."""
    return pl.DataFrame({name: frame.get_column(name) for name in names})


def keys(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return each row's key: a JSON array of the values of its key columns, like '["acme",17]'."""
    return key_column(frame, columns).to_list()


def key_column(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Return each row's key, as `keys` does, as a series."""
    plain = [frame.get_column(name) for name in columns]
    if all(_is_plain(column) for column in plain):  # joined in bulk, to the same text that `dump` writes
        texts = pl.DataFrame([column.cast(pl.String).alias(f"c{i}") for i, column in enumerate(plain)])
        quotes = ['"' if column.dtype == pl.String else "" for column in plain]
        parts = [pl.format(f"{quote}{{}}{quote}", pl.col(f"c{i}")) for i, quote in enumerate(quotes)]
        return texts.select(pl.format("[{}]", pl.concat_str(parts, separator=",")).alias("key")).to_series()
    plain = [column + 0.0 if column.dtype.is_float() else column for column in plain]  # -0.0 is the same key as 0.0
    lists = zip(*(exact.values_of(column) for column in plain), strict=True)
    return pl.Series("key", [dump(values) for values in lists], dtype=pl.String)


def key_rank(key: str) -> bytes:
    """Return a hash of a key (JSON) by which samples are drawn: the rows with the smallest are the same each time."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def older_keys(frame: pl.DataFrame, columns: Sequence[str], types: Mapping[str, Any]) -> pl.Series | None:
    """Return the keys that older versions computed, before some conversions became exact; None if all are equal.

    types: see `older_hashes`.
    """
    older = {name: legacy.key_values(frame.get_column(name), types.get(name)) for name in columns}
    if all(values is None for values in older.values()):
        return None
    return key_column(pl.DataFrame({n: frame.get_column(n) if v is None else v for n, v in older.items()}), columns)


def _is_plain(column: pl.Series) -> bool:
    """Return whether the JSON of each value is its text, in quotes for texts, without any escape."""
    if column.null_count():
        return False
    if column.dtype == pl.String:
        return not column.str.contains(_ESCAPED).any()
    return column.dtype in _INTEGERS


def key_texts(keys: pl.Series) -> pl.Series:
    """Return keys with all values as texts, so that 17 and "17" are equal: a person could not tell them apart."""
    if keys.str.contains(_ONE_NUMBER).all():
        numbers = pl.DataFrame([keys.str.strip_chars("[]").alias("number")])
        return numbers.select(pl.format('["{}"]', pl.col("number"))).to_series()
    if (keys.str.starts_with('["') & ~keys.str.contains(",", literal=True)).all():
        return keys
    lists = map(orjson.loads, keys.to_list())
    texts = [dump([value if isinstance(value, str) else dump(value) for value in values]) for values in lists]
    return pl.Series(texts, dtype=pl.String)


def kept(frame: pl.DataFrame, keep: Mapping[str, str]) -> list[str | None]:
    """Return each row's kept values as a JSON object; None for all if nothing is kept.

    keep: source column to the results column, which names the value in the object.
    """
    if not keep:
        return [None] * frame.height
    names = list(keep.values())
    return [dump(dict(zip(names, values, strict=True))) for values in _rows(frame, list(keep))]


def named_rows(
    frame: pl.DataFrame, columns: Sequence[str], *, as_bytes: Container[str] = ()
) -> Iterable[dict[str, Any]]:
    """Return each row as a mapping from column to value; an empty mapping for each row if there are no columns.

    as_bytes: the columns whose binary values stay bytes, for attachments; others become text.
    """
    if not columns:
        return ({} for _ in range(frame.height))
    rows = (dict(zip(columns, values, strict=True)) for values in _rows(frame, columns, as_bytes))
    return map(_with_late_fields, rows) if LATE_FIELDS in columns else rows


def _with_late_fields(row: dict[str, Any]) -> dict[str, Any]:
    late = row.pop(LATE_FIELDS)
    return {**row, **late} if late else row


def _rows(frame: pl.DataFrame, columns: Sequence[str], as_bytes: Container[str] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the values of these columns row by row, in half the time of polars' own iter_rows."""
    found = ((name, frame.get_column(name)) for name in columns)
    return zip(*(one.to_list() if name in as_bytes else exact.values_of(one) for name, one in found), strict=True)


def row_hashes(frame: pl.DataFrame, columns: Sequence[str]) -> list[bytes]:
    """Return each row's row_hash, 16 bytes: a hash of the columns from which the request is made.

    Each value is hashed by its text, with its column and length, so that different rows have different input. The same
    value gives the same hash, whether it is CSV text or a number in Parquet.
    """
    if not columns:
        return [hashlib.blake2b(digest_size=16).digest()] * frame.height
    names = sorted(column for column in columns if column != LATE_FIELDS)
    late = frame.get_column(LATE_FIELDS).to_list() if LATE_FIELDS in columns else None
    return _hashes(names, [_text(frame.get_column(name)) for name in names], late)


def older_hashes(frame: pl.DataFrame, columns: Sequence[str], types: Mapping[str, Any]) -> list[bytes] | None:
    """Return the row_hashes that older versions computed, before some conversions became exact; None if all are equal.

    types: the Arrow types of the columns in their file; columns of text files have none.
    """
    names = sorted(column for column in columns if column != LATE_FIELDS)
    texts = [legacy.text(frame.get_column(name), types.get(name), _text_of) for name in names]
    late = LATE_FIELDS in columns and any(frame.get_column(LATE_FIELDS).to_list())
    if not late and all(text is None for text in texts):
        return None
    both = zip(names, texts, strict=True)
    return _hashes(names, [_text(frame.get_column(name)) if text is None else text for name, text in both], None)


def _hashes(
    names: Sequence[str], texts: Sequence[pl.Series], late: Sequence[Mapping[str, Any] | None] | None
) -> list[bytes]:
    rows = len(texts[0]) if texts else len(late or ())
    is_long = sum(text.estimated_size() for text in texts) > LONG_ROW * rows
    values: Iterable[bytes] = _long_rows(names, texts) if is_long else _short_rows(names, texts)
    if late is not None:
        values = map(_with_late_text, values, late)
    return [hashlib.blake2b(value, digest_size=16).digest() for value in values]


def _short_rows(names: Sequence[str], texts: Sequence[pl.Series]) -> list[bytes]:
    """Return the input of each row_hash: each value after its column and length."""
    frame = pl.DataFrame([text.alias(f"c{i}") for i, text in enumerate(texts)])
    parts = [_tagged(name, f"c{i}", nulls=bool(texts[i].null_count())) for i, name in enumerate(names)]
    return frame.select(pl.concat_str(parts, separator=_BETWEEN).cast(pl.Binary)).to_series().to_list()


def _long_rows(names: Sequence[str], texts: Sequence[pl.Series]) -> Iterator[bytes]:
    """Yield the input of each row_hash, row by row: faster for long values, because polars copies them twice."""
    rows = zip(*(text.cast(pl.Binary).to_list() for text in texts), strict=True)
    heads = [f"{_BETWEEN if i else ''}{name}:".encode() for i, name in enumerate(names)]
    pattern = b"".join(head.replace(b"%", b"%%") + b"%d:%b" for head in heads)
    for row in rows:
        if None not in row:
            yield pattern % tuple(chain.from_iterable((len(value), value) for value in row))
            continue
        parts: list[bytes] = []
        for head, value in zip(heads, row, strict=True):
            parts += (head, b"null") if value is None else (b"%b%d:" % (head, len(value)), value)
        yield b"".join(parts)


def _with_late_text(value: bytes, late: Mapping[str, Any] | None) -> bytes:
    """Return the input of a row_hash with the row's late fields added; unchanged if it has none."""
    if not late:
        return value
    text = json_text({name: late[name] for name in sorted(late)})
    return f"{_BETWEEN}{LATE_FIELDS}:{len(text)}:{text}".encode() + value


def shown(key: str) -> str:
    """Return a key for people: its values with commas between them; JSON if it has characters that cannot be shown."""
    text = joined(key)
    return text if escapes.is_plain(text) else escapes.json_text(orjson.loads(key), ascii_only=True)


def joined(key: str) -> str:
    """Return a key's values with commas between them, without any escape."""
    return ",".join(str(value) for value in orjson.loads(key))


def _tagged(name: str, column: str, *, nulls: bool) -> pl.Expr:
    """Return an expression that puts a column's name and the value's length in front of each value.

    nulls: whether some values are null.
    """
    text = pl.col(column)
    present = pl.concat_str([pl.lit(f"{name}:"), text.str.len_bytes().cast(pl.String), pl.lit(":"), text])
    return pl.when(text.is_null()).then(pl.lit(f"{name}:null")).otherwise(present) if nulls else present


def _text(column: pl.Series) -> pl.Series:
    """Return the values as text; the text of a value does not depend on the other values."""
    if column.dtype == pl.Object:
        return pl.Series([_text_of(value) for value in column.to_list()], dtype=pl.String)
    if column.dtype == pl.Binary:
        return pl.Series([None if v is None else _text_of_bytes(v) for v in column.to_list()], dtype=pl.String)
    if column.dtype.is_nested():
        return pl.Series([_text_of(value) for value in exact.values_of(column)], dtype=pl.String)
    text = column.cast(pl.String)
    if column.dtype == pl.Time:  # polars writes whole seconds only
        return text.zip_with((column.to_physical() % 1_000_000_000 == 0).fill_null(value=True), _texts(column))
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_unit == "ns":  # see legacy.py
        return text.zip_with((column.to_physical() % 1_000 == 0).fill_null(value=True), _texts(column))
    return text


def _text_of_bytes(value: bytes) -> str:
    text = exact.text_of(value)
    return base64.b64encode(value).decode() if isinstance(text, Unprintable) else text


def _texts(column: pl.Series) -> pl.Series:
    return pl.Series([_text_of(value) for value in exact.values_of(column)], dtype=pl.String)


def _text_of(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Unprintable):
        return f"\0{value.reason}"  # so the reasons may never be reworded
    if isinstance(value, dict | list):
        return text_to_hash(value)
    if is_large(value):
        return str(value)
    if isinstance(value, datetime.time):
        return value.isoformat()
    text: str = pl.Series([value]).cast(pl.String)[0]
    return text
