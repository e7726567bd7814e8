"""What time is it at the API? Its Date headers say so, carried on by a clock of this machine that cannot be set."""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from statistics import median_low

KEPT = 5  # the last Date headers; two of them may be wrong or late, and the time is still right
WITNESSED = 3  # how often a first Date counts if the wall clock agrees with it
AGREES = timedelta(seconds=60)  # the wall clock agrees with a Date within this
#: Dates have whole seconds and arrive after a while, so that they differ by up to this even if all are right.
RESOLUTION = timedelta(seconds=2)


def steady() -> datetime:
    """Return the time since this machine started, as a date. It runs while the machine sleeps, and cannot be set."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    seconds = time.monotonic() if boot is None else time.clock_gettime(boot)
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)


def wall() -> datetime:
    """Return the time of this machine's clock, which may be wrong, and may be set at any moment."""
    return datetime.now(UTC)


class ApiClock:
    """The API's time: the median of its last Date headers, each as an offset from the steady clock on arrival.

    The wall clock is read once, at the start: as the time until the first Date arrives, and to confirm that Date.
    The time does not go back by less than RESOLUTION, or what a driver has just noted as due now would not be due when
    it looks for it. It goes back by more if a Date corrects it.
    """

    def __init__(self, steadily: Callable[[], datetime] = steady, guess: Callable[[], datetime] | None = None) -> None:
        """steadily: a clock that runs evenly from any start; guess: returns the time until the first Date arrives."""
        self._steadily = steadily
        self._offsets: tuple[timedelta, ...] = ()  # replaced as a whole, because several threads read and write it
        self._guess = (guess or (wall if steadily is steady else steadily))() - steadily()
        self._latest: datetime | None = None  # that `now` returned
        self._telling = threading.Lock()

    def now(self) -> datetime:
        """Return the time by the API's clock."""
        with self._telling:
            now = self._steadily() + (median_low(self._offsets) if self._offsets else self._guess)
            if self._latest is None or not now < self._latest < now + RESOLUTION:
                self._latest = now
            return self._latest

    @property
    def is_witnessed(self) -> bool:
        """Return whether the time is right even if one Date header was wrong."""
        return len(self._offsets) >= WITNESSED

    def take_date(self, headers: Mapping[str, str]) -> None:
        """Take the Date from the headers of a response that has just arrived."""
        date = date_of(headers)
        if date is not None:
            offset = date - self._steadily()
            agrees = not self._offsets and abs(offset - self._guess) <= AGREES
            self._offsets = (*self._offsets, *[offset] * (WITNESSED if agrees else 1))[-KEPT:]


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """Return when a response was made, by its Date header; None without one, or for a response from a cache."""
    if "age" in headers:
        return None
    try:
        date = parsedate_to_datetime(headers["date"])
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
