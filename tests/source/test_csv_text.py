"""CSV with quotes, escapes, comments and lines to skip is read correctly, or refused with the row."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.job.model import Source
from pipeline.source import csv_text, files
from pipeline.source.rows import Rows
from tests.support.object_storage import S3


def source(path: Path | str, **fields: Any) -> Source:
    return Source(path=[str(path)], key=["id"], **fields)


def read(path: Path | str, **fields: Any) -> list[tuple[Any, ...]]:
    rows = Rows(source(path, **fields))
    return [row for chunk in rows.chunks(rows.columns) for row in chunk.frame.iter_rows()]


def refusal(path: Path | str, **fields: Any) -> str:
    with pytest.raises(SourceError) as refused:
        read(path, **fields)
    return str(refused.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.csv"


# -- quotes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('id,t\n1,a\n2,"b" c\n', "row 2: text follows the closing quote", id="a word"),
        pytest.param('id,t\n1,a\n2,"b" \n', "row 2: text follows the closing quote", id="a blank"),
        pytest.param('id,t\n\n1,"a\nb"\n2,"b, "x""\n', "row 2: text follows", id="behind a line end in quotes"),
        pytest.param('id,t\n1,"he said \\"hi\\" ok"\n', "row 1: text follows", id="quotes behind backslashes"),
        pytest.param('id,"t"x\n1,a\n', "a.csv: the header: text follows", id="in the header"),
        pytest.param('id,t\n1,""x\n', "row 1: text follows", id="behind an empty field"),
        pytest.param('id,t\n1,"a,"b\n', "row 1: text follows", id="a quote behind a delimiter in quotes"),
        pytest.param('id,t\n1,"a\n"b\n', "row 1: text follows", id="a quote behind a line end in quotes"),
        pytest.param('id,t\n1,"a"""b"\n', "row 1: text follows", id="behind two quotes"),
        pytest.param('id,t\n1,a\n2,"b\n3,c\n', 'row 2: a quote (") is opened and never closed', id="an open quote"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_text_that_does_not_fit_its_quotes_is_refused_with_its_row(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())

    assert said.replace("a.csv", name) in refusal(file)


def test_the_text_is_shown_with_what_to_do(file: Path) -> None:
    file.write_text('id,t\n1,"he said \\"hi\\" ok"\n')

    assert refusal(file) == (
        rf'{file} row 1: text follows the closing quote of a field (1,"he said \"hi\" ok"); write a quote within '
        r"""quotes twice (""), or, if quotes are escaped by a backslash, set source.csv.escape: '\'"""
    )


def test_a_faulty_quote_is_refused_in_an_object_as_in_a_file(s3: S3) -> None:
    rows = b"".join(b'%d,"%d"\n' % (i, i) for i in range(300_000))

    assert "row 300001: text follows" in refusal(s3.put("a.csv", b'id,t\n%bx,"b" c\n' % rows))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        pytest.param('id,t\n1,5" pipe\n', [("1", '5" pipe')], id="a quote in a field without quotes"),
        pytest.param('id,t\n1,a "b" c\n2, "x"\n', [("1", 'a "b" c'), ("2", ' "x"')], id="quotes inside"),
        pytest.param('id,t\n1,"a ""b"" c"\n', [("1", 'a "b" c')], id="quotes twice"),
        pytest.param('id,t\n1,""""\n2,""\n', [("1", '"'), ("2", "")], id="nothing but a quote"),
        pytest.param('id,t\r\n1,"a"\r\n2,"b"', [("1", "a"), ("2", "b")], id="no last line end"),
        pytest.param('\ufeff"id","t"\n1,"a"\n', [("1", "a")], id="a byte order mark before a quote"),
        pytest.param('id,t\n1,"a\n,""x"",\n"\n', [("1", 'a\n,"x",\n')], id="what looks like fields"),
    ],
)
def test_correct_quotes_are_accepted(file: Path, text: str, rows: list[Any]) -> None:
    file.write_bytes(text.encode())

    assert read(file) == rows


