"""Requests to request bodies within the API's limits, counted to the byte. Pure."""

import base64
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from pipeline.money.budget import Bound

PREFIX = b'{"requests":[\n'  # one request a line, so that one can be read back without parsing the others
BETWEEN = b",\n"
SUFFIX = b"\n]}"

ROWS_OF_REQUEST = 4  # rows of a body for each request that it may carry, so that a body of equal ones stays bounded

_PARAMS = b'","params":'
_FIRST = b'{"custom_id":"'
_ITEM = _FIRST + b"%b-%d" + _PARAMS + b"%b}"
_NEXT_ITEM = BETWEEN + _ITEM


def new_nonce() -> str:
    """26 base32 characters (130 random bits) that belong to one body and tell it from every other."""
    return base64.b32encode(secrets.token_bytes(17)).decode().lower()[:26]


def custom_id(nonce: str, n: int) -> str:
    """The n-th request's custom_id: `<nonce>-<n>`. It holds no user data."""
    return f"{nonce}-{n}"


def position(nonce: str, custom_id: str) -> int | None:
    """The n of a custom_id of this body; None if it is not one of ours."""
    head, _, tail = custom_id.partition("-")
    return int(tail) if head == nonce and tail.isascii() and tail.isdigit() and str(int(tail)) == tail else None


def item(nonce: str, n: int, params: bytes) -> bytes:
    """One request as it stands in the body."""
    return _ITEM % (nonce.encode(), n, params)


def params_of(line: bytes) -> bytes:
    """The params of a body's line, as they were packed."""
    return line.rstrip(b"\n").removesuffix(b",").partition(_PARAMS)[2][:-1]


def custom_id_of_result(line: bytes) -> str | None:
    """The custom_id that a result line names; None when it names none.

    The API writes it first; then it is cut out, which is ten times faster than parsing the line.
    """
    if line.startswith(_FIRST):
        head, quote, _ = line[len(_FIRST) : len(_FIRST) + 65].partition(b'"')
        if quote and b"\\" not in head:
            return head.decode("utf-8", "replace")
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    found = parsed.get("custom_id") if isinstance(parsed, dict) else None
    return found if isinstance(found, str) else None


def position_of_results(nonce: str) -> Callable[[bytes], int | None]:
    """From a result line to the n of the request of this body that it answers; None when it names none of them.

    Nearly all lines begin with our custom_id; for these it is read off without parsing anything.
    """
    usual = re.compile(re.escape(_FIRST + nonce.encode()) + rb'-(0|[1-9][0-9]*)"').match

    def position_of(line: bytes) -> int | None:
        found = usual(line)
        if found is not None:
            return int(found[1])
        identifier = custom_id_of_result(line)
        return None if identifier is None else position(nonce, identifier)

    return position_of


_NONCE = re.compile(r"([a-z2-7]{26})-(0|[1-9][0-9]*)")


def nonce_of(custom_id: str) -> str:
    """The nonce of the body that a custom_id belongs to; '' when it looks like none of ours."""
    found = _NONCE.fullmatch(custom_id)
    return found[1] if found else ""


def largest_params(max_bytes: int) -> int:
    """How many bytes of params a body of max_bytes can carry if it carries nothing else."""
    return max_bytes - len(PREFIX) - len(SUFFIX) - len(item("x" * 26, 0, b""))


@dataclass
class Packing:
    """What is in one body so far. requests and size count what the API counts; rows counts who shares them.

    size: bytes of the finished body, envelope and separators included.
    """

    nonce: str
    max_requests: int
    max_bytes: int
    requests: int = 0
    size: int = len(PREFIX) + len(SUFFIX)
    rows: list[tuple[int, int]] = field(default_factory=list)  #: (row's number, n)
    seen: dict[bytes, int] = field(default_factory=dict)  #: sent_hash -> n, when equal requests are sent once
    fixed_usd: float = 0.0  #: what its requests may cost at most, see budget.Bound
    byte_usd: float = 0.0
    unpriced: bool = False  #: a request of it has no bound

    def add(self, row: int, sent_hash: bytes, params: bytes, bound: Bound | None, *, dedupe: bool) -> bytes | None:
        """Put a row's request in, if it fits: the bytes to append to the body, or None when the body is full.

        bound: what the request may cost at most; None: nobody knows. No bytes when an equal request is in it already. A
        body holds at most ROWS_OF_REQUEST rows a request.
        """
        n = self.seen.get(sent_hash) if dedupe else None
        if len(self.rows) >= ROWS_OF_REQUEST * self.max_requests:
            return None
        if n is not None:
            self.rows.append((row, n))
            return b""
        n = self.requests
        line = (_NEXT_ITEM if n else _ITEM) % (self.nonce.encode(), n, params)  # with one copy of params
        if n >= self.max_requests or self.size + len(line) > self.max_bytes:
            return None
        self.size += len(line)
        self.requests += 1
        if bound is None:
            self.unpriced = True
        else:
            self.fixed_usd += bound.fixed
            self.byte_usd += len(line) * bound.byte
        self.rows.append((row, n))
        if dedupe:
            self.seen[sent_hash] = n
        return line
