"""What a run is about to do, as far as the rows of its source and a random sample of its requests tell. Pure."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from pipeline import pricing
from pipeline.changes import AnyChange
from pipeline.job import MAX_TOKENS, AskAgain, Canary, Job, LongerAnswer, OtherModel
from pipeline.outcomes import run_by_the_api
from pipeline.packing import ROWS_OF_REQUEST
from pipeline.pricing import PriceList
from pipeline.requests import Built
from pipeline.verdicts import SENT, Verdict

if TYPE_CHECKING:
    from pipeline.estimate import Estimate

SAMPLED = 100  # rows that are rendered for the quote
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


class Packed:
    """How many requests and batches rows make, when equal requests of one batch are sent once.

    Rows are added as hashes of the values that their requests are made of, in the order in which they are packed.
    """

    def __init__(self, most: int, first: int) -> None:
        """most: requests of a batch; first: of the first batch, 0 when that is a batch like the others."""
        self._most, self._room = most, min(first or most, most)
        self._held = pl.Series(dtype=pl.UInt64)  # rows of the batch that is not full yet
        self._requests = self._batches = 0

    def add(self, hashes: pl.Series) -> None:
        """Pack the next rows."""
        self._held = pl.concat([self._held, hashes])
        start = 0
        while (window := self._held.slice(start, ROWS_OF_REQUEST * self._room + 1)).len() > self._room:
            different = window.is_first_distinct().cum_sum()
            rows = min(int((different <= self._room).sum()), ROWS_OF_REQUEST * self._room)
            if rows == window.len():
                break
            self._requests += int(different[rows - 1])
            self._batches += 1
            start, self._room = start + rows, self._most
        self._held = self._held.slice(start)

    @property
    def totals(self) -> tuple[int, int]:
        """Requests, and batches."""
        return self._requests + self._held.n_unique(), self._batches + bool(self._held.len())


class Sample(NamedTuple):
    """One sampled request. size: bytes as it is sent; tokens: about how many go in, by its bytes.

    params: with all files in it, None when it is not kept; marked: how long what its own blocks with cache_control
    cover is cached, 5m or 1h; None: nothing but what `request.cache` covers; change: with which it is sent again.
    """

    size: int
    tokens: float
    model: str
    max_tokens: int
    params: bytes | None
    marked: str | None = None
    change: AnyChange | None = None


class Unsent(NamedTuple):
    """A batch that is planned and not sent. opens: the gate of its run that it opens."""

    requests: int
    rows: int
    opens: str | None


class InFlight(NamedTuple):
    """Batches of the job that are at the API, or may be. usd: reserved for them at most; None: a price is not known."""

    batches: int
    requests: int
    rows: int
    usd: float | None


@dataclass
class Quote:
    """What a run is about to do. It is said before anything is sent; see estimate.py for what it costs.

    rows: source rows by verdict. estimate: what is said of tokens and money; None when nobody asked for it.
    """

    listed: PriceList
    max_requests: int
    max_bytes: int
    max_cost_usd: float | None  #: what the run may cost at most; None: no limit
    breakpoints: int = 0  #: blocks with cache_control that `request.cache` puts into each request
    unbounded: str | None = None  #: a tool that the API runs, whose cost nobody can say before
    rows: Counter[Verdict] = field(default_factory=Counter)
    gone: int | None = None  #: rows of the job that are not in its source any more; None: that is not known
    stale_batches: set[int] = field(default_factory=set)  #: planned, not sent, with a row that has changed since
    for_retries: Counter[int] = field(default_factory=Counter)  #: rows that are left to retries, by the retry's run
    unsent: Mapping[int, Unsent] = field(default_factory=dict)  #: batches that are planned and not sent
    planned: Counter[int] = field(default_factory=Counter)  #: rows that are in them as they are, by batch
    in_flight: InFlight | None = None
    ahead: int = 0  #: rows that are sent before all others, which wait for them
    waits_for_ahead: bool = False  #: these rows are in flight, and the others still wait for them
    estimate: "Estimate | None" = None
    reservoir: Reservoir = field(default_factory=lambda: Reservoir(SAMPLED))
    first_params: bytes | None = None
    packed_rows: int = 0  #: rows that `pack` was told of
    _packed: dict[int, Packed] = field(default_factory=dict)  # by the rows that go ahead
    _slots: dict[int, Sample | str] = field(default_factory=dict)  # a text: why the row cannot be sent
    _kept: int = 0

    @classmethod
    def of(cls, job: Job, listed: PriceList) -> "Quote":
        """An empty one for this job."""
        limits, request = job.limits, job.request
        most = min(limits.max_batch_requests, limits.max_in_flight_requests)
        first = {0} | ({job.canary.rows} if isinstance(job.canary, Canary) else set())
        first |= {1} if request.cache is not None else set()
        return cls(
            listed,
            most,
            limits.max_batch_bytes,
            limits.max_cost_usd,
            int(request.cache is not None),
            run_by_the_api(request.params),
            _packed={rows: Packed(most, rows) for rows in first},
        )

    def pack(self, hashes: pl.Series) -> None:
        """Take note of the next rows that are to be packed, by hashes of what their requests are made of."""
        self.packed_rows += hashes.len()
        for packed in self._packed.values():
            packed.add(hashes)

    def put(self, slot: int, built: Built, carried: bytes, change: AnyChange | None = None) -> None:
        """A sampled request. carried: its params with all files in it; change: with which it is sent again."""
        self.first_params = self.first_params or built.params
        keeps = self._kept + len(carried) <= KEPT_BYTES
        self._kept += len(carried) if keeps else 0
        marked = _marked(built.params, self.breakpoints) if built.caches else None
        kept = carried if keeps else None
        self._slots[slot] = Sample(
            len(built.params), guessed_tokens(built), built.model, built.max_tokens, kept, marked, change
        )

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
        return self._to_pack + self.rows[Verdict.PLANNED]

    @property
    def _to_pack(self) -> int:
        return sum(count for kind, count in self.rows.items() if kind in SENT)

    @property
    def requests(self) -> int:
        """Requests that will be sent: equal ones of a batch are sent once. At most one for each row."""
        return self._planned_requests + self._new[0]

    @property
    def batches(self) -> int:
        """About how many batches that makes."""
        requests, batches = self._new
        per_batch = max(1, int(self.max_bytes / max(1.0, self.mean_bytes + SEPARATORS)))
        return len(self.planned) + max(batches, -(-requests // per_batch))

    @property
    def _new(self) -> tuple[int, int]:
        """Requests and batches of the rows that are in no batch yet."""
        packed = self._packed.get(self.ahead if not self._opens_planned else 0, Packed(self.max_requests, 0))
        if not self.packed_rows:  # nobody was told of them: as if all were different
            return self._to_pack, -(-self._to_pack // self.max_requests)
        return packed.totals

    @property
    def _opens_planned(self) -> bool:
        """Whether the rows that go ahead are in a batch already."""
        return any(self.unsent[batch].opens is not None for batch in self.planned)

    @property
    def _planned_requests(self) -> int:
        """Requests of the rows that are planned, by what their batches have; in part when only some rows are left."""
        found = 0
        for batch, rows in self.planned.items():
            unsent = self.unsent[batch]
            found += unsent.requests if rows >= unsent.rows else min(rows, -(-unsent.requests * rows // unsent.rows))
        return found

    @property
    def mean_bytes(self) -> float:
        """Bytes of one request's params."""
        return _mean(sample.size for sample in self.samples)


#: Of the turn that says what is wrong with an answer.
REASK_TOKENS = 100


def changed_sample(sample: Sample, change: AnyChange) -> Sample:
    """A request as it is sent again with a change of `retry.change`; of a model's own limits nothing is known here."""
    match change:
        case LongerAnswer():
            return sample._replace(max_tokens=min(MAX_TOKENS, int(change.factor * sample.max_tokens)))
        case OtherModel():
            return sample._replace(model=change.model)
        case AskAgain():
            return sample._replace(tokens=sample.tokens + sample.max_tokens + REASK_TOKENS)


def guessed_tokens(built: Built) -> float:
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


def _marked(params: bytes, breakpoints: int) -> str | None:
    """How long the blocks with cache_control of the user's own are cached, the longest; None: there are none."""
    if params.count(b'"cache_control":{') <= breakpoints:
        return None
    return "1h" if b'"ttl":"1h"' in params else "5m"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
