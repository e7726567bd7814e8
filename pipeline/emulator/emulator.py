"""The class Emulator, which puts the parts of the emulator together."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.emulator import audit
from pipeline.emulator.clock import Clock
from pipeline.emulator.core import Core
from pipeline.emulator.faults import FaultBook, parse_faults
from pipeline.emulator.http.router import Router
from pipeline.emulator.http.transport import Transport
from pipeline.emulator.model.caching import PromptCache
from pipeline.emulator.operations.worker import Worker
from pipeline.emulator.rules import Fault
from pipeline.emulator.settings import Settings
from pipeline.emulator.store.batches import BatchStore
from pipeline.emulator.store.files import FileStore
from pipeline.emulator.store.folder import DataFolder


class Emulator:
    """An emulator of the Messages, Message Batches and Files APIs that keeps its data in a folder.

    data: the data folder, created if it does not exist. Raises EmulatorError if another emulator uses it.
    processing_seconds: the time from the creation of a batch to its end, by the emulator's clock.
    clock: None: real time plus the offset that is stored in the data folder.
    faults: rules, each a Fault or a dict with its fields; None: no faults. Raises EmulatorError if one is wrong.
    settings: what to do where the behaviour of the API is not known; None: the defaults.

    The router answers calls. It processes the batches that are due at the start of each call, unless `start_worker` has
    started a thread that does so; `do_due_work` processes them at once.
    """

    def __init__(
        self,
        data: Path,
        *,
        processing_seconds: float = 0,
        clock: Clock | None = None,
        faults: Iterable[Fault | Mapping[str, Any]] | None = None,
        settings: Settings | None = None,
    ) -> None:
        rules = parse_faults(list(faults or ()))
        self.settings = settings or Settings()
        self._folder = DataFolder(Path(data))
        self._store = BatchStore(self._folder)
        self.clock = clock or Clock(float(self._folder.load("offset_seconds") or 0))
        cache = PromptCache(self.settings.cache_minimum_tokens)
        self._core = Core(
            self._folder,
            self._store,
            FileStore(self._folder),
            self.clock,
            self.settings,
            FaultBook(rules),
            cache,
            processing_seconds,
        )
        self._worker = Worker(self._core)
        self.router = Router(self._core, self._worker)
        self.clock.subscribe(self._clock_advanced)

    @property
    def data(self) -> Path:
        """Return the data folder."""
        return self._folder.path

    def close(self) -> None:
        """Stop the worker and release the data folder. May be called again."""
        self._worker.stop()
        self._folder.close()

    def __enter__(self) -> "Emulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_url(self, url: str) -> None:
        """Store the emulator's address in the data folder, for the error message of a second emulator."""
        self._folder.set_url(url)

    def transport(self) -> Transport:
        """Return an httpx2 transport that calls this emulator in the same process, without a socket or a thread.

        Use it as `anthropic.Anthropic(http_client=httpx2.Client(transport=...))`.
        """
        return Transport(self.router)

    # work

    def _clock_advanced(self) -> None:
        """Store the clock's offset and wake the worker."""
        if not self._worker.stopping:
            self._folder.save("offset_seconds", repr(self.clock.offset_seconds))
        self._core.wake()

    def do_due_work(self) -> None:
        """Process all batches that are due and archive old ones, then return."""
        self._worker.do_due_work()

    def start_worker(self) -> None:
        """Start a thread that processes batches when they are due; calls then no longer do it."""
        self._worker.start()

    def wait_idle(self, timeout_seconds: float = 60) -> None:
        """Wait until no batch is due. Raises TimeoutError after timeout_seconds of real time."""
        self._worker.wait_idle(timeout_seconds)

    # control: the same operations as under /_emulator/

    def add_fault(self, rule: Fault | Mapping[str, Any] | None = None, /, **fields: Any) -> Fault:
        """Add a fault rule and return it: `add_fault(on="create", do="drop_after")`, or `add_fault(rule)`.

        Raises EmulatorError, which names the wrong field.
        """
        fault = parse_faults([fields if rule is None else rule])[0]
        self._core.faults.add(fault)
        return fault

    def clear_faults(self) -> None:
        """Remove all fault rules."""
        self._core.clear_faults()

    def faults(self) -> list[Fault]:
        """Return the fault rules that are in force, in the order they were added."""
        return self._core.faults.rules()

    def log(self) -> Iterator[dict[str, Any]]:
        """Yield a dict for each HTTP call, oldest first.

        Keys: n, time, method, path, status (None: no answer was sent), request_id, fault, batch (None: not about one).
        """
        return self._folder.log()

    def accepted(self) -> Iterator[dict[str, Any]]:
        """Yield a dict for each request that was ever accepted in a batch, in the order of acceptance.

        Keys: batch_id, custom_id, created_at, params_sha256, result (None: the batch has not ended).
        """
        return audit.accepted(self._store)

    def audit(self) -> dict[str, Any]:
        """Return counts of all accepted requests, and which were accepted twice without need.

        Keys: batches, requests_accepted, distinct_params, accepted_again (again, with reason), accepted_twice_count
        (again, though an earlier one was still running or had succeeded), accepted_twice (up to 100 examples).
        """
        return audit.audit(self._store)