def strict(text: str, **options: Any) -> bool:
    """Whether Python's parser finds no fault in it."""
    try:
        list(csv.reader(io.StringIO(text, newline=""), strict=True, **options))
    except csv.Error:
        return False
    return True


@given(text=st.text('a,"\n', max_size=24), size=st.integers(1, 9))
def test_text_that_pythons_strict_reader_accepts_is_accepted_wherever_blocks_end(text: str, size: int) -> None:
    quotes = csv_text._Quotes(files.SourceFile("x", None, "csv", None, ",", "utf-8", source("x").csv))  # type: ignore[arg-type]
    data = text.encode()

    try:
        for at in range(0, len(data), size):
            quotes.take(data[at : at + size])
        quotes.take(b"")
        fits = True
    except csv_text._Fault:
        fits = False

    assert fits == strict(text)


# -- escapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(r'"he said \"hi\" ok"', 'he said "hi" ok', id="a quote"),
        pytest.param(r'"a \\"', "a \\", id="itself, at the end"),
        pytest.param(r"a\,b", "a,b", id="a delimiter"),
        pytest.param("a\\\nb", "a\nb", id="a line end"),
        pytest.param('a\\,"b', 'a,"b', id="a quote behind a delimiter that is text"),
        pytest.param('"say ""hi"""', 'say "hi"', id="a quote that stands twice"),
        pytest.param(r"C:\temp\new", r"C:\temp\new", id="before a letter it is text"),
        pytest.param(r'"\N"', r"\N", id="the null of MySQL, in quotes"),
        pytest.param(r"\N", None, id="the null of MySQL"),
        pytest.param("a\\", "a\\", id="before the end of the file"),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 3, 5, 1000])
def test_an_escape_character_counts_only_before_a_special_character(
    monkeypatch: pytest.MonkeyPatch, file: Path, field: str, value: str | None, block: int
) -> None:
    monkeypatch.setattr(csv_text, "READ_BYTES", block)
    file.write_text(f"id,t\n1,{field}", newline="")

    assert read(file, csv={"escape": "\\", "null_values": ["\\N"]}) == [("1", value)]


def test_a_fault_in_a_file_with_escapes_has_its_row(file: Path) -> None:
    file.write_text('id,t\n1,"a\\"b"\n2,"c\\" d" e\n')

    assert "row 2: text follows the closing quote" in refusal(file, csv={"escape": "\\"})


def test_a_quote_as_escape_changes_nothing(file: Path) -> None:
    file.write_text('id,t\n1,"a ""b"""\n')

    assert read(file, csv={"escape": '"'}) == [("1", 'a "b"')]


# -- lines that are no rows ------------------------------------------------------------------------------------------

COMMENTED = '# made "today\nid,t\n#1,x\n1,"a\n# b"\n2,# c\n#\n3,"d ""\n#e"\n# end'


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_lines_that_begin_with_the_comment_are_skipped(
    monkeypatch: pytest.MonkeyPatch, file: Path, ends: str, block: int
) -> None:
    monkeypatch.setattr(csv_text, "READ_BYTES", block)
    file.write_bytes(COMMENTED.replace("\n", ends).encode())

    rows = read(file, csv={"comment": "#"})

    assert rows == [("1", f"a{ends}# b"), ("2", "# c"), ("3", f'd "{ends}#e')]


def test_a_comment_may_have_several_characters(file: Path) -> None:
    file.write_text("--id,x\nid,t\n-1,a\n--2,b\n")

    assert read(file, csv={"comment": "--"}) == [("-1", "a")]


