"""What is known of a batch after its create call? Pure.

No module of the SDK is imported here: a command that sends nothing need not wait for it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch


@dataclass(frozen=True)
class Accepted:
    """The API accepted the batch."""

    batch: "MessageBatch"
    request_id: str | None


@dataclass(frozen=True)
class Rejected:
    """It is proven that the API accepted nothing. wait: seconds before the next try."""

    problem: str
    request_id: str | None = None
    wait: float = 0.0
    circuit: bool = False  #: the API refuses the account: stop submitting
    too_large: bool = False
    held_back: bool = False  #: we held back the last bytes of the body, see HeldBack
    unreachable: bool = False  #: the connection failed, so others will fail too


@dataclass(frozen=True)
class Unknown:
    """The API may or may not have accepted the batch."""

    problem: str
    request_id: str | None = None
