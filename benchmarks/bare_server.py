"""A minimal server of the batches API, so that a benchmark measures the client and not the server.

python benchmarks/bare_server.py [--port 0] [--forget] [--hold] [--answer TEXT]

It prints `listening on http://127.0.0.1:PORT` and serves until SIGTERM. A create takes one orjson.loads; only the
custom_ids are kept (one string per batch), the body is dropped at once. A batch is in progress in the answer to its
create and has ended in all later answers. Every request succeeds with the same answer. Nothing is validated; that is
what the emulator is for.

Two routes are for the benchmark: `GET /bench` returns what was asked so far (`Seen`); with --hold all batches stay in
progress until `POST /bench/release`.

One process, one thread, no framework: asyncio's BufferedProtocol receives a body straight into the buffer it is
parsed from. A second core for the client is assumed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from urllib.parse import parse_qs, urlsplit

import orjson

BATCHES = "/v1/messages/batches"
ORGANIZATION = "0b8f7c52-6f0a-4f0e-9d0e-3c5b1c9a7e11"
WORKSPACE = "wrkspc_01BenchBenchBenchBenchBench"
HEAD_LIMIT = 65536  # bytes of request line and headers together
LINES_PER_CHUNK = 2000  # lines of results in a chunk: about 1.3 MB, so that little waits in memory for the socket

ANSWER = "A canned answer: this text stands where a summary would stand, in length about what a short one has. " * 2


def result_line(answer: str) -> bytes:
    """Return a result line with the fields that a batch answer has, 500 bytes beside the answer. %b: custom_id, id."""
    return (
        b'{"custom_id":"%b","result":{"type":"succeeded","message":{"model":"claude-haiku-4-5-20251001","id":"msg_01%b",'
        b'"type":"message","role":"assistant","content":[{"type":"text","text":'
        + orjson.dumps(answer).replace(b"%", b"%%")
        + b'}],"stop_reason":"end_turn","stop_sequence":null,"stop_details":null,"usage":{"input_tokens":312,'
        b'"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,'
        b'"ephemeral_1h_input_tokens":0},"output_tokens":44,"service_tier":"batch","inference_geo":"not_available"}}}}'
    )


@dataclass(slots=True)
class Batch:
    """A batch. custom_ids: joined by newlines, because a list of a million strings would take 90 MB."""

    number: int
    created_at: datetime
    count: int
    custom_ids: str | None

    @property
    def id(self) -> str:
        return f"msgbatch_01Bench{self.number:017d}"

    def as_json(self, host: str, *, ended: bool = True) -> dict[str, object]:
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {
                "processing": 0 if ended else self.count,
                "succeeded": self.count if ended else 0,
                "errored": 0,
                "canceled": 0,
                "expired": 0,
            },
            "ended_at": self.created_at.isoformat() if ended else None,
            "created_at": self.created_at.isoformat(),
            "expires_at": (self.created_at + timedelta(hours=24)).isoformat(),
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"http://{host}{BATCHES}/{self.id}/results" if ended else None,
        }


@dataclass
class Seen:
    """What clients have asked so far. first_create: when the first create's head was read, by time.monotonic(), which
    all processes of a machine share; None: not yet. create_bytes: the size of all bodies; sent: their requests."""

    first_create: float | None = None
    create_bytes: int = 0
    sent: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # create, list, account (a list of one), retrieve, results


class NotFound(LookupError):
    """No such route, batch or result."""


class Api:
    """The operations, without HTTP. forget: drop a batch's custom_ids after all its results were sent. hold:
    no batch ends. answer: the text of all answers."""

    def __init__(self, *, forget: bool, hold: bool, answer: str) -> None:
        self.forget, self.hold, self.line = forget, hold, result_line(answer)
        self.seen = Seen()
        self.batches: dict[str, Batch] = {}  # oldest first

    def create(self, body: bytearray) -> Batch:
        custom_ids = [request["custom_id"] for request in orjson.loads(body)["requests"]]
        self.seen.create_bytes += len(body)
        self.seen.sent += len(custom_ids)
        # The API returns results in any order, so no client may gain speed from getting its own order back.
        random.Random(len(self.batches)).shuffle(custom_ids)
        batch = Batch(len(self.batches) + 1, datetime.now(UTC), len(custom_ids), "\n".join(custom_ids))
        self.batches[batch.id] = batch
        return batch

    def retrieve(self, batch_id: str) -> Batch:
        if batch_id not in self.batches:
            raise NotFound(f"batch {batch_id}")
        return self.batches[batch_id]

    def as_json(self, batch_id: str, host: str) -> dict[str, object]:
        return self.retrieve(batch_id).as_json(host, ended=not self.hold)

    def page(self, query: dict[str, list[str]], host: str) -> dict[str, object]:
        """Return one page of the list, newest first, by the cursors after_id and before_id."""
        ids = list(reversed(self.batches))
        limit = int(query.get("limit", ["20"])[0])
        if "before_id" in query:
            newer = ids[: ids.index(self.retrieve(query["before_id"][0]).id)]
            chosen, has_more = newer[-limit:], len(newer) > limit
        else:
            first = ids.index(self.retrieve(query["after_id"][0]).id) + 1 if "after_id" in query else 0
            chosen, has_more = ids[first : first + limit], len(ids) > first + limit
        return {
            "data": [self.as_json(batch_id, host) for batch_id in chosen],
            "has_more": has_more,
            "first_id": chosen[0] if chosen else None,
            "last_id": chosen[-1] if chosen else None,
        }

    def results(self, batch_id: str) -> Iterator[bytes]:
        """Yield the result lines in pieces; as in the API, the last line has no newline."""
        batch = self.retrieve(batch_id)
        if batch.custom_ids is None:
            raise NotFound(f"results of {batch_id}")
        return self._pieces(batch, batch.custom_ids.encode().split(b"\n"))

    def _pieces(self, batch: Batch, custom_ids: list[bytes]) -> Iterator[bytes]:
        for start in range(0, len(custom_ids), LINES_PER_CHUNK):
            some = custom_ids[start : start + LINES_PER_CHUNK]
            prefix = b"%06d" % batch.number
            lines = [self.line % (c, prefix + b"%016d" % n) for n, c in enumerate(some, start)]
            yield (b"\n" if start else b"") + b"\n".join(lines)
        if self.forget:
            batch.custom_ids = None


def model_info(model: str) -> dict[str, object]:
    yes, no = {"supported": True}, {"supported": False}
    return {
        "id": model,
        "type": "model",
        "display_name": model,
        "created_at": "2025-10-15T00:00:00Z",
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": "haiku",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "capabilities": {
            "batch": yes,
            "citations": yes,
            "code_execution": no,
            "context_management": no,
            "effort": {**no, "low": no, "medium": no, "high": no, "max": no},
            "image_input": yes,
            "pdf_input": yes,
            "server_tools": {**no, "web_search": no, "code_execution": no},
            "structured_outputs": yes,
            "thinking": {**yes, "types": {"adaptive": no, "enabled": yes, "disabled": yes}},
        },
    }


class Connection(asyncio.BufferedProtocol):
    """One HTTP/1.1 connection, kept alive. A client that sends the next request before it has its answer is cut off."""

    request_numbers = itertools.count(1)

    def __init__(self, api: Api) -> None:
        self.api = api
        self.head = bytearray(HEAD_LIMIT)
        self.writable = asyncio.Event()
        self.writable.set()
        self._await_request()

    # Receiving ---------------------------------------------------------------------------------------------------

    def _await_request(self) -> None:
        self.head_size = 0
        self.body: bytearray | None = None  # set while a body of known length arrives
        self.body_size = 0
        self.chunked: bytearray | None = None  # set while a chunked body arrives: its raw bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()  # wakes an answer that waits for room, so that it sees that the client is gone

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.body is not None:
            return memoryview(self.body)[self.body_size :]
        return memoryview(self.head)[self.head_size :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.body is not None:
            self.body_size += nbytes
        elif self.chunked is not None:
            self.chunked += self.head[:nbytes]
        else:
            self.head_size += nbytes
        self._advance()

    def _advance(self) -> None:
        """Process the bytes that have arrived, as far as possible."""
        if self.body is None and self.chunked is None and not self._read_head():
            return
        if self.body is not None and self.body_size == len(self.body):
            body, self.body = self.body, None
            self._serve(body)
        elif self.chunked is not None and self.chunked.endswith(b"0\r\n\r\n"):
            # The data cannot contain this: JSON writes newlines within a string as escapes.
            raw, self.chunked = self.chunked, None
            self._serve(_unchunk(raw))

    def _read_head(self) -> bool:
        """Parse the head if it is complete, and prepare for the body. Return False if it is not complete."""
        end = self.head.find(b"\r\n\r\n", 0, self.head_size)
        if end < 0:
            if self.head_size == HEAD_LIMIT:
                self.transport.abort()
            return False
        first, *lines = self.head[:end].decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines)
        self.headers = {name.lower(): value.strip() for name, value in pairs}
        if (self.method, self.target) == ("POST", BATCHES) and self.api.seen.first_create is None:
            self.api.seen.first_create = time.monotonic()
        rest = self.head[end + 4 : self.head_size]
        self.head_size = 0
        if self.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in self.headers.get("transfer-encoding", ""):
            self.chunked = rest
            return True
        length = int(self.headers.get("content-length", "0"))
        if len(rest) > length:
            self.transport.abort()
            return False
        self.body = bytearray(length)
        self.body[: len(rest)] = rest
        self.body_size = len(rest)
        return True

    # Answering ---------------------------------------------------------------------------------------------------

    def _serve(self, body: bytearray) -> None:
        url = urlsplit(self.target)
        try:
            answer = self._answer(self.method, url.path, parse_qs(url.query), body)
        except NotFound as exc:
            self._send(404, _error("not_found_error", f"not found: {exc}"))
        except (ValueError, KeyError, TypeError) as exc:
            self._send(400, _error("invalid_request_error", f"{type(exc).__name__}: {exc}"))
        else:
            if isinstance(answer, dict):
                self._send(200, answer)
            else:
                self.streaming = asyncio.ensure_future(self._stream(answer))
        self._await_request()

    def _answer(
        self, method: str, path: str, query: dict[str, list[str]], body: bytearray
    ) -> dict[str, object] | Iterator[bytes]:
        """Return the JSON object to send, or the pieces of a result stream."""
        host, asked = self.headers.get("host", "127.0.0.1"), self.api.seen.requests
        match method, path.removeprefix("/v1/").split("/"):
            case "POST", ["messages", "batches"]:
                asked["create"] += 1
                return self.api.create(body).as_json(host, ended=False)
            case "GET", ["messages", "batches"]:
                asked["account" if query.get("limit") == ["1"] else "list"] += 1
                return self.api.page(query, host)
            case "GET", ["messages", "batches", batch_id]:
                asked["retrieve"] += 1
                return self.api.as_json(batch_id, host)
            case "GET", ["messages", "batches", batch_id, "results"]:
                asked["results"] += 1
                return self.api.results(batch_id)
            case "POST", ["messages", "count_tokens"]:
                return {"input_tokens": len(body) // 4}
            case "GET", ["models"]:
                models = [model_info("claude-haiku-4-5")]
                return {"data": models, "has_more": False, "first_id": models[0]["id"], "last_id": models[0]["id"]}
            case "GET", ["models", model]:
                return model_info(model)
            case "GET", ["", "bench"]:
                return vars(self.api.seen)
            case "POST", ["", "bench", "release"]:
                self.api.hold = False
                return {}
        raise NotFound(f"{method} {path}")

    def _head(self, status: int, *more: str) -> bytes:
        reasons = {200: "OK", 400: "Bad Request", 404: "Not Found"}
        lines = (
            f"HTTP/1.1 {status} {reasons[status]}",
            f"Date: {formatdate(usegmt=True)}",
            f"request-id: req_01Bench{next(self.request_numbers):018d}",
            f"anthropic-organization-id: {ORGANIZATION}",
            f"anthropic-workspace-id: {WORKSPACE}",
            *more,
        )
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    def _send(self, status: int, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        head = self._head(status, "Content-Type: application/json", f"Content-Length: {len(body)}")
        self.transport.write(head + body)

    async def _stream(self, pieces: Iterator[bytes]) -> None:
        """Send result lines as chunks, no faster than the client reads them."""
        self.transport.write(self._head(200, "Content-Type: application/x-jsonl", "Transfer-Encoding: chunked"))
        for piece in pieces:
            await self.writable.wait()
            if self.transport.is_closing():
                return
            self.transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
        self.transport.write(b"0\r\n\r\n")

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


def _unchunk(raw: bytearray) -> bytearray:
    """Return the data of a chunked body. Raises ValueError if the body is malformed."""
    data, position = bytearray(), 0
    while True:
        line_end = raw.index(b"\r\n", position)
        size = int(raw[position:line_end].split(b";")[0], 16)
        if size == 0:
            return data
        data += memoryview(raw)[line_end + 2 : line_end + 2 + size]
        position = line_end + 2 + size + 2


def _error(kind: str, message: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


async def serve(port: int, *, forget: bool, hold: bool, answer: str) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    api = Api(forget=forget, hold=hold, answer=answer)
    server = await loop.create_server(lambda: Connection(api), "127.0.0.1", port)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the batches API with canned answers.")
    parser.add_argument("--port", type=int, default=0, help="0 (default): a free one")
    parser.add_argument("--forget", action="store_true", help="forget a batch's custom_ids once its results were sent")
    parser.add_argument("--hold", action="store_true", help="no batch ends until POST /bench/release")
    parser.add_argument("--answer", default=ANSWER, help="the text of all answers")
    arguments = parser.parse_args()
    # Parsing 100,000 requests makes a million objects and no cycles, so garbage collection would only take time.
    gc.disable()
    asyncio.run(serve(arguments.port, forget=arguments.forget, hold=arguments.hold, answer=arguments.answer))


if __name__ == "__main__":
    main()
