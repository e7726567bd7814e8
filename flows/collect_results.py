"""Do one sweep over all open runs as a Prefect flow, as `batch-pipeline collect` does. Edge: SQL, HTTP, files.

The flow is for a schedule. It ends in seconds when nothing is due. Any number of sweeps may run at once, and any of
them may be killed.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import environment
from flows.collect_tasks import collect_in_tasks
from flows.environment import Blocks
from flows.states import sweep_state
from flows.tool_tasks import with_tool_tasks
from flows.watch import Watch, note_told
from pipeline.errors import PipelineError
from pipeline.runner.sweep import sweep
from pipeline.state.database import Database


def run_name() -> str:
    """Return `sweep 2026-11-20 04:10`, with the time for which the flow was scheduled, in UTC."""
    return f"sweep {environment.scheduled():%Y-%m-%d %H:%M}"


@flow(name="collect-results", flow_run_name=run_name, on_completion=[note_told], on_failure=[note_told])
def collect_results(
    job: str | None = None, api_key_block: str | None = None, database_url_block: str | None = None
) -> State[list[dict[str, Any]]]:
    """Poll the batches at the API, collect those that have ended, and send those that are due; plan no new rows.

    A run that ends badly fails the sweep in which it ends, once, after the work for all jobs is done. If that sweep
    dies before Prefect has its state, the next sweep fails instead.

    Args:
        job: One job only: its file, or its name. Leave it out to sweep all jobs of the state database.
        api_key_block: Name of a Secret block with the API key, for a worker without ANTHROPIC_API_KEY.
        database_url_block: Name of a Secret block with the URL of the state database, without BATCH_DATABASE_URL.
    """
    blocks = Blocks(api_key_block, database_url_block)
    try:
        file, name = (None, None) if job is None else environment.named(job)
        url = environment.database_url(blocks, beside=file)
        if not Database.exists(url):  # the first sweeps may come before the first run
            return Completed(name="Nothing due", message="there is no state database yet: no job has been run", data=[])
        with environment.database(blocks, beside=file) as database:
            watch = Watch(database)
            with environment.driving_in(database, blocks, tell=watch.tell) as here:
                watch.moved |= collect_in_tasks(here, blocks, name)
                swept = sweep(with_tool_tasks(here, blocks), name)
            ended = watch.untold(name)
            watch.show(sorted(watch.moved | {run.job for run in ended}))
            state = sweep_state(swept, ended)
            watch.announce(ended)
            return state
    except PipelineError as exc:
        return Failed(message=str(exc))


if __name__ == "__main__":
    collect_results()
