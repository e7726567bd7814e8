"""Delete uploaded files at the API that are no longer needed. Edge: SQL, HTTP."""

from pipeline.driver.driver import Driver
from pipeline.errors import NotFound, Stopped
from pipeline.events.runs import FileNotRemoved, FileRemoved
from pipeline.state.files import files_to_delete, forget_file, has_files, mark_files_done
from pipeline.state.runs import last_run


def delete_files_due(driver: Driver) -> None:
    """Delete the job's files at the API that are to be deleted; a file that cannot be deleted now is tried again."""
    with driver.reading() as conn:
        if not has_files(conn, driver.job_id):
            return
        last = last_run(conn, driver.job_id)
    driver.connect()
    with driver.database.write() as conn:
        if last is not None and last.deletes_remote:
            mark_files_done(conn, driver.job_id)
        due = files_to_delete(conn, driver.job_id, driver.account_id)
    for file_id in due:
        driver.stop.check()
        try:
            driver.api.delete_file(file_id)
        except NotFound:
            pass  # it is deleted already
        except Stopped as exc:
            driver.tell(FileNotRemoved(file_id=file_id, problem=str(exc)))
            continue
        with driver.database.write() as conn:
            forget_file(conn, file_id)
        driver.tell(FileRemoved(file_id=file_id))
