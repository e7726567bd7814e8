"""The shapes that every operation shares: a call, a reply, the error envelope."""

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson

from pipeline.emulator.clock import when
from pipeline.emulator.errors import ApiError

ORGANIZATION_ID = "b5a9c1f0-0e1a-4e0d-9c0f-e3a1a7ed0001"
HTML_PAGE = (
    "<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n<center><h1>{status} {title}</h1></center>\r\n"
    "<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
)
TITLES = {413: "Request Entity Too Large", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Time-out"}


@dataclass
class Call:
    """One HTTP call, its body complete.

    query: repeated names joined by commas. headers: names in lower case. body: bytes, or the file it was spooled to.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes | Path
    origin: str  #: scheme://host:port as the client dialled it
    workspace: str = ""
    version: str = ""
    betas: frozenset[str] = frozenset()
    operation: str = ""  #: as fault rules name it
    batch_id: str | None = None

    def size(self) -> int:
        """Of the body, in bytes."""
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)

    def read(self) -> bytes:
        return self.body.read_bytes() if isinstance(self.body, Path) else self.body

    def contains(self, text: str) -> bool:
        """Whether the body holds `text` as UTF-8; a spooled body is searched without loading it."""
        needle = text.encode()
        if isinstance(self.body, bytes):
            return needle in self.body
        if not self.size():
            return False
        with self.body.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            return body.find(needle) >= 0


@dataclass(frozen=True)
class Drip:
    """How a body comes slowly: so many bytes after each pause of so many seconds."""

    size: int
    seconds: float

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        return (chunk[at : at + self.size] for at in range(0, len(chunk), self.size))


@dataclass
class Reply:
    """One HTTP answer. An iterator as body is sent chunked, and may raise ConnectionCut."""

    status: int = 200
    body: bytes | Iterator[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0  #: wait so long before the answer leaves
    dropped: bool = False  #: close the connection instead of answering
    drip: Drip | None = None  #: send a chunked body in small pieces

    def close(self) -> None:
        """Give up a body that nobody reads to its end, and the file it comes from."""
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def json_reply(value: object, headers: dict[str, str] | None = None, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(value), {"content-type": "application/json", **(headers or {})})


def error_reply(error: ApiError, request_id: str) -> Reply:
    """The JSON envelope, or the page of a proxy that never heard of it."""
    if error.html:
        page = HTML_PAGE.format(status=error.status, title=TITLES.get(error.status, "Error"))
        return Reply(error.status, page.encode(), {"content-type": "text/html", **error.headers})
    inner: dict[str, Any] = {"type": error.error_type, "message": error.message}
    if error.details is not None:
        inner["details"] = error.details
    body = {"type": "error", "error": inner, "request_id": request_id}
    return json_reply(body, error.headers, error.status)


def tried(work: Callable[[], Reply], request_id: str) -> Reply:
    """What `work` answers, or the answer to the ApiError that it raises."""
    try:
        return work()
    except ApiError as exc:
        return error_reply(exc, request_id)


def http_date(now_us: int) -> str:
    return format_datetime(when(now_us), usegmt=True)
