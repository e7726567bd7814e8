"""Does the work that follows from time: processes the batches whose time has come, and archives old ones."""

import threading
import time

from pipeline.emulator.core import Core
from pipeline.emulator.operations.processing import process
from pipeline.emulator.store.batches import Batch

WORKER_PAUSE_SECONDS = 0.5  #: the longest the worker sleeps; real time moves the clock too


class Worker:
    """Works when `do_due_work` is called, and once started in a thread of its own."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._store, self._clock = core.store, core.clock
        self._work_lock = threading.Lock()  # one batch at a time, whoever works
        self._moved = core.moved
        self.stopping = False
        self._thread: threading.Thread | None = None

    @property
    def is_started(self) -> bool:
        """Whether its thread does the work, so that nobody else need do it."""
        return self._thread is not None

    def do_due_work(self) -> None:
        """Process every batch whose time has come, and archive old ones; returns when that is done."""
        with self._work_lock:
            for batch in self._to_process():
                if self.stopping:
                    return
                if self._core.due_us(batch) <= self._clock.now_us():
                    process(self._core, batch, lambda: self.stopping)
                    self._core.wake()
            self._store.mark_archived(self._clock.now_us())

    def start(self) -> None:
        """Do due work in a thread from now on, so that calls need not."""
        self._thread = threading.Thread(target=self._work, name="emulator-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the work that is under way, and the thread. Safe to call twice."""
        with self._moved:
            self.stopping = True
            self._moved.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self.stopping:
            self.do_due_work()
            with self._moved:
                pause = self._seconds_to_next()
                if pause > 0 and not self.stopping:
                    self._moved.wait(pause)

    def _seconds_to_next(self) -> float:
        now = self._clock.now_us()
        waits = [(self._core.due_us(batch) - now) / 1e6 for batch in self._to_process()]
        return min([WORKER_PAUSE_SECONDS, *waits])

    def _to_process(self) -> list[Batch]:
        """Batches that run, but for those that a fault keeps from ending."""
        return [batch for batch in self._store.running() if not self._core.faults.holds(batch.id)]

    def wait_idle(self, timeout_seconds: float) -> None:
        """Return when no batch is left whose time has come. Raises TimeoutError."""
        if not self.is_started:
            self.do_due_work()
            return
        deadline = time.monotonic() + timeout_seconds
        with self._moved:
            while self._seconds_to_next() <= 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"batches are still being processed after {timeout_seconds} s")
                self._moved.wait(left)
