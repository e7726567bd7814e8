"""Files that requests name: put up once through the Files API, remembered, and removed when nothing needs them.

A file is known by its content, so 10,000 rows about one document put it up once. It is noted after the API has taken
it: if we die between the two, the next planning puts it up again, and the first one stays at the API, unused.
"""

import threading

from pipeline.driver.driver import Driver
from pipeline.errors import RowProblem
from pipeline.events.runs import Uploaded
from pipeline.request.media import Content
from pipeline.state.files import add_file, forget_file, uploaded_file


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
            file_id = uploaded_file(conn, driver.job_id, driver.account_id, content.sha256)
        if file_id is None or driver.api.has_file(file_id):
            return file_id
        with driver.database.write() as conn:
            forget_file(conn, file_id)
        return None

    def _put_up(self, content: Content) -> str:
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
