"""Find the parts of a multipart/form-data body in its file, without loading the file, which may have 500 MB."""

import mmap
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from pipeline.emulator.errors import ApiError


@dataclass(frozen=True)
class Part:
    """One field of a form: bytes `start` to `end` of the file `body`. filename: None if the part has no file name."""

    body: Path
    start: int
    end: int
    filename: str | None
    media_type: str | None  #: as declared, without its parameters; None if it is not declared

    @property
    def size(self) -> int:
        """Return the size of the part in bytes."""
        return self.end - self.start

    def read(self, most: int) -> bytes:
        """Return the first bytes of the part, at most `most`."""
        with self.body.open("rb") as file:
            file.seek(self.start)
            return file.read(min(self.size, most))

    def copy_to(self, target: Path) -> None:
        """Write the part to a file."""
        with self.body.open("rb") as file, target.open("wb") as out:
            file.seek(self.start)
            left = self.size
            while left > 0:
                left -= out.write(file.read(min(left, 1 << 20)))


def read_form(content_type: str, body: Path) -> dict[str, Part]:
    """Return the parts by name; of parts with equal names, the last. Raises ApiError 400 if the body is not a form."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise ApiError(400, "The request body must be multipart/form-data with a boundary.")
    if body.stat().st_size == 0:
        raise _malformed()
    with body.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return _parts(body, text, b"--" + boundary.encode())


def _malformed() -> ApiError:
    return ApiError(400, "The multipart/form-data body could not be parsed.")


def _parts(body: Path, text: mmap.mmap, delimiter: bytes) -> dict[str, Part]:
    """Return the parts of a form by name. text: the body; delimiter: the line between parts, with its dashes."""
    found: dict[str, Part] = {}
    at = 0 if text[: len(delimiter)] == delimiter else _find(text, b"\r\n" + delimiter, 0) + 2
    at += len(delimiter)
    while text[at : at + 2] != b"--":
        if text[at : at + 2] != b"\r\n":
            raise _malformed()
        blank = _find(text, b"\r\n\r\n", at)  # searched from `at`: a part without headers begins with its blank line
        end = _find(text, b"\r\n" + delimiter, blank + 2)
        name, part = _part(body, text[at + 2 : blank + 2], blank + 4, end)
        found[name] = part
        at = end + 2 + len(delimiter)
    return found


def _find(text: mmap.mmap, wanted: bytes, start: int) -> int:
    """Return where `wanted` is, from `start` on. Raises ApiError 400 if it is not there."""
    at = text.find(wanted, start)
    if at < 0:
        raise _malformed()
    return at


def _part(body: Path, head: bytes, start: int, end: int) -> tuple[str, Part]:
    headers = HeaderParser().parsestr(head.decode(errors="replace"))
    name = headers.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise _malformed()
    declared = headers.get_content_type() if "content-type" in headers else None
    return name, Part(body, start, max(end, start), headers.get_filename(), declared)
