"""An exported file is complete or absent, has the columns' types, and no formula that a spreadsheet would run."""

import contextlib
import csv
import functools
import resource
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from pipeline.cli.terminal import sigterm_as_interrupt
from pipeline.errors import Completed, DatabaseError, InputError, Stopped
from pipeline.sink import read
from pipeline.sink.export import export
from pipeline.sink.formats import FORMATS
from pipeline.sink.matching import Conditions, count_matching
from pipeline.sink.read import AnswerFilter
from pipeline.sink.table import ResultsTable
from pipeline.state.jobs import JobRecord
from pipeline.storage import durable, objects
from tests.conftest import World, texts
from tests.support.object_storage import S3

POSTGRESQL_IS_LONG = True

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
    before, read.PAGE = read.PAGE, 2
    yield
    read.PAGE = before


def ran(world: World, **changes: Any) -> JobRecord:
    """The job, with five answers."""
    world.run(world.job(**changes))
    return world.known()


def test_a_parquet_file_has_the_types_of_the_columns(world: World) -> None:
    job = ran(world, output={"schema": SCHEMA})
    path = world.folder / "answers.parquet"

    exported = export(world.database, job, path, AnswerFilter())

    assert exported == (5, str(path), 1)
    found = pl.read_parquet(path)
    kinds = [found.schema[name] for name in ("id", "title", "score", "pages", "done", "at", "day", "tags")]
    assert kinds == [
        *(pl.String, pl.String, pl.Float64, pl.Int64, pl.Boolean, pl.Datetime("us"), pl.Date, pl.List(pl.String)),
    ]
    assert found.schema["updated_at"] == pl.Datetime("us", "UTC")
    assert found["id"].to_list() == [f"r{i}" for i in range(5)]
    assert found["tags"][0].to_list() != []
    assert found["text"].null_count() == 5  # all of the answer is in columns


@pytest.mark.parametrize("suffix", [".ndjson", ".jsonl"])
def test_an_ndjson_file_equals_the_output_on_stdout(world: World, suffix: str) -> None:
    job = ran(world)
    path = world.folder / f"answers{suffix}"

    export(world.database, job, path, AnswerFilter())

    assert path.read_bytes().splitlines(keepends=True) == list(read.ndjson(world.database, job))


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_of_a_csv_is_a_formula(world: World, first: str) -> None:
    world.rows([{"id": f"{first}1+1", "text": "A text."}, {"id": "plain", "text": "Another -1."}])
    job = ran(world)
    path = world.folder / "answers.csv"

    export(world.database, job, path, AnswerFilter())

    with open(path, newline="", encoding="utf-8") as lines:
        found = {row["id"]: row for row in csv.DictReader(lines)}
    assert found.keys() == {f"'{first}1+1", "plain"}
    assert float(found["plain"]["cost_usd"]) > 0


def test_an_export_has_only_the_answers_of_its_filter(world: World) -> None:
    job = ran(world)
    world.rows([*texts(5), {"id": "new", "text": "A new text."}])
    ran(world)

    rows = {
        name: export(world.database, job, world.folder / f"{name}.ndjson", wanted).rows
        for name, wanted in {
            "all": AnswerFilter(),
            "since": AnswerFilter(since=1),
            "where": AnswerFilter(where="id like 'r%'"),
            "limit": AnswerFilter(limit=3),
            "status": AnswerFilter(status="errored"),
        }.items()
    }

    assert rows == {"all": 6, "since": 1, "where": 5, "limit": 3, "status": 0}
    assert orjson.loads((world.folder / "since.ndjson").read_bytes())["id"] == "new"


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_export_without_answers_is_a_file_without_rows(world: World, suffix: str) -> None:
    job = ran(world)
    path = world.folder / f"none{suffix}"

    assert export(world.database, job, path, AnswerFilter(limit=0)).rows == 0

    assert path.exists()
    if suffix == ".parquet":
        assert "cost_usd" in pl.read_parquet(path).columns


