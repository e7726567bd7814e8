"""What kind of file are these bytes, and do they keep the API's limits? Pure."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import orjson

from pipeline.errors import RowProblem
from pipeline.request import packing
from pipeline.storage.folders import quoted_path, reason_of

if TYPE_CHECKING:
    from pipeline.job.model import Attachment


# platform.claude.com/docs/en/build-with-claude/vision
IMAGE_BYTES = 10 * 1024 * 1024  # of base64; the API's error message says "exceeds 10 MB maximum: ... > 10485760 bytes"
IMAGE_PIXELS = 8000  # on either side
MANY_IMAGES = 20  # in a request with more images than this,
MANY_IMAGES_PIXELS = 2000  # is the most for either side of each image
REQUEST_BYTES = 32_000_000  # "32 MB" for all that a request carries; we count the smaller megabyte, to be safe
# platform.claude.com/docs/en/build-with-claude/files
UPLOAD_BYTES = 500_000_000  # "500 MB" a file

OWN_FILE_BYTES = 100_000  # at the start of a file, in which the pipeline's own files are recognized
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
PDF_HEADER_WITHIN = 1024  # bytes from the start, as PDF readers do it
EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "application/pdf": "pdf",
    "text/plain": "txt",
}
CALLED = {"application/pdf": "a PDF", "text/plain": "plain text"}


@dataclass(frozen=True)
class Content:
    """A file to upload. name: the file's name, attachment.EXT for bytes; sha256: of data, in hex."""

    data: bytes
    media_type: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """One attachment that passed its own checks. bytes: what it adds to the request; pages: 0 unless it is a PDF."""

    name: str
    source: dict[str, Any] | Content
    bytes: int = 0
    pixels: tuple[int, int] | None = None
    pages: int = 0


def media_type(data: bytes) -> str | None:
    """Return the media type of this content, a key of EXTENSIONS, by its first bytes; None for any other content."""
    for signature, content_type in SIGNATURES.items():
        if data.startswith(signature):
            return content_type
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if b"%PDF-" in data[:PDF_HEADER_WITHIN]:
        return "application/pdf"
    return None if _text(data) is None else "text/plain"


def checked_part(data: bytes, attachment: "Attachment", path: str | None) -> Part:
    """Return this content as a part of a request. path: of its file, None for bytes. Raises RowProblem."""
    name = name_of(path)
    refuse_size(len(data), attachment, name)
    if path is not None:
        _refuse_own(data, name)
    content_type = media_type(data)
    _refuse_other_kind(content_type, kind_of(attachment), name)
    assert content_type is not None
    pixels = _pixels(data, content_type, name) if attachment.image is not None else None
    pages = _pages(data, name) if content_type == "application/pdf" else 0
    if content_type == "text/plain" and not (_text(data) or "").strip():
        raise RowProblem(f"{name} is empty")
    if attachment.upload:
        content = Content(data, content_type, _file_name(path, content_type), hashlib.sha256(data).hexdigest())
        return Part(name, content, pixels=pixels, pages=pages)
    source = _source(data, content_type)
    carried = len(orjson.dumps(source["data"])) if content_type == "text/plain" else len(source["data"])
    return Part(name=name, source=source, bytes=carried, pixels=pixels, pages=pages)


def _source(data: bytes, content_type: str) -> dict[str, Any]:
    """Return the `source` of a block for a content that is sent inside the request."""
    if content_type == "text/plain":
        return {"type": "text", "media_type": content_type, "data": _text(data)}
    return {"type": "base64", "media_type": content_type, "data": b64encode(data).decode()}


def refuse_size(size: int, attachment: "Attachment", name: str) -> None:
    """Raise RowProblem if one file of this many bytes is too large for the API."""
    if attachment.upload:
        if size > UPLOAD_BYTES:
            raise RowProblem(f"{name} has {size:,} bytes; the Files API accepts at most {UPLOAD_BYTES:,}")
    elif attachment.image is not None:
        if base64_size(size) > IMAGE_BYTES:
            raise RowProblem(
                f"{name} has {base64_size(size):,} bytes as base64; the API accepts at most {IMAGE_BYTES:,} of an image"
            )
    elif size > REQUEST_BYTES:
        raise RowProblem(
            f"{name} has {size:,} bytes; the API accepts at most {REQUEST_BYTES:,} in a request, "
            "unless the attachment has upload: true"
        )


def _refuse_own(data: bytes, name: str) -> None:
    """Raise RowProblem if this is the content of a database, a request body or a job file of the pipeline."""
    start = data[:OWN_FILE_BYTES]
    for kind, pattern in OWN_FILES.items():
        if pattern.match(start):
            raise RowProblem(f"{name} is {kind}, not an attachment; name another file")


