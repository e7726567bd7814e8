"""Collecting as tasks, one for each batch that has ended, where a task runner is set: in threads, or on Dask.

A task carries names and numbers alone: each opens the state database by itself, claims its batch there, and is a driver
like any other. What tasks leave undone the sweep does itself, so whatever happens to a task runner costs time only.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.futures import PrefectFuture, PrefectWrappedFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import environment
from flows.environment import Blocks
from flows.watch import run_logger
from pipeline.driver.environment import Environment
from pipeline.errors import InputError
from pipeline.events.event import Event, Tell
from pipeline.steps.collect_one import collect_one, ended_batches, left_of

SETTING = "BATCH_TASK_RUNNER"
INSTEAD = "this sweep collects by itself"
THREADS = 4
QUIET_SECONDS = 60.0  # in which no batch is taken or done, and nobody has one: then nobody is at work there
MOST_SECONDS = 3600.0  # in which no batch is taken or done, though somebody has one
LOOK_SECONDS = 0.5  # between two looks at how far it has come


def runner() -> TaskRunner[Any] | None:
    """What BATCH_TASK_RUNNER names: `threads`, or the address of a Dask scheduler; None when it is not set.

    Raises InputError for anything else, and where Dask is not installed.
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
    retries=1,  # which is safe: it collects again what is not collected
)
def collect_batch(job: str, batch: int, blocks: Blocks, beside: Path | None = None) -> None:
    """Collect one batch of a job. beside: a file in the folder of the state database that nothing else names."""
    with at_work(blocks, beside) as here:
        collect_one(here, job, batch)


@flow(name="collect-ended")
def collect_ended(ended: list[tuple[str, int]], blocks: Blocks, beside: Path | None = None) -> None:
    """Collect these batches, job and number, each as a task; until all are done, or nobody is at work on them."""
    tasks = [collect_batch.submit(job, batch, blocks, beside) for job, batch in ended]
    numbers = {batch for _, batch in ended}
    with environment.database(blocks, beside=beside) as database:

        def look() -> tuple[object, float]:
            left = left_of(database, numbers)
            return left, MOST_SECONDS if left.held else QUIET_SECONDS

        wait_for(tasks, look)
        left = left_of(database, numbers).waiting
    if left:
        run_logger().warning("left to the sweep itself: batches %s", ", ".join(map(str, sorted(left))))


def spread_collecting(here: Environment, blocks: Blocks, job: str | None = None) -> set[str]:
    """Where a task runner is set: ask what has ended, and if it is several batches, collect them in tasks; their jobs.

    job: of one job only. A task runner that cannot be used is said in the log and costs no answer: the sweep collects.
    """
    chosen = usable_runner(INSTEAD)
    if chosen is None:
        return set()
    ended = ended_batches(here, job)
    if len(ended) < 2:
        return set()
    try:
        collect_ended.with_options(task_runner=chosen)(ended, blocks, here.database.file)
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is about tasks, which nothing hangs on
        say_of_runner(exc, INSTEAD)
    return {name for name, _ in ended}


def usable_runner(instead: str) -> TaskRunner[Any] | None:
    """The task runner, if one is set that can be used; else the log says what happens instead."""
    try:
        return runner()
    except InputError as exc:
        run_logger().error("%s; %s", exc, instead)
        return None


def say_of_runner(problem: Exception, instead: str) -> None:
    """Say in the log that tasks could not be done, and what happens instead."""
    said = f"{type(problem).__name__}: {problem}"
    run_logger().error("%s=%s: %s; %s", SETTING, os.environ[SETTING], said, instead)


def wait_for(tasks: list[PrefectFuture[Any]], look: Callable[[], tuple[object, float]]) -> None:
    """Wait until the tasks are done, for as long as anything moves: Dask may have lost its workers, or never had one.

    look: how far it has come, by the state database, for a task that died says nothing; and for how many seconds that
    may stay as it is. That all is done there is not the end yet: leaving the flow cancels its tasks, which may be about
    to say that they are done.
    """
    before, since = None, time.monotonic()
    while not all(map(is_done, tasks)):
        now, patience = look()
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since >= patience:
            run_logger().warning("no task has done anything for %.0f seconds", time.monotonic() - since)
            return
        time.sleep(LOOK_SECONDS)


def is_done(future: PrefectFuture[Any]) -> bool:
    """Whether it has ended in whatever way. Its `state` would ask Prefect's server, which may know less."""
    assert isinstance(future, PrefectWrappedFuture)
    return bool(future.wrapped_future.done())


@contextlib.contextmanager
def at_work(blocks: Blocks, beside: Path | None) -> Iterator[Environment]:
    """Where a task works, which opens all by itself and tells the log of its own run."""
    with (
        environment.database(blocks, beside=beside) as database,
        environment.driving_in(database, blocks, tell=_teller()) as here,
    ):
        yield here


def _teller() -> Tell:
    """Tells the log of the task's run what its driver does."""
    logger = run_logger()

    def tell(event: Event) -> None:
        whose = "" if event.job is None else f"{event.job}: "  # a warning about a setting is about no job
        logger.log(max(logging.INFO, event.level), "%s%s", whose, event.line())

    return tell
