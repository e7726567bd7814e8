"""Find the files of a source, local or on object storage, and detect later changes of them. Edge: files, network."""

import fnmatch
import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import SourceError
from pipeline.job.model import Csv, Source
from pipeline.source import kinds, lakes
from pipeline.storage import objects
from pipeline.storage.folders import Folder, LocalFolder, ObjectFolder
from pipeline.storage.objects import Object
from pipeline.storage.stamps import Stamp, stamp

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
FORMAT_OF_NAME = {"tsv": "csv"}  # values of source.format that are not formats of SourceFile
TYPED = ("parquet", "arrow")  # formats with column types and with compression of their own

COMPRESSED_NOTHING = 300  # bytes; the largest compressed file without content, whose header may hold its name

#: The name of a folder in Hive's layout: dt=2026-11-20.
_PARTITION = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # Hive's value for null and for an empty text


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    path: a local path or a URL. found: the file's version when it was found. format: csv, parquet, ndjson or arrow.
    compression: gzip, zstd or None. partition: columns and their values from the names of the folders.
    """

    path: str
    found: Stamp | Object = field(repr=False)
    format: str
    compression: str | None
    delimiter: str
    encoding: str
    csv: Csv
    partition: tuple[tuple[str, str | None], ...] = ()

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return PurePosixPath(self.path).name if objects.is_url(self.path) else Path(self.path).name

    @cached_property
    def folder(self) -> Folder:
        """The folder that holds the file; paths of attachments are relative to it."""
        if objects.is_url(self.path):
            return ObjectFolder(self.path.rpartition("/")[0])
        return LocalFolder(Path(self.path).parent)

    def open(self) -> io.BufferedIOBase:
        """Open the file for reading and seeking; a compressed file gives its compressed bytes."""
        if isinstance(self.found, Object):
            return objects.open_object(self.found)
        return open(self.path, "rb")

    @property
    def is_local(self) -> bool:
        """Whether the file is on this machine, rather than on object storage."""
        return isinstance(self.found, Stamp)

    def native(self) -> Any:
        """Open the file as a file of pyarrow, which reads a local file without Python.

        Raises SourceError if the file should be text and its first bytes are those of another kind of file.
        """
        if isinstance(self.found, Object):
            raw = objects.open_object(self.found)
            if self.format not in TYPED:
                self._refuse_other_kind(raw.peek(kinds.START_BYTES))  # stays in the buffer, so it is fetched once
            return pa.PythonFile(raw, mode="r")
        file = pa.OSFile(self.path)
        if self.format not in TYPED:
            self._refuse_other_kind(file.read(kinds.START_BYTES))
            file.seek(0)
        return file

    def _refuse_other_kind(self, start: bytes) -> None:
        if problem := self.mismatch(start):
            raise SourceError(f"{self.path} {problem}")

    def mismatch(self, start: bytes) -> str | None:
        """Return what the file is, and what to do, if its first bytes do not fit its format; None if they do."""
        wanted = {"parquet": (kinds.PARQUET,), "arrow": (kinds.ARROW, kinds.ARROW_STREAM)}.get(self.format, ())
        by_compression = {"gzip": (kinds.GZIP,), "zstd": (kinds.ZSTD,)}
        if self.compression is not None:
            wanted = by_compression[self.compression]
        return kinds.mismatch(wanted, start, self.name)

    def check(self) -> None:
        """Raise SourceError if the file was replaced, removed or written to since it was found.

        An object needs no check here: each request for it carries its ETag.
        """
        if isinstance(self.found, Stamp) and self.found.is_written(stamp(self.path)):
            raise SourceError(
                f"{self.path} was changed while it was read; wait until the program that writes it has finished, and "
                "run again"
            )


def find(source: Source) -> list[SourceFile]:
    """Return the files of a source, for each path in the order of names. Raises SourceError that names the path."""
    assert source.path is not None
    found = [pair for path in source.path for pair in _expand(path, source)]
    files = [_source_file(path, what, source) for path, what in _not_empty(found)]
    formats = {file.format for file in files}
    if len(formats) > 1:
        raise SourceError(f"source.path: the files are of different formats ({', '.join(sorted(formats))})")
    _refuse_mixed_partitions(files)
    return files


def _expand(path: str, source: Source) -> list[tuple[str, Stamp | Object]]:
    """Return the files of one path, folder, pattern or URL, and the version of each."""
    any_name = source.format is not None
    if objects.is_url(path):
        return _expand_url(path, any_name)
    if "://" in path:
        known = ", ".join(f"{scheme}://" for scheme in objects.SCHEMES)
        raise SourceError(f"source.path: {path}: this kind of URL is not supported; give a local path, or {known}")
    return [(name, _stamped(name)) for name in _local(path, any_name)]


def _local(path: str, any_name: bool) -> list[str]:
    """Return the local files of a path, folder or pattern. any_name: whether a folder's files may have any ending."""
    if glob.has_magic(path) and not os.path.exists(path):
        return _local_matching(path)
    if os.path.isdir(path):
        below = [found.relative_to(path) for found in sorted(Path(path).rglob("*"))]
        lakes.refuse_within(path, (found.parts for found in below))
        lakes.refuse_above([Path(path).absolute()])
        files = [str(Path(path) / f) for f in below if _is_data(f, any_name) and (Path(path) / f).is_file()]
        if not files:
            raise SourceError(_no_data(path))
        return files
    if not os.path.exists(path):
        raise SourceError(f"source.path: {path} does not exist")
    return [path]


