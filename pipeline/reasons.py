"""The reasons why a batch is held back, watched or dropped, with the sentence that people read for each. Pure."""

from enum import StrEnum
from typing import overload

from pipeline.states import Gate


class Reason(StrEnum):
    """Why a batch is not sent, is watched, or was dropped. Code compares these; people read TEXTS."""

    # planned: the batch may not be sent now
    NO_ROOM = "no_room"
    NO_ROOM_OF_JOB = "no_room_of_job"
    NO_MONEY = "no_money"
    NO_MONEY_OF_MONTH = "no_money_of_month"
    BEHIND_CANARY = "behind_canary"
    BEHIND_PRIMER = "behind_primer"
    ABSENT = "absent"
    # submitting: it is not known whether the API accepted the batch
    NO_ANSWER = "no_answer"
    DRIVER_GONE = "driver_gone"
    NOT_LISTED = "not_listed"
    LISTING_UNREADABLE = "listing_unreadable"
    RUNNING_CANDIDATE = "running_candidate"
    RESULTS_UNREADABLE = "results_unreadable"
    # planned and about to be dropped, or dropped
    OVER_ROOM = "over_room"
    OVER_BUDGET = "over_budget"
    OPENS_GATE = "opens_gate"
    TOO_LARGE = "too_large"
    ROW_TOO_LARGE = "row_too_large"
    BODY_GONE = "body_gone"
    OLD_RECIPE = "old_recipe"
    ROW_CHANGED = "row_changed"
    RUN_ENDED = "run_ended"
    # in_progress, canceling
    OVERDUE = "overdue"
    # submitting, in_progress, canceling or ended
    OTHER_ACCOUNT = "other_account"


TEXTS: dict[Reason, str] = {
    Reason.NO_ROOM: "waits for room at the API: BATCH_MAX_IN_FLIGHT requests are in flight",
    Reason.NO_ROOM_OF_JOB: "waits for room at the API: limits.max_in_flight_requests of this job are in flight",
    Reason.NO_MONEY: "waits for money: the batches at the API may cost all that is left of limits.max_cost_usd",
    Reason.NO_MONEY_OF_MONTH: "waits for money: the batches at the API may cost all that is left of "
    "BATCH_MONTHLY_BUDGET_USD",
    Reason.BEHIND_CANARY: "waits for the canary: the first rows of a new recipe decide whether the rest is sent",
    Reason.BEHIND_PRIMER: "waits for the primer: one row that writes the shared prefix to the prompt cache",
    Reason.ABSENT: "it never reached the API",
    Reason.NO_ANSWER: "no response says whether the API accepted it",
    Reason.DRIVER_GONE: "the process died while sending it",
    Reason.NOT_LISTED: "asking the API whether it arrived",
    Reason.LISTING_UNREADABLE: "the API's listing could not be read",
    Reason.RUNNING_CANDIDATE: "a running batch at the API may be this one; its results will show whether it is",
    Reason.RESULTS_UNREADABLE: "a batch at the API may be this one, and its results do not show whether it is",
    Reason.OVER_ROOM: "it has more requests than may be in flight at a time",
    Reason.OVER_BUDGET: "the budget does not allow all of its requests",
    Reason.OPENS_GATE: "its first rows become the new canary or primer, because the earlier one is gone",
    Reason.TOO_LARGE: "the API refuses it as too large; its rows are sent in smaller batches",
    Reason.ROW_TOO_LARGE: "the API refuses its only request as too large",
    Reason.BODY_GONE: "its body in the spool is missing or was altered; `run` renders its rows again",
    Reason.OLD_RECIPE: "its rows are sent with a new recipe instead",
    Reason.ROW_CHANGED: "one of its rows changed in the source",
    Reason.RUN_ENDED: "its run has ended",
    Reason.OVERDUE: "the API has not ended it in time; `cancel --abandon` gives it up and marks its rows as lost",
    Reason.OTHER_ACCOUNT: "it was sent by another account; run with that account's key",
}

BEHIND_GATE = {Gate.CANARY: Reason.BEHIND_CANARY, Gate.PRIMER: Reason.BEHIND_PRIMER}
#: The reasons of planned batches that may be sent as soon as another batch has ended.
HELD_BACK = (
    *(Reason.NO_ROOM, Reason.NO_ROOM_OF_JOB, Reason.NO_MONEY, Reason.NO_MONEY_OF_MONTH),
    *BEHIND_GATE.values(),
)


@overload
def in_words(reason: str, detail: str | None = None) -> str: ...
@overload
def in_words(reason: str | None, detail: str | None = None) -> str | None: ...
def in_words(reason: str | None, detail: str | None = None) -> str | None:
    """Return the sentence of a reason, followed by the detail.

    reason None: return the detail alone. detail None or empty: return the sentence alone. Both None: return None.
    """
    if reason is None:
        return detail
    text = TEXTS[Reason(reason)]
    return f"{text}: {detail}" if detail else text
