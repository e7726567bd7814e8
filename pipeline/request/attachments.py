"""Which content blocks do a row's images and documents become, and does the API accept them? Edge: files.

A value is a path inside the folder of the data file, an http(s) URL, a Files API id, bytes, or several of these: a
Parquet list, or a text that is a JSON array. The content of a file decides what it is, because its name may be wrong.
Rows may come from strangers. Therefore they cannot name hidden files, nor the pipeline's own files, which often lie in
the folder of the data file.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import orjson
import polars as pl
from cachetools import LRUCache

from pipeline.errors import RowProblem
from pipeline.job.json_values import dump
from pipeline.request.media import (
    MANY_IMAGES,
    MANY_IMAGES_PIXELS,
    Content,
    Part,
    base64_size,
    checked_part,
    kind_of,
    name_of,
    refuse_bytes,
    refuse_size,
    sides,
)
from pipeline.storage.folders import Folder, quoted_path

if TYPE_CHECKING:
    from pipeline.job.model import Attachment

IMAGES = 600  # in a request
SMALL_CONTEXT_IMAGES = 100  # in a request to a model with less than 1M tokens of context
# platform.claude.com/docs/en/build-with-claude/pdf-support
PAGES = 600  # in a request
SMALL_CONTEXT_PAGES = 100

CACHE_BYTES = 64_000_000  # of files kept in memory, because many rows may name the same file
ENTRY_BYTES = 1_000  # added to each cached file, for its key and its bookkeeping

FILE_ID = re.compile(r"file_[A-Za-z0-9]+")
WEB = re.compile(r"https?://", re.IGNORECASE)
# a file may be named `scan:1.png`; so without slashes only the schemes that people do write count
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(data|file|blob|about|mailto):", re.IGNORECASE)

# pypdf warns of each oddity that it can read in spite of, on stderr by default; it raises for what it cannot read
logging.getLogger("pypdf").setLevel(logging.ERROR)

Nulls = Literal["invalid", "empty"]


class Attachments:
    """The attachments of a job: makes the content blocks of each row, and stamps that show whether files changed.

    Use it from one thread at a time: it caches the files that it reads.
    """

    def __init__(
        self,
        attachments: Sequence["Attachment"],
        *,
        nulls: Nulls,
        uploaded: Callable[[Content], str] | None = None,
        small_context: bool = False,
    ) -> None:
        """Prepare for rows of a job.

        nulls: a row without a file is invalid, or is sent without it. small_context: the model's context window has
        less than 1M tokens. uploaded: returns the Files API id of a content, for attachments with `upload`; it is
        called for each row, after all checks of the row have passed.
        """
        self._attachments = tuple(attachments)
        self._nulls = nulls
        self._uploaded = uploaded
        self._small_context = small_context
        self._recent: LRUCache[Hashable, Part | str] = LRUCache(CACHE_BYTES, getsizeof=_bytes_held)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that hold attachments, each once."""
        return tuple(dict.fromkeys(attachment.column for attachment in self._attachments))

    def blocks(self, row: Mapping[str, Any], folder: Folder) -> list[dict[str, Any]]:
        """Return the row's content blocks, in the order of the job's attachments and of each column's values.

        Raises RowProblem with the column, the file and the reason if the API would refuse them.
        """
        self._refuse_too_large(row, folder)
        parts = [(each, part) for each in self._attachments for part in self._parts(each, row[each.column], folder)]
        self._refuse_beyond_limits(parts)
        return [self._block(each, part) for each, part in parts]

    def prefetch(self, rows: Iterable[Mapping[str, Any]], folder: Folder) -> None:
        """Look up the files of these rows in advance, many at a time."""
        values = (one for row in rows for column in self.columns for one in _values(row[column]))
        folder.prefetch(value for value in values if _is_path(value))

    def stamp(self, row: Mapping[str, Any], folder: Folder) -> str:
        """Return a text that changes when one of the row's attachments changes. Reads no file, raises nothing."""
        return dump({column: stamp(row[column], folder) for column in self.columns})

    def weight(self, row: Mapping[str, Any], folder: Folder) -> int:
        """Return about how many bytes of base64 the row's attachments add to its request; uploaded ones add none."""
        return sum(weight(row[each.column], folder) for each in self._attachments if not each.upload)

    def _parts(self, attachment: "Attachment", value: Any, folder: Folder) -> Iterator[Part]:
        """Yield the parts of a column's value. Raises RowProblem for a null, unless the job sends such rows."""
        for one in _values(value):
            if one is not None:
                with _in_column(attachment.column):
                    part = self._part(attachment, one, folder)
                yield part
            elif self._nulls == "invalid":
                raise RowProblem(
                    f"column {attachment.column!r} holds no {kind_of(attachment)} (it is null or empty); "
                    "set source.nulls: empty to send such rows without one"
                )

    def _part(self, attachment: "Attachment", value: Any, folder: Folder) -> Part:
        """Return the checked part for one value: bytes, a path, a URL or a Files API id. Raises RowProblem."""
        match value:
            case bytes():
                return checked_part(value, attachment, None)
            case str():
                source = _remote_source(value)
                return Part(quoted_path(value), source) if source else self._file_part(attachment, value, folder)
            case _:
                raise RowProblem(f"a value of type {type(value).__name__} is not {_ACCEPTED}")

    def _file_part(self, attachment: "Attachment", path: str, folder: Folder) -> Part:
        """Return the checked part for a file, from the cache if the file has not changed. Raises RowProblem."""
        size, version = folder.stat(path)
        key = (folder, path, size, version, kind_of(attachment), attachment.upload)
        part = self._recent.get(key)
        if part is None:
            data = folder.read(path)
            try:
                part = checked_part(data, attachment, path)
            except RowProblem as exc:
                part = str(exc)  # cached, so that the next row that names the file is refused without reading it
            with suppress(ValueError):  # of the cache: the part is larger than the whole cache
                self._recent[key] = part
        if isinstance(part, str):
            raise RowProblem(part)
        return part

    def _refuse_too_large(self, row: Mapping[str, Any], folder: Folder) -> None:
        """Raise RowProblem if the sizes alone are too large. Called before any file is read into memory."""
        carried: list[tuple[int, str]] = []
        for attachment in self._attachments:
            for one in _values(row[attachment.column]):
                size, name = _size(one, folder), name_of(one)
                with _in_column(attachment.column):
                    refuse_size(size, attachment, name)
                carried.append((0 if attachment.upload else size, name))
        refuse_bytes(carried, "")

    def _refuse_beyond_limits(self, parts: Sequence[tuple["Attachment", Part]]) -> None:
        """Raise RowProblem if the parts together exceed a limit of the API: images, pages, pixels or bytes."""
        images = sum(attachment.image is not None for attachment, _ in parts)
        pages = sum(part.pages for _, part in parts)
        _refuse_more_than(SMALL_CONTEXT_IMAGES if self._small_context else IMAGES, images, "image", self._small_context)
        _refuse_more_than(SMALL_CONTEXT_PAGES if self._small_context else PAGES, pages, "PDF page", self._small_context)
        for attachment, part in parts:
            if images > MANY_IMAGES and part.pixels and max(part.pixels) > MANY_IMAGES_PIXELS:
                raise RowProblem(
                    f"column {attachment.column!r}: {part.name} is {sides(part.pixels)} pixels; in a request with more "
                    f"than {MANY_IMAGES} images (this one has {images}) the API accepts at most "
                    f"{sides((MANY_IMAGES_PIXELS, MANY_IMAGES_PIXELS))}"
                )
        refuse_bytes([(part.bytes, part.name) for _, part in parts], " in the request")

    def _block(self, attachment: "Attachment", part: Part) -> dict[str, Any]:
        """Return the content block of a part; a file to upload is uploaded first."""
        source = part.source
        if isinstance(source, Content):
            if self._uploaded is None:
                raise ValueError(
                    f"attachments of column {attachment.column!r} are uploaded, and `uploaded` is not given"
                )
            source = _file_source(self._uploaded(source))
        block: dict[str, Any] = {"type": kind_of(attachment), "source": source}
        if attachment.title is not None:
            block["title"] = attachment.title
        if attachment.context is not None:
            block["context"] = attachment.context
        if attachment.citations:
            block["citations"] = {"enabled": True}
        return block


