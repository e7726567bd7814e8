"""Files are read unchanged in chunks of bounded size, and faults are reported with file, row and column."""

import gzip
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pytest

from pipeline.errors import SourceError
from pipeline.job.model import Source
from pipeline.source import identity
from pipeline.source.frames import CHUNK_ROWS
from pipeline.source.rows import Chunk, Rows

Row = dict[str, Any]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def written(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return written


Write = Callable[[str, str | bytes], Path]


def rows_of(*paths: Path | str, **source: Any) -> Rows:
    return Rows(Source(path=[str(path) for path in paths], key=["id"], **source))


def chunks(
    *paths: Path | str, columns: list[str] | None = None, limit: int | None = None, **source: Any
) -> list[Chunk]:
    rows = rows_of(*paths, **source)
    return list(rows.chunks(columns or rows.columns, limit=limit))


def read(*paths: Path | str, columns: list[str] | None = None, limit: int | None = None, **source: Any) -> list[Row]:
    return [row for c in chunks(*paths, columns=columns, limit=limit, **source) for row in c.frame.to_dicts()]


def refusal(*paths: Path | str, columns: list[str] | None = None, **source: Any) -> str:
    with pytest.raises(SourceError) as refused:
        read(*paths, columns=columns, **source)
    return str(refused.value)


def zstd(content: bytes) -> bytes:
    compressed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return compressed


# -- formats ---------------------------------------------------------------------------------------------------------

TWO_ROWS = [{"id": "1", "text": "one, ä"}, {"id": "2", "text": "two"}]
CSV = b'id,text\n1,"one, \xc3\xa4"\n2,two\n'
TSV = b"id\ttext\n1\tone, \xc3\xa4\n2\ttwo\n"
NDJSON = b'{"id":"1","text":"one, \xc3\xa4"}\n{"id":"2","text":"two"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.csv", CSV, id="CSV"),
        pytest.param("a.CSV", CSV, id="CSV in capitals"),
        pytest.param("a.tsv", TSV, id="TSV"),
        pytest.param("a.ndjson", NDJSON, id="NDJSON"),
        pytest.param("a.jsonl", NDJSON + b"\n\n", id="JSON lines with a blank one"),
        pytest.param("a.csv.gz", gzip.compress(CSV), id="CSV.gz"),
        pytest.param("a.tsv.gz", gzip.compress(TSV), id="TSV.gz"),
        pytest.param("a.ndjson.gz", gzip.compress(NDJSON), id="NDJSON.gz"),
        pytest.param("a.csv.zst", zstd(CSV), id="CSV.zst"),
        pytest.param("a.tsv.zst", zstd(TSV), id="TSV.zst"),
        pytest.param("a.jsonl.zst", zstd(NDJSON), id="JSON lines.zst"),
        pytest.param("a.2026.11.csv", CSV, id="dots in the name"),
        pytest.param("a.csv", CSV.replace(b"\n", b"\r\n"), id="CSV with CRLF"),
        pytest.param("a.csv", b"\xef\xbb\xbf" + CSV, id="CSV with a byte order mark"),
        pytest.param("a.csv", CSV.rstrip(b"\n"), id="CSV without a last newline"),
        pytest.param("a.csv.gz", gzip.compress(CSV[:20]) + gzip.compress(CSV[20:]), id="gzip in two members"),
    ],
)
def test_each_format_gives_the_same_rows(write: Write, name: str, content: bytes) -> None:
    assert read(write(name, content)) == TWO_ROWS


