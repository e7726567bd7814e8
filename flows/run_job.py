"""Take a job to its end as a Prefect flow: plan, submit, poll, collect.

    python -m flows.run_job sample_data/jobs/summarize_documents.yaml

needs no server: Prefect starts one for the run. The flow calls what `batch-pipeline run` calls. Prefect's state does
not matter for it: killed anywhere, the same flow, or the same command, just continues.
"""

import argparse
import logging
import os
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from pipeline import report, where
from pipeline.database import Database, default_url
from pipeline.errors import PipelineError
from pipeline.job import load
from pipeline.run import Finished, Options, run

logger = logging.getLogger("pipeline.flows")


@flow(name="run-job", flow_run_name="{job.stem}")
def run_job(
    job: Path,
    variables: dict[str, str] | None = None,
    limit: int | None = None,
    wait: bool = True,
    dry_run: bool = False,
    emulator: bool = False,
) -> State[dict[str, Any]]:
    """Run a job file.

    job: its path; variables: override its vars; limit: only the first rows of the source; wait: stay until every row
    has its outcome, else end when all is submitted; dry_run: only say what it would send and cost; emulator: answer by
    the emulator, with no key and no bill. BATCH_DATABASE_URL is the state database, else it is beside the job file.
    """
    logging.getLogger("pipeline").setLevel(logging.INFO)  # PREFECT_LOGGING_EXTRA_LOGGERS adds a handler, never a level
    try:
        loaded = load(job, variables=variables or {}, today=_today())
        url = os.environ.get("BATCH_DATABASE_URL") or default_url(job.parent, emulated=emulator)
        options = Options(limit=limit, detach=not wait, dry_run=dry_run)
        with closing(Database(url)) as database:
            spool = os.environ.get("BATCH_SPOOL")
            with where.at(database, spool=spool, emulated=emulator, tell=_Log().tell) as here:
                finished = run(loaded, here, options, file=job)
    except PipelineError as exc:
        return Failed(message=str(exc))
    return _state(loaded.name, finished)


def _today() -> date:
    """The day of the scheduled start, so that a late run takes the right partition; without a schedule the UTC date."""
    scheduled = cast("datetime | None", flow_run.get_scheduled_start_time())  # outside of a run there is none
    return (scheduled or datetime.now(UTC)).astimezone(UTC).date()


class _Log:
    """Tells the run's log what the driver does."""

    def __init__(self) -> None:
        self._waiting: object = None

    def tell(self, event: str, **facts: Any) -> None:
        """One event of the driver; that it still waits for the same is said once."""
        if event == "waiting":
            if facts["progress"] == self._waiting:
                return
            self._waiting = facts["progress"]
        lines = report.quote_lines(facts["quote"]) if event == "quote" else [report.event_line(event, facts)]
        for line in lines:
            logger.info("%s", line)


def _state(name: str, finished: Finished) -> State[dict[str, Any]]:
    facts = {"run_id": finished.run_id, "state": finished.state, "rows": finished.rows, "cost_usd": finished.cost_usd}
    said = f"{name}: {report.counts_line(finished.rows)}, {report.money(finished.cost_usd)}"
    if finished.exit_code != 0:
        return Failed(message=f"{said}; batch-pipeline errors {name}", data=facts)
    if finished.state == "open":
        return Completed(
            name="Submitted", message=f"{said}; batch-pipeline collect {name} takes it to its end", data=facts
        )
    return Completed(message=said, data=facts)


def main() -> int:
    """Run one job from the command line; 0 when all went well."""
    parser = argparse.ArgumentParser(description="Run a job as a Prefect flow, without a server.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--emulator", action="store_true", help="answer by the emulator: no key, no bill")
    given = parser.parse_args()
    state = run_job(given.job, limit=given.limit, emulator=given.emulator, return_state=True)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    raise SystemExit(main())
