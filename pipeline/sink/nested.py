"""Convert the lists and objects of answers to JSON values and Arrow types for exported files. Edge: SQL.

The results table holds lists and objects as JSON text. In a file the column has the type that the job's JSON Schema
gives, if all runs of the job that had the column agree. Parts that the schema does not describe are JSON text.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from sqlalchemy import Connection, select

from pipeline.sink.columns import ResultColumns
from pipeline.state.jobs import JobRecord
from pipeline.state.tables import runs

if TYPE_CHECKING:
    from pipeline.answer.schema import Described

MAX_DEPTH = 12  # levels of lists and objects that get a type
EXTRAS = ("citations", "tool_use", "server_tool_use")  # columns with JSON that no schema describes

Convert = Callable[[Any], Any]


class TypeMismatch(Exception):
    """A value does not fit into the type of its column. column: its name."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class NestedColumn(NamedTuple):
    """A column of lists or objects.

    type: its Arrow type; None for JSON text. convert: turns a JSON value into a value of the type; raises ValueError
    for a value that does not fit.
    """

    type: Any = None
    convert: Convert = lambda value: value


NestedColumns = Mapping[str, NestedColumn]  # by name; only the columns of lists or objects


def nested_columns(conn: Connection, job: JobRecord, columns: ResultColumns) -> dict[str, NestedColumn]:
    """Return the job's columns that hold only lists or objects, by name. job: its row in the state database."""
    as_json = {name for kinds in (columns.keep, columns.output) for name, kind in kinds.items() if kind == "json"}
    found: dict[str, list[NestedColumn | None]] = {name: [] for name in as_json}
    for name in as_json:
        if name in columns.keep or name in EXTRAS:
            found[name].append(NestedColumn())
    for described_by_name in _outputs(conn, job.id):
        for name, described in described_by_name.items():
            if name in as_json:
                found[name].append(_nested(described))
    return {name: one for name, each in found.items() if (one := _common(each)) is not None}


def _outputs(conn: Connection, job_id: int) -> Iterator["dict[str, Described]"]:
    """Yield, for each different output that the job's runs had, what its schema says of each column."""
    seen: set[bytes] = set()
    for stored in conn.scalars(select(runs.c.job).where(runs.c.job_id == job_id)):
        output = stored.get("output") or {}
        schema = output.get("schema") or output.get("schema_")
        if output.get("tool"):
            tools = (stored["request"].get("params") or {}).get("tools") or []
            schema = next((tool.get("input_schema") for tool in tools if tool.get("name") == output["tool"]), None)
        asked = orjson.dumps([schema, output.get("columns")])
        if schema and asked not in seen:
            from pipeline.answer.schema import describe
            from pipeline.job.json_schema import SchemaProblem

            seen.add(asked)
            try:
                yield describe(schema, output.get("columns") or {})
            except SchemaProblem:  # an older version accepted this schema
                continue


def _common(each: list[NestedColumn | None]) -> NestedColumn | None:
    """Return the column on which all schemas agree; None if one schema allows other values than lists and objects."""
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None
    same = all(one.type is not None and one.type == known[0].type for one in known)
    return known[0] if same else NestedColumn()


def _nested(described: "Described") -> NestedColumn | None:
    """Return the column as one schema describes it; None if its values may be other than lists and objects."""
    import pyarrow as pa

    from pipeline.job.json_schema import SchemaProblem, alternatives

    try:
        kinds = {one.get("type") for one in alternatives(described.node, described.root)}
        if not kinds or not kinds <= {"array", "object"}:
            return None
        kind, convert = _typed(described.node, described.root, described.without, MAX_DEPTH)
    except SchemaProblem:
        return None
    return NestedColumn() if pa.types.is_string(kind) else NestedColumn(kind, convert)


_Typed = tuple[Any, Convert]


