"""The terminal: what a command says and asks there, and its signals. Results go to stdout, all else to stderr."""

import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from pipeline.errors import InputError, Interrupted
from pipeline.escapes import escaped, inline, json_text

if TYPE_CHECKING:
    from pipeline.events.event import Event
    from pipeline.planning.quote import Quote


_log_events: "Callable[[Event], None] | None" = None  # with --log-format json: what logs an event
_running: typer.Context | None = None  # the command that runs; None outside of it

_TAKE_VARS = ("run", "check", "retry", "estimate", "preview")  # the commands that read the job file with its vars


def log_format(value: str) -> str:
    """Let stderr be what --log-format says."""
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


def any_text() -> None:
    """Let stdout take texts that its encoding does not have: they are written with escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it from the start


def put(line: str) -> None:
    """A line of what was asked for, on stdout."""
    sys.stdout.write(escaped(line) + "\n")


def say(text: str) -> None:
    """A line for people: progress and errors go to stderr."""
    if _log_events is not None:
        import logging

        error = text.startswith("error: ")
        logging.getLogger("pipeline").log(logging.ERROR if error else logging.INFO, "%s", text)
        return
    # a text of others that goes on in a second line is not to look as if that were ours
    sys.stderr.write(escaped(text).replace("\n", "\n    ") + "\n")
    sys.stderr.flush()


def say_next(command: str, *words: str) -> None:
    """Say the next command."""
    say(f"next: {command_line(command, *words)}")


@contextlib.contextmanager
def running(context: typer.Context) -> Iterator[None]:
    """Note for the length of the block which command runs. Its options are carried over to the next command."""
    global _running
    _running = context
    try:
        yield
    finally:
        _running = None


def command_line(command: str, *words: str) -> str:
    """Return a command as a line for the shell.

    It carries over the options of the running command without which it would not find the same job, database and API.
    """
    carried = ["database", "emulator"]
    if command in _TAKE_VARS and "--var" not in words:
        carried.append("var")
    options = [word for given in _given() if given.parameter in carried for word in given.words]
    return shlex.join(["batch-pipeline", command, *words, *options])


def running_command(*, without: Sequence[str] = ()) -> list[str]:
    """Return the words of the running command, for `command_line`, which adds the options that it carries over.

    Left out are also --json and --debug, which change nothing of a run, and the parameters that `without` names.
    """
    if _running is None:
        return []
    left_out = {"database", "emulator", "var", "debug", "as_json", *without}
    kept = [given for given in _given() if given.parameter not in left_out]
    return [str(_running.info_name), *(word for given in kept for word in given.words)]


class _Given(NamedTuple):
    """A parameter that the command line gives, by its name in Python, and the words that give it."""

    parameter: str
    words: list[str]


def _given() -> Iterator[_Given]:
    """Yield what the command line gives to the running command: arguments first, then options as --help lists them."""
    if _running is None:
        return
    for parameter in _running.command.params:
        name = str(parameter.name)
        source = _running.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = max(parameter.opts, key=len) if parameter.param_type_name == "option" else None  # no `-n`
            yield _Given(name, _words(option, _running.params[name]))


def _words(option: str | None, value: Any) -> list[str]:
    """Return the words that give this value to an option, or, with None, to an argument."""
    if option is None:
        return [str(value)]
    if isinstance(value, bool):
        return [option]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (option, f"{each:g}" if isinstance(each, float) else str(each))]


def put_json(value: dict[str, Any]) -> None:
    """One object of --json, as a line on stdout: ASCII alone where that is not UTF-8."""
    sys.stdout.write(json_text(value, ascii_only=not is_utf8()) + "\n")
    sys.stdout.flush()


def put_request(params: Any) -> None:
    """A request or a message, as JSON for people, on stdout."""
    sys.stdout.write(json_text(params, ascii_only=not is_utf8(), indent=True) + "\n")


def is_utf8() -> bool:
    """Whether stdout takes every character as UTF-8."""
    return (sys.stdout.encoding or "ascii").lower().replace("-", "").replace("_", "") in ("utf8", "cp65001")


@contextlib.contextmanager
def signals(stop: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the driver to stop between two transactions; a second one leaves at once."""

    def handle(number: int, frame: object) -> None:
        if stop.event.is_set():
            os._exit(Interrupted.exit_code)
        stop.event.set()
        say("stopping: waiting for what is under way (again to leave at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: it can tidy up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def confirmed(*, yes: bool, ask: bool) -> bool:
    """Whether a person on a terminal says yes; where there is none, it goes on."""
    if yes or not ask or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # here Ctrl-C is a no
    try:
        return typer.confirm("send this?", err=True)
    finally:
        signal.signal(signal.SIGINT, handler)


@dataclass
class Teller:
    """Tells what a driver does: as JSON on stdout, as lines on stderr, and on a terminal with a live last line.

    job: what commands call the job; None: by its name.
    """

    as_json: bool
    job: str | None = None
    _status: Any = None
    _last: str = ""
    _watched: dict[int, str] = field(default_factory=dict)  # batches that may have arrived, and what is said of each

    def __enter__(self) -> "Teller":
        if sys.stderr.isatty() and not self.as_json and _log_events is None:
            from rich.console import Console

            self._status = Console(stderr=True, highlight=False).status("working")
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._quiet()

    def tell(self, event: "Event") -> None:
        """One event of the driver."""
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

        if not isinstance(event, Waiting | Watching):  # these are no moves
            put_json({"event": event.name, **event.facts()})

    def _text(self, event: "Event") -> None:
        from pipeline.events.batches import BatchEvent, Watching
        from pipeline.events.runs import PlannedElsewhere, RunEnded, Waiting

        match event:
            case Waiting() | PlannedElsewhere():  # told with each look
                self._wait(event.line())
            case Watching():  # told with each look, too
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