@pytest.mark.parametrize("suffix", ["parquet", "pq"])
def test_parquet_keeps_its_types_and_nulls(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame(
        {
            "id": [1, 2],
            "text": ["a", None],
            "empty": ["", "x"],
            "price": [1.5, None],
            "day": [date(2026, 11, 20), None],
            "tags": [["a", "b"], None],
        }
    )
    frame.write_parquet(tmp_path / f"a.{suffix}")

    assert read(tmp_path / f"a.{suffix}") == frame.to_dicts()


def test_ndjson_keeps_kinds_and_nulls_and_an_absent_field_is_null(write: Write) -> None:
    lines = [
        {"id": 1, "text": "a", "price": 1.5, "paid": True},
        {"id": 2, "text": None, "price": None, "paid": None},
        {"id": 3},
    ]

    rows = read(write("a.ndjson", b"\n".join(map(orjson.dumps, lines))))

    assert rows == [
        {"id": 1, "text": "a", "price": 1.5, "paid": True},
        {"id": 2, "text": None, "price": None, "paid": None},
        {"id": 3, "text": None, "price": None, "paid": None},
    ]


def test_nested_values_of_ndjson_are_unchanged(write: Write) -> None:
    rows = read(write("a.ndjson", b'{"id":1,"a":{"b":[1,2]}}\n{"id":2,"a":[]}\n{"id":3,"a":null}\n'))

    assert [row["a"] for row in rows] == [{"b": [1, 2]}, [], None]


def test_other_line_ends_inside_of_ndjson_text_do_not_split_it(write: Write) -> None:
    text = "a\u2028b\u0085c\x0bd"

    rows = read(write("a.ndjson", '{"id":1,"text":"a\u2028b\u0085c\\u000bd"}\n{"id":2,"text":"x"}'))

    assert [row["text"] for row in rows] == [text, "x"]


# -- text as it stands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "text"),
    [
        pytest.param("08123", "08123", id="a leading zero"),
        pytest.param("1e5", "1e5", id="what looks like an exponent"),
        pytest.param("1.50", "1.50", id="a trailing zero"),
        pytest.param("NULL", "NULL", id="the word NULL"),
        pytest.param("N/A", "N/A", id="N/A"),
        pytest.param("nan", "nan", id="nan"),
        pytest.param("true", "true", id="true"),
        pytest.param("2026-11-20", "2026-11-20", id="a date"),
        pytest.param("", "", id="an empty field"),
        pytest.param('""', "", id="a quoted empty field"),
        pytest.param("  blanks ", "  blanks ", id="blanks"),
        pytest.param('"a, b"', "a, b", id="a comma"),
        pytest.param('"say ""hi"""', 'say "hi"', id="quotes"),
        pytest.param('"a\nb\r\nc"', "a\nb\r\nc", id="newlines"),
        pytest.param('"\n"', "\n", id="nothing but a newline"),
        pytest.param('5" disk', '5" disk', id="a quote inside"),
        pytest.param("back\\slash", "back\\slash", id="a backslash"),
        pytest.param("# comment", "# comment", id="a hash"),
        pytest.param("ä€😀 العربية", "ä€😀 العربية", id="any script"),
        pytest.param("=SUM(A1)", "=SUM(A1)", id="a formula"),
    ],
)
def test_a_csv_field_is_unchanged_text(write: Write, field: str, text: str) -> None:
    rows = read(write("a.csv", f"id,text,last\n1,{field},z\n2,x,z\n"))

    assert rows == [{"id": "1", "text": text, "last": "z"}, {"id": "2", "text": "x", "last": "z"}]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "shift-jis", "UTF-8"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_another_encoding_is_read_when_the_job_names_it(write: Write, encoding: str, name: str) -> None:
    text = "ラベル" if encoding == "shift-jis" else "Käse"
    content = f"id,text\n1,{text}\n".encode(encoding)

    rows = read(write(name, gzip.compress(content) if name.endswith("gz") else content), encoding=encoding)

    assert rows == [{"id": "1", "text": text}]


def test_ndjson_in_another_encoding_is_read_too(write: Write) -> None:
    file = write("a.ndjson", '{"id":1,"text":"Käse"}\n'.encode("latin-1"))

    assert read(file, encoding="latin-1") == [{"id": 1, "text": "Käse"}]


