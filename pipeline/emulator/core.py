"""What the operations share: the data folder, the clock, the settings, the faults, the cache."""

import threading
from dataclasses import dataclass, field
from functools import cache

from pipeline.emulator.clock import Clock
from pipeline.emulator.faults import FaultBook
from pipeline.emulator.model.caching import PromptCache
from pipeline.emulator.model.files import StoredFile
from pipeline.emulator.model.validate import Context
from pipeline.emulator.settings import Settings
from pipeline.emulator.store.batches import Batch, BatchStore
from pipeline.emulator.store.files import FileStore
from pipeline.emulator.store.folder import DataFolder


@dataclass
class Core:
    """folder: the data folder. store: its batches. files: its uploads. processing_seconds: from create to ended, by the
    clock. moved: notified when work may have become due.
    """

    folder: DataFolder
    store: BatchStore
    files: FileStore
    clock: Clock
    settings: Settings
    faults: FaultBook
    cache: PromptCache
    processing_seconds: float
    moved: threading.Condition = field(default_factory=threading.Condition)

    def wake(self) -> None:
        """Work may have become due."""
        with self.moved:
            self.moved.notify_all()

    def clear_faults(self) -> None:
        self.faults.clear()
        self.wake()  # batches that a fault kept from ending may be due

    def due_us(self, batch: Batch) -> int:
        """When the batch ends: all processed, a cancel through, or 24 hours over."""
        due = min(batch.created_us + self.processing_us, batch.expires_us)
        if batch.cancel_initiated_us is not None:
            due = min(due, batch.cancel_initiated_us + self._cancel_us)
        return due

    def context(
        self, workspace: str, version: str, betas: frozenset[str], *, in_batch: bool, now_us: int | None = None
    ) -> Context:
        """What requests are judged by; each file is looked up once. now_us: None for the clock's time."""

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
    def processing_us(self) -> int:
        return round(self.processing_seconds * 1e6)

    @property
    def _cancel_us(self) -> int:
        seconds = self.settings.cancel_seconds
        return round((min(self.processing_seconds / 10, 5.0) if seconds is None else seconds) * 1e6)

    @property
    def poll_hint(self) -> str:
        """For `retry-after` on batches that run: 10 as the API has it, less when processing takes under a minute."""
        return f"{min(10.0, max(0.05, self.processing_seconds / 6)):g}"
