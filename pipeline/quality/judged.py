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
    right = (share.value or 0.0) * share.requests
    found = figure(right, share.requests, judge)
    assert found is not None
    return Judged(
        minimum, judge, found, passes(right, share.requests, minimum, judge), opens_at(share.requests, minimum, judge)
    )