def _local_matching(pattern: str) -> list[str]:
    found = [name for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]
    files = [name for name in found if _matches(name.split("/"), pattern.split("/"))]
    if not files:
        raise SourceError(f"source.path: no file matches {pattern}{_HIDDEN if found else ''}")
    lakes.refuse_above({Path(name).absolute().parent for name in files})
    return files


def _stamped(path: str) -> Stamp:
    found = stamp(path)
    if found is None:
        raise SourceError(f"source.path: {path} was removed while the files of the source were listed; run again")
    return found


def _expand_url(url: str, any_name: bool) -> list[tuple[str, Stamp | Object]]:
    with _as_source_errors():
        if glob.has_magic(url):
            return _matching(url)
        if not url.endswith("/"):
            try:
                obj = objects.head(url)
            except objects.NotFound:
                pass
            else:
                return [(obj.url, obj)]
        below = list(objects.list_objects(url.rstrip("/")))
    _refuse_lakes(url, below)
    files = [obj for obj in below if _is_data(PurePosixPath(*_parts_below(url, obj)), any_name)]
    if not files:
        raise SourceError(
            _no_data(url) if below else f"source.path: {url} does not exist, neither as an object nor as a folder"
        )
    return [(obj.url, obj) for obj in sorted(files)]


def _parts_below(folder: str, obj: Object) -> list[str]:
    return obj.url[len(folder.rstrip("/")) + 1 :].split("/")


def _matching(pattern: str) -> list[tuple[str, Stamp | Object]]:
    """Return the objects whose URL matches: `*` and `?` within a part between slashes, `**` for any number of parts."""
    parts = pattern.split("/")
    plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    if plain < 3:  # scheme, nothing, bucket
        raise SourceError(f"source.path: {pattern}: the bucket cannot be a pattern; write its name")
    folder = "/".join(parts[:plain])
    below = list(objects.list_objects(folder))
    found = [obj for obj in below if not obj.url.endswith("/")]
    files = [obj for obj in found if _matches(obj.url.split("/"), parts)]
    if not files:
        hidden = any(_matches(obj.url.split("/"), parts, hidden=True) for obj in found)
        raise SourceError(f"source.path: no object matches {pattern}{_HIDDEN if hidden else ''}")
    _refuse_lakes(folder, below)
    return [(obj.url, obj) for obj in sorted(files)]


def _refuse_lakes(folder: str, below: Sequence[Object]) -> None:
    """Raise SourceError if the folder contains a lake table, or is a partition of one or Iceberg's `data` folder.

    Folders further up are not checked, because that would need several requests for each.
    """
    lakes.refuse_within(folder, (_parts_below(folder, obj) for obj in below))
    parts = folder.rstrip("/").split("/")
    partition = next((i for i, part in enumerate(parts) if _PARTITION.fullmatch(part)), None)
    root = "/".join(parts[:partition])
    markers = [] if partition is None else [(root, "_delta_log"), (root, ".hoodie")]
    if root.endswith("/data"):
        markers.append((root.removesuffix("/data"), "metadata"))
    for table, marker in markers:
        lakes.refuse_within(table, (_parts_below(table, obj) for obj in objects.list_objects(f"{table}/{marker}")))


