"""What is said before a run: what the database knows, pass one, the API's count of tokens, and the estimate of both.

`run`, `retry` and `estimate` all quote by this module, so the same rows have one price. Edge: SQL, HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.api.client import Api
from pipeline.errors import InputError, Stopped
from pipeline.money import budget
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


@dataclass(frozen=True)
class Known:
    """What the database knows that a quote depends on; as it is here for a job that the database does not know.

    run_id: the open run that the same command goes on with. counts: by the API, of this recipe.
    rows: all that the job has, if they are all of this source.
    """

    run_id: int | None = None
    standing: gates.Standing = field(default_factory=gates.Standing)
    unsent: Mapping[int, Unsent] = field(default_factory=dict)
    in_flight: InFlight | None = None
    before: Past | None = None
    counts: Counts | None = None
    rows: int | None = None


def known(conn: Connection, row: JobRecord | None, sink: ResultsTable, plan: Plan) -> Known:
    """Read it. row: the job as the database has it; None: it does not."""
    if row is None:
        return Known()
    retry = None if plan.retry is None else plan.retry.facts()
    run_id = run_to_join(conn, row.id, variables=plan.job.vars, recipe=plan.recipe, retry=retry)
    run = None if run_id is None else get_run(conn, run_id)
    counts = counting.stored(conn, row.id, plan.asked.recipe)
    per_byte = budget.CERTAIN_TOKENS_PER_BYTE if counts is None else counts.tokens_per_byte
    return Known(
        run_id=run_id,
        standing=gates.standing(conn, row.id, plan.recipe, run),
        unsent=unsent(conn, row.id),
        in_flight=flying(conn, row.id, per_byte),
        before=past(conn, row, sink, plan.recipe),
        counts=counts,
        rows=rows_of_source(conn, row.id, plan.job.vars),
    )


def require_rows(plan: Plan, quote: Quote) -> list[str]:
    """Warnings about a source without rows. Raises InputError when it has fewer than limits.min_rows.

    A source that is smaller than ever is a broken upload more often than not.
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
        return [f"the source has no rows{where}; limits.min_rows makes that an error"]
    return []


def counted(plan: Plan, quote: Quote, known: Known, api: Api | None) -> tuple[Counts, str | None]:
    """Tokens of the sample by the API's count, and why the API was not asked; None: it was, now or before.

    api: None: it cannot be asked.
    """
    if known.counts is not None:
        return known.counts, None
    if api is not None and quote.samples:
        try:
            return counting.ask(plan.asked, quote, api), None
        except Stopped as exc:
            return counting.by_bytes(plan.asked, quote), str(exc)
    return counting.by_bytes(plan.asked, quote), None


def store_counts(conn: Connection, job_id: int, plan: Plan, counts: Counts, now: datetime) -> None:
    """Note what the API counted, so that it is not asked again for this recipe of the job."""
    alone(conn)  # another driver may have asked as well
    counting.store(conn, job_id, plan.asked.recipe, counts, now)


def complete(plan: Plan, quote: Quote, known: Known, counts: Counts, *, canary: bool, queue: int) -> None:
    """Put into a quote which rows go ahead, what is in flight, and the estimate.

    canary: whether the command allows one; queue: requests that may be at the API at a time.
    """
    primes = primes_cache(quote.models, counts.prefix)
    gate = gates.gate_of(
        plan.job, known.standing, rows=quote.to_send, canary=canary and plan.retry is None, primes=primes
    )
    if gate is not None:
        quote.ahead = gates.first(plan.job, gate).requests
        opens = any(quote.unsent[batch].opens == gate for batch in quote.planned)
        quote.waits_for_ahead = known.standing.keeps_gate and not opens
    quote.in_flight = known.in_flight
    if known.rows is not None and plan.limit is None and plan.retry is None:
        quote.gone = gone(known.rows, quote)
    quote.estimate = estimate(plan.asked, quote, counts=counts, before=known.before, queue=queue)


def gone(rows: int, quote: Quote) -> int:
    """How many of the job's rows are not in the source any more. quote: of all of the source."""
    return max(0, rows - (quote.total - quote.rows[Verdict.NEW]))
