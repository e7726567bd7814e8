"""Serve an emulator over HTTP on 127.0.0.1, in a thread or in the foreground."""

import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.emulator.clock import Clock
from pipeline.emulator.emulator import Emulator
from pipeline.emulator.errors import EmulatorError
from pipeline.emulator.faults import read_faults
from pipeline.emulator.http.server import HOST, listen, make_server, stopped_by_signals
from pipeline.emulator.rules import Fault
from pipeline.emulator.settings import Settings

START_SECONDS = 10


class RunningEmulator:
    """An emulator that serves HTTP in a thread. Use it as a context manager, or call stop().

    emulator: the emulator. url: its address, as `http://127.0.0.1:8000`.
    """

    def __init__(self, emulator: Emulator, port: int) -> None:
        self.emulator = emulator
        self._socket = listen(port)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}"
        self._server = make_server(emulator.router)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="emulator-server", daemon=True
        )

    def _begin(self) -> None:
        """Start the worker and the server. Raises EmulatorError if the server does not start in time."""
        self.emulator.set_url(self.url)
        self.emulator.start_worker()
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise EmulatorError(f"the emulator did not start at {self.url} within {START_SECONDS} s; try again")
            time.sleep(0.001)

    def stop(self) -> None:
        """Stop the server and the worker, and release the data folder. May be called again."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        self.emulator.close()

    def __enter__(self) -> "RunningEmulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    data: Path,
    *,
    port: int = 0,
    processing_seconds: float = 0,
    faults: Iterable[Fault | Mapping[str, Any]] | None = None,
    clock: Clock | None = None,
    settings: Settings | None = None,
) -> RunningEmulator:
    """Start an emulator that serves HTTP on 127.0.0.1 in a thread.

    port 0: any free port. The other arguments are those of Emulator.
    Raises EmulatorError if the port or the data folder is in use, or a fault rule is wrong.
    """
    emulator = Emulator(data, processing_seconds=processing_seconds, clock=clock, faults=faults, settings=settings)
    try:
        running = RunningEmulator(emulator, port)
        running._begin()
    except BaseException:
        emulator.close()
        raise
    return running


def serve(data: Path, *, port: int, processing_seconds: float, faults_file: Path | None = None) -> None:
    """Serve an emulator in the foreground until SIGINT or SIGTERM, then return.

    port 0: any free port. processing_seconds: from the creation of a batch to its end. faults_file: as for read_faults;
    None: no faults. Raises EmulatorError if the port or the data folder is in use, or the faults file is wrong.
    """
    rules, settings = read_faults(faults_file) if faults_file else ([], Settings())
    with Emulator(data, processing_seconds=processing_seconds, faults=rules, settings=settings) as emulator:
        listening = listen(port)
        url = f"http://{HOST}:{listening.getsockname()[1]}"
        emulator.set_url(url)
        server = make_server(emulator.router)
        with stopped_by_signals(server), listening:
            emulator.start_worker()
            sys.stderr.write(
                f"emulator at {url}, data in {data}; "
                f"export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=emulated; Ctrl-C stops it\n"
            )
            sys.stderr.flush()
            server.run(sockets=[listening])
