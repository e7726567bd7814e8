"""What the API's listing says of our open batches: one call for many of them, instead of one for each."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice

from anthropic.types.messages import MessageBatch

from pipeline.api.client import Api
from pipeline.errors import Stopped
from pipeline.state.batches import due_at_the_api
from pipeline.state.database import Database

LEAST = 5  # batches to ask after that are worth a listing
FOR_EACH = 100  # batches that are read in it for each one of ours at most: others in the workspace may have many more
FRESH = timedelta(seconds=30)  # for so long what it says is believed
SKEW = timedelta(minutes=10)  # how much earlier than our intent a batch may say that it was created


class Listing:
    """Read when it is first asked, of all jobs together, and once for each time that a batch is asked after."""

    def __init__(self, api: Api, database: Database, account_id: int) -> None:
        """account_id: whose batches; a key lists those of its workspace alone."""
        self._api, self._database, self._account_id = api, database, account_id
        self._wanted: set[str] = set()
        self._found: dict[str, MessageBatch] = {}
        self._read_at = datetime.min.replace(tzinfo=UTC)

    def take(self, api_id: str) -> MessageBatch | None:
        """The batch as the listing had it; None when it has to be asked after alone. A 404 proves itself, not this."""
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
        with suppress(Stopped):  # what it has said so far holds; the others are asked after one by one
            for listed in islice(self._api.newest_batches(), FOR_EACH * len(due)):
                if listed.created_at < oldest:
                    break
                if listed.id in self._wanted:
                    self._found[listed.id] = listed
                if len(self._found) == len(due):
                    break
