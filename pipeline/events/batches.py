"""Define the events about one batch, in the order of the batch's life. Pure."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.events.event import Event
from pipeline.states import BatchState
from pipeline.text import count, counted, later, money, size


@dataclass(frozen=True, kw_only=True)
class BatchEvent(Event):
    """An event about one batch, by its number in the state database."""

    batch: int


@dataclass(frozen=True, kw_only=True)
class ProblemEvent(BatchEvent):
    """An event about one batch whose whole message is the problem."""

    problem: str

    def line(self) -> str:
        return f"batch {self.batch}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class BatchMove(BatchEvent):
    """A batch moved from the state `before` to the state `after`. before: None for a new batch."""

    before: ClassVar[BatchState | None]
    after: ClassVar[BatchState]


@dataclass(frozen=True, kw_only=True)
class Planned(BatchMove):
    """A batch was planned. bytes: the size of its body."""

    name = "planned"
    before, after = None, BatchState.PLANNED

    requests: int
    rows: int
    bytes: int

    def line(self) -> str:
        return f"batch {self.batch} planned: {count(self.requests, 'request')}, {size(self.bytes)}"


@dataclass(frozen=True, kw_only=True)
class HeldBack(BatchEvent):
    """A planned batch may not be sent yet."""

    name = "held_back"

    problem: str

    def line(self) -> str:
        return f"batch {self.batch} {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Dropped(BatchMove):
    """A planned batch will not be sent. Its rows are pending again, or already have an outcome."""

    name = "dropped"
    before, after = BatchState.PLANNED, BatchState.DROPPED

    problem: str | None

    def line(self) -> str:
        return f"batch {self.batch} dropped: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class BodyLost(BatchEvent):
    """The body of a batch is gone or was altered, so the requests in it can no longer be read."""

    name = "body_lost"
    level = logging.WARNING

    def line(self) -> str:
        return f"batch {self.batch}: its body is gone or was altered; `run` plans its rows again"


@dataclass(frozen=True, kw_only=True)
class BodyLeft(BatchEvent):
    """The body of a collected batch could not be removed."""

    name = "body_left"
    level = logging.WARNING

    problem: str

    def line(self) -> str:
        return (
            f"batch {self.batch}: its body could not be removed ({self.problem}); the next planning by `run` removes it"
        )


@dataclass(frozen=True, kw_only=True)
class Submitting(BatchMove):
    """The create call of a batch starts now."""

    name = "submitting"
    before, after = BatchState.PLANNED, BatchState.SUBMITTING

    requests: int

    def line(self) -> str:
        return f"batch {self.batch} submitting"


@dataclass(frozen=True, kw_only=True)
class Submitted(BatchMove):
    """The API accepted a batch. request_id: of the create call; left out of the facts if another driver made it."""

    name = "submitted"
    before, after = BatchState.SUBMITTING, BatchState.IN_PROGRESS

    api_id: str
    requests: int
    request_id: str | None = ""

    def line(self) -> str:
        return f"batch {self.batch} submitted as {self.api_id}"


@dataclass(frozen=True, kw_only=True)
class NotAccepted(BatchMove):
    """The API did not accept a batch. wait: seconds until it may be sent again; 0 for no wait."""

    name = "rejected"
    level = logging.WARNING
    before, after = BatchState.SUBMITTING, BatchState.PLANNED

    problem: str
    wait: float

    def line(self) -> str:
        return f"batch {self.batch} was not accepted: {self.problem}{later(self.wait)}"


@dataclass(frozen=True, kw_only=True)
class UnknownEnd(BatchEvent):
    """No response proves whether the API accepted a batch.

    grace: seconds after which a listing without the batch proves that it was not accepted.
    """

    name = "unknown_end"
    level = logging.WARNING

    problem: str
    grace: float

    def line(self) -> str:
        return (
            f"batch {self.batch}: no response says whether the API accepted it ({self.problem}); "
            f"the API's listing will show that within {self.grace:.0f} s"
        )


@dataclass(frozen=True, kw_only=True)
class Watching(ProblemEvent):
    """It is still unknown whether the API accepted a batch. The driver repeats this event with each look."""

    name = "watching"
    level = logging.DEBUG
    changes_job = False


@dataclass(frozen=True, kw_only=True)
class Adopted(BatchMove):
    """A batch whose create call had no response was found at the API."""

    name = "adopted"
    before, after = BatchState.SUBMITTING, BatchState.IN_PROGRESS

    api_id: str
    requests: int

    def line(self) -> str:
        return f"batch {self.batch} found at the API as {self.api_id}: it had been accepted"


@dataclass(frozen=True, kw_only=True)
class CountsDisagree(BatchEvent):
    """The API's number of requests in an adopted batch differs from the number that was sent."""

    name = "counts_disagree"
    level = logging.WARNING

    requests: int
    counted: int

    def line(self) -> str:
        return (
            f"batch {self.batch}: its results prove that it is ours, but the API counts "
            f"{count(self.counted, 'request')} in it, and {self.requests:,} were sent"
        )


@dataclass(frozen=True, kw_only=True)
class Absent(BatchMove):
    """A batch whose create call had no response is not at the API, so it is sent again."""

    name = "absent"
    before, after = BatchState.SUBMITTING, BatchState.PLANNED

    def line(self) -> str:
        return f"batch {self.batch} is not at the API: it is sent again"


