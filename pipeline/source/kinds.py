"""What is a file by its first bytes, whatever its name says, and what can be done with it? Pure."""

from typing import NamedTuple

START_BYTES = 2_000  # of a file are enough to tell


class Kind(NamedTuple):
    """A kind of file. name: for messages, with its article; remedy: what to do when it is not what its name says.

    In the remedy, {name} is the file's name, and {stem} the name without its ending.
    """

    name: str
    remedy: str


_UNPACK = "unpack it, or compress it by gzip or zstd"
_CONVERT = "write it as Parquet, or pass a frame in Python"
SPREADSHEET = "save it as CSV, or pass a frame in Python"

GZIP = Kind("a gzip file", "name it {name}.gz")
ZSTD = Kind("a zstd file", "name it {name}.zst")
PARQUET = Kind("a Parquet file", "name it {stem}.parquet, or say source.format: parquet")
ARROW = Kind("an Arrow file", "name it {stem}.arrow, or say source.format: arrow")
ARROW_STREAM = Kind("an Arrow stream", ARROW.remedy)
WORKBOOK = Kind("an Excel workbook (.xlsx)", SPREADSHEET)
ZIP = Kind("a zip archive", "unpack it")
TEXT = Kind("a file of text", "name it {stem}.csv, .tsv or .ndjson, or say source.format: csv, tsv or ndjson")

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
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": Kind("a file of an old Excel (.xls)", SPREADSHEET),
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
    """What begins with these bytes; None for anything else, which may be text."""
    if start.startswith(b"PK\x03\x04"):
        return WORKBOOK if b"xl/" in start or b"[Content_Types].xml" in start else ZIP
    if start[:100].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return HTML
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature) and not (signature == b"BZh" and start[4:7] != b"1AY"):
            return kind
    return None


def is_text(start: bytes) -> bool:
    """Whether these bytes, which may end within a character, look like text in UTF-8."""
    text = start.decode("utf-8", errors="replace").rstrip("\ufffd")
    return bool(text) and all(character.isprintable() or character in "\r\n\t\ufeff" for character in text)


def instead(wanted: tuple[Kind, ...], start: bytes, name: str) -> str | None:
    """What a file of this name is instead of what it should be, and what to do; None if there is nothing to say.

    wanted: what it may be; none: text.
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
            return f"is not compressed, as its name says; name it {name}"
    stem = name.rpartition(".")[0] or name
    return f"is {found.name}; {found.remedy.format(name=name, stem=stem)}"