def stamp(value: Any, folder: Folder) -> str:
    """Return what identifies a column's attachments: path|size|time of change, path|missing, a URL or id, sha256:HEX.

    "null" for none, a JSON array for several. Reads no file. A value that is refused later has a stamp, too.
    """
    stamps = [_stamp(one, folder) for one in _values(value)]
    return stamps[0] if len(stamps) == 1 else dump(stamps)


def weight(value: Any, folder: Folder) -> int:
    """Return about how many bytes a column's attachments have as base64; 0 for URLs, ids and unreadable files."""
    return sum(base64_size(_size(one, folder)) for one in _values(value))


_ACCEPTED = "a path, an http(s) URL, a Files API id, bytes, or a list of these"


def _values(value: Any) -> list[Any]:
    """Return the attachments in a column's value, in order: texts, bytes, and None for each that is null or empty."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_list(value)
    if isinstance(value, pl.Series):
        value = value.to_list()
    if not isinstance(value, list | tuple):
        value = [value]
    return [_normalized(one) for one in value] or [None]


def _json_list(text: str) -> str | list[Any]:
    """Return the list that a JSON text holds. Any other text is returned unchanged: `[draft] plan.pdf` is a path."""
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return parsed if isinstance(parsed, list) else text


def _normalized(value: Any) -> Any:
    """Return one attachment with all kinds of bytes as `bytes`; None for empty bytes and for blank text."""
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    empty = value.strip() == "" if isinstance(value, str) else isinstance(value, bytes) and len(value) == 0
    return None if empty else value


def _remote_source(text: str) -> dict[str, Any] | None:
    """Return the block's source for a URL or a Files API id; None for a path. Raises RowProblem for other URLs."""
    if WEB.match(text):
        return {"type": "url", "url": text}
    if FILE_ID.fullmatch(text):
        return _file_source(text)
    if scheme := SCHEME.match(text):
        # the message leaves out the rest, which may hold a password, or be a whole file
        raise RowProblem(f"{scheme[1] or scheme[2]}: URLs are not accepted; give {_ACCEPTED}")
    return None


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and not (FILE_ID.fullmatch(value) or WEB.match(value) or SCHEME.match(value))


