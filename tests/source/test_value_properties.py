"""Any value in a column of any name is exact in the request and in the table, or is refused."""

import datetime
import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, select

from pipeline.answer.outcome import Outcome
from pipeline.errors import SourceError
from pipeline.job.model import Job
from pipeline.planning.known_rows import KnownRows
from pipeline.planning.plan import Plan
from pipeline.sink.columns import ResultColumns
from pipeline.sink.definition import make_tables
from pipeline.sink.table import Fixed, ResultsTable
from pipeline.source import identity
from pipeline.states import RowState

few = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(lambda name: name != "id")
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIXED = Fixed("recipe", 0.0, 1, None, None, 1, datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC))
Row = tuple[dict[str, Any], dict[str, Any]]


def job_over(path: Path, names: list[str]) -> Job:
    """A job that prints each row as JSON, and keeps these columns as c0, c1, ..."""
    return Job.model_validate(
        {
            "name": "values",
            "source": {"path": str(path), "key": "id", "keep": [{name: f"c{i}"} for i, name in enumerate(names)]},
            "request": {"model": "claude-haiku-4-5", "max_tokens": 100, "prompt": "{{ row | tojson }}"},
            "sink": {"table": "answers"},
        }
    )


def through(job: Job) -> list[Row]:
    """What the request and a SQLite table have of each row, in the order of their keys. Raises SourceError."""
    plan = Plan(job)
    sink = ResultsTable("answers", ResultColumns.of(job, plan.source.kinds()))
    plan.quote(KnownRows(None, None))
    engine, asked = create_engine("sqlite://"), {}
    with engine.begin() as conn:
        make_tables(conn, sink, None)
        for chunk in plan.source.chunks():
            keys, keeps = identity.keys(chunk.frame, ["id"]), identity.kept(chunk.frame, job.source.keep)
            for key, keep, row in zip(keys, keeps, plan.source.request_values(chunk.frame), strict=True):
                params = orjson.loads(plan.builder.params(row).params)
                asked[orjson.loads(key)[0]] = json.loads(params["messages"][0]["content"])
                sink.write(conn, [sink.row(key, keep, Outcome(RowState.SUCCEEDED), FIXED)])
        held = {row["id"]: dict(row) for row in conn.execute(select(sink.table)).mappings()}
    engine.dispose()
    return [(asked[key], held[key]) for key in sorted(asked)]


def as_held(value: Any, beside: list[Any]) -> Any:
    """What a column has of a JSON value. beside: all values of the column, by which its kind is chosen."""
    kinds = {"integer" if large(v) is None else "text" for v in beside if type(v) is int}
    kinds |= {
        "json" if isinstance(v, dict | list) else str(type(v)) for v in beside if v is not None and type(v) is not int
    }
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return value
    return value if kinds in ({"integer"}, {str(float)}, {str(bool)}) else json.dumps(value)


def large(value: int) -> str | None:
    return None if -(2**63) <= value < 2**63 else str(value)


@few
@given(st.lists(st.dictionaries(NAMES, NESTED, max_size=4), min_size=1, max_size=3))
def test_an_object_of_ndjson_is_in_the_request_and_in_the_table(objects: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for one in objects for name in one))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.ndjson"
        file.write_text("\n".join(json.dumps({"id": i, **one}) for i, one in enumerate(objects)))

        found = through(job_over(file, names))

    for i, (one, (asked, held)) in enumerate(zip(objects, found, strict=True)):
        assert asked == {**dict.fromkeys(names), "id": i, **one}
        for j, name in enumerate(names):
            value, wanted = held[f"c{j}"], as_held(one.get(name), [other.get(name) for other in objects])
            if isinstance(wanted, dict | list):
                value = json.loads(value)
            elif type(wanted) is str and type(one.get(name)) is float:
                value, wanted = float(value), float(wanted)
            assert value == wanted


@few
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.data())
def test_texts_of_csv_are_in_the_request_and_in_the_table(names: list[str], data: st.DataObject) -> None:
    values = [data.draw(TEXT) for _ in names]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.csv"
        lines = [["id", *names], ["1", *values]]
        text = "\n".join(",".join('"' + field.replace('"', '""') + '"' for field in line) for line in lines)
        file.write_text(text, newline="", encoding="utf-8")

        ((asked, held),) = through(job_over(file, names))

    assert asked == {"id": "1", **dict(zip(names, values, strict=True))}
    assert [held[f"c{i}"] for i in range(len(names))] == values


# -- typed columns ---------------------------------------------------------------------------------------------------


class Refused(Exception):
    """The value has no exact text, or a table cannot hold it."""


NANOS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
YEAR_1, YEAR_10000 = -62_135_596_800 * 10**9, 253_402_300_800 * 10**9


