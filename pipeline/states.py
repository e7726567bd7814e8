"""The states of a batch and of a row, what each means after a crash, and the legal moves. Pure."""

from collections.abc import Mapping
from enum import StrEnum


class BatchState(StrEnum):
    """Where a batch is. Whatever dies, the next driver finds it in one of these and knows what to do."""

    PLANNED = "planned"  #: body spooled, rows chosen; nothing of it is at the API
    SUBMITTING = "submitting"  #: a create may have reached the API; whether it did is to be found out
    IN_PROGRESS = "in_progress"  #: accepted; api_id is set; the API works
    CANCELING = "canceling"  #: the API was asked to cancel it and has not finished doing so
    ENDED = "ended"  #: the API is done; results not stored yet, or not all
    COLLECTED = "collected"  #: every row of it has its outcome. Final.
    DROPPED = "dropped"  #: never sent; its rows went back to pending. Final.
    LOST = "lost"  #: what became of it cannot be learnt now; its rows are `lost`. It is asked again until day 29.


BATCH_MOVES: dict[BatchState, frozenset[BatchState]] = {
    # to in_progress: a sending that was concluded absent was accepted after all, before the batch was sent again
    BatchState.PLANNED: frozenset({BatchState.SUBMITTING, BatchState.DROPPED, BatchState.IN_PROGRESS}),
    BatchState.SUBMITTING: frozenset({BatchState.IN_PROGRESS, BatchState.PLANNED, BatchState.LOST}),
    BatchState.IN_PROGRESS: frozenset({BatchState.CANCELING, BatchState.ENDED, BatchState.LOST}),
    BatchState.CANCELING: frozenset({BatchState.ENDED, BatchState.LOST}),
    BatchState.ENDED: frozenset({BatchState.COLLECTED, BatchState.LOST}),
    BatchState.COLLECTED: frozenset(),
    BatchState.DROPPED: frozenset(),
    BatchState.LOST: frozenset({BatchState.IN_PROGRESS}),
}

CLOSED_BATCHES = (BatchState.COLLECTED, BatchState.DROPPED, BatchState.LOST)  # a run does not wait for these
OPEN_BATCHES = tuple(state for state in BatchState if state not in CLOSED_BATCHES)
AT_THE_API = (BatchState.IN_PROGRESS, BatchState.CANCELING)


class RowState(StrEnum):
    """Where a row is: waiting, at the API, or with an outcome."""

    PENDING = "pending"  #: to be sent; in no batch
    IN_FLIGHT = "in_flight"  #: in a batch that is not collected yet
    SUCCEEDED = "succeeded"  #: answered. The only success.
    ERRORED = "errored"  #: the API says why in error_type and error_message
    EXPIRED = "expired"  #: the batch's 24 hours ended before its turn
    CANCELED = "canceled"  #: somebody canceled the batch before its turn
    LOST = "lost"  #: sent, and its result cannot be had; sending it again may pay twice
    INVALID = "invalid"  #: never sendable: a null or an error in the template, too large
    TRUNCATED = "truncated"  #: the answer stopped at max_tokens or at the end of the context window
    REFUSED = "refused"  #: the model refused
    UNPARSABLE = "unparsable"  #: an answer that is none of the labels

    __hash__ = str.__hash__  # the enum's own is written in Python, and each row is counted by its state


OUTCOMES = tuple(state for state in RowState if state not in (RowState.PENDING, RowState.IN_FLIGHT))
FAILURES = tuple(state for state in OUTCOMES if state is not RowState.SUCCEEDED)


def failed_rows(rows: Mapping[str, int]) -> int:
    """How many of these rows, by state, have an outcome that is no success."""
    return sum(rows.get(state, 0) for state in FAILURES)


class RunState(StrEnum):
    """Where a run is."""

    OPEN = "open"  #: rows of it are not planned yet, waiting, or at the API
    FINISHED = "finished"  #: every row it planned has an outcome
    INCOMPLETE = "incomplete"  #: it stopped for good before that; `reason` says why


class Gate(StrEnum):
    """What a run waits for before the rest of it may be sent."""

    CANARY = "canary"  #: the first rows of a new recipe: when too many of them fail, nothing more is sent
    PRIMER = "primer"  #: one row that writes the shared prefix into the prompt cache, for the others to read


class RunReason(StrEnum):
    """Why a run is incomplete."""

    BUDGET = "budget"  #: of the run or of the month; the same command goes on with it, its money counts on
    CANARY = "canary"  #: too large a share of the first rows of a new recipe failed
    FAILURES = "failures"  #: too large a share of its rows failed
    CANCELED = "canceled"  #: somebody canceled it


class SendingEnd(StrEnum):
    """How one POST of a batch ended. NULL in the table: it is under way, or its driver died."""

    ACCEPTED = "accepted"  #: the API answered with an id
    REJECTED = "rejected"  #: proven not accepted
    UNKNOWN = "unknown"  #: the answer did not come; the listing will tell
    ADOPTED = "adopted"  #: was unknown; a batch at the API proved to be it
    ABSENT = "absent"  #: was unknown; a listing after the grace time did not show it
    TWIN = "twin"  #: was taken for absent, and showed up after all: its rows may have been paid twice
