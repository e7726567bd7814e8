"""Talk with a person at a terminal: write results to stdout and all other lines to stderr. Edge: terminal, signals."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli.running import command_line
from pipeline.errors import InputError, Interrupted
from pipeline.escapes import escaped, inline, json_text

if TYPE_CHECKING:
    from pipeline.driver.driver import Stop
    from pipeline.events.event import Event
    from pipeline.planning.quote import Quote


_log_events: "Callable[[Event], None] | None" = None  # logs an event; None unless --log-format is json


def set_log_format(value: str) -> str:
    """Set the format of stderr to that of --log-format, and return it. Raises InputError for an unknown format."""
    global _log_events
    if value not in ("text", "json"):
        raise InputError(f"--log-format {value}: write text or json")
    if value == "json":
        import logging

        from pipeline.report import log

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(log.JsonFormatter())
        log.logger.addHandler(handler)
        log.logger.setLevel(logging.INFO)
        _log_events = log.tell
    return value


def escape_unencodable() -> None:
    """Make stdout write an escape for a character that its encoding does not have, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # Python's default for stderr


def put(line: str) -> None:
    """Write a line of the result to stdout."""
    sys.stdout.write(escaped(line) + "\n")


def say(text: str) -> None:
    """Write a line for people, progress or an error, to stderr."""
    if _log_events is not None:
        import logging

        error = text.startswith("error: ")
        logging.getLogger("pipeline").log(logging.ERROR if error else logging.INFO, "%s", text)
        return
    # indented, so that the second line of a foreign text does not look like a line of ours
    sys.stderr.write(escaped(text).replace("\n", "\n    ") + "\n")
    sys.stderr.flush()


def say_next(command: str, *words: str) -> None:
    """Say which command to run next, with the options of the running command that it needs as well."""
    say(f"next: {command_line(command, *words)}")


def put_json(value: dict[str, Any]) -> None:
    """Write an object of --json as one line to stdout, in ASCII unless stdout is UTF-8."""
    sys.stdout.write(json_text(value, ascii_only=not is_utf8()) + "\n")
    sys.stdout.flush()


def put_request(params: Any) -> None:
    """Write a request as indented JSON, for people, to stdout."""
    sys.stdout.write(json_text(params, ascii_only=not is_utf8(), indent=True) + "\n")


def is_utf8() -> bool:
    """Return whether stdout is UTF-8, which has every character."""
    return (sys.stdout.encoding or "ascii").lower().replace("-", "").replace("_", "") in ("utf8", "cp65001")


@contextlib.contextmanager
def stop_on_signals(stop: "Stop") -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask the driver to stop between two transactions. A second signal exits at once."""

    def handle(number: int, frame: object) -> None:
        if stop.event.is_set():
            os._exit(Interrupted.exit_code)
        stop.event.set()
        say("stopping: waiting for work in progress (a second signal exits at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the block, as Ctrl-C does, so that the block can clean up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def confirmed(*, yes: bool, ask: bool) -> bool:
    """Ask a person whether to send, and return the answer. Return True without asking if there is no terminal.

    yes: --yes was given, so do not ask; ask: False with --json, where nothing is asked.
    """
    if yes or not ask or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C here aborts the question
    try:
        return typer.confirm("send this?", err=True)
    finally:
        signal.signal(signal.SIGINT, handler)


@dataclass
class Teller:
    """Shows the events of a driver: as JSON on stdout, or as lines on stderr, on a terminal with a live last line.

    job: the job's name or file for the commands that are shown; None: its name.
    """

    as_json: bool
    job: str | None = None
    _status: Any = None
    _last: str = ""
    _watched: dict[int, str] = field(default_factory=dict)  # by batch that may be at the API: the last line about it

    def __enter__(self) -> "Teller":
        if sys.stderr.isatty() and not self.as_json and _log_events is None:
            from rich.console import Console

            self._status = Console(stderr=True, highlight=False).status("working")
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._quiet()

    def tell(self, event: "Event") -> None:
        """Show one event of the driver, and log it with --log-format json."""
        from pipeline.events.runs import WaitsForRetry
        from pipeline.planning.quote import Quoted
        from pipeline.report.next_command import retry_words

        if _log_events is not None:
            _log_events(event)
        if isinstance(event, WaitsForRetry):
            words = retry_words(event.facts(), self.job or event.job or "")
            event = replace(event, command=command_line(*words))
        if isinstance(event, Quoted):
            self._quote(event.quote)
        elif self.as_json:
            self._json(event)
        elif _log_events is None:
            self._text(event)

    def _json(self, event: "Event") -> None:
        from pipeline.events.batches import Watching
        from pipeline.events.runs import Waiting

        if not isinstance(event, Waiting | Watching):  # these report no change
            put_json({"event": event.name, **event.facts()})

    def _text(self, event: "Event") -> None:
        from pipeline.events.batches import BatchEvent, Watching
        from pipeline.events.runs import PlannedElsewhere, RunEnded, Waiting

        match event:
            case Waiting() | PlannedElsewhere():  # repeated with each look
                self._wait(event.line())
            case Watching():  # repeated with each look, too
                self._watch(event.batch, event.line())
            case RunEnded():
                self._line(event.line(command_line(*event.then(self.job))))
            case _:
                self._last = ""
                if isinstance(event, BatchEvent):
                    self._watched.pop(event.batch, None)
                self._line(event.line())

    def _quote(self, quote: "Quote") -> None:
        from pipeline.report.quote import quote_facts, quote_lines

        if self.as_json:
            put_json({"event": "quote", **quote_facts(quote)})
            return
        if _log_events is not None:
            return
        self._quiet()  # a question may follow, which a live line would hide
        for line in quote_lines(quote):
            say(line)

    def _watch(self, batch: int, line: str) -> None:
        if self._status is None and self._watched.get(batch) != line:
            say(inline(line))
        self._watched[batch] = line

    def _wait(self, line: str) -> None:
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text("\n".join(map(inline, [*self._watched.values(), line]))))
            self._status.start()
        elif line.partition(";")[0] != self._last:  # a log need not say every minute that nothing has changed
            self._last = line.partition(";")[0]
            say(line)

    def _line(self, line: str) -> None:
        if self._status is not None:
            self._status.console.print(inline(line), markup=False, soft_wrap=True)
        else:
            say(inline(line))

    def _quiet(self) -> None:
        if self._status is not None:
            self._status.stop()
