"""Does the accuracy of answers reach a minimum? Pure."""

from dataclasses import dataclass

from pipeline.quality.figures import Share
from pipeline.quality.judges import Judge, figure, opens_at, passes


@dataclass(frozen=True)
class Judged:
    """An accuracy that was compared with a minimum.

    figure: what the judge compares with the minimum; opens_at: how many rows have to be right, None if all are too few.
    """

    minimum: float
    judge: Judge
    figure: float
    passed: bool
    opens_at: int | None


def judged_share(share: Share, minimum: float, judge: Judge) -> Judged:
    """Return whether a share of at least one row reaches a minimum."""
    return judged_count((share.value or 0.0) * share.requests, share.requests, minimum, judge)


def judged_count(right: float, rows: float, minimum: float, judge: Judge) -> Judged:
    """Return whether so many right rows reach a minimum. rows: at least one; an effective number need not be whole."""
    found = figure(right, rows, judge)
    assert found is not None
    passed, opens = passes(right, rows, minimum, judge), opens_at(max(1, int(rows)), minimum, judge)
    return Judged(minimum, judge, found, passed, opens)