# -- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        pytest.param("Int64", "08123", 8123, id="whole number"),
        pytest.param("Int64", "-5", -5, id="negative number"),
        pytest.param("Int32", "5", 5, id="small number"),
        pytest.param("Float64", "1.50", 1.5, id="fraction"),
        pytest.param("Boolean", "TRUE", True, id="truth"),
        pytest.param("Boolean", "0", False, id="zero as a truth"),
        pytest.param("Boolean", "t", True, id="a truth as PostgreSQL copies it"),
        pytest.param("Boolean", "f", False, id="an untruth as PostgreSQL copies it"),
        pytest.param("Decimal", "1.50", Decimal("1.50"), id="decimal"),
        pytest.param("Decimal", f"{'7' * 60}.10", Decimal(f"{'7' * 60}.10"), id="long decimal"),
        pytest.param("Date", "2026-11-20", date(2026, 11, 20), id="date"),
        pytest.param("Datetime", "2026-11-20 10:30:05", datetime(2026, 11, 20, 10, 30, 5), id="time"),  # noqa: DTZ001
        pytest.param("Datetime", "2026-11-20T10:30:05Z", datetime(2026, 11, 20, 10, 30, 5), id="ISO time"),  # noqa: DTZ001
        pytest.param("Datetime", "2026-11-20T10:30", datetime(2026, 11, 20, 10, 30), id="minutes"),  # noqa: DTZ001
        pytest.param("Datetime", "2026-11-20", datetime(2026, 11, 20), id="a day as a time"),  # noqa: DTZ001
        pytest.param("Datetime", "2026-11-20T10:30:05+02:00", datetime(2026, 11, 20, 8, 30, 5), id="an offset"),  # noqa: DTZ001
        pytest.param("Datetime", "2026-11-20 10:30:05-0530", datetime(2026, 11, 20, 16, 0, 5), id="a west offset"),  # noqa: DTZ001
        pytest.param("Datetime", "2026-11-20 10:30+02", datetime(2026, 11, 20, 8, 30), id="minutes with an offset"),  # noqa: DTZ001
        pytest.param("Datetime", "2026-11-20 10:30:05+00", datetime(2026, 11, 20, 10, 30, 5), id="no offset, said"),  # noqa: DTZ001
        pytest.param("String", "08123", "08123", id="text"),
        pytest.param("Int64", "", None, id="an empty field as a number"),
        pytest.param("Date", "", None, id="an empty field as a date"),
    ],
)
def test_a_typed_column_has_values_of_its_type(write: Write, dtype: str, text: str, value: object) -> None:
    rows = read(write("a.csv", f"id,x,y\n1,{text},{text}\n"), types={"x": dtype})

    assert rows == [{"id": "1", "x": value, "y": text}]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        pytest.param("Int64", "1.5", id="a fraction as a whole number"),
        pytest.param("Int64", "x", id="a letter"),
        pytest.param("Int32", "3000000000", id="too large"),
        pytest.param("Float64", "1,5", id="a comma"),
        pytest.param("Boolean", "maybe", id="no truth"),
        pytest.param("Date", "20.11.2026", id="another way to write dates"),
        pytest.param("Date", "2026-02-30", id="no such day"),
        pytest.param("Datetime", "noon", id="no time"),
        pytest.param("Datetime", "2026-11-20T10:30:05.1234567", id="more digits than microseconds"),
        pytest.param("Datetime", "2026-11-20+02:00", id="a day with an offset"),
        pytest.param("Float64", "1e400", id="beyond a double"),
        pytest.param("Decimal", "1,5", id="a decimal with a comma"),
    ],
)
def test_a_value_that_is_not_of_its_type_is_named_with_file_row_and_column(write: Write, dtype: str, text: str) -> None:
    message = refusal(write("a.csv", f'id,x\n1,\n2,\n3,"{text}"\n'), types={"x": dtype})

    assert f"a.csv row 3: column 'x' is {text!r}, which is not a valid {dtype}; correct the value" in message


def test_the_row_of_a_wrong_value_is_right_in_a_later_chunk_and_file(write: Write) -> None:
    write("in/a.csv", "id,x\n" + "".join(f"{n},1\n" for n in range(20)))
    write("in/b.csv", "id,x\n" + "".join(f"{n},1\n" for n in range(12_344)) + "y,bad\nz,1\n")

    message = refusal(write("in/a.csv", "id,x\n0,1\n").parent, types={"x": "Int64"})

    assert "b.csv row 12345: column 'x' is 'bad'" in message


def test_kinds_gives_the_sql_kind_of_each_column(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "id": [1],
            "text": ["a"],
            "price": [1.5],
            "paid": [True],
            "day": [date(2026, 11, 20)],
            "at": [datetime(2026, 11, 20)],  # noqa: DTZ001  # files have none
            "tags": [["a"]],
            "raw": [b"a"],
        }
    ).write_parquet(tmp_path / "a.parquet")

    kinds = rows_of(tmp_path / "a.parquet").kinds(["id", "text", "price", "paid", "day", "at", "tags", "raw"])

    assert list(kinds.values()) == ["integer", "text", "number", "boolean", "date", "datetime", "json", "text"]


