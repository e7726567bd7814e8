"""How does Python load a job, and read and export its answers? Edge: files, SQL, network."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from pipeline.errors import InputError
from pipeline.job.load import load
from pipeline.job.model import Job
from pipeline.library.places import existing_url, known, name_of
from pipeline.sink.export import Exported
from pipeline.sink.export import export as export_to
from pipeline.sink.read import PAGE, AnswerFilter, pages
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import known_job

if TYPE_CHECKING:
    import polars as pl


def load_job(path: str | Path, variables: Mapping[str, str] | None = None, *, today: date | None = None) -> Job:
    """Return the job that a file declares.

    variables: values that override the vars of the file. today: the date of a var whose value is `today`; None: the
    date in UTC. Raises JobError, which names the file, the line and the field.
    """
    return load(Path(path), variables=variables or {}, today=today or datetime.now(UTC).date())


@overload
def results(
    job: Job | str,
    *,
    database: str | None = ...,
    emulator: bool = ...,
    status: str | None = ...,
    where: str | None = ...,
    since: int | None = ...,
    batch_size: None = ...,
) -> "pl.DataFrame": ...


@overload
def results(
    job: Job | str,
    *,
    database: str | None = ...,
    emulator: bool = ...,
    status: str | None = ...,
    where: str | None = ...,
    since: int | None = ...,
    batch_size: int,
) -> "Iterator[pl.DataFrame]": ...


def results(
    job: Job | str,
    *,
    database: str | None = None,
    emulator: bool = False,
    status: str | None = None,
    where: str | None = None,
    since: int | None = None,
    batch_size: int | None = None,
) -> "pl.DataFrame | Iterator[pl.DataFrame]":
    """Return the answers of a job in the order of their keys, as one polars DataFrame or as an iterator of several.

    job: a job or its name. database, emulator: as for `run`. status, where, since: as for `batch-pipeline export`.
    batch_size: the rows of each frame but the last; None: one frame for all, which must fit into memory. Raises
    InputError for an unknown job or database.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size}: this must be 1 or more")
    url = existing_url(database, emulator=emulator)
    frames = _frames(url, name_of(job), AnswerFilter(status, where, since), batch_size)
    if batch_size is not None:
        return frames
    import polars as pl

    return pl.concat(frames)


def _frames(url: str, job: str, wanted: AnswerFilter, batch_size: int | None) -> "Iterator[pl.DataFrame]":
    """Yield the answers in frames of up to batch_size rows; one empty frame if there are no answers."""
    import polars as pl

    from pipeline.sink.arrow import record_batch

    with contextlib.closing(Database(url)) as opened:
        job_record = known_job(opened, job)
        columns, found = list(ResultsTable.of(job_record).table.columns), False
        for page in pages(opened, job_record, wanted, batch_size or PAGE):
            found = True
            yield pl.DataFrame(record_batch(page, columns))
        if not found:
            yield pl.DataFrame(record_batch([], columns))


def export(
    job: Job | str,
    place: str | Path,
    *,
    database: str | None = None,
    emulator: bool = False,
    status: str | None = None,
    where: str | None = None,
    since: int | None = None,
    limit: int | None = None,
    partition_by: str | Sequence[str] = (),
    file_format: Literal["parquet", "csv", "ndjson"] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the answers of a job into a file, or into a folder of files, as `batch-pipeline export` does.

    place: a .parquet, .csv or .ndjson file, a folder with partition_by, or a URL on object storage. The other
    parameters are the options of that command. Returns the number of rows and files. Raises InputError for an unknown
    job, a wrong predicate or ending, or a place that exists (unless overwrite), Stopped if the disk or the store fails.
    """
    by = [partition_by] if isinstance(partition_by, str) else list(partition_by)
    if file_format is not None and not by:
        raise InputError(f"file_format {file_format}: this is for partition_by only; the ending of the place decides")
    wanted = AnswerFilter(status, where, since, limit)
    with known(job, database, emulator=emulator) as (opened, job_record):
        if not by:
            return export_to(opened, job_record, place, wanted, overwrite=overwrite)
        from pipeline.sink.partitions import export_partitioned

        ending = None if file_format is None else f".{file_format}"
        return export_partitioned(opened, job_record, place, by, wanted, ending=ending, overwrite=overwrite)
