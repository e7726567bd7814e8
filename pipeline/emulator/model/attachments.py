"""Check the images and documents of a request as the API does.

Images and PDFs are not decoded; only their first bytes are checked.
"""

import binascii
from collections.abc import Iterator
from typing import Any

from pipeline.emulator.errors import Problem
from pipeline.emulator.model.catalogue import Model
from pipeline.emulator.model.files import FileFinder

ATTACHED = ("image", "document")
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
MAX_IMAGE_MB = 10
#: the fields of each type of source; all are text except `content`
SOURCES: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {"base64": ("media_type", "data"), "file": ("file_id",), "url": ("url",)},
    "document": {
        "base64": ("media_type", "data"),
        "content": ("content",),
        "file": ("file_id",),
        "text": ("media_type", "data"),
        "url": ("url",),
    },
}
#: the media types that a source may declare, or that an uploaded file may have
MEDIA_TYPES: dict[tuple[str, str], tuple[str, ...]] = {
    ("image", "base64"): IMAGE_TYPES,
    ("image", "file"): IMAGE_TYPES,
    ("document", "base64"): ("application/pdf",),
    ("document", "text"): ("text/plain",),
    ("document", "file"): ("application/pdf", "text/plain"),
}


def attachment_problem(
    messages: list[dict[str, Any]], model: Model, vision: bool, files: FileFinder, now_us: int
) -> Problem | None:
    """Return the first problem of an image or a document; None if there is no problem or no attachment.

    messages: already checked; each image and document has a source. vision: whether the model accepts images and PDFs.
    now_us: the time by which files have expired.
    """
    for where, block in attached(messages):
        kind = block["type"]
        if wrong := _source_problem(f"{where}.{kind}.source", kind, block.get("source")):
            return Problem(wrong)
        source = block["source"]
        if source["type"] == "file" and (found := _file_problem(where, kind, source["file_id"], files, now_us)):
            return found
        if not vision and _needs_vision(kind, source, files):
            return Problem(f"{where}: '{model.id}' does not support {'image' if kind == 'image' else 'PDF'} input.")
    return None


def attached(messages: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, block) for each image and document, also for those inside tool results and documents."""
    for index, message in enumerate(messages):
        if not isinstance(message["content"], str):
            yield from _attached_in(f"messages.{index}.content", message["content"])


def _attached_in(where: str, blocks: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, block) for each image and document in a list of blocks, also inside other blocks."""
    for at, block in enumerate(blocks if isinstance(blocks, list) else ()):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            yield from _attached_in(f"{where}.{at}.tool_result.content", block.get("content"))
        elif kind in ATTACHED:
            yield f"{where}.{at}", block
            source = block.get("source")
            if kind == "document" and isinstance(source, dict):
                yield from _attached_in(f"{where}.{at}.document.source.content.content", source.get("content"))


# Each function `..._problem` below returns what the API says about the part that it checks; None if nothing is wrong.


def _source_problem(where: str, kind: str, source: Any) -> str | None:
    if not isinstance(source, dict):
        return f"{where}: " + (
            "Field required"
            if source is None
            else "Input should be a valid dictionary or object to extract fields from"
        )
    given = source.get("type")
    if given is None:
        return f"{where}.type: Field required"
    types = SOURCES[kind]
    if not isinstance(given, str) or given not in types:
        tags = ", ".join(f"'{tag}'" for tag in types)
        return f"{where}: Input tag '{given}' found using 'type' does not match any of the expected tags: {tags}"
    if wrong := _fields_problem(f"{where}.{given}", source, types[given]):
        return wrong
    match given:
        case "base64" | "text":
            return _data_problem(f"{where}.{given}", kind, source)
        case "url" if not source["url"].lower().startswith(("https://", "http://")):
            return f"{where}.url.url: Only HTTPS URLs are supported."
        case "content":
            return _content_problem(f"{where}.content.content", source["content"])
    return None


def _fields_problem(where: str, source: dict[str, Any], fields: tuple[str, ...]) -> str | None:
    for name in fields:
        if name not in source:
            return f"{where}.{name}: Field required"
        if name != "content" and not isinstance(source[name], str):
            return f"{where}.{name}: Input should be a valid string"
    extra = next((name for name in source if name != "type" and name not in fields), None)
    return f"{where}.{extra}: Extra inputs are not permitted" if extra else None


def _data_problem(where: str, kind: str, source: dict[str, Any]) -> str | None:
    media_type, data = source["media_type"], source["data"]
    allowed = MEDIA_TYPES[kind, source["type"]]
    if media_type not in allowed:
        named = [f"'{name}'" for name in allowed]
        choice = " or ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
        return f"{where}.media_type: Input should be {choice}"
    if source["type"] == "text":
        return None
    if not data:
        return f"{where}: {kind} cannot be empty"
    limit = MAX_IMAGE_MB << 20
    if kind == "image" and len(data) > limit:
        return f"{where}: image exceeds {MAX_IMAGE_MB} MB maximum: {len(data)} bytes > {limit} bytes"
    try:
        content = binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        return f"{where}: invalid base64 data"
    if kind == "document":
        # here the API's message calls the block `pdf`
        pdf = where.replace(".document.source.", ".pdf.source.")
        return None if content.startswith(b"%PDF") else f"{pdf}.data: The PDF specified was not valid."
    actual = _looks_like(content)
    if actual is None:
        return "Could not process image"
    if actual != media_type:
        return (
            f"{where}.data: The image was specified using the {media_type} media type, "
            f"but the image appears to be a {actual} image"
        )
    return None


def _looks_like(content: bytes) -> str | None:
    """Return the media type of an image by its first bytes; None if the API does not know it."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def _content_problem(where: str, content: Any) -> str | None:
    """Return the problem of a document made of blocks; None if there is none. Its images are checked elsewhere."""
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"{where}: Input should be a valid string or list"
    for at, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in ("text", "image"):
            return f"{where}.{at}: Input should be a text or image block"
        if kind == "text" and not isinstance(block.get("text"), str):
            return f"{where}.{at}.text.text: " + (
                "Input should be a valid string" if "text" in block else "Field required"
            )
    return None


def _file_problem(where: str, kind: str, file_id: str, files: FileFinder, now_us: int) -> Problem | None:
    at = f"{where}.{kind}.source.file.file_id"
    file = files(file_id)
    if file is None:
        return Problem(f"{at}: File not found: {file_id}", "not_found_error")
    if file.expired(now_us):
        return Problem(f"{at}: File has expired: {file_id}", "not_found_error")
    if file.mime_type not in MEDIA_TYPES[kind, "file"]:
        return Problem(f"{at}: Invalid file type: {file.mime_type} is not supported in {kind} blocks")
    return None


def _needs_vision(kind: str, source: dict[str, Any], files: FileFinder) -> bool:
    """Return whether a block needs a model with vision: images and PDFs do, documents of plain text do not."""
    if kind == "document" and source["type"] == "file":
        file = files(source["file_id"])
        return file is not None and file.mime_type != "text/plain"
    return kind == "image" or source["type"] in ("base64", "url")
