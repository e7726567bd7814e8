"""Count what a run is about to send, from its source rows and a random sample of its requests. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.answer.continuing import goes_on, shares_requests
from pipeline.answer.outcome import first_server_tool
from pipeline.answer.retry_change import AnyChange
from pipeline.events.event import Event
from pipeline.job.model import Job
from pipeline.money.prices import PriceList
from pipeline.planning.sample import (
    KEPT_BYTES,
    SAMPLED,
    SEPARATORS,
    Reservoir,
    Sample,
    asking,
    guessed_tokens,
    marked_parts,
    mean,
)
from pipeline.planning.verdict import SENT, Verdict
from pipeline.request.breakpoints import cached_prefix
from pipeline.request.build import Built
from pipeline.state.batches import InFlight, Unsent

if TYPE_CHECKING:
    from pipeline.planning.estimate import Estimate


@dataclass
class Quote:
    """What a run is about to send. It is shown before anything is sent.

    rows: number of source rows by verdict. estimate: tokens and money, see estimate.py; None: not computed yet.
    """

    listed: PriceList
    max_requests: int
    max_bytes: int
    max_cost_usd: float | None  #: the run's budget in US dollars; None: no limit
    trial: bool = False  #: whether the rows are those of a trial
    breakpoints: int = 0  #: blocks with cache_control in the prefix that all requests share
    rounds: int = 1  #: the most requests of a row, apart from attempts
    unshared: bool = False  #: equal requests are sent apart although request.dedupe is on, because answers may go on
    unbounded: str | None = None  #: a tool that the API runs, whose cost cannot be known before; None: none
    rows: Counter[Verdict] = field(default_factory=Counter)
    gone: int | None = None  #: rows of the job that are no longer in its source; None: not known
    stale_batches: set[int] = field(default_factory=set)  #: planned batches with a row whose request must change
    for_retries: Counter[int] = field(default_factory=Counter)  #: number of rows left to each retry, by its run
    unsent: Mapping[int, Unsent] = field(default_factory=dict)  #: batches that are planned and not sent
    planned: Counter[int] = field(default_factory=Counter)  #: number of unchanged rows in these, by batch
    in_flight: InFlight | None = None
    ahead: int = 0  #: rows in the first batch, for which the remaining rows wait; 0: there is no gate
    gold_ahead: bool = False  #: the first batch has rows with gold, whose accuracy decides about the others
    waits_for_ahead: bool = False  #: the first batch is in flight, and the remaining rows still wait
    estimate: "Estimate | None" = None
    reservoir: Reservoir = field(default_factory=lambda: Reservoir(SAMPLED))
    first_params: bytes | None = None
    new_requests: int | None = None  #: requests of the rows that are in no batch yet; None: one for each row
    _slots: dict[int, Sample | str] = field(default_factory=dict)  # str: why the row cannot be sent
    _kept: int = 0

    @classmethod
    def of(cls, job: Job, listed: PriceList) -> "Quote":
        """Return an empty quote for this job."""
        limits, request = job.limits, job.request
        most = min(limits.max_batch_requests, limits.max_in_flight_requests)
        cached = cached_prefix(job)
        return cls(
            listed,
            most,
            limits.max_batch_bytes,
            limits.max_cost_usd,
            breakpoints=0 if cached is None else cached.breakpoints,
            rounds=job.rounds.max if goes_on(job) else 1,
            unshared=request.dedupe and not shares_requests(job),
            unbounded=first_server_tool(request.params),
        )

    def put(self, slot: int, built: Built, carried: bytes, change: AnyChange | None = None) -> None:
        """Store a sampled request. slot: its place in the sample, whose earlier request is replaced.

        carried: its params with all files inside; they are kept up to KEPT_BYTES in total. change: the change with
        which it is sent again; None: it is unchanged.
        """
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
        """Store why a sampled row cannot be sent. slot: as for `put`."""
        self._slots[slot] = why

    def asking(self, model: str, *, keep: int) -> "Quote":
        """Return the quote as it would be if every row asked this model.

        keep: how many of the sampled requests keep their params, for the API to count.
        """
        slots = sorted(self._slots.items())
        first = [slot for slot, sample in slots if isinstance(sample, Sample)][:keep]
        asked = {
            slot: each if isinstance(each, str) else asking(each, model, keep=slot in first) for slot, each in slots
        }
        return replace(self, _slots=asked)

    @property
    def sampled(self) -> int:
        """Return how many rows were sampled."""
        return len(self._slots)

    @property
    def problems(self) -> list[str]:
        """Return why sampled rows cannot be sent, in the order of the slots."""
        return [problem for _, problem in sorted(self._slots.items()) if isinstance(problem, str)]

    @property
    def samples(self) -> list[Sample]:
        """Return the sampled requests in the order of their slots, which is the same each time."""
        return [sample for _, sample in sorted(self._slots.items()) if isinstance(sample, Sample)]

    @property
    def models(self) -> list[str]:
        """Return the models of the sampled requests, sorted."""
        return sorted({sample.model for sample in self.samples})

    @property
    def max_tokens(self) -> int:
        """Return the largest max_tokens of the sampled requests; 0 if there are none."""
        return max((sample.max_tokens for sample in self.samples), default=0)

    @property
    def total(self) -> int:
        """Return the number of source rows."""
        return sum(self.rows.values())

    @property
    def to_send(self) -> int:
        """Return how many rows will be sent; a row that turns out invalid is included."""
        return self._to_pack + self.rows[Verdict.PLANNED]

    @property
    def _to_pack(self) -> int:
        return sum(count for kind, count in self.rows.items() if kind in SENT)

    @property
    def requests(self) -> int:
        """Return how many requests will be sent. Equal requests count once, as if each were sent and succeeded once."""
        return self._planned_requests + self._new[0]

    @property
    def batches(self) -> int:
        """Return about how many batches will be sent."""
        requests, batches = self._new
        per_batch = max(1, int(self.max_bytes / max(1.0, self.mean_bytes + SEPARATORS)))
        return len(self.planned) + max(batches, -(-requests // per_batch))

    @property
    def _new(self) -> tuple[int, int]:
        """Return the numbers of requests and batches for the rows that are in no batch yet."""
        requests = self._to_pack if self.new_requests is None else self.new_requests
        ahead = min(requests, self.ahead if not self._opens_planned else 0, self.max_requests)
        return requests, bool(ahead) + -(-(requests - ahead) // self.max_requests)

    @property
    def _opens_planned(self) -> bool:
        """Return whether the batch that opens the gate is planned already."""
        return any(self.unsent[batch].opens is not None for batch in self.planned)

    @property
    def _planned_requests(self) -> int:
        """Return how many requests the planned rows have; if a batch has changed rows, a share of its requests."""
        found = 0
        for batch, rows in self.planned.items():
            unsent = self.unsent[batch]
            found += unsent.requests if rows >= unsent.rows else min(rows, -(-unsent.requests * rows // unsent.rows))
        return found

    @property
    def mean_bytes(self) -> float:
        """Return the mean size of a sampled request's params in bytes; 0 if there are none."""
        return mean(sample.size for sample in self.samples)


@dataclass(frozen=True, kw_only=True)
class Quoted(Event):
    """A run was quoted. The class is here, not with the other events, because it holds the quote itself."""

    name = "quote"
    changes_job = False

    quote: Quote

    def line(self) -> str:
        return f"quote: {self.quote.to_send} requests to send"
