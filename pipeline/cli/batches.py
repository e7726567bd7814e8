"""`batches`: which batches does a job have, and which does the API list?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.opening import heavy_imports, open_environment, open_known_job
from pipeline.cli.options import EVERYWHERE, JobArgument, SharedOptions, takes
from pipeline.cli.terminal import put, put_json, say_next

if TYPE_CHECKING:
    from collections.abc import Iterator


@takes(*EVERYWHERE)
def batches(
    job: JobArgument,
    remote: Annotated[
        bool,
        typer.Option("--remote", help="List all batches of the account at the API, those of others too."),
    ] = False,
    *,
    shared: SharedOptions,
) -> None:
    """List the batches of a job: our number, the API's id, state, counts, age and cost."""
    if remote:
        facts, lines = _remote(job, shared)
    else:
        facts, lines = _local(job, shared)
    if shared.as_json:
        for batch in facts:
            put_json({"event": "remote_batch" if remote else "batch", **batch})
        return
    for line in lines:
        put(line)
    say_next("status", job)


def _local(job: str, shared: SharedOptions) -> "tuple[list[dict[str, Any]], Iterator[str]]":
    """Return the job's batches as the database has them: facts and lines."""
    from datetime import UTC, datetime

    from pipeline.report.batches import batch_facts, batch_lines

    with open_known_job(job, shared) as (database, job_record), database.read() as conn:
        facts = batch_facts(conn, job_record.id, datetime.now(UTC))
    return facts, batch_lines(facts)


def _remote(job: str, shared: SharedOptions) -> "tuple[list[dict[str, Any]], Iterator[str]]":
    """Return all batches of the account that the job uses, as the API lists them: facts and lines."""
    with heavy_imports():
        from pipeline.report.batches import remote_facts, remote_lines

    with (
        open_known_job(job, shared) as (database, job_record),
        open_environment(database, shared, job=job) as environment,
    ):
        with environment.api(environment.endpoint_of(job_record)) as (api, _):
            listed, now = list(api.newest_batches()), api.now()
        with database.read() as conn:
            facts = remote_facts(conn, listed, now)
    return facts, remote_lines(facts)
