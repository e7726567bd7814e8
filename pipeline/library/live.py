"""How does Python preview a few rows through the realtime API? Edge: files, HTTP."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.answer.outcome import Outcome
from pipeline.api.reach import Reach
from pipeline.api.realtime import Answered, Event, Picked, PreviewRow, async_client, stream
from pipeline.driver import environment
from pipeline.errors import InputError
from pipeline.job.model import Job
from pipeline.planning.plan import Plan
from pipeline.planning.preview import pick
from pipeline.request.check import check_params


@dataclass(frozen=True)
class PreviewEvent:
    """A piece of the answer to one row, or its end.

    key: of the row. event: as the API streams it; None at the end. The others are None before the end. outcome: the one
    that the answer would have in a batch. message: the whole answer, as far as it arrived. cost_usd: of the live call;
    None without a known price.
    """

    key: str
    event: dict[str, Any] | None = None
    outcome: Outcome | None = None
    message: dict[str, Any] | None = None
    cost_usd: float | None = None

    @property
    def text(self) -> str:
        """The piece of the answer's text that this event brings; empty if it brings none."""
        delta = (self.event or {}).get("delta")
        text = delta.get("text") if isinstance(delta, dict) else None
        return text if isinstance(text, str) else ""


def preview(
    job: Job, n: int = 3, *, keys: Iterable[str] = (), sample: bool = False, emulator: bool = False
) -> Iterator[PreviewEvent]:
    """Send a few rows through the realtime API, at full price, and yield the events of their answers, row by row.

    keys: the rows with these keys instead of the first n ones. sample: n rows of the whole source. emulator: ask an
    emulator that is started for this. Nothing is stored. To leave the loop early ends the calls.
    Raises InputError, before anything is sent, for a wrong job, a source without such rows, or a missing key, and
    during the iteration if the API refuses the account or does not answer.
    """
    if n < 1:
        raise InputError(f"n {n}: this must be 1 or more")
    check_params(job)
    picked = pick(Plan(job), n, keys=tuple(keys), sample=sample)
    return _events(job, picked, emulator=emulator)


def _events(job: Job, picked: Picked, *, emulator: bool) -> Iterator[PreviewEvent]:
    with environment.reaching(job.api.endpoint, emulated=emulator) as reach:
        calls = _Calls(job, picked, reach)
        try:
            yield from calls.events()
        finally:
            calls.stop()


class _Calls:
    """The calls of a preview, in a thread: an event loop may run in the caller's, as in a notebook."""

    def __init__(self, job: Job, picked: Picked, reach: Reach) -> None:
        self._job, self._picked, self._reach = job, picked, reach
        self._told: queue.SimpleQueue[PreviewEvent | BaseException | None] = queue.SimpleQueue()
        self._key = ""
        self._begun = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._work, name="preview", daemon=True)
        self._thread.start()

    def events(self) -> Iterator[PreviewEvent]:
        """Yield the events until the last row has ended. Raises what the calls raise."""
        while (told := self._told.get()) is not None:
            if isinstance(told, BaseException):
                raise told
            yield told

    def stop(self) -> None:
        """End the calls, and wait until they have ended."""
        self._begun.wait()
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _work(self) -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(self._stream())
        except BaseException as exc:  # noqa: BLE001  # it is raised where the events are read
            failure = exc
        finally:
            self._begun.set()
            self._told.put(failure)

    async def _stream(self) -> None:
        self._task = asyncio.current_task()
        self._begun.set()
        await stream(async_client(self._reach), self._picked, self._job, self)

    # -- the view of `stream`

    def begin(self, row: PreviewRow) -> None:
        """Note which row the next events belong to."""
        self._key = row.key

    def event(self, event: Event, block: Event | None) -> None:
        """Pass on an event."""
        self._told.put(PreviewEvent(self._key, event))

    def end(self, answered: Answered) -> None:
        """Pass on how the row ended."""
        ended = PreviewEvent(self._key, None, answered.outcome, answered.message, answered.cost_usd)
        self._told.put(ended)
