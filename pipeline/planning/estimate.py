"""The record of an estimate: what a run would send and cost. Pure."""

from dataclasses import dataclass
from typing import Any, NamedTuple

#: That a batch takes. Source: platform.claude.com/docs/en/build-with-claude/batch-processing
USUAL_HOURS, MOST_HOURS = 1, 24


class Counted(NamedTuple):
    """Input tokens of one request. error: of the mean, to either side; sampled: how many the API counted, 0: none."""

    mean: float
    error: float
    sampled: int


class Money(NamedTuple):
    """US dollars. expected: None when nothing is known of the answers yet."""

    low: float
    expected: float | None
    worst: float


class Cached(NamedTuple):
    """The prefix that all requests share. tokens: 0 when it is too short to be cached; rate: see `read_rate`."""

    tokens: int
    ttl: str
    rate: float


@dataclass(frozen=True)
class Estimate:
    """What a run would send and cost. money: None when a model has no known price, which is `unpriced`."""

    rows: int
    requests: int
    batches: int
    size_bytes: int
    models: list[str]
    input_tokens: Counted
    output_tokens: tuple[float, float | None, int]  #: of one answer: low, expected, max_tokens
    cached: Cached | None
    money: Money | None
    unpriced: str | None
    rounds: int  #: how often the queue at the API is filled
    queue: int  #: requests that it takes
    assumes: list[str]

    @property
    def hours(self) -> tuple[int, int]:
        """How long it takes: usually, and at most."""
        return self.rounds * USUAL_HOURS, self.rounds * MOST_HOURS

    @property
    def total_tokens(self) -> int:
        """Input tokens of all requests."""
        return round(self.input_tokens.mean * self.requests)

    @property
    def cost_facts(self) -> dict[str, float | None] | None:
        """Its money as JSON, as it is stored with the run. In US dollars."""
        return None if self.money is None else self.money._asdict()

    def facts(self) -> dict[str, Any]:
        """As JSON. Costs in US dollars."""
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