def test_a_row_is_counted_without_comments_and_lines_that_are_skipped(file: Path) -> None:
    file.write_text('export "of\ntoday\n# c\nid,t\n1,a\n# c\n2,"b" c\n')
    options = {"comment": "#", "skip": 2}

    assert "row 2: text follows" in refusal(file, csv=options)
    file.write_text("x\ny\nid,t\n1,a\n# c\n2,b,c\n")
    assert "row 2: the row has 3 fields" in refusal(file, csv=options)


@pytest.mark.parametrize("block", [1, 2, 1000])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_lines_before_the_header_are_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, ends: str, block: int
) -> None:
    monkeypatch.setattr(csv_text, "READ_BYTES", block)
    text = f'\ufeffa "report{ends}{ends}id,t{ends}1,a{ends}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)

    assert read(tmp_path / name, csv={"skip": 2}) == [("1", "a")]


def test_a_file_of_which_all_lines_are_skipped_is_empty(file: Path) -> None:
    file.write_text("id,t\n1,a\n")

    assert refusal(file, csv={"skip": 5}).endswith("a.csv is empty")


def test_objects_have_comments_escapes_and_lines_to_skip_too(s3: S3) -> None:
    url = s3.put("a.csv.gz", gzip.compress(b'report\n# c\nid,t\n1,"a \\"b\\""\n# d\n'))

    assert read(url, csv={"skip": 1, "comment": "#", "escape": "\\"}) == [("1", 'a "b"')]


@pytest.mark.parametrize(
    "options",
    [{"escape": "ab"}, {"escape": "é"}, {"comment": ""}, {"skip": -1}, {"delimiter": '"'}, {"delimiter": "ß"}],
    ids=str,
)
def test_contradictory_csv_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        source("a.csv", csv=options)


# -- bytes that are no text, rows that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "content", "place"),
    [
        pytest.param("utf-8", b"id,t\n1,a\n2,\xe4\n", "row 2: the text is not in utf-8;", id="utf-8"),
        pytest.param("utf-8", b"id,\xe4\n1,a\n", "the header: the text is not in utf-8", id="header"),
        pytest.param("cp1252", b"id,t\n1,a\n2,\x81\n", "row 2: the text is not in cp1252", id="cp1252"),
        pytest.param("cp1252", b"id,t\n1,a\n\x81,b\n", "row 2: the text is not in", id="the first byte of a row"),
        pytest.param("cp1252", b"\x81id,t\n1,a\n", "the header: the text is not in", id="the first byte"),
        pytest.param(
            "utf-16", "id,t\n1,a\n2,b".encode("utf-16")[:-1], "row 2: the text is not in", id="half a character"
        ),
        pytest.param("shift-jis", b'id,t\n1,"a\n"\n2,\x81\x00\n', "row 2: the text is not in", id="shift-jis"),
    ],
)
def test_a_bad_byte_has_its_row_and_the_encoding_that_was_used(
    file: Path, encoding: str, content: bytes, place: str
) -> None:
    file.write_bytes(content)

    assert f"a.csv{': ' if place.startswith('the') else ' '}{place}" in refusal(file, encoding=encoding)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param("2,b,c", "put a field that holds the delimiter (',') into quotes", id="too many"),
        pytest.param("2,b,", "remove the delimiter (',') at the end of the row", id="a delimiter at the end"),
        pytest.param("2", "has 1 field, the header 2: 2; complete the row, remove it, or", id="too few"),
        pytest.param("   ", "row 2: the line is blank; remove it", id="blanks"),
        pytest.param("# c", "set source.csv.comment", id="a comment"),
    ],
)
def test_a_row_with_a_wrong_number_of_fields_is_refused_with_a_remedy(file: Path, row: str, said: str) -> None:
    file.write_text(f"id,t\n1,a\n{row}\n3,c\n")

    message = refusal(file)

    assert "a.csv row 2: " in message
    assert said in message


def test_lines_before_the_header_are_recognized(file: Path) -> None:
    file.write_text("Report of today\nid,t\n1,a\n")

    assert "set source.csv.skip to their number" in refusal(file)
