"""Convert Arrow values to Python values whose text is exact. Pure.

A Python value has a type that templates, JSON and polars know (text, number, boolean, date, ...). What Python has no
exact type for becomes its standard text: a duration, nanoseconds, bytes that are text. Anything else becomes an
`Unprintable`. Its reason is part of the row_hash (see identity.py): a reworded reason would send rows again.
"""

import datetime
import functools
import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa

from pipeline.job.json_values import Nanoseconds, Unprintable

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001  # for columns without a time zone
_UTC_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_DAYS = range((datetime.date.min - _EPOCH.date()).days, (datetime.date.max - _EPOCH.date()).days + 1)


# -- types -----------------------------------------------------------------------------------------------------------


def refusal(kind: Any) -> str | None:
    """Return why a column of this Arrow type cannot be read; None if it can."""
    if isinstance(kind, pa.BaseExtensionType):
        known = isinstance(kind, pa.UuidType | pa.JsonType | pa.Bool8Type)
        return None if known else f"values of the extension type {kind.extension_name} have no standard text"
    if pa.types.is_union(kind):
        return "a union has values of several types"
    return next((why for why in map(refusal, _inner(kind)) if why is not None), None)


def is_plain(kind: Any) -> bool:
    """Return whether polars holds all values of this Arrow type unchanged."""
    known = pa.types
    if isinstance(kind, pa.BaseExtensionType) or known.is_map(kind) or known.is_union(kind):
        return False
    if known.is_dictionary(kind):
        return is_plain(kind.value_type) and not known.is_nested(kind.value_type)
    if known.is_decimal(kind):
        return bool(kind.bit_width <= 128 and 0 <= kind.scale <= kind.precision)
    if known.is_timestamp(kind):
        return bool(kind.unit != "s")  # polars converts seconds to milliseconds, and some are too large for that
    if known.is_duration(kind) or known.is_interval(kind) or known.is_run_end_encoded(kind):
        return False
    return not (known.is_list_view(kind) or known.is_large_list_view(kind)) and all(map(is_plain, _inner(kind)))


def is_comparable(kind: Any) -> bool:
    """Return whether the statistics of a file apply to a frame's values of this Arrow type."""
    return is_plain(kind) and not _is_binary(kind)


def _inner(kind: Any) -> Iterable[Any]:
    return [kind.field(i).type for i in range(kind.num_fields)] if pa.types.is_nested(kind) else []


def family(kind: Any) -> Any:
    """Return a value that is equal for Arrow types that only store values differently; None for the null type."""
    known = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return str(kind)
    if known.is_null(kind):
        return None
    if known.is_dictionary(kind) or known.is_run_end_encoded(kind):
        return family(kind.value_type)
    if known.is_string(kind) or known.is_large_string(kind) or known.is_string_view(kind):
        return "string"
    if _is_binary(kind):
        return "binary"
    if known.is_integer(kind):
        return "integer"
    if known.is_timestamp(kind):
        return ("timestamp", kind.tz)
    if known.is_time(kind) or known.is_duration(kind):
        return "time" if known.is_time(kind) else "duration"
    if known.is_decimal(kind):
        return ("decimal", kind.scale)
    if known.is_struct(kind):
        return ("struct", *((kind.field(i).name, family(kind.field(i).type)) for i in range(kind.num_fields)))
    if known.is_nested(kind):
        return ("map" if known.is_map(kind) else "list", *map(family, _inner(kind)))
    return str(kind)


# -- columns of frames -----------------------------------------------------------------------------------------------


def series(array: Any) -> pl.Series:
    """Return an Arrow array as a polars series; values that polars has no type for become texts or objects."""
    kind = array.type
    if pa.types.is_run_end_encoded(kind):
        import pyarrow.compute as pc  # 70 ms that few sources need

        return series(pc.run_end_decode(array))
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pl.Series(_milliseconds(array))
    if is_plain(kind):
        return pl.Series(array)
    found = values(array)
    if not pa.types.is_nested(kind) and not any(type(value) is Unprintable for value in found):
        texts = [str(value) if isinstance(value, uuid.UUID) else value for value in found]
        return pl.Series(texts, dtype=pl.Boolean if isinstance(kind, pa.Bool8Type) else pl.String)
    return pl.Series(found, dtype=pl.Object)


