"""Which files a source has, by its path and their content; the same locally and on object storage."""

import bz2
import gzip
import io
import lzma
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipeline.errors import SourceError
from pipeline.job.model import Source
from pipeline.source import files
from pipeline.source.rows import Rows
from tests.support.object_storage import S3

CSV = b"id,text\n1,a\n"
Put = Callable[[str, bytes], str]


@pytest.fixture(params=["here", "on object storage"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Put:
    """Puts a file somewhere; returns the path or the URL of the folder in which all files are put."""
    if request.param == "here":

        def write(name: str, content: bytes) -> str:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
            return str(tmp_path)

        return write
    s3: S3 = request.getfixturevalue("s3")

    def upload(name: str, content: bytes) -> str:
        s3.put(name, content)
        return "s3://bucket"

    return upload


def ids(*paths: str, **fields: Any) -> list[str]:
    rows = Rows(Source(path=list(paths), key=["id"], **fields))
    return [str(key) for chunk in rows.chunks(["id"]) for key in chunk.frame["id"]]


def refusal(*paths: str, **fields: Any) -> str:
    with pytest.raises(SourceError) as refused:
        ids(*paths, **fields)
    return str(refused.value)


# -- names -----------------------------------------------------------------------------------------------------------

NAMES = ["a.csv", ".h.csv", "_u.csv", "d/b.csv", "d/e/c.csv", "_temporary/0/p.csv", ".cache/q.csv", "d/_t/r.csv"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        pytest.param("", ["a.csv", "d/b.csv", "d/e/c.csv"], id="a folder"),
        pytest.param("/*.csv", ["a.csv"], id="one level"),
        pytest.param("/**/*.csv", ["a.csv", "d/b.csv", "d/e/c.csv"], id="all levels"),
        pytest.param("/**", ["a.csv", "d/b.csv", "d/e/c.csv"], id="all levels, any name"),
        pytest.param("/*/*.csv", ["d/b.csv"], id="two levels"),
        pytest.param("/[!x]*.csv", ["a.csv"], id="any character but one"),
        pytest.param("/?*.csv", ["a.csv"], id="any character"),
        pytest.param("/.*.csv", [".h.csv"], id="a dot in the pattern"),
        pytest.param("/_*.csv", ["_u.csv"], id="an underscore in the pattern"),
        pytest.param("/_temporary/**/*.csv", ["_temporary/0/p.csv"], id="a folder with an underscore, by its name"),
    ],
)
def test_names_that_begin_with_a_dot_or_an_underscore_are_left_out_everywhere(
    put: Put, pattern: str, names: list[str]
) -> None:
    (root,) = {put(f"in/{name}", CSV) + "/in" for name in NAMES}

    paths = [file.path for file in files.find(Source(path=[root + pattern], key=["id"]))]

    assert [path.removeprefix(f"{root}/") for path in paths] == names


def test_a_pattern_that_matches_hidden_names_only_says_so(put: Put) -> None:
    root = put("_u.csv", CSV)

    assert "a name that begins with . or _ matches only a pattern that begins with the" in refusal(f"{root}/*.csv")


def test_source_format_gives_the_format_of_files_with_any_name(put: Put) -> None:
    put("in/part-0", b'{"id": 1}\n')
    put("in/part-1.json", b'{"id": 2}\n')
    put("in/part-2.json.gz", gzip.compress(b'{"id": 3}\n'))
    root = put("in/_SUCCESS", b"x")

    assert ids(f"{root}/in", format="ndjson") == ["1", "2", "3"]
    assert ids(f"{root}/in/*.json", format="ndjson") == ["2"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        pytest.param("csv", b"id,t\n1,a\n", id="CSV"),
        pytest.param("tsv", b"id\tt\n1\ta\n", id="TSV"),
        pytest.param("ndjson", b'{"id": "1"}\n', id="NDJSON"),
    ],
)
def test_source_format_overrides_the_name(put: Put, kind: str, content: bytes) -> None:
    root = put("rows.parquet", content)

    assert ids(f"{root}/rows.parquet", format=kind) == ["1"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files_that_say_their_types_may_have_any_name(put: Put, kind: str) -> None:
    out, frame = io.BytesIO(), pl.DataFrame({"id": [1]})
    frame.write_parquet(out) if kind == "parquet" else frame.write_ipc(out)
    root = put("rows", out.getvalue())

    assert ids(f"{root}/rows", format=kind) == ["1"]


def test_a_format_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="format applies to files, and there is no path"):
        Source(query="SELECT 1", database="sqlite://", key=["id"], format="csv")


