"""The emulator's clock: real time plus an offset that tests advance, so that they need not wait for a day to pass."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """Real time plus an offset in seconds. Safe to use from several threads."""

    def __init__(self, offset_seconds: float = 0) -> None:
        self._offset_us = round(offset_seconds * 1e6)
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def offset_seconds(self) -> float:
        """Return how far the clock is ahead of real time, in seconds."""
        return self._offset_us / 1e6

    def now_us(self) -> int:
        """Return the time in microseconds since 1970."""
        return time.time_ns() // 1000 + self._offset_us

    def now(self) -> datetime:
        """Return the time as an aware datetime in UTC."""
        return when(self.now_us())

    def advance(self, seconds: float) -> datetime:
        """Advance the clock and return the new time. Raises ValueError if seconds is negative or not a number."""
        if not seconds >= 0:
            raise ValueError(f"the clock cannot be advanced by {seconds} seconds; give 0 or more")
        with self._lock:
            self._offset_us += round(seconds * 1e6)
        for listener in self._listeners:
            listener()
        return self.now()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each advance, in the thread that advances the clock."""
        self._listeners.append(listener)


def when(us: int) -> datetime:
    """Return microseconds since 1970 as an aware datetime in UTC."""
    return EPOCH + timedelta(microseconds=us)


def wire_time(us: int | None) -> str | None:
    """Return microseconds since 1970 as the API writes a time, with six decimals and +00:00. None gives None."""
    return None if us is None else when(us).isoformat(timespec="microseconds")
