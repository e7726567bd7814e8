"""The options that commands share."""

from typing import Annotated

import typer

from pipeline.cli.terminal import log_format

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job file, or the name of a job the database knows.")]
# Each command takes the same options, so that a script may give them to all; some have no use for one of them.
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database", envvar="BATCH_DATABASE_URL", help="State database. Default: batches.db beside the job file."
    ),
]
SpoolOption = Annotated[
    str | None,
    typer.Option(
        "--spool",
        envvar="BATCH_SPOOL",
        help="Folder for request bodies, or s3://, gs://, az://BUCKET/PREFIX. Default: beside the database.",
    ),
]
LogOption = Annotated[
    str,
    typer.Option(
        "--log-format", metavar="text|json", callback=lambda value: log_format(value), help="Of what stderr says."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
EmulatorOption = Annotated[
    bool, typer.Option("--emulator", help="Speak to an emulator started for this command: no key, no network, no bill.")
]
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
PollOption = Annotated[
    float | None,
    typer.Option(
        "--poll-seconds",
        envvar="BATCH_POLL_SECONDS",
        min=0,
        help="Between polls. Default: as the API says, growing to 60.",
    ),
]
