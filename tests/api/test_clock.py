"""The API's time, kept on a clock that nobody can set."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.api.clock import KEPT, ApiClock, date_of, steady

THEN = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
BOOT = datetime(1970, 1, 1, tzinfo=UTC)


class Machine:
    """A machine whose steady clock tests turn."""

    def __init__(self) -> None:
        self.up = timedelta(hours=3)

    def steadily(self) -> datetime:
        return BOOT + self.up


def dated(at: datetime) -> dict[str, str]:
    """Headers with this Date."""
    return {"date": format_datetime(at, usegmt=True)}


def test_the_time_goes_on_by_the_steady_clock() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily)
    clock.hear(dated(THEN))

    machine.up += timedelta(hours=5)

    assert clock.now() == THEN + timedelta(hours=5)


def test_until_a_date_was_heard_the_guess_holds() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily, guess=lambda: THEN)

    machine.up += timedelta(seconds=7)

    assert clock.now() == THEN + timedelta(seconds=7)


def test_the_guess_is_asked_for_once() -> None:
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
        clock.hear(dated(THEN + machine.up))
    for _ in range(2):
        clock.hear(dated(THEN + machine.up + wrong))

    assert clock.now() == THEN + machine.up


def test_a_date_that_the_guess_agrees_with_counts_thrice_so_that_two_wrong_ones_behind_it_change_nothing() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily, guess=lambda: THEN + timedelta(seconds=5))
    assert not clock.is_witnessed
    clock.hear(dated(THEN))
    assert clock.is_witnessed

    for _ in range(2):
        clock.hear(dated(THEN + timedelta(hours=1)))

    assert clock.now() == THEN


def test_a_first_date_that_the_guess_does_not_agree_with_needs_witnesses() -> None:
    machine = Machine()
    clock = ApiClock(machine.steadily, guess=lambda: THEN + timedelta(hours=1))

    witnessed = []
    for _ in range(3):
        clock.hear(dated(THEN))
        witnessed.append(clock.is_witnessed)

    assert witnessed == [False, False, True]
    assert clock.now() == THEN


@pytest.mark.parametrize(
    "headers",
    [{}, {"date": ""}, {"date": "yesterday"}, {"date": "Fri, 99 Nov 2026 08:30:00 GMT"}, {**dated(THEN), "age": "30"}],
    ids=["none", "empty", "a word", "no day", "out of a cache"],
)
def test_a_date_of_no_use_is_not_learnt_from(headers: dict[str, str]) -> None:
    clock = ApiClock(Machine().steadily, guess=lambda: THEN)

    clock.hear(headers)

    assert date_of(headers) is None
    assert clock.now() == THEN


def test_a_date_without_a_zone_is_utc() -> None:
    assert date_of({"date": "Fri, 20 Nov 2026 08:30:00 -0000"}) == THEN


def test_the_steady_clock_is_the_one_that_runs_since_the_machine_was_started() -> None:
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = steady()
    ended = time.clock_gettime(time.CLOCK_BOOTTIME)

    assert BOOT + timedelta(seconds=began) <= now <= BOOT + timedelta(seconds=ended)
