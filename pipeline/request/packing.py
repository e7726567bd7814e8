"""How are requests packed into a body within the API's limits, counted to the byte? Pure."""

import base64
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice, repeat
from typing import NamedTuple

import orjson

from pipeline.money.budget import Bound

PREFIX = b'{"requests":[\n'  # one request per line, so that one can be read back without parsing the others
BETWEEN = b",\n"
SUFFIX = b"\n]}"

FILL_BYTES = 950_000  # that are added at once; larger blocks of memory than 1 MB come from the system each time
MOST_SHARING = 1_000  # rows that share a request: their outcomes are stored together, in one transaction
ROWS_OF_REQUEST = 4  # a body may hold this many rows per request, so that equal requests do not make it endless

_PARAMS = b'","params":'
_FIRST = b'{"custom_id":"'
_ITEM = _FIRST + b"%b-%d" + _PARAMS + b"%b}"
_NEXT_HEAD_OF = BETWEEN + _FIRST + b"%b-%%d" + _PARAMS  # filled with the nonce first, then for each request
_TAIL = b"}"


def new_nonce() -> str:
    """Return 26 base32 characters (130 random bits) that tell one body from all others."""
    return base64.b32encode(secrets.token_bytes(17)).decode().lower()[:26]


def custom_id(nonce: str, n: int) -> str:
    """Return the custom_id of the n-th request: `<nonce>-<n>`. It holds no user data."""
    return f"{nonce}-{n}"


def position(nonce: str, custom_id: str) -> int | None:
    """Return the n of a custom_id of this body; None if the custom_id is not of this body."""
    head, _, tail = custom_id.partition("-")
    return int(tail) if head == nonce and tail.isascii() and tail.isdigit() and str(int(tail)) == tail else None


def item(nonce: str, n: int, params: bytes) -> bytes:
    """Return one request in the form that it has in a body."""
    return _ITEM % (nonce.encode(), n, params)


def params_of(line: bytes) -> bytes:
    """Return the params in a line of a body, byte by byte as they were packed."""
    return line.rstrip(b"\n").removesuffix(b",").partition(_PARAMS)[2][:-1]


def custom_id_of_result(line: bytes) -> str | None:
    """Return the custom_id that a line of results names; None if it names none.

    The API writes the custom_id first. Such a line is cut, which is ten times faster than parsing it.
    """
    if line.startswith(_FIRST):
        head, quote, _ = line[len(_FIRST) : len(_FIRST) + 65].partition(b'"')
        if quote and b"\\" not in head:
            return head.decode("utf-8", "replace")
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    identifier = parsed.get("custom_id") if isinstance(parsed, dict) else None
    return identifier if isinstance(identifier, str) else None


def position_of_results(nonce: str) -> Callable[[bytes], int | None]:
    """Return a function from a line of results to the n of the request that it answers; None if it is not of this body.

    Nearly all lines begin with our custom_id, and the function reads it there without parsing the line.
    """
    match_own = re.compile(re.escape(_FIRST + nonce.encode()) + rb'-(0|[1-9][0-9]*)"').match

    def position_of(line: bytes) -> int | None:
        match = match_own(line)
        if match is not None:
            return int(match[1])
        identifier = custom_id_of_result(line)
        return None if identifier is None else position(nonce, identifier)

    return position_of


_NONCE = re.compile(r"([a-z2-7]{26})-(0|[1-9][0-9]*)")


def nonce_of(custom_id: str) -> str:
    """Return the nonce of the body that a custom_id belongs to; '' if the custom_id does not look like ours."""
    match = _NONCE.fullmatch(custom_id)
    return match[1] if match else ""


def largest_params(max_bytes: int) -> int:
    """Return how many bytes of params fit into a body of max_bytes that holds one request."""
    return max_bytes - len(PREFIX) - len(SUFFIX) - len(item("x" * 26, 0, b""))


class Requests(NamedTuple):
    """Requests, column by column. bounds: the worst-case cost of each; None: unknown."""

    sent_hashes: Sequence[bytes]
    params: Sequence[bytes]
    bounds: Sequence[Bound | None]


class Filled(NamedTuple):
    """What `Packing.fill` added.

    lines: the bytes to append to the body, in pieces; positions: the n of each row's request.
    """

    lines: list[bytes]
    positions: list[int]


