"""The emulator as a whole: its data folder, its clock, its faults, its work, and the router that answers its calls."""

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
    """The Messages, Message Batches and Files API on a data folder.

    data: made if it is not there; one emulator at a time, else EmulatorError. processing_seconds: from create to ended,
    by the clock. clock: by default real time, plus what this folder's was advanced by. faults: rules as Fault
    or plain dicts. settings: switches for behaviour that is not known for certain.

    Work that is due is done at the start of each call and in `do_due_work`, or by `start_worker`'s thread.
    `router` answers the calls.
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
        return self._folder.path

    def close(self) -> None:
        """Stop working and give the data folder free. Safe to call twice."""
        self._worker.stop()
        self._folder.close()

    def __enter__(self) -> "Emulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_url(self, url: str) -> None:
        """Tell others who want this data folder where its emulator is."""
        self._folder.set_url(url)

    def transport(self) -> Transport:
        """For `anthropic.Anthropic(http_client=httpx2.Client(transport=...))`: no socket, no thread."""
        return Transport(self.router)

    # work

    def _clock_advanced(self) -> None:
        if not self._worker.stopping:
            self._folder.save("offset_seconds", repr(self.clock.offset_seconds))
        self._core.wake()

    def do_due_work(self) -> None:
        """Process every batch whose time has come, and archive old ones; returns when that is done."""
        self._worker.do_due_work()

    def start_worker(self) -> None:
        """Do due work in a thread from now on, so that calls need not."""
        self._worker.start()

    def wait_idle(self, timeout_seconds: float = 60) -> None:
        """Return when no batch is left whose time has come. Raises TimeoutError."""
        self._worker.wait_idle(timeout_seconds)

    # control, the same as under /_emulator/

    def add_fault(self, rule: Fault | Mapping[str, Any] | None = None, /, **fields: Any) -> Fault:
        """`add_fault(on="create", do="drop_after")`, or a rule. Raises EmulatorError naming the wrong field."""
        fault = parse_faults([fields if rule is None else rule])[0]
        self._core.faults.add(fault)
        return fault

    def clear_faults(self) -> None:
        self._core.clear_faults()

    def faults(self) -> list[Fault]:
        return self._core.faults.rules()

    def log(self) -> Iterator[dict[str, Any]]:
        """Each HTTP call, oldest first: n, time, method, path, status (None: no answer), request_id, fault, batch."""
        return self._folder.log()

    def accepted(self) -> Iterator[dict[str, Any]]:
        """Each request ever accepted: batch_id, custom_id, created_at, params_sha256, result."""
        return audit.accepted(self._store)

    def audit(self) -> dict[str, Any]:
        """batches, requests_accepted, distinct_params, accepted_again, accepted_twice_count, accepted_twice."""
        return audit.audit(self._store)
