"""Sources other than local files: object storage, Hive partitions, Arrow, queries, frames; and what `where` skips."""

import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError, SourceError, Stopped
from pipeline.job.load import load
from pipeline.job.model import Job, Source
from pipeline.source.frames import CHUNK_BYTES
from pipeline.source.rows import Chunk, Rows
from pipeline.storage import objects
from tests.conftest import World
from tests.job.test_job import TODAY
from tests.source.test_rows import CSV, NDJSON, TWO_ROWS, zstd
from tests.support.object_storage import S3

POSTGRESQL_IS_LONG = True


def source(*paths: Path | str, **fields: Any) -> Rows:
    return Rows(Source(path=[str(path) for path in paths], key=["id"], **fields))


def chunks(rows: Rows, *columns: str, **options: Any) -> list[Chunk]:
    return list(rows.chunks(columns or rows.columns, **options))


def read(rows: Rows, *columns: str, **options: Any) -> list[dict[str, Any]]:
    return [row for chunk in chunks(rows, *columns, **options) for row in chunk.frame.to_dicts()]


def parquet(frame: pl.DataFrame, **options: Any) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(frame.to_arrow(), out, **options)
    data: bytes = out.getvalue().to_pybytes()
    return data


def arrow(frame: pl.DataFrame, *, stream: bool = False) -> bytes:
    out, table = pa.BufferOutputStream(), frame.to_arrow()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    data: bytes = out.getvalue().to_pybytes()
    return data


FRAME = pl.DataFrame(TWO_ROWS)
FILES = [
    pytest.param("a.csv", CSV, id="CSV"),
    pytest.param("a.csv.zst", zstd(CSV), id="CSV.zst"),
    pytest.param("a.ndjson", NDJSON, id="NDJSON"),
    pytest.param("a.ndjson.zst", zstd(NDJSON), id="NDJSON.zst"),
    pytest.param("a.parquet", parquet(FRAME), id="Parquet"),
    pytest.param("a.arrow", arrow(FRAME), id="Arrow file"),
    pytest.param("a.feather", arrow(FRAME, stream=True), id="Arrow stream"),
]


# -- object storage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content"), FILES)
def test_a_file_is_read_here_and_on_object_storage(s3: S3, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    url = s3.put(f"in/{name}", content)

    assert read(source(tmp_path / name)) == read(source(url)) == TWO_ROWS
    assert chunks(source(url))[0].place(0) == f"{name} row 1"


def test_each_pass_over_a_csv_object_asks_for_its_rows_once_and_not_for_its_header_again(s3: S3) -> None:
    rows = source(s3.put("a.csv", CSV))

    for _ in range(2):
        s3.requests.clear()
        assert read(rows) == TWO_ROWS
        assert s3.requests == ["GET /bucket/a.csv"]


def test_a_folder_a_pattern_and_a_list_of_objects(s3: S3) -> None:
    for name in (
        "in/b.csv",
        "in/deep/er/c.csv",
        "in/a.csv",
        "in/_SUCCESS",
        "in/.hidden.csv",
        "in/notes.txt",
        "inn/d.csv",
    ):
        s3.put(name, f"id\n{name}\n".encode())

    def ids(*paths: str) -> list[str]:
        return [row["id"] for row in read(source(*paths))]

    assert ids("s3://bucket/in/") == ids("s3://bucket/in") == ["in/a.csv", "in/b.csv", "in/deep/er/c.csv"]
    assert ids("s3://bucket/in/*.csv") == ["in/a.csv", "in/b.csv"]
    assert ids("s3://bucket/in/**/[bc].csv") == ["in/b.csv", "in/deep/er/c.csv"]
    assert ids("s3://bucket/inn/d.csv", "s3://bucket/in/a.csv") == ["inn/d.csv", "in/a.csv"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("s3://bucket/nothing", "s3://bucket/nothing does not exist", id="nothing"),
        pytest.param("s3://bucket/in/*.parquet", "no object matches s3://bucket/in/", id="no match"),
        pytest.param("s3://bucket/dt=2026-01-01/", "does not exist", id="a partition without files"),
        pytest.param("s3://bucket/text", "holds no CSV, TSV, Parquet", id="a folder without data"),
        pytest.param("s3://buckett/in/a.csv", "there is no bucket s3://buckett", id="no bucket"),
        pytest.param("s3://buckett/in/*.csv", "there is no bucket s3://buckett", id="no bucket for a pattern"),
        pytest.param("s3://b*/in", "the bucket cannot be a pattern", id="a pattern as bucket"),
        pytest.param("s3://bucket/empty.csv", "s3://bucket/empty.csv is empty", id="empty"),
    ],
)
def test_a_missing_object_folder_or_bucket_is_named(s3: S3, path: str, said: str) -> None:
    s3.put("in/a.csv", b"id\n1\n")
    s3.put("text/a.txt", b"x")
    s3.put("empty.csv", b"")
    with pytest.raises(SourceError) as refused:
        source(path)
    assert said in str(refused.value)


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_failed_request_to_a_store_loses_no_row(s3: S3, fault: str) -> None:
    frame = pl.DataFrame({"id": [str(i) for i in range(40_000)], "text": ["x" * 300] * 40_000})
    url = s3.put("a.parquet", parquet(frame, row_group_size=10_000, compression="none"))
    rows = source(url)
    s3.faults += ["ok", fault] * 5
    assert [row["id"] for row in read(rows, "id")] == frame["id"].to_list()
    assert len(s3.faults) < 10


