"""`retry`: send rows again that did not succeed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import (
    ask_after_quote,
    heavy_imports,
    load_with_last_vars,
    open_environment,
    open_known_job,
    say_vars,
)
from pipeline.cli.options import EVERYWHERE, DetachOption, JobArgument, LastVarOption, SharedOptions, YesOption, takes
from pipeline.cli.summary import read_ending, tell_ending
from pipeline.cli.terminal import put_json, say
from pipeline.errors import InputError
from pipeline.job.name import without_trial

if TYPE_CHECKING:
    from pipeline.planning.quote import Quote
    from pipeline.planning.selection import Selection
    from pipeline.planning.trial import Trial
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord, TrialRecord


@takes(*EVERYWHERE, "poll_seconds")
def retry(
    job: JobArgument,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Only rows with this status. Succeeded, canceled and lost rows are sent only when named."),
    ] = None,
    error_type: Annotated[list[str] | None, typer.Option(help="Only rows with this error_type.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Only the row with this key. Separate the values of several key columns by commas."),
    ] = None,
    predicate: Annotated[
        str | None, typer.Option("--where", help="Only rows whose answers meet this SQL predicate.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change the request: request.max_tokens=1000."),
    ] = None,
    var: LastVarOption = None,
    detach: DetachOption = False,
    yes: YesOption = False,
    *,
    shared: SharedOptions,
) -> None:
    """Send rows again that did not succeed, with their present values in the source, and collect as `run` does."""
    with heavy_imports():
        from pipeline.planning.selection import Selection, change
        from pipeline.runner.options import Options
        from pipeline.runner.run import run as run_job
        from pipeline.runner.trial import run_trial
    wanted = Selection(
        statuses=tuple(status or ()),
        error_types=tuple(error_type or ()),
        keys=tuple(key or ()),
        where=predicate,
        changes=dict(change(pair) for pair in changes or ()),
    )
    with open_known_job(job, shared) as (database, job_record):
        with open_environment(database, shared, job=job) as environment:
            loaded, path = load_with_last_vars(database, job_record, job, var)
            say_vars(loaded, shared)
            confirm = _confirm_retry(database, job_record, wanted, shared, yes=yes)
            options = Options(retry=wanted, detach=detach, confirm=confirm)
            if job_record.trial is None:
                finished = run_job(loaded, environment, options, file=path)
            else:
                finished = run_trial(loaded, _trial_of(job_record.trial, wanted), environment, options, file=path)
            of_job, trial = without_trial(job)
            ending = read_ending(environment, loaded, finished, job=of_job, trial=trial)
        tell_ending(database, ending, shared)
    raise typer.Exit(finished.exit_code)


def _trial_of(trial: "TrialRecord", wanted: "Selection") -> "Trial":
    """Return the trial whose rows are sent again. Raises InputError if they are to be asked otherwise."""
    from pipeline.planning.trial import Trial

    if wanted.changes:
        raise InputError("--set: the rows of a trial are asked as it was begun; begin another trial with this --set")
    return Trial.of(trial)


def _confirm_retry(
    database: "Database", job_record: "JobRecord", wanted: "Selection", shared: SharedOptions, *, yes: bool
) -> "Callable[[Quote], bool]":
    """Return a function that says which rows a retry leaves out, and why, and then asks whether to send the others."""
    from pipeline.planning.selection import left_out
    from pipeline.sink.table import ResultsTable

    ask = ask_after_quote(shared, yes=yes)
    sink = ResultsTable.of(job_record)

    def confirm(quote: "Quote") -> bool:
        with database.read() as conn:
            reasons = left_out(conn, job_record.id, sink, wanted, quote)
        if shared.as_json and reasons:
            put_json({"event": "left_out", "reasons": reasons})
        for reason in () if shared.as_json else reasons:
            say(f"         {reason}")
        if quote.to_send and "lost" in wanted.statuses:
            say("warning  lost rows may have been answered and paid for: sending them again may cost twice")
        return ask(quote)

    return confirm
