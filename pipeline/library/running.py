"""How does Python run a job, send rows again, and cancel? Edge: SQL, HTTP, files."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.driver import environment
from pipeline.driver.driver import Stop
from pipeline.errors import PipelineError
from pipeline.escapes import inline
from pipeline.events.event import Event, Tell
from pipeline.job import json_values
from pipeline.job.model import Job
from pipeline.library.places import existing_url, name_of, url_of
from pipeline.planning.quote import Quoted
from pipeline.planning.selection import Selection, require_settable
from pipeline.report import notebook
from pipeline.report.quote import quote_lines
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run as run_job
from pipeline.state import ends
from pipeline.state.database import Database
from pipeline.state.jobs import known_job
from pipeline.steps.cancel import Canceled
from pipeline.steps.cancel import cancel as cancel_job

Keys = Iterable[str | int | tuple[Any, ...]]


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
    options = Options(limit=limit, refresh=refresh, detach=detach, canary=canary, processes=processes)
    url = url_of(database, emulator=emulator)
    return _run(job, options, url, spool=spool, emulator=emulator, poll_seconds=poll_seconds, tell=tell)


async def run_async(
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
    """Do as `run`, in a thread, so that the event loop goes on meanwhile. tell: is called in that thread.

    To cancel the task does what Ctrl-C does: work in progress is finished, batches at the API are left there, and the
    same call again continues. The task ends when the thread has ended; a second cancel does not wait for that.
    """
    options = Options(limit=limit, refresh=refresh, detach=detach, canary=canary, processes=processes)
    url, stop = url_of(database, emulator=emulator), Stop()

    def work() -> Finished:
        return _run(job, options, url, spool=spool, emulator=emulator, poll_seconds=poll_seconds, tell=tell, stop=stop)

    running = _in_thread(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.event.set()
        with contextlib.suppress(PipelineError):
            await running
        raise


def _in_thread(work: Callable[[], Finished]) -> "asyncio.Future[Finished]":
    """Start work in a thread of its own, for which the process does not wait, and return its result as a future."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Finished] = loop.create_future()

    def settle(result: Finished | None, failure: BaseException | None) -> None:
        if not future.done():
            future.set_exception(failure) if failure is not None else future.set_result(result)  # type: ignore[arg-type]

    def done() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001  # it is raised where the future is awaited
            failure = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody awaits the future
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=done, name="run_async", daemon=True).start()
    return future


def retry(
    job: Job,
    *,
    status: str | Iterable[str] = (),
    error_type: str | Iterable[str] = (),
    keys: Keys = (),
    where: str | None = None,
    changes: Mapping[str, Any] | None = None,
    database: str | None = None,
    spool: str | None = None,
    emulator: bool = False,
    detach: bool = False,
    poll_seconds: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> Finished:
    """Send rows again that did not succeed, with their present values, as `batch-pipeline retry --yes` does.

    status, error_type, keys, where: only rows with one of these; a key of several columns is a tuple. changes: of the
    request for this sending, such as {"request.max_tokens": 1000}. The other parameters are those of `run`.
    Raises InputError for an unknown status, a wrong predicate, or a field that cannot be changed.
    """
    for name in changes or {}:
        require_settable(name, f"changes: {name!r} cannot be changed for one sending; name")
    wanted = Selection(
        statuses=_listed(status),
        error_types=_listed(error_type),
        keys=tuple(_key(key) for key in keys),
        where=where,
        changes=dict(changes or {}),
    )
    options, url = Options(retry=wanted, detach=detach), existing_url(database, emulator=emulator)
    return _run(job, options, url, spool=spool, emulator=emulator, poll_seconds=poll_seconds, tell=tell)


def cancel(
    job: Job | str,
    *,
    database: str | None = None,
    spool: str | None = None,
    emulator: bool = False,
    abandon: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Canceled:
    """End the open runs of a job for all drivers, and cancel its batches, as `batch-pipeline cancel` does.

    job: a job or its name. abandon: give up batches that another account sent, or that the API does not end; their rows
    become lost. Requests that succeeded are collected. Raises InputError for an unknown job, Stopped when the API could
    not be asked; the same call again continues.
    """
    url = existing_url(database, emulator=emulator)
    with (
        contextlib.closing(Database(url)) as opened,
        environment.at(opened, spool=spool, emulated=emulator, tell=_lines_to(tell or _say)) as here,
    ):
        return cancel_job(here, known_job(opened, name_of(job)), abandon=abandon)


def _listed(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _key(key: str | int | tuple[Any, ...]) -> str:
    """Return a key as the state database has it; a text stays as it is written."""
    return key if isinstance(key, str) else json_values.dump(list(key) if isinstance(key, tuple) else [key])


def _run(
    job: Job,
    options: Options,
    url: str,
    *,
    spool: str | None,
    emulator: bool,
    poll_seconds: float | None,
    tell: Callable[[str], None] | None,
    stop: Stop | None = None,
) -> Finished:
    """Run a job with its progress in lines, or in a notebook in an area under the cell. stop: ends the run early."""

    def run_and_show(told: Tell, show: Callable[[Finished], None]) -> Finished:
        with contextlib.closing(Database(url)) as opened:
            with environment.at(
                opened, spool=spool, emulated=emulator, poll_seconds=poll_seconds, tell=told, stop=stop
            ) as here:
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


def _say(line: str) -> None:
    sys.stderr.write(inline(line) + "\n")
    sys.stderr.flush()