def test_kinds_follow_the_types_that_the_job_gives(write: Write) -> None:
    file = write("a.csv", "id,at\n1,2026-11-20\n")

    assert rows_of(file, types={"at": "Date"}).kinds(["id", "at"]) == {"id": "text", "at": "date"}


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(write: Write) -> Path:
    """Three files of data, and others that are none."""
    write("in/b.csv", "id,text\n2,b\n")
    write("in/a.csv", "id,text\n1,a\n")
    write("in/deep/c.tsv", "text\tid\nc\t3\n")
    write("in/notes.txt", "no data")
    write("in/.hidden.csv", "id,text\n9,x\n")
    return write("in/_SUCCESS", "").parent


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        pytest.param(["in/a.csv"], "1", id="a file"),
        pytest.param(["in/b.csv", "in/a.csv"], "21", id="a list, in its order"),
        pytest.param(["in/*.csv"], "12", id="a glob, sorted"),
        pytest.param(["in/**/*.[ct]sv"], "123", id="a glob over folders"),
        pytest.param(["in/[!a].csv", "in/a.csv"], "21", id="a glob and a file"),
        pytest.param(["in"], "123", id="a folder, sorted, with what is below"),
        pytest.param(["in/"], "123", id="a folder with a slash"),
    ],
)
def test_a_source_is_a_file_a_list_a_glob_or_a_folder(folder: Path, paths: list[str], ids: str) -> None:
    rows = read(*[str(folder.parent / path) for path in paths])

    assert "".join(row["id"] for row in rows) == ids


def test_each_file_may_have_its_columns_in_another_order(folder: Path) -> None:
    assert read(folder) == [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}, {"id": "3", "text": "c"}]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(write: Write) -> None:
    assert read(write("a[1].csv", "id,text\n1,a\n")) == [{"id": "1", "text": "a"}]


def test_only_the_asked_columns_are_read_in_the_asked_order(write: Write) -> None:
    file = write("a.csv", "id,text,more\n1,a,x\n")

    rows = read(file, columns=["text", "id", "text"])

    assert [list(row.items()) for row in rows] == [[("text", "a"), ("id", "1")]]


def test_a_file_with_a_header_and_no_row_has_no_row(write: Write) -> None:
    assert read(write("a.csv", "id,text\n")) == []


# -- chunks ----------------------------------------------------------------------------------------------------------


def test_chunks_are_bounded_and_number_their_rows_from_one(write: Write) -> None:
    rows = 2 * CHUNK_ROWS + 1
    file = write("a.csv", "id,text\n" + "".join(f"{n},t{n}\n" for n in range(1, rows + 1)))

    read_chunks = chunks(file)

    assert all(0 < chunk.frame.height <= CHUNK_ROWS for chunk in read_chunks)
    assert [n for chunk in read_chunks for n in chunk.numbers] == list(range(1, rows + 1))
    assert [i for chunk in read_chunks for i in chunk.frame["id"]] == [str(n) for n in range(1, rows + 1)]


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_long_rows_make_smaller_chunks(write: Write, tmp_path: Path, name: str) -> None:
    frame = pl.DataFrame({"id": [str(n) for n in range(12)], "text": ["x" * 1_000_000] * 12})
    if name.endswith("csv"):
        frame.write_csv(tmp_path / name)
    elif name.endswith("ndjson"):
        frame.write_ndjson(tmp_path / name)
    else:
        frame.write_parquet(tmp_path / name)

    read_chunks = chunks(tmp_path / name)

    assert max(chunk.frame.height for chunk in read_chunks) <= 4
    assert [i for chunk in read_chunks for i in chunk.frame["id"]] == frame["id"].to_list()


def test_rows_longer_than_what_is_read_at_once_are_read_once(write: Write) -> None:
    lengths = [1, 2_500_000, 3, 20_000_000, 5]
    file = write("a.csv", "id,text\n" + "".join(f"{n},{'x' * n}\n" for n in lengths))

    read_chunks = chunks(file)

    assert [len(text) for chunk in read_chunks for text in chunk.frame["text"]] == lengths
    assert [n for chunk in read_chunks for n in chunk.numbers] == [1, 2, 3, 4, 5]


def test_the_place_of_a_row_is_file_and_row_number(folder: Path) -> None:
    assert [chunk.place(0) for chunk in chunks(folder)] == ["a.csv row 1", "b.csv row 1", "c.tsv row 1"]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_limit_takes_the_first_rows_over_all_files(folder: Path, limit: int) -> None:
    assert [row["id"] for row in read(folder, limit=limit)] == ["1", "2", "3"][:limit]


