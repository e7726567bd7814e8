"""Collect ended batches in Prefect tasks, one for each batch, if a task runner is set. Edge: SQL, HTTP, files.

The task runner uses threads or Dask. A task receives only names and numbers: it opens the state database itself, claims
its batch there, and is a driver like any other. The sweep itself collects the batches that tasks did not collect, so a
failure of the task runner costs only time.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow, task
from prefect.futures import PrefectFuture, PrefectWrappedFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import environment
from flows.environment import Blocks
from flows.watch import run_logger
from pipeline.driver.driver import Stop
from pipeline.driver.environment import Environment
from pipeline.errors import InputError
from pipeline.events.event import Event, Tell
from pipeline.steps.collect_one import collect_one, ended_batches, left_of

SETTING = "BATCH_TASK_RUNNER"
INSTEAD = "the sweep collects without tasks"
THREADS = 4
QUIET_SECONDS = 60.0  # no batch is claimed or collected for so long, and no driver has one: no task is working
MOST_SECONDS = 3600.0  # the same, while a driver still has a batch
LOOK_SECONDS = 0.5  # between two looks whether the tasks have ended

Result = TypeVar("Result")


def runner() -> TaskRunner[Any] | None:
    """Return the task runner that BATCH_TASK_RUNNER names; None if it is not set.

    Its value is `threads`, or the address of a Dask scheduler. Raises InputError for any other value, and for an
    address if Dask is not installed.
    """
    named = os.environ.get(SETTING)
    if not named:
        return None
    if named == "threads":
        return ThreadPoolTaskRunner(max_workers=THREADS)
    if not named.startswith(("tcp://", "tls://")):
        raise InputError(f"{SETTING}={named!r}: write threads, or a Dask scheduler's address as tcp://host:8786")
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as exc:
        raise InputError(f"{SETTING}={named}: this needs the extra dask: pip install 'batch-pipeline[dask]'") from exc
    made: TaskRunner[Any] = DaskTaskRunner(address=named)
    return made


@task(
    name="collect-batch",
    task_run_name="collect batch {batch}",
    tags=["batches"],
    retries=1,  # safe: a retry collects only results that are not collected yet
)
def collect_batch(job: str, batch: int, blocks: Blocks, beside: Path | None = None) -> None:
    """Collect one batch of a job.

    beside: a file in the folder of the state database; used if neither the environment nor a block names a database.
    """
    with task_environment(blocks, beside) as here:
        collect_one(here, job, batch)


@flow(name="collect-ended")
def collect_ended(ended: list[tuple[str, int]], blocks: Blocks, beside: Path | None = None) -> None:
    """Collect batches, each in a task. Return when all tasks are done, or when no task is working any more.

    ended: the job and the number of each batch. beside: see `collect_batch`.
    """
    tasks = [collect_batch.submit(job, batch, blocks, beside) for job, batch in ended]
    numbers = {batch for _, batch in ended}
    with environment.database(blocks, beside=beside) as database:

        def look() -> tuple[object, float]:
            left = left_of(database, numbers)
            return left, MOST_SECONDS if left.held else QUIET_SECONDS

        wait_for(tasks, look)
        left = left_of(database, numbers).waiting
    if left:
        run_logger().warning("not collected by tasks, left to the sweep: batches %s", ", ".join(map(str, sorted(left))))


def collect_in_tasks(here: Environment, blocks: Blocks, job: str | None = None) -> set[str]:
    """Ask the API which batches have ended, collect them in tasks, and return the names of their jobs.

    Returns an empty set if no task runner is set, or if fewer than two batches have ended: the sweep collects these.
    job: only this job; None: all jobs. If the task runner cannot be used, the log says so, and the sweep collects.
    """
    chosen = usable_runner(INSTEAD)
    if chosen is None:
        return set()
    ended = ended_batches(here, job)
    if len(ended) < 2:
        return set()
    try:
        collect_ended.with_options(task_runner=chosen)(ended, blocks, here.database.file)
    except Exception as exc:  # noqa: BLE001  # a failure of the tasks: the sweep does their work
        log_runner_failure(exc, INSTEAD)
    return {name for name, _ in ended}


def usable_runner(instead: str) -> TaskRunner[Any] | None:
    """Return the task runner; None if none is set. If it cannot be used, log what happens instead, and return None."""
    try:
        return runner()
    except InputError as exc:
        run_logger().error("%s; %s", exc, instead)
        return None


def log_runner_failure(problem: Exception, instead: str) -> None:
    """Log that the tasks could not be run because of this problem, and what happens instead."""
    said = f"{type(problem).__name__}: {problem}"
    run_logger().error("%s=%s: %s; %s", SETTING, os.environ[SETTING], said, instead)


def wait_for(
    tasks: list[PrefectFuture[Any]], look: Callable[[], tuple[object, float]], *, every: float = LOOK_SECONDS
) -> None:
    """Wait until all tasks are done, or until progress stops for too long: Dask may have no workers, or lose them.

    look: returns the progress, and the number of seconds for which the progress may stay unchanged. It reads the
    progress from the state database, because a task that died reports nothing. every: seconds between two looks.

    When the database says that all is done, the wait continues until the tasks say so: leaving the flow would cancel
    tasks that are about to report their end.
    """
    before, since, look_at = None, time.monotonic(), time.monotonic()
    while not all(map(is_done, tasks)):
        if time.monotonic() >= look_at:
            look_at = time.monotonic() + every
            now, patience = look()
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since >= patience:
                run_logger().warning("no task has made progress for %.0f seconds", time.monotonic() - since)
                return
        time.sleep(LOOK_SECONDS)


def is_done(future: PrefectFuture[Any]) -> bool:
    """Return whether a task has ended, well or not. Its `state` would ask Prefect's server, which may know less."""
    assert isinstance(future, PrefectWrappedFuture)
    return bool(future.wrapped_future.done())


def result_of(future: PrefectFuture[Result], what: str, instead: str) -> Result | None:
    """Return the result of a task that was waited for. If it has none, log what happens instead, and return None.

    what: what the task works on.
    """
    if not is_done(future):
        run_logger().warning("%s: its task has not ended; %s", what, instead)
        return None
    try:
        return future.result()
    except Exception as exc:  # noqa: BLE001  # an error of the task, or of its worker
        run_logger().warning("%s: its task failed, %s: %s: %s", what, instead, type(exc).__name__, exc)
        return None


@contextlib.contextmanager
def task_environment(blocks: Blocks, beside: Path | None, stop: Stop | None = None) -> Iterator[Environment]:
    """Open the environment in which one task works. Its events go to the log of the task's own run.

    stop: asks the task's driver to stop; None: nothing does.
    """
    with (
        environment.database(blocks, beside=beside) as database,
        environment.driving_in(database, blocks, tell=_teller(), stop=stop) as here,
    ):
        yield here


def _teller() -> Tell:
    """Return a function that writes the events of a driver to the log of the task's run."""
    logger = run_logger()

    def tell(event: Event) -> None:
        whose = "" if event.job is None else f"{event.job}: "  # a warning about a setting has no job
        logger.log(max(logging.INFO, event.level), "%s%s", whose, event.line())

    return tell
