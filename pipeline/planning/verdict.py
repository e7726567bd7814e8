"""Decide what planning does with a source row, given what the database knows of it. Pure."""

from collections.abc import Container
from enum import StrEnum

from pipeline.answer import retry_change
from pipeline.job.model import Job
from pipeline.state.rows import KnownRow
from pipeline.states import RowState


class Verdict(StrEnum):
    """What planning does with a source row."""

    NEW = "new"  #: not in the database: send
    CHANGED = "changed"  #: its source values have changed since its outcome: send
    AGAIN = "again"  #: it did not succeed, and its recipe has changed or it has attempts left: send
    WAITING = "waiting"  #: known and in no batch, or in a planned batch whose request must change: send
    PLANNED = "planned"  #: unchanged, in a batch that is planned and not sent
    KEPT = "kept"  #: it has its outcome: not sent
    KEPT_OLDER = "kept_older"  #: it succeeded with an older recipe: not sent, unless by `--refresh`
    IN_FLIGHT = "in_flight"  #: unchanged, in a batch: not sent again now
    CHANGED_IN_FLIGHT = "changed_in_flight"  #: in a batch with its earlier values: sent again when that batch has ended
    IN_ROUNDS = "in_rounds"  #: unchanged, pending in a later round: goes on from its turns, not from the source
    FOR_RETRY = "for_retry"  #: pending in an unfinished retry, which will send it: not sent by this run
    OTHER = "other"  #: not selected by the retry

    __hash__ = str.__hash__  # faster than the enum's own, which is in Python; each row is counted by its verdict


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
    """Return the verdict of a plain run on a source row. Pure.

    known: the row in the database; None: it is new. unsent: batches that are planned and not sent; in the quote a row
    in one of them counts as still to be sent. retries: the unfinished runs of `retry`; rows that they have planned are
    left to them, unless the row has changed.
    """
    if known is None:
        return Verdict.NEW
    if known.state == RowState.IN_FLIGHT and known.batch_id in unsent:
        same = known.row_hash == row_hash and (known.recipe == recipe or known.run_id in retries)
        return Verdict.PLANNED if same else Verdict.WAITING
    if known.state == RowState.IN_FLIGHT:
        return Verdict.IN_FLIGHT if known.row_hash == row_hash else Verdict.CHANGED_IN_FLIGHT
    if known.is_between_rounds and known.row_hash == row_hash:
        if known.run_id in retries:
            return Verdict.FOR_RETRY
        if known.recipe == recipe:
            return Verdict.IN_ROUNDS
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
        return Verdict.KEPT  # these are sent again only by the command `retry`
    attempts_left = retry_change.may_send_again(job.retry, known.outcome, known.error_type, known.attempts)
    if known.outcome_recipe != recipe or _is_to_be_sent(known, row_hash, recipe) or attempts_left:
        return Verdict.AGAIN
    return Verdict.KEPT


def _is_to_be_sent(known: KnownRow, row_hash: bytes, recipe: str) -> bool:
    """Return whether a row that has failed with these values and this recipe waits to be sent with them again.

    If it waits only to be sent with others, which the source or the job file had meanwhile, its failure stands, unless
    the API had refused the account.
    """
    same = known.row_hash == row_hash and known.recipe == recipe
    return known.state == RowState.PENDING and (same or known.error_type in retry_change.ACCOUNT_ERRORS)


def retry_verdict(
    known: KnownRow | None,
    row_hash: bytes,
    *,
    wanted: bool,
    run_id: int | None = None,
    unsent: Container[int] = frozenset(),
    retries: Container[int] = frozenset(),
) -> Verdict:
    """Return the verdict of a retry on a source row. Pure.

    known: the row in the database; None: it is new. wanted: whether the retry selects the row. run_id: the retry's run,
    which does not send a row twice; None: it has not begun. unsent: as for `verdict`. retries: the other unfinished
    retries.
    """
    if known is None or not wanted:
        return Verdict.OTHER
    if known.state == RowState.IN_FLIGHT:
        return Verdict.PLANNED if known.batch_id in unsent else Verdict.IN_FLIGHT
    if known.state == RowState.PENDING and known.run_id in retries:
        return Verdict.FOR_RETRY
    if known.is_between_rounds and known.run_id == run_id and known.row_hash == row_hash:
        return Verdict.IN_ROUNDS
    answered = known.run_id == run_id and known.state != RowState.PENDING and known.attempts > 0
    return Verdict.KEPT if answered else Verdict.AGAIN
