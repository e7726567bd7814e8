"""What is the program: which commands does it have, and how do their errors become messages and exit codes?"""

import sys
from typing import Annotated

import typer

from pipeline import memory
from pipeline.cli.batches import batches
from pipeline.cli.cancel import cancel
from pipeline.cli.check import check
from pipeline.cli.collect import collect
from pipeline.cli.compare import compare
from pipeline.cli.emulator import emulator
from pipeline.cli.errors import errors
from pipeline.cli.estimate import estimate
from pipeline.cli.evaluate import evaluate
from pipeline.cli.export import export
from pipeline.cli.init import init
from pipeline.cli.models import models
from pipeline.cli.options import Invocation
from pipeline.cli.preview import preview
from pipeline.cli.report import SidesCommand, report
from pipeline.cli.retry import retry
from pipeline.cli.review import review
from pipeline.cli.run import run
from pipeline.cli.show import show
from pipeline.cli.status import status
from pipeline.cli.terminal import escape_unencodable, say
from pipeline.cli.trial import trial
from pipeline.cli.verify import verify
from pipeline.errors import Completed, Interrupted, PipelineError

app = typer.Typer(
    name="batch-pipeline",
    help="Send rows to Anthropic's Message Batches API, at batch price, and store the answers in a SQL table.",
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
    trial,
    collect,
    cancel,
    status,
    batches,
    errors,
    show,
    verify,
    evaluate,
    compare,
    review,
    report,
    export,
    emulator,
):
    app.command(cls=SidesCommand if _command is report else None)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        sys.stdout.write(f"batch-pipeline {metadata.version('batch-pipeline')}\n")
        raise typer.Exit(0)


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Send rows to Anthropic's Message Batches API, at batch price, and store the answers in a SQL table."""


#: How long a thread may run before another one gets its turn. With Python's default of 5 ms a download or an upload
#: nearly stopped while another thread computed: it needs the processor only for a moment after each piece.
TURN_SECONDS = 0.0005


def main() -> None:
    """Run a command and exit with its code. An error becomes one sentence on stderr, or, with --debug, a traceback."""
    sys.setswitchinterval(TURN_SECONDS)
    memory.use_little_memory()
    memory.skip_last_collection()
    escape_unencodable()
    invocation = Invocation()
    try:
        code = app(standalone_mode=False, obj=invocation)
    except typer.Exit as exc:
        code = exc.exit_code
    except Completed as exc:
        say(f"interrupted: {exc}")
        code = exc.exit_code
    except Interrupted:
        say("interrupted: nothing is lost; run the same command again to continue")
        code = Interrupted.exit_code
    except PipelineError as exc:
        if invocation.debug:
            raise
        say(f"error: {exc}")
        code = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("aborted; run the same command again to continue")
        code = Interrupted.exit_code
    except Exception as exc:
        code = _say_usage_error(exc)
        if code is None:
            if invocation.debug:
                raise
            say(f"error: unexpected {type(exc).__name__}: {exc}; it is safe to run again; --debug shows where")
            code = 3  # what is committed is valid, so the same command continues from there
    sys.exit(code if isinstance(code, int) else 0)


def _say_usage_error(exc: Exception) -> int | None:
    """Say which usage error click raised and return the exit code 2; return None for any other error."""
    message = getattr(exc, "format_message", None)
    if message is None:
        return None
    context = getattr(exc, "ctx", None)
    for line in () if context is None else context.get_usage().splitlines():
        say(line)
    for line in f"error: {message()}".splitlines():
        say(line)
    return 2
