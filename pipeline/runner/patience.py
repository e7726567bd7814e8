"""How long does a run bear with an API that does not answer?"""

from collections.abc import Callable
from datetime import datetime

from pipeline.driver.driver import Driver
from pipeline.errors import ApiUnreachable
from pipeline.events.runs import Unreachable

RETRY_SECONDS = 5.0  # after the API did not answer; doubles up to the longest wait
LONGEST_WAIT = 60.0


class Patience:
    """Does the steps of a run, and waits when the API does not answer: for as long as one call may take."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._failing_since: datetime | None = None  # None: the last step found the API
        self._wait = RETRY_SECONDS

    def do(self, step: Callable[[], None]) -> None:
        """Do a step. Raises ApiUnreachable when the API has not answered for too long; before that, waits and returns.

        The caller does the step again in its next round.
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
