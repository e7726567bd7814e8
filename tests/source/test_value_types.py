"""The tables of types in docs/sources.md are correct: what a template prints, and what a results table holds."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pyarrow as pa
import pytest
from sqlalchemy import text

from pipeline.errors import SourceError
from pipeline.job.model import Job
from pipeline.source.rows import Rows
from tests.conftest import World
from tests.source.test_values import prompts

POSTGRESQL_IS_LONG = True
DOC = Path(__file__).parents[2] / "docs/sources.md"


class Type(NamedTuple):
    """A row of a table: the type's name, what a template prints of an example, the column's kind, what it holds.

    given: the example as its file or database has it.
    """

    name: str
    given: Any
    printed: str
    kind: str
    held: Any

    @property
    def row(self) -> str:
        """The row in the documentation."""
        return f"| {self.name} | `{self.printed}` | {self.kind} | `{self.held}` |"


def uuids(*values: UUID) -> Any:
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array([value.bytes for value in values], pa.binary(16)))


def json_texts(*values: str) -> Any:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(values))


_ID = UUID("00000000-0000-0000-0000-00000000000a")
_DAY, _SECOND = 20_777, 20_777 * 86_400 + 37_805  # 2026-11-20 10:30:05
_MAP = pa.map_(pa.string(), pa.int64())

ARROW = [
    Type("bool, bool8", pa.array([True]), "True", "boolean", "True"),
    Type("int8 to int64, uint8 to uint32", pa.array([17]), "17", "integer", "17"),
    Type("uint64", pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1), "text", str(2**64 - 1)),
    Type("float16, float32, float64", pa.array([1.5]), "1.5", "number", "1.5"),
    Type("decimal32 to decimal256", pa.array([Decimal("1.50")], pa.decimal256(60, 2)), "1.50", "text", "1.50"),
    Type("string, large_string, string_view, dictionary", pa.array(["a"]), "a", "text", "a"),
    Type("binary of any kind, if it is UTF-8 text", pa.array([b"hello"]), "hello", "text", "hello"),
    Type("date32", pa.array([_DAY], pa.date32()), "2026-11-20", "date", "2026-11-20"),
    Type(
        "date64", pa.array([_DAY * 86_400_000], pa.date64()), "2026-11-20 00:00:00", "datetime", "2026-11-20T00:00:00"
    ),
    Type("time32, time64", pa.array([1_500], pa.time32("ms")), "00:00:01.500000", "text", "00:00:01.500000"),
    Type("timestamp", pa.array([_SECOND], pa.timestamp("s")), "2026-11-20 10:30:05", "datetime", "2026-11-20T10:30:05"),
    Type(
        "timestamp with a time zone (in the table: in UTC)",
        pa.array([_SECOND], pa.timestamp("s", "Europe/Berlin")),
        "2026-11-20 11:30:05+01:00",
        "datetime",
        "2026-11-20T10:30:05",
    ),
    Type("duration", pa.array([93_784_500], pa.duration("ms")), "P1DT2H3M4.5S", "text", "P1DT2H3M4.5S"),
    Type("month_day_nano_interval", pa.array([pa.MonthDayNano([1, 2, 0])]), "P1M2D", "text", "P1M2D"),
    Type("UUID", uuids(_ID), str(_ID), "text", str(_ID)),
    Type("JSON (the extension type)", json_texts('{"a": 1}'), '{"a": 1}', "text", '{"a": 1}'),
    Type("list of any kind", pa.array([["a", None]]), '["a",null]', "json", '["a",null]'),
    Type("struct", pa.array([{"a": 1, "b": b"x"}]), '{"a":1,"b":"x"}', "json", '{"a":1,"b":"x"}'),
    Type("map, if no key occurs twice", pa.array([[("k", 1)]], _MAP), '{"k":1}', "json", '{"k":1}'),
    Type("run-end encoded", pa.RunEndEncodedArray.from_arrays([1], ["a"]), "a", "text", "a"),
]

CSV = [
    Type("none, or String", "08.50", "08.50", "text", "08.50"),
    Type("Int64, Int32", "08", "8", "integer", "8"),
    Type("Float64", "8.50", "8.5", "number", "8.5"),
    Type("Decimal", "8.50", "8.50", "text", "8.50"),
    Type("Boolean: true, false, t, f, 1, 0", "t", "True", "boolean", "True"),
    Type("Date", "2026-11-20", "2026-11-20", "date", "2026-11-20"),
    Type("Datetime", "2026-11-20 10:30:05", "2026-11-20 10:30:05", "datetime", "2026-11-20T10:30:05"),
    Type(
        "Datetime with an offset, or Z: in UTC",
        "2026-11-20T10:30:05+02:00",
        "2026-11-20 08:30:05",
        "datetime",
        "2026-11-20T08:30:05",
    ),
]
CSV_TYPES = [None, "Int64", "Float64", "Decimal", "Boolean", "Date", "Datetime", "Datetime"]

NDJSON = [
    Type("string", '"a"', "a", "text", "a"),
    Type("integer of 64 bits", "17", "17", "integer", "17"),
    Type("integer beyond 64 bits", "18446744073709551617", "18446744073709551617", "text", "18446744073709551617"),
    Type("number with a point or an exponent: a double", "1.50", "1.5", "number", "1.5"),
    Type("true, false", "true", "True", "boolean", "True"),
    Type("array", '[1, "a", null]', '[1,"a",null]', "json", '[1,"a",null]'),
    Type("object", '{"b": 1, "a": [2]}', '{"b":1,"a":[2]}', "json", '{"b":1,"a":[2]}'),
]

SQLITE = [
    Type("INTEGER", "17", "17", "integer", "17"),
    Type("REAL", "1.5", "1.5", "number", "1.5"),
    Type("TEXT", "'a'", "a", "text", "a"),
    Type("BLOB, if it is UTF-8 text", "x'61'", "a", "text", "a"),
]

POSTGRESQL = [
    Type("smallint, integer, bigint", "17::bigint", "17", "integer", "17"),
    Type("real, double precision", "1.5::double precision", "1.5", "number", "1.5"),
    Type("numeric", "1.50::numeric", "1.50", "text", "1.50"),
    Type("boolean", "true", "True", "boolean", "True"),
    Type("text, varchar, char", "'a'::text", "a", "text", "a"),
    Type("bytea, if it is UTF-8 text", "'a'::bytea", "a", "text", "a"),
    Type("date", "'2026-11-20'::date", "2026-11-20", "date", "2026-11-20"),
    Type("time", "'10:30:05.5'::time", "10:30:05.500000", "text", "10:30:05.500000"),
    Type("timestamp", "'2026-11-20 10:30:05'::timestamp", "2026-11-20 10:30:05", "datetime", "2026-11-20T10:30:05"),
    Type(
        "timestamptz (in the table: in UTC)",
        "'2026-11-20 10:30:05+00'::timestamptz",
        "2026-11-20 10:30:05+00:00",
        "datetime",
        "2026-11-20T10:30:05",
    ),
    Type("interval", "'1 day 2 hours'::interval", "P1DT2H", "text", "P1DT2H"),
    Type("uuid", f"'{_ID}'::uuid", str(_ID), "text", str(_ID)),
    Type("inet", "'10.0.0.1'::inet", "10.0.0.1", "text", "10.0.0.1"),
    Type("json, jsonb", """'{"a": [1]}'::jsonb""", '{"a":[1]}', "json", '{"a":[1]}'),
    Type("array", "ARRAY[1, NULL]", "[1,null]", "json", "[1,null]"),
]

TABLES = {"Parquet and Arrow": ARROW, "CSV": CSV, "NDJSON": NDJSON, "SQLite": SQLITE, "PostgreSQL": POSTGRESQL}


def names(types: list[Type]) -> list[str]:
    return [f"c{i}" for i in range(len(types))]


def arrow_source(folder: Path, _: str) -> dict[str, Any]:
    table = pa.table({"id": [1], **dict(zip(names(ARROW), (one.given for one in ARROW), strict=True))})
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as out:
        out.write_table(table)
    return {"path": str(folder / "a.arrow")}


def csv_source(folder: Path, _: str) -> dict[str, Any]:
    (folder / "a.csv").write_text(f"id,{','.join(names(CSV))}\n1,{','.join(one.given for one in CSV)}\n")
    types = {name: kind for name, kind in zip(names(CSV), CSV_TYPES, strict=True) if kind is not None}
    return {"path": str(folder / "a.csv"), "types": types}


def ndjson_source(folder: Path, _: str) -> dict[str, Any]:
    fields = ",".join(f'"{name}":{one.given}' for name, one in zip(names(NDJSON), NDJSON, strict=True))
    (folder / "a.ndjson").write_text(f'{{"id":1,{fields}}}\n')
    return {"path": str(folder / "a.ndjson")}


def query(types: list[Type]) -> str:
    return "SELECT 1 AS id, " + ", ".join(
        f"{one.given} AS {name}" for name, one in zip(names(types), types, strict=True)
    )


def sqlite_source(folder: Path, _: str) -> dict[str, Any]:
    (folder / "source.db").touch()
    return {"query": query(SQLITE), "database": f"sqlite:///{folder}/source.db"}


def postgresql_source(_: Path, server: str) -> dict[str, Any]:
    return {"query": query(POSTGRESQL), "database": server}


SOURCES: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "Parquet and Arrow": arrow_source,
    "CSV": csv_source,
    "NDJSON": ndjson_source,
    "SQLite": sqlite_source,
    "PostgreSQL": postgresql_source,
}


@pytest.mark.parametrize("source", TABLES)
def test_each_documented_type_is_printed_and_stored_as_documented(
    world: World, source: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "UTC")
    server = request.getfixturevalue("postgres_url") if source == "PostgreSQL" else ""
    types = TABLES[source]
    job = Job.model_validate(
        {
            "name": "values",
            "source": {
                **SOURCES[source](world.folder, server),
                "key": ["id", *names(types)],
                "keep": [{name: f"kept_{name}"} for name in names(types)],
            },
            "request": {
                "model": "claude-haiku-4-5",
                "max_tokens": 1000,
                "prompt": "\n".join(f"{{{{ {name} }}}}" for name in names(types)),
            },
            "sink": {"table": "answers"},
            "canary": False,
        }
    )

    assert Rows(job.source).kinds(names(types)) == dict(zip(names(types), (one.kind for one in types), strict=True))
    assert list(prompts(job).values()) == ["\n".join(one.printed for one in types)]
    world.run(job)
    with world.database.read() as conn:
        row = conn.execute(text("SELECT * FROM answers")).mappings().one()
    for name, one in zip(names(types), types, strict=True):
        held = [_shown(row[column], one.kind) for column in (name, f"kept_{name}")]
        assert held == [one.held, one.held], one.name


def _shown(value: Any, kind: str) -> str:
    """A value of either database as the documentation has it; SQLite keeps times as texts, and truths as numbers."""
    if kind == "boolean":
        return str(bool(value))
    said = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return said.replace(" ", "T").removesuffix(".000000") if kind == "datetime" else said


@pytest.mark.parametrize("source", TABLES)
def test_the_tables_of_types_are_in_the_documentation(source: str) -> None:
    section = DOC.read_text().partition(f"**{source}.**")[2].partition("\n\n**")[0]

    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]

    assert rows == [one.row for one in TABLES[source]]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 1 AS id, int4range(1, 2) AS x", "column 'x' holds values of type Range .* CAST it to text"),
        ("SELECT 1 AS id, '10:00+02'::timetz AS x", "source.query row 1: column 'x' holds .* CAST it"),
        ("SELECT 1 AS id, 'NaN'::numeric AS x", "source.query row 1: column 'x' holds .* CAST it"),
    ],
)
def test_a_type_of_postgresql_without_an_exact_text_is_refused(postgres_url: str, sql: str, said: str) -> None:
    source = {"query": sql, "database": postgres_url, "key": "id"}
    job = Job.model_validate(
        {
            "name": "values",
            "source": source,
            "request": {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ x }}"},
            "sink": {"table": "answers"},
        }
    )

    with pytest.raises(SourceError, match=said):
        prompts(job)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "SELECT 1 AS id, 1 AS x UNION ALL SELECT 2, 'b'",
            r"row 2: column 'x' holds 'b', which is not a value of type",
        ),
        (
            "SELECT 1 AS id, 1 AS x UNION ALL SELECT 2, 2.5",
            r"row 2: column 'x' holds 2.5, which is not a value of type",
        ),
    ],
)
def test_a_column_of_several_types_names_the_row_that_differs(tmp_path: Path, sql: str, said: str) -> None:
    (tmp_path / "source.db").touch()
    source = {"query": sql, "database": f"sqlite:///{tmp_path}/source.db", "key": "id"}
    job = Job.model_validate(
        {
            "name": "values",
            "source": source,
            "request": {"model": "claude-haiku-4-5", "max_tokens": 10, "prompt": "{{ x }}"},
            "sink": {"table": "answers"},
        }
    )

    with pytest.raises(SourceError, match=said):
        prompts(job)