def test_rows_can_be_read_again_from_the_start(folder: Path) -> None:
    rows = rows_of(folder)

    first, second = ([c.frame["id"].to_list() for c in rows.chunks(["id"])] for _ in range(2))

    assert first == second == [["1"], ["2"], ["3"]]


# -- where -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tickets(write: Write) -> Path:
    return write("a.csv", "id,priority,size\n1,low,5\n2,high,50\n3,,500\n4,low,\n")


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        pytest.param("priority <> 'low'", "23", id="unequal"),
        pytest.param("priority = 'low' AND id > '1'", "4", id="and"),
        pytest.param("size > 20", "23", id="a typed column; null is not true"),
        pytest.param("size IS NULL", "4", id="null"),
        pytest.param("priority LIKE 'h%' OR id IN ('1')", "12", id="or, like, in"),
        pytest.param("id = 'none'", "", id="no row"),
    ],
)
def test_where_selects_the_rows_for_which_it_is_true(tickets: Path, where: str, ids: str) -> None:
    read_chunks = chunks(tickets, columns=["id"], where=where, types={"size": "Int64"})

    kept = [(i, n) for chunk in read_chunks for i, n in zip(chunk.frame["id"], chunk.numbers, strict=True)]
    assert kept == [(i, int(i)) for i in ids]
    assert all(chunk.frame.columns == ["id"] for chunk in read_chunks)


def test_a_limit_counts_the_rows_that_where_selects(tickets: Path) -> None:
    assert [row["id"] for row in read(tickets, where="priority <> 'low'", limit=2)] == ["2", "3"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        pytest.param("priority <>", "source.where: 'priority <>' is not a SQL predicate", id="half of one"),
        pytest.param("prioriti = 'a'", "names column 'prioriti', which the source does not have", id="no such column"),
        pytest.param("prioriti = 'a'", "did you mean 'priority'?", id="the likely column"),
        pytest.param("priority", "is String, not true or false", id="no predicate"),
        pytest.param("priority > 5", "source.where: 'priority > 5' cannot be applied", id="text against number"),
    ],
)
def test_a_wrong_where_is_named(tickets: Path, where: str, said: str) -> None:
    assert said in refusal(tickets, where=where)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("a.csv", b"", "a.csv is empty", id="an empty file"),
        pytest.param("a.ndjson", b"", "a.ndjson is empty", id="an empty NDJSON"),
        pytest.param("a.csv", b"\n\n\n", "a.csv is empty", id="nothing but newlines"),
        pytest.param("a.csv.gz", gzip.compress(b""), "a.csv.gz is empty", id="an empty file, compressed"),
        pytest.param("a.xlsx", b"x", "a.xlsx: spreadsheets are not supported; save it as CSV", id="a spreadsheet"),
        pytest.param("a.txt", b"x", "a.txt: unknown kind of file; known are .csv", id="a kind that is not read"),
        pytest.param(
            "a.parquet.gz",
            b"x",
            "a.parquet.gz: .gz is not supported for Parquet, which has its own compression; decompress the file",
            id="Parquet.gz",
        ),
        pytest.param(
            "a.parquet", b"PAR1 and no more", "a.parquet: the parquet file cannot be read", id="broken Parquet"
        ),
        pytest.param("a.parquet", b"id,text\n1,a\n", "a.parquet is a text file; name it a.csv, ", id="CSV as Parquet"),
        pytest.param("a.csv", b"id,text\n1,a\n2,b,c\n", "2,b,c", id="a field too many"),
        pytest.param("a.csv", b"id,text\n1,a\n2\n", "has 1 field, the header 2", id="a field too few"),
        pytest.param("a.csv", b"id,text\n1,a\n2,b,c\n", "a.csv row 2: ", id="the file of a ragged row"),
        pytest.param("a.csv", b"id,text,text\n1,a,b\n", "a.csv: column 'text' occurs twice", id="a column twice"),
        pytest.param("a.csv", b'id,text\n1,a\n2,"b\n3,c\n', 'a.csv row 2: a quote (") is opened', id="an open quote"),
        pytest.param("a.csv", b'id,text\n1,a\n2,"cut o', 'a.csv row 2: a quote (") is opened', id="cut off in quotes"),
        pytest.param("a.csv", b'id,text\n1,a\n2,"', 'a.csv row 2: a quote (") is opened', id="cut off at a quote"),
        pytest.param("a.csv", b"id,text\n1,\xe4\n", "a.csv row 1: ", id="the file of a wrong encoding"),
        pytest.param("a.csv", b"id,text\n1,\xe4\n", "set source.encoding to the file's encoding", id="wrong encoding"),
        pytest.param("a.csv", b"id,t\xe4xt\n1,a\n", "set source.encoding to the file's encoding", id="in the header"),
        pytest.param(
            "a.csv.gz",
            b"id,text\n1,a\n",
            "a.csv.gz is not compressed, although its name says so; name it a.csv",
            id="not compressed",
        ),
        pytest.param("a.csv.gz", gzip.compress(CSV)[:-9], "a.csv.gz: ", id="cut off"),
        pytest.param("a.csv.zst", zstd(CSV * 100)[:-9], "a.csv.zst: ", id="cut off, zstd"),
        pytest.param("a.ndjson", b'{"id":1}\n{"id":\n', "a.ndjson line 2: this is not JSON", id="broken JSON"),
        pytest.param("a.ndjson", b'{"id":1}\n\n[1]\n', "a.ndjson line 3: each line must be a JSON object", id="a list"),
        pytest.param(
            "a.ndjson", b'{"id":"\xe4"}\n', "a.ndjson line 1: this is not JSON in utf-8", id="NDJSON, latin-1"
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    write: Write, name: str, content: bytes, said: str
) -> None:
    message = refusal(write(name, content))

    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("nope.csv", "nope.csv does not exist", id="no file"),
        pytest.param("nope/", "nope/ does not exist", id="no folder"),
        pytest.param("nope*.csv", "source.path: no file matches", id="a glob without match"),
        pytest.param("empty", "empty holds no CSV, TSV, Parquet, NDJSON or Arrow file", id="an empty folder"),
    ],
)
def test_a_missing_source_is_named(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "empty").mkdir()

    assert said in refusal(f"{tmp_path}/{path}")


