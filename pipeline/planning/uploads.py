"""Upload the files that requests name by the Files API, each content once. Edge: HTTP, SQL.

A file is identified by the digest of its content, so 10,000 rows about one document upload it once. The file's id is
stored after the API has accepted the file: if we die between the two, the next planning uploads the file again, and the
first upload stays at the API, unused.
"""

import threading

from pipeline.driver.driver import Driver
from pipeline.errors import RowProblem
from pipeline.events.runs import Uploaded
from pipeline.request.media import Content
from pipeline.state.files import add_file, forget_file, uploaded_file


class Uploads:
    """Uploads files for one planning. Threads may share it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ids: dict[str, str] = {}
        self._refused: dict[str, RowProblem] = {}
        self._lock = threading.Lock()

    def __call__(self, content: Content) -> str:
        """Return the Files API id of this content, and upload it if needed.

        Raises RowProblem if the API refuses the file, and Stopped if the API cannot be used.
        """
        with self._lock:
            if content.sha256 in self._refused:
                raise self._refused[content.sha256]
            if content.sha256 not in self._ids:
                try:
                    self._ids[content.sha256] = self._known(content) or self._upload(content)
                except RowProblem as exc:
                    self._refused[content.sha256] = exc
                    raise
            return self._ids[content.sha256]

    def _known(self, content: Content) -> str | None:
        """Return the id of an earlier upload that is still at the API; None if there is none."""
        driver = self._driver
        with driver.reading() as conn:
            file_id = uploaded_file(conn, driver.job_id, driver.account_id, content.sha256)
        if file_id is None or driver.api.has_file(file_id):
            return file_id
        with driver.database.write() as conn:
            forget_file(conn, file_id)
        return None

    def _upload(self, content: Content) -> str:
        driver = self._driver
        file_id = driver.api.upload(content.name, content.data, content.media_type)
        facts = {"sha256": content.sha256, "media_type": content.media_type, "size_bytes": len(content.data)}
        with driver.database.write() as conn:
            add_file(
                conn,
                job_id=driver.job_id,
                account_id=driver.account_id,
                file_id=file_id,
                created_at=driver.now(),
                **facts,
            )
        driver.tell(Uploaded(file_id=file_id, bytes=len(content.data)))
        return file_id
