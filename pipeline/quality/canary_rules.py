"""Can the accuracy of a canary be judged, and how often would a prompt of a known accuracy pass? Pure."""

from pipeline.errors import JobError
from pipeline.job.canary import Canary
from pipeline.job.model import Job
from pipeline.quality.judges import opens_at, pass_probability, rows_needed

SHOWN_ACCURACIES = (0.85, 0.88, 0.90, 0.92)  # of prompts whose chances `check` shows


def refuse_impossible(job: Job) -> None:
    """Raise JobError if the job's canary has a minimum that it could never reach, or no gold to compare with."""
    canary = job.canary
    if not isinstance(canary, Canary) or canary.min_accuracy is None:
        return
    if job.gold is None:
        raise JobError("canary.min_accuracy: the job has no gold; add gold: {columns: {COLUMN OF THE OUTPUT: COLUMN}}")
    if not job.gold.random:
        raise JobError(
            "canary.min_accuracy: the rows with gold were chosen (gold.random: false), so their accuracy says nothing "
            "about the other rows; give gold for a random sample"
        )
    needed = rows_needed(canary.min_accuracy, canary.judge)
    if canary.rows < needed:
        raise JobError(
            f"canary.rows: {canary.rows:,} rows can never show {canary.min_accuracy:.1%}, even if all are right; "
            f"{needed:,} is the least, and more are better"
        )


def chances(canary: Canary, rows: int) -> tuple[int | None, dict[float, float]]:
    """Return at how many right rows the gate opens, and how often a prompt of each of SHOWN_ACCURACIES passes it.

    rows: how many rows with gold the canary has.
    """
    assert canary.min_accuracy is not None
    minimum, judge = canary.min_accuracy, canary.judge
    passing = {true: pass_probability(true, rows, minimum, judge) for true in SHOWN_ACCURACIES}
    return opens_at(rows, minimum, judge), passing
