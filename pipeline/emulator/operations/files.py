"""The operations of the Files resource."""

import mimetypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.emulator.clock import wire_time
from pipeline.emulator.core import Core
from pipeline.emulator.errors import ApiError
from pipeline.emulator.ids import random_id
from pipeline.emulator.model.files import StoredFile
from pipeline.emulator.operations.models import page_limit
from pipeline.emulator.operations.multipart import Part, read_form
from pipeline.emulator.wire import Call, Reply, json_reply

MAX_NAME, MAX_IDS = 500, 100
SHORTEST_SECONDS, LONGEST_SECONDS = 3600, 7_776_000
CHUNK_BYTES = 1 << 18
CURSOR = re.compile(r"page_(\d{1,18})")


def create(core: Core, call: Call) -> Reply:
    """Store an uploaded file durably, then answer."""
    assert isinstance(call.body, Path)
    form = read_form(call.headers.get("content-type", ""), call.body)
    if "file" not in form:
        raise ApiError(400, "file: Field required")
    part = form["file"]
    limit = core.settings.max_file_bytes
    if part.size > limit:
        raise ApiError(413, f"File exceeds the maximum size: {part.size} bytes > {limit} bytes")
    media_type = part.media_type or "application/octet-stream"
    name = _filename(part, media_type)
    seconds = _lifetime(form.get("expires_in_seconds"))
    now_us = core.clock.now_us()
    stored = core.files.add(
        random_id("file"),
        part.copy_to,
        workspace=call.workspace,
        filename=name,
        mime_type=media_type,
        size_bytes=part.size,
        now_us=now_us,
        expires_us=None if seconds is None else now_us + seconds * 1_000_000,
    )
    return json_reply(file_metadata(stored, core))


def _filename(part: Part, media_type: str) -> str:
    """Return the last component of the uploaded name; without a name, `unnamed` with the media type's extension."""
    name = re.split(r"[/\\]", part.filename or "")[-1]
    if len(name) > MAX_NAME:
        raise ApiError(400, f"filename: String should have at most {MAX_NAME} characters")
    return name or "unnamed" + (mimetypes.guess_extension(media_type) or "")


def _lifetime(part: Part | None) -> int | None:
    """Return expires_in_seconds of the form; None: the file does not expire."""
    if part is None:
        return None
    try:
        seconds = int(part.read(20))
    except ValueError:
        raise ApiError(400, "expires_in_seconds: Input should be a valid integer") from None
    if seconds < SHORTEST_SECONDS:
        raise ApiError(400, f"expires_in_seconds: Input should be greater than or equal to {SHORTEST_SECONDS}")
    if seconds > LONGEST_SECONDS:
        raise ApiError(400, f"expires_in_seconds: Input should be less than or equal to {LONGEST_SECONDS}")
    return seconds


def list_files(core: Core, call: Call) -> Reply:
    """List files, newest first and in pages; or the files named by `ids`, all on one page."""
    ids = call.query.get("ids[]") or call.query.get("ids")
    page = call.query.get("page")
    if ids is not None:
        if page is not None or "limit" in call.query:
            raise ApiError(400, "ids: may not be combined with page or limit")
        return _page(core, _named(core, call, list(dict.fromkeys(ids.split(",")))), None)
    before = _number_in_cursor(page) if page is not None else None
    limit = page_limit(call)
    found = core.files.listed(call.workspace, before=before, most=limit + 1)
    more = f"page_{found[limit - 1].number}" if len(found) > limit else None
    return _page(core, found[:limit], more)


def _named(core: Core, call: Call, ids: list[str]) -> list[StoredFile]:
    """Return the files with these ids. Unknown ids are ignored, as the API does."""
    if len(ids) > MAX_IDS:
        raise ApiError(400, f"ids: List should have at most {MAX_IDS} items after validation")
    found = [file for file_id in ids if (file := core.files.get(call.workspace, file_id)) is not None]
    return sorted(found, key=lambda file: -file.number)


def _number_in_cursor(page: str) -> int:
    """Return the number of the file that a listing's cursor names. Raises ApiError 400 for any other text."""
    cursor = CURSOR.fullmatch(page)
    if cursor is None:
        raise ApiError(400, "page: not a cursor of this listing")
    return int(cursor.group(1))


def _page(core: Core, found: list[StoredFile], next_page: str | None) -> Reply:
    return json_reply({"data": [file_metadata(file, core) for file in found], "next_page": next_page})


def retrieve(core: Core, call: Call, file_id: str) -> Reply:
    """Return the metadata of a file. An expired file still has its metadata, only its content is gone."""
    return json_reply(file_metadata(_visible(core, call, file_id), core))


def delete(core: Core, call: Call, file_id: str) -> Reply:
    """Delete a file."""
    _visible(core, call, file_id)
    core.files.remove(file_id)
    return json_reply({"id": file_id, "type": "file_deleted"})


def content(core: Core, call: Call, file_id: str) -> Reply:
    """Return the content of a file. Uploaded files cannot be downloaded unless settings.files_downloadable is set."""
    file = _visible(core, call, file_id)
    if file.expired(core.clock.now_us()):
        raise ApiError(404, f"File has expired: {file_id}", details={"error_code": "file_expired"})
    if not core.settings.files_downloadable:
        details = {"error_code": "file_not_downloadable"}
        raise ApiError(400, f"File is not downloadable: {file_id}", details=details)
    headers = {"content-type": file.mime_type, "content-length": str(file.size_bytes)}
    return Reply(200, _chunks(file.path), headers)


def _chunks(path: Path) -> Iterator[bytes]:
    """Return the chunks of a file. It is opened at once, so that a delete does not stop a running download."""
    file = path.open("rb")

    def chunks() -> Iterator[bytes]:
        with file:
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")

    return chunks()


def _visible(core: Core, call: Call, file_id: str) -> StoredFile:
    """Return a file of the call's workspace. Raises ApiError 404 if it has no such file."""
    file = core.files.get(call.workspace, file_id)
    if file is None:
        raise ApiError(404, f"File not found: {file_id}")
    return file


def file_metadata(file: StoredFile, core: Core) -> dict[str, Any]:
    """Return FileMetadata as the API sends it."""
    return {
        "id": file.id,
        "type": "file",
        "filename": file.filename,
        "mime_type": file.mime_type,
        "size_bytes": file.size_bytes,
        "created_at": wire_time(file.created_us),
        "downloadable": core.settings.files_downloadable,
        "expires_at": wire_time(file.expires_us),
    }
