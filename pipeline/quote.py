"""What a run is about to do and what it will cost, by a random sample of its requests. Pure."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline import pricing
from pipeline.job import Job
from pipeline.outcomes import run_by_the_api
from pipeline.pricing import PriceList, Prices
from pipeline.requests import Built
from pipeline.verdicts import SENT, Verdict

SAMPLED = 100  # rows that are rendered for the quote
COUNTED = 20  # of them, whose tokens the API is asked to count, when there is a budget
COUNTED_ONCE = 50  # of them, for an estimate
KEPT_BYTES = 50_000_000  # of sampled requests, to be counted
SEPARATORS = 70  # bytes that a request takes in a body apart from its params
#: About how many tokens a picture or a document has, for a quote made before anything is counted.
IMAGE_TOKENS, DOCUMENT_TOKENS = 1_600, 6_000


class Reservoir:
    """A uniform random sample of a stream whose length is not known, taken without looking at each item (algorithm L).

    The same each time for the same stream.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._seen = size, 0
        self._chance = random.Random(seed)
        self._weight = 1.0
        self._next = size  # index of the next item that replaces one

    def take(self, n: int) -> list[tuple[int, int]]:
        """Which of the next n items are in the sample for now: (index among them, slot), ascending; each slot once."""
        first, self._seen = self._seen, self._seen + n
        taken = {slot: slot - first for slot in range(first, min(self._seen, self._size))}
        if self._next == self._size and self._seen >= self._size:
            self._skip()
        while self._next < self._seen:
            taken[self._chance.randrange(self._size)] = self._next - first
            self._skip()
        return sorted((index, slot) for slot, index in taken.items())

    def _skip(self) -> None:
        self._weight *= math.exp(math.log(1.0 - self._chance.random()) / self._size)
        self._next += int(math.log(1.0 - self._chance.random()) / math.log1p(-self._weight)) + 1


class Sample(NamedTuple):
    """One sampled request. size: bytes as it is sent; tokens: about how many go in; params: with all files in it."""

    size: int
    tokens: float
    model: str
    max_tokens: int
    params: bytes | None


@dataclass
class Quote:
    """What a run is about to do, and what it will cost; said before anything is sent.

    rows: source rows by verdict. Costs are None when a model has no known price; cost_most is with max_tokens of output
    for every row.
    """

    listed: PriceList
    max_requests: int
    max_bytes: int
    max_cost_usd: float | None  #: what the run may cost at most; None: no limit
    place_factor: float = 1.0  #: what the place of inference makes of a price
    unbounded: str | None = None  #: a tool that the API runs, whose cost nobody can say before
    rows: Counter[Verdict] = field(default_factory=Counter)
    stale_batches: set[int] = field(default_factory=set)  #: planned, not sent, with a row that has changed since
    for_retries: Counter[int] = field(default_factory=Counter)  #: rows that are left to retries, by the retry's run
    reservoir: Reservoir = field(default_factory=lambda: Reservoir(SAMPLED))
    first_params: bytes | None = None
    _slots: dict[int, Sample | str] = field(default_factory=dict)  # a text: why the row cannot be sent
    _kept: int = 0

    @classmethod
    def of(cls, job: Job, listed: PriceList) -> "Quote":
        """An empty one for this job."""
        limits, params = job.limits, job.request.params
        return cls(
            listed,
            limits.max_batch_requests,
            limits.max_batch_bytes,
            limits.max_cost_usd,
            pricing.place_factor(params),
            run_by_the_api(params),
        )

    def put(self, slot: int, built: Built, carried: bytes) -> None:
        """A sampled request. carried: its params with all files in it."""
        self.first_params = self.first_params or built.params
        keeps = self._kept + len(carried) <= KEPT_BYTES
        self._kept += len(carried) if keeps else 0
        size = len(built.params)
        self._slots[slot] = Sample(size, _tokens(built), built.model, built.max_tokens, carried if keeps else None)

    def put_problem(self, slot: int, why: str) -> None:
        """A sampled row that cannot be sent."""
        self._slots[slot] = why

    @property
    def sampled(self) -> int:
        """How many rows were looked at."""
        return len(self._slots)

    @property
    def problems(self) -> list[str]:
        """Why sampled rows cannot be sent, in the order of the slots."""
        return [said for _, said in sorted(self._slots.items()) if isinstance(said, str)]

    @property
    def samples(self) -> list[Sample]:
        """The sampled requests, in no order that means anything but always the same."""
        return [sample for _, sample in sorted(self._slots.items()) if isinstance(sample, Sample)]

    @property
    def models(self) -> list[str]:
        """The models that the sampled requests ask."""
        return sorted({sample.model for sample in self.samples})

    @property
    def max_tokens(self) -> int:
        """The most tokens that an answer to a sampled request may have."""
        return max((sample.max_tokens for sample in self.samples), default=0)

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
        per_batch = min(self.max_requests, max(1, int(self.max_bytes / max(1.0, self.mean_bytes + SEPARATORS))))
        return -(-self.to_send // per_batch)

    @property
    def mean_bytes(self) -> float:
        """Bytes of one request's params."""
        return _mean(sample.size for sample in self.samples)

    @property
    def input_tokens(self) -> int:
        """About how many tokens go in, by the sample's bytes."""
        return round(self.to_send * _mean(sample.tokens for sample in self.samples))

    @property
    def unpriced(self) -> str | None:
        """A model that the sampled requests ask and whose price is not known; None if there is none."""
        return next((model for model in self.models if self.listed.of(model) is None), None)

    @property
    def cost_input(self) -> float | None:
        """About how many US dollars the input costs."""
        return self._cost(with_output=False)

    @property
    def cost_most(self) -> float | None:
        """About how many US dollars it costs when every answer takes max_tokens."""
        return self._cost(with_output=True)

    def _cost(self, *, with_output: bool) -> float | None:
        if self.unpriced is not None:
            return None
        costs = (_cost(sample, self.listed.of(sample.model), with_output=with_output) for sample in self.samples)
        return self.to_send * self.place_factor * _mean(costs)


def _cost(sample: Sample, prices: Prices | None, *, with_output: bool) -> float:
    assert prices is not None
    prompt = round(sample.tokens)
    output = sample.max_tokens * prices.output.of(prompt) if with_output else 0.0
    return sample.tokens * prices.input.of(prompt) + output


def _tokens(built: Built) -> float:
    """About how many tokens a request has, by its bytes; what is no text is not in them as text."""
    if not built.elsewhere:
        return len(built.params) / pricing.BYTES_PER_TOKEN
    return text_bytes(built.params) / pricing.BYTES_PER_TOKEN + (
        IMAGE_TOKENS * built.params.count(b'"type":"image"')
        + DOCUMENT_TOKENS * built.params.count(b'"type":"document"')
    )


def text_bytes(params: bytes) -> int:
    """The bytes of a request without those of the files that it carries."""
    return len(params) - sum(found.end() - found.start() for found in _BASE64.finditer(params))


_BASE64 = re.compile(rb'"data":"[A-Za-z0-9+/=]{64,}"')


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