def test_an_object_replaced_while_it_is_read_is_named(s3: S3) -> None:
    frame = pl.DataFrame({"id": [str(i) for i in range(60_000)], "text": ["x" * 300] * 60_000})
    data = parquet(frame, row_group_size=5_000, compression="none", use_dictionary=False)
    url = s3.put("a.parquet", data)
    found = source(url).chunks(["id", "text"])
    next(found)
    s3.put("a.parquet", parquet(frame.with_columns(pl.lit("y").alias("text")), row_group_size=5_000))
    with pytest.raises(objects.Replaced, match=r"s3://bucket/a\.parquet was replaced while it was read"):
        list(found)


# -- files that are written meanwhile --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["written on", "replaced", "removed"])
@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_a_file_written_while_it_is_read_is_named(tmp_path: Path, name: str, how: str) -> None:
    frame = pl.DataFrame({"id": [str(i) for i in range(20_000)], "text": ["x" * 100] * 20_000})
    file = tmp_path / name
    writes = {"a.csv": frame.write_csv, "a.ndjson": frame.write_ndjson, "a.parquet": frame.write_parquet}
    writes[name](file)  # type: ignore[operator]
    found = source(file).chunks(["id", "text"])
    next(found)
    match how:
        case "written on":
            with file.open("ab") as out:
                out.write(b"more")
        case "replaced":
            (tmp_path / "new").write_bytes(file.read_bytes())
            (tmp_path / "new").rename(file)
        case _:
            file.unlink()
    with pytest.raises(SourceError, match=f"{name} was changed while it was read"):
        list(found)


def test_a_file_written_between_the_passes_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id\n1\n")
    rows = source(file)
    assert len(read(rows)) == 1
    file.write_text("id\n1\n2\n")
    with pytest.raises(SourceError, match=r"a\.csv was changed"):
        read(rows)


# -- hive partitions -------------------------------------------------------------------------------------------------


@pytest.fixture
def hive(tmp_path: Path) -> Path:
    """Two days of tickets, one of them in two teams."""
    for part, ids in {
        "dt=2026-11-19/team=a%20b": [1, 2],
        "dt=2026-11-20/team=a%20b": [3],
        "dt=2026-11-20/team=__HIVE_DEFAULT_PARTITION__": [4],
    }.items():
        (tmp_path / "in" / part).mkdir(parents=True)
        frame = pl.DataFrame({"id": ids, "size": [i * 10 for i in ids]})
        frame.write_parquet(tmp_path / "in" / part / "part-0.parquet")
    return tmp_path / "in"


def test_the_columns_of_a_hive_layout_are_columns(hive: Path) -> None:
    rows = source(hive)

    assert rows.columns == ["id", "size", "dt", "team"]
    assert read(rows, "team", "id", "dt") == [
        {"team": "a b", "id": 1, "dt": "2026-11-19"},
        {"team": "a b", "id": 2, "dt": "2026-11-19"},
        {"team": None, "id": 4, "dt": "2026-11-20"},
        {"team": "a b", "id": 3, "dt": "2026-11-20"},
    ]
    assert [row["dt"] for row in read(rows, "dt")] == ["2026-11-19", "2026-11-19", "2026-11-20", "2026-11-20"]
    assert rows.kinds(["dt", "id"]) == {"dt": "text", "id": "integer"}
    assert source(hive, types={"dt": "Date"}).kinds(["dt"]) == {"dt": "date"}


