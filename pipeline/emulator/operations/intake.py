"""Read the body of a create call request by request, with the checks that the API makes before it accepts a batch.

A body of 100,000 requests is parsed in a window of a few MB, so that it needs little memory and does not hold the
interpreter for long.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import orjson

from pipeline.emulator.errors import ApiError

CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_REQUESTS = 100_000
WINDOW = 1 << 20
SPACE = re.compile(r"[ \t\n\r]*")


def _refuse_json(why: str) -> NoReturn:
    """Raise ApiError 400 for a body that is not JSON. why: the reason, for the message."""
    raise ApiError(400, f"The request body is not valid JSON: {why}")


def _refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and the infinities, which Python's parser would accept."""
    raise ValueError(f"{name} is not JSON")


class _Reader:
    """A window on the JSON text of a file. `value()` decodes the next value, however long it is."""

    def __init__(self, path: Path) -> None:
        self._chunks = self._decoded(path)
        self._text, self._at = "", 0
        self._ended = False
        self._decode = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode

    def close(self) -> None:
        """Close the file."""
        self._chunks.close()  # type: ignore[attr-defined]  # closing the generator closes its file

    @staticmethod
    def _decoded(path: Path) -> Iterator[str]:
        """Yield the file's text in windows. Raises UnicodeDecodeError if it is not UTF-8."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        with path.open("rb") as file:
            while chunk := file.read(WINDOW):
                yield decoder.decode(chunk)
            yield decoder.decode(b"", final=True)

    def _read_more(self, chunks: int = 1) -> None:
        """Drop the text before the current position and read so many chunks, or to the end. Raises ApiError 400."""
        read = []
        for _ in range(chunks):
            try:
                read.append(next(self._chunks))
            except StopIteration:
                self._ended = True
                break
            except UnicodeDecodeError:
                _refuse_json("it is not UTF-8")
        self._text = self._text[self._at :] + "".join(read)
        self._at = 0

    def peek(self) -> str:
        """Return the next character that is not a space, without stepping over it; empty at the end."""
        while True:
            match = SPACE.match(self._text, self._at)
            assert match
            self._at = match.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def take(self, expected: str) -> bool:
        """Step over `expected` if it comes next; return whether it did."""
        if self.peek() != expected:
            return False
        self._at += 1
        return True

    def need(self, expected: str) -> None:
        """Step over `expected`. Raises ApiError if it does not come next."""
        if not self.take(expected):
            _refuse_json(f"expected {expected!r}")

    def value(self) -> Any:
        """Decode the next value and step over it. Raises ApiError if it is not JSON."""
        self.peek()
        chunks = 1
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # a number at the end of the window may continue in the next one
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except RecursionError:
                _refuse_json("it is nested too deeply")
            except ValueError as exc:
                if self._ended:
                    _refuse_json(str(exc).split(":", maxsplit=1)[0])
            self._read_more(chunks)
            chunks *= 2  # so that a long value is not scanned again for each new chunk


def read_requests(path: Path, check: Callable[[int, dict[str, Any]], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (custom_id, params) of each request, in order. check: called with index and params; may raise ApiError.

    Raises ApiError 400 at the first error of the body; the caller must then accept none of the requests.
    """
    reader = _Reader(path)
    try:
        yield from _envelope(reader, check)
    finally:
        reader.close()


def _envelope(reader: _Reader, check: Callable[[int, dict[str, Any]], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the requests of a body: an object with the one key `requests`. Raises ApiError 400 for any other."""
    if reader.peek() != "{":
        reader.value()  # raises if it is not JSON at all
        raise ApiError(400, "Input should be a valid dictionary or object to extract fields from")
    reader.need("{")
    seen = False
    more = not reader.take("}")
    while more:
        key = reader.value()
        if not isinstance(key, str):
            _refuse_json("a key must be text")
        reader.need(":")
        if key != "requests":
            raise ApiError(400, f"{key}: Extra inputs are not permitted")
        if seen:
            _refuse_json("the key requests occurs twice")
        seen = True
        yield from _request_list(reader, check)
        more = reader.take(",")
        if not more:
            reader.need("}")
    if reader.peek():
        _refuse_json("something follows the object")
    if not seen:
        raise ApiError(400, "requests: Field required")


def _request_list(
    reader: _Reader, check: Callable[[int, dict[str, Any]], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the requests of the list at the reader's position. Raises ApiError 400 for a wrong one."""
    if not reader.take("["):
        raise ApiError(400, "requests: Input should be a valid list")
    if reader.take("]"):
        raise ApiError(400, "requests: List should have at least 1 item after validation, not 0")
    ids: set[str] = set()
    while True:
        index = len(ids)
        if index == MAX_REQUESTS:
            raise ApiError(400, f"requests: List should have at most {MAX_REQUESTS} items after validation")
        custom_id, params = _request(index, reader.value(), ids)
        check(index, params)
        ids.add(custom_id)
        yield custom_id, params
        if not reader.take(","):
            break
    reader.need("]")


def _request(index: int, request: Any, ids: set[str]) -> tuple[str, dict[str, Any]]:
    """Return custom_id and params of one request. ids: of the requests before it. Raises ApiError 400."""
    where = f"requests.{index}"
    if not isinstance(request, dict):
        raise ApiError(400, f"{where}: Input should be a valid dictionary or object to extract fields from")
    for name in ("custom_id", "params"):
        if name not in request:
            raise ApiError(400, f"{where}.{name}: Field required")
    if len(request) > 2:
        extra = next(key for key in request if key not in ("custom_id", "params"))
        raise ApiError(400, f"{where}.{extra}: Extra inputs are not permitted")
    custom_id, params = request["custom_id"], request["params"]
    _check_custom_id(where, custom_id)
    if custom_id in ids:
        raise ApiError(400, f"{where}.custom_id: custom_id must be unique within a batch, {custom_id!r} is not")
    if not isinstance(params, dict):
        raise ApiError(400, f"{where}.params: Input should be a valid dictionary or object to extract fields from")
    return custom_id, params


def _check_custom_id(where: str, custom_id: Any) -> None:
    if not isinstance(custom_id, str):
        raise ApiError(400, f"{where}.custom_id: Input should be a valid string")
    if not custom_id:
        raise ApiError(400, f"{where}.custom_id: String should have at least 1 character")
    if len(custom_id) > 64:
        raise ApiError(400, f"{where}.custom_id: String should have at most 64 characters")
    if not CUSTOM_ID.fullmatch(custom_id):
        raise ApiError(400, f"{where}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")


def encoded(value: object) -> bytes:
    """Return the value as compact JSON. Raises ApiError for lone surrogates, which UTF-8 cannot hold."""
    try:
        return orjson.dumps(value)
    except TypeError as exc:
        _refuse_json(str(exc))