_HIDDEN = "; a name that begins with . or _ matches only a pattern that begins with the same character"


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _matches(parts: Sequence[str], pattern: Sequence[str], *, hidden: bool = False) -> bool:
    """Return whether the parts of a path match those of a pattern.

    hidden: whether names that begin with . or _ match like other names; else the pattern must begin with the same
    character.
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        shown = 0
        while shown < len(parts) and (hidden or not _is_hidden(parts[shown])):
            shown += 1
        return any(_matches(parts[i:], pattern[1:], hidden=hidden) for i in range(shown + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], pattern[0]):
        return False
    allowed = hidden or not _is_hidden(parts[0]) or parts[0][0] == pattern[0][0]
    return allowed and _matches(parts[1:], pattern[1:], hidden=hidden)


@contextmanager
def _as_source_errors() -> Iterator[None]:
    """Turn the errors of a store into SourceError."""
    try:
        yield
    except (objects.NotFound, objects.AccessDenied, objects.Replaced) as exc:
        raise SourceError(f"source.path: {exc}") from exc


def _no_data(path: str) -> str:
    return f"source.path: folder {path} holds no CSV, TSV, Parquet, NDJSON or Arrow file"


def _is_data(path: Path | PurePosixPath, any_name: bool) -> bool:
    """Return whether a file in a folder belongs to the source; names that begin with . or _ do not."""
    return (any_name or _format(path) is not None) and bool(path.name) and not any(map(_is_hidden, path.parts))


def _not_empty(found: list[tuple[str, Stamp | Object]]) -> list[tuple[str, Stamp | Object]]:
    """Return the files with content, because part files without rows may be empty; all files if none has content."""
    return [pair for pair in found if len(found) > 1 and not _has_no_content(*pair)] or found


def _has_no_content(path: str, found: Stamp | Object) -> bool:
    """Return whether a file is empty, or is a compressed file without content."""
    compression = COMPRESSIONS.get(PurePosixPath(path).suffix.lower())
    if found.size == 0 or compression is None or found.size > COMPRESSED_NOTHING:
        return found.size == 0
    try:
        data = objects.read(found) if isinstance(found, Object) else Path(path).read_bytes()
        return not pa.input_stream(pa.BufferReader(data), compression=compression).read(1)
    except (OSError, pa.ArrowException):
        return False  # the error is raised when the file's rows are read


def _format(path: Path | PurePosixPath) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _source_file(path: str, found: Stamp | Object, source: Source) -> SourceFile:
    name = PurePosixPath(path)
    last = name.suffix.lower()
    kind = _format(name) if source.format is None else FORMAT_OF_NAME.get(source.format, source.format)
    if kind is None:
        raise SourceError(f"source.path: {path}: {_unknown(last)}")
    if kind in TYPED and last in COMPRESSIONS:
        raise SourceError(
            f"source.path: {path}: {last} is not supported for {kind.capitalize()}, which has its own compression; "
            "decompress the file"
        )
    if found.size == 0:
        raise SourceError(f"source.path: {path} is empty")
    is_tsv = source.format == "tsv" or (
        source.format is None and ".tsv" in [suffix.lower() for suffix in name.suffixes]
    )
    delimiter = source.csv.delimiter or ("\t" if is_tsv else ",")
    compression = COMPRESSIONS.get(last)
    return SourceFile(
        path=path,
        found=found,
        format=kind,
        compression=compression,
        delimiter=delimiter,
        encoding=source.encoding,
        csv=source.csv,
        partition=_partition(path),
    )


def _unknown(ending: str) -> str:
    """Return the problem of a file whose name has none of the endings in FORMATS."""
    if ending in (".xlsx", ".xls", ".ods"):
        return f"spreadsheets are not supported; {kinds.SPREADSHEET}"
    return (
        f"unknown kind of file; known are {', '.join(FORMATS)}, also with .gz or .zst; for another name, set "
        "source.format to csv, tsv, ndjson, parquet or arrow"
    )


def _partition(path: str) -> tuple[tuple[str, str | None], ...]:
    """Return the columns that a file's folders name, the outermost first, as dt in .../dt=2026-11-20/a.csv."""
    values: dict[str, str | None] = {}
    for part in path.split("/")[:-1]:
        if found := _PARTITION.fullmatch(part):
            value = unquote(found[2])
            values[found[1]] = None if value == NO_VALUE else value
    return tuple(values.items())


def _refuse_mixed_partitions(files: Sequence[SourceFile]) -> None:
    for file in files:
        mine, first = dict(file.partition), dict(files[0].partition)
        for name in sorted(set(mine) ^ set(first)):
            has, lacks = (file, files[0]) if name in mine else (files[0], file)
            raise SourceError(
                f"column {name!r} is in the folder names of {has.path} but not in those of {lacks.path}; "
                f"all files need folders of the form {name}=VALUE"
            )
