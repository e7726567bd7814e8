"""Collecting as tasks, one for each batch that has ended, where a task runner is set: in threads, or on Dask.

A task carries names and numbers alone: each opens the state database by itself, claims its batch there, and is a driver
like any other. What a task leaves undone the sweep does itself.
"""

import os
from typing import Any

from prefect import flow, task
from prefect.futures import wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import places
from flows.places import Blocks
from flows.shown import run_logger
from pipeline import log
from pipeline.errors import InputError
from pipeline.spread import collect_one, ended_batches
from pipeline.where import Where

SETTING = "BATCH_TASK_RUNNER"
THREADS = 4
MOST_SECONDS = 3600  # that collecting one batch may take


def runner() -> TaskRunner[Any] | None:
    """What BATCH_TASK_RUNNER names: `threads`, or the address of a Dask scheduler; None when it is not set."""
    named = os.environ.get(SETTING)
    if not named:
        return None
    if named == "threads":
        return ThreadPoolTaskRunner(max_workers=THREADS)
    if not named.startswith(("tcp://", "tls://")):
        raise InputError(f"{SETTING}={named!r}: write threads, or a Dask scheduler's address as tcp://host:8786")
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as exc:
        raise InputError(f"{SETTING}={named}: this needs the extra dask: pip install 'batch-pipeline[dask]'") from exc
    made: TaskRunner[Any] = DaskTaskRunner(address=named)
    return made


@task(
    name="collect-batch",
    task_run_name="collect batch {batch}",
    tags=["batches"],
    retries=1,  # which is safe: it collects again what is not collected
    timeout_seconds=MOST_SECONDS,
)
def collect_batch(job: str, batch: int, blocks: Blocks) -> None:
    """Collect one batch of a job."""
    with places.database(blocks) as database, places.driving_in(database, blocks, tell=log.tell) as here:
        collect_one(here, job, batch)


@flow(name="collect-ended")
def collect_ended(ended: list[tuple[str, int]], blocks: Blocks) -> None:
    """Collect these batches, job and number, each as a task."""
    tasks = [collect_batch.submit(job, batch, blocks) for job, batch in ended]
    wait(tasks)
    failed = [batch for (_, batch), each in zip(ended, tasks, strict=True) if not each.state.is_completed()]
    if failed:
        run_logger().warning("left to the sweep itself: batches %s", ", ".join(map(str, failed)))


def spread_collecting(here: Where, blocks: Blocks) -> None:
    """Where a task runner is set: ask what has ended, and if it is several batches, collect them in tasks."""
    chosen = runner()
    if chosen is None:
        return
    ended = ended_batches(here)
    if len(ended) > 1:
        collect_ended.with_options(task_runner=chosen)(ended, blocks)