def test_an_existing_file_stays_without_overwrite(world: World) -> None:
    job = ran(world)
    path = world.folder / "answers.csv"
    path.write_text("mine")

    with pytest.raises(InputError, match="exists; give another name, or --overwrite"):
        export(world.database, job, path, AnswerFilter())
    assert path.read_text() == "mine"

    assert export(world.database, job, path, AnswerFilter(), overwrite=True).rows == 5


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        pytest.param("answers.xlsx", AnswerFilter(), "must end in one of .parquet, .csv", id="a format"),
        pytest.param("answers", AnswerFilter(), "must end in one of", id="no format"),
        pytest.param("no/answers.csv", AnswerFilter(), "there is no folder", id="no folder"),
        pytest.param("emulator.csv", AnswerFilter(), "is a folder; give the name of a file", id="a folder"),
        pytest.param("answers.csv", AnswerFilter(where="nonsense ="), "is not a SQL predicate", id="a predicate"),
    ],
)
def test_a_wrong_export_is_refused_and_leaves_no_file(world: World, name: str, wanted: AnswerFilter, said: str) -> None:
    job = ran(world)
    (world.folder / "emulator.csv").mkdir()
    before = sorted(world.folder.iterdir())

    with pytest.raises(InputError, match=said):
        export(world.database, job, world.folder / name, wanted)

    assert [path for path in sorted(world.folder.iterdir()) if path not in before] == []


def test_a_predicate_may_end_with_a_comment(world: World) -> None:
    job, file = ran(world), world.folder / "answers.ndjson"

    assert export(world.database, job, file, AnswerFilter(where="id < 'r2' -- the first two")).rows == 2