def test_an_unknown_ending_is_refused_with_a_hint_at_source_format(put: Put) -> None:
    assert "set source.format to csv" in refusal(f"{put('rows.json', b'{}')}/rows.json")


# -- files without a row ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".ndjson", ".parquet", ".csv.gz"])
def test_a_file_of_no_bytes_among_others_has_no_row(put: Put, ending: str) -> None:
    out = io.BytesIO()
    pl.DataFrame({"id": ["1"]}).write_parquet(out)
    content = {".csv": CSV, ".ndjson": b'{"id": "1"}', ".parquet": out.getvalue(), ".csv.gz": gzip.compress(CSV)}[
        ending
    ]
    put(f"in/part-00000{ending}", b"")
    root = put(f"in/part-00001{ending}", content)

    assert ids(f"{root}/in") == ids(f"{root}/in/*{ending}") == ["1"]


@pytest.mark.parametrize(
    ("ending", "nothing"),
    [
        pytest.param(".gz", gzip.compress(b""), id="gzip"),
        pytest.param(".zst", pa.Codec("zstd").compress(b"", asbytes=True), id="zstd"),
    ],
)
def test_a_compressed_file_of_no_bytes_among_others_has_no_row(put: Put, ending: str, nothing: bytes) -> None:
    put(f"in/part-0.csv{ending}", nothing)
    root = put("in/part-1.csv", CSV)

    assert ids(f"{root}/in") == ["1"]


def test_a_source_of_empty_files_only_is_empty(put: Put) -> None:
    put("in/a.csv", b"")
    root = put("in/b.csv", b"")

    assert refusal(f"{root}/in").endswith("a.csv is empty")


# -- folders that are tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "kind", "way_out"),
    [
        pytest.param("_delta_log/0.json", "a Delta table", "polars.scan_delta", id="Delta"),
        pytest.param("metadata/v1.metadata.json", "an Iceberg table", "polars.scan_iceberg", id="Iceberg"),
        pytest.param(".hoodie/hoodie.properties", "a Hudi table", "a tool that knows Hudi", id="Hudi"),
    ],
)
@pytest.mark.parametrize("path", ["/lake/t", "/lake/t/", "/lake", "/lake/t/*.csv", "/lake/**/*.csv"])
def test_a_folder_that_is_a_lake_table_is_refused_with_a_remedy(
    put: Put, marker: str, kind: str, way_out: str, path: str
) -> None:
    put("lake/t/part-0.csv", CSV)
    root = put(f"lake/t/{marker}", b"{}")

    message = refusal(root + path)

    assert message.startswith(
        f"source.path: {root}/lake/t is {kind}, and some of its files hold rows that were deleted"
    )
    assert way_out in message


@pytest.mark.parametrize("path", ["/dt=2026-11-20", "/dt=2026-11-20/*.csv", "/*/*.csv", "/dt=2026-11-20/h=1/"])
@pytest.mark.parametrize(
    ("data", "marker", "kind"),
    [
        pytest.param("t", "t/_delta_log/0.json", "a Delta table", id="Delta"),
        pytest.param("t", "t/.hoodie/hoodie.properties", "a Hudi table", id="Hudi"),
        pytest.param("t/data", "t/metadata/v1.metadata.json", "an Iceberg table", id="Iceberg"),
    ],
)
def test_a_partition_of_a_table_is_refused_too(put: Put, path: str, data: str, marker: str, kind: str) -> None:
    (root,) = {put(name, CSV) for name in (f"{data}/dt=2026-11-20/a.csv", f"{data}/dt=2026-11-20/h=1/b.csv", marker)}

    assert f"{root}/t is {kind}" in refusal(f"{root}/{data}{path}")


def test_one_file_of_a_table_that_is_named_is_read(put: Put) -> None:
    put("t/_delta_log/0.json", b"{}")
    root = put("t/part-0.csv", CSV)

    assert ids(f"{root}/t/part-0.csv") == ["1"]


def test_a_folder_named_metadata_is_not_a_lake_table(put: Put) -> None:
    put("in/metadata/a.csv", CSV)
    root = put("in/metadata/notes.json", b"{}")

    assert ids(f"{root}/in") == ["1"]


# -- files that are not what their names say -------------------------------------------------------------------------


def parquet() -> bytes:
    out = io.BytesIO()
    pl.DataFrame({"id": ["1"]}).write_parquet(out)
    return out.getvalue()


def arrow(*, stream: bool) -> bytes:
    out = io.BytesIO()
    frame = pl.DataFrame({"id": ["1"]})
    frame.write_ipc_stream(out) if stream else frame.write_ipc(out)
    return out.getvalue()


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "<x/>")
    return out.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "x.db") as conn:
        conn.execute("CREATE TABLE t (id)")
    conn.close()
    return (folder / "x.db").read_bytes()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>"


