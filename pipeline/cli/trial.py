"""`trial`: ask some rows otherwise, and keep the answers apart."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.opening import (
    ask_after_quote,
    database_url,
    default_folder,
    find_job_file,
    heavy_imports,
    load_job,
    open_database,
    open_environment,
    say_vars,
)
from pipeline.cli.options import EVERYWHERE, DetachOption, JobArgument, SharedOptions, YesOption, takes
from pipeline.cli.summary import read_ending, tell_ending

if TYPE_CHECKING:
    from pipeline.job.model import Job


@takes(*EVERYWHERE, "poll_seconds")
def trial(
    job: JobArgument,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the trial, by which other commands know it.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change the request: request.model=claude-sonnet-5, request.prompt=@FILE.",
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="The most rows; those with the smallest hash of the key.")] = 400,
    where: Annotated[str | None, typer.Option(help="Only rows of the source that meet this SQL predicate.")] = None,
    gold_only: Annotated[bool, typer.Option("--gold-only", help="Only rows with gold.")] = False,
    max_cost_usd: Annotated[
        float | None,
        typer.Option(metavar="USD", help="Budget. Default: a tenth of limits.max_cost_usd."),
    ] = None,
    var: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Override a var of the job. A trial keeps those it was begun with."),
    ] = None,
    detach: DetachOption = False,
    yes: YesOption = False,
    *,
    shared: SharedOptions,
) -> None:
    """Ask a sample of rows with another prompt or model, for `evaluate` and `compare`. The same command continues it.

    The answers are stored in the table TABLE_trials. The answers of the job do not change.
    """
    path = find_job_file(job, shared)
    with heavy_imports():
        from pipeline.planning.trial import Trial, change
        from pipeline.runner.options import Options
        from pipeline.runner.trial import run_trial

    wanted = Trial(
        name=name,
        changes=dict(change(pair) for pair in changes or ()),
        sample=sample,
        where=where,
        gold_only=gold_only,
        max_cost_usd=max_cost_usd,
    )
    loaded = _load(path, name, var, default_folder(job), shared)
    say_vars(loaded, shared)
    options = Options(detach=detach, confirm=ask_after_quote(shared, yes=yes))
    with open_database(default_folder(job), shared) as database:
        with open_environment(database, shared, job=job) as environment:
            finished = run_trial(loaded, wanted, environment, options, file=path)
            ending = read_ending(environment, loaded, finished, job=job, trial=name)
        tell_ending(database, ending, shared)
    raise typer.Exit(finished.exit_code)


def _load(path: Path, name: str, var: list[str] | None, folder: Path, shared: SharedOptions) -> "Job":
    """Return the job of a file, with the vars with which the trial was begun, if it was.

    folder: that of the default database, which need not exist.
    """
    import contextlib

    from pipeline.job.name import read_name, with_trial
    from pipeline.state.database import Database
    from pipeline.state.jobs import job_named

    before: dict[str, Any] | None = None
    url = database_url(folder, shared)
    if Database.exists(url):
        with contextlib.closing(Database(url)) as database, database.read() as conn:
            begun = job_named(conn, with_trial(read_name(path), name))
        before = None if begun is None or begun.trial is None else begun.trial.vars
    return load_job(path, var, last_vars=before)
