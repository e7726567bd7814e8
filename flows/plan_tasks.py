"""Plan the files of a source in Prefect tasks, one for each file, if a task runner is set. Edge: SQL, HTTP, files.

The run itself plans the files whose tasks failed.
"""

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

from prefect import flow, task

from flows import environment
from flows.collect_tasks import log_runner_failure, result_of, task_environment, usable_runner, wait_for
from flows.environment import Blocks
from pipeline.errors import PipelineError
from pipeline.planning.shards import Planned, Shard, ShardRunner, plan_shard
from pipeline.state.batches import batches_by_state
from pipeline.state.database import Database

INSTEAD = "the run plans without tasks"
LEFT = "the run plans its remaining rows"
QUIET_SECONDS = 120.0  # no batch is planned for so long: no task is working


@task(name="plan-file", task_run_name="plan {part.path}", tags=["batches"])
def plan_file(part: Shard, blocks: Blocks, beside: Path | None) -> Planned:
    """Plan one file of a job. Prefect never retries this task: the run plans the rows that it left."""
    with task_environment(blocks, beside) as here:
        return plan_shard(here, part)


#: The function that the driver wants to be called while tasks plan for it. A flow must not hold this function: Prefect
#: stores a flow's parameters, and tasks take a flow with its closures along to other processes.
_meanwhile: ContextVar[Callable[[], None]] = ContextVar("meanwhile")


def submit_planned() -> None:
    """Let the driver submit the batches planned so far. Raises if the driver is asked to stop."""
    _meanwhile.get()()


@flow(name="plan-files")
def plan_files(parts: list[Shard], blocks: Blocks, beside: Path | None) -> list[Planned]:
    """Plan the files of a source, each in a task, and return those that were planned."""
    with environment.database(blocks, beside=beside) as database:

        def look() -> tuple[object, float]:
            submit_planned()
            with database.read() as conn:
                return sum(batches_by_state(conn, parts[0].run_id).values()), QUIET_SECONDS

        tasks = [plan_file.submit(part, blocks, beside) for part in parts]
        wait_for(tasks, look)
    ended = [result_of(each, part.path, LEFT) for each, part in zip(tasks, parts, strict=True)]
    return [planned for planned in ended if planned is not None]


def shard_runner(blocks: Blocks, database: Database) -> ShardRunner | None:
    """Return the function that plans files in tasks; None if BATCH_TASK_RUNNER is not set or cannot be used."""
    chosen = usable_runner(INSTEAD)
    if chosen is None:
        return None

    def share(parts: list[Shard], meanwhile: Callable[[], None]) -> list[Planned]:
        token = _meanwhile.set(meanwhile)
        try:
            return plan_files.with_options(task_runner=chosen)(parts, blocks, database.file)
        except PipelineError:
            raise
        except Exception as exc:  # noqa: BLE001  # a failure of the tasks: the run does their work
            log_runner_failure(exc, INSTEAD)
            return []
        finally:
            _meanwhile.reset(token)

    return share
