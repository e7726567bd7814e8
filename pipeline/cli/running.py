"""Which command runs, and how is the next command written that it says?"""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import typer

_running: typer.Context | None = None  # None outside of a command

_TAKE_VARS = ("run", "check", "retry", "estimate", "preview")  # the commands that read the job file with its vars


@contextlib.contextmanager
def note_running(context: typer.Context) -> Iterator[None]:
    """Note for the length of the block which command runs. Its options are carried over to the next command."""
    global _running
    _running = context
    try:
        yield
    finally:
        _running = None


def command_line(command: str, *words: str, names_database: bool = True) -> str:
    """Return a command as a line for the shell.

    It carries over the options of the running command without which it would not find the same job, database and API.
    names_database: False leaves out --database, whose address may hold a password.
    """
    carried = ["database", "emulator"] if names_database else ["emulator"]
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
    return [word for each in values for word in (option, _text(each))]


def _text(value: Any) -> str:
    """Return a value as a person writes it: `1` for 1.0."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
