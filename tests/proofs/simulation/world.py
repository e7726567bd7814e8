"""One emulator, one database, one source, and the drivers that work on them."""

import contextlib
import csv
import itertools
import random
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import httpx2
import orjson

from pipeline.emulator import Emulator
from pipeline.emulator.http import router
from pipeline.emulator.settings import Settings
from pipeline.errors import LostRace
from pipeline.job.model import Job
from pipeline.state.database import Database
from pipeline.states import (
    BatchState,
)
from tests.proofs.simulation.asked import job_of
from tests.proofs.simulation.books import Books
from tests.proofs.simulation.constants import ACCOUNTS, START, Violation
from tests.proofs.simulation.drivers import Process, Watched
from tests.proofs.simulation.faults import NEVER_STOPS, PAUSES
from tests.proofs.simulation.replacements import StillClock
from tests.proofs.simulation.rules import Rules
from tests.proofs.simulation.seen import Seen, look
from tests.proofs.simulation.tools import Tools
from tests.proofs.simulation.turns import Turns
from tests.proofs.simulation.ways import Ways
from tests.proofs.simulation.wire import Parcel
from tests.support.talking import TOOLS


class World:
    """One emulator, one database, one source, and the drivers that work on them."""

    def __init__(self, seed: int, folder: Path, shared: Database, say: Callable[[str], None]) -> None:
        self.chance = random.Random(seed)
        self.folder, self.shared = folder, shared
        self.at = START
        self.ways = Ways.draw(self.chance)
        self.turns = Turns(self.chance)
        self.database = Watched(shared, self)
        self.emulator = Emulator(
            folder / "emulator",
            processing_seconds=self.ways.processing_seconds,
            clock=StillClock(self),
            settings=Settings(tool_rounds=3, tool_calls=len(TOOLS)),
        )
        self.tools = Tools(self)
        self.books = Books(self)
        self.rules = Rules(self)
        self.processes: list[Process] = []
        self.source: dict[str, tuple[str, str]] = {}  #: text and note of each row, by key
        self.texts: defaultdict[str, list[str]] = defaultdict(list)  #: all texts that a key ever had
        self.started: defaultdict[str, int] = defaultdict(int)  #: numbers of started commands, by name
        self.lost_batches: set[int] = set()  #: batches that were given up, though they may have been found again
        self.hidden: set[str] = set()  #: batches at the API that no driver could find in the listing in time
        self.hides = False
        self.too_large = False
        self.recipe_of_trial: int | None = None  #: in the job file of commands about the trial; None: the current
        self.bodies_lost = False  #: whether bodies were removed from the spool
        self.edits: Counter[str] = Counter()  #: how often the row of a key was changed, added or removed
        self.odd = False  #: whether parts of result lines may have been damaged
        self.cached = False  #: whether creates may be answered from a cache
        self._say, self._violation = say, ""
        self._acting: Process | None = None
        self._numbers = itertools.count(1)
        self._numbers_of_others = itertools.count(1)
        self.others = False  #: whether another program has sent batches
        for _ in range(self.ways.rows):
            self.put(f"r{len(self.source)}")
        self.write_source()

    # the running process

    @property
    def process(self) -> Process | None:
        """Return the process whose code is running."""
        return self.turns.current.process if self.turns.current is not None else self._acting

    @contextlib.contextmanager
    def acting_as(self, process: Process) -> Iterator[None]:
        """Run the block as if the schedule's own thread belonged to this process."""
        self._acting = process
        try:
            yield
        finally:
            self._acting = None

    def say(self, what: str) -> None:
        """Print a line if the schedule is shown step by step."""
        self._say(f"{(self.at - START).total_seconds():>10,.1f} s  {what}")

    def violated(self, what: str) -> None:
        """Note a violation; the schedule raises it as soon as it runs again."""
        self._violation = self._violation or what

    def raise_violation(self) -> None:
        """Raise Violation for a noted violation, and for a driver that ended with an unexpected exception."""
        for process in self.processes:
            for task in process.tasks:
                if task.error is not None:
                    raise Violation(f"{process.name} breaks:\n{''.join(traceback.format_exception(task.error))}")
            if isinstance(process.error, LostRace):
                raise Violation(f"{process.name} lets a lost race out: {process.error}")
        if self._violation:
            raise Violation(self._violation)

    # time

    def wait(self, ready: Callable[[], bool], seconds: float | None, what: str) -> None:
        """Let the running thread wait for a condition, for at most so many seconds."""
        until = None if seconds is None else self.at + timedelta(seconds=seconds)
        self.turns.until(lambda: ready() or (until is not None and self.at >= until), what)

    def monotonic(self) -> float:
        """Return time.monotonic() of the running process."""
        assert self.process is not None
        return self.process.monotonic()

    def turn(self, seconds: float) -> None:
        """Advance the clock. Bodies on their way arrive in that time, and living drivers renew their leases."""
        until = self.at + timedelta(seconds=seconds)
        while until - self.at > timedelta(hours=25):  # in steps, so that results are read before the API removes them
            self._turn_to(self.at + timedelta(hours=25))
            self.emulator.do_due_work()
            self.books.read_results()
        self._turn_to(until)

    def _turn_to(self, until: datetime) -> None:
        waiting = [p for process in self.processes for p in process.parcels if p.arrived_at is None and not p.lost]
        for parcel in sorted(waiting, key=lambda parcel: parcel.due_at):
            if parcel.due_at <= until:
                self.at = max(self.at, parcel.due_at)
                self.deliver(parcel)
        slept = (until - self.at).total_seconds()
        self.at = until
        for process in self.processes:
            if process.state == "stopped" and process.frozen:
                process.slept += slept
            if process.state == "running":
                for renewal in list(process.renewals):
                    renewal.go()

    # the API

    def deliver(self, parcel: Parcel) -> None:
        """Let a body reach the API."""
        parcel.arrived_at = self.at
        try:
            parcel.response = self.emulator.transport().handle_request(parcel.request)
        except httpx2.HTTPError as exc:
            parcel.error = exc
        before = set(self.books.batches)
        self.books.look()
        for api_id in self.books.batches.keys() - before:
            self.say(f"    the API accepts {api_id} with {self.books.batches[api_id].requests} requests")
            if self.hides:
                self.hidden.add(api_id)

    def console(self, method: str, path: str, body: object = None) -> None:
        """Call the API as another person or program does; the call may fail."""
        headers = {"x-api-key": ACCOUNTS[0], "anthropic-version": "2023-06-01", "content-type": "application/json"}
        with (
            contextlib.suppress(httpx2.HTTPError),
            httpx2.Client(transport=self.emulator.transport(), base_url="http://emulator") as client,
        ):
            client.request(method, path, headers=headers, content=orjson.dumps(body) if body else None)

    def other_program(self, number: int) -> None:
        """Send a batch of so many requests as another program in the workspace."""
        self.others = True
        params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello."}]}
        theirs = [{"custom_id": f"other-{next(self._numbers_of_others)}", "params": params} for _ in range(number)]
        self.console("POST", router.CREATE_PATH, {"requests": theirs})
        self.books.look()

    # the source and the job

    def put(self, key: str, text: str | None = None, note: str | None = None) -> None:
        """Set a row of the source. text None: a text that no row had before, or often that of another row."""
        number = next(self._numbers)
        if text is None and self.ways.alike and self.source and self.chance.random() < 0.7:
            text = self.source[self.chance.choice(sorted(self.source))][0]
        text = self._text(number) if text is None else text
        self.edits[key] += 1
        self.source[key] = (text, f"note {number}" if note is None else note)
        if text not in self.texts[key]:
            self.texts[key].append(text)

    def _text(self, number: int) -> str:
        """Return a new text. In a job with rounds it asks for tools, pauses once, pauses always, or does neither."""
        kinds = ("use lookup and other for", "use lookup and other for", "pauses", "never stops", "is about")
        kind = self.chance.choice(kinds) if self.ways.rounds > 1 else "is about"
        return {
            "use lookup and other for": f"Use lookup and other for plant{number} and its flower.",
            "pauses": f"Text {number} {PAUSES}",
            "never stops": f"Text {number} {NEVER_STOPS}",
            "is about": f"Text {number} is about {number}.",
        }[kind]

    def write_source(self) -> None:
        """Write the current source to its file."""
        with open(self.folder / "rows.csv", "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["id", "text", "note"])
            writer.writerows([key, *values] for key, values in self.source.items())

    def job(self, recipe: int | None = None) -> Job:
        """Return the job with this recipe. None: the current one."""
        return job_of(self.ways, self.folder, self.ways.recipe if recipe is None else recipe, self.tools.functions)

    # what must always hold

    def look(self) -> Seen:
        """Read the state database and the results table."""
        return look(self.shared, history=self.ways.history, rounds=self.ways.rounds > 1)

    def check(self) -> Seen:
        """Raise Violation if a rule does not hold that must hold after each step."""
        self.raise_violation()
        seen = self.look()
        self.books.join(seen)
        self.lost_batches |= {batch.id for batch in seen.batches.values() if batch.state == BatchState.LOST}
        self.rules.check(seen)
        self.raise_violation()
        return seen
