"""How is the pipeline used from Python, in a script or a notebook?"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, overload

from pipeline.driver import environment
from pipeline.errors import InputError
from pipeline.escapes import inline
from pipeline.events.event import Event, Tell
from pipeline.job.load import load
from pipeline.job.model import Job
from pipeline.planning.quote import Quoted
from pipeline.report import notebook
from pipeline.report.quote import quote_lines
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run as run_job
from pipeline.sink.read import PAGE, AnswerFilter, pages
from pipeline.sink.table import ResultsTable
from pipeline.state import ends
from pipeline.state.database import Database, default_url
from pipeline.state.jobs import known_job

if TYPE_CHECKING:
    import polars as pl


def load_job(path: str | Path, variables: Mapping[str, str] | None = None, *, today: date | None = None) -> Job:
    """Return the job that a file declares.

    variables: values that override the vars of the file. today: the date of a var whose value is `today`; None: the
    date in UTC. Raises JobError, which names the file, the line and the field.
    """
    return load(Path(path), variables=variables or {}, today=today or datetime.now(UTC).date())


def run(
    job: Job,
    *,
    database: str | None = None,
    spool: str | None = None,
    emulator: bool = False,
    limit: int | None = None,
    refresh: bool = False,
    detach: bool = False,
    canary: bool = True,
    processes: int | None = None,
    poll_seconds: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> Finished:
    """Plan, submit, poll and collect until every row of the source has an outcome, as `batch-pipeline run --yes` does.

    database: a URL; None: batches.db in the current folder, or emulated.db with emulator. spool, poll_seconds, limit,
    refresh, detach, processes: as the options of that name of `run`. canary: False sends all rows of a new recipe at
    once. tell: is called with each line of progress; None: the lines are written to stderr, or in a notebook under the
    cell.

    Returns how the run ended, and how earlier runs of the job ended that were not reported yet. The same call again
    continues. Raises InputError when the input is wrong and nothing was sent, Stopped when it is safe to call again.
    """
    url = database or default_url(Path(), emulated=emulator)
    options = Options(limit=limit, refresh=refresh, detach=detach, canary=canary, processes=processes)

    def run_and_show(tell: Tell, show: Callable[[Finished], None]) -> Finished:
        with contextlib.closing(Database(url)) as opened:
            with environment.at(opened, spool=spool, emulated=emulator, poll_seconds=poll_seconds, tell=tell) as here:
                finished = run_job(job, here, options)
            show(finished)
            ends.note_told(opened, finished.told, datetime.now(UTC))  # last: the caller has the ends right after this
        return finished

    if tell is None and notebook.is_running():
        return _run_in_notebook(job.name, run_and_show)
    return run_and_show(_lines_to(tell or _say), lambda finished: None)


def _run_in_notebook(name: str, run_and_show: Callable[[Tell, Callable[[Finished], None]], Finished]) -> Finished:
    """Run with the progress in an area under the cell, which also shows how the run ended or failed."""
    area = notebook.Area(name)
    try:
        return run_and_show(area.tell, area.finished)
    except BaseException as exc:
        area.failed(exc)
        raise


def _lines_to(say: Callable[[str], None]) -> Tell:
    """Return a function that says the lines of an event one by one."""

    def told(event: Event) -> None:
        lines = quote_lines(event.quote) if isinstance(event, Quoted) else [event.line()]
        for line in lines:
            say(line)

    return told


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
    url = database or default_url(Path(), emulated=emulator)
    if not Database.exists(url):
        raise InputError(f"there is no database {Database.shown_url(url)}; run the job first, or name another database")
    frames = _frames(url, job if isinstance(job, str) else job.name, AnswerFilter(status, where, since), batch_size)
    if batch_size is not None:
        return frames
    import polars as pl

    return pl.concat(frames)


def _frames(url: str, job: str, wanted: AnswerFilter, batch_size: int | None) -> "Iterator[pl.DataFrame]":
    """Yield the answers in frames of up to batch_size rows; one empty frame if there are no answers."""
    import polars as pl

    from pipeline.sink.formats import record_batch

    with contextlib.closing(Database(url)) as opened:
        job_record = known_job(opened, job)
        columns, found = list(ResultsTable.of(job_record).table.columns), False
        for page in pages(opened, job_record, wanted, batch_size or PAGE):
            found = True
            yield pl.DataFrame(record_batch(page, columns))
        if not found:
            yield pl.DataFrame(record_batch([], columns))


def _say(line: str) -> None:
    sys.stderr.write(inline(line) + "\n")
    sys.stderr.flush()