def _refuse_other_kind(content_type: str | None, kind: str, name: str) -> None:
    """Raise RowProblem unless a content of this media type can be such an attachment. content_type: None if unknown."""
    if content_type is None:
        known = "a PNG, JPEG, GIF or WebP image" if kind == "image" else "a PDF or UTF-8 text"
        raise RowProblem(f"{name} is not {known}, judged by its content, not its name; the API accepts no other {kind}")
    if content_type.startswith("image/") and kind == "document":
        raise RowProblem(f"{name} is an image ({content_type}); attach it by `image`, not by `document`")
    if not content_type.startswith("image/") and kind == "image":
        raise RowProblem(f"{name} is {CALLED[content_type]} ({content_type}); attach it by `document`, not by `image`")


def refuse_bytes(carried: Sequence[tuple[int, str]], measured: str) -> None:
    """Raise RowProblem if a request's attachments are too large together.

    carried: bytes and name of each attachment; measured: how the bytes are counted, for the message.
    """
    total = sum(size for size, _ in carried)
    if total > REQUEST_BYTES:
        raise RowProblem(
            f"the attachments have {total:,} bytes{measured}, the largest is {max(carried)[1]}; the API accepts at "
            f"most {REQUEST_BYTES:,} in a request, not counting those with upload: true"
        )


def _pixels(data: bytes, content_type: str, name: str) -> tuple[int, int]:
    """Return width and height from the headers, without decoding the image. Raises RowProblem if it is broken."""
    # these classes, because Image.open warns of large images through a filter that all threads share
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
        with readers[content_type](stream) as image:
            header = stream.tell()
            image.verify()  # checks the checksums of PNG; does nothing for other formats
            width, height = image.size
    except Exception as exc:
        raise RowProblem(f"{name} cannot be read as {content_type}: {reason_of(exc)}") from exc
    if _ends_early(data, content_type, header):
        raise RowProblem(f"{name} cannot be read as {content_type}: its end is missing")
    if max(width, height) > IMAGE_PIXELS:
        raise RowProblem(
            f"{name} is {sides((width, height))} pixels; the API accepts at most {sides((IMAGE_PIXELS, IMAGE_PIXELS))}"
        )
    return width, height


def _ends_early(data: bytes, content_type: str, header: int) -> bool:
    """Return whether the format's end mark is missing. A few bytes after it do no harm. Pillow checks PNG and WebP."""
    match content_type:
        case "image/jpeg":  # searched after the header, where a thumbnail has its own end mark
            return data.find(b"\xff\xd9", header) < 0
        case "image/gif":
            return b"\x00;" not in data[-1024:]
        case _:
            return False


def _pages(data: bytes, name: str) -> int:
    """Return how many pages a PDF has. Raises RowProblem if it is encrypted or broken."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    try:
        reader = PdfReader(BytesIO(data))
        encrypted, pages = reader.is_encrypted, 0 if reader.is_encrypted else len(reader.pages)
    except DependencyError:
        encrypted, pages = True, 0  # with a cipher that pypdf cannot read without another package
    except Exception as exc:
        raise RowProblem(f"{name} cannot be read as a PDF: {reason_of(exc)}") from exc
    if encrypted:
        raise RowProblem(f"{name} is an encrypted PDF, which the API does not accept; save it without a password")
    if pages == 0:
        raise RowProblem(f"{name} is a PDF without pages")
    return pages


def _text(data: bytes) -> str | None:
    """Return these bytes as UTF-8 text without a byte order mark; None if they are not UTF-8 text."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _file_name(path: str | None, content_type: str) -> str:
    """Return a name that the Files API accepts: 1 to 255 characters, none of which has a meaning in paths."""
    name = "" if path is None else re.sub(r'[<>:"|?*\\/\x00-\x1f]', "_", path.rsplit("/", 1)[-1])[-255:]
    return name or f"attachment.{EXTENSIONS[content_type]}"


def kind_of(attachment: "Attachment") -> Literal["image", "document"]:
    """Return the type of content block that an attachment becomes."""
    return "document" if attachment.image is None else "image"


def base64_size(size: int) -> int:
    """Return how many bytes this many bytes have as base64."""
    return (size + 2) // 3 * 4


def sides(pixels: Iterable[int]) -> str:
    """Return width and height as a message says them: `800 x 600`."""
    return " x ".join(str(side) for side in pixels)


def name_of(value: Any) -> str:
    """Return how a message calls an attachment: by its path in quotes; bytes have no name."""
    return quoted_path(value) if isinstance(value, str) else "the value"
