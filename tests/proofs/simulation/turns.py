"""Let the threads of all drivers take turns, one at a time, from one moment to the next."""

import random
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.proofs.simulation.drivers import Process


class Gone(BaseException):
    """Raised in the threads of dead drivers to end them after the schedule is over."""


class Task:
    """One thread of a simulated process. It runs only while it has its turn."""

    def __init__(self, turns: "Turns", process: "Process", work: Callable[[], object]) -> None:
        self.process, self.done = process, False
        self.at = "its start"  #: the moment at which it has stopped
        self.error: BaseException | None = None
        self.ready: Callable[[], bool] = lambda: True
        self.turn = threading.Semaphore(0)
        self._turns, self._work = turns, work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.turn.acquire()
        try:
            if not self._turns.over:
                self._work()
        except Gone:
            pass
        except BaseException as exc:  # noqa: BLE001  # raised again in the schedule
            self.error = exc
        finally:
            self.done = True
            self._turns.back.release()


class Turns:
    """The scheduler of threads, which lets one thread run at a time."""

    def __init__(self, chance: random.Random) -> None:
        self.current: Task | None = None
        self.over = False
        self.back = threading.Semaphore(0)
        self._left, self._chance = 0, chance

    def give(self, task: Task, moments: int) -> int:
        """Let a thread run for so many moments, or until it waits; return how many moments are left."""
        self.current, self._left = task, moments
        task.turn.release()
        self.back.acquire()
        self.current = None
        return self._left

    def moment(self, what: str) -> None:
        """Mark a moment in the running thread at which another driver may run, or this driver may die."""
        if self.over:
            raise Gone
        task = self.current
        if task is None:  # called by the schedule itself
            return
        self._left -= 1
        if self._left <= 0 or (len(task.process.tasks) > 1 and self._chance.random() < 0.2):
            self._pause(task, what)

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Let the running thread wait."""
        if self.over:
            raise Gone
        task = self.current
        assert task is not None
        while not ready():
            task.ready = ready
            self._pause(task, what)
        task.ready = lambda: True

    def _pause(self, task: Task, what: str) -> None:
        task.at = what
        self.back.release()
        task.turn.acquire()
        if self.over:
            raise Gone

    def end(self, tasks: Iterable[Task]) -> None:
        """End the threads that are left."""
        self.over = True
        for task in tasks:
            if not task.done:
                self.give(task, 0)
            task.thread.join()
