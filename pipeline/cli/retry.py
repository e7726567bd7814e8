"""`retry`: sends rows that did not succeed once more."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import (
    confirm_or_stop,
    environment_of,
    job_and_folder,
    load_as_last,
    many_objects_that_stay,
    open_driver_of,
)
from pipeline.cli.options import (
    DatabaseOption,
    DebugOption,
    DetachOption,
    EmulatorOption,
    JobArgument,
    JsonOption,
    LastVarOption,
    LogOption,
    PollOption,
    SpoolOption,
    YesOption,
)
from pipeline.cli.summary import ended_run, report_run
from pipeline.cli.terminal import put_json, say

if TYPE_CHECKING:
    from pipeline.planning.quote import Quote
    from pipeline.planning.selection import Selection
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


def retry(
    job: JobArgument,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Only rows with this status; succeeded, canceled and lost ones go only when named."),
    ] = None,
    error_type: Annotated[list[str] | None, typer.Option(help="Only rows with this error_type.")] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Only the row with this key; commas between several columns.")
    ] = None,
    predicate: Annotated[
        str | None, typer.Option("--where", help="Only rows for whose answers this SQL predicate holds.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Ask otherwise: request.max_tokens=1000.")
    ] = None,
    var: LastVarOption = None,
    detach: DetachOption = False,
    yes: YesOption = False,
    database: DatabaseOption = None,
    spool: SpoolOption = None,
    emulator: EmulatorOption = False,
    poll_seconds: PollOption = None,
    log_format: LogOption = "text",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Send rows that did not succeed once more, as they are in the source now; then go on as `run` does."""
    with many_objects_that_stay():
        from pipeline.planning.selection import Selection, change
        from pipeline.runner.options import Options
        from pipeline.runner.run import run as run_job
        from pipeline.state.jobs import known_job
    wanted = Selection(
        statuses=tuple(status or ()),
        error_types=tuple(error_type or ()),
        keys=tuple(key or ()),
        where=predicate,
        changes=dict(change(pair) for pair in changes or ()),
    )
    folder, name = job_and_folder(job)
    with contextlib.closing(open_driver_of(folder, database, emulated=emulator, must_exist=True)) as opened:
        with environment_of(
            opened, spool, emulated=emulator, poll_seconds=poll_seconds, as_json=as_json, job=job
        ) as where:
            row = known_job(opened, name)
            loaded, path = load_as_last(opened, row, job, var)
            if loaded.vars and not as_json:
                say("vars     " + ", ".join(f"{name}={value}" for name, value in loaded.vars.items()))
            confirm = _confirm_retry(opened, row, wanted, yes=yes, as_json=as_json)
            options = Options(retry=wanted, detach=detach, confirm=confirm)
            ended = ended_run(where, loaded, job, run_job(loaded, where, options, file=path))
        report_run(opened, loaded, ended, as_json=as_json)
    raise typer.Exit(ended.finished.exit_code)


def _confirm_retry(
    database: "Database", row: "JobRecord", wanted: "Selection", *, yes: bool, as_json: bool
) -> "Callable[[Quote], bool]":
    """What is said of a retry after its quote: what does not go, and why; and what it may cost twice."""
    from pipeline.planning.selection import left_out
    from pipeline.sink.table import ResultsTable

    ask = confirm_or_stop(yes=yes, ask=not as_json)
    sink = ResultsTable.of(row)

    def confirm(quote: "Quote") -> bool:
        with database.read() as conn:
            reasons = left_out(conn, row.id, sink, wanted, quote)
        if as_json and reasons:
            put_json({"event": "left_out", "reasons": reasons})
        for reason in () if as_json else reasons:
            say(f"         {reason}")
        if quote.to_send and "lost" in wanted.statuses:
            say("warning  what is lost may have been answered and paid for: sending it again may pay twice")
        return ask(quote)

    return confirm
