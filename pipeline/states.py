"""The states of batches, rows, runs and sendings, and the legal moves of a batch. Pure."""

from collections.abc import Mapping
from enum import StrEnum


class BatchState(StrEnum):
    """The state of a batch. After a crash, the state alone tells the next driver what to do with the batch."""

    PLANNED = "planned"  #: the body is in the spool and its rows are chosen; nothing was sent
    SUBMITTING = "submitting"  #: a create call may have reached the API; reconcile finds out whether it did
    IN_PROGRESS = "in_progress"  #: the API accepted the batch and is processing it; api_id is set
    CANCELING = "canceling"  #: the API was asked to cancel the batch and has not finished
    ENDED = "ended"  #: the API has finished; not all results are stored yet
    COLLECTED = "collected"  #: every row of the batch has its outcome. Final.
    DROPPED = "dropped"  #: never sent; its rows are pending again. Final.
    LOST = "lost"  #: its results cannot be had now; its rows are `lost`. The API is asked again until day 29.


BATCH_MOVES: dict[BatchState, frozenset[BatchState]] = {
    # planned -> in_progress: the sending was presumed absent, and was found at the API before the batch was sent again
    BatchState.PLANNED: frozenset({BatchState.SUBMITTING, BatchState.DROPPED, BatchState.IN_PROGRESS}),
    BatchState.SUBMITTING: frozenset({BatchState.IN_PROGRESS, BatchState.PLANNED, BatchState.LOST}),
    BatchState.IN_PROGRESS: frozenset({BatchState.CANCELING, BatchState.ENDED, BatchState.LOST}),
    BatchState.CANCELING: frozenset({BatchState.ENDED, BatchState.LOST}),
    BatchState.ENDED: frozenset({BatchState.COLLECTED, BatchState.LOST}),
    BatchState.COLLECTED: frozenset(),
    BatchState.DROPPED: frozenset(),
    BatchState.LOST: frozenset({BatchState.IN_PROGRESS}),
}

CLOSED_BATCHES = (BatchState.COLLECTED, BatchState.DROPPED, BatchState.LOST)  # a run can end while it has these
OPEN_BATCHES = tuple(state for state in BatchState if state not in CLOSED_BATCHES)
AT_THE_API = (BatchState.IN_PROGRESS, BatchState.CANCELING)


class RowState(StrEnum):
    """The state of a row: pending, in flight, or one of the outcomes."""

    PENDING = "pending"  #: is to be sent, and is in no batch
    IN_FLIGHT = "in_flight"  #: in a batch that is not collected yet
    SUCCEEDED = "succeeded"  #: the model answered and the answer is stored. The only success.
    ERRORED = "errored"  #: the API reported an error; see error_type and error_message
    EXPIRED = "expired"  #: the 24 hours of the batch ended before the API processed the row
    CANCELED = "canceled"  #: the batch was canceled before the API processed the row
    LOST = "lost"  #: sent, but its result cannot be had; sending the row again may cost twice
    INVALID = "invalid"  #: cannot be sent: a null or an error in a template, or too large
    TRUNCATED = "truncated"  #: the answer stopped at max_tokens or at the end of the context window
    REFUSED = "refused"  #: the model refused
    UNPARSABLE = "unparsable"  #: the answer does not match the output's labels or schema

    __hash__ = str.__hash__  # Enum.__hash__ is slow Python code, and every row is counted by its state


class Waits(StrEnum):
    """What a pending row waits for, before it can be put into a batch."""

    SPOOL = "spool"  #: to be sent again: its request is in a body in the spool
    SOURCE = "source"  #: to be rendered from its row in the source
    ROUND = "round"  #: for its next round: its request is made from the table `turns`, never from the source


#: How a batch counts an answer that is not the end: the row goes on in another round and has no outcome yet.
CONTINUED = "continued"

OUTCOMES = tuple(state for state in RowState if state not in (RowState.PENDING, RowState.IN_FLIGHT))
FAILURES = tuple(state for state in OUTCOMES if state is not RowState.SUCCEEDED)


def failed_rows(rows: Mapping[str, int]) -> int:
    """Return how many rows have an outcome other than succeeded. rows: numbers by state."""
    return sum(rows.get(state, 0) for state in FAILURES)


class RunState(StrEnum):
    """The state of a run."""

    OPEN = "open"  #: it has rows that are not planned yet, pending, or in flight
    FINISHED = "finished"  #: every planned row has an outcome
    INCOMPLETE = "incomplete"  #: it ended before every row had an outcome; `reason` says why


class Gate(StrEnum):
    """A batch whose end a run waits for before it sends its remaining batches."""

    CANARY = "canary"  #: the first rows of a new recipe; if too many of them fail, nothing more is sent
    PRIMER = "primer"  #: one row that writes the shared prefix to the prompt cache, from which the other rows read it


class RunReason(StrEnum):
    """Why a run is incomplete."""

    BUDGET = (
        "budget"  #: the budget of the run or the month is used up; the same command continues the run and its spending
    )
    CANARY = "canary"  #: too many of the first rows of a new recipe failed
    FAILURES = "failures"  #: too many of its rows failed
    CANCELED = "canceled"  #: it was canceled


class SendingEnd(StrEnum):
    """How one create call for a batch ended. NULL in the table: the call is running, or its driver died."""

    ACCEPTED = "accepted"  #: the API answered with an id
    REJECTED = "rejected"  #: the API certainly did not accept the batch
    UNKNOWN = "unknown"  #: no response arrived; the API's listing will tell
    ADOPTED = "adopted"  #: was unknown; then a batch at the API was proved to be this one
    ABSENT = "absent"  #: was unknown; then a listing after the grace time did not show the batch
    TWIN = "twin"  #: was presumed absent, then appeared at the API: its rows may have been paid for twice
