"""Planning as tasks, one for each file of the source, where a task runner is set. What fails, the run plans itself."""

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

from prefect import flow, task
from prefect.futures import PrefectFuture

from flows import environment
from flows.collect_tasks import at_work, is_done, say_of_runner, usable_runner, wait_for
from flows.environment import Blocks
from flows.watch import run_logger
from pipeline.errors import PipelineError
from pipeline.planning.shards import Planned, Shard, ShardRunner, plan_shard
from pipeline.state.batches import batches_by_state
from pipeline.state.database import Database

INSTEAD = "this run plans by itself"
QUIET_SECONDS = 120.0  # in which no batch is planned: then nobody is at work there


@task(name="plan-file", task_run_name="plan {part.path}", tags=["batches"])
def plan_file(part: Shard, blocks: Blocks, beside: Path | None) -> Planned:
    """Plan one file of a job. Never tried again by Prefect: its run does what it left."""
    with at_work(blocks, beside) as here:
        return plan_shard(here, part)


#: What the driver whose planning is shared wants called meanwhile. No flow may hold it, be it as a parameter, which
#: Prefect stores, or in a closure: tasks take their flow along to other processes.
_meanwhile: ContextVar[Callable[[], None]] = ContextVar("meanwhile")


def call_back() -> None:
    """Let the driver submit what has been planned; raises when it is asked to stop."""
    _meanwhile.get()()


@flow(name="plan-files")
def plan_files(parts: list[Shard], blocks: Blocks, beside: Path | None) -> list[Planned]:
    """Plan the files of a source, each as a task."""
    with environment.database(blocks, beside=beside) as database:

        def look() -> tuple[object, float]:
            call_back()
            with database.read() as conn:
                return sum(batches_by_state(conn, parts[0].run_id).values()), QUIET_SECONDS

        tasks = [plan_file.submit(part, blocks, beside) for part in parts]
        wait_for(tasks, look)
    return [planned for each, part in zip(tasks, parts, strict=True) if (planned := _result(each, part))]


def sharing(blocks: Blocks, database: Database) -> ShardRunner | None:
    """How a run shares its planning: by BATCH_TASK_RUNNER; None when that is not set, or cannot be used."""
    chosen = usable_runner(INSTEAD)
    if chosen is None:
        return None

    def share(parts: list[Shard], meanwhile: Callable[[], None]) -> list[Planned]:
        token = _meanwhile.set(meanwhile)
        try:
            return plan_files.with_options(task_runner=chosen)(parts, blocks, database.file)
        except PipelineError:
            raise
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is about tasks, which nothing hangs on
            say_of_runner(exc, INSTEAD)
            return []
        finally:
            _meanwhile.reset(token)

    return share


def _result(future: PrefectFuture[Planned], part: Shard) -> Planned | None:
    if not is_done(future):
        run_logger().warning("%s: its task has come to no end", part.path)
        return None
    try:
        return future.result()
    except Exception as exc:  # noqa: BLE001  # of the task, or of the worker that it was on
        run_logger().warning("%s: its task failed: %s: %s", part.path, type(exc).__name__, exc)
        return None
