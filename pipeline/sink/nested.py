"""What are an answer's lists and objects in a file: which JSON values, and which types of Arrow? Edge: SQL.

The results table holds them as JSON text. A file has the type that the schema says, if all runs of the job that had the
column say the same; what a schema leaves open is JSON text there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
from sqlalchemy import Connection, select

from pipeline.answer.schema import Described, describe
from pipeline.job.json_schema import SchemaProblem, alternatives
from pipeline.sink.columns import ResultColumns
from pipeline.state.jobs import JobRecord
from pipeline.state.tables import runs

DEEPEST = 12  # levels of lists and objects that get a type
EXTRAS = ("citations", "tool_use", "server_tool_use")  # columns beside those of the schema that hold JSON

Convert = Callable[[Any], Any]


class Misfit(Exception):
    """A value that a column's type does not hold exactly. column: which one."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class Nested(NamedTuple):
    """A column of lists or objects. type: its Arrow type; None where that is text. convert: a value as the type has it.

    convert raises ValueError for a value that does not fit.
    """

    type: Any = None
    convert: Convert = lambda value: value


Nesteds = Mapping[str, Nested]  # by column; the others are as the database has them


def of(conn: Connection, job: JobRecord, columns: ResultColumns) -> dict[str, Nested]:
    """The job's columns of lists or objects."""
    as_json = {name for kinds in (columns.keep, columns.output) for name, kind in kinds.items() if kind == "json"}
    found: dict[str, list[Nested | None]] = {name: [] for name in as_json}
    for name in as_json:
        if name in columns.keep or name in EXTRAS:
            found[name].append(Nested())
    for described_by_name in _outputs(conn, job.id):
        for name, described in described_by_name.items():
            if name in as_json:
                found[name].append(_nested(described))
    return {name: one for name, each in found.items() if (one := _common(each)) is not None}


def _outputs(conn: Connection, job_id: int) -> Iterator[dict[str, Described]]:
    """What each output that the job has had says of its columns."""
    seen: set[bytes] = set()
    for stored in conn.scalars(select(runs.c.job).where(runs.c.job_id == job_id)):
        output = stored.get("output") or {}
        schema = output.get("schema") or output.get("schema_")
        if output.get("tool"):
            tools = (stored["request"].get("params") or {}).get("tools") or []
            schema = next((tool.get("input_schema") for tool in tools if tool.get("name") == output["tool"]), None)
        asked = orjson.dumps([schema, output.get("columns")])
        if schema and asked not in seen:
            seen.add(asked)
            try:
                yield describe(schema, output.get("columns") or {})
            except SchemaProblem:  # an older version took it
                continue


def _common(each: list[Nested | None]) -> Nested | None:
    """What all of them say; None where one says that the column may hold something else."""
    known = [one for one in each if one is not None]
    if not known or len(known) < len(each):
        return None
    same = all(one.type is not None and one.type == known[0].type for one in known)
    return known[0] if same else Nested()


def _nested(described: Described) -> Nested | None:
    """The column as one schema says it; None if its values may be others than lists and objects."""
    try:
        kinds = {one.get("type") for one in alternatives(described.node, described.root)}
        if not kinds or not kinds <= {"array", "object"}:
            return None
        kind, convert = _typed(described.node, described.root, described.without, DEEPEST)
    except SchemaProblem:
        return None
    return Nested() if pa.types.is_string(kind) else Nested(kind, convert)


_Typed = tuple[Any, Convert]


def _typed(node: Any, root: dict[str, Any], without: tuple[tuple[str, ...], ...], deeper: int) -> _Typed:
    """The Arrow type of a part of a schema, and what makes its values of JSON ones."""
    kinds = list(alternatives(node, root))
    types = {one.get("type") for one in kinds}
    if types == {"integer", "number"}:
        return _SIMPLE["number"]
    if len(kinds) != 1 or not deeper:
        return _SIMPLE["string"] if types == {"string"} else _TEXT
    [one] = kinds
    if one.get("type") in _SIMPLE:
        return _SIMPLE[one["type"]]
    if one.get("type") == "array":
        return _list(*_typed(one["items"], root, (), deeper - 1)) if "items" in one else _TEXT
    if one.get("type") == "object" and one.get("properties") and one.get("additionalProperties") is False:
        return _struct(one["properties"], root, without, deeper - 1)
    return _TEXT


def _list(kind: Any, convert: Convert) -> _Typed:
    def converted(value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("no list")  # noqa: TRY004  # as for every other misfit
        return [None if each is None else convert(each) for each in value]

    return pa.list_(kind), converted


def _struct(
    properties: Mapping[str, Any], root: dict[str, Any], without: tuple[tuple[str, ...], ...], deeper: int
) -> _Typed:
    fields: dict[str, _Typed] = {}
    for name, node in properties.items():
        if (name,) not in without:
            inner = tuple(path[1:] for path in without if path[0] == name)
            fields[name] = _typed(node, root, inner, deeper)
    if not fields:
        return _TEXT  # Parquet has no object without fields
    converts = {name: convert for name, (_, convert) in fields.items()}

    def converted(value: Any) -> Any:
        if not isinstance(value, dict) or not value.keys() <= converts.keys():
            raise ValueError("no such object")
        return {name: None if each is None else converts[name](each) for name, each in value.items()}

    return pa.struct([pa.field(name, kind) for name, (kind, _) in fields.items()]), converted


def _of_type(*kinds: type) -> Convert:
    def same(value: Any) -> Any:
        if type(value) not in kinds:
            raise ValueError("another type")
        return value

    return same


def _integer(value: Any) -> int:
    if type(value) not in (int, float) or value != int(value) or not -(2**63) <= value < 2**63:
        raise ValueError("no integer of 64 bits")
    return int(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or (type(value) is int and abs(value) > 2**53):
        raise ValueError("no number of double precision")
    return float(value)


def _json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


_TEXT: _Typed = (pa.string(), _json_text)
_SIMPLE: dict[str, _Typed] = {
    "string": (pa.string(), _of_type(str)),
    "boolean": (pa.bool_(), _of_type(bool)),
    "integer": (pa.int64(), _integer),
    "number": (pa.float64(), _number),
}


def value_of(text: Any) -> Any:
    """The list or object that a column of such holds; what is neither is left as it is."""
    if not isinstance(text, str) or not text.startswith(("[", "{")):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def array(column: str, nested: Nested, texts: list[Any]) -> Any:
    """The column's texts as an Arrow array of its type. Raises Misfit."""
    try:
        values = [None if text is None else nested.convert(value_of(text)) for text in texts]
    except (ValueError, OverflowError) as exc:
        raise Misfit(column) from exc
    return pa.array(values, nested.type)
