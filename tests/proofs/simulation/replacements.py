"""What replaces the threads, executors, stops and clocks of the pipeline and the emulator in a schedule."""

import queue
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.driver.driver import Stop
from pipeline.emulator import Clock
from pipeline.state import leases
from tests.proofs.simulation.turns import Task

if TYPE_CHECKING:
    from tests.proofs.simulation.world import World


class TurnThread:
    """Replaces threading.Thread: a thread of the pipeline that takes turns with the others."""

    def __init__(self, world: "World", target: Callable[[], object], name: str) -> None:
        self._world, self._target, self._name = world, target, name
        self._task: Task | None = None

    def start(self) -> None:
        process = self._world.process
        assert process is not None
        self._task = Task(self._world.turns, process, self._target)
        process.tasks.append(self._task)

    def is_alive(self) -> bool:
        assert self._task is not None
        return not self._task.done

    def join(self, timeout: float | None = None) -> None:
        process, task = self._world.process, self._task
        if self._world.turns.over:
            return
        assert process is not None
        assert task is not None
        looks = timeout is not None and timeout < 1  # a short timeout is a check, which takes no simulated time
        self._world.wait(
            lambda: task.done or (looks and process.stop.event.is_set()), timeout, f"the {self._name} thread"
        )


class TurnSemaphore:
    """Replaces threading.Semaphore for threads that take turns."""

    def __init__(self, world: "World", value: int) -> None:
        self._world, self._value = world, value

    def acquire(self) -> None:
        self._world.wait(lambda: self._value > 0, None, "a semaphore")
        self._value -= 1

    def release(self) -> None:
        self._value += 1


class TurnQueue:
    """Replaces queue.SimpleQueue for threads that take turns."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._waiting: deque[Any] = deque()

    def put(self, what: Any) -> None:
        self._waiting.append(what)

    def empty(self) -> bool:
        return not self._waiting

    def get(self, timeout: float) -> Any:
        """Return the next of what was put; raises queue.Empty if there is nothing after so many seconds."""
        self._world.wait(lambda: bool(self._waiting), timeout, "a queue")
        if not self._waiting:
            raise queue.Empty
        return self._waiting.popleft()


class Renewal:
    """Replaces the thread that renews a lease: it renews when the clock is advanced."""

    def __init__(self, world: "World", renew: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._world, self._renew, self._arguments = world, renew, arguments
        self.renewed_at = world.at
        self.lease: leases.Lease = arguments[1]
        assert world.process is not None
        self.process = world.process

    def start(self) -> None:
        self.process.renewals.append(self)

    def join(self) -> None:
        self.process.renewals.remove(self)

    def go(self) -> None:
        """Renew the lease once, if it is time."""
        database, lease, seconds, _, now = self._arguments
        if lease.gone or (self._world.at - self.renewed_at).total_seconds() < seconds / 3:
            return
        rounds = iter((False, True))
        once = SimpleNamespace(wait=lambda _: next(rounds))
        with self._world.acting_as(self.process):
            self._renew(database, lease, seconds, once, now)
        if not lease.gone:  # a renewal that came too late changed nothing, so the driver was silent until now
            self.renewed_at = self._world.at


class AtOnce:
    """Replaces ThreadPoolExecutor for work ahead: it does the work at once in the running thread."""

    def __init__(self, *_: object, **__: object) -> None:
        """Accept and ignore the arguments of ThreadPoolExecutor."""

    def shutdown(self, **_: object) -> None:
        """Do nothing, because all work is already done."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as exc:  # noqa: BLE001  # as the executor does
            done.set_exception(exc)
        return done


class TurnedStop(Stop):
    """A Stop whose waits end when the clock has been advanced far enough."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    def wait(self, seconds: float) -> None:
        self._world.wait(self.event.is_set, seconds, "waiting")
        self.check()


class StillClock(Clock):
    """The emulator's clock, which only the schedule advances."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    def now_us(self) -> int:
        return round(self._world.at.timestamp() * 1e6)
