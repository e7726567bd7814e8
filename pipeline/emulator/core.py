"""The class Core, which holds what all operations share: stores, clock, settings, faults and prompt cache."""

import threading
from dataclasses import dataclass, field
from functools import cache

from pipeline.emulator.clock import Clock
from pipeline.emulator.faults import FaultBook
from pipeline.emulator.model.caching import PromptCache
from pipeline.emulator.model.client_tools import Habits
from pipeline.emulator.model.files import StoredFile
from pipeline.emulator.model.validate import Context
from pipeline.emulator.settings import Settings
from pipeline.emulator.store.batches import Batch, BatchStore
from pipeline.emulator.store.files import FileStore
from pipeline.emulator.store.folder import DataFolder


@dataclass
class Core:
    """What all operations share.

    folder: the data folder. store: its batches. files: its uploads. processing_seconds: from the creation of a batch to
    its end, by the clock. due_changed: a condition that is notified when a batch may have become due.
    """

    folder: DataFolder
    store: BatchStore
    files: FileStore
    clock: Clock
    settings: Settings
    faults: FaultBook
    cache: PromptCache
    processing_seconds: float
    due_changed: threading.Condition = field(default_factory=threading.Condition)

    def wake(self) -> None:
        """Wake the worker, because a batch may have become due."""
        with self.due_changed:
            self.due_changed.notify_all()

    def clear_faults(self) -> None:
        """Remove all fault rules."""
        self.faults.clear()
        self.wake()  # batches that a fault kept from ending may be due

    def due_us(self, batch: Batch) -> int:
        """Return when the batch ends, in microseconds since 1970.

        The earliest of: all requests are processed, a cancel is complete, 24 hours are over.
        """
        due = min(batch.created_us + self.processing_us, batch.expires_us)
        if batch.cancel_initiated_us is not None:
            due = min(due, batch.cancel_initiated_us + self._cancel_us)
        return due

    def context(
        self, workspace: str, version: str, betas: frozenset[str], *, in_batch: bool, now_us: int | None = None
    ) -> Context:
        """Return the context in which the params of requests are checked. It looks up each file once.

        in_batch: whether they are requests of a batch. now_us: the time of the check; None: the clock's time.
        """

        @cache
        def find_file(file_id: str) -> StoredFile | None:
            return self.files.get(workspace, file_id)

        return Context(
            version,
            betas,
            in_batch,
            find_file,
            self.clock.now_us() if now_us is None else now_us,
            frozenset(self.settings.models_without_vision),
            frozenset(self.settings.models_without_batch),
        )

    @property
    def habits(self) -> Habits:
        """Return how often answers ask for client tools, and pause."""
        return Habits(self.settings.tool_rounds, self.settings.tool_calls, self.settings.pauses)

    @property
    def processing_us(self) -> int:
        """Return the time from the creation of a batch to its end, in microseconds."""
        return round(self.processing_seconds * 1e6)

    @property
    def _cancel_us(self) -> int:
        """Return the time from a cancel call to the end of the batch, in microseconds."""
        seconds = self.settings.cancel_seconds
        return round((min(self.processing_seconds / 10, 5.0) if seconds is None else seconds) * 1e6)

    @property
    def poll_hint(self) -> str:
        """Return the `retry-after` of a running batch, in seconds: 10 as in the API, less for short processing."""
        return f"{min(10.0, max(0.05, self.processing_seconds / 6)):g}"
