"""The API's time: its Date headers, on a clock of this machine that nobody can set."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from statistics import median_low

KEPT = 5  # Date headers: two of them may be wrong, or late, and the time is right still
WITNESSED = 3  # how often a Date counts that the wall clock agrees with
AGREES = timedelta(seconds=60)  # how far the wall clock may be from a Date that it is a witness of


def steady() -> datetime:
    """The time since this machine was started, as a date. It goes on while the machine sleeps, and nobody sets it."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    seconds = time.monotonic() if boot is None else time.clock_gettime(boot)
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)


def wall() -> datetime:
    """The time by this machine's clock, which may be wrong, and may be set at any moment."""
    return datetime.now(UTC)


class ApiClock:
    """The API's time as its last Date headers tell it: each is held against the steady clock when it arrives.

    The wall clock is asked once, at the beginning: for a first guess, and as a witness of the first Date.
    """

    def __init__(self, steadily: Callable[[], datetime] = steady, guess: Callable[[], datetime] | None = None) -> None:
        """steadily: a clock that runs evenly, wherever it begins; guess: the time until the first Date is heard."""
        self._steadily = steadily
        self._offsets: tuple[timedelta, ...] = ()  # put in place whole: several threads hear and ask
        self._guess = (guess or (wall if steadily is steady else steadily))() - steadily()

    def now(self) -> datetime:
        """The time by the API's clock."""
        return self._steadily() + (median_low(self._offsets) if self._offsets else self._guess)

    @property
    def is_witnessed(self) -> bool:
        """Whether more than one Date would have to be wrong for the time to be wrong."""
        return len(self._offsets) >= WITNESSED

    def hear(self, headers: Mapping[str, str]) -> None:
        """Learn from the headers of an answer that has just arrived."""
        date = date_of(headers)
        if date is not None:
            offset = date - self._steadily()
            agrees = not self._offsets and abs(offset - self._guess) <= AGREES
            self._offsets = (*self._offsets, *[offset] * (WITNESSED if agrees else 1))[-KEPT:]


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """When an answer was made, by its Date header; None when that says nothing, as in an answer out of a cache."""
    if "age" in headers:
        return None
    try:
        date = parsedate_to_datetime(headers["date"])
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
