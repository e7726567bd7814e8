"""The ASGI application of the emulator: it stores each body in a file, calls the router, and can break connections."""

import asyncio
import socket
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.emulator.errors import ConnectionCut
from pipeline.emulator.http.router import Router
from pipeline.emulator.wire import Call, Drip, Reply

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds
DELAY_STEP_SECONDS = 0.05


class Connection(H11Protocol):
    """uvicorn's connection, which the application finds in its state so that it can break the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = {**self.app_state, "connection": self}

    def is_lost(self) -> bool:
        """Return whether the client has closed the connection."""
        closing: bool = self.transport.is_closing()
        return closing

    def break_off(self, *, reset: bool = False) -> None:
        """Close the connection in the middle of an answer.

        Data that was already written is still sent. reset: discard it and send a TCP reset instead.
        """
        if reset:
            raw: socket.socket = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()


def make_app(router: Router, stopping: Callable[[], bool]) -> Starlette:
    """Return the ASGI application. stopping: returns whether the server stops; then delayed answers are given up."""

    async def endpoint(request: Request) -> Response:
        upload = router.upload_path()
        try:
            try:
                await _receive(request, upload)
            except ClientDisconnect:
                router.log_broken_upload(request.method, request.url.path)
                return _Answer(Reply(dropped=True), stopping)
            reply = await run_in_threadpool(_handle, router, _call(request, upload))
        finally:
            for path in (upload, upload.with_suffix(".plain")):
                path.unlink(missing_ok=True)
        return _Answer(reply, stopping)

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=METHODS)])


def _handle(router: Router, call: Call) -> Reply:
    try:
        return router.handle(call)
    except Exception:
        traceback.print_exc()  # a bug of the emulator; uvicorn's log is off, because connections are broken on purpose
        raise


async def _receive(request: Request, upload: Path) -> None:
    """Write the body of a request to a file."""
    with upload.open("wb") as file:
        async for chunk in request.stream():
            file.write(chunk)  # writes to the page cache, so fast that it needs no thread


def _call(request: Request, upload: Path) -> Call:
    return Call(
        method=request.method,
        path=request.scope["path"],
        query={name: ",".join(request.query_params.getlist(name)) for name in request.query_params},
        headers={name.lower(): value for name, value in request.headers.items()},
        body=upload,
        origin=f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}",
    )


class _Answer(Response):
    """Send a Reply, with the delay or the broken connection that it asks for."""

    def __init__(self, reply: Reply, stopping: Callable[[], bool]) -> None:
        super().__init__(status_code=reply.status)
        self._reply, self._stopping = reply, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"]["connection"]
        try:
            if self._reply.delay_seconds:
                await self._wait(self._reply.delay_seconds, connection)
            if self._reply.dropped:
                connection.break_off()
                return
            await self._send(send, connection)
        except ConnectionCut as cut:
            connection.break_off(reset=cut.reset)
        finally:
            self._reply.close()

    async def _wait(self, seconds: float, connection: Connection) -> None:
        """Wait before sending. Raises ConnectionCut if the server stops or the client disconnects while waiting."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            if self._stopping() or connection.is_lost():
                raise ConnectionCut(reset=False)
            await asyncio.sleep(min(left, DELAY_STEP_SECONDS))

    async def _send(self, send: Send, connection: Connection) -> None:
        body, drip = self._reply.body, self._reply.drip
        headers = [(name.encode(), value.encode()) for name, value in self._reply.headers.items()]
        if isinstance(body, bytes):
            headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": self._reply.status, "headers": headers})
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": body})
            return
        async for chunk in iterate_in_threadpool(body):
            if drip is None:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            else:
                await self._send_slowly(drip, chunk, send, connection)
        await send({"type": "http.response.body", "body": b""})

    async def _send_slowly(self, drip: Drip, chunk: bytes, send: Send, connection: Connection) -> None:
        for piece in drip.pieces(chunk):
            await self._wait(drip.seconds, connection)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
