"""The HTTP calls and replies that all operations share, and the JSON form of errors."""

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
    """One HTTP call whose body has arrived completely.

    query: parameters by name; repeated ones are joined by commas. headers: by name in lower case. body: its bytes, or
    the file that holds them. workspace, version, betas, operation and batch_id are filled in by the router.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes | Path
    origin: str  #: scheme://host:port that the client called
    workspace: str = ""
    version: str = ""
    betas: frozenset[str] = frozenset()
    operation: str = ""  #: its name in fault rules
    batch_id: str | None = None  #: None: the call is not about one batch

    def size(self) -> int:
        """Return the size of the body in bytes."""
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)

    def read(self) -> bytes:
        """Return the whole body."""
        return self.body.read_bytes() if isinstance(self.body, Path) else self.body

    def contains(self, text: str) -> bool:
        """Return whether the body contains `text` in UTF-8. A body in a file is searched without loading it."""
        needle = text.encode()
        if isinstance(self.body, bytes):
            return needle in self.body
        if not self.size():
            return False
        with self.body.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            return body.find(needle) >= 0


@dataclass(frozen=True)
class Drip:
    """How a body is sent slowly: in pieces, with a pause before each."""

    size: int  #: bytes of a piece
    seconds: float  #: length of a pause

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Return the chunk in pieces of `size` bytes; the last one may be shorter."""
        return (chunk[at : at + self.size] for at in range(0, len(chunk), self.size))


@dataclass
class Reply:
    """One HTTP answer. body: bytes, or an iterator that is sent in chunks and may raise ConnectionCut."""

    status: int = 200
    body: bytes | Iterator[bytes] = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0  #: wait this long before sending the answer
    dropped: bool = False  #: close the connection instead of answering
    drip: Drip | None = None  #: send a chunked body slowly; None: as fast as possible

    def close(self) -> None:
        """Close the body and the file that it reads, if it was not read to its end."""
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def json_reply(value: object, headers: dict[str, str] | None = None, status: int = 200) -> Reply:
    """Return a reply with the value as JSON."""
    return Reply(status, orjson.dumps(value), {"content-type": "application/json", **(headers or {})})


def error_reply(error: ApiError, request_id: str) -> Reply:
    """Return the reply for an error: the API's JSON, or the HTML page of a proxy if `error.html`."""
    if error.html:
        page = HTML_PAGE.format(status=error.status, title=TITLES.get(error.status, "Error"))
        return Reply(error.status, page.encode(), {"content-type": "text/html", **error.headers})
    inner: dict[str, Any] = {"type": error.error_type, "message": error.message}
    if error.details is not None:
        inner["details"] = error.details
    body = {"type": "error", "error": inner, "request_id": request_id}
    return json_reply(body, error.headers, error.status)


def reply_or_error(work: Callable[[], Reply], request_id: str) -> Reply:
    """Return the reply of `work`, or the error reply for the ApiError that it raises."""
    try:
        return work()
    except ApiError as exc:
        return error_reply(exc, request_id)


def http_date(now_us: int) -> str:
    """Return a time as in the Date header. now_us: microseconds since 1970."""
    return format_datetime(when(now_us), usegmt=True)
