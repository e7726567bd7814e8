"""`review`: give answers to people in a spreadsheet, and store what they say of them."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import heavy_imports, load_with_last_vars, open_known_job, refuse_trial
from pipeline.cli.options import EVERYWHERE, JobArgument, LastVarOption, SharedOptions, takes
from pipeline.cli.terminal import put, put_json, say_next
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.job.model import Job
    from pipeline.quality.review_export import Wanted
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


@takes(*EVERYWHERE)
def review(
    job: JobArgument,
    action: Annotated[
        str, typer.Argument(metavar="export|import", help="Write a spreadsheet, or read one that is filled in.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .xlsx or .csv file; import also takes .ods.")],
    where: Annotated[str | None, typer.Option(help="Only answers that meet this SQL predicate.")] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="A random sample of N rows; each export draws the same ones.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="For --sample: equally many rows of each value, such as each label."),
    ] = None,
    disagree: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Only rows whose answers of two sides differ.")
    ] = None,
    pairs: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Show the answers of two sides without their names: which one is better?"),
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Leave the answers out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    var: LastVarOption = None,
    *,
    shared: SharedOptions,
) -> None:
    """Let people review answers in a spreadsheet: export writes it, import stores their reviews."""
    with heavy_imports():
        from pipeline.quality.review_export import Wanted

    wanted = Wanted(where, sample, by, disagree, pairs, blind)
    if action not in ("export", "import"):
        raise InputError(f"review {action}: write export or import, as in `review JOB export FILE.xlsx`")
    if action == "import" and (wanted != Wanted() or overwrite):
        raise InputError("review import: it takes the file alone; the other options are for export")
    with open_known_job(job, shared) as (database, job_record):
        refuse_trial(job, "give `review {job} export FILE --disagree current {trial}`")
        loaded, _ = load_with_last_vars(database, job_record, job, var)
        if action == "export":
            _export(database, job_record, loaded, file, wanted, overwrite=overwrite, as_json=shared.as_json)
            say_next("review", job, "import", str(file))
            return
        refused = _import(database, job_record, loaded, file, as_json=shared.as_json)
    say_next("evaluate" if loaded.gold is not None else "export", job)
    if refused:
        raise typer.Exit(1)


def _export(
    database: "Database",
    job_record: "JobRecord",
    job: "Job",
    file: Path,
    wanted: "Wanted",
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    from pipeline.quality.review_export import export_reviews
    from pipeline.report.review import export_facts, export_lines

    found = export_reviews(database, job_record, job, file, wanted, overwrite=overwrite)
    _show({"event": "review", "job": job.name, **export_facts(found)} if as_json else list(export_lines(found)))


def _import(database: "Database", job_record: "JobRecord", job: "Job", file: Path, *, as_json: bool) -> bool:
    """Store the reviews of a file, show what was done, and return whether rows were refused."""
    from pipeline.quality.review_import import import_reviews
    from pipeline.report.review import import_facts, import_lines

    found = import_reviews(database, job_record, job, file, lambda: datetime.now(UTC))
    _show({"event": "review", "job": job.name, **import_facts(found)} if as_json else list(import_lines(found)))
    return bool(found.refused)


def _show(found: dict[str, object] | list[str]) -> None:
    if isinstance(found, dict):
        put_json(found)
        return
    for line in found:
        put(line)
    sys.stdout.flush()
