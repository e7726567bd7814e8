"""Files that requests name: put up once through the Files API, remembered, and removed when nothing needs them.

A file is known by its content, so 10,000 rows about one document put it up once. It is noted after the API has taken
it: if we die between the two, the next planning puts it up again, and the first one stays at the API, unused.
"""

import threading

from pipeline import store
from pipeline.api import NotFound
from pipeline.attachments import Content
from pipeline.driver import Driver
from pipeline.errors import Stopped
from pipeline.templates import RowProblem


class Uploads:
    """Puts files up for one planning."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ids: dict[str, str] = {}
        self._refused: dict[str, RowProblem] = {}
        self._lock = threading.Lock()

    def __call__(self, content: Content) -> str:
        """The id of the file with this content at the API. Raises RowProblem when it is not taken, or Stopped."""
        with self._lock:
            if content.sha256 in self._refused:
                raise self._refused[content.sha256]
            if content.sha256 not in self._ids:
                try:
                    self._ids[content.sha256] = self._known(content) or self._put_up(content)
                except RowProblem as exc:
                    self._refused[content.sha256] = exc
                    raise
            return self._ids[content.sha256]

    def _known(self, content: Content) -> str | None:
        """The id of one that was put up before and is still there."""
        driver = self._driver
        with driver.reading() as conn:
            known = store.file_of(conn, driver.job_id, driver.account_id, content.sha256)
        if known is None:
            return None
        if driver.api.has_file(known.file_id):
            return str(known.file_id)
        with driver.database.write() as conn:
            store.forget_file(conn, known.file_id)
        return None

    def _put_up(self, content: Content) -> str:
        driver = self._driver
        file_id = driver.api.upload(content.name, content.data, content.media_type)
        facts = {"sha256": content.sha256, "media_type": content.media_type, "size_bytes": len(content.data)}
        with driver.database.write() as conn:
            store.add_file(
                conn,
                job_id=driver.job_id,
                account_id=driver.account_id,
                file_id=file_id,
                created_at=driver.now(),
                **facts,
            )
        driver.tell("uploaded", file_id=file_id, bytes=len(content.data))
        return file_id


def delete_due(driver: Driver) -> None:
    """Remove the job's files at the API that are to be removed; one that cannot be removed now is tried again."""
    with driver.reading() as conn:
        if not store.has_files(conn, driver.job_id):
            return
        last = store.last_run(conn, driver.job_id)
    with driver.database.write() as conn:
        if last is not None and last.job.get("privacy", {}).get("delete_remote"):
            store.mark_files_done(conn, driver.job_id)
        due = store.files_to_delete(conn, driver.job_id, driver.account_id)
    for file_id in due:
        driver.stop.check()
        try:
            driver.api.delete_file(file_id)
        except NotFound:
            pass  # somebody else removed it
        except Stopped as exc:
            driver.tell("file_not_removed", file_id=file_id, problem=str(exc))
            continue
        with driver.database.write() as conn:
            store.forget_file(conn, file_id)
        driver.tell("file_removed", file_id=file_id)
