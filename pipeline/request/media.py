"""What an attachment's bytes are, and the limits that the API sets for them. Pure."""

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
IMAGE_BYTES = 10 * 1024 * 1024  # of base64; the API's own refusal says "exceeds 10 MB maximum: ... > 10485760 bytes"
IMAGE_PIXELS = 8000  # on either side
MANY_IMAGES = 20  # in a request with more of them, each may have
MANY_IMAGES_PIXELS = 2000  # on either side
REQUEST_BYTES = 32_000_000  # "32 MB", of all that a request carries; it is not said which, so the smaller megabyte
# platform.claude.com/docs/en/build-with-claude/files
UPLOAD_BYTES = 500_000_000  # "500 MB" a file

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


@dataclass(frozen=True)
class Content:
    """What is to be uploaded. name: the file's name, attachment.EXT for bytes; sha256: of data, in hex."""

    data: bytes
    media_type: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """One attachment that is fine by itself. bytes: what it adds to the request; pages: 0 for what is no PDF."""

    name: str
    source: dict[str, Any] | Content
    bytes: int = 0
    pixels: tuple[int, int] | None = None
    pages: int = 0


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


def checked_part(data: bytes, attachment: "Attachment", path: str | None) -> Part:
    """The part that this content makes. path: where it came from, if from a file. Raises RowProblem."""
    name = name_of(path)
    refuse_size(len(data), attachment, name)
    if path is not None:
        _refuse_own(data, name)
    found = media_type(data)
    _refuse_other_kind(found, kind_of(attachment), name)
    assert found is not None
    pixels = _pixels(data, found, name) if attachment.image is not None else None
    pages = _pages(data, name) if found == "application/pdf" else 0
    if found == "text/plain" and not (_text(data) or "").strip():
        raise RowProblem(f"{name} is empty")
    if attachment.upload:
        content = Content(data, found, _file_name(path, found), hashlib.sha256(data).hexdigest())
        return Part(name, content, pixels=pixels, pages=pages)
    source = _source(data, found)
    carried = len(orjson.dumps(source["data"])) if found == "text/plain" else len(source["data"])
    return Part(name=name, source=source, bytes=carried, pixels=pixels, pages=pages)


def _source(data: bytes, found: str) -> dict[str, Any]:
    """The source of a content that the request carries itself."""
    if found == "text/plain":
        return {"type": "text", "media_type": found, "data": _text(data)}
    return {"type": "base64", "media_type": found, "data": b64encode(data).decode()}


def refuse_size(size: int, attachment: "Attachment", name: str) -> None:
    if attachment.upload:
        if size > UPLOAD_BYTES:
            raise RowProblem(f"{name} has {size:,} bytes; the Files API takes at most {UPLOAD_BYTES:,}")
    elif attachment.image is not None:
        if base64_size(size) > IMAGE_BYTES:
            raise RowProblem(
                f"{name} has {base64_size(size):,} bytes as base64; the API takes at most {IMAGE_BYTES:,} of an image"
            )
    elif size > REQUEST_BYTES:
        raise RowProblem(
            f"{name} has {size:,} bytes; the API takes at most {REQUEST_BYTES:,} in a request, "
            "unless the attachment has upload: true"
        )


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


def refuse_bytes(carried: Sequence[tuple[int, str]], measured: str) -> None:
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
        raise RowProblem(f"{name} cannot be read as {found}: {reason_of(exc)}") from exc
    if _ends_early(data, found, header):
        raise RowProblem(f"{name} cannot be read as {found}: its end is missing")
    if max(width, height) > IMAGE_PIXELS:
        raise RowProblem(
            f"{name} is {sides((width, height))} pixels; the API takes at most {sides((IMAGE_PIXELS, IMAGE_PIXELS))}"
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
        raise RowProblem(f"{name} cannot be read as a PDF: {reason_of(exc)}") from exc
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


def kind_of(attachment: "Attachment") -> Literal["image", "document"]:
    return "document" if attachment.image is None else "image"


def base64_size(size: int) -> int:
    return (size + 2) // 3 * 4


def sides(pixels: Iterable[int]) -> str:
    return " x ".join(str(side) for side in pixels)


def name_of(value: Any) -> str:
    return quoted_path(value) if isinstance(value, str) else "the value"