def nanos_of(said: str) -> int:
    """Nanoseconds since 1970 of an ISO text."""
    digits = re.search(r"\.(\d+)", said)
    whole = datetime.datetime.fromisoformat(re.sub(r"\.\d+", "", said)).replace(tzinfo=datetime.UTC)
    seconds = (whole - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(seconds=1)
    return seconds * 10**9 + int((digits[1] if digits else "").ljust(9, "0"))


def moment(unit: str) -> Callable[[int, Any], bool]:
    def same(count: int, said: Any) -> bool:
        nanos = count * NANOS[unit]
        if not YEAR_1 <= nanos < YEAR_10000 or nanos % 1000:
            raise Refused
        return bool(nanos_of(str(said)) == nanos)

    return same


def span(unit: str) -> Callable[[int, Any], bool]:
    def same(count: int, said: Any) -> bool:
        parts = re.fullmatch(r"(-?)P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d+))?S)?)?", said)
        assert parts is not None
        sign, days, hours, minutes, seconds, digits = parts.groups(default="")
        whole = ((int(days or 0) * 24 + int(hours or 0)) * 60 + int(minutes or 0)) * 60 + int(seconds or 0)
        nanos = whole * 10**9 + int((digits or "").ljust(9, "0"))
        return bool((-nanos if sign else nanos) == count * NANOS[unit])

    return same


def same_bytes(value: bytes, said: Any) -> bool:
    try:
        return bool(value.decode() == said)
    except UnicodeDecodeError:
        raise Refused from None


COUNTS = st.integers(-(2**62), 2**62) | st.integers(-(10**12), 10**12) | st.integers(-5, 5)
SMALL_COUNTS = st.integers(-(10**9), 10**9)
#: Arrow type, values as their integers or as they are, and whether what is printed and held is the value.
KINDS: list[tuple[Any, st.SearchStrategy[Any], Callable[[Any, Any], bool]]] = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1), lambda value, said: int(said) == value),
    (pa.uint64(), st.integers(0, 2**64 - 1), lambda value, said: int(said) == value),
    (pa.float64(), st.floats(allow_nan=False, allow_infinity=False), lambda value, said: said == value),
    (pa.float32(), st.floats(allow_nan=False, allow_infinity=False, width=32), lambda value, said: said == value),
    (pa.bool_(), st.booleans(), lambda value, said: said is value),
    (pa.string(), TEXT, lambda value, said: said == value),
    (pa.large_string(), TEXT, lambda value, said: said == value),
    (pa.binary(), st.binary(max_size=4) | TEXT.map(str.encode), same_bytes),
    (pa.decimal128(38, 9), st.decimals(-(10**20), 10**20, places=9), lambda value, said: Decimal(said) == value),
    (pa.decimal256(70, 9), st.decimals(-(10**50), 10**50, places=9), lambda value, said: Decimal(said) == value),
    (pa.uuid(), st.uuids(), lambda value, said: UUID(said) == value and said == str(value)),
    *((pa.timestamp(unit), COUNTS, moment(unit)) for unit in NANOS),
    *((pa.duration(unit), SMALL_COUNTS, span(unit)) for unit in NANOS),
    (pa.list_(pa.string()), st.lists(TEXT | st.none(), max_size=3), lambda value, said: of_json(said) == value),
    (pa.list_(pa.int64()), st.lists(st.integers(-(2**63), 2**63 - 1)), lambda value, said: of_json(said) == value),
    (
        pa.struct([("a", pa.string()), ("b", pa.list_(pa.bool_()))]),
        st.fixed_dictionaries({"a": TEXT | st.none(), "b": st.lists(st.booleans()) | st.none()}),
        lambda value, said: of_json(said) == value,
    ),
    (
        pa.map_(pa.string(), pa.string()),
        st.dictionaries(TEXT, TEXT, max_size=3).map(lambda pairs: list(pairs.items())),
        lambda value, said: of_json(said) == dict(value),
    ),
]


def of_json(said: Any) -> Any:
    return json.loads(said) if isinstance(said, str) else said


def array_of(kind: Any, value: Any) -> Any:
    if isinstance(kind, pa.UuidType):
        return pa.ExtensionArray.from_storage(kind, pa.array([value.bytes], pa.binary(16)))
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return pa.array([value], pa.int64()).cast(kind)
    return pa.array([value], kind)


@few
@given(NAMES, st.sampled_from(range(len(KINDS))), st.data(), st.booleans())
def test_a_typed_value_is_in_the_request_and_in_the_table_or_is_refused(
    name: str, kind: int, data: st.DataObject, parquet: bool
) -> None:
    arrow, strategy, same = KINDS[kind]
    value = data.draw(strategy)
    table = pa.table({"id": [1], name: array_of(arrow, value)})
    with TemporaryDirectory() as folder:
        file = Path(folder) / "a.arrow"
        with pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
        if parquet and not (pa.types.is_timestamp(arrow) and arrow.unit == "s"):  # Parquet has no seconds
            file = Path(folder) / "a.parquet"
            pq.write_table(table, file)
        try:
            ((asked, held),) = through(job_over(file, [name]))
        except SourceError:
            with pytest.raises(Refused):
                same(value, None)
            return

    assert same(value, asked[name]), asked
    assert same(value, held["c0"]), held
