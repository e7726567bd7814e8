"""What becomes of a source row, given what the database knows of it. Pure."""

from collections.abc import Container
from enum import StrEnum

from pipeline.answer import retry_change
from pipeline.job.model import Job
from pipeline.state.rows import KnownRow
from pipeline.states import RowState


class Verdict(StrEnum):
    """What planning does with a source row."""

    NEW = "new"  #: never seen: send
    CHANGED = "changed"  #: its source values are others than those of its outcome: send
    AGAIN = "again"  #: it did not succeed, and the recipe is another or attempts are left: send
    WAITING = "waiting"  #: known, and in no batch, or in one that must be made anew: send
    PLANNED = "planned"  #: in a batch as it is, which has not been sent yet
    KEPT = "kept"  #: it has its outcome
    KEPT_OLDER = "kept_older"  #: it succeeded with an older recipe: kept unless asked to refresh
    IN_FLIGHT = "in_flight"  #: in a batch as it is
    CHANGED_IN_FLIGHT = "changed_in_flight"  #: in a batch as it was: goes again when that one has ended
    FOR_RETRY = "for_retry"  #: it waits for a retry that is not finished, and has its outcome until then: left alone
    OTHER = "other"  #: not among those that a person wants sent again

    __hash__ = str.__hash__  # the enum's own is written in Python, and each row is counted by its verdict


SENT = frozenset({Verdict.NEW, Verdict.CHANGED, Verdict.AGAIN, Verdict.WAITING})
QUOTED = SENT | {Verdict.PLANNED}  #: rows that are still to be sent


def verdict(
    known: KnownRow | None,
    row_hash: bytes,
    recipe: str,
    job: Job,
    *,
    refresh: bool,
    unsent: Container[int] = frozenset(),
    retries: Container[int] = frozenset(),
) -> Verdict:
    """What becomes of a source row, given what the database knows of its key. Pure.

    unsent: batches that are planned and not sent; in the quote a row in one of them counts as still to be sent.
    retries: the runs that send rows again for a person and are not finished: what they have planned is left to them,
    unless the row has changed.
    """
    if known is None:
        return Verdict.NEW
    if known.state == RowState.IN_FLIGHT and known.batch_id in unsent:
        same = known.row_hash == row_hash and (known.recipe == recipe or known.run_id in retries)
        return Verdict.PLANNED if same else Verdict.WAITING
    if known.state == RowState.IN_FLIGHT:
        return Verdict.IN_FLIGHT if known.row_hash == row_hash else Verdict.CHANGED_IN_FLIGHT
    if known.outcome is None:
        return Verdict.WAITING
    if known.outcome_hash != row_hash:
        return Verdict.CHANGED
    if known.state == RowState.PENDING and known.run_id in retries:
        return Verdict.FOR_RETRY
    if known.outcome == RowState.SUCCEEDED:
        if known.outcome_recipe == recipe:
            return Verdict.KEPT
        return Verdict.AGAIN if refresh else Verdict.KEPT_OLDER
    if known.outcome in (RowState.LOST, RowState.CANCELED):
        return Verdict.KEPT  # only a person can say whether these go again
    retryable = known.outcome in (RowState.ERRORED, RowState.EXPIRED) and known.error_type in job.retry.errors
    retryable = retryable or retry_change.of(job.retry, known.outcome, known.error_type) is not None
    attempts_left = retryable and known.attempts < job.retry.max_attempts
    if known.outcome_recipe != recipe or known.state == RowState.PENDING or attempts_left:
        return Verdict.AGAIN
    return Verdict.KEPT


def retry_verdict(
    known: KnownRow | None,
    *,
    wanted: bool,
    run_id: int | None = None,
    unsent: Container[int] = frozenset(),
    retries: Container[int] = frozenset(),
) -> Verdict:
    """What becomes of a source row when a person wants some sent again; wanted: whether it is one of these. Pure.

    run_id: the run that sends them again, when it has begun: what it has sent already does not go twice; unsent,
    retries: as for `verdict`, without the retry that this is.
    """
    if known is None or not wanted:
        return Verdict.OTHER
    if known.state == RowState.IN_FLIGHT:
        return Verdict.PLANNED if known.batch_id in unsent else Verdict.IN_FLIGHT
    if known.state == RowState.PENDING and known.run_id in retries:
        return Verdict.FOR_RETRY
    answered = known.run_id == run_id and known.state != RowState.PENDING and known.attempts > 0
    return Verdict.KEPT if answered else Verdict.AGAIN
