"""How does `check` say what the accuracy of a canary is compared with, and how often a prompt passes? Pure."""

from collections.abc import Iterator

from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.quality.canary_rules import chances


def canary_chances(job: Job, with_gold: int) -> Iterator[str]:
    """Yield lines on the gate that the job's canary opens by its accuracy; nothing if it has no minimum.

    with_gold: how many rows have gold.
    """
    canary = job.canary
    if not isinstance(canary, Canary) or canary.min_accuracy is None:
        return
    rows = min(canary.rows, with_gold)
    opens, passing = chances(canary, rows)
    if opens is None:
        yield f"canary   {rows:,} rows with gold can never show {canary.min_accuracy:.1%}, even if all are right"
        return
    shown = ", ".join(f"{true:.0%}: {100 * share:.0f}" for true, share in passing.items())
    yield (
        f"canary   opens at {opens:,} of {rows:,} right (canary.min_accuracy {canary.min_accuracy:.1%} by "
        f"{canary.judge}); passes in 100 tries of a prompt that is right for {shown}"
    )