@dataclass
class Packing:
    """What one body holds so far. requests and size are what the API counts; several rows may share a request.

    size: bytes of the finished body, including its envelope and separators.
    """

    nonce: str
    max_requests: int
    max_bytes: int
    requests: int = 0
    rows: int = 0
    size: int = len(PREFIX) + len(SUFFIX)
    seen: dict[bytes, int] = field(default_factory=dict)  #: sent_hash -> n, when equal requests are sent once
    sharing: dict[int, int] = field(default_factory=dict)  #: number of rows at each n that has more than one
    fixed_usd: float = 0.0  #: the worst-case cost of its requests is this and byte_usd, see budget.Bound
    byte_usd: float = 0.0
    unpriced: bool = False  #: the worst-case cost of a request is unknown

    def fill(self, requests: Requests, start: int = 0, *, dedupe: bool) -> Filled:
        """Add the requests of rows, from index `start` on, until the body is full or FILL_BYTES were added.

        The body is full if nothing was added. A row whose request the body holds already shares it if `dedupe` is set,
        and adds no line, up to MOST_SHARING rows. A body holds at most ROWS_OF_REQUEST rows for each request that it
        may hold.
        """
        filled = self._fill_alike(requests, start, dedupe=dedupe)
        return self._fill_each(requests, start, dedupe=dedupe) if filled is None else filled

    def _fill_alike(self, requests: Requests, start: int, *, dedupe: bool) -> Filled | None:
        """Add requests as `fill` does, in a third of its time, if all differ, have one bound, and fit into the body.

        None: nothing was added, because that is not so.
        """
        n = self.requests
        room = min(self.max_requests - n, ROWS_OF_REQUEST * self.max_requests - self.rows)
        params = _up_to(FILL_BYTES, requests.params, start, start + room)
        if not params:
            return None
        some = slice(start, start + len(params))
        bounds, positions = requests.bounds[some], range(n, n + len(params))
        new = dict(zip(requests.sent_hashes[some], positions, strict=True)) if dedupe else {}
        differ = not dedupe or (len(new) == len(params) and self.seen.keys().isdisjoint(new))
        if not differ or bounds.count(bounds[0]) < len(bounds):
            return None
        head = _NEXT_HEAD_OF % self.nonce.encode()
        heads = [head % i for i in positions]
        heads[0] = heads[0] if n else heads[0][len(BETWEEN) :]
        size = sum(map(len, heads)) + sum(map(len, params)) + len(heads) * len(_TAIL)
        if self.size + size > self.max_bytes:
            return None
        self._price(bounds[0], len(heads), size)
        self.seen |= new
        self.requests, self.rows, self.size = n + len(heads), self.rows + len(heads), self.size + size
        return Filled([*chain.from_iterable(zip(heads, params, repeat(_TAIL)))], [*positions])

    def _price(self, bound: Bound | None, requests: int, size: int) -> None:
        """Add the worst-case cost of some requests. size: bytes of their lines."""
        if bound is None:
            self.unpriced = True
        else:
            self.fixed_usd += requests * bound.fixed
            self.byte_usd += size * bound.byte

    def _fill_each(self, requests: Requests, start: int, *, dedupe: bool) -> Filled:
        """Add requests as `fill` does, one by one."""
        lines: list[bytes] = []
        positions: list[int] = []
        seen, n, size = self.seen, self.requests, self.size
        next_item = _NEXT_HEAD_OF % self.nonce.encode() + b"%b" + _TAIL
        end = start + ROWS_OF_REQUEST * self.max_requests - self.rows
        some = [column[start:end] for column in requests]
        for sent_hash, params, bound in zip(*some, strict=True):
            shared = seen.get(sent_hash) if dedupe else None
            if shared is not None and self.sharing.get(shared, 1) < MOST_SHARING:
                self.sharing[shared] = self.sharing.get(shared, 1) + 1
                positions.append(shared)
                continue
            line = next_item % (n, params)  # copies params once
            line = line if n else line[len(BETWEEN) :]
            if n >= self.max_requests or size + len(line) > self.max_bytes:
                break
            self._price(bound, 1, len(line))
            if dedupe:
                seen[sent_hash] = n
            lines.append(line)
            positions.append(n)
            size += len(line)
            n += 1
            if size - self.size >= FILL_BYTES:
                break
        self.requests, self.size = n, size
        self.rows += len(positions)
        return Filled(lines, positions)


def _up_to(size: int, texts: Sequence[bytes], start: int, end: int) -> Sequence[bytes]:
    """Return the texts from `start` on, to before `end` at most, up to the first with which they have `size` bytes."""
    few = min(end, len(texts))
    for i, total in enumerate(accumulate(map(len, islice(texts, start, few)))):
        if total >= size:
            return texts[start : start + i + 1]
    return texts[start:few]
