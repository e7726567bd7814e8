"""`export`: write answers to a file or to stdout."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.opening import open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, takes
from pipeline.cli.terminal import say, sigterm_as_interrupt
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.sink.read import AnswerFilter
    from pipeline.state.database import Database
    from pipeline.state.jobs import JobRecord


@takes(*EVERYWHERE)
def export(
    job: JobArgument,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A .parquet, .csv or .ndjson file, also s3:// gs:// az://. Default: NDJSON to stdout.",
        ),
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only rows with this status.")] = None,
    where: Annotated[str | None, typer.Option(help="Only rows that meet this SQL predicate.")] = None,
    since: Annotated[
        int | None, typer.Option(metavar="RUN", min=0, help="Only answers of runs after this one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most N rows.")] = None,
    partition_by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Make FILE a folder, with a folder COLUMN=VALUE for each value."),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="parquet|csv|ndjson", help="Format of the files of --partition-by. Default: parquet."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Write answers in the order of their keys: to a file, to a folder of files, or as NDJSON to stdout."""
    from pipeline.sink.read import AnswerFilter

    wanted = AnswerFilter(status, where, since, limit)
    if file is None and partition_by:
        raise InputError("--partition-by writes a folder of files: give its path after the job")
    ending = _ending_of_parts(file_format, partition_by)
    with open_known_job(job, shared) as (database, job_record):
        if file is None:
            _write_to_stdout(database, job_record, wanted)
        else:
            _write_to_file(database, job_record, file, wanted, by=partition_by, ending=ending, overwrite=overwrite)


def _ending_of_parts(file_format: str | None, partition_by: list[str] | None) -> str | None:
    """Return the ending of the files of --partition-by, as --format gives it; None if it is not given."""
    if file_format is None:
        return None
    if not partition_by:
        raise InputError(
            f"--format {file_format}: this is for --partition-by only; without it the ending of FILE gives the format"
        )
    if file_format not in ("parquet", "csv", "ndjson"):
        raise InputError(f"--format {file_format}: write parquet, csv or ndjson")
    return f".{file_format}"


def _write_to_file(
    database: "Database",
    job_record: "JobRecord",
    file: str,
    wanted: "AnswerFilter",
    *,
    by: list[str] | None,
    ending: str | None,
    overwrite: bool,
) -> None:
    """Write answers to one file, or, by the values of columns, to a folder of files. ending: None for Parquet."""
    from pipeline.sink.export import export as export_to
    from pipeline.text import count

    with sigterm_as_interrupt():
        if by:
            from pipeline.sink.partitions import export_partitioned  # it takes long to import

            exported = export_partitioned(database, job_record, file, by, wanted, ending=ending, overwrite=overwrite)
        else:
            exported = export_to(database, job_record, file, wanted, overwrite=overwrite)
    files = f" in {count(exported.files, 'file')}" if by else ""
    say(f"wrote    {count(exported.rows, 'row')} to {exported.place}{files}")


def _write_to_stdout(database: "Database", job_record: "JobRecord", wanted: "AnswerFilter") -> None:
    from pipeline.sink.read import ndjson

    try:
        for line in ndjson(database, job_record, wanted):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the program that reads our stdout has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
