"""Make the quote of a command from the database, pass one, the API's token counts and the estimate. Edge: SQL, HTTP.

`run`, `retry` and `estimate` all use this module, so the same rows get the same estimate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.errors import InputError, Stopped
from pipeline.money.measures import CERTAIN_TOKENS_PER_BYTE
from pipeline.planning import counting, gates
from pipeline.planning.estimator import estimate
from pipeline.planning.model_checks import primes_cache
from pipeline.planning.past import Past, past
from pipeline.planning.plan import Plan
from pipeline.planning.quote import Quote
from pipeline.planning.sample import Counts
from pipeline.planning.verdict import Verdict
from pipeline.sink.table import ResultsTable
from pipeline.state.batches import InFlight, Unsent, flying, unsent
from pipeline.state.database import Connection
from pipeline.state.jobs import JobRecord, alone
from pipeline.state.runs import get_run, run_to_join
from pipeline.state.tallies import rows_of_source

if TYPE_CHECKING:
    from pipeline.api.client import Api


@dataclass(frozen=True)
class Known:
    """What a quote needs from the database. The defaults are those of a job that the database does not know.

    run_id: the run that the same command continues; None: it begins a new one. standing: see `gates.Standing`. unsent:
    the batches that are planned and not sent. in_flight: the batches that are or may be at the API; None: there are
    none. before: the job's past answers; None: none. counts: the API's counts of this recipe; None: not asked yet.
    rows: how many rows of this source the job has; None: not known.
    """

    run_id: int | None = None
    standing: gates.Standing = field(default_factory=gates.Standing)
    unsent: Mapping[int, Unsent] = field(default_factory=dict)
    in_flight: InFlight | None = None
    before: Past | None = None
    counts: Counts | None = None
    rows: int | None = None


def known(conn: Connection, job_record: JobRecord | None, sink: ResultsTable, plan: Plan) -> Known:
    """Read what a quote needs from the database. job_record: None: the database does not know the job."""
    if job_record is None:
        return Known()
    retry = None if plan.retry is None else plan.retry.facts()
    run_id = run_to_join(conn, job_record.id, variables=plan.job.vars, recipe=plan.recipe, retry=retry)
    run = None if run_id is None else get_run(conn, run_id)
    counts = counting.stored(conn, job_record.id, plan.asked.recipe)
    per_byte = CERTAIN_TOKENS_PER_BYTE if counts is None else counts.tokens_per_byte
    return Known(
        run_id=run_id,
        standing=gates.standing(conn, job_record.id, plan.recipe, run),
        unsent=unsent(conn, job_record.id),
        in_flight=flying(conn, job_record.id, per_byte),
        before=past(conn, job_record, sink, plan.recipe),
        counts=counts,
        rows=rows_of_source(conn, job_record.id, plan.job.vars),
    )


def require_rows(plan: Plan, quote: Quote) -> list[str]:
    """Return a warning if the source has no rows, else []. Raises InputError if it has fewer than limits.min_rows.

    The limit exists because a source that is suddenly small is usually a broken upload.
    """
    where = " that source.where lets through" if plan.job.source.where is not None else ""
    least = plan.job.limits.min_rows
    if least is not None and quote.total < (least if plan.limit is None else min(least, plan.limit)):
        rows = f"{quote.total:,} {'row' if quote.total == 1 else 'rows'}"
        raise InputError(
            f"the source has {rows}{where}, fewer than limits.min_rows ({least:,}); nothing was sent: "
            "complete the source, or lower limits.min_rows"
        )
    if not quote.total:
        return [f"the source has no rows{where}; set limits.min_rows to make this an error"]
    return []


def counted(plan: Plan, quote: Quote, known: Known, api: "Api | None") -> tuple[Counts, str | None]:
    """Return the token counts for a quote, and the error for which the API gave no count; None: there was no error.

    The counts are those that are stored, else new ones from the API, else ones by bytes. api: None: do not ask the API.
    """
    if known.counts is not None:
        return counting.with_prefix(known.counts, plan.asked, quote), None
    if api is not None and quote.samples:
        try:
            return counting.ask(plan.asked, quote, api), None
        except Stopped as exc:
            return counting.by_bytes(plan.asked, quote), str(exc)
    return counting.by_bytes(plan.asked, quote), None


def store_counts(conn: Connection, job_id: int, plan: Plan, counts: Counts, now: datetime) -> None:
    """Store the API's counts, so that the API is not asked again for this recipe of the job."""
    alone(conn)  # another driver may be storing its counts, too
    counting.store(conn, job_id, plan.asked.recipe, counts, now)


def complete(
    plan: Plan, quote: Quote, known: Known, counts: Counts, *, canary: bool, queue: int, gold: int = 0
) -> None:
    """Add to a quote the size of its first batch, what is in flight, the rows that have vanished, and the estimate.

    canary: whether the command allows a canary; queue: how many requests may be at the API at a time. gold: how many
    rows with gold were chosen for the canary.
    """
    primes = primes_cache(quote.models, counts.prefix)
    gate = gates.gate_of(
        plan.job,
        known.standing,
        rows=quote.to_send,
        canary=canary and plan.retry is None,
        primes=primes,
        gold=bool(gold),
    )
    if gate is not None:
        quote.ahead = gates.first(plan.job, gate).requests
        opens = any(quote.unsent[batch].opens == gate for batch in quote.planned)
        quote.waits_for_ahead = known.standing.keeps_gate and not opens
    quote.in_flight = known.in_flight
    if known.rows is not None and plan.limit is None and plan.retry is None:
        quote.gone = gone(known.rows, quote)
    quote.estimate = estimate(plan.asked, quote, counts=counts, before=known.before, queue=queue)
    if gold and quote.ahead:
        quote.ahead, quote.gold_ahead = gold, True  # after the estimate, which packs the largest canary


def gone(rows: int, quote: Quote) -> int:
    """Return how many of the job's rows are no longer in the source. rows: the job's; quote: of the whole source."""
    return max(0, rows - (quote.total - quote.rows[Verdict.NEW]))
