"""A row's images and documents as content blocks of its user turn, checked against what the API takes. Edge: files.

A value is a path under the folder of the data file, an http(s) URL, a Files API id, bytes, or several of these: a
Parquet list, or a text that is a JSON array. What a file is, its content says; its name may lie. Rows may come from
strangers: they cannot name hidden files, nor the pipeline's own, which often are in the folder of the data file.
"""

import hashlib
import logging
import os
import posixpath
import re
import stat as modes
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson
import polars as pl

from pipeline import objects, packing, spool
from pipeline.jsontext import dump
from pipeline.objects import Object
from pipeline.templates import RowProblem

if TYPE_CHECKING:
    from pipeline.job import Attachment

# platform.claude.com/docs/en/build-with-claude/vision
IMAGE_BYTES = 10 * 1024 * 1024  # of base64; the API's own refusal says "exceeds 10 MB maximum: ... > 10485760 bytes"
IMAGE_PIXELS = 8000  # on either side
MANY_IMAGES = 20  # in a request with more of them, each may have
MANY_IMAGES_PIXELS = 2000  # on either side
IMAGES = 600  # in a request
SMALL_CONTEXT_IMAGES = 100  # the same for models with less than 1M tokens of context
# platform.claude.com/docs/en/build-with-claude/pdf-support
PAGES = 600  # in a request
SMALL_CONTEXT_PAGES = 100
REQUEST_BYTES = 32_000_000  # "32 MB", of all that a request carries; it is not said which, so the smaller megabyte
# platform.claude.com/docs/en/build-with-claude/files
UPLOAD_BYTES = 500_000_000  # "500 MB" a file

REMEMBERED = 100_000  # objects of a folder on object storage: what was found of them
LOOKING = 32  # requests to object storage at a time

CACHE_BYTES = 64_000_000  # of files kept in memory, for rows that name the same ones
SHOWN = 200  # characters of a path in a message: a column may hold anything

OWN_FILE_BYTES = 100_000  # from the start, in which such a file is recognized
OWN_FILES = {
    "a database": re.compile(rb"SQLite format 3\0"),
    "a request body of the pipeline's": re.compile(re.escape(packing.PREFIX)),
    "a job file": re.compile(rb"(?=(?s:.*)^source *:)(?=(?s:.*)^request *:)(?=(?s:.*)^sink *:)", re.MULTILINE),
}

SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
PDF_HEADER_WITHIN = 1024  # bytes from the start, as readers of PDF have it
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "application/pdf": "pdf",
    "text/plain": "txt",
}
CALLED = {"application/pdf": "a PDF", "text/plain": "plain text"}

FILE_ID = re.compile(r"file_[A-Za-z0-9]+")
WEB = re.compile(r"https?://", re.IGNORECASE)
# a file may be called `scan:1.png`, so what has no slashes must be a scheme that people do write
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(data|file|blob|about|mailto):", re.IGNORECASE)

# pypdf tells of every oddity that it reads over, on stderr if nobody listens; what it cannot read it raises
logging.getLogger("pypdf").setLevel(logging.ERROR)

Nulls = Literal["invalid", "empty"]


class Folder(Protocol):
    """Where the paths of rows lead. Hashable: folders that are equal hold the same files, which are read once.

    Paths are relative to it and may not leave it. Both methods raise RowProblem with the path and the reason.
    """

    def stat(self, path: str) -> tuple[int, int | str]:
        """The file's size in bytes, and what changes when its content does: nanoseconds, or an ETag."""

    def read(self, path: str) -> bytes:
        """The whole file."""

    def foresee(self, paths: Iterable[str]) -> None:
        """Be ready for `stat` of these, where one by one they would take long. Raises nothing."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine's file system."""

    path: Path

    def stat(self, path: str) -> tuple[int, int]:
        """Size and time of change (ns)."""
        with _reasons(path):
            found = os.stat(self._inside(path))
        if modes.S_ISDIR(found.st_mode):
            raise RowProblem(f"{_shown(path)} is a folder, not a file")
        if not modes.S_ISREG(found.st_mode):
            raise RowProblem(f"{_shown(path)} is no regular file")
        return found.st_size, found.st_mtime_ns

    def read(self, path: str) -> bytes:
        """The whole file."""
        self.stat(path)  # a pipe or a device would have no end
        with _reasons(path):
            return Path(self._inside(path)).read_bytes()

    def foresee(self, paths: Iterable[str]) -> None:
        """Nothing: the operating system is fast."""

    def _inside(self, path: str) -> str:
        """Where `path` leads once `..` and symbolic links are followed, if that is in this folder."""
        root = os.path.realpath(self.path)
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, real]) != root:
            raise RowProblem(f"{_shown(path)} leads out of {self.path}, the folder of the data file")
        if path.startswith(".") or "/." in path:
            named = os.path.relpath(os.path.normpath(os.path.join(root, path)), root)
            _refuse_hidden(path, named if not named.startswith("..") else os.path.relpath(real, root))
        if _is_in_spool(real, root):
            raise RowProblem(f"{_shown(path)} is in a spool of the pipeline, which holds no data")
        return real


