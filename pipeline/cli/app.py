"""The command line: its commands, and how each ends."""

import sys
from typing import Annotated

import typer

from pipeline import memory
from pipeline.cli.cancel import cancel
from pipeline.cli.check import check
from pipeline.cli.collect import collect
from pipeline.cli.emulator import emulator
from pipeline.cli.errors import errors
from pipeline.cli.estimate import estimate
from pipeline.cli.export import export
from pipeline.cli.init import init
from pipeline.cli.models import models
from pipeline.cli.options import Invocation
from pipeline.cli.preview import preview
from pipeline.cli.retry import retry
from pipeline.cli.run import run
from pipeline.cli.show import show
from pipeline.cli.status import status
from pipeline.cli.terminal import any_text, say
from pipeline.cli.verify import verify
from pipeline.errors import Completed, Interrupted, PipelineError

app = typer.Typer(
    name="batch-pipeline",
    help="Rows in, a SQL table of answers out, at batch price, through Anthropic's Message Batches API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


for _command in (
    init,
    check,
    estimate,
    preview,
    models,
    run,
    retry,
    collect,
    cancel,
    status,
    errors,
    show,
    verify,
    export,
    emulator,
):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        sys.stdout.write(f"batch-pipeline {metadata.version('batch-pipeline')}\n")
        raise typer.Exit(0)


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version, and end.")
    ] = False,
) -> None:
    """Rows in, a SQL table of answers out, at batch price, through Anthropic's Message Batches API."""


#: After this long another thread has its turn. With Python's own 5 ms a download or upload, which has work for a moment
#: after each piece only, as good as stood still while another thread computed.
TURN_SECONDS = 0.0005


def main() -> None:
    """The console script: runs a command, turns our errors into one sentence and an exit code."""
    sys.setswitchinterval(TURN_SECONDS)
    memory.use_little_memory()
    any_text()
    invocation = Invocation()
    try:
        code = app(standalone_mode=False, obj=invocation)
    except typer.Exit as exc:
        code = exc.exit_code
    except Completed as exc:
        say(f"interrupted: {exc}")
        code = exc.exit_code
    except Interrupted:
        say("interrupted: everything is resumable; run the same command again and it goes on")
        code = Interrupted.exit_code
    except PipelineError as exc:
        if invocation.debug:
            raise
        say(f"error: {exc}")
        code = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("aborted; the same command again goes on")
        code = Interrupted.exit_code
    except Exception as exc:
        code = _said_usage(exc)
        if code is None:
            if invocation.debug:
                raise
            say(f"error: unforeseen: {type(exc).__name__}: {exc}; safe to run again; --debug shows where it came from")
            code = 3  # what is committed is right, and the same command goes on from there
    sys.exit(code if isinstance(code, int) else 0)


def _said_usage(exc: Exception) -> int | None:
    """Say what is wrong with the words of a command: exit code 2; None for any other error."""
    message = getattr(exc, "format_message", None)
    if message is None:
        return None
    context = getattr(exc, "ctx", None)
    for line in () if context is None else context.get_usage().splitlines():
        say(line)
    for line in f"error: {message()}".splitlines():
        say(line)
    return 2