def _milliseconds(array: Any) -> Any:
    """Convert seconds to milliseconds; those that are too large become values beyond the year 9999, or before 1."""
    most = pa.scalar(2**53, pa.int64())
    seconds = array.cast(pa.int64())
    import pyarrow.compute as pc  # 70 ms that few sources need

    within = pc.min_element_wise(
        pc.max_element_wise(seconds, pc.negate(most), skip_nulls=False), most, skip_nulls=False
    )
    return pc.multiply(within, 1000).cast(pa.timestamp("ms", array.type.tz))


def values_of(column: pl.Series) -> list[Any]:
    """Return the values of a polars series as Python values, None for null."""
    dtype = column.dtype
    if dtype == pl.Binary:
        return [None if value is None else text_of(value) for value in column.to_list()]
    if _fits_python(dtype) or not _may_not_fit_python(column):
        return column.to_list()
    return values(column.to_arrow())


def first_unstorable(column: pl.Series) -> tuple[int, str] | None:
    """Return index and reason of the first value that a key or results table cannot hold; None if there is none."""
    if _fits_python(column.dtype) and column.dtype != pl.Object:
        return None
    for i, value in enumerate(values_of(column)):
        if isinstance(value, Unprintable):
            return i, value.reason
        if isinstance(column.dtype, pl.Datetime) and isinstance(value, Nanoseconds):
            return i, f"{value} has nanoseconds, and a results table can hold only microseconds"
    return None


def _fits_python(dtype: pl.DataType) -> bool:
    """Return whether Python's types hold every value of this polars type."""
    if isinstance(dtype, pl.List | pl.Array):
        return _fits_python(dtype.inner)  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return all(_fits_python(field.dtype) for field in dtype.fields)  # type: ignore[arg-type]
    return not (dtype.is_temporal() or dtype.is_nested() or dtype == pl.Binary)