def test_files_whose_columns_differ_are_refused_with_both_files_and_the_column(write: Write) -> None:
    write("in/a.csv", "id,text\n1,a\n")
    folder = write("in/b.csv", "id,body\n2,b\n").parent

    message = refusal(folder)

    assert "column 'text' is in" in message
    assert "a.csv but not in" in message
    assert message.endswith("b.csv; all files need the same columns")
    assert read(folder, columns=["id"]) == [{"id": "1"}, {"id": "2"}]


def test_files_of_different_formats_are_refused(write: Write) -> None:
    write("in/a.csv", "id,text\n1,a\n")

    assert "different formats (csv, ndjson)" in refusal(write("in/b.ndjson", '{"id":1}').parent)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param({"encoding": "latin-99"}, "source.encoding: 'latin-99' is not a text encoding", id="encoding"),
        pytest.param(
            {"types": {"id": "Integer"}}, "source.types.id: unknown type 'Integer'; choose one of String", id="type"
        ),
    ],
)
def test_a_wrong_setting_is_named(write: Write, source: dict[str, Any], said: str) -> None:
    assert said in refusal(write("a.csv", CSV), **source)


def test_a_column_that_the_source_lacks_is_named_with_the_likely_one_and_what_there_is(write: Write) -> None:
    rows = rows_of(write("a.csv", "id,subject,body\n1,a,b\n"))

    with pytest.raises(SourceError) as refused:
        rows.require(["id", "subjct"], "request.prompt")

    assert str(refused.value) == (
        "request.prompt names column 'subjct', which the source does not have (it has: id, subject, body); "
        "did you mean 'subject'?"
    )


# -- what must not happen --------------------------------------------------------------------------------------------


def test_a_quote_that_is_never_closed_is_refused_in_a_column_that_is_not_read(write: Write) -> None:
    file = write("a.csv", 'id,text,notes\n1,a,n\n2,b,"n\n3,c,n\n4,d,n\n')

    assert "never closed" in refusal(file, columns=["id", "text"])


def test_a_quote_inside_an_unquoted_field_is_text(write: Write) -> None:
    rows = read(write("a.csv", 'id,text\n1,5" disk\n2,"a\nb"\n'))

    assert [row["text"] for row in rows] == ['5" disk', "a\nb"]


@pytest.mark.parametrize("field", ['""', '"b"', '5" disk', '"say ""b"""', "b", ""])
def test_a_file_without_a_last_line_end_is_whole(write: Write, field: str) -> None:
    rows = read(write("a.csv", f"id,text\n1,a\n2,{field}"))

    assert [row["id"] for row in rows] == ["1", "2"]


