"""Read the state of many of our open batches from one call for the API's listing. Edge: HTTP, SQL."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.errors import Stopped
from pipeline.state.batches import due_at_the_api
from pipeline.state.database import Database

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch

    from pipeline.api.client import Api

LEAST = 5  # the fewest due batches for which the listing is read
FOR_EACH = 100  # the most batches that are read per batch of ours: others in the workspace may have many more
FRESH = timedelta(seconds=30)  # for so long what was read is used
SKEW = timedelta(minutes=10)  # how much earlier than our intent the created_at of a batch may be


class Listing:
    """The due batches of all jobs, as the API's listing has them.

    The listing is read when a batch is first asked for. Each batch that was read is given once; when it is asked for
    again, or what was read is older than FRESH, the listing is read again.
    """

    def __init__(self, api: "Api", database: Database, account_id: int) -> None:
        """account_id: the account of the batches; an API key lists only the batches of its workspace."""
        self._api, self._database, self._account_id = api, database, account_id
        self._wanted: set[str] = set()
        self._found: dict[str, MessageBatch] = {}
        self._read_at = datetime.min.replace(tzinfo=UTC)

    def take(self, api_id: str) -> "MessageBatch | None":
        """Return the batch as the listing had it; None if it has to be retrieved by a call of its own.

        None does not prove that the batch is missing at the API: only a 404 of that call does.
        """
        if api_id not in self._wanted or self._api.now() > self._read_at + FRESH:
            self._read()
        self._wanted.discard(api_id)
        return self._found.pop(api_id, None)

    def _read(self) -> None:
        self._read_at = self._api.now()
        with self._database.read() as conn:
            due = due_at_the_api(conn, self._account_id, self._read_at)
        self._wanted, self._found = {batch.api_id for batch in due}, {}
        if len(due) < LEAST:
            return
        oldest = min(batch.started_at for batch in due) - SKEW
        with suppress(Stopped):  # what was read so far is used; the remaining batches are retrieved one by one
            for listed in islice(self._api.newest_batches(), FOR_EACH * len(due)):
                if listed.created_at < oldest:
                    break
                if listed.id in self._wanted:
                    self._found[listed.id] = listed
                if len(self._found) == len(due):
                    break
