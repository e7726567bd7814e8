"""The HTTP server of the emulator and its socket on 127.0.0.1."""

import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn

from pipeline.emulator.errors import EmulatorError
from pipeline.emulator.http.app import Connection, make_app
from pipeline.emulator.http.router import Router

HOST = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """A uvicorn server that handles no signals: in a thread it cannot, and in the foreground `serve` handles them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave all signal handlers unchanged."""
        yield


def listen(port: int) -> socket.socket:
    """Return a socket that listens on 127.0.0.1. port 0: any free port. Raises EmulatorError if the port is in use."""
    # without the protocol's name, asyncio would not turn off Nagle's algorithm, which costs 40 ms in each call
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)
    except (OSError, OverflowError) as exc:
        listening.close()
        why = getattr(exc, "strerror", None) or str(exc)
        raise EmulatorError(f"port {port} on {HOST} cannot be used ({why}); choose another with --port") from exc
    return listening


def make_server(router: Router) -> Server:
    """Return the HTTP server for the calls that the router answers. It is not started."""
    server: Server

    def stopping() -> bool:
        return server.should_exit

    config = uvicorn.Config(
        make_app(router, stopping),
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        date_header=False,  # the router sets the header by the emulator's clock
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    return server


@contextlib.contextmanager
def stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the server while the block runs."""

    def end(number: int, frame: object) -> None:
        server.force_exit = server.should_exit  # a second signal does not wait for open connections
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