def test_an_open_quote_is_refused_in_a_file_with_a_quote_inside_a_field(write: Write) -> None:
    assert "never closed" in refusal(write("a.csv", 'id,text\n1,5" disk\n2,"a\n3,b\n'))


@pytest.mark.parametrize("column", ["id", "price"])
def test_a_row_of_ndjson_has_the_same_key_and_hash_whatever_its_neighbours_are(write: Write, column: str) -> None:
    row = b'{"id":1,"price":5}\n'
    neighbour = b'{"id":"x7","price":5.5}\n'

    alone = chunks(write("a.ndjson", row))[0].frame
    beside = chunks(write("b.ndjson", row + neighbour))[0].frame

    assert identity.keys(alone, [column])[0] == identity.keys(beside, [column])[0]
    assert identity.row_hashes(alone, [column])[0] == identity.row_hashes(beside, [column])[0]


def test_large_numbers_of_ndjson_stay_exact(write: Write) -> None:
    rows = read(write("a.ndjson", b'{"id":9007199254740993}\n{"id":1.5}\n'))

    assert str(rows[0]["id"]) == "9007199254740993"


def test_parquet_files_whose_column_types_differ_are_refused_or_read_alike(tmp_path: Path) -> None:
    pl.DataFrame({"id": [17], "text": ["a"]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"id": ["17"], "text": ["b"]}).write_parquet(tmp_path / "b.parquet")

    with pytest.raises(SourceError, match="id"):  # else 17 and "17" are two keys here, and one in the results table
        read(tmp_path / "*.parquet")


@pytest.mark.parametrize("encoding", ["rot13", "base64", "hex"])
def test_an_encoding_that_is_not_for_text_is_refused_without_a_crash(write: Write, encoding: str) -> None:
    assert "source.encoding" in refusal(write("a.csv", CSV), encoding=encoding)


def test_a_csv_column_without_a_name_does_not_crash(write: Write) -> None:
    assert read(write("a.csv", "id,text,\n1,a,\n"), columns=["id", "text"]) == [{"id": "1", "text": "a"}]
    assert [row["text"] for row in read(write("b.csv", "id,text,\n1,a,\n"))] == ["a"]


def test_a_type_for_a_column_that_the_source_lacks_is_refused(write: Write) -> None:
    assert "source.types" in refusal(write("a.csv", CSV), types={"idd": "Int64"})


@pytest.mark.parametrize("content", [b"\n\n", b" \n"], ids=["newlines", "blanks"])
def test_an_ndjson_file_without_objects_is_refused_as_empty(write: Write, content: bytes) -> None:
    with pytest.raises(SourceError, match="is empty"):
        read(write("a.ndjson", content), columns=["id"])


def test_a_ndjson_file_with_a_byte_order_mark_is_read(write: Write) -> None:
    assert read(write("a.ndjson", b'\xef\xbb\xbf{"id":1}\n')) == [{"id": 1}]


def test_utf_16_that_the_job_does_not_name_is_refused_with_the_encoding_setting(write: Write) -> None:
    assert "source.encoding" in refusal(write("a.csv", "id,text\n1,ä\n".encode("utf-16")))


def test_the_row_of_a_ragged_csv_is_counted_as_all_other_rows_are(write: Write) -> None:
    assert "a.csv row 2: " in refusal(write("a.csv", "id,text\n1,a\n2,b,c\n"))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        pytest.param("id,TEXT", "(it has: id, TEXT); did you mean 'TEXT'?", id="other letters"),
        pytest.param("id, text", "did you mean ' text'?", id="a blank"),
        pytest.param("id;text", "fields seem to be separated by ';': set source.csv.delimiter to it", id="semicolons"),
        pytest.param("id\ttext", r"fields seem to be separated by '\t': set source.csv.delimiter to it", id="tabs"),
        pytest.param("id,other", "(it has: id, other)", id="nothing like it"),
    ],
)
def test_a_missing_column_is_refused_with_a_hint(write: Write, header: str, said: str) -> None:
    values = "1,a" if "," in header else "1"

    message = refusal(write("a.csv", f"{header}\n{values}\n"), columns=["text"])

    assert "the job names column 'text', which the source does not have" in message
    assert message.endswith(said)
