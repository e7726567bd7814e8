"""Call tools in Prefect tasks, one for each group of rows, if a task runner is set. Edge: SQL, HTTP, files.

A task claims each row of its group in the state database, and commits each result by itself, as any driver does. The
calls that a task did not make are made by further tasks; if no task makes any, the flow makes them itself.
"""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from prefect import flow, task

from flows import environment
from flows.collect_tasks import SETTING, log_runner_failure, result_of, task_environment, usable_runner, wait_for
from flows.environment import Blocks
from flows.watch import run_logger
from pipeline.driver.driver import Stop
from pipeline.driver.environment import Environment
from pipeline.driver.tool_groups import Called, ToolGroup
from pipeline.steps.tools import call_group, left_of_groups

INSTEAD = "the flow calls tools without tasks"
LEFT = "its remaining calls are made later"
QUIET_SECONDS = 60.0  # no result is stored for so long, and no driver has a row: no task is working
LOOK_SECONDS = 5.0  # between two looks at the progress, which reads all waiting rows of the groups

#: Asks the tasks in threads of this process to stop; tasks in other processes do not have it. Flows and tasks must not
#: name it: Dask sends them to other processes with all that they name.
_stop: ContextVar[Stop | None] = ContextVar("stop", default=None)


def stop_of_tasks() -> Stop | None:
    """Return what asks the tasks of this process to stop; None: nothing does."""
    return _stop.get()


@contextlib.contextmanager
def stopping_at_end() -> Iterator[None]:
    """Ask tasks in threads of this process that begin in the block to stop at its end.

    Without it, a flow that is canceled, or that waits no more, would still wait for the calls under way.
    """
    stop = Stop()
    token = _stop.set(stop)
    try:
        yield
    finally:
        stop.event.set()
        _stop.reset(token)


@task(
    name="call-tools", task_run_name="call tools of {group.job}, rows {group.first} to {group.last}", tags=["batches"]
)
def call_tools_of(group: ToolGroup, blocks: Blocks, beside: Path | None) -> Called:
    """Call the tools of a group of rows. Prefect never retries this task: another one makes the calls that it left."""
    with task_environment(blocks, beside, stop_of_tasks()) as here:
        return call_group(here, group)


@flow(name="call-tools-in-tasks")
def call_in_tasks(groups: list[ToolGroup], blocks: Blocks, beside: Path | None) -> list[Called]:
    """Call the tools of groups of rows, each in a task. Return what those tasks made that did not fail.

    Return when all tasks are done, or when no task is working any more.
    """
    with stopping_at_end(), environment.database(blocks, beside=beside) as database:

        def look() -> tuple[object, float]:
            left = left_of_groups(database, groups)
            return left.calls, QUIET_SECONDS + (groups[0].timeout if left.held else 0.0)

        tasks = [call_tools_of.submit(group, blocks, beside) for group in groups]
        wait_for(tasks, look, every=LOOK_SECONDS)
        ended = [result_of(each, name_of(group), LEFT) for each, group in zip(tasks, groups, strict=True)]
    return [called for called in ended if called is not None]


def with_tool_tasks(here: Environment, blocks: Blocks) -> Environment:
    """Return an environment whose drivers let tasks call tools; the same one if BATCH_TASK_RUNNER is not set.

    When no task of a step succeeds, the log says so, and the drivers call tools themselves from then on.
    """
    if not os.environ.get(SETTING):
        return here
    works = True

    def call(groups: list[ToolGroup]) -> list[Called]:
        nonlocal works
        chosen = usable_runner(INSTEAD) if works else None
        called: list[Called] = []
        if chosen is not None:
            try:
                called = call_in_tasks.with_options(task_runner=chosen)(groups, blocks, here.database.file)
            except Exception as exc:  # noqa: BLE001  # a failure of the tasks: the flow does their work
                log_runner_failure(exc, INSTEAD)
            else:
                if not called:
                    run_logger().warning("no task has called its tools; %s", INSTEAD)
        works = bool(called)
        return called

    return replace(here, tool_runner=call)


def name_of(group: ToolGroup) -> str:
    """Return a group of rows in words."""
    return f"calls of tools of {group.job}, rows {group.first} to {group.last}"
