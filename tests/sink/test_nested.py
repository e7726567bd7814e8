"""Lists and objects of answers are real ones in files, as the schema says them; what it leaves open is JSON text."""

from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from pipeline.answer.schema import Described, columns
from pipeline.sink import nested, read
from pipeline.sink.export import export
from pipeline.sink.nested import Misfit, Nested
from pipeline.sink.partitions import export_partitioned
from pipeline.sink.read import Wanted, ndjson
from pipeline.sink.table import ResultsTable
from pipeline.state.jobs import JobRecord
from tests.conftest import World, texts
from tests.sink.test_export import ran
from tests.support.object_storage import S3

POSTGRESQL_IS_LONG = True

TEXTS = {"type": "array", "items": {"type": "string"}}


def closed(**properties: Any) -> dict[str, Any]:
    """An object with just these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def of(node: dict[str, Any], **defs: Any) -> Nested | None:
    return nested._nested(Described(node, {**node, "$defs": defs}))


# -- types -------------------------------------------------------------------------------------------------------------

JSON, KEYS = pa.string(), {"type": "object", "additionalProperties": {"type": "integer"}}


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        pytest.param(TEXTS, pa.list_(pa.string()), id="texts"),
        pytest.param({"type": "array", "items": {"type": "integer"}}, pa.list_(pa.int64()), id="integers"),
        pytest.param({"type": ["array", "null"], "items": {"type": "number"}}, pa.list_(pa.float64()), id="or null"),
        pytest.param({"type": "array", "items": TEXTS}, pa.list_(pa.list_(pa.string())), id="lists of lists"),
        pytest.param(
            {"type": "array", "items": closed(a={"type": "boolean"}, b=TEXTS)},
            pa.list_(pa.struct([("a", pa.bool_()), ("b", pa.list_(pa.string()))])),
            id="objects",
        ),
        pytest.param(
            closed(day={"type": "string", "format": "date"}, n={"type": ["integer", "number"]}),
            pa.struct([("day", pa.string()), ("n", pa.float64())]),
            id="a date is text inside",
        ),
        pytest.param(
            closed(a={"anyOf": [{"type": "string"}, {"type": "integer"}]}, b={}, c=KEYS, d={"enum": ["x", 1]}),
            pa.struct([("a", JSON), ("b", JSON), ("c", JSON), ("d", JSON)]),
            id="what is left open inside is JSON",
        ),
        pytest.param({"type": "array"}, None, id="a list of anything"),
        pytest.param(KEYS, None, id="an object with any keys"),
        pytest.param({**closed(a=TEXTS), "additionalProperties": True}, None, id="an object with more keys"),
        pytest.param({"anyOf": [TEXTS, closed(a=TEXTS)]}, None, id="a list or an object"),
    ],
)
def test_a_column_has_the_type_that_its_schema_says(node: dict[str, Any], kind: Any) -> None:
    found = of(node)

    assert found is not None
    assert found.type == kind


@pytest.mark.parametrize("node", [{"anyOf": [TEXTS, {"type": "string"}]}, {}, {"enum": [["a"], "b"]}])
def test_a_column_that_may_hold_a_text_is_as_the_database_has_it(node: dict[str, Any]) -> None:
    assert of(node) is None


def test_a_schema_that_contains_itself_ends_as_json() -> None:
    tree = closed(name={"type": "string"}, children={"type": "array", "items": {"$ref": "#/$defs/tree"}})

    found = of({"$ref": "#/$defs/tree"}, tree=tree)

    assert found is not None
    assert "children" in str(found.type)


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (TEXTS, {"a": 1}),
        (TEXTS, ["a", 1]),
        ({"type": "array", "items": {"type": "integer"}}, [2**63]),
        ({"type": "array", "items": {"type": "integer"}}, [True]),
        ({"type": "array", "items": {"type": "integer"}}, [1.5]),
        ({"type": "array", "items": {"type": "number"}}, [2**60 + 1]),
        (closed(a=TEXTS), {"a": [], "b": 1}),
        (closed(a=TEXTS), "a text"),
    ],
)
def test_no_value_is_changed_to_fit(node: dict[str, Any], value: Any) -> None:
    found = of(node)
    assert found is not None

    with pytest.raises(Misfit):
        nested.array("column", found, [orjson.dumps(value).decode()])


# -- files -------------------------------------------------------------------------------------------------------------

SCHEMA = closed(
    title={"type": "string"},
    tags=TEXTS,
    lines={"type": "array", "items": closed(what={"type": "string"}, amount={"type": "number"})},
    address=closed(town={"type": "string"}, zip={"type": "string"}),
)
OUTPUT = {"schema": SCHEMA, "columns": {"address.town": "town"}}


def test_parquet_and_ndjson_have_lists_and_objects_and_csv_has_json(world: World) -> None:
    job = ran(world, output=OUTPUT)

    paths = [world.folder / f"answers{suffix}" for suffix in (".parquet", ".ndjson", ".csv")]
    for path in paths:
        export(world.database, job, path, Wanted())

    found, lines, cells = pl.read_parquet(paths[0]), pl.read_ndjson(paths[1]), pl.read_csv(paths[2])
    amounts = pl.List(pl.Struct({"what": pl.String, "amount": pl.Float64}))
    names = ("tags", "lines", "address")
    expected = [pl.List(pl.String), amounts, pl.Struct({"zip": pl.String})]
    assert [found.schema[name] for name in names] == expected
    for name in names:
        assert found[name].to_list() == lines[name].to_list() == [orjson.loads(text) for text in cells[name]]
    assert found["town"].null_count() == 0  # its own column alone has it
    assert found["text"].null_count() == 5
    assert [orjson.loads(line) for line in ndjson(world.database, job)] == [
        orjson.loads(line) for line in paths[1].read_bytes().splitlines()
    ]


def altered(world: World, job: JobRecord, **values: str) -> None:
    table = ResultsTable.of(job).table
    with world.database.write() as conn:
        conn.execute(update(table).where(table.c.id == "r3").values(values))


@pytest.mark.parametrize("place", ["answers.parquet", "s3://bucket/answers.parquet", "answers/"])
def test_a_value_that_does_not_fit_makes_its_column_json_text_and_no_other(
    world: World, s3: S3, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(read, "PAGE", 2)
    job = ran(world, output=OUTPUT)
    altered(world, job, tags='["a",{"b":1}]')
    monkeypatch.chdir(world.folder)

    if place.endswith("/"):
        export_partitioned(world.database, job, place, ["status"], Wanted())
        [path] = world.folder.glob("answers/*/*.parquet")
    else:
        export(world.database, job, place, Wanted())
        path = world.folder / "answers.parquet"
        if place.startswith("s3"):
            path.write_bytes(s3.get("answers.parquet"))

    found = pq.read_table(path, partitioning=None)
    assert found.num_rows == 5
    assert found.schema.field("tags").type == pa.string()
    assert found.column("tags").to_pylist()[3] == '["a",{"b":1}]'
    assert pa.types.is_list(found.schema.field("lines").type)


def test_what_runs_say_differently_is_json_text(world: World) -> None:
    ran(world, output={"schema": closed(tags=TEXTS, notes=TEXTS)})
    world.rows(texts(7))
    job = ran(world, output={"schema": closed(tags={"type": "array", "items": {"type": "integer"}}, notes=TEXTS)})
    path = world.folder / "answers.parquet"

    export(world.database, job, path, Wanted())

    found = pl.read_parquet(path)
    assert [found.schema[name] for name in ("tags", "notes")] == [pl.String, pl.List(pl.String)]
    for line in ndjson(world.database, job):
        assert isinstance(orjson.loads(line)["tags"], list)  # in JSON that is a list all the same


def test_folders_of_ndjson_have_lists_and_objects(world: World) -> None:
    job = ran(world, output=OUTPUT)

    export_partitioned(world.database, job, world.folder / "out", ["status"], Wanted(), ending=".ndjson")

    [path] = world.folder.glob("out/*/*.ndjson")
    for line in path.read_bytes().splitlines():
        answer = orjson.loads(line)
        assert isinstance(answer["tags"], list)
        assert answer["address"].keys() == {"zip"}


def test_prices_that_an_older_version_stored_have_no_digits_of_arithmetic(world: World, tmp_path: Path) -> None:
    job = ran(world)
    altered(world, job, cost_usd=0.00006500000000000001)  # type: ignore[arg-type]

    for suffix in (".parquet", ".ndjson", ".csv"):
        export(world.database, job, tmp_path / f"answers{suffix}", Wanted(where="id = 'r3'"))

    [line] = (tmp_path / "answers.ndjson").read_bytes().splitlines()
    assert orjson.loads(line)["cost_usd"] == 0.000065
    assert pl.read_parquet(tmp_path / "answers.parquet")["cost_usd"].to_list() == [0.000065]
    assert ",6.5e-05," in (tmp_path / "answers.csv").read_text()


def test_an_object_of_which_all_is_in_columns_has_none_of_its_own() -> None:
    described = closed(address=closed(town={"type": "string"}, place=closed(lat={"type": "number"})))

    some = columns(described, {"address.town": "town"})
    every = columns(described, {"address.town": "town", "address.place.lat": "lat"})

    assert list(some) == ["address", "town"]
    assert list(every) == ["town", "lat"]
