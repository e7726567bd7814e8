"""The API's time is kept on a clock that cannot be set."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.api.clock import KEPT, RESOLUTION, ApiClock, date_of, steady

THEN = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
BOOT = datetime(1970, 1, 1, tzinfo=UTC)


class Machine:
    """A machine whose steady clock is advanced by tests."""

    def __init__(self) -> None:
        self.up = timedelta(hours=3)

    def steadily(self) -> datetime:
        return BOOT + self.up


def dated(at: datetime) -> dict[str, str]:
    """Return headers with this Date."""
    return {"date": format_datetime(at, usegmt=True)}


def test_the_time_advances_with_the_steady_clock() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily)
    clock.take_date(dated(THEN))

    machine.up += timedelta(hours=5)

    assert clock.now() == THEN + timedelta(hours=5)


def test_the_time_does_not_go_back_because_dates_have_whole_seconds() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily)
    told = [clock.now()]

    for tenth in (0, 8, 17, 21, 29, 30):  # several answers at each of these moments
        machine.up = timedelta(hours=3, seconds=tenth / 10)
        for _ in range(KEPT):
            clock.take_date(dated(THEN + timedelta(seconds=tenth // 10)))
            told.append(clock.now())

    assert told[1:] == sorted(told[1:])
    assert abs(told[-1] - (THEN + timedelta(seconds=3))) < RESOLUTION


def test_the_time_goes_back_when_dates_correct_it() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily)
    clock.take_date(dated(THEN + timedelta(minutes=1)))
    before = clock.now()

    for _ in range(KEPT):
        clock.take_date(dated(THEN))

    assert (before, clock.now()) == (THEN + timedelta(minutes=1), THEN)


def test_the_guess_is_used_until_a_date_is_received() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily, guess=lambda: THEN)

    machine.up += timedelta(seconds=7)

    assert clock.now() == THEN + timedelta(seconds=7)


def test_the_guess_is_requested_once() -> None:
    guesses = iter([THEN])
    machine = Machine()
    clock = ApiClock(machine.steadily, guess=lambda: next(guesses))

    assert [clock.now() for _ in range(3)] == [THEN] * 3


@pytest.mark.parametrize("wrong", [timedelta(days=-30), timedelta(hours=1)], ids=["late", "early"])
def test_two_wrong_dates_of_five_change_nothing(wrong: timedelta) -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily)
    for _ in range(KEPT):
        machine.up += timedelta(seconds=60)
        clock.take_date(dated(THEN + machine.up))
    for _ in range(2):
        clock.take_date(dated(THEN + machine.up + wrong))

    assert clock.now() == THEN + machine.up


def test_a_first_date_that_agrees_with_the_guess_outweighs_two_wrong_dates_after_it() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily, guess=lambda: THEN + timedelta(seconds=5))
    assert not clock.is_witnessed
    clock.take_date(dated(THEN))
    assert clock.is_witnessed

    for _ in range(2):
        clock.take_date(dated(THEN + timedelta(hours=1)))

    assert clock.now() == THEN


def test_a_first_date_that_differs_from_the_guess_needs_two_more_dates_that_agree() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily, guess=lambda: THEN + timedelta(hours=1))

    witnessed = []
    for _ in range(3):
        clock.take_date(dated(THEN))
        witnessed.append(clock.is_witnessed)

    assert witnessed == [False, False, True]
    assert clock.now() == THEN


@pytest.mark.parametrize(
    "headers",
    [{}, {"date": ""}, {"date": "yesterday"}, {"date": "Fri, 99 Nov 2026 08:30:00 GMT"}, {**dated(THEN), "age": "30"}],
    ids=["none", "empty", "a word", "no day", "out of a cache"],
)
def test_an_unusable_date_is_ignored(headers: dict[str, str]) -> None:
    clock = ApiClock(Machine().steadily, guess=lambda: THEN)

    clock.take_date(headers)

    assert date_of(headers) is None
    assert clock.now() == THEN


def test_a_date_without_a_zone_is_utc() -> None:
    assert date_of({"date": "Fri, 20 Nov 2026 08:30:00 -0000"}) == THEN


def test_the_steady_clock_counts_from_the_start_of_the_machine() -> None:
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = steady()
    ended = time.clock_gettime(time.CLOCK_BOOTTIME)

    assert BOOT + timedelta(seconds=began) <= now <= BOOT + timedelta(seconds=ended)