def _typed(node: Any, root: dict[str, Any], without: tuple[tuple[str, ...], ...], deeper: int) -> _Typed:
    """Return the Arrow type for a part of a schema, and the function that converts a JSON value to it.

    without: see answer.schema.Property. deeper: how many more levels get a type; the values below are JSON text.
    """
    from pipeline.job.json_schema import alternatives

    kinds = list(alternatives(node, root))
    types = {one.get("type") for one in kinds}
    if types == {"integer", "number"}:
        return _simple()["number"]
    if len(kinds) != 1 or not deeper:
        return _simple()["string"] if types == {"string"} else _text()
    [one] = kinds
    if one.get("type") in _simple():
        return _simple()[one["type"]]
    if one.get("type") == "array":
        return _list(*_typed(one["items"], root, (), deeper - 1)) if "items" in one else _text()
    if one.get("type") == "object" and one.get("properties") and one.get("additionalProperties") is False:
        return _struct(one["properties"], root, without, deeper - 1)
    return _text()


def _list(kind: Any, convert: Convert) -> _Typed:
    """Return the type and conversion of a list. kind, convert: of its elements."""
    import pyarrow as pa

    def converted(value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("not a list")  # noqa: TRY004  # the error for every value that does not fit
        return [None if each is None else convert(each) for each in value]

    return pa.list_(kind), converted


def _struct(
    properties: Mapping[str, Any], root: dict[str, Any], without: tuple[tuple[str, ...], ...], deeper: int
) -> _Typed:
    """Return the type and conversion of an object with these properties, as `_typed` does."""
    import pyarrow as pa

    fields: dict[str, _Typed] = {}
    for name, node in properties.items():
        if (name,) not in without:
            inner = tuple(path[1:] for path in without if path[0] == name)
            fields[name] = _typed(node, root, inner, deeper)
    if not fields:
        return _text()  # Parquet has no object without fields
    converts = {name: convert for name, (_, convert) in fields.items()}

    def converted(value: Any) -> Any:
        if not isinstance(value, dict) or not value.keys() <= converts.keys():
            raise ValueError("not an object with these properties")
        return {name: None if each is None else converts[name](each) for name, each in value.items()}

    return pa.struct([pa.field(name, kind) for name, (kind, _) in fields.items()]), converted


def _of_type(*kinds: type) -> Convert:
    """Return a conversion that returns values of these types unchanged, and raises ValueError for others."""

    def same(value: Any) -> Any:
        if type(value) not in kinds:
            raise ValueError("another type")
        return value

    return same


def _integer(value: Any) -> int:
    if type(value) not in (int, float) or value != int(value) or not -(2**63) <= value < 2**63:
        raise ValueError("not an integer of 64 bits")
    return int(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or (type(value) is int and abs(value) > 2**53):
        raise ValueError("not a number of double precision")
    return float(value)


def _json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _text() -> _Typed:
    """Return the type and conversion of a part that is written as JSON text."""
    import pyarrow as pa

    return pa.string(), _json_text


@functools.cache
def _simple() -> dict[str, _Typed]:
    """Return the type and conversion of each simple type of a JSON Schema."""
    import pyarrow as pa

    return {
        "string": (pa.string(), _of_type(str)),
        "boolean": (pa.bool_(), _of_type(bool)),
        "integer": (pa.int64(), _integer),
        "number": (pa.float64(), _number),
    }


def parsed_value(text: Any) -> Any:
    """Return the list or object in a JSON text; any other value is returned unchanged."""
    if not isinstance(text, str) or not text.startswith(("[", "{")):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def arrow_array(column: str, nested: NestedColumn, texts: list[Any]) -> Any:
    """Return a column's JSON texts as an Arrow array of its type. Raises TypeMismatch if one does not fit."""
    try:
        values = [None if text is None else nested.convert(parsed_value(text)) for text in texts]
    except (ValueError, OverflowError) as exc:
        raise TypeMismatch(column) from exc
    import pyarrow as pa

    return pa.array(values, nested.type)
