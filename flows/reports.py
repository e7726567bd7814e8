"""Write the page of a run that has ended into a folder, without keys and texts. Edge: SQL, files."""

import logging
import os
import shlex
from pathlib import Path

from pipeline.driver.job_of_run import stored_job
from pipeline.report.page.file import write
from pipeline.report.page.page import Wanted, report_page
from pipeline.state.database import Database
from pipeline.state.jobs import JobRecord
from pipeline.state.runs import RunRecord

FOLDER = "BATCH_REPORTS"  # the folder of the pages
ADDRESS = "BATCH_REPORTS_URL"  # where a browser finds them, as `https://files.example.com/batches/{file}`


def written_report(database: Database, job_record: JobRecord, run: RunRecord) -> str | None:
    """Write the page of a run, and return its address. An earlier page of the same run is replaced.

    None if BATCH_REPORTS is not set, or if the page cannot be written: the log says why, and the flow continues.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    path = Path(folder) / f"{job_record.name}-run-{run.id}.html"
    try:
        page = report_page(database, job_record, stored_job(run), Wanted(run.id, texts=False), _command)
        write(path, page, overwrite=True)
    except Exception as exc:  # noqa: BLE001  # only showing failed
        logging.getLogger("pipeline.flows").warning("no report of run %d of %s: %s", run.id, job_record.name, exc)
        return None
    pattern = os.environ.get(ADDRESS)
    return path.resolve().as_uri() if not pattern else pattern.replace("{file}", path.name)


def _command(*words: str) -> str:
    return shlex.join(["batch-pipeline", *words])