@pytest.mark.parametrize(
    ("where", "ids", "opened"),
    [
        ("dt = '2026-11-20'", [4, 3], 2),
        ("dt = '2026-11-20' AND size > 30", [4], 2),
        ("dt > '2026-11-20'", [], 0),
        ("team IS NULL", [4], 1),
        ("dt = '2026-11-19' OR size = 40", [1, 2, 4], 3),
        ("upper(team) = 'A B'", [1, 2, 3], 3),
        ("size = 10", [1], 3),
    ],
)
def test_files_of_partitions_that_where_leaves_out_are_not_opened(
    hive: Path, where: str, ids: list[int], opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = source(hive, where=where)
    seen: list[str] = []
    for one in rows.inputs:
        assert one.columns  # the headers have been read
    real = pq.ParquetFile

    def counting(raw: Any, **options: Any) -> Any:
        seen.append(raw)
        return real(raw, **options)

    monkeypatch.setattr(pq, "ParquetFile", counting)
    assert [row["id"] for row in read(rows, "id")] == ids
    assert len(seen) == opened


def test_typed_partitions_are_compared_by_their_type(hive: Path) -> None:
    rows = source(hive, where="dt > DATE '2026-11-19'", types={"dt": "Date"})
    assert [row["id"] for row in read(rows, "id")] == [4, 3]


def test_a_file_outside_of_the_partitions_is_named(hive: Path) -> None:
    pl.DataFrame({"id": [9], "size": [1]}).write_parquet(hive / "stray.parquet")
    with pytest.raises(
        SourceError, match=r"column 'dt' is in the folder names of .*dt=.* but not in those of .*stray\.parquet"
    ):
        source(hive)


def test_a_column_of_the_file_overrides_that_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "dt=folder").mkdir()
    (tmp_path / "dt=folder" / "a.csv").write_text("id,dt\n1,file\n")
    assert read(source(tmp_path)) == [{"id": "1", "dt": "file"}]


# -- what where skips ------------------------------------------------------------------------------------------------


