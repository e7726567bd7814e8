"""The way of the drivers to the emulator, on which bodies are delayed and lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import httpx2

from pipeline.emulator.http import router
from tests.proofs.simulation.constants import ON_THE_WIRE, SETTINGS

if TYPE_CHECKING:
    from tests.proofs.simulation.drivers import Process
    from tests.proofs.simulation.world import World


@dataclass
class Parcel:
    """A body on its way to the API. It arrives or is lost, whatever happens to its driver."""

    request: httpx2.Request
    sent_at: datetime
    due_at: datetime
    answer_after: float  #: seconds
    arrived_at: datetime | None = None
    lost: bool = False
    response: httpx2.Response | None = None
    error: httpx2.HTTPError | None = None


class Line(httpx2.BaseTransport):
    """The transport to the emulator, with a moment before each call and before its response; a body may be delayed."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._api = world.emulator.transport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        world = self._world
        what = f"{request.method} {request.url.path}"
        process = world.process
        assert process is not None
        if process.transactions:
            world.violated(f"{process.name} calls {what} in the middle of a transaction")
        world.turns.moment(what)
        if request.method == "DELETE":
            world.books.read_results()
        if request.method == "POST" and request.url.path == router.CREATE_PATH:
            response = self._posted(process, request)
        else:
            response = self._api.handle_request(request)
        world.turns.moment(f"the answer to {what}")
        if not request.url.path.endswith("/results"):
            return response
        stream = response.stream
        assert isinstance(stream, httpx2.SyncByteStream)
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=_Slow(world, stream), request=request
        )

    def _posted(self, process: "Process", request: httpx2.Request) -> httpx2.Response:
        world, chance = self._world, self._world.chance
        assert isinstance(request.stream, httpx2.SyncByteStream)
        body = b"".join(request.stream)  # the last chunk is handed out here, or held back
        sent = httpx2.Request(
            request.method, request.url, headers=request.headers, content=body, extensions=request.extensions
        )
        takes = chance.choice((0.0, 0.0, 0.0, chance.uniform(0, ON_THE_WIRE)))
        after = chance.choice((0.0, 0.0, 0.0, 0.0, chance.uniform(0, 60), chance.uniform(550, 700)))
        parcel = Parcel(sent, world.at, world.at + timedelta(seconds=takes), after)
        process.parcels.append(parcel)
        if takes:
            world.wait(lambda: parcel.arrived_at is not None or parcel.lost, SETTINGS.timeout, "a body on the wire")
        else:
            world.deliver(parcel)
        left = (parcel.sent_at - world.at).total_seconds() + SETTINGS.timeout
        if parcel.arrived_at is not None and after:
            world.wait(lambda: False, min(left, after), "an answer")
            left -= after
        if parcel.arrived_at is None or left < 0:
            raise httpx2.ReadTimeout("The read operation timed out", request=request)
        if parcel.error is not None:
            raise parcel.error
        assert parcel.response is not None
        return parcel.response


class _Slow(httpx2.SyncByteStream):
    """The stream of a download, with moments between its chunks."""

    def __init__(self, world: "World", stream: httpx2.SyncByteStream) -> None:
        self._world, self._stream = world, stream

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            half = len(chunk) // 2
            yield chunk[:half]
            self._world.turns.moment("the middle of a download")
            yield chunk[half:]

    def close(self) -> None:
        self._stream.close()
