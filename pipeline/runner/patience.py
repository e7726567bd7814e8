"""Retry the steps of a run while the API does not answer, for a limited time. Edge: HTTP."""

from collections.abc import Callable
from datetime import datetime

from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable
from pipeline.events.runs import Unreachable

RETRY_SECONDS = 5.0  # the first wait after the API did not answer; it doubles up to LONGEST_WAIT
LONGEST_WAIT = 60.0


class Patience:
    """Does the steps of a run. While the API does not answer, it waits, in total as long as one call may take."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._failing_since: datetime | None = None  # None: the API answered in the last step
        self._wait = RETRY_SECONDS

    def do(self, step: Callable[[], None]) -> None:
        """Do a step. If the API does not answer, wait and return; the caller does the step again in its next round.

        Raises ApiUnreachable when the API has not answered for settings.timeout seconds.
        """
        try:
            step()
        except ApiUnreachable as exc:
            now = self._driver.now()
            self._failing_since = self._failing_since or now
            if (now - self._failing_since).total_seconds() >= self._driver.settings.timeout:
                raise
            self._driver.tell(Unreachable(problem=str(exc), wait=self._wait))
            self._driver.stop.wait(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        else:
            self._failing_since, self._wait = None, RETRY_SECONDS