def _may_not_fit_python(column: pl.Series) -> bool:
    """Return whether Python's types may not hold one of the column's values; dates and times are checked exactly."""
    dtype = column.dtype
    if not isinstance(dtype, pl.Date | pl.Datetime | pl.Time):
        return True
    counts = column.to_physical()
    low, high = counts.min(), counts.max()
    if low is None or high is None:
        return False
    if isinstance(dtype, pl.Time):
        return bool((counts % 1000 != 0).any())
    per_day = 1 if isinstance(dtype, pl.Date) else 86_400 * 1_000_000_000 // _NANOSECONDS[dtype.time_unit]
    # one day less on either side, because a time zone may shift the date
    far = low < (_DAYS.start + 1) * per_day or high > (_DAYS.stop - 2) * per_day  # type: ignore[operator]
    return bool(far or (isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns" and (counts % 1000 != 0).any()))


# -- values ----------------------------------------------------------------------------------------------------------


def values(array: Any) -> list[Any]:
    """Return the values of an Arrow array as Python values, None for null."""
    if isinstance(array, pa.ChunkedArray):
        return list(itertools.chain.from_iterable(map(values, array.chunks)))
    kind, known = array.type, pa.types
    if known.is_dictionary(kind):
        return values(array.dictionary_decode())
    if known.is_run_end_encoded(kind):
        import pyarrow.compute as pc  # 70 ms that few sources need

        return values(pc.run_end_decode(array))
    if isinstance(kind, pa.BaseExtensionType):
        return _of_extension(array)
    if known.is_nested(kind):
        return _of_nested(array)
    convert = _converter(kind)
    if convert is None:
        found: list[Any] = array.to_pylist()
        return found
    counted = known.is_temporal(kind) and not known.is_interval(kind)
    raw = array.cast(pa.int64() if kind.bit_width == 64 else pa.int32()).to_pylist() if counted else array.to_pylist()
    return [None if value is None else convert(value) for value in raw]


def _converter(kind: Any) -> Callable[[Any], Any] | None:
    """Return the function that converts a value of this Arrow type; None if pyarrow's own conversion is exact.

    It gets the stored number for dates, times and durations, and pyarrow's Python value for other types.
    """
    known = pa.types
    if known.is_date32(kind):
        return _date
    if known.is_timestamp(kind) or known.is_date64(kind):
        unit, zone = ("ms", None) if known.is_date64(kind) else (kind.unit, kind.tz)
        return functools.partial(_timestamp, unit=_NANOSECONDS[unit], zone=zone)
    if known.is_time(kind):
        return lambda value: _time(value * _NANOSECONDS[kind.unit])
    if known.is_duration(kind):
        return lambda value: _duration(value * _NANOSECONDS[kind.unit])
    if known.is_interval(kind):
        return _interval
    if known.is_decimal(kind):
        return (lambda value: format(value, "f")) if not is_plain(kind) else None
    return text_of if _is_binary(kind) else None


def _is_binary(kind: Any) -> bool:
    known = pa.types
    views = known.is_binary_view(kind)
    return bool(views or known.is_binary(kind) or known.is_large_binary(kind) or known.is_fixed_size_binary(kind))


def text_of(value: bytes) -> str | Unprintable:
    """Decode bytes as UTF-8, because some programs store texts as binary. Unprintable for other bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Unprintable(f"a value is bytes that are no UTF-8 text ({value[:12].hex()}...)")


def _of_extension(array: Any) -> list[Any]:
    found = array.storage.to_pylist()
    if isinstance(array.type, pa.UuidType):
        return [None if value is None else uuid.UUID(bytes=value) for value in found]
    if isinstance(array.type, pa.Bool8Type):
        return [None if value is None else bool(value) for value in found]
    return list(found)


def _of_nested(array: Any) -> list[Any]:
    kind, known = array.type, pa.types
    present = array.is_valid().to_pylist()
    if known.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        if len(set(names)) < len(names):
            return [Unprintable("a structure has two fields of one name") if there else None for there in present]
        fields = [values(field) for field in array.flatten()]
        rows = zip(*fields, strict=True) if fields else itertools.repeat(())
        return [
            _or_unprintable(dict(zip(names, row, strict=True))) if there else None
            for there, row in zip(present, rows, strict=False)
        ]
    if known.is_map(kind):
        return [_pairs(one) if there else None for there, one in zip(present, _lists(array), strict=True)]
    return [_or_unprintable(one) if there else None for there, one in zip(present, _lists(array), strict=True)]


def _lists(array: Any) -> Iterable[list[Any]]:
    """Return each list of an array as its values; an empty list for null. A map gives lists of pairs."""
    if pa.types.is_map(array.type):
        rows = [one if one is not None else [] for one in array.to_pylist()]
        keys = values(pa.array([k for row in rows for k, _ in row], array.type.key_type))
        items = iter(zip(keys, values(_items(array)), strict=True))
        return [[next(items) for _ in row] for row in rows]
    import pyarrow.compute as pc  # 70 ms that few sources need

    lengths = [length or 0 for length in pc.list_value_length(array).to_pylist()]
    inner = iter(values(array.flatten()))
    return [list(itertools.islice(inner, length)) for length in lengths]


def _items(array: Any) -> Any:
    """Return the values of the pairs of all maps in an array, without those of null maps."""
    return pa.concat_arrays([one.values.field(1) for one in array if one.is_valid] or [array.items[:0]])


def _pairs(pairs: Sequence[tuple[Any, Any]]) -> Any:
    """Return a map as a dict by the texts of its keys; an Unprintable if a key has no text or occurs twice."""
    texts = [key if isinstance(key, str) else _key(key) for key, _ in pairs]
    bad = next((text for text in texts if isinstance(text, Unprintable)), None)
    if bad is not None:
        return bad
    if len(set(texts)) < len(texts):
        return Unprintable("a map has one key twice")
    return _or_unprintable(dict(zip(texts, (value for _, value in pairs), strict=True)))


def _key(key: Any) -> Any:
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, datetime.date | datetime.time):
        return key.isoformat()
    return key if isinstance(key, Unprintable) else str(key)


def _or_unprintable(value: Any) -> Any:
    """Return the first Unprintable in a list or structure; the list or structure itself if there is none."""
    inner = value.values() if isinstance(value, dict) else value
    return next((one for one in inner if type(one) is Unprintable), value)


# -- dates and times -------------------------------------------------------------------------------------------------


def _date(days: int) -> Any:
    if days not in _DAYS:
        return Unprintable("a date is before year 1 or after year 9999")
    return _EPOCH.date() + datetime.timedelta(days=days)


def _timestamp(value: int, *, unit: int, zone: str | None) -> Any:
    """Return the time that is `value` units after the start of 1970. unit: in nanoseconds; zone: None for none."""
    micros, nanos = divmod(value * unit, 1000)
    try:
        found = (_EPOCH if zone is None else _UTC_EPOCH) + datetime.timedelta(microseconds=micros)
        found = found if zone is None else found.astimezone(_zone(zone))
    except OverflowError:
        return Unprintable("a time is before year 1 or after year 9999")
    return Nanoseconds(_with_nanos(found, nanos)) if nanos else found


@functools.cache
def _zone(name: str) -> datetime.tzinfo:
    """Return a time zone. name: a name of the time zone database, or an offset like +02:00."""
    if name[:1] in "+-" and name[1:3].isdigit():
        hours, minutes = int(name[1:3]), int(name[3:].lstrip(":") or 0)
        offset = datetime.timedelta(hours=hours, minutes=minutes)
        return datetime.timezone(-offset if name[0] == "-" else offset)
    return ZoneInfo(name)


def _with_nanos(value: datetime.datetime | datetime.time, nanos: int) -> str:
    """Return ISO text with nine decimals of the second. nanos: beyond the microseconds of `value`, 0 to 999."""
    text = value.isoformat(timespec="microseconds")
    end = text.index(".") + 7
    return f"{text[:end]}{nanos:03}{text[end:]}"


def _time(nanos: int) -> Any:
    micros, rest = divmod(nanos, 1000)
    if not 0 <= micros < 86_400_000_000:
        return Unprintable("a time of the day is not before 24:00")
    found = (_EPOCH + datetime.timedelta(microseconds=micros)).time()
    return Nanoseconds(_with_nanos(found, rest)) if rest else found


def duration(value: datetime.timedelta) -> str:
    """Return a duration as ISO 8601 text, like P1DT2H3M4.5S."""
    return _duration(value // datetime.timedelta(microseconds=1) * 1000)


def _duration(nanos: int) -> str:
    """Return a duration as ISO 8601 text, like P1DT2H3M4.5S."""
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    seconds, rest = divmod(nanos, 1_000_000_000)
    days, seconds = divmod(seconds, 86_400)
    return sign + "P" + _date_part(days=days) + _time_part(seconds, rest, is_all=not days)


def _interval(value: Any) -> str:
    """Return an interval as ISO 8601 text, each part with its sign, like P1M-2DT0.000000003S."""
    months, days, nanos = value
    seconds, rest = divmod(abs(nanos), 1_000_000_000)
    text = _date_part(months=months, days=days)
    time = _time_part(seconds, rest, is_all=not text)
    return "P" + text + ("T-" + time[1:].replace("H", "H-").replace("M", "M-") if nanos < 0 else time)


def _date_part(months: int = 0, days: int = 0) -> str:
    return (f"{months}M" if months else "") + (f"{days}D" if days else "")


def _time_part(seconds: int, nanos: int, *, is_all: bool) -> str:
    """Return the time part of ISO 8601 text. is_all: whether there is no date part, so that it must not be empty."""
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "")
    if nanos:
        parts += f"{seconds}." + f"{nanos:09}".rstrip("0") + "S"
    elif seconds or (is_all and not parts):
        parts += f"{seconds}S"
    return "T" + parts if parts else ""
