"""Which options do commands share, and how does a command get them?"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pipeline.cli import running, terminal


@dataclass
class Invocation:
    """What the options of a command tell `main`. It is the object of click's context."""

    debug: bool = False


@dataclass(frozen=True)
class SharedOptions:
    """The values of the shared options that commands read.

    database, spool: None for the default place. poll_seconds: None for the API's own pace, and for a command that does
    not take --poll-seconds.
    """

    database: str | None
    spool: str | None
    emulator: bool
    poll_seconds: float | None
    as_json: bool


def _note_debug(context: typer.Context, value: bool) -> None:
    context.ensure_object(Invocation).debug = value


# -- options that a command declares in its signature ------------------------------------------------------------------

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job file, or the name of a job in the database.")]
VarOption = Annotated[list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="Override a var of the job.")]
LastVarOption = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="Override a var of the job. Default: the vars of the last run."),
]
YesOption = Annotated[
    bool,
    typer.Option(
        "--yes", help="Do not ask for confirmation. Without a terminal, or with --json, no command asks for it."
    ),
]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="Exit when all rows are sent; `collect` finishes the run.")
]


# -- options that the decorator `takes` declares ---------------------------------------------------------------------

#: The options that every command takes, so that a script can give all commands the same ones. Some do not use --spool.
EVERYWHERE = ("database", "spool", "emulator", "log_format", "as_json", "debug")


def _shared_options(
    database: Annotated[
        str | None,
        typer.Option(
            "--database", envvar="BATCH_DATABASE_URL", help="State database. Default: batches.db beside the job file."
        ),
    ] = None,
    spool: Annotated[
        str | None,
        typer.Option(
            "--spool",
            envvar="BATCH_SPOOL",
            help="Folder for request bodies, or s3://, gs://, az://BUCKET/PREFIX. Default: beside the database.",
        ),
    ] = None,
    emulator: Annotated[
        bool,
        typer.Option("--emulator", help="Use an emulator started for this command: no key, no network, no cost."),
    ] = False,
    poll_seconds: Annotated[
        float | None,
        typer.Option(
            "--poll-seconds",
            envvar="BATCH_POLL_SECONDS",
            min=0,
            help="Seconds between polls. Default: as the API says, growing to 60.",
        ),
    ] = None,
    log_format: Annotated[
        str,
        typer.Option(
            "--log-format",
            metavar="text|json",
            callback=lambda value: terminal.set_log_format(value),
            help="Format of the lines on stderr.",
        ),
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_note_debug, is_eager=True, help="Show the traceback of an error.")
    ] = False,
) -> SharedOptions:
    """Declare the options, in the order in which --help lists them, and return the values that commands read.

    log_format and debug are not among these: their callbacks have applied them.
    """
    return SharedOptions(database, spool, emulator, poll_seconds, as_json)


Command = Callable[..., None]


def takes(*names: str) -> Callable[[Command], Command]:
    """Return a decorator that adds these options of `_shared_options` to a command, after its own options.

    The command gets their values as SharedOptions in its parameter `shared`, if it has one.
    """
    declared = inspect.signature(_shared_options).parameters.values()
    options = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in declared if each.name in names]

    def decorated(command: Command) -> Command:
        own = inspect.signature(command).parameters

        @functools.wraps(command)
        def run(context: typer.Context, **given: Any) -> None:
            shared = _shared_options(**{name: given.pop(name) for name in names})
            with running.note_running(context):
                command(**given, **({"shared": shared} if "shared" in own else {}))

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        kept = [parameter for name, parameter in own.items() if name != "shared"]
        # typer reads from the signature which options a command has
        run.__signature__ = inspect.Signature([context, *kept, *options])  # type: ignore[attr-defined]
        return run

    return decorated