@dataclass(frozen=True)
class ObjectFolder:
    """A folder on object storage. What was found of an object holds for as long as this folder is used.

    An object that is replaced meanwhile is refused when it is read, and is found anew by the next planning.
    """

    url: str
    _found: dict[str, Object | str] = field(default_factory=dict, compare=False, repr=False)

    def stat(self, path: str) -> tuple[int, str]:
        """Size and ETag. Raises RowProblem, and what `objects.found` raises of the store: no row's fault."""
        found = self._found.get(path) or self._look(path)
        if isinstance(found, str):
            raise RowProblem(found)
        return found.size, found.etag

    def read(self, path: str) -> bytes:
        """The whole object, as it was found."""
        self.stat(path)
        found = self._found[path]
        assert isinstance(found, Object)
        try:
            return objects.read(found)
        except (objects.NotThere, objects.Replaced):
            raise RowProblem(f"{_shown(path)} was replaced or removed while the rows were planned; run again") from None

    def foresee(self, paths: Iterable[str]) -> None:
        """Look for all of them at the same time."""
        wanted = [path for path in dict.fromkeys(paths) if path not in self._found]
        if len(self._found) + len(wanted) > REMEMBERED:
            self._found.clear()
        with ThreadPoolExecutor(min(LOOKING, len(wanted) or 1), thread_name_prefix="look") as looking:
            for coming in [looking.submit(self._look, path) for path in wanted]:
                coming.exception()  # is raised by `stat`, if that is still so then

    def _look(self, path: str) -> Object | str:
        try:
            found: Object | str = objects.found(self._inside(path))
        except (RowProblem, objects.NoBucket) as exc:
            found = str(exc)
        except objects.NotThere:
            found = f"{_shown(path)} does not exist"
        self._found[path] = found
        return found

    def _inside(self, path: str) -> str:
        """The address of `path`, if that is in this folder; keys know no `..`, so it is worked out here."""
        root = objects.path_of(self.url)
        real = posixpath.normpath(posixpath.join("/", root, path))
        if posixpath.commonpath(["/" + root, real]) != posixpath.normpath("/" + root):
            raise RowProblem(f"{_shown(path)} leads out of {self.url}, the folder of the data file")
        _refuse_hidden(path, posixpath.relpath(real, "/" + root))
        return objects.root_of(self.url) + real


