"""What a run is about to do and what it will cost. Pure."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline import pricing
from pipeline.verdicts import SENT, Verdict


@dataclass
class Quote:
    """What a run is about to do, and what it will cost; said before anything is sent.

    rows: source rows by verdict. params_bytes: mean bytes of a request, of a sample. Costs are None when the model has
    no known price; cost_most is with max_tokens of output for every row.
    """

    rows: Counter[Verdict] = field(default_factory=Counter)
    stale_batches: set[int] = field(default_factory=set)  #: planned, not sent, with a row that has changed since
    invalid_in_sample: int = 0
    sampled: int = 0
    sampled_bytes: int = 0
    first_params: bytes | None = None
    samples: list[bytes] = field(default_factory=list)  #: params of some
    first_problem: str | None = None
    model: str = ""
    max_tokens: int = 0
    max_requests: int = 1
    max_bytes: int = 1
    max_cost_usd: float | None = None  #: what the run may cost at most; None: no limit

    @property
    def total(self) -> int:
        """Source rows."""
        return sum(self.rows.values())

    @property
    def to_send(self) -> int:
        """Rows that will be sent, as far as the sample tells."""
        return sum(count for kind, count in self.rows.items() if kind in SENT) + self.rows[Verdict.PLANNED]

    @property
    def batches(self) -> int:
        """About how many batches that makes."""
        per_batch = min(self.max_requests, max(1, int(self.max_bytes / max(1.0, self.mean_bytes + 70))))
        return -(-self.to_send // per_batch)

    @property
    def mean_bytes(self) -> float:
        """Bytes of one request's params."""
        rendered = self.sampled - self.invalid_in_sample
        return self.sampled_bytes / rendered if rendered else 0.0

    @property
    def input_tokens(self) -> int:
        """About how many tokens go in, by the sample's bytes."""
        return round(self.to_send * self.mean_bytes / pricing.BYTES_PER_TOKEN)

    @property
    def cost_input(self) -> float | None:
        """About how many US dollars the input costs."""
        return self._cost(output_tokens=0)

    @property
    def cost_most(self) -> float | None:
        """About how many US dollars it costs when every answer takes max_tokens."""
        return self._cost(output_tokens=self.max_tokens)

    def _cost(self, output_tokens: int) -> float | None:
        known = pricing.prices(self.model)
        if known is None:
            return None
        prompt = round(self.mean_bytes / pricing.BYTES_PER_TOKEN)
        return self.input_tokens * known.input.of(prompt) + self.to_send * output_tokens * known.output.of(prompt)
