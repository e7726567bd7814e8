"""Recognise the kind of a file by its first bytes, and say what to do if it is not the expected kind. Pure."""

from typing import NamedTuple

START_BYTES = 2_000  # of a file; enough to recognise its kind


class Kind(NamedTuple):
    """A kind of file.

    name: for messages, with its article. remedy: what to do if the file's name or format says another kind; in it,
    {name} is the file's name, and {stem} the name without its ending.
    """

    name: str
    remedy: str


_UNPACK = "unpack it, or compress it by gzip or zstd"
_CONVERT = "write it as Parquet, or pass a frame in Python"
SPREADSHEET = "save it as CSV, or pass a frame in Python"

GZIP = Kind("a gzip file", "name it {name}.gz")
ZSTD = Kind("a zstd file", "name it {name}.zst")
PARQUET = Kind("a Parquet file", "name it {stem}.parquet, or set source.format: parquet")
ARROW = Kind("an Arrow file", "name it {stem}.arrow, or set source.format: arrow")
ARROW_STREAM = Kind("an Arrow stream", ARROW.remedy)
WORKBOOK = Kind("an Excel workbook (.xlsx)", SPREADSHEET)
ZIP = Kind("a zip archive", "unpack it")
TEXT = Kind("a text file", "name it {stem}.csv, .tsv or .ndjson, or set source.format to csv, tsv or ndjson")

LFS = Kind("a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull")
PDF = Kind("a PDF", "give the file that holds the rows")
HTML = Kind("an HTML page", "download the file itself; the page may be a login")

_SIGNATURES = {
    b"\x1f\x8b": GZIP,
    b"\x28\xb5\x2f\xfd": ZSTD,
    b"PAR1": PARQUET,
    b"PARE": Kind("an encrypted Parquet file", "write it without encryption"),
    b"ARROW1": ARROW,
    b"\xff\xff\xff\xff": ARROW_STREAM,
    b"FEA1": Kind("a Feather file of version 1", "write it as version 2, or as Parquet"),
    b"version https://git-lfs.github.com/spec/": LFS,
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": Kind("an old Excel workbook (.xls)", SPREADSHEET),
    b"BZh": Kind("a bzip2 file", _UNPACK),
    b"\xfd7zXZ\x00": Kind("an xz file", _UNPACK),
    b"\x04\x22\x4d\x18": Kind("an lz4 file", _UNPACK),
    b"\xff\x06\x00\x00sNaPpY": Kind("a snappy file", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": Kind("a 7z archive", "unpack it"),
    b"Obj\x01": Kind("an Avro file", _CONVERT),
    b"SQLite format 3\x00": Kind("an SQLite database", "read it by source.query and source.database"),
    b"%PDF-": PDF,
}


def kind_of(start: bytes) -> Kind | None:
    """Return the kind of file that begins with these bytes; None if they are unknown, as those of text are."""
    if start.startswith(b"PK\x03\x04"):
        return WORKBOOK if b"xl/" in start or b"[Content_Types].xml" in start else ZIP
    if start[:100].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return HTML
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature) and not (signature == b"BZh" and start[4:7] != b"1AY"):
            return kind
    return None


def is_text(start: bytes) -> bool:
    """Return whether these bytes, which may end within a character, look like UTF-8 text; False for no bytes."""
    text = start.decode("utf-8", errors="replace").rstrip("\ufffd")
    return bool(text) and all(character.isprintable() or character in "\r\n\t\ufeff" for character in text)


def mismatch(wanted: tuple[Kind, ...], start: bytes, name: str) -> str | None:
    """Return "is KIND; REMEDY" if a file is not of the wanted kinds; None if it is, or if its kind is unknown.

    wanted: the kinds that it may have; empty for text. start: its first bytes; name: the file's name.
    """
    found = kind_of(start)
    if found is None and wanted and is_text(start):
        found = TEXT
    if not wanted and is_text(start) and found not in (LFS, PDF, HTML):
        return None  # a column may be called PAR1
    if found is None or found in wanted:
        return None
    if wanted in ((GZIP,), (ZSTD,)):
        name = name.rpartition(".")[0]
        if found is TEXT:
            return f"is not compressed, although its name says so; name it {name}"
    stem = name.rpartition(".")[0] or name
    return f"is {found.name}; {found.remedy.format(name=name, stem=stem)}"
