"""Send a job's new rows as a Prefect flow; with `wait`, stay until all have answers. Edge: SQL, HTTP, files.

    python -m flows.run_job sample_data/jobs/summarize_documents.yaml

This command needs no server: Prefect starts one for the run. The flow calls the function that `batch-pipeline run`
calls. The work does not depend on Prefect's state: if the flow is killed at any point, the same flow, the same command
or the next sweep continues it.
"""

import argparse
import logging
from typing import Annotated, Any

from prefect import Flow, flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from flows import environment
from flows.environment import Blocks
from flows.plan_tasks import shard_runner
from flows.standing import title
from flows.states import run_state
from flows.tool_tasks import with_tool_tasks
from flows.watch import Watch, note_told, run_logger
from pipeline.errors import PipelineError
from pipeline.job.load import load
from pipeline.runner.options import Finished, Options
from pipeline.runner.run import run
from pipeline.state.jobs import known_job
from pipeline.steps import cancel

JobFile = Annotated[str, Field(min_length=1)]
Limit = Annotated[int, Field(ge=1)]


def run_name() -> str:
    """Return `ticket_triage 2026-11-20`, from the parameters; the parameter `job` if it is not a file with a job."""
    parameters = flow_run.parameters
    try:
        day = environment.day(parameters.get("time_zone") or "UTC")
        file = environment.job_file(parameters["job"])
        loaded = load(file, variables=parameters.get("vars") or {}, today=day)
        return title(loaded.name, loaded.vars, day)
    except PipelineError:
        return str(parameters["job"])


def cancel_batches(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the job's batches after a person canceled the flow, if the flow was given cancel_batches_on_cancel."""
    given = flow_run.parameters
    if not given.get("cancel_batches_on_cancel"):
        return
    file, name = environment.named(given["job"])
    blocks = Blocks(given.get("api_key_block"), given.get("database_url_block"))
    emulated = bool(given.get("emulator"))
    with environment.database(blocks, beside=file, emulated=emulated) as database:
        job_record = known_job(database, name)
        watch = Watch(database)
        with environment.driving_in(database, blocks, tell=watch.tell, emulated=emulated) as here:
            cancel.cancel(here, job_record)


@flow(
    name="run-job",
    flow_run_name=run_name,
    on_completion=[note_told],
    on_failure=[note_told],
    on_cancellation=[cancel_batches],
)
def run_job(
    job: JobFile,
    vars: dict[str, str] | None = None,
    limit: Limit | None = None,
    wait: bool = False,
    dry_run: bool = False,
    no_canary: bool = False,
    time_zone: str = "UTC",
    cancel_batches_on_cancel: bool = False,
    api_key_block: str | None = None,
    database_url_block: str | None = None,
    emulator: bool = False,
) -> State[dict[str, Any]]:
    """Send the rows of a job that have no answer yet, or have changed. Answered rows are not sent again.

    Ends as **Submitted** once all rows are sent; `collect_results` finishes it. Two flows of one job share the work.

    Args:
        job: The job file, relative to the project, for example `jobs/ticket_triage.yaml`; or its name after a run.
        vars: Values for the job's vars instead of the file's, for example `{"run_date": "2026-11-20"}`.
        limit: Only the first rows of the source.
        wait: Stay until every row has its outcome. This occupies a worker all that time: for small jobs and laptops.
        dry_run: Only show what a run would send and cost.
        no_canary: Send all rows at once, even with a recipe that has never succeeded.
        time_zone: Time zone of `today`, the day of the scheduled start. Give the schedule's time zone.
        cancel_batches_on_cancel: When this run is canceled, cancel the job's batches at the API, too.
        api_key_block: Name of a Secret block with the API key, for a worker without ANTHROPIC_API_KEY.
        database_url_block: Name of a Secret block with the URL of the state database, without BATCH_DATABASE_URL.
        emulator: Use an emulator started for this run: no key, no network, no cost.
    """
    blocks = Blocks(api_key_block, database_url_block)
    try:
        file = environment.file_of(job, blocks)
        loaded = load(file, variables=vars or {}, today=environment.day(time_zone))
        with environment.database(blocks, beside=file, emulated=emulator) as database:
            watch = Watch(database)
            with environment.driving_in(database, blocks, tell=watch.tell, emulated=emulator) as here:
                # an emulator started for this run is known to this process alone, and so is its database
                share = None if emulator else shard_runner(blocks, database)
                drives = here if emulator else with_tool_tasks(here, blocks)
                options = Options(limit=limit, detach=not wait, dry_run=dry_run, canary=not no_canary, share=share)
                finished = run(loaded, drives, options, file=file)
            return ended_state(watch, loaded.name, finished)
    except PipelineError as exc:
        return Failed(message=str(exc))


def ended_state(watch: Watch, job: str, finished: Finished) -> State[dict[str, Any]]:
    """Show the artifacts of a flow that has driven one run or made a quote, and return the state in which it ends."""
    if finished.run_id is None:  # nothing was sent: the flow only asked for the quote
        watch.show_quote(job)
        lines = [" ".join(line.split()) for line in watch.quote_lines()]
        return Completed(name="Quoted", message="; ".join([*lines, *watch.reasons]))
    watch.show(sorted({*watch.moved, job}))
    mine = watch.of(finished.run_id)
    ended = [watch.of(end.run_id) for end in (*finished.earlier, *finished.meanwhile)]
    for other in ended:
        level = logging.INFO if other.is_well else logging.ERROR
        run_logger().log(level, "%s", other.sentence)
    state = run_state(mine, [other for other in ended if not other.is_well])
    watch.announce([mine, *ended])
    if watch.reasons:  # why rows that a person may have wanted were not sent again
        state.message = "; ".join(filter(None, [state.message, *watch.reasons]))
    return state


def main() -> int:
    """Run one job from the command line; return exit code 0 if the flow completed, else 1."""
    parser = argparse.ArgumentParser(description="Run a job as a Prefect flow, without a server.")
    parser.add_argument("job")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--emulator", action="store_true", help="use an emulator: no key, no cost")
    given = parser.parse_args()
    state = run_job(given.job, limit=given.limit, wait=True, emulator=given.emulator, return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    raise SystemExit(main())
