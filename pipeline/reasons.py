"""Why a batch is held back, watched, or was dropped: what the code decides by, and the sentences that people read."""

from enum import StrEnum
from typing import overload

from pipeline.states import Gate


class Reason(StrEnum):
    """A batch has one while it waits for something, while it is watched, and for good once it was dropped."""

    # planned: may not be sent now
    NO_ROOM = "no_room"
    NO_ROOM_OF_JOB = "no_room_of_job"
    NO_MONEY = "no_money"
    NO_MONEY_OF_MONTH = "no_money_of_month"
    BEHIND_CANARY = "behind_canary"
    BEHIND_PRIMER = "behind_primer"
    ABSENT = "absent"
    # submitting: whether the API took it is to be found out
    NO_ANSWER = "no_answer"
    DRIVER_GONE = "driver_gone"
    NOT_LISTED = "not_listed"
    LISTING_UNREADABLE = "listing_unreadable"
    RUNNING_CANDIDATE = "running_candidate"
    RESULTS_UNREADABLE = "results_unreadable"
    # planned, and soon dropped, or dropped
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
    # anywhere from submitting to ended
    OTHER_ACCOUNT = "other_account"


TEXTS: dict[Reason, str] = {
    Reason.NO_ROOM: "waits for room at the API: BATCH_MAX_IN_FLIGHT requests are there",
    Reason.NO_ROOM_OF_JOB: "waits for room at the API: limits.max_in_flight_requests of this job are there",
    Reason.NO_MONEY: "waits for money: what is at the API may cost all that is left of limits.max_cost_usd",
    Reason.NO_MONEY_OF_MONTH: "waits for money: what is at the API may cost all that is left of "
    "BATCH_MONTHLY_BUDGET_USD",
    Reason.BEHIND_CANARY: "waits for the canary: the first rows of a new recipe show whether the rest is sent",
    Reason.BEHIND_PRIMER: "waits for the primer: one row writes what all share into the prompt cache",
    Reason.ABSENT: "it never reached the API",
    Reason.NO_ANSWER: "no answer says whether the API took it",
    Reason.DRIVER_GONE: "the process died while sending it",
    Reason.NOT_LISTED: "asking the API whether it arrived",
    Reason.LISTING_UNREADABLE: "the API's listing could not be read",
    Reason.RUNNING_CANDIDATE: "a batch that may be it is running at the API; its results will tell",
    Reason.RESULTS_UNREADABLE: "a batch may be it, and its results do not tell",
    Reason.OVER_ROOM: "it has more requests than may be at the API at a time",
    Reason.OVER_BUDGET: "the budget does not allow all of it",
    Reason.OPENS_GATE: "it takes the place of what the run waits for",
    Reason.TOO_LARGE: "the API finds it too large: its rows go in smaller batches",
    Reason.ROW_TOO_LARGE: "the API finds its only request too large",
    Reason.BODY_GONE: "its body in the spool is gone or was altered; `run` renders its rows again",
    Reason.OLD_RECIPE: "a new recipe took its place",
    Reason.ROW_CHANGED: "a row of it changed",
    Reason.RUN_ENDED: "its run has ended",
    Reason.OVERDUE: "the API has not ended it in time; `cancel --abandon` gives it up, and its rows are lost then",
    Reason.OTHER_ACCOUNT: "it was sent by another account; run with that account's key",
}

BEHIND_GATE = {Gate.CANARY: Reason.BEHIND_CANARY, Gate.PRIMER: Reason.BEHIND_PRIMER}
#: Of planned batches that may be sent as soon as another batch has ended.
HELD_BACK = (
    *(Reason.NO_ROOM, Reason.NO_ROOM_OF_JOB, Reason.NO_MONEY, Reason.NO_MONEY_OF_MONTH),
    *BEHIND_GATE.values(),
)


@overload
def in_words(reason: str, detail: str | None = None) -> str: ...
@overload
def in_words(reason: str | None, detail: str | None = None) -> str | None: ...
def in_words(reason: str | None, detail: str | None = None) -> str | None:
    """The sentence of a reason with what else is known; the detail alone without a reason, None without either."""
    if reason is None:
        return detail
    text = TEXTS[Reason(reason)]
    return f"{text}: {detail}" if detail else text
