"""Plots have round edges, places from 0 to 1, and numbers that do not say more than is known."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.quality.statistics import Interval
from pipeline.report.page.shapes import (
    MOST_BINS,
    Scale,
    band,
    bars,
    dot_around_zero,
    histogram,
    percent,
    scale,
)
from pipeline.text import short_number


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0%"), (0.0001, "<0.1%"), (0.261, "26.1%"), (0.9999, ">99.9%"), (1.0, "100.0%"), (None, "\u2013")],
)
def test_a_share_is_not_rounded_to_all_or_nothing(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (950, "950"), (999.9, "1k"), (12_500, "12.5k"), (1.2e6, "1.2M"), (0.25, "0.25")]
)
def test_numbers_in_narrow_places_are_short(number: float, text: str) -> None:
    assert short_number(number) == text


def test_each_bar_is_a_share_of_the_longest() -> None:
    long, short, none = bars([("a", 30), ("b", 15), ("c", 0)], 60)

    assert (long.width, long.number, long.share) == (1.0, "30", "50.0%")
    assert (short.width, none.width) == (0.5, 0.0)


@given(st.floats(-1e12, 1e12), st.floats(0, 1e12), st.booleans())
@example(-1.0, 0.0, False)
def test_bins_cover_all_values_and_are_few(low: float, more: float, whole: bool) -> None:
    if whole:
        low, more = float(round(low)), float(round(more))
    found = scale(low, low + more, whole=whole)

    slack = 1e-6 * found.width + 1e-9 * abs(low)
    assert 1 <= found.bins <= MOST_BINS + 1
    assert found.low <= low + slack
    assert low + more <= found.end + slack


def test_integers_have_a_bin_each_if_there_are_few() -> None:
    found = scale(1, 5, whole=True)

    assert found == Scale(1.0, 1.0, 5, single=True)
    assert [tick.name for tick in histogram(found, [4, 0, 1, 2, 3]).ticks] == ["1", "2", "3", "4", "5"]


def test_a_line_stands_at_its_value_and_what_reaches_it_is_marked() -> None:
    found = histogram(Scale(0.0, 10.0, 6), [1, 2, 8, 4, 0, 3], mark=(50.0, "max_tokens 50"))

    assert found.mark is not None
    assert (found.mark.at, found.mark.name) == (50 / 60, "max_tokens 50")
    assert [one.over for one in found.bins] == [False] * 5 + [True]
    assert [one.height for one in found.bins] == [0.125, 0.25, 1.0, 0.5, 0.0, 0.375]


def test_a_difference_stands_around_the_middle_and_does_not_leave_the_scale() -> None:
    found = dot_around_zero(0.05, Interval(-0.3, 0.1), 0.1)

    assert (found.text, found.range) == ("+5.0 points", "-30.0 to +10.0")
    assert (found.at, found.low, found.high) == (0.75, 0.0, 1.0)


def test_a_band_holds_all_of_its_values() -> None:
    found = band(1.0, 2.0, 4.0, 5.0)

    assert found.expected is not None
    assert 0 < found.low < found.expected < found.high < found.actual < 1
