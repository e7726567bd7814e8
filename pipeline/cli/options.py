"""The options that commands share: how each is declared, and how a command gets them."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pipeline.cli import terminal


@dataclass
class Invocation:
    """One call of the program, as `main` and the options see it: the object of click's context."""

    debug: bool = False


@dataclass(frozen=True)
class SharedOptions:
    """What the shared options of a command say, as far as commands read them.

    database, spool: None: not given, so the default place. poll_seconds: None: as the API says, also for a command that
    does not take --poll-seconds.
    """

    database: str | None
    spool: str | None
    emulator: bool
    poll_seconds: float | None
    as_json: bool


def _note_debug(context: typer.Context, value: bool) -> None:
    context.ensure_object(Invocation).debug = value


# -- options with their place among a command's own ------------------------------------------------------------------

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job file, or the name of a job the database knows.")]
VarOption = Annotated[list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="Override a var of the job.")]
LastVarOption = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="Override a var. Default: what the last run had."),
]
YesOption = Annotated[
    bool,
    typer.Option(
        "--yes", help="Do not ask after the quote. Without a terminal, or with --json, nothing is asked anyway."
    ),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="End once all is sent; `collect` takes it to its end.")]


# -- options that commands take by `takes` ---------------------------------------------------------------------------

#: What every command takes, so that a script may give the same options to all. Some commands have no use for --spool.
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
        typer.Option("--emulator", help="Speak to an emulator started for this command: no key, no network, no bill."),
    ] = False,
    poll_seconds: Annotated[
        float | None,
        typer.Option(
            "--poll-seconds",
            envvar="BATCH_POLL_SECONDS",
            min=0,
            help="Between polls. Default: as the API says, growing to 60.",
        ),
    ] = None,
    log_format: Annotated[
        str,
        typer.Option(
            "--log-format",
            metavar="text|json",
            callback=lambda value: terminal.log_format(value),
            help="Of what stderr says.",
        ),
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_note_debug, is_eager=True, help="Show the traceback of an error.")
    ] = False,
) -> SharedOptions:
    """Declare the options, in the order in which --help lists them, and return what commands read of them.

    log_format and debug have taken effect by then, through their callbacks.
    """
    return SharedOptions(database, spool, emulator, poll_seconds, as_json)


Command = Callable[..., None]


def takes(*names: str) -> Callable[[Command], Command]:
    """Return a decorator by which a command takes these options of `_shared_options`, after its own.

    A command that has a parameter `shared` is given them in it, as SharedOptions.
    """
    declared = inspect.signature(_shared_options).parameters.values()
    options = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in declared if each.name in names]

    def decorated(command: Command) -> Command:
        own = inspect.signature(command).parameters

        @functools.wraps(command)
        def run(context: typer.Context, **given: Any) -> None:
            shared = _shared_options(**{name: given.pop(name) for name in names})
            with terminal.running(context):
                command(**given, **({"shared": shared} if "shared" in own else {}))

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        kept = [parameter for name, parameter in own.items() if name != "shared"]
        # typer reads the options of a command from this
        run.__signature__ = inspect.Signature([context, *kept, *options])  # type: ignore[attr-defined]
        return run

    return decorated