@pytest.mark.parametrize("ending", ["csv", "tsv", "ndjson"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(gzip.compress(CSV), "is a gzip file; name it rows.END.gz", id="gzip"),
        pytest.param(pa.Codec("zstd").compress(CSV, asbytes=True), "is a zstd file; name it rows.END.zst", id="zstd"),
        pytest.param(bz2.compress(CSV), "is a bzip2 file; unpack it, or compress it by gzip or zstd", id="bzip2"),
        pytest.param(lzma.compress(CSV), "is an xz file; unpack it", id="xz"),
        pytest.param(
            zipped("[Content_Types].xml", "xl/workbook.xml"),
            "is an Excel workbook (.xlsx); save it as CSV, or pass a frame",
            id="xlsx",
        ),
        pytest.param(zipped("rows.csv"), "is a zip archive; unpack it", id="zip"),
        pytest.param(LFS, "is a pointer of Git LFS, not the file itself; fetch the file: git lfs pull", id="Git LFS"),
        pytest.param(parquet(), "is a Parquet file; name it rows.parquet, or set source.format: parquet", id="Parquet"),
        pytest.param(arrow(stream=False), "is an Arrow file; name it rows.arrow", id="Arrow"),
        pytest.param(arrow(stream=True), "is an Arrow stream; name it rows.arrow", id="Arrow stream"),
        pytest.param(HTML, "is an HTML page; download the file itself", id="HTML"),
    ],
)
def test_a_file_that_is_not_text_is_refused_with_its_kind(
    tmp_path: Path, ending: str, content: bytes, said: str
) -> None:
    file = tmp_path / f"rows.{ending}"
    file.write_bytes(content)

    assert refusal(str(file)).startswith(f"{file} {said.replace('END', ending)}")


@pytest.mark.parametrize("ending", ["csv", "ndjson"])
def test_an_object_that_is_not_text_is_refused_with_its_kind(s3: S3, ending: str) -> None:
    url = s3.put(f"rows.{ending}", gzip.compress(CSV))

    assert refusal(url) == f"{url} is a gzip file; name it rows.{ending}.gz"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("rows.parquet", CSV, "is a text file; name it rows.csv, .tsv or .ndjson", id="CSV"),
        pytest.param("rows.parquet", LFS, "is a pointer of Git LFS", id="Git LFS as Parquet"),
        pytest.param("rows.parquet", gzip.compress(CSV), "is a gzip file", id="gzip as Parquet"),
        pytest.param("rows.parquet", arrow(stream=False), "is an Arrow file", id="Arrow as Parquet"),
        pytest.param("rows.arrow", parquet(), "is a Parquet file; name it rows.parquet", id="Parquet as Arrow"),
        pytest.param(
            "rows.csv.gz", CSV, "is not compressed, although its name says so; name it rows.csv", id="not compressed"
        ),
        pytest.param("rows.csv.zst", gzip.compress(CSV), "is a gzip file; name it rows.csv.gz", id="gzip as zstd"),
        pytest.param("rows.csv.gz", LFS, "is a pointer of Git LFS", id="Git LFS as gzip"),
        pytest.param(
            "rows.csv.gz", gzip.compress(gzip.compress(CSV)), "decompressed content is a gzip file", id="gzip twice"
        ),
    ],
)
def test_an_unreadable_file_is_refused_with_its_kind(put: Put, name: str, content: bytes, said: str) -> None:
    root = put(name, content)

    assert said in refusal(f"{root}/{name}")


def test_a_sqlite_database_is_refused_with_its_kind(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(database(tmp_path))

    assert "is an SQLite database; read it by source.query" in refusal(str(tmp_path / "rows.csv"))


def test_text_that_begins_like_another_kind_is_text(put: Put) -> None:
    root = put("rows.csv", b"id,BZh9\n1,PK\n")
    put("b.csv", b"BZhang,id\n1,2\n")
    put("c.csv", b"PAR1,id\n1,3\n")

    assert ids(f"{root}/rows.csv") == ["1"]
    assert ids(f"{root}/b.csv") == ["2"]
    assert ids(f"{root}/c.csv") == ["3"]


def test_the_first_bytes_of_an_object_need_no_extra_request(s3: S3) -> None:
    rows = Rows(Source(path=[s3.put("a.ndjson", b'{"id": 1}\n')], key=["id"]))

    s3.requests.clear()
    assert [chunk.frame.height for chunk in rows.chunks(["id"])] == [1]
    assert s3.requests == ["GET /bucket/a.ndjson"]
