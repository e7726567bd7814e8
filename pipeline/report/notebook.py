"""Show the progress of a run in a notebook, in an area under the cell. Edge: IPython.

The area is updated in place, and it stays in the notebook as the record of the run.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.events.batches import BatchMove, Collected, HeldBack
from pipeline.events.event import Event
from pipeline.events.runs import GateOpened, Waiting
from pipeline.planning.quote import Quoted
from pipeline.report.quote import quote_lines
from pipeline.states import BatchState
from pipeline.text import counted, money

if TYPE_CHECKING:
    from pipeline.runner.options import Finished


PAUSE_SECONDS = 0.1  # least time between two updates: a browser need not show each of a hundred batches
NOTED = 10  # newest notes that the area shows


def is_running() -> bool:
    """Return whether this process is a notebook: IPython with a kernel, not IPython in a terminal."""
    ipython = sys.modules.get("IPython")  # if it was never imported, this process does not run in IPython
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Area:
    """The area under a cell. It shows the quote, batches by state, rows by outcome, cost, time and the next look."""

    def __init__(self, name: str, show: Callable[[str], None] | None = None) -> None:
        """Show the area.

        name: the job's name. show: shows a text in place of the text before it; None: under the notebook's cell.
        """
        self._name, self._show = name, show or _display()
        self._began = time.monotonic()
        self._shown_at = -PAUSE_SECONDS
        self._quote: list[str] = []
        self._to_send = 0
        self._states: dict[int, BatchState] = {}
        self._batches: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._cost_usd: float | None = 0.0
        self._next = ""
        self._notes: list[str] = []
        self._lock = threading.Lock()  # the thread that submits batches sends events, too
        self._draw()

    def tell(self, event: Event) -> None:
        """Show one event of the driver."""
        with self._lock:
            self._take(event)
            if isinstance(event, Quoted | Waiting) or time.monotonic() - self._shown_at >= PAUSE_SECONDS:
                self._draw()

    def _take(self, event: Event) -> None:
        self._next = ""
        match event:
            case Quoted():
                self._quote, self._to_send = list(quote_lines(event.quote)), event.quote.to_send
            case Waiting():
                self._batches = Counter(event.progress["batches"])  # from the database, so with other drivers' moves
                # the time of day and not the seconds left: while the driver waits, the area is not updated
                self._next = f"{datetime.fromtimestamp(time.time() + event.seconds):%H:%M:%S}"  # noqa: DTZ006  # local
            case BatchMove():
                self._move(event)
        if event.level > logging.INFO or isinstance(event, GateOpened | HeldBack):  # problems, and why rows wait
            line = event.line()
            self._notes = [*[note for note in self._notes if note != line], line][-NOTED:]

    def _move(self, event: BatchMove) -> None:
        self._batches[self._states.get(event.batch, event.before) or ""] -= 1
        self._batches[event.after] += 1
        self._states[event.batch] = event.after
        if isinstance(event, Collected):
            self._outcomes.update(event.outcomes)
            unpriced = self._cost_usd is None or event.cost_usd is None
            self._cost_usd = None if unpriced else (self._cost_usd or 0.0) + (event.cost_usd or 0.0)

    def finished(self, finished: "Finished") -> None:
        """Show how the run stands now that its driver has ended, or that nothing was sent."""
        if finished.run_id is None:
            self._end("nothing was sent")
            return
        self._outcomes, self._cost_usd = Counter(finished.rows), finished.cost_usd
        reason = f" ({finished.reason})" if finished.reason else ""
        self._end(f"run {finished.run_id} {finished.state}{reason}")

    def failed(self, exc: BaseException) -> None:
        """Show the exception that ended the driver."""
        self._end(f"{type(exc).__name__}: {str(exc) or 'make the same call again to continue'}")

    def _end(self, how: str) -> None:
        with self._lock:
            self._next = ""
            self._draw(how)

    def _draw(self, how: str = "running") -> None:
        self._shown_at = time.monotonic()
        self._show("\n".join([f"{self._name}: {how}, {_lasted(self._shown_at - self._began)}", *self._lines()]))

    def _lines(self) -> list[str]:
        lines, batches = [*self._quote], +self._batches
        if batches:
            lines.append(f"batches  {counted(batches)}")
        if self._outcomes:
            of = f" of {self._to_send:,}" if self._to_send > self._outcomes.total() else ""
            lines.append(f"answers  {self._outcomes.total():,}{of}: {counted(self._outcomes)}")
            lines.append(f"spent    {money(self._cost_usd)}")
        if self._next:
            lines.append(f"next     look at {self._next}")
        return lines + [f"         {note}" for note in self._notes]


def _lasted(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((i for i, (n, _) in enumerate(parts) if n), 2)
    return " ".join(f"{n:.0f} {unit}" for n, unit in parts[first:])


def _display() -> Callable[[str], None]:
    """Return a function that shows a text under the running cell, in place of the text that it showed before."""
    from IPython.display import display

    handle: Any = None

    def show(text: str) -> None:
        nonlocal handle
        bundle = {"text/plain": text}  # every notebook, and every viewer on the web, shows plain text unchanged
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            handle.update(bundle, raw=True)

    return show
