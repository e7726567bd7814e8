"""Process the batches that are due, and archive old ones."""

import threading
import time

from pipeline.emulator.core import Core
from pipeline.emulator.operations.processing import process
from pipeline.emulator.store.batches import Batch

WORKER_PAUSE_SECONDS = 0.5  #: the longest sleep of the worker, because real time advances the clock too


class Worker:
    """Process due batches in calls of `do_due_work`, and after `start` in a thread."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._store, self._clock = core.store, core.clock
        self._work_lock = threading.Lock()  # only one thread processes batches at a time
        self._due_changed = core.due_changed
        self.stopping = False
        self._thread: threading.Thread | None = None

    @property
    def is_started(self) -> bool:
        """Return whether the thread was started, so that calls need not process batches."""
        return self._thread is not None

    def do_due_work(self) -> None:
        """Process all batches that are due and archive old ones, then return."""
        with self._work_lock:
            for batch in self._unfinished():
                if self.stopping:
                    return
                if self._core.due_us(batch) <= self._clock.now_us():
                    process(self._core, batch, lambda: self.stopping)
                    self._core.wake()
            self._store.mark_archived(self._clock.now_us())

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="emulator-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the current work and the thread. May be called again."""
        with self._due_changed:
            self.stopping = True
            self._due_changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        """Do the work that is due and sleep until the next, until `stop` is called."""
        while not self.stopping:
            self.do_due_work()
            with self._due_changed:
                pause = self._seconds_to_next()
                if pause > 0 and not self.stopping:
                    self._due_changed.wait(pause)

    def _seconds_to_next(self) -> float:
        """Return the seconds to sleep; 0 or less if a batch is due."""
        now = self._clock.now_us()
        waits = [(self._core.due_us(batch) - now) / 1e6 for batch in self._unfinished()]
        return min([WORKER_PAUSE_SECONDS, *waits])

    def _unfinished(self) -> list[Batch]:
        """Return the running batches, except those that a fault keeps from ending."""
        return [batch for batch in self._store.running() if not self._core.faults.holds(batch.id)]

    def wait_idle(self, timeout_seconds: float) -> None:
        """Wait until no batch is due. Raises TimeoutError after timeout_seconds of real time."""
        if not self.is_started:
            self.do_due_work()
            return
        deadline = time.monotonic() + timeout_seconds
        with self._due_changed:
            while self._seconds_to_next() <= 0:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"batches are still being processed after {timeout_seconds} s")
                self._due_changed.wait(left)
