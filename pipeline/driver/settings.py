"""The settings of a driver, from environment variables."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError


@dataclass(frozen=True)
class Settings:
    """How long a driver waits for what, in seconds."""

    timeout: float = 600.0  #: one HTTP call
    grace: float = 300.0  #: until a batch shows in the API's listing at the latest
    lease: float = 120.0
    poll: float | None = None  #: between polls of a batch; None: as the API says, growing to 60
    max_in_flight: int = 200_000  #: requests at the API at a time, of all jobs of the database together
    monthly_budget: float | None = None  #: US dollars that all jobs of the database may cost in a calendar month (UTC)

    @classmethod
    def from_environment(cls, *, poll_seconds: float | None = None, grace: float | None = None) -> "Settings":
        """BATCH_TIMEOUT_SECONDS, BATCH_GRACE_SECONDS, BATCH_LEASE_SECONDS, BATCH_POLL_SECONDS, BATCH_MAX_IN_FLIGHT.

        And BATCH_MONTHLY_BUDGET_USD. What is given wins over the environment. Raises InputError for what is no number.
        """
        return cls(
            timeout=_seconds("BATCH_TIMEOUT_SECONDS", cls.timeout, least=1.0),
            grace=_seconds("BATCH_GRACE_SECONDS", cls.grace if grace is None else grace),
            lease=_seconds("BATCH_LEASE_SECONDS", cls.lease, least=1.0),
            poll=_seconds("BATCH_POLL_SECONDS", None) if poll_seconds is None else poll_seconds,
            max_in_flight=_requests("BATCH_MAX_IN_FLIGHT", cls.max_in_flight),
            monthly_budget=_dollars("BATCH_MONTHLY_BUDGET_USD"),
        )

    def warning(self) -> str | None:
        """Return what is unsafe about these settings at the API, as a sentence; None if nothing is."""
        if self.grace >= self.lease:
            return None
        return (
            f"BATCH_GRACE_SECONDS={self.grace:g} is less than BATCH_LEASE_SECONDS={self.lease:g}: a driver that has "
            "lost its lease may still be sending when the API's listing is taken for complete, and a batch may be paid "
            f"twice; set BATCH_GRACE_SECONDS to {self.lease:g} or more"
        )


def _seconds(name: str, default: Any, least: float = 0.0) -> Any:
    value = _number(name, lambda seconds: seconds >= least, f"seconds, {least:g} or more")
    return default if value is None else value


def _dollars(name: str) -> float | None:
    return _number(name, lambda usd: usd > 0, "US dollars, more than 0")


def _number(name: str, fits: Callable[[float], bool], of: str) -> float | None:
    """A finite number in the environment; None when there is none. of: of what, and which ones fit, in words."""
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise InputError(f"{name}={text!r}: this must be a number of {of}")
    return value


def _requests(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{name}={text!r}: this must be a number of requests, 1 or more")
    return int(text)
