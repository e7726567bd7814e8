"""What a run is about to do, as far as the rows of its source and a random sample of its requests tell. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from pipeline.answer.outcome import run_by_the_api
from pipeline.answer.retry_change import AnyChange
from pipeline.events.event import Event
from pipeline.job.model import Canary, Job
from pipeline.money.prices import PriceList
from pipeline.planning.sample import (
    KEPT_BYTES,
    SAMPLED,
    SEPARATORS,
    Packed,
    Reservoir,
    Sample,
    guessed_tokens,
    marked_parts,
    mean,
)
from pipeline.planning.verdict import SENT, Verdict
from pipeline.request.build import Built
from pipeline.state.batches import InFlight, Unsent

if TYPE_CHECKING:
    from pipeline.planning.estimate import Estimate


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
        marked = marked_parts(built.params, self.breakpoints) if built.caches else None
        kept = carried if keeps else None
        self._slots[slot] = Sample(
            size=len(built.params),
            tokens=guessed_tokens(built),
            model=built.model,
            max_tokens=built.max_tokens,
            params=kept,
            marked=marked,
            change=change,
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
        return mean(sample.size for sample in self.samples)


@dataclass(frozen=True, kw_only=True)
class Quoted(Event):
    """A run was quoted. It stands here and not with the other events because it holds the quote itself."""

    name = "quote"
    changes_job = False

    quote: Quote

    def line(self) -> str:
        return f"quote: {self.quote.to_send} requests to send"
