"""An httpx2 transport through which the SDK calls the emulator in the same process, without a socket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from pipeline.emulator.errors import ConnectionCut
from pipeline.emulator.http.router import Router
from pipeline.emulator.wire import Call, Reply


class Transport(httpx2.BaseTransport):
    """Behave like a server at the other end of a connection.

    If reading the body raises or the body is too short, nothing is accepted. A delayed answer does not wait: it
    advances the clock, and raises ReadTimeout if the client's read timeout is shorter than the delay.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request of the SDK by the router."""
        upload = self._router.upload_path()
        try:
            _receive(request, upload)
            reply = self._router.handle(_call(request, upload))
        finally:
            for path in (upload, upload.with_suffix(".plain")):
                path.unlink(missing_ok=True)
        if reply.dropped:
            raise httpx2.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        try:
            self._delay(request, reply)
        except httpx2.ReadTimeout:
            reply.close()
            raise
        if isinstance(reply.body, bytes):
            headers = {**reply.headers, "content-length": str(len(reply.body))}
            return httpx2.Response(reply.status, headers=headers, stream=httpx2.ByteStream(reply.body), request=request)
        return httpx2.Response(reply.status, headers=reply.headers, stream=_Stream(request, reply), request=request)

    def _delay(self, request: httpx2.Request, reply: Reply) -> None:
        """Advance the clock by a reply's delay; by the read timeout if that is shorter, and then raise ReadTimeout."""
        if not reply.delay_seconds:
            return
        timeout: dict[str, Any] = request.extensions.get("timeout", {})
        patience = timeout.get("read")
        if patience is not None and patience < reply.delay_seconds:
            self._router.clock.advance(patience)
            raise httpx2.ReadTimeout("The read operation timed out", request=request)
        self._router.clock.advance(reply.delay_seconds)


def _receive(request: httpx2.Request, upload: Path) -> None:
    """Write the body to a file. What its iterator raises is raised to the client, as with a real connection."""
    expected = request.headers.get("content-length")
    stream = request.stream
    assert isinstance(stream, httpx2.SyncByteStream)
    with upload.open("wb") as file:
        for chunk in stream:
            file.write(chunk)
        if expected is not None and file.tell() != int(expected):
            few = "little" if file.tell() < int(expected) else "much"
            raise httpx2.LocalProtocolError(f"Too {few} data for declared Content-Length", request=request)


def _call(request: httpx2.Request, upload: Path) -> Call:
    url = request.url
    return Call(
        method=request.method,
        path=url.path,
        query={name: ",".join(url.params.get_list(name)) for name in url.params},
        headers={name.lower(): value for name, value in request.headers.items()},
        body=upload,
        origin=f"{url.scheme}://{request.headers.get('host', url.netloc.decode())}",
    )


class _Stream(httpx2.SyncByteStream):
    """A chunked body. A drip fault gives its small pieces without the pauses."""

    def __init__(self, request: httpx2.Request, reply: Reply) -> None:
        self._request, self._reply = request, reply

    def __iter__(self) -> Iterator[bytes]:
        drip = self._reply.drip
        assert not isinstance(self._reply.body, bytes)
        try:
            for chunk in self._reply.body:
                yield from drip.pieces(chunk) if drip else (chunk,)
        except ConnectionCut as cut:
            if cut.reset:
                raise httpx2.ReadError("[Errno 104] Connection reset by peer", request=self._request) from cut
            raise httpx2.RemoteProtocolError(
                "peer closed connection without sending complete message body (incomplete chunked read)",
                request=self._request,
            ) from cut

    def close(self) -> None:
        """Close the body and the file that it reads."""
        self._reply.close()