@dataclass(frozen=True, kw_only=True)
class FoundLate(BatchMove):
    """A batch that was concluded absent appeared at the API before it was sent again.

    request_id: of the create call; left out of the facts if the listing showed the batch.
    """

    name = "found_late"
    before, after = BatchState.PLANNED, BatchState.IN_PROGRESS

    api_id: str
    requests: int
    request_id: str | None = ""

    def line(self) -> str:
        return f"batch {self.batch} is at the API after all, as {self.api_id}: it is not sent again"


@dataclass(frozen=True, kw_only=True)
class Twin(ProblemEvent):
    """An earlier sending of a batch appeared at the API after the batch was sent again: its rows may be paid twice."""

    name = "twin"
    level = logging.ERROR


@dataclass(frozen=True, kw_only=True)
class OtherAccount(BatchEvent):
    """A batch was sent by an account that is not this driver's, so the driver leaves it alone."""

    name = "other_account"
    level = logging.WARNING

    def line(self) -> str:
        return f"batch {self.batch} belongs to another account and is left alone"


@dataclass(frozen=True, kw_only=True)
class TakenOver(BatchEvent):
    """Another driver has claimed the batch that this driver was working on."""

    name = "taken_over"

    def line(self) -> str:
        return f"batch {self.batch} was taken over by another driver"


@dataclass(frozen=True, kw_only=True)
class Canceling(BatchMove):
    """The API was asked to cancel a batch."""

    name = "canceling"
    before, after = BatchState.IN_PROGRESS, BatchState.CANCELING

    def line(self) -> str:
        return f"batch {self.batch} is being canceled at the API"


@dataclass(frozen=True, kw_only=True)
class Overdue(ProblemEvent):
    """The API should have ended a batch by now."""

    name = "overdue"
    level = logging.WARNING


@dataclass(frozen=True, kw_only=True)
class BatchEnded(BatchMove):
    """The API has ended a batch."""

    name = "ended"
    before, after = BatchState.IN_PROGRESS, BatchState.ENDED

    succeeded: int
    requests: int

    def line(self) -> str:
        return f"batch {self.batch} ended: {self.succeeded:,} of {count(self.requests, 'request')} succeeded"


@dataclass(frozen=True, kw_only=True)
class BatchNotFound(ProblemEvent):
    """The API does not know a batch, or has no results of it."""

    name = "not_found"
    level = logging.WARNING


@dataclass(frozen=True, kw_only=True)
class ResultsMissing(ProblemEvent):
    """Results of a batch are missing or unreadable."""

    name = "results_missing"
    level = logging.WARNING


@dataclass(frozen=True, kw_only=True)
class UnknownResults(BatchEvent):
    """Result lines of a batch name requests that were never sent."""

    name = "unknown_results"
    level = logging.WARNING

    lines: int

    def line(self) -> str:
        return f"batch {self.batch}: {count(self.lines, 'result line')} with a custom_id that was never sent"


@dataclass(frozen=True, kw_only=True)
class Collected(BatchMove):
    """Every row of a batch has its outcome.

    outcomes: number of rows by state. cost_usd: None if the price is not known. failed: some of the results that failed
    at the API, with the ids by which Anthropic's support finds them.
    """

    name = "collected"
    before, after = BatchState.ENDED, BatchState.COLLECTED

    requests: int
    rows: int
    outcomes: Mapping[str, int]
    cost_usd: float | None
    failed: Sequence[Mapping[str, Any]] = ()

    def line(self) -> str:
        named = [f"{of['request_id'] or of['message_id']} ({of['error_type']})" for of in self.failed]
        failed = f"; failed: {', '.join(named)}" if named else ""
        return f"batch {self.batch} collected: {counted(self.outcomes)}, {money(self.cost_usd)}{failed}"


@dataclass(frozen=True, kw_only=True)
class BatchLost(BatchMove):
    """The results of a batch cannot be learnt at present."""

    name = "lost"
    level = logging.ERROR
    before, after = BatchState.IN_PROGRESS, BatchState.LOST

    problem: str

    def line(self) -> str:
        return f"batch {self.batch} is lost: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class FoundAgain(BatchMove):
    """A lost batch is known to the API again, so its rows wait for its results."""

    name = "found_again"
    before, after = BatchState.LOST, BatchState.IN_PROGRESS

    rows: int

    def line(self) -> str:
        return f"batch {self.batch} was lost and is at the API again; {count(self.rows, 'row')} waiting for its results"


@dataclass(frozen=True, kw_only=True)
class BatchDeleted(BatchEvent):
    """A batch was deleted at the API. problem: always None; readers of the JSON expect the field."""

    name = "deleted"

    problem: None

    def line(self) -> str:
        return f"batch {self.batch} deleted at the API"


@dataclass(frozen=True, kw_only=True)
class BatchNotDeleted(BatchEvent):
    """A batch could not be deleted at the API."""

    name = "not_deleted"
    level = logging.WARNING

    problem: str

    def line(self) -> str:
        return f"batch {self.batch} not deleted at the API yet: {self.problem}"
