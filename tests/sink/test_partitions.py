"""A folder of answers in the layout of Hive: as readers know it, whole or as it was before."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow.dataset
import pytest

from pipeline.cli.terminal import sigterm_as_interrupt
from pipeline.errors import Completed, InputError, Stopped
from pipeline.sink import partitions, read
from pipeline.sink.partitions import export_partitioned, folder_name
from pipeline.sink.read import Wanted
from pipeline.state.jobs import JobRecord, job_named
from pipeline.storage import durable, objects
from tests.conftest import World
from tests.support.object_storage import S3

POSTGRESQL_IS_LONG = True

TEAMS = ["red", "blue", "", "a/b c=100%", "red", "Größe", "blue"]


@pytest.fixture(autouse=True)
def pages_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "PAGE", 2)


@pytest.fixture
def job(world: World) -> JobRecord:
    """A job with seven answers for five teams, one of them without a name."""
    return ran(world, [{"id": f"r{i}", "text": f"Text {i}.", "team": team} for i, team in enumerate(TEAMS)])


def ran(world: World, rows: list[dict[str, object]], **changes: Any) -> JobRecord:
    world.rows(rows)
    world.run(world.job(source={"keep": ["team"]}, **changes))
    with world.database.read() as conn:
        job = job_named(conn, "summaries")
    assert job is not None
    return job


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def folders(names: list[str]) -> list[str]:
    """The folders of these files, of which each but _SUCCESS is in one of its own."""
    return sorted({name.rpartition("/")[0] for name in names if name != "_SUCCESS"})


# -- the layout ------------------------------------------------------------------------------------------------------


def test_each_value_has_a_folder_that_readers_know(world: World, job: JobRecord) -> None:
    place = world.folder / "answers"

    exported = export_partitioned(world.database, job, place, ["team"], Wanted())

    assert exported == (7, str(place), 5)
    assert folders(files(place)) == [
        "team=Größe",
        "team=__HIVE_DEFAULT_PARTITION__",
        "team=a%2Fb c%3D100%25",
        "team=blue",
        "team=red",
    ]
    expected = [(f"r{i}", team or None) for i, team in enumerate(TEAMS)]
    by_polars = pl.read_parquet(place, hive_partitioning=True).sort("id")
    assert by_polars.select("id", "team").rows() == expected
    assert by_polars.schema["cost_usd"] == pl.Float64
    by_arrow = pyarrow.dataset.dataset(place, partitioning="hive").to_table().sort_by("id").to_pylist()
    assert [(row["id"], row["team"]) for row in by_arrow] == expected


def test_several_columns_are_folders_in_folders(world: World, job: JobRecord) -> None:
    place = world.folder / "answers"

    exported = export_partitioned(world.database, job, place, ["status", "team"], Wanted(where="team <> ''"))

    assert exported[0::2] == (6, 4)
    assert folders(files(place))[-1] == "status=succeeded/team=red"
    found = pl.read_parquet(place, hive_partitioning=True).sort("id")
    assert found.select("status", "team").rows()[0] == ("succeeded", "red")


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("label", "billing", "label=billing"),
        ("label", None, "label=__HIVE_DEFAULT_PARTITION__"),
        ("label", "", "label=__HIVE_DEFAULT_PARTITION__"),
        ("done", True, "done=true"),
        ("run_id", 7, "run_id=7"),
        ("my col?", "a:b\n{c}'\"", "my col%3F=a%3Ab%0A%7Bc}%27%22"),
        ("up", "../..", "up=..%2F.."),
    ],
)
def test_values_are_written_as_hive_does(column: str, value: object, name: str) -> None:
    assert folder_name(column, value) == name


def test_answers_stand_by_key_in_their_file_however_often_they_were_put_aside(
    world: World, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "SORTED_BYTES", 1)  # each page is a piece of its own on the disk
    monkeypatch.setattr(partitions, "GROUP_BYTES", 1)
    place = world.folder / "answers"

    export_partitioned(world.database, job, place, ["team"], Wanted(), ending=".ndjson")

    [name] = [name for name in files(place) if "team=red" in name]
    found = [orjson.loads(line) for line in (place / name).read_bytes().splitlines()]
    assert [row["id"] for row in found] == ["r0", "r4"]
    kept = [answer for answer in world.answers().values() if answer["team"] == "red"]
    assert found == [{name: value for name, value in answer.items() if name != "team"} for answer in kept]


@pytest.mark.parametrize(
    ("name", "ending", "expected"),
    [
        ("answers", None, "parquet"),
        ("answers", ".csv", "csv"),
        ("answers.ndjson", None, "ndjson"),
        ("answers.2026-11", None, "parquet"),
        ("answers.csv", ".parquet", "parquet"),
    ],
)
def test_the_format_is_said_by_the_option_else_by_the_name(
    world: World, job: JobRecord, name: str, ending: str | None, expected: str
) -> None:
    export_partitioned(world.database, job, world.folder / name, ["team"], Wanted(), ending=ending)

    assert {file.rpartition(".")[2] for file in files(world.folder / name) if file != "_SUCCESS"} == {expected}


def test_only_what_is_new_since_a_run(world: World, job: JobRecord) -> None:
    ran(world, [{"id": "new", "text": "New.", "team": "green"}, {"id": "r0", "text": "Changed.", "team": "red"}])
    place = world.folder / "answers"

    exported = export_partitioned(world.database, job, place, ["team"], Wanted(since=1))

    assert exported.rows == 2
    assert folders(files(place)) == ["team=green", "team=red"]


def test_no_answer_at_all_is_an_empty_folder_that_is_whole(world: World, job: JobRecord) -> None:
    assert export_partitioned(world.database, job, world.folder / "none", ["team"], Wanted(limit=0))[0::2] == (0, 0)

    assert files(world.folder / "none") == ["_SUCCESS"]


# -- a local folder --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_replaced_as_a_whole_if_it_may_be(world: World, job: JobRecord) -> None:
    place = world.folder / "answers"
    place.mkdir()
    export_partitioned(world.database, job, place, ["team"], Wanted())
    before = files(place)

    with pytest.raises(InputError, match="answers is not empty; give another folder, or --overwrite"):
        export_partitioned(world.database, job, place, ["status"], Wanted())
    assert files(place) == before

    export_partitioned(world.database, job, place, ["status"], Wanted(), overwrite=True)
    assert folders(files(place)) == ["status=succeeded"]
    assert list(world.folder.glob(".answers*")) == []


def test_nothing_goes_that_no_export_has_left(world: World, job: JobRecord) -> None:
    place = world.folder / "answers"
    (place / "team=red").mkdir(parents=True)
    (place / "team=red" / "mine.parquet").write_text("mine")

    with pytest.raises(InputError, match=r"holds .*mine.parquet, which is of no export; give another folder"):
        export_partitioned(world.database, job, place, ["team"], Wanted(), overwrite=True)

    assert files(place) == ["team=red/mine.parquet"]


@pytest.mark.parametrize("moment", ["reading", "writing", "swapping"])
def test_whatever_ends_it_the_folder_of_before_is_there_and_nothing_else(
    world: World, job: JobRecord, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    place = world.folder / "answers"
    export_partitioned(world.database, job, place, ["team"], Wanted())
    before, beside = files(place), sorted(os.listdir(world.folder))
    error = OSError(28, "No space left on device")
    if moment == "reading":
        monkeypatch.setattr(partitions, "pages", broken_pages(Stopped("safe to run again")))
    if moment == "writing":
        monkeypatch.setattr(durable, "sync_file", nth_call(3, error))
    if moment == "swapping":
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda *args: nth_rename(rename, *args))

    with pytest.raises(Stopped, match="safe to run again"):
        export_partitioned(world.database, job, place, ["status", "team"], Wanted(), overwrite=True)

    assert files(place) == before
    assert sorted(os.listdir(world.folder)) == beside


def broken_pages(error: BaseException) -> Any:
    """Pages of answers, of which the third one fails."""

    def pages(*args: Any) -> Iterator[Any]:
        for number, page in enumerate(read.pages(*args)):
            if number == 2:
                raise error
            yield page

    return pages


def nth_call(n: int, error: BaseException) -> Any:
    calls: list[object] = []

    def call(*args: object) -> None:
        calls.append(args)
        if len(calls) == n:
            raise error

    return call


def nth_rename(rename: Any, path: Path, target: Path) -> Path:
    """A rename that fails for the new folder only."""
    if path.name.endswith(".tmp"):
        raise OSError(5, "Input/output error")
    renamed: Path = rename(path, target)
    return renamed


def test_a_sigterm_leaves_the_folder_of_before_and_nothing_else(
    world: World, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "sync_file", lambda out: signal.raise_signal(signal.SIGTERM))
    beside = sorted(os.listdir(world.folder))

    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        export_partitioned(world.database, job, world.folder / "answers", ["team"], Wanted())

    assert sorted(os.listdir(world.folder)) == beside


@pytest.mark.parametrize("place", ["answers", "s3://bucket/answers"])
def test_a_folder_that_is_whole_when_the_export_is_interrupted_is_said_to_be(
    world: World, job: JobRecord, s3: S3, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    place = place if "://" in place else str(world.folder / place)
    put, sync = objects.put, durable.sync_folder

    def put_and_stop(url: str, *args: Any) -> None:
        put(url, *args)
        if url.endswith("/_SUCCESS"):
            signal.raise_signal(signal.SIGTERM)

    def sync_and_stop(folder: Path) -> None:
        sync(folder)
        if folder == world.folder:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(objects, "put", put_and_stop)
    monkeypatch.setattr(durable, "sync_folder", sync_and_stop)

    with (
        pytest.raises(Completed, match=f"{place} is whole: all answers had been written before"),
        sigterm_as_interrupt(),
    ):
        export_partitioned(world.database, job, place, ["team"], Wanted())


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "by", "said"),
    [
        pytest.param("answers", ["nonsense"], "nonsense: this is no column of answers .it has id, team, text", id="no"),
        pytest.param("answers", ["team", "team"], "this is named twice", id="twice"),
        pytest.param("rows.csv", ["team"], "is a file; --partition-by COLUMN makes a folder", id="a file"),
        pytest.param("no/answers", ["team"], "there is no folder", id="no folder"),
        pytest.param("ftp://host/answers", ["team"], "answers go to a path, or to s3://", id="an address"),
    ],
)
def test_what_is_wrong_is_said(world: World, job: JobRecord, name: str, by: list[str], said: str) -> None:
    place = name if "://" in name else world.folder / name

    with pytest.raises(InputError, match=said):
        export_partitioned(world.database, job, place, by, Wanted())


def test_too_many_and_too_long_values_are_refused(
    world: World, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.database.write() as conn:
        long = "substr(hex(zeroblob(200)), 1, 300)" if world.database.is_sqlite else "repeat('0', 300)"
        name = "answers" if world.database.is_sqlite else f"{world.database.default_schema}.answers"
        conn.exec_driver_sql(f"UPDATE {name} SET text = {long} WHERE id = 'r6'")

    with pytest.raises(InputError, match=r"text: the value '0+'\.\.\. is too long for a folder's name"):
        export_partitioned(world.database, job, world.folder / "answers", ["text"], Wanted())
    monkeypatch.setattr(partitions, "MOST_FOLDERS", 4)
    with pytest.raises(InputError, match=r"--partition-by team: there are more than 4 values"):
        export_partitioned(world.database, job, world.folder / "answers", ["team"], Wanted())

    assert not (world.folder / "answers").exists()


# -- a folder on object storage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["s3://bucket/daily/answers", "s3://bucket/daily/answers/"])
def test_a_folder_on_object_storage_is_whole_when_it_says_so(
    world: World, job: JobRecord, s3: S3, place: str, tmp_path: Path
) -> None:
    s3.put("daily/answers-of-others/part.parquet", b"theirs")
    export_partitioned(world.database, job, tmp_path / "local", ["team"], Wanted())
    s3.requests.clear()

    exported = export_partitioned(world.database, job, place, ["team"], Wanted())

    assert exported == (7, "s3://bucket/daily/answers", 5)
    put = [request.partition("answers/")[2] for request in s3.requests if request.startswith("PUT")]
    assert (len(put), put[-1]) == (6, "_SUCCESS")
    for key in s3.keys("daily/answers/"):
        path = tmp_path / "copy" / key.removeprefix("daily/answers/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.get(key))
    local, copied = (pl.read_parquet(tmp_path / name, hive_partitioning=True) for name in ("local", "copy"))
    assert copied.sort("id").equals(local.sort("id"))


def test_a_folder_on_object_storage_is_replaced_and_never_says_that_a_mixture_is_whole(
    world: World, job: JobRecord, s3: S3
) -> None:
    place = "s3://bucket/answers"
    s3.put("answers/", b"")  # as a console leaves it
    export_partitioned(world.database, job, place, ["team"], Wanted())
    before = s3.keys()
    with pytest.raises(InputError, match="answers is not empty; give another folder, or --overwrite"):
        export_partitioned(world.database, job, place, ["team"], Wanted())
    assert s3.keys() == before
    s3.requests.clear()

    export_partitioned(world.database, job, place, ["status"], Wanted(), overwrite=True)

    assert folders(s3.keys("answers/status")) == ["answers/status=succeeded"]
    assert len(s3.keys()) == 3
    done = [request.split()[0] for request in s3.requests if request.split()[0] in ("PUT", "DELETE", "POST")]
    deleted = ["POST"] * 5  # of the five files of before; S3's way to delete is a POST to the bucket
    assert (done, s3.requests[-3].endswith("_SUCCESS")) == (["POST", "PUT", *deleted, "PUT"], True)


def test_other_files_on_object_storage_are_left_alone(world: World, job: JobRecord, s3: S3) -> None:
    s3.put("answers/mine.parquet", b"mine")

    with pytest.raises(InputError, match=r"holds s3://bucket/answers/mine.parquet, which is of no export"):
        export_partitioned(world.database, job, "s3://bucket/answers", ["team"], Wanted(), overwrite=True)

    assert s3.keys() == ["answers/mine.parquet"]


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "over a former one"])
def test_a_store_that_goes_down_in_the_middle_leaves_what_was_there(
    world: World, job: JobRecord, s3: S3, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.2)
    objects.forget_stores()
    if overwrite:
        export_partitioned(world.database, job, "s3://bucket/answers", ["status"], Wanted())
    before = s3.keys()
    s3.broken = lambda request: request.startswith("PUT") and "team=blue" in request

    with pytest.raises(Stopped, match=r"answers/team=blue/part-.* the store cannot be reached .*safe to run again"):
        export_partitioned(world.database, job, "s3://bucket/answers", ["team"], Wanted(), overwrite=overwrite)

    assert any("PUT" in request and "team=a" in request for request in s3.requests)
    assert s3.keys() == before


def test_an_export_that_died_over_a_former_one_is_tidied_up_by_the_next(world: World, job: JobRecord, s3: S3) -> None:
    export_partitioned(world.database, job, "s3://bucket/answers", ["team"], Wanted())
    objects.remove("s3://bucket/answers/_SUCCESS")  # as one leaves it that died after that

    export_partitioned(world.database, job, "s3://bucket/answers", ["status"], Wanted(), overwrite=True)

    assert folders(s3.keys()[1:]) == ["answers/status=succeeded"]
    assert s3.keys()[0] == "answers/_SUCCESS"


def test_of_two_exports_at_the_same_time_one_is_told(
    world: World, job: JobRecord, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "s3://bucket/answers"
    pages = read.pages

    def with_another(*args: Any) -> Iterator[Any]:
        yield from pages(*args)
        monkeypatch.setattr(partitions, "pages", pages)
        export_partitioned(world.database, job, place, ["status"], Wanted())

    monkeypatch.setattr(partitions, "pages", with_another)
    with pytest.raises(Stopped, match="another export writes there too"):
        export_partitioned(world.database, job, place, ["team"], Wanted())

    assert folders(s3.keys()[1:]) == ["answers/status=succeeded"]
    assert s3.keys()[0] == "answers/_SUCCESS"


def test_a_bucket_that_is_not_there_is_told(world: World, job: JobRecord, s3: S3) -> None:
    with pytest.raises(objects.NotFound, match="there is no bucket s3://buckett"):
        export_partitioned(world.database, job, "s3://buckett/answers", ["team"], Wanted())
