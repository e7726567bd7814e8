"""Answers in a file: whole or not there, with the types of their columns, and nothing that a spreadsheet would run."""

import contextlib
import csv
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from sqlalchemy import Row

from pipeline import answers, store
from pipeline.answers import Wanted
from pipeline.errors import InputError, Stopped
from pipeline.exports import FORMATS, export
from tests.conftest import World, texts

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "score": {"type": "number"},
        "pages": {"type": "integer"},
        "done": {"type": "boolean"},
        "at": {"type": "string", "format": "date-time"},
        "day": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["title", "score", "pages", "done", "at", "day", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def pages_of_two() -> Iterator[None]:
    before, answers.PAGE = answers.PAGE, 2
    yield
    answers.PAGE = before


def ran(world: World, **changes: Any) -> Row[Any]:
    """The job, with five answers."""
    world.run(world.job(**changes))
    with world.database.read() as conn:
        job = store.job_named(conn, "summaries")
    assert job is not None
    return job


def test_a_parquet_file_has_the_types_of_the_columns(world: World) -> None:
    job = ran(world, output={"schema": SCHEMA})
    path = world.folder / "answers.parquet"

    exported = export(world.database, job, path, Wanted())

    assert exported == (5, path)
    found = pl.read_parquet(path)
    kinds = [found.schema[name] for name in ("id", "title", "score", "pages", "done", "at", "day", "tags")]
    assert kinds == [
        *(pl.String, pl.String, pl.Float64, pl.Int64, pl.Boolean, pl.Datetime("us"), pl.Date, pl.String),
    ]
    assert found.schema["updated_at"] == pl.Datetime("us", "UTC")
    assert found["id"].to_list() == [f"r{i}" for i in range(5)]
    assert orjson.loads(found["tags"][0]) != []


@pytest.mark.parametrize("suffix", [".ndjson", ".jsonl"])
def test_an_ndjson_file_is_what_goes_to_stdout(world: World, suffix: str) -> None:
    job = ran(world)
    path = world.folder / f"answers{suffix}"

    export(world.database, job, path, Wanted())

    assert path.read_bytes().splitlines(keepends=True) == list(answers.ndjson(world.database, job))


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_of_a_csv_is_a_formula(world: World, first: str) -> None:
    world.rows([{"id": f"{first}1+1", "text": "A text."}, {"id": "plain", "text": "Another -1."}])
    job = ran(world)
    path = world.folder / "answers.csv"

    export(world.database, job, path, Wanted())

    with open(path, newline="", encoding="utf-8") as lines:
        found = {row["id"]: row for row in csv.DictReader(lines)}
    assert found.keys() == {f"'{first}1+1", "plain"}
    assert float(found["plain"]["cost_usd"]) > 0


def test_only_what_was_asked_for_is_in_it(world: World) -> None:
    job = ran(world)
    world.rows([*texts(5), {"id": "new", "text": "A new text."}])
    ran(world)

    rows = {
        name: export(world.database, job, world.folder / f"{name}.ndjson", wanted).rows
        for name, wanted in {
            "all": Wanted(),
            "since": Wanted(since=1),
            "where": Wanted(where="id like 'r%'"),
            "limit": Wanted(limit=3),
            "status": Wanted(status="errored"),
        }.items()
    }

    assert rows == {"all": 6, "since": 1, "where": 5, "limit": 3, "status": 0}
    assert orjson.loads((world.folder / "since.ndjson").read_bytes())["id"] == "new"


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_answer_at_all_is_a_file_without_rows(world: World, suffix: str) -> None:
    job = ran(world)
    path = world.folder / f"none{suffix}"

    assert export(world.database, job, path, Wanted(limit=0)).rows == 0

    assert path.exists()
    if suffix == ".parquet":
        assert "cost_usd" in pl.read_parquet(path).columns


def test_a_file_that_exists_stays_unless_it_may_be_replaced(world: World) -> None:
    job = ran(world)
    path = world.folder / "answers.csv"
    path.write_text("mine")

    with pytest.raises(InputError, match="exists; give another name, or --overwrite"):
        export(world.database, job, path, Wanted())
    assert path.read_text() == "mine"

    assert export(world.database, job, path, Wanted(), overwrite=True).rows == 5


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        pytest.param("answers.xlsx", Wanted(), "must end in one of .parquet, .csv", id="a format"),
        pytest.param("answers", Wanted(), "must end in one of", id="no format"),
        pytest.param("no/answers.csv", Wanted(), "there is no folder", id="a folder"),
        pytest.param("answers.csv", Wanted(where="nonsense ="), "is not a SQL predicate", id="a predicate"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(world: World, name: str, wanted: Wanted, said: str) -> None:
    job = ran(world)
    before = sorted(world.folder.iterdir())

    with pytest.raises(InputError, match=said):
        export(world.database, job, world.folder / name, wanted)

    assert [path for path in sorted(world.folder.iterdir()) if path not in before] == []


@contextlib.contextmanager
def small_disk(most: int) -> Iterator[None]:
    """No file may be larger than so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_the_file_of_before(tmp_path: Path, world: World, suffix: str) -> None:
    job = ran(world)
    path = tmp_path / f"answers{suffix}"
    path.write_text("before")
    world.database.close()  # what it has to write of its own it has written

    with small_disk(100), pytest.raises(Stopped, match="safe to run again"):
        export(world.database, job, path, Wanted(), overwrite=True)

    assert path.read_text() == "before"
    assert list(tmp_path.glob(".answers*")) == []
