"""The API as a driver reaches it: the client is made at the first need. Edge: SQL, HTTP.

A run that finds nothing to do needs neither the API nor the SDK, whose import takes most of a second.
"""

import threading
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.driver.listing import Listing
from pipeline.state.database import Database

if TYPE_CHECKING:
    from pipeline.api.client import Api


class Line:
    """The way to the API: its client, our account there, its listing and its clock.

    It is opened when one of them is first asked for. Opening writes to the database, so open it before a transaction
    that writes; `Driver.connect` does this wherever a driver is about to work on something.
    """

    def __init__(
        self,
        open_api: "Callable[[], tuple[Api, int]]",
        database: Database,
        local_now: Callable[[], datetime],
        api_now: Callable[[], datetime] | None = None,
        account_id: int | None = None,
    ) -> None:
        """open_api: connects to the API and returns the client and the number of our account; it may raise.

        api_now: the time by the API's clock, as another process has told it; None: only the API can tell it.
        account_id: the number of our account, in the same way.
        """
        self._open_api, self._database, self._local_now, self._api_now = open_api, database, local_now, api_now
        self._account_id = account_id
        self._opening = threading.Lock()  # the thread that submits and the one that plans may both need it first
        self._opened: tuple[Api, int, Listing] | None = None

    def open(self) -> "tuple[Api, int, Listing]":
        """Connect to the API unless this was done before. Raises as `Environment.api`."""
        with self._opening:
            if self._opened is None:
                api, account_id = self._open_api()
                self._opened = api, account_id, Listing(api, self._database, account_id)
            return self._opened

    def learn_time(self) -> None:
        """Connect to the API, unless the time by its clock is known already. Raises as `Environment.api`."""
        if self._api_now is None:
            self.open()

    @property
    def api(self) -> "Api":
        """Return the client of the API."""
        return self.open()[0]

    @property
    def account_id(self) -> int:
        """Return the number of our account at the API."""
        return self.open()[1] if self._opened is not None or self._account_id is None else self._account_id

    @property
    def listing(self) -> Listing:
        """Return the API's listing of batches."""
        return self.open()[2]

    def now(self) -> datetime:
        """Return the time by the API's clock; by this machine's while the API was not needed and nobody has told it."""
        if self._opened is not None:
            return self._opened[0].now()
        return self._local_now() if self._api_now is None else self._api_now()
