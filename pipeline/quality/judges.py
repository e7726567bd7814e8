"""Does an accuracy reach a minimum, by which judge, and how often would a prompt of a known accuracy pass? Pure."""

import math
from typing import Literal, get_args

from pipeline.quality.statistics import Z_ONE_SIDED, binomial_at_most, wilson

#: bound: the one-sided 95% lower bound reaches the minimum, so the accuracy is shown. point: the share itself does.
#: alarm: it does unless the one-sided 95% upper bound is below the minimum, so only a shown loss counts as missed.
Judge = Literal["bound", "point", "alarm"]
JUDGES: tuple[Judge, ...] = get_args(Judge)


def figure(right: float, n: float, judge: Judge) -> float | None:
    """Return the number that a judge compares with the minimum; None if n is 0."""
    bounds = wilson(right, n, Z_ONE_SIDED)
    if bounds is None:
        return None
    return {"bound": bounds.low, "point": right / n, "alarm": bounds.high}[judge]


def passes(right: float, n: float, minimum: float, judge: Judge) -> bool:
    """Return whether the judge accepts right of n rows. No row passes no judge."""
    found = figure(right, n, judge)
    return found is not None and found >= minimum - 1e-12


def opens_at(n: int, minimum: float, judge: Judge) -> int | None:
    """Return the lowest number of right rows of n with which the judge passes; None if all n are too few."""
    if not passes(n, n, minimum, judge):
        return None
    low, high = -1, n  # fails at low, passes at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle, n, minimum, judge) else (middle, high)
    return high


def pass_probability(accuracy: float, n: int, minimum: float, judge: Judge) -> float:
    """Return how often n rows of a prompt with this true accuracy pass the judge."""
    opens = opens_at(n, minimum, judge)
    return 0.0 if opens is None else 1.0 - binomial_at_most(opens - 1, n, accuracy)


def rows_needed(minimum: float, judge: Judge) -> int:
    """Return the lowest number of rows that pass the judge if all of them are right. minimum: below 1."""
    n = max(1, math.floor(Z_ONE_SIDED**2 * minimum / (1 - minimum)) - 2) if judge == "bound" else 1
    while not passes(n, n, minimum, judge):
        n += 1
    return n
