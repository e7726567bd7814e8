"""Send failed rows again as a Prefect flow, as `batch-pipeline retry` does. Edge: SQL, HTTP, files."""

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from flows import environment
from flows.environment import Blocks
from flows.run_job import JobFile, cancel_batches, ended_state
from flows.tool_tasks import with_tool_tasks
from flows.watch import Watch, note_told, run_logger
from pipeline.errors import InputError, PipelineError
from pipeline.escapes import inline
from pipeline.job.load import load
from pipeline.planning.quote import Quote
from pipeline.planning.selection import Selection, change, left_out
from pipeline.runner.options import Options
from pipeline.runner.run import run
from pipeline.sink.table import ResultsTable
from pipeline.state.database import Database
from pipeline.state.jobs import job_file_of, known_job
from pipeline.state.runs import last_run

Status = Literal["errored", "expired", "truncated", "refused", "unparsable", "invalid", "canceled", "lost", "succeeded"]


def run_name() -> str:
    """Return `ticket_triage again`; the parameter `job` stands for the name if the job file cannot be read."""
    job = str(flow_run.parameters["job"])
    try:
        _, name = environment.named(job)
    except PipelineError:
        name = job
    return f"{name} again"


@flow(
    name="reprocess-failed",
    flow_run_name=run_name,
    on_completion=[note_told],
    on_failure=[note_told],
    on_cancellation=[cancel_batches],
)
def reprocess_failed(
    job: JobFile,
    status: Status | list[Status] | None = None,
    error_type: list[str] | None = None,
    key: list[str] | None = None,
    where: str | None = None,
    set: list[str] | None = None,
    vars: dict[str, str] | None = None,
    wait: bool = False,
    dry_run: bool = False,
    time_zone: str = "UTC",
    cancel_batches_on_cancel: bool = False,
    api_key_block: str | None = None,
    database_url_block: str | None = None,
) -> State[dict[str, Any]]:
    """Send failed rows of a job again, with their present values in the source. A dry run shows the quote first.

    A row must meet all conditions. The summary of a job names the conditions for each cause of failure.

    Args:
        job: The job file, relative to the project, or the name of a job that the state database knows.
        status: Only rows with this status, or with one of a list. Empty: all failed rows except canceled and lost ones.
        error_type: Only rows with these error types, for example `overloaded_error`.
        key: Only rows with these keys. Separate the values of several key columns by commas.
        where: Only rows whose answers meet this SQL predicate, for example `attempts < 5`.
        set: Change the request, each as `FIELD=VALUE`, for example `request.max_tokens=1000`.
        vars: Values for the job's vars. Those left out are as in the job's last run.
        wait: Stay until every row has its outcome. This occupies a worker all that time.
        dry_run: Only show what would be sent and what it would cost.
        time_zone: Time zone of `today`, the day of the scheduled start.
        cancel_batches_on_cancel: When this run is canceled, cancel the job's batches at the API, too.
        api_key_block: Name of a Secret block with the API key, for a worker without ANTHROPIC_API_KEY.
        database_url_block: Name of a Secret block with the URL of the state database, without BATCH_DATABASE_URL.
    """
    try:
        wanted = Selection(
            statuses=(status,) if isinstance(status, str) else tuple(status or ()),
            error_types=tuple(error_type or ()),
            keys=tuple(key or ()),
            where=where,
            changes=dict(change(pair) for pair in set or ()),
        )
        blocks = Blocks(api_key_block, database_url_block)
        return _send_again(job, wanted, blocks, vars or {}, time_zone, wait=wait, dry_run=dry_run)
    except PipelineError as exc:
        return Failed(message=str(exc))


def _send_again(
    job: str,
    wanted: Selection,
    blocks: Blocks,
    variables: dict[str, str],
    time_zone: str,
    *,
    wait: bool,
    dry_run: bool,
) -> State[dict[str, Any]]:
    """Run the job for the selected rows, and return the state that the flow ends in. The parameters are the flow's."""
    file, name = environment.named(job)
    if not Database.exists(environment.database_url(blocks, beside=file)):
        raise InputError("there is no state database yet: run the job first")
    with environment.database(blocks, beside=file) as database:
        job_record = known_job(database, name)
        environment.refuse_trial(job_record)
        path = file or job_file_of(job_record)
        with database.read() as conn:
            last = last_run(conn, job_record.id)
        before = None if last is None else last.vars
        loaded = load(path, variables=variables, today=environment.day(time_zone), before=before)
        sink, watch = ResultsTable.of(job_record), Watch(database)

        def say_what_stays(quote: Quote) -> bool:
            with database.read() as conn:
                watch.reasons = left_out(conn, job_record.id, sink, wanted, quote)
            for reason in watch.reasons:
                run_logger().info("%s", inline(reason))
            return not dry_run

        with environment.driving_in(database, blocks, tell=watch.tell) as here:
            options = Options(retry=wanted, detach=not wait, confirm=say_what_stays)
            finished = run(loaded, with_tool_tasks(here, blocks), options, file=path)
        return ended_state(watch, name, finished)