def test_row_groups_that_where_rules_out_are_not_read(s3: S3) -> None:
    frame = pl.DataFrame(
        {"id": range(100_000), "day": [i // 10_000 for i in range(100_000)], "text": ["x" * 500] * 100_000}
    )
    url = s3.put("a.parquet", parquet(frame, row_group_size=10_000, compression="none", use_dictionary=False))
    asked = {where: _bytes_read(s3, url, where) for where in ("day = 7", "day >= 0")}

    found = chunks(source(url, where="day = 7"), "id", "text")
    assert [row for chunk in found for row in chunk.frame["id"].to_list()] == list(range(70_000, 80_000))
    assert found[0].place(0) == "a.parquet row 70001"
    assert asked["day = 7"] < asked["day >= 0"] / 5


def _bytes_read(s3: S3, url: str, where: str) -> int:
    rows, before = source(url, where=where), s3.sent
    for _ in rows.chunks(["id", "text"]):
        pass
    return s3.sent - before


@pytest.mark.parametrize(
    "where",
    [
        "x > 5",
        "NOT (x <= 5)",
        "x IS NULL",
        "x > 5 OR id = 0",
        "y = 'b' AND id > 3",
        "y LIKE 'b%'",
        "coalesce(y, 'b') = 'b'",
    ],
)
def test_a_skipped_row_group_never_holds_a_wanted_row(tmp_path: Path, where: str) -> None:
    """NaN is above all numbers to polars, and in no statistics of Parquet."""
    nan = float("nan")
    frame = pl.DataFrame(
        {
            "id": range(8),
            "x": [1.0, nan, None, 2.0, 6.0, 7.0, None, None],
            "y": ["a", "b", None, "bb", "c", "b", None, "b"],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=2)
    expected = frame.filter(pl.sql_expr(where))["id"].to_list()
    assert expected
    assert [row["id"] for row in read(source(tmp_path / "a.parquet", where=where), "id")] == expected


# -- CSV as it comes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "csv", "rows"),
    [
        pytest.param("id;t\n1;'a;b'\n", {"delimiter": ";", "quote": "'"}, [{"id": "1", "t": "a;b"}], id="delimiter"),
        pytest.param('id,t\n1,say "x"\n', {"quote": ""}, [{"id": "1", "t": 'say "x"'}], id="no quotes"),
        pytest.param(
            "1,a\n2,b\n",
            {"header": False, "columns": ["id", "t"]},
            [{"id": "1", "t": "a"}, {"id": "2", "t": "b"}],
            id="no header",
        ),
        pytest.param(
            'id,t,u\n1,NA,\n2,"NA",x\n',
            {"null_values": ["NA"]},
            [{"id": "1", "t": None, "u": ""}, {"id": "2", "t": "NA", "u": "x"}],
            id="nulls",
        ),
        pytest.param("id,t\n1,\n", {"null_values": [""]}, [{"id": "1", "t": None}], id="empty is null"),
    ],
)
def test_csv_is_read_by_the_options_of_the_job(tmp_path: Path, text: str, csv: dict[str, Any], rows: list[Any]) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert read(source(tmp_path / "a.csv", csv=csv)) == rows


def test_without_a_header_columns_are_numbered_and_rows_count_from_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1,a\n2,b\n")
    rows = Rows(Source(path=[str(file)], key=["column_1"], csv={"header": False}))  # type: ignore[arg-type]
    assert rows.columns == ["column_1", "column_2"]
    file.write_text("1,a\n2,b,c\n")
    with pytest.raises(SourceError, match=r"a\.csv row 2: the row has 3 fields, the first row 2"):
        read(Rows(Source(path=[str(file)], key=["column_1"], csv={"header": False})))  # type: ignore[arg-type]


# -- queries ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def warehouse(tmp_path: Path) -> str:
    """The URL of a SQLite database with tickets."""
    with sqlite3.connect(tmp_path / "warehouse.db") as conn:
        conn.execute("CREATE TABLE tickets (id INTEGER PRIMARY KEY, body TEXT, size REAL)")
        rows = [(i, f"100% of :ticket {i}", None if i < 300 else i / 2) for i in range(7_000)]
        conn.executemany("INSERT INTO tickets VALUES (?, ?, ?)", rows)
    conn.close()
    return f"sqlite:///{tmp_path}/warehouse.db"


def query(sql: str, database: str, **fields: Any) -> Rows:
    return Rows(Source(query=sql, database=database, key=["id"], **fields))


def test_the_rows_of_a_query_are_a_source(warehouse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_URL", warehouse)
    rows = query(
        "SELECT id, body, size FROM tickets WHERE body LIKE '100%' ORDER BY id", "$WAREHOUSE_URL", where="id <> 5"
    )
    found = chunks(rows)

    assert rows.columns == ["id", "body", "size"]
    assert [id for chunk in found for id in chunk.frame["id"]] == [i for i in range(7_000) if i != 5]
    assert found[0].frame["body"][0] == "100% of :ticket 0"
    assert found[0].place(5) == "source.query row 7"
    assert len(found) > 2
    assert rows.kinds(["id", "body", "size"]) == {"id": "integer", "body": "text", "size": "number"}


def test_a_query_of_postgresql_uses_a_server_side_cursor(postgres_server: str) -> None:
    url = postgres_server.replace("postgresql+psycopg", "postgresql")
    sql = "SELECT i AS id, repeat('x', 10000) AS body, pg_backend_pid() AS pid FROM generate_series(1, 3000) i"
    rows = query(sql, postgres_server)
    found = rows.chunks(["id", "body", "pid"])
    first = next(found)
    with psycopg.connect(url) as conn:
        cursors = conn.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", (first.frame["pid"][0],)).fetchall()
    assert "FETCH" in cursors[0][0]  # and not the whole result at once
    assert first.frame.height + sum(chunk.frame.height for chunk in found) == 3000
    assert first.frame.estimated_size() <= 2 * CHUNK_BYTES
    with pytest.raises(SourceError, match="read-only transaction"):
        read(query("SELECT lo_create(0) AS id", postgres_server))


@pytest.mark.parametrize(
    ("sql", "database", "said"),
    [
        ("SELECT nope FROM tickets", None, "no such column: nope; check source.query"),
        ("DELETE FROM tickets WHERE id < 0", None, "source.query begins with DELETE"),
        ("-- a\n INSERT INTO tickets VALUES (9, '') RETURNING id", None, "source.query begins with INSERT"),
        ("WITH a AS (SELECT 1) INSERT INTO tickets SELECT 9, 'x', 1 FROM a RETURNING id", None, "readonly database"),
        ("SAVEPOINT a", None, "source.query is a statement that gives no rows"),
        ("SELECT id, id FROM tickets", None, "column 'id' occurs twice"),
        ("SELECT id, CASE WHEN id < 150 THEN 1 ELSE 'x' END AS v FROM tickets", None, "row 151: column 'v' holds 'x'"),
        ("SELECT 1 AS id", "$NOT_SET_HERE", "environment variable NOT_SET_HERE is not set"),
        ("SELECT 1 AS id", "sqlite:////nowhere/x.db", "there is no SQLite file /nowhere/x.db"),
        ("SELECT 1 AS id", "nonsense", "is not a database URL"),
        ("SELECT 1 AS id", "nodialect://host/x", "driver is not installed"),
        ("SELECT 1 AS id", "postgresql://127.0.0.1:1/x", "check source.query and source.database"),
    ],
)
def test_a_query_that_cannot_be_executed_is_refused(warehouse: str, sql: str, database: str | None, said: str) -> None:
    with pytest.raises(SourceError) as refused:
        read(query(sql, database or warehouse))
    assert said in str(refused.value)


def test_a_password_in_the_job_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="environment variable") as refused:
        Source(query="SELECT 1", database="postgresql://me:hush-hush@host/x", key=["id"])
    assert "hush" not in str(refused.value).replace("input_value", "").split("[type=")[0]


def test_a_database_path_is_relative_to_the_job_file(tmp_path: Path, warehouse: str) -> None:
    text = (
        "name: asked\nsource:\n  query: SELECT id, body FROM tickets\n  database: {}\n  key: id\n"
        "request: {{model: m, max_tokens: 5, prompt: '{{{{ body }}}}'}}\nsink: {{table: t}}\n"
    )
    (tmp_path / "job.yaml").write_text(text.format("sqlite:///warehouse.db"))
    loaded = load(tmp_path / "job.yaml", variables={}, today=TODAY)
    assert loaded.source.database == warehouse
    (tmp_path / "job.yaml").write_text(text.format("postgresql://me:hush@host/x"))
    with pytest.raises(JobError, match=r"line 2: source: .*NAME here") as refused:
        load(tmp_path / "job.yaml", variables={}, today=TODAY)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "it has none of them"),
        ({"path": "a.csv", "query": "SELECT 1", "database": "x"}, "it has path and query"),
        ({"query": "SELECT 1"}, "query and database need each other"),
    ],
)
def test_a_source_has_exactly_one_of_path_query_and_frame(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Source(key=["id"], **fields)


# -- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [FRAME, pd.DataFrame(TWO_ROWS), FRAME.to_arrow()], ids=["polars", "pandas", "Arrow"])
def test_a_frame_is_a_source(frame: Any) -> None:
    rows = Rows(Source(frame=frame, key=["id"]))
    assert read(rows) == TWO_ROWS
    assert chunks(rows)[0].place(1) == "source.frame row 2"


def test_an_object_that_is_not_a_frame_is_refused() -> None:
    with pytest.raises(SourceError, match="a int is not a frame"):
        Rows(Source(frame=5, key=["id"]))


# -- whole runs ------------------------------------------------------------------------------------------------------


def texts(world: World) -> dict[str, str]:
    return {key: answer["status"] for key, answer in world.answers().items()}


def test_an_interrupted_run_over_objects_continues(world: World, s3: S3) -> None:
    for day in (1, 2):
        s3.put(f"in/dt=2026-11-0{day}/a.csv.zst", zstd(f"id,text\n{day}0,{day}a\n{day}1,{day}b\n".encode()))
    job = world.job(source={"path": "s3://bucket/in", "key": "id", "keep": ["dt"]})

    assert world.run(job).exit_code == 0
    s3.put("in/dt=2026-11-03/a.csv.zst", zstd(b"id,text\n30,c\n"))
    assert world.run(job).exit_code == 0

    assert {key: (a["status"], a["dt"]) for key, a in world.answers().items()} == {
        "10": ("succeeded", "2026-11-01"),
        "11": ("succeeded", "2026-11-01"),
        "20": ("succeeded", "2026-11-02"),
        "21": ("succeeded", "2026-11-02"),
        "30": ("succeeded", "2026-11-03"),
    }
    assert world.accepted() == 5


def test_a_run_over_a_frame_is_stored_without_its_rows(world: World) -> None:
    fields = world.job().model_dump()
    frame = pl.DataFrame({"id": ["a", "b"], "text": ["x", "y"]})
    job = Job.model_validate({**fields, "source": frame, "key": "id"})

    assert world.run(job).exit_code == 0
    assert world.run(job).exit_code == 0

    assert texts(world) == {"a": "succeeded", "b": "succeeded"}
    assert world.accepted() == 2
    stored = Job.model_validate(orjson.loads(orjson.dumps(job.model_dump(mode="json"))))
    with pytest.raises(SourceError, match="run the job from Python again, with its frame"):
        Rows(stored.source)


def test_a_run_over_a_query(world: World, warehouse: str) -> None:
    job = world.job(
        source={
            "path": None,
            "query": "SELECT id, body AS text FROM tickets LIMIT 20",
            "database": warehouse,
            "key": "id",
        }
    )
    assert world.run(job).exit_code == 0
    assert world.run(job).exit_code == 0
    assert len(world.answers()) == world.accepted() == 20


# -- attachments beside an object ------------------------------------------------------------------------------------


def photo_job(world: World, **attachment: Any) -> Job:
    return world.job(
        source={"path": "s3://bucket/in/rows.csv", "key": "id"},
        request={"attachments": [{"image": "photo", **attachment}], "prompt": "What is it? {{ text }}"},
    )


@pytest.fixture
def photos(s3: S3) -> S3:
    from tests.request.test_attachments import picture

    s3.put("in/photos/red.png", picture())
    s3.put("in/photos/fake.png", b"no picture")
    s3.put("secret.png", picture())
    s3.put(
        "in/rows.csv",
        b"id,text,photo\n1,a,photos/red.png\n2,b,./photos/../photos/red.png\n3,c,photos/none.png\n"
        b"4,d,../secret.png\n5,e,photos/fake.png\n6,f,/in/photos/red.png\n",
    )
    return s3


@pytest.mark.parametrize("upload", [False, True], ids=["carried", "uploaded"])
def test_attachments_are_read_from_the_folder_of_their_rows_on_object_storage(
    world: World, photos: S3, upload: bool
) -> None:
    world.run(photo_job(world, upload=upload))

    answers = world.answers()
    assert {key: answer["status"] for key, answer in answers.items()} == {
        "1": "succeeded",
        "2": "succeeded",
        "3": "invalid",
        "4": "invalid",
        "5": "invalid",
        "6": "succeeded",
    }
    assert answers["3"]["error_message"] == "column 'photo': 'photos/none.png' does not exist"
    assert "'../secret.png' leads out of s3://bucket/in" in answers["4"]["error_message"]
    assert "is plain text" in answers["5"]["error_message"]
    assert [name for name in photos.requests if name.startswith("GET") and "red.png" in name] != []


def test_a_row_whose_attachment_changes_is_sent_again(world: World, photos: S3) -> None:
    from tests.request.test_attachments import picture

    photos.put("in/rows.csv", b"id,text,photo\n1,a,photos/red.png\n2,b,photos/blue.png\n")
    photos.put("in/photos/blue.png", picture(size=(5, 5)))
    world.run(photo_job(world))
    world.run(photo_job(world))
    assert world.accepted() == 2
    photos.put("in/photos/blue.png", picture(size=(9, 9)))
    world.run(photo_job(world))
    assert world.accepted() == 3
    assert world.sent_twice() == []


def test_an_attachment_needs_a_folder(world: World, warehouse: str) -> None:
    sql = "SELECT id, body AS text, 'a.png' AS photo FROM tickets LIMIT 1"
    job = world.job(
        source={"path": None, "query": sql, "database": warehouse, "key": "id"},
        request={"attachments": [{"image": "photo"}], "prompt": "{{ text }}"},
    )
    world.run(job)
    assert "a query has no folder" in world.answers()["0"]["error_message"]


# -- a source that changes between the passes ------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "on object storage"])
def test_a_source_changed_between_the_passes_stops_the_run_and_a_second_run_continues(
    world: World, s3: S3, where: str
) -> None:
    rows = [f"{i},text {i}\n" for i in range(40)]

    def write(some: list[str]) -> str:
        data = ("id,text\n" + "".join(some)).encode()
        if where == "on object storage":
            return s3.put("rows.csv", data)
        (world.folder / "rows.csv").write_bytes(data)
        return str(world.folder / "rows.csv")

    job = world.job(source={"path": write(rows[:20])})

    def change(event: str, facts: dict[str, Any]) -> None:
        if event == "quote":
            write(rows)
            world.on_event = None

    world.on_event = change
    with pytest.raises(Stopped, match=r"rows\.csv was (changed|replaced) while it was read"):
        world.run(job)
    assert world.run(job).exit_code == 0
    assert len(world.answers()) == world.accepted() == 40