@dataclass(frozen=True)
class NoFolder:
    """Where a source has no folder. what: the source, with its article."""

    what: str

    def stat(self, path: str) -> tuple[int, str]:
        """Raises RowProblem."""
        raise RowProblem(
            f"{_shown(path)} is a path, and {self.what} has no folder: give an http(s) URL, an id or bytes"
        )

    def read(self, path: str) -> bytes:
        """Raises RowProblem."""
        self.stat(path)
        raise AssertionError

    def foresee(self, paths: Iterable[str]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Content:
    """What is to be uploaded. name: the file's name, attachment.EXT for bytes; sha256: of data, in hex."""

    data: bytes
    media_type: str
    name: str
    sha256: str


@dataclass(frozen=True)
class _Part:
    """One attachment that is fine by itself. bytes: what it adds to the request; pages: 0 for what is no PDF."""

    name: str
    source: dict[str, Any] | Content
    bytes: int = 0
    pixels: tuple[int, int] | None = None
    pages: int = 0


class Attachments:
    """A job's attachments: content blocks for each row, and what tells whether a row's files have changed.

    Not for several threads at once: it remembers the files that it read.
    """

    def __init__(
        self,
        attachments: Sequence["Attachment"],
        *,
        nulls: Nulls,
        uploaded: Callable[[Content], str] | None = None,
        small_context: bool = False,
    ) -> None:
        """nulls: a row that has no file is invalid, or goes without. small_context: the model has less than 1M tokens.

        uploaded: gives the Files API id of a content, for attachments with `upload`. It is asked for each row, and
        only once the whole row is known to be fine.
        """
        self._attachments = tuple(attachments)
        self._nulls = nulls
        self._uploaded = uploaded
        self._small_context = small_context
        self._recent = _Recent(CACHE_BYTES)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold attachments, each once."""
        return tuple(dict.fromkeys(attachment.column for attachment in self._attachments))

    def blocks(self, row: Mapping[str, Any], folder: Folder) -> list[dict[str, Any]]:
        """The row's content blocks, in the order of the job's attachments and of each column's values.

        Raises RowProblem with the column, the file and the reason when the API would not take them.
        """
        self._refuse_too_large(row, folder)
        parts = [(each, part) for each in self._attachments for part in self._parts(each, row[each.column], folder)]
        self._refuse_beyond_limits(parts)
        return [self._block(each, part) for each, part in parts]

    def foresee(self, rows: Iterable[Mapping[str, Any]], folder: Folder) -> None:
        """Be ready for the files of these rows."""
        values = (one for row in rows for column in self.columns for one in _values(row[column]))
        folder.foresee(value for value in values if _is_path(value))

    def stamp(self, row: Mapping[str, Any], folder: Folder) -> str:
        """Text that changes when one of the row's attachments does; nothing is read for it, nothing raises."""
        return dump({column: stamp(row[column], folder) for column in self.columns})

    def weight(self, row: Mapping[str, Any], folder: Folder) -> int:
        """About how many bytes the row's request carries for its attachments, as base64; those uploaded are 0."""
        return sum(weight(row[each.column], folder) for each in self._attachments if not each.upload)

    def _parts(self, attachment: "Attachment", value: Any, folder: Folder) -> Iterator[_Part]:
        for one in _values(value):
            if one is not None:
                with _in_column(attachment.column):
                    part = self._part(attachment, one, folder)
                yield part
            elif self._nulls == "invalid":
                raise RowProblem(
                    f"column {attachment.column!r} holds no {_kind(attachment)} (it is null or empty); "
                    "with source.nulls: empty such rows go without"
                )

    def _part(self, attachment: "Attachment", value: Any, folder: Folder) -> _Part:
        match value:
            case bytes():
                return _checked(value, attachment, None)
            case str():
                source = _elsewhere(value)
                return _Part(_shown(value), source) if source else self._file(attachment, value, folder)
            case _:
                raise RowProblem(f"a value of type {type(value).__name__} is not {_TAKEN}")

    def _file(self, attachment: "Attachment", path: str, folder: Folder) -> _Part:
        size, version = folder.stat(path)
        key = (folder, path, size, version, _kind(attachment), attachment.upload)
        part = self._recent.get(key)
        if part is None:
            data = folder.read(path)
            try:
                part = _checked(data, attachment, path)
            except RowProblem as exc:
                part = str(exc)  # the next row that names it gets the same answer, and as fast
            self._recent.put(key, part, _held(part))
        if isinstance(part, str):
            raise RowProblem(part)
        return part

    def _refuse_too_large(self, row: Mapping[str, Any], folder: Folder) -> None:
        """Before anything is read, by the sizes alone: what is too large would only fill the memory."""
        carried: list[tuple[int, str]] = []
        for attachment in self._attachments:
            for one in _values(row[attachment.column]):
                size, name = _size(one, folder), _name(one)
                with _in_column(attachment.column):
                    _refuse_size(size, attachment, name)
                carried.append((0 if attachment.upload else size, name))
        _refuse_bytes(carried, "")

    def _refuse_beyond_limits(self, parts: Sequence[tuple["Attachment", _Part]]) -> None:
        images = sum(attachment.image is not None for attachment, _ in parts)
        pages = sum(part.pages for _, part in parts)
        _refuse_more(images, "image", SMALL_CONTEXT_IMAGES if self._small_context else IMAGES, self._small_context)
        _refuse_more(pages, "PDF page", SMALL_CONTEXT_PAGES if self._small_context else PAGES, self._small_context)
        for attachment, part in parts:
            if images > MANY_IMAGES and part.pixels and max(part.pixels) > MANY_IMAGES_PIXELS:
                raise RowProblem(
                    f"column {attachment.column!r}: {part.name} is {_by(part.pixels)} pixels; in a request with more "
                    f"than {MANY_IMAGES} images (this has {images}) the API takes at most "
                    f"{_by((MANY_IMAGES_PIXELS, MANY_IMAGES_PIXELS))}"
                )
        _refuse_bytes([(part.bytes, part.name) for _, part in parts], " as they are sent")

    def _block(self, attachment: "Attachment", part: _Part) -> dict[str, Any]:
        source = part.source
        if isinstance(source, Content):
            if self._uploaded is None:
                raise ValueError(
                    f"attachments of column {attachment.column!r} are uploaded, and `uploaded` is not given"
                )
            source = _file_source(self._uploaded(source))
        block: dict[str, Any] = {"type": _kind(attachment), "source": source}
        if attachment.title is not None:
            block["title"] = attachment.title
        if attachment.context is not None:
            block["context"] = attachment.context
        if attachment.citations:
            block["citations"] = {"enabled": True}
        return block


def stamp(value: Any, folder: Folder) -> str:
    """What identifies a column's attachments: path|size|time of change, path|missing, a URL or id, sha256 of bytes.

    "null" for none, a JSON array for several. Reads no file; a value of a wrong kind has a stamp, too.
    """
    stamps = [_stamp(one, folder) for one in _values(value)]
    return stamps[0] if len(stamps) == 1 else dump(stamps)


def weight(value: Any, folder: Folder) -> int:
    """About how many bytes a column's attachments are as base64; 0 for URLs, ids, and what cannot be read."""
    return sum(_base64_bytes(_size(one, folder)) for one in _values(value))


def media_type(data: bytes) -> str | None:
    """What this content is: one of EXTENSIONS, by its first bytes, or text; None for anything else."""
    for signature, found in SIGNATURES.items():
        if data.startswith(signature):
            return found
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if b"%PDF-" in data[:PDF_HEADER_WITHIN]:
        return "application/pdf"
    return None if _text(data) is None else "text/plain"


_TAKEN = "a path, an http(s) URL, a Files API id, bytes, or a list of these"


def _values(value: Any) -> list[Any]:
    """The values that a column's value stands for, in order: texts, bytes, and None for each that is null or empty."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_list(value)
    if isinstance(value, pl.Series):
        value = value.to_list()
    if not isinstance(value, list | tuple):
        value = [value]
    return [_value(one) for one in value] or [None]


def _json_list(text: str) -> str | list[Any]:
    """The list that a text of JSON holds; a text that merely looks like one may be a path: `[draft] plan.pdf`."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return found if isinstance(found, list) else text


def _value(value: Any) -> Any:
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    empty = value.strip() == "" if isinstance(value, str) else isinstance(value, bytes) and len(value) == 0
    return None if empty else value


def _elsewhere(text: str) -> dict[str, Any] | None:
    """The source of what is not ours to read: a URL or a Files API id; None for a path."""
    if WEB.match(text):
        return {"type": "url", "url": text}
    if FILE_ID.fullmatch(text):
        return _file_source(text)
    if scheme := SCHEME.match(text):
        # the rest of it may hold a password, or be a whole file
        raise RowProblem(f"{scheme[1] or scheme[2]}: URLs are not taken; give {_TAKEN}")
    return None


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and not (FILE_ID.fullmatch(value) or WEB.match(value) or SCHEME.match(value))


def _stamp(value: Any, folder: Folder) -> str:
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
    return text.encode(errors="backslashreplace").decode()  # half a character cannot be hashed


def _size(value: Any, folder: Folder) -> int:
    if isinstance(value, bytes):
        return len(value)
    if not _is_path(value):
        return 0
    try:
        return folder.stat(value)[0]
    except RowProblem:
        return 0


def _checked(data: bytes, attachment: "Attachment", path: str | None) -> _Part:
    """The part that this content makes. path: where it came from, if from a file. Raises RowProblem."""
    name = _name(path)
    _refuse_size(len(data), attachment, name)
    if path is not None:
        _refuse_own(data, name)
    found = media_type(data)
    _refuse_other_kind(found, _kind(attachment), name)
    assert found is not None
    pixels = _pixels(data, found, name) if attachment.image is not None else None
    pages = _pages(data, name) if found == "application/pdf" else 0
    if found == "text/plain" and not (_text(data) or "").strip():
        raise RowProblem(f"{name} is empty")
    if attachment.upload:
        content = Content(data, found, _file_name(path, found), hashlib.sha256(data).hexdigest())
        return _Part(name, content, pixels=pixels, pages=pages)
    source = _source(data, found)
    carried = len(orjson.dumps(source["data"])) if found == "text/plain" else len(source["data"])
    return _Part(name, source, carried, pixels, pages)


def _source(data: bytes, found: str) -> dict[str, Any]:
    """The source of a content that the request carries itself."""
    if found == "text/plain":
        return {"type": "text", "media_type": found, "data": _text(data)}
    return {"type": "base64", "media_type": found, "data": b64encode(data).decode()}


def _refuse_size(size: int, attachment: "Attachment", name: str) -> None:
    if attachment.upload:
        if size > UPLOAD_BYTES:
            raise RowProblem(f"{name} has {size:,} bytes; the Files API takes at most {UPLOAD_BYTES:,}")
    elif attachment.image is not None:
        if _base64_bytes(size) > IMAGE_BYTES:
            raise RowProblem(
                f"{name} has {_base64_bytes(size):,} bytes as base64; the API takes at most {IMAGE_BYTES:,} of an image"
            )
    elif size > REQUEST_BYTES:
        raise RowProblem(
            f"{name} has {size:,} bytes; the API takes at most {REQUEST_BYTES:,} in a request, "
            "unless the attachment has upload: true"
        )


def _is_in_spool(file: str, root: str) -> bool:
    """Whether a folder between these two is a local spool."""
    folder = os.path.dirname(file)
    while len(folder) > len(root):
        if os.path.exists(f"{folder}/{spool.MARKER}"):
            return True
        folder = os.path.dirname(folder)
    return False


def _refuse_hidden(path: str, within: str) -> None:
    """within: the same path, from the folder of the data file."""
    if any(part.startswith(".") and part not in (".", "..") for part in within.split("/")):
        raise RowProblem(f"{_shown(path)} is hidden: a name that begins with a dot is no data; give it another name")


def _refuse_own(data: bytes, name: str) -> None:
    """Raises RowProblem for the content of a file that the pipeline has made, or is told by."""
    start = data[:OWN_FILE_BYTES]
    for kind, pattern in OWN_FILES.items():
        if pattern.match(start):
            raise RowProblem(f"{name} is {kind}, and no data; name a file of the data")


def _refuse_other_kind(found: str | None, kind: str, name: str) -> None:
    """Raises RowProblem unless a content of this media type can be such an attachment."""
    if found is None:
        known = "PNG, JPEG, GIF and WebP" if kind == "image" else "a PDF, and UTF-8 text"
        raise RowProblem(f"{name} is no {kind} that the API takes: {known}, told by the content, not by the name")
    if found.startswith("image/") and kind == "document":
        raise RowProblem(f"{name} is an image ({found}); attach it by `image`, not by `document`")
    if not found.startswith("image/") and kind == "image":
        raise RowProblem(f"{name} is {CALLED[found]} ({found}); attach it by `document`, not by `image`")


def _refuse_more(n: int, what: str, most: int, small_context: bool) -> None:
    if n > most:
        model = " to a model with less than 1M tokens of context" if small_context else ""
        raise RowProblem(f"the attachments are {n:,} {what}s; the API takes at most {most:,} in a request{model}")


def _refuse_bytes(carried: Sequence[tuple[int, str]], measured: str) -> None:
    """carried: bytes and name of each attachment."""
    total = sum(size for size, _ in carried)
    if total > REQUEST_BYTES:
        raise RowProblem(
            f"the attachments have {total:,} bytes{measured}, the largest is {max(carried)[1]}; the API takes at most "
            f"{REQUEST_BYTES:,} in a request, not counting those with upload: true"
        )


def _pixels(data: bytes, found: str, name: str) -> tuple[int, int]:
    """Width and height, from the headers; the picture itself is not decoded. Raises RowProblem if it is broken."""
    # The classes themselves: Image.open warns of large pictures, through a filter that all threads share
    from PIL.GifImagePlugin import GifImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    readers: dict[str, Callable[[BytesIO], Any]] = {
        "image/png": PngImageFile,
        "image/jpeg": JpegImageFile,
        "image/gif": GifImageFile,
        "image/webp": WebPImageFile,
    }
    stream = BytesIO(data)
    try:
        with readers[found](stream) as image:
            header = stream.tell()
            image.verify()  # of PNG the checksums; for the others it does nothing
            width, height = image.size
    except Exception as exc:
        raise RowProblem(f"{name} cannot be read as {found}: {_reason(exc)}") from exc
    if _ends_early(data, found, header):
        raise RowProblem(f"{name} cannot be read as {found}: its end is missing")
    if max(width, height) > IMAGE_PIXELS:
        raise RowProblem(
            f"{name} is {_by((width, height))} pixels; the API takes at most {_by((IMAGE_PIXELS, IMAGE_PIXELS))}"
        )
    return width, height


def _ends_early(data: bytes, found: str, header: int) -> bool:
    """Whether the format's own end does not come; a few bytes behind it do no harm. PNG and WebP Pillow has checked."""
    match found:
        case "image/jpeg":  # in the header, a thumbnail has an end of its own; in a scan these two bytes do not occur
            return data.find(b"\xff\xd9", header) < 0
        case "image/gif":
            return b"\x00;" not in data[-1024:]
        case _:
            return False


def _pages(data: bytes, name: str) -> int:
    """How many pages a PDF has. Raises RowProblem when it is encrypted or broken."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    try:
        reader = PdfReader(BytesIO(data))
        encrypted, pages = reader.is_encrypted, 0 if reader.is_encrypted else len(reader.pages)
    except DependencyError:
        encrypted, pages = True, 0  # by a cipher for which pypdf wants another package
    except Exception as exc:
        raise RowProblem(f"{name} cannot be read as a PDF: {_reason(exc)}") from exc
    if encrypted:
        raise RowProblem(f"{name} is an encrypted PDF, which the API does not take; save it without a password")
    if pages == 0:
        raise RowProblem(f"{name} is a PDF without pages")
    return pages


def _text(data: bytes) -> str | None:
    """The text that these bytes are in UTF-8, without a byte order mark; None for anything else."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _file_name(path: str | None, found: str) -> str:
    """A name that the Files API takes: 1 to 255 characters, none of them with a meaning in paths."""
    name = "" if path is None else re.sub(r'[<>:"|?*\\/\x00-\x1f]', "_", path.rsplit("/", 1)[-1])[-255:]
    return name or f"attachment.{EXTENSIONS[found]}"


def _file_source(file_id: str) -> dict[str, Any]:
    return {"type": "file", "file_id": file_id}


def _kind(attachment: "Attachment") -> Literal["image", "document"]:
    return "document" if attachment.image is None else "image"


def _base64_bytes(size: int) -> int:
    return (size + 2) // 3 * 4


def _by(pixels: Iterable[int]) -> str:
    return " x ".join(str(side) for side in pixels)


def _name(value: Any) -> str:
    return _shown(value) if isinstance(value, str) else "the value"


def _shown(path: str) -> str:
    """A path as it stands in a message: quoted, for blanks at its ends; what is no path may be very long."""
    return repr(path if len(path) <= SHOWN else path[:SHOWN] + "…")


def _reason(exc: Exception) -> str:
    return str(exc).strip().rstrip(".").split("\n")[0][:SHOWN] or type(exc).__name__


def _held(part: _Part | str) -> int:
    """About how many bytes of memory it takes to remember this."""
    if isinstance(part, str):
        return len(part)
    return len(part.source.data) if isinstance(part.source, Content) else part.bytes


@contextmanager
def _in_column(column: str) -> Iterator[None]:
    try:
        yield
    except RowProblem as exc:
        raise RowProblem(f"column {column!r}: {exc}") from exc


@contextmanager
def _reasons(path: str) -> Iterator[None]:
    """What the file system says, as a RowProblem. It is a ValueError when the text can be no path at all."""
    try:
        yield
    except FileNotFoundError as exc:
        raise RowProblem(f"{_shown(path)} does not exist; paths begin at the folder of the data file") from exc
    except (OSError, ValueError) as exc:
        said = exc.strerror if isinstance(exc, OSError) and exc.strerror else _reason(exc)
        raise RowProblem(f"{_shown(path)} cannot be read: {said}") from exc


class _Recent:
    """What was made of files lately, up to so many bytes; the longest unused goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._parts: OrderedDict[Hashable, tuple[_Part | str, int]] = OrderedDict()

    def get(self, key: Hashable) -> _Part | str | None:
        if key not in self._parts:
            return None
        self._parts.move_to_end(key)
        return self._parts[key][0]

    def put(self, key: Hashable, part: _Part | str, size: int) -> None:
        size += 1000  # of the key and the rest
        if size > self._most:
            return
        self._parts[key] = (part, size)
        self._bytes += size
        while self._bytes > self._most:
            _, (_, freed) = self._parts.popitem(last=False)
            self._bytes -= freed