def test_a_locked_database_is_reported_as_such_and_not_as_a_wrong_predicate(world: World) -> None:
    if not world.database.is_sqlite:
        pytest.skip("only a SQLite file is locked as a whole")
    job = ran(world)
    world.database.close()
    with world.database.read() as conn:  # in WAL mode readers would not wait for a writer
        raw: Any = conn.connection.driver_connection
        for statement in ("COMMIT", "PRAGMA journal_mode=DELETE", "PRAGMA busy_timeout=0", "BEGIN"):
            raw.execute(statement).close()
    with contextlib.closing(sqlite3.connect(world.database.file or "", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")

        with (
            pytest.raises(Stopped, match=r"cannot read .*: database is locked; ") as stopped,
            world.database.read() as conn,
        ):
            count_matching(conn, ResultsTable.of(job), ["succeeded"], Conditions((), where="id < 'r2'"))

    assert "--where" not in str(stopped.value)


def test_an_export_without_a_predicate_does_not_blame_one_when_the_table_is_gone(world: World) -> None:
    job = ran(world)
    with world.database.write() as conn:
        ResultsTable.of(job).table.drop(conn)

    with pytest.raises(DatabaseError, match=r"table .answers. cannot be read: .*; restore it") as failed:
        export(world.database, job, world.folder / "answers.ndjson", AnswerFilter())

    assert "--where" not in str(failed.value)


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
def test_a_full_disk_leaves_the_earlier_file_unchanged(tmp_path: Path, world: World, suffix: str) -> None:
    job = ran(world)
    path = tmp_path / f"answers{suffix}"
    path.write_text("before")
    world.database.close()  # what it has to write of its own it has written

    with small_disk(100), pytest.raises(Stopped, match="safe to run again"):
        export(world.database, job, path, AnswerFilter(), overwrite=True)

    assert path.read_text() == "before"
    assert list(tmp_path.glob(".answers*")) == []


# -- on object storage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("limit", [None, 0], ids=["all", "none"])
def test_an_exported_object_equals_an_exported_file(world: World, s3: S3, suffix: str, limit: int | None) -> None:
    job = ran(world)
    path = world.folder / f"answers{suffix}"
    export(world.database, job, path, AnswerFilter(limit=limit))

    exported = export(world.database, job, f"s3://bucket/some day/answers{suffix}", AnswerFilter(limit=limit))

    assert exported == (5 if limit is None else 0, f"s3://bucket/some day/answers{suffix}", 1)
    assert s3.get(f"some day/answers{suffix}") == path.read_bytes()


@pytest.fixture
def in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> JobRecord:
    """A job whose answers are so large that each goes up as a part of its own: 5 MB is the least that S3 takes."""
    job = ran(world)
    monkeypatch.setattr(objects, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(read, "PAGE", 1)
    table = "answers" if world.database.is_sqlite else f"{world.database.default_schema}.answers"
    filled = "substr(hex(zeroblob(3000000)), 1, 5500000)" if world.database.is_sqlite else "repeat('0', 5500000)"
    with world.database.write() as conn:
        conn.exec_driver_sql(f"UPDATE {table} SET text = {filled}")
    return job


def test_a_large_object_is_uploaded_in_parts(world: World, s3: S3, in_parts: JobRecord) -> None:
    export(world.database, in_parts, "s3://bucket/answers.ndjson", AnswerFilter())

    assert sum(request.startswith("PUT") for request in s3.requests) >= 5
    assert s3.get("answers.ndjson") == b"".join(read.ndjson(world.database, in_parts))


@pytest.mark.parametrize("name", ["answers.ndjson", "answers.parquet"])
def test_an_existing_object_stays_without_overwrite(world: World, s3: S3, name: str) -> None:
    job = ran(world)
    url = s3.put(name, b"mine")

    with pytest.raises(InputError, match=rf"s3://bucket/{name} exists; give another name, or --overwrite"):
        export(world.database, job, url, AnswerFilter())
    assert s3.get(name) == b"mine"

    assert export(world.database, job, url, AnswerFilter(), overwrite=True).rows == 5
    assert s3.get(name) != b"mine"


def test_the_later_of_two_exports_to_one_object_is_refused(
    world: World, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ran(world)
    pages = read.pages

    def with_another(*args: Any) -> Iterator[Any]:
        yield from pages(*args)
        s3.put("answers.csv", b"of the other one")

    monkeypatch.setattr("pipeline.sink.export.pages", with_another)
    with pytest.raises(InputError, match="exists"):
        export(world.database, job, "s3://bucket/answers.csv", AnswerFilter())

    assert s3.get("answers.csv") == b"of the other one"


def test_a_store_that_fails_during_an_export_keeps_the_earlier_object_and_nothing_else(
    world: World, s3: S3, in_parts: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    objects.forget_stores()
    s3.put("answers.ndjson", b"before")
    s3.broken = lambda request: "partNumber=3" in request

    with pytest.raises(Stopped, match=r"s3://bucket/answers.ndjson: the store cannot be reached .*safe to run again"):
        export(world.database, in_parts, "s3://bucket/answers.ndjson", AnswerFilter(), overwrite=True)

    assert any(request.startswith("PUT") for request in s3.requests)
    assert (s3.get("answers.ndjson"), s3.unfinished()) == (b"before", [])


def test_a_database_that_fails_in_the_middle_leaves_no_upload(
    world: World, s3: S3, in_parts: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = read.pages

    def cut(*args: Any) -> Iterator[Any]:
        for number, page in enumerate(pages(*args)):
            if number == 3:
                raise Stopped("the database is gone")
            yield page

    monkeypatch.setattr("pipeline.sink.export.pages", cut)
    with pytest.raises(Stopped, match="the database is gone"):
        export(world.database, in_parts, "s3://bucket/answers.ndjson", AnswerFilter())

    assert (s3.keys(), s3.unfinished()) == ([], [])


def test_a_missing_bucket_and_wrong_credentials_are_reported(world: World, s3: S3) -> None:
    job = ran(world)

    with pytest.raises(objects.NotFound, match=r"there is no bucket s3://buckett; check its name"):
        export(world.database, job, "s3://buckett/answers.csv", AnswerFilter())
    s3.faults += ["403"]
    with pytest.raises(objects.AccessDenied, match="the store refuses the credentials"):
        export(world.database, job, "s3://bucket/answers.csv", AnswerFilter())
    with pytest.raises(InputError, match="answers cannot be written to this URL; give a path, or s3://BUCKET/NAME"):
        export(world.database, job, "https://bucket/answers.csv", AnswerFilter())

    assert s3.keys() == []


# -- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["here.csv", "s3://bucket/there.csv"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replaced"])
def test_an_export_that_is_interrupted_after_it_is_complete_is_reported_as_complete(
    world: World, s3: S3, monkeypatch: pytest.MonkeyPatch, place: str, overwrite: bool
) -> None:
    job = ran(world)
    place = place if "://" in place else str(world.folder / place)
    if overwrite:
        export(world.database, job, place, AnswerFilter(limit=1))
    put, sync = objects.put, durable.sync_folder

    def interrupted(call: Any, *args: Any) -> None:
        call(*args)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(objects, "put", functools.partial(interrupted, put))
    monkeypatch.setattr(durable, "sync_folder", functools.partial(interrupted, sync))
    with (
        pytest.raises(Completed, match=rf"{place} is complete: all answers were written before"),
        sigterm_as_interrupt(),
    ):
        export(world.database, job, place, AnswerFilter(), overwrite=overwrite)

    written = s3.get("there.csv") if "://" in place else Path(place).read_bytes()
    assert written.count(b"\r\n") == 6


def test_an_export_that_is_interrupted_before_it_is_complete_is_not_reported_as_complete(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ran(world)
    place = world.folder / "here.csv"
    export(world.database, job, place, AnswerFilter(limit=1))
    monkeypatch.setattr(durable, "sync_file", lambda out: signal.raise_signal(signal.SIGTERM))

    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        export(world.database, job, place, AnswerFilter(), overwrite=True)

    assert place.read_bytes().count(b"\r\n") == 2