def _stamp(value: Any, folder: Folder) -> str:
    """Return the stamp of one attachment, see `stamp`."""
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    text = value if isinstance(value, str) else f"{type(value).__name__} {value!r}"
    if _is_path(value):
        try:
            text += "|{}|{}".format(*folder.stat(value))
        except RowProblem:
            text += "|missing"
    return text.encode(errors="backslashreplace").decode()  # half of a surrogate pair cannot be encoded


def _size(value: Any, folder: Folder) -> int:
    """Return the bytes of one attachment; 0 for a null, a URL, an id, or a file that cannot be found."""
    if isinstance(value, bytes):
        return len(value)
    if not _is_path(value):
        return 0
    try:
        return folder.stat(value)[0]
    except RowProblem:
        return 0


def _refuse_more_than(most: int, n: int, what: str, small_context: bool) -> None:
    """Raise RowProblem if a request has more than `most` attachments of a kind. n: how many it has; what: the kind."""
    if n > most:
        model = " to a model with less than 1M tokens of context" if small_context else ""
        raise RowProblem(f"the attachments are {n:,} {what}s; the API accepts at most {most:,} in a request{model}")


def _file_source(file_id: str) -> dict[str, Any]:
    return {"type": "file", "file_id": file_id}


def _bytes_held(part: Part | str) -> int:
    """Return about how many bytes of memory an entry of the cache takes."""
    if isinstance(part, str):
        size = len(part)
    else:
        size = len(part.source.data) if isinstance(part.source, Content) else part.bytes
    return size + ENTRY_BYTES


@contextmanager
def _in_column(column: str) -> Iterator[None]:
    """Put the column's name in front of the message of a RowProblem that the block raises."""
    try:
        yield
    except RowProblem as exc:
        raise RowProblem(f"column {column!r}: {exc}") from exc
