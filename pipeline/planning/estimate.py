"""The records of an estimate: what a run would send, how long it would take and what it would cost. Pure."""

from dataclasses import dataclass
from typing import Any, NamedTuple

#: Hours that a batch takes. Source: platform.claude.com/docs/en/build-with-claude/batch-processing
USUAL_HOURS, MOST_HOURS = 1, 24


class Counted(NamedTuple):
    """Input tokens of one request.

    error: how far the mean may be off, in either direction; sampled: how many requests the API counted; 0: none.
    """

    mean: float
    error: float
    sampled: int


class Money(NamedTuple):
    """The cost in US dollars. expected: None if the job has no answers yet to judge by."""

    low: float
    expected: float | None
    worst: float


class Cached(NamedTuple):
    """The prefix that all requests share.

    tokens: its length; 0: it is too short to be cached; ttl: 5m or 1h; rate: the share of its tokens that is read from
    the cache, see `measures.read_rate`.
    """

    tokens: int
    ttl: str
    rate: float


@dataclass(frozen=True)
class Estimate:
    """What a run would send and cost.

    money: None if a model has no known price, or no sampled row can be sent; unpriced: the model without a price; None:
    there is none.
    """

    rows: int
    requests: int
    batches: int
    size_bytes: int
    models: list[str]
    input_tokens: Counted
    output_tokens: tuple[float, float | None, int]  #: of one answer: low; expected, None: not known; max_tokens
    cached: Cached | None
    money: Money | None
    unpriced: str | None
    rounds: int  #: how often the queue at the API has to be filled
    queue: int  #: requests that may be at the API at a time
    assumes: list[str]

    @property
    def hours(self) -> tuple[int, int]:
        """Return how many hours the run takes: usually, and at most."""
        return self.rounds * USUAL_HOURS, self.rounds * MOST_HOURS

    @property
    def total_tokens(self) -> int:
        """Return the input tokens of all requests together."""
        return round(self.input_tokens.mean * self.requests)

    @property
    def cost_facts(self) -> dict[str, float | None] | None:
        """Return the cost in US dollars, as a mapping that is stored with the run; None if it is not known."""
        return None if self.money is None else self.money._asdict()

    def facts(self) -> dict[str, Any]:
        """Return the estimate as a mapping for JSON. Costs are in US dollars."""
        low, expected, most = self.output_tokens
        return {
            "requests": self.requests,
            "batches": self.batches,
            "bytes": self.size_bytes,
            "models": self.models,
            "input_tokens": {
                "mean": round(self.input_tokens.mean, 1),
                "error": round(self.input_tokens.error, 1),
                "counted": self.input_tokens.sampled,
                "total": self.total_tokens,
            },
            "output_tokens": {"low": low, "expected": expected, "worst": most},
            "cache": None if self.cached is None else self.cached._asdict(),
            "cost_usd": self.cost_facts,
            "hours": {"usual": self.hours[0], "most": self.hours[1], "rounds": self.rounds, "queue": self.queue},
            "assumes": self.assumes,
        }
