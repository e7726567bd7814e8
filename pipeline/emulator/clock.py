"""The emulator's clock: real time plus an offset that only grows, so that tests need not wait for a day to pass."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """Real time + offset_seconds. Safe to use from several threads."""

    def __init__(self, offset_seconds: float = 0) -> None:
        self._offset_us = round(offset_seconds * 1e6)
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def offset_seconds(self) -> float:
        return self._offset_us / 1e6

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return time.time_ns() // 1000 + self._offset_us

    def now(self) -> datetime:
        """Aware, in UTC."""
        return when(self.now_us())

    def advance(self, seconds: float) -> datetime:
        """Turn the clock on by that many seconds; returns the new time. Raises ValueError if it is to go back."""
        if not seconds >= 0:
            raise ValueError(f"the clock only goes forward, not by {seconds} seconds")
        with self._lock:
            self._offset_us += round(seconds * 1e6)
        for listener in self._listeners:
            listener()
        return self.now()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after each advance."""
        self._listeners.append(listener)


def when(us: int) -> datetime:
    """Microseconds since 1970 as an aware datetime."""
    return EPOCH + timedelta(microseconds=us)


def wire_time(us: int | None) -> str | None:
    """As the API writes times: always six decimals, +00:00. None stays None."""
    return None if us is None else when(us).isoformat(timespec="microseconds")
